//! Registers as files in a directory on storage that both hosts reach.
//!
//! `VM.register` is a small text file that a person can read; its last line is a checksum over the lines
//! before it. A writer holds `VM.lock` (`flock`), reads, compares, writes `VM.new`, syncs it, renames
//! it over the register, and syncs the directory: a crash at any point leaves the old value or the new one. A register
//! that cannot be read is an error, never an empty register: taking it for one would let a second host live.
//!
//! The directory must exist. Creating it could put it *under* a mount point whose storage is missing, and then
//! each host would have an arbiter of its own. On NFS, mount it with `lookupcache=none`, so that a host sees
//! the other's rename as soon as it holds the lock.

use super::standing::{Standing, check_claim, check_vm};
use super::{Arbiter, ArbiterError, Claim, Verdict};
use nix::fcntl::{Flock, FlockArg};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The first line of a register.
const MAGIC: &str = "lockstep register 1";

/// The most bytes of a register that are read.
const MAX_BYTES: u64 = 4096;

/// What is wrong with a damaged register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is longer than any register.
    #[error("it is longer than {MAX_BYTES} bytes")]
    Long,
    /// It is not text.
    #[error("it is not UTF-8 text")]
    Text,
    /// The checksum at its end is missing or is not that of the rest: it is torn or was changed by hand.
    #[error("its checksum is missing or wrong")]
    Checksum,
    /// It is whole, and is no register of this version.
    #[error("it is not a `{MAGIC}`")]
    Version,
    /// A line is not what it should be.
    #[error("its line `{0}` is missing or cannot be read")]
    Line(&'static str),
    /// It is the register of another VM.
    #[error("it belongs to another VM")]
    OtherVm,
}

/// Registers in a directory.
#[derive(Clone, Debug)]
pub struct RegisterFile {
    directory: PathBuf,
}

impl RegisterFile {
    /// The registers in `directory`, which exists.
    pub fn open(directory: &Path) -> Result<Self, ArbiterError> {
        let at = |source| storage("use", directory, source);
        if !fs::metadata(directory).map_err(at)?.is_dir() {
            return Err(at(io::ErrorKind::NotADirectory.into()));
        }
        Ok(RegisterFile { directory: directory.into() })
    }

    /// The file that holds the register of `vm`.
    pub fn path(&self, vm: &str) -> Result<PathBuf, ArbiterError> {
        self.file(vm, "register")
    }

    fn file(&self, vm: &str, ending: &str) -> Result<PathBuf, ArbiterError> {
        check_vm(vm)?;
        Ok(self.directory.join(format!("{vm}.{ending}")))
    }

    /// Replaces the register; the caller holds the lock.
    fn write(&self, vm: &str, claim: &Claim) -> Result<(), ArbiterError> {
        let (new, register) = (self.file(vm, "new")?, self.path(vm)?);
        let at = |source| storage("write", &new, source);
        let mut file = File::create(&new).map_err(at)?;
        file.write_all(render(vm, claim).as_bytes()).and_then(|()| file.sync_all()).map_err(at)?;
        fs::rename(&new, &register).map_err(|source| storage("replace", &register, source))
    }

    /// Makes renames durable.
    fn sync(&self) -> Result<(), ArbiterError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| storage("sync", &self.directory, source))
    }
}

impl Arbiter for RegisterFile {
    fn read(&self, vm: &str) -> Result<Option<Claim>, ArbiterError> {
        let path = self.path(vm)?;
        let at = |source| storage("read", &path, source);
        let file = match File::open(&path) {
            Ok(file) => file,
            // No register is good news only where the storage is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                RegisterFile::open(&self.directory)?;
                return Ok(None);
            }
            Err(error) => return Err(at(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(at)?;
        parse(vm, &bytes).map(Some).map_err(|flaw| ArbiterError::Corrupt { path, flaw })
    }

    fn compare_and_set(&self, vm: &str, expected: Option<u64>, claim: &Claim) -> Result<Verdict, ArbiterError> {
        check_claim(expected, claim)?;
        let path = self.file(vm, "lock")?;
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|source| storage("open", &path, source))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| storage("lock", &path, io::Error::from(errno)))?;

        let held = self.read(vm)?;
        match Standing::of(held.as_ref(), expected, claim) {
            Standing::Held => {
                // Set by an earlier call, which may have died before this.
                self.sync()?;
                return Ok(Verdict::Won);
            }
            Standing::Beaten => return Ok(Verdict::Lost(held)),
            Standing::Next => {}
        }
        self.write(vm, claim)?;
        self.sync()?;
        Ok(Verdict::Won)
    }

    fn location(&self) -> String {
        self.directory.display().to_string()
    }
}

fn storage(what: &'static str, path: &Path, source: io::Error) -> ArbiterError {
    ArbiterError::Storage { what, path: path.into(), source }
}

/// The text of a register, which is the same wherever it is kept.
pub(super) fn render(vm: &str, claim: &Claim) -> String {
    let Claim { generation, host, host_name, shared_with } = claim;
    let mut text = format!("{MAGIC}\nvm {vm}\ngeneration {generation}\nhost {host:016x}\nhost-name {host_name}\n");
    if let Some(other) = shared_with {
        writeln!(text, "shared-with {other:016x}").expect("a String takes everything");
    }
    let check = crc32fast::hash(text.as_bytes());
    writeln!(text, "check {check:08x}").expect("a String takes everything");
    text
}

/// The claim in the text of a register.
pub(super) fn parse(vm: &str, bytes: &[u8]) -> Result<Claim, Flaw> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Flaw::Long);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Text)?;
    let (body, check) = text.split_at(text.rfind("check ").ok_or(Flaw::Checksum)?);
    if check != format!("check {:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err(Flaw::Checksum);
    }
    let mut lines = body.lines();
    if lines.next() != Some(MAGIC) {
        return Err(Flaw::Version);
    }
    let mut line = |key: &'static str| {
        let rest = lines.next().and_then(|line| line.strip_prefix(key)?.strip_prefix(' '));
        rest.ok_or(Flaw::Line(key))
    };
    if line("vm")? != vm {
        return Err(Flaw::OtherVm);
    }
    let generation = line("generation")?.parse().map_err(|_| Flaw::Line("generation"))?;
    let host = u64::from_str_radix(line("host")?, 16).map_err(|_| Flaw::Line("host"))?;
    let host_name = line("host-name")?.to_string();
    let shared_with = lines.next().map(|line| {
        let number = line.strip_prefix("shared-with ").and_then(|number| u64::from_str_radix(number, 16).ok());
        number.ok_or(Flaw::Line("shared-with"))
    });
    Ok(Claim { generation, host, host_name, shared_with: shared_with.transpose()? })
}
