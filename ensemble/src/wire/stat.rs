//! The records `Stat`, `Id` and `ACL`.

use bytes::BufMut;

use super::jute::{JuteError, Reader, Write};
use crate::tree::acl::{Entry, Id};

/// What the service says of a node beside its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// zxid of its creation.
    pub czxid: i64,
    /// zxid of the last change of its data.
    pub mzxid: i64,
    /// Milliseconds since 1970 of its creation.
    pub ctime: i64,
    /// Of the last change of its data.
    pub mtime: i64,
    /// Changes of its data.
    pub version: i32,
    /// Changes of its children: created and deleted ones.
    pub cversion: i32,
    /// Changes of its ACL.
    pub aversion: i32,
    /// The session that an ephemeral node lives with; 0 of a persistent one, −2⁶³ of a container.
    pub ephemeral_owner: i64,
    /// Bytes of data.
    pub data_length: i32,
    /// Children.
    pub num_children: i32,
    /// zxid of the last change of its children.
    pub pzxid: i64,
}

impl Stat {
    /// Bytes of the record.
    pub const BYTES: usize = 68;

    /// Appends the record.
    pub fn write(&self, out: &mut impl Write) {
        let mut record = [0; Self::BYTES];
        let mut rest = &mut record[..];
        rest.put_i64(self.czxid);
        rest.put_i64(self.mzxid);
        rest.put_i64(self.ctime);
        rest.put_i64(self.mtime);
        rest.put_i32(self.version);
        rest.put_i32(self.cversion);
        rest.put_i32(self.aversion);
        rest.put_i64(self.ephemeral_owner);
        rest.put_i32(self.data_length);
        rest.put_i32(self.num_children);
        rest.put_i64(self.pzxid);
        out.put_slice(&record);
    }
}

/// An ACL where a request carries it: looked at as a whole where it is what most requests say, and entry by entry elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct RawAcl<'a>(&'a [u8]);

impl<'a> RawAcl<'a> {
    /// Takes it, and makes sure that it can be read.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, JuteError> {
        let from = reader.rest();
        reader.vector(12, read_entry)?;
        Ok(RawAcl(&from[..from.len() - reader.rest().len()]))
    }

    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Its entries.
    pub fn entries(self) -> impl Iterator<Item = Entry> {
        let mut reader = Reader::new(self.0);
        let entries = reader.vector(12, |reader| {
            let (perms, scheme, id) = read_entry(reader)?;
            Ok(Entry { perms, id: Id { scheme: scheme.into(), id: id.into() } })
        });
        entries.unwrap_or_default().into_iter()
    }
}

/// A null scheme is one that nobody knows; so is whoever has a null name in another.
fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<(i32, &'a str, &'a str), JuteError> {
    let (perms, scheme, id) = (reader.int()?, reader.string()?.unwrap_or_default(), reader.string()?);
    if id.is_none() && matches!(scheme, "world" | "digest") {
        return Err(JuteError::Null);
    }
    Ok((perms, scheme, id.unwrap_or_default()))
}

/// Appends an ACL.
pub fn write_acl(acl: &[Entry], out: &mut impl Write) {
    out.int(acl.len() as i32);
    for entry in acl {
        out.int(entry.perms);
        write_id(&entry.id, out);
    }
}

/// Appends an `Id`.
pub fn write_id(id: &Id, out: &mut impl Write) {
    out.string(&id.scheme);
    out.string(&id.id);
}
