//! The digest of guest memory, kept up to date page by page.
//!
//! Each page contributes the 128-bit XXH3 of its contents, seeded with its page number; an all-zero page contributes 0;
//! the digest is the sum modulo 2¹²⁸. It depends on contents alone. Which pages were *hashed again* comes from
//! KVM's dirty log, which may name more pages than were written (a host that refaults a page reports it),
//! differently on every host, and that must not show.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::digest::{Digest, PageCheck};

/// Running digest of a guest's memory.
pub struct MemoryDigest {
    pages: Vec<u128>,
    total: u128,
}

impl MemoryDigest {
    /// The digest of `pages` pages of zeros.
    pub fn new(pages: usize) -> Self {
        MemoryDigest { pages: vec![0; pages], total: 0 }
    }

    /// Takes the contents of the pages that `dirty` names (one bit a page) anew, through `read`; `None` reads as left out.
    /// Returns the pages that changed, ascending, at most [`Digest::MAX_PAGES`].
    pub fn update<'a>(&mut self, dirty: &[u64], read: impl Fn(usize) -> Option<&'a [u8]>) -> Vec<PageCheck> {
        let mut changed = Vec::new();
        for (index, &word) in dirty.iter().enumerate() {
            let mut bits = word;
            while bits != 0 {
                let page = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(known) = self.pages.get_mut(page) else { continue };
                let hash = read(page).map_or(0, |bytes| contribution(page, bytes));
                if hash != *known {
                    self.total = self.total.wrapping_sub(*known).wrapping_add(hash);
                    *known = hash;
                    if changed.len() < Digest::MAX_PAGES {
                        changed.push(PageCheck { page: page as u32, check: hash as u16 });
                    }
                }
            }
        }
        changed
    }

    /// Takes the contents of one page anew; `None` counts as zeros.
    pub fn put(&mut self, page: usize, bytes: Option<&[u8]>) {
        let Some(known) = self.pages.get_mut(page) else { return };
        let hash = bytes.map_or(0, |bytes| contribution(page, bytes));
        self.total = self.total.wrapping_sub(*known).wrapping_add(hash);
        *known = hash;
    }

    /// The digest of all pages.
    pub fn total(&self) -> u128 {
        self.total
    }
}

fn contribution(page: usize, bytes: &[u8]) -> u128 {
    if bytes.iter().all(|&byte| byte == 0) { 0 } else { xxh3_128_with_seed(bytes, page as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_contents_not_on_what_was_reported_dirty() {
        let mut memory = vec![vec![0u8; 4096]; 4];
        memory[1][7] = 1;
        memory[3][9] = 2;
        let read = |page: usize| Some(memory[page].as_slice());
        let mut exact = MemoryDigest::new(4);
        exact.update(&[0b1010], read);
        let mut over = MemoryDigest::new(4);
        let first = over.update(&[0b0011], read);
        assert_eq!(first.iter().map(|p| p.page).collect::<Vec<_>>(), [1]);
        over.update(&[0b1111], read);
        assert_eq!(exact.total(), over.total());
        assert_ne!(exact.total(), 0);
    }

    #[test]
    fn the_same_bytes_in_another_page_differ() {
        let bytes = [5u8; 4096];
        let mut a = MemoryDigest::new(2);
        a.update(&[1], |_| Some(&bytes));
        let mut b = MemoryDigest::new(2);
        b.update(&[2], |_| Some(&bytes));
        assert_ne!(a.total(), b.total());
    }

    #[test]
    fn a_page_back_at_its_old_contents_restores_the_digest() {
        let (zero, one) = ([0u8; 4096], [1u8; 4096]);
        let mut digest = MemoryDigest::new(1);
        digest.update(&[1], |_| Some(&one));
        digest.update(&[1], |_| Some(&zero));
        assert_eq!(digest.total(), 0);
    }
}
