//! Who may do what with a node: the schemes `world`, `digest` and `ip` (and `auth`, which is made digests of when an ACL is set).
//!
//! A client's identities belong to its connection. They travel with each of its changes through the log, encoded once for the
//! connection, and are looked at only where a node is not open to the world.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use sha1::{Digest as _, Sha1};

use crate::wire::code::Code;
use crate::wire::jute::{JuteError, Reader, Write};
use crate::wire::stat::{RawAcl, write_acl};

/// What can be allowed.
pub mod perms {
    /// To read data and children.
    pub const READ: i32 = 1;
    /// To change data.
    pub const WRITE: i32 = 2;
    /// To create children.
    pub const CREATE: i32 = 4;
    /// To delete children.
    pub const DELETE: i32 = 8;
    /// To change the ACL.
    pub const ADMIN: i32 = 16;
    /// All of it.
    pub const ALL: i32 = 31;
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// How it is shown who it is.
    pub scheme: String,
    /// Who, in the scheme's words.
    pub id: String,
}

/// Somebody, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Sum of [`perms`].
    pub perms: i32,
    /// Who.
    pub id: Id,
}

/// The ACL of a node; shared by nodes that have the same.
pub type Acl = Arc<[Entry]>;

fn world(perms: i32) -> Acl {
    Arc::new([Entry { perms, id: Id { scheme: "world".into(), id: "anyone".into() } }])
}

/// Everything is allowed to everybody.
pub static OPEN: LazyLock<Acl> = LazyLock::new(|| world(perms::ALL));
/// Everybody may read.
pub static READ_ONLY: LazyLock<Acl> = LazyLock::new(|| world(perms::READ));

/// [`OPEN`] as requests carry it.
static OPEN_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    write_acl(&OPEN, &mut bytes);
    bytes
});

/// The identities of a connection, as its changes carry them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids<'a>(&'a [u8]);

impl<'a> Ids<'a> {
    /// Takes them from where a change carries them.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, JuteError> {
        let bytes = reader.buffer()?.unwrap_or_default();
        let mut inside = Reader::new(bytes);
        while !inside.rest().is_empty() {
            inside.text()?;
            inside.text()?;
        }
        Ok(Ids(bytes))
    }

    /// Those encoded by [`encode`].
    pub fn of(bytes: &'a [u8]) -> Self {
        Self::read(&mut Reader::new(bytes)).unwrap_or_default()
    }

    /// As they are carried, without their length.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Scheme and id of each.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || Some((reader.text().ok()?, reader.text().ok()?)))
    }

    fn has(self, wanted: &Id) -> bool {
        self.iter().any(|(scheme, id)| match scheme {
            _ if scheme != wanted.scheme => false,
            "ip" => within(id, &wanted.id),
            _ => id == wanted.id,
        })
    }
}

/// The identities of a connection, for its changes to carry.
pub fn encode(ids: &[Id]) -> Vec<u8> {
    let mut inside = Vec::new();
    for Id { scheme, id } in ids {
        inside.string(scheme);
        inside.string(id);
    }
    let mut bytes = Vec::new();
    bytes.buffer(&inside);
    bytes
}

/// An address, and how many of its first bits count.
fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => (address, Some(bits)),
    };
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|bits| *bits <= all))?;
    Some((address, bits))
}

/// Whether the address `address` is in the network `wanted`.
fn within(address: &str, wanted: &str) -> bool {
    let Some((network, bits)) = network(wanted) else { return false };
    let same = |one: u128, other: u128, all: u32| bits == 0 || (one ^ other) >> (all - bits) == 0;
    match (address.parse(), network) {
        (Ok(IpAddr::V4(one)), IpAddr::V4(other)) => same(one.to_bits().into(), other.to_bits().into(), 32),
        (Ok(IpAddr::V6(one)), IpAddr::V6(other)) => same(one.to_bits(), other.to_bits(), 128),
        _ => false,
    }
}

/// The identity that `user:password` proves.
pub fn digest_of(credentials: &[u8]) -> Id {
    let user = credentials.split(|byte| *byte == b':').next().unwrap_or_default();
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha1::digest(credentials));
    Id { scheme: "digest".into(), id: format!("{}:{hash}", String::from_utf8_lossy(user)) }
}

/// Whether somebody who has shown to be all of `ids` may do one of `wanted`.
pub fn allows(acl: &[Entry], wanted: i32, ids: Ids<'_>) -> bool {
    acl.is_empty()
        || acl.iter().any(|entry| {
            entry.perms & wanted != 0 && (entry.id.scheme == "world" && entry.id.id == "anyone" || ids.has(&entry.id))
        })
}

/// An error unless [`allows`].
pub fn check(acl: &[Entry], wanted: i32, ids: Ids<'_>) -> Result<(), Code> {
    if allows(acl, wanted, ids) { Ok(()) } else { Err(Code::NoAuth) }
}

/// Whether this is `user:hash`, with something in both parts but perhaps the user's.
fn is_digest(id: &str) -> bool {
    id.split_once(':').is_some_and(|(_, hash)| !hash.is_empty() && !hash.contains(':'))
}

/// The ACL that a client's becomes: without doublets, `auth` replaced by who the client has shown to be.
pub fn fix_up(wanted: RawAcl<'_>, ids: Ids<'_>) -> Result<Acl, Code> {
    if wanted.bytes() == OPEN_BYTES.as_slice() {
        return Ok(OPEN.clone());
    }
    let mut given: Vec<Entry> = Vec::new();
    for entry in wanted.entries() {
        if !given.contains(&entry) {
            given.push(entry);
        }
    }
    let mut fixed = Vec::with_capacity(given.len());
    for entry in given {
        match entry.id.scheme.as_str() {
            "world" if entry.id.id == "anyone" => fixed.push(entry),
            "digest" if is_digest(&entry.id.id) => fixed.push(entry),
            "ip" if network(&entry.id.id).is_some() => fixed.push(entry),
            "auth" => {
                let before = fixed.len();
                let digests = ids.iter().filter(|(scheme, _)| *scheme == "digest");
                fixed.extend(
                    digests.map(|(scheme, id)| Entry {
                        perms: entry.perms,
                        id: Id { scheme: scheme.into(), id: id.into() },
                    }),
                );
                if fixed.len() == before {
                    return Err(Code::InvalidAcl);
                }
            }
            _ => return Err(Code::InvalidAcl),
        }
    }
    if fixed.is_empty() { Err(Code::InvalidAcl) } else { Ok(fixed.into()) }
}

/// As it is shown to somebody who may not change it: without the digests of passwords.
pub fn redacted(acl: &[Entry]) -> Vec<Entry> {
    let hide = |entry: &Entry| match (entry.id.scheme.as_str(), entry.id.id.split_once(':')) {
        ("digest", Some((user, _))) => {
            Entry { perms: entry.perms, id: Id { scheme: "digest".into(), id: format!("{user}:x") } }
        }
        _ => entry.clone(),
    };
    acl.iter().map(hide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(scheme: &str, id: &str) -> Id {
        Id { scheme: scheme.into(), id: id.into() }
    }

    fn fixed(wanted: &[Entry], ids: &[Id]) -> Result<Acl, Code> {
        let mut bytes = Vec::new();
        write_acl(wanted, &mut bytes);
        let ids = encode(ids);
        fix_up(RawAcl::read(&mut Reader::new(&bytes)).unwrap(), Ids::of(&ids))
    }

    fn may(acl: &[Entry], wanted: i32, ids: &[Id]) -> bool {
        allows(acl, wanted, Ids::of(&encode(ids)))
    }

    #[test]
    fn a_password_is_kept_as_its_digest() {
        // As ZooKeeper's administrator's guide has it for `super:superpw`.
        assert_eq!(digest_of(b"super:superpw"), id("digest", "super:g9oN2HttPfn8MMWJZ2r45Np/LIA="));
    }

    #[test]
    fn who_may_do_what() {
        let (ann, bob) = (digest_of(b"ann:1"), digest_of(b"bob:2"));
        let acl =
            [Entry { perms: perms::READ, id: id("world", "anyone") }, Entry { perms: perms::ALL, id: ann.clone() }];
        assert!(may(&acl, perms::READ, &[]) && !may(&acl, perms::WRITE, &[]));
        assert!(may(&acl, perms::WRITE, &[bob.clone(), ann]) && !may(&acl, perms::WRITE, &[bob]));
        assert_eq!(redacted(&acl)[1].id, id("digest", "ann:x"));
        let net = [Entry { perms: perms::READ, id: id("ip", "10.1.2.0/23") }];
        assert!(may(&net, perms::READ, &[id("ip", "10.1.3.7")]) && !may(&net, perms::READ, &[id("ip", "10.1.4.1")]));
        assert!(!may(&net, perms::READ, &[id("digest", "10.1.3.7")]));
    }

    #[test]
    fn acls_that_make_no_sense_are_refused() {
        let entry = |scheme, name| Entry { perms: 31, id: id(scheme, name) };
        for wanted in [
            vec![],
            vec![entry("world", "somebody")],
            vec![entry("digest", "no-colon")],
            vec![entry("digest", "b:")],
            vec![entry("digest", "a:b:c")],
            vec![entry("ip", "10.0.0.0/33")],
            vec![entry("auth", "")],
            vec![entry("carrier-pigeon", "x")],
        ] {
            assert_eq!(fixed(&wanted, &[id("ip", "10.0.0.1")]), Err(Code::InvalidAcl), "{wanted:?}");
        }
        let ann = digest_of(b"ann:1");
        let shown = fixed(&[entry("auth", ""), entry("auth", "")], std::slice::from_ref(&ann)).unwrap();
        assert_eq!(*shown, [Entry { perms: 31, id: ann }]);
        assert!(Arc::ptr_eq(&fixed(&OPEN.clone(), &[]).unwrap(), &OPEN));
    }
}
