//! A dense array that grows by pieces: no element ever moves because others arrive, so growth neither pauses nor
//! needs twice the memory for a moment.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

/// Elements in pieces of `1 << LOG`; every piece but the last is full.
#[derive(Debug)]
pub(crate) struct Chunked<T, const LOG: u32> {
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T, const LOG: u32> Default for Chunked<T, LOG> {
    fn default() -> Self {
        Chunked { pieces: Vec::new(), len: 0 }
    }
}

impl<T, const LOG: u32> Chunked<T, LOG> {
    /// Elements in a piece.
    pub(crate) const PIECE: usize = 1 << LOG;

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, value: T) {
        let piece = self.len >> LOG;
        if piece == self.pieces.len() {
            // The first piece starts small, for there are many small collections.
            let capacity = if piece == 0 { 2 } else { Self::PIECE };
            self.pieces.push(Vec::with_capacity(capacity));
        }
        self.pieces[piece].push(value);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let piece = self.pieces.last_mut()?;
        let value = piece.pop()?;
        self.len -= 1;
        if piece.is_empty() {
            self.pieces.pop();
        }
        Some(value)
    }

    /// Takes an element out; the last one moves to its place.
    pub(crate) fn swap_remove(&mut self, at: usize) -> Option<T> {
        let last = self.pop()?;
        if at == self.len { Some(last) } else { Some(core::mem::replace(&mut self[at], last)) }
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.pieces.iter().flatten()
    }

    /// The pieces themselves, for those who free or walk a large array a piece at a time.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = Vec<T>> {
        self.pieces.into_iter()
    }

    pub(crate) fn piece(&self, piece: usize) -> Option<&[T]> {
        self.pieces.get(piece).map(Vec::as_slice)
    }

    /// Bytes of heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let pieces: usize = match self.pieces.len() {
            0 => 0,
            n => self.pieces[0].capacity() + (n - 1) * Self::PIECE,
        };
        pieces * size_of::<T>() + self.pieces.capacity() * size_of::<Vec<T>>()
    }
}

impl<T, const LOG: u32> Index<usize> for Chunked<T, LOG> {
    type Output = T;
    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.pieces[at >> LOG][at & (Self::PIECE - 1)]
    }
}

impl<T, const LOG: u32> IndexMut<usize> for Chunked<T, LOG> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.pieces[at >> LOG][at & (Self::PIECE - 1)]
    }
}
