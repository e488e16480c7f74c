//! The replicated state behind the log, as the consensus wants it, and its snapshots on disk.
//!
//! ```text
//! snapshot = "lockstep ensemble snapshot 1\n" · length u32 · meta (bincode) · length u64 · state · XXH3 (128 bits) of all before
//! ```
//!
//! The state lives in memory; it is made anew of the last snapshot and the log behind it when a member starts.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes};
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageIOError,
};
use xxhash_rust::xxh3::xxh3_128;

use super::{Entry, LogId, Membership, StorageError, Types};
use crate::log::entry::{self, CodecError};
use crate::member::{Address, MemberId};
use crate::replica::Replica;
use crate::tree::Tree;
use crate::tree::snapshot::SnapshotError;
use crate::wire::jute::{JuteError, Reader};

const MAGIC: &[u8] = b"lockstep ensemble snapshot 1\n";
const CHECK_BYTES: usize = 16;

/// The state of a snapshot, without what it is of.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFile(pub Bytes);

/// What a snapshot is of.
pub type Meta = SnapshotMeta<MemberId, Address>;

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The file.
    #[error("cannot {what} the snapshot {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The snapshot.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is no snapshot, or of another version.
    #[error("this is no snapshot of an ensemble's state")]
    Magic,
    /// Its checksum is wrong: it was damaged.
    #[error("the snapshot's checksum is wrong")]
    Check,
    /// What stands before the state cannot be read.
    #[error("the snapshot's head cannot be read")]
    Head(#[from] CodecError),
    /// The state cannot be read.
    #[error("the snapshot's state cannot be read")]
    State(#[from] SnapshotError),
}

impl From<JuteError> for SnapshotFileError {
    fn from(error: JuteError) -> Self {
        SnapshotFileError::Head(error.into())
    }
}

/// A snapshot as it stands in its file.
pub fn seal(meta: &Meta, state: &[u8]) -> Vec<u8> {
    let meta = entry::cold(meta);
    let mut bytes = Vec::with_capacity(MAGIC.len() + meta.len() + state.len() + 12 + CHECK_BYTES);
    bytes.put_slice(MAGIC);
    bytes.put_u32(meta.len() as u32);
    bytes.put_slice(&meta);
    bytes.put_u64(state.len() as u64);
    bytes.put_slice(state);
    bytes.put_u128(xxh3_128(&bytes));
    bytes
}

/// What a snapshot is of, and its state.
pub fn unseal(bytes: &Bytes) -> Result<(Meta, Bytes), SnapshotFileError> {
    if !bytes.starts_with(MAGIC) {
        return Err(SnapshotFileError::Magic);
    }
    let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(SnapshotFileError::Check)?;
    if xxh3_128(body).to_be_bytes() != *check {
        return Err(SnapshotFileError::Check);
    }
    let mut reader = Reader::new(&body[MAGIC.len().min(body.len())..]);
    let meta = entry::read_cold(reader.buffer()?.ok_or(JuteError::Null)?)?;
    let length = reader.long()?;
    if usize::try_from(length) != Ok(reader.rest().len()) {
        return Err(CodecError::Trailing.into());
    }
    Ok((meta, bytes.slice_ref(reader.rest())))
}

/// Where this member keeps its snapshot.
#[derive(Clone, Debug)]
pub enum SnapshotStore {
    /// In a directory, as `snapshot`.
    Directory(PathBuf),
    /// In memory, for simulations: what is put there is there as a whole, like a file that was renamed.
    Memory(Arc<Mutex<Option<Bytes>>>),
}

impl SnapshotStore {
    fn path(directory: &Path) -> PathBuf {
        directory.join("snapshot")
    }

    /// The snapshot, if there is one.
    pub fn load(&self) -> Result<Option<(Meta, Bytes)>, SnapshotFileError> {
        let bytes = match self {
            SnapshotStore::Memory(bytes) => bytes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            SnapshotStore::Directory(directory) => {
                let path = Self::path(directory);
                match fs::read(&path) {
                    Ok(bytes) => Some(bytes.into()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(source) => return Err(SnapshotFileError::File { what: "read", path, source }),
                }
            }
        };
        bytes.map(|bytes| unseal(&bytes)).transpose()
    }

    fn save(&self, bytes: Vec<u8>) -> Result<(), SnapshotFileError> {
        match self {
            SnapshotStore::Memory(kept) => {
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.into());
                Ok(())
            }
            SnapshotStore::Directory(directory) => {
                let (path, new) = (Self::path(directory), directory.join("snapshot.new"));
                let written = File::create(&new).and_then(|mut file| {
                    file.write_all(&bytes)?;
                    file.sync_all()?;
                    fs::rename(&new, &path)?;
                    File::open(directory)?.sync_all()
                });
                written.map_err(|source| SnapshotFileError::File { what: "write", path: new, source })
            }
        }
    }
}

/// The state as the last snapshot has it.
pub fn restore(store: &SnapshotStore) -> Result<(Tree, Option<LogId>, Membership), SnapshotFileError> {
    match store.load()? {
        Some((meta, state)) => Ok((Tree::decode(&state)?, meta.last_log_id, meta.last_membership)),
        None => Ok((Tree::default(), None, Membership::default())),
    }
}

/// The state machine.
#[derive(Clone)]
pub struct Machine {
    replica: Arc<Replica>,
    store: SnapshotStore,
}

impl Machine {
    /// Applies to `replica`, and keeps snapshots in `store`.
    pub fn new(replica: Arc<Replica>, store: SnapshotStore) -> Self {
        Machine { replica, store }
    }
}

fn failed(verb: ErrorVerb, error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::new(ErrorSubject::Snapshot(None), verb, AnyError::new(error)).into()
}

/// A state to be written: a copy that later entries do not touch.
pub struct Builder {
    tree: Tree,
    meta: Meta,
    store: SnapshotStore,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (tree, meta, store) = (self.tree.clone(), self.meta.clone(), self.store.clone());
        let build = move || {
            let state = tree.encode();
            store.save(seal(&meta, &state)).map(|()| Snapshot { meta, snapshot: Box::new(SnapshotFile(state.into())) })
        };
        let built = match &self.store {
            SnapshotStore::Memory(_) => build(),
            // It takes as long as the disk does.
            SnapshotStore::Directory(_) => match tokio::task::spawn_blocking(build).await {
                Ok(built) => built,
                Err(error) => return Err(failed(ErrorVerb::Write, &error)),
            },
        };
        built.map_err(|error| failed(ErrorVerb::Write, &error))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let state = self.replica.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Ok(vec![(); self.replica.apply(entries)])
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.replica.state();
        let index = state.applied.map_or(0, |log_id| log_id.index);
        let meta = Meta {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
            snapshot_id: format!("{}-{index}", self.replica.me.member),
        };
        Builder { tree: state.tree.clone(), meta, store: self.store.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: Box<SnapshotFile>) -> Result<(), StorageError> {
        let tree = Tree::decode(&snapshot.0).map_err(|error| failed(ErrorVerb::Read, &error))?;
        let (store, bytes) = (self.store.clone(), seal(meta, &snapshot.0));
        let saved = match &self.store {
            SnapshotStore::Memory(_) => store.save(bytes),
            SnapshotStore::Directory(_) => match tokio::task::spawn_blocking(move || store.save(bytes)).await {
                Ok(saved) => saved,
                Err(error) => return Err(failed(ErrorVerb::Write, &error)),
            },
        };
        saved.map_err(|error| failed(ErrorVerb::Write, &error))?;
        self.replica.replace(tree, meta.last_log_id, meta.last_membership.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let loaded = self.store.load().map_err(|error| failed(ErrorVerb::Read, &error))?;
        Ok(loaded.map(|(meta, state)| Snapshot { meta, snapshot: Box::new(SnapshotFile(state)) }))
    }
}
