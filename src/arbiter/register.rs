//! Registers as files in a directory on storage that both hosts reach.
//!
//! Each generation of a VM is a small text file of its own, `VM.<generation>`, that a person can read; its last line is a checksum over the lines before it.
//! The highest one is what the register holds. A claim on generation *g* + 1 is made by whoever makes the file of that name, which only one can, and which
//! nobody has to hold a lock for: see [`ladder`](crate::ladder) for how, and for why old files may go. A file that cannot be read is an error, never an empty
//! register: taking it for one would let a second host live.
//!
//! | file | what it is |
//! | --- | --- |
//! | `VM.<generation>` | a generation, and who won it; the newest four are kept |
//! | `VM.register` | says where the generations are. Up to format 1 it held the newest one, and still does where a VM comes from there |
//! | `.VM.<generation>.<number>.new` | a claim that was broken off; the next ones clear up |
//!
//! `VM.register` tells programs of format 1 that there is something here which they do not understand, and whoever finds it without
//! any generation that these are missing.
//!
//! The directory must exist. Creating it could put it *under* a mount point whose storage is missing, and then
//! each host would have an arbiter of its own. On NFS, mount it with `lookupcache=none`, so that a host sees
//! at once what the other has made.

use super::standing::{Standing, check_claim, check_vm};
use super::{Arbiter, ArbiterError, Claim, Verdict};
use crate::ladder::{Climb, Directory, Folder, Ladder, LadderError, Rung};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The first line of a generation, and of a register of format 1.
const MAGIC: &str = "lockstep register 1";

/// The first line of a register that says where the generations are.
const MARKER: &str = "lockstep register 2";

/// The most bytes of a register that are read.
const MAX_BYTES: u64 = 4096;

/// How many generations are kept, if nobody says otherwise. One would do.
const KEPT: u64 = 4;

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
    /// It is whole, and its name says another generation.
    #[error("it is of generation {0}, and its name says another one")]
    Renamed(u64),
    /// There have been generations, and their files are gone.
    #[error("the files of its generations are gone")]
    Gone,
}

/// Registers in a directory.
#[derive(Clone, Debug)]
pub struct RegisterFile<D = Folder> {
    directory: D,
    kept: u64,
}

impl RegisterFile {
    /// The registers in `directory`, which exists.
    pub fn open(directory: &Path) -> Result<Self, ArbiterError> {
        let at = |source| ArbiterError::Storage { what: "use", path: directory.into(), source };
        if !fs::metadata(directory).map_err(at)?.is_dir() {
            return Err(at(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self::within(Folder::new(directory), KEPT))
    }
}

/// What `VM.register` says.
enum Old {
    /// Nothing: there is none.
    Nothing,
    /// That the generations have files of their own.
    Marker,
    /// The newest generation, before they had.
    Holds(Claim),
}

impl<D: Directory + Clone> RegisterFile<D> {
    /// The registers in `directory`, each with its newest `kept` generations (at least 1).
    pub fn within(directory: D, kept: u64) -> Self {
        RegisterFile { directory, kept: kept.max(1) }
    }

    /// The file that the register of `vm` is in now.
    pub fn path(&self, vm: &str) -> Result<PathBuf, ArbiterError> {
        let ladder = self.ladder(vm)?;
        let top = ladder.top()?.map(|rung| ladder.path(rung.number));
        Ok(top.unwrap_or_else(|| self.directory.path().join(old_name(vm))))
    }

    fn ladder(&self, vm: &str) -> Result<Ladder<D>, ArbiterError> {
        check_vm(vm)?;
        // One byte more shows that a file is too long.
        Ok(Ladder::new(self.directory.clone(), vm, MAX_BYTES + 1))
    }

    fn storage<'a>(&'a self, what: &'static str, name: &'a str) -> impl FnOnce(io::Error) -> ArbiterError + 'a {
        move |source| ArbiterError::Storage { what, path: self.directory.path().join(name), source }
    }

    fn old(&self, vm: &str) -> Result<Old, ArbiterError> {
        let name = old_name(vm);
        let bytes = self.directory.read(&name, MAX_BYTES + 1).map_err(self.storage("read", &name))?;
        let Some(bytes) = bytes else { return Ok(Old::Nothing) };
        let corrupt = |flaw| ArbiterError::Corrupt { path: self.directory.path().join(&name), flaw };
        let body = checked(&bytes).map_err(corrupt)?;
        match body.lines().next() {
            Some(MARKER) => Ok(Old::Marker),
            _ => Ok(Old::Holds(parse(vm, body).map_err(corrupt)?)),
        }
    }

    /// What the register holds, and what `VM.register` says.
    fn look(&self, ladder: &Ladder<D>, vm: &str) -> Result<(Option<Claim>, Old), ArbiterError> {
        // In this order: when the marker takes the place of what was there, there is a generation above it.
        let old = self.old(vm)?;
        let top = ladder.top()?;
        let Some(Rung { number, bytes }) = top else {
            return match old {
                Old::Nothing => Ok((None, old)),
                Old::Holds(ref claim) => Ok((Some(claim.clone()), old)),
                Old::Marker => {
                    let path = self.directory.path().join(old_name(vm));
                    Err(ArbiterError::Corrupt { path, flaw: Flaw::Gone })
                }
            };
        };
        let claim = checked(&bytes).and_then(|body| parse(vm, body)).and_then(|claim| match claim.generation {
            generation if generation == number => Ok(claim),
            generation => Err(Flaw::Renamed(generation)),
        });
        let claim = claim.map_err(|flaw| ArbiterError::Corrupt { path: ladder.path(number), flaw })?;
        let newest = match &old {
            // A program of format 1 is at work here as well.
            Old::Holds(old) if old.generation > claim.generation => old.clone(),
            Old::Nothing | Old::Marker | Old::Holds(_) => claim,
        };
        Ok((Some(newest), old))
    }

    /// After a generation was won: whoever looks for a register of format 1 is told that there is none.
    fn mark(&self, vm: &str) -> Result<(), ArbiterError> {
        let name = old_name(vm);
        let text = sealed(format!("{MARKER}\nvm {vm}\nin {vm}.<generation>, the highest counts\n"));
        // Named as a claim on a generation that nobody claims: if it is left, it is cleared up like one.
        let new = self.directory.make(&format!(".{vm}.0."), ".new", text.as_bytes());
        let new = new.map_err(self.storage("write a file in", ""))?;
        match self.directory.rename(&new, &name) {
            // Somebody who has won since has cleared up, and before that has done the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(self.storage("replace", &name))?,
        }
        self.directory.sync().map_err(self.storage("sync", ""))
    }
}

impl<D: Directory + Clone> Arbiter for RegisterFile<D> {
    fn read(&self, vm: &str) -> Result<Option<Claim>, ArbiterError> {
        let ladder = self.ladder(vm)?;
        self.look(&ladder, vm).map(|(held, _)| held)
    }

    fn compare_and_set(&self, vm: &str, expected: Option<u64>, claim: &Claim) -> Result<Verdict, ArbiterError> {
        check_claim(expected, claim)?;
        let ladder = self.ladder(vm)?;
        let (held, old) = self.look(&ladder, vm)?;
        match Standing::of(held.as_ref(), expected, claim) {
            Standing::Beaten => return Ok(Verdict::Lost(held)),
            // Set by an earlier call, which may have died before it was durable: it is made once more.
            Standing::Held | Standing::Next => {}
        }
        let rung = Rung { number: claim.generation, bytes: to_text(vm, claim).into_bytes() };
        if ladder.climb(&rung)? == Climb::Passed {
            return Ok(Verdict::Lost(self.look(&ladder, vm)?.0));
        }
        if !matches!(old, Old::Marker) {
            self.mark(vm)?;
        }
        if let Err(error) = ladder.clear_below(claim.generation.saturating_sub(self.kept - 1)) {
            tracing::debug!(error = &error as &dyn std::error::Error, "old generations stay");
        }
        Ok(Verdict::Won)
    }

    fn location(&self) -> String {
        self.directory.path().display().to_string()
    }
}

impl From<LadderError> for ArbiterError {
    fn from(LadderError { what, path, source }: LadderError) -> Self {
        ArbiterError::Storage { what, path, source }
    }
}

fn old_name(vm: &str) -> String {
    format!("{vm}.register")
}

/// The text of a generation, which is the same wherever it is kept.
pub(super) fn to_text(vm: &str, claim: &Claim) -> String {
    sealed(render(vm, claim))
}

/// The claim in such a text.
pub(crate) fn from_text(vm: &str, bytes: &[u8]) -> Result<Claim, Flaw> {
    parse(vm, checked(bytes)?)
}

/// The text with its checksum.
fn sealed(mut text: String) -> String {
    let check = crc32fast::hash(text.as_bytes());
    writeln!(text, "check {check:08x}").expect("a String takes everything");
    text
}

/// The text without its checksum, if that is right.
fn checked(bytes: &[u8]) -> Result<&str, Flaw> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Flaw::Long);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Text)?;
    let (body, check) = text.split_at(text.rfind("check ").ok_or(Flaw::Checksum)?);
    let right = check == format!("check {:08x}\n", crc32fast::hash(body.as_bytes()));
    if right { Ok(body) } else { Err(Flaw::Checksum) }
}

fn render(vm: &str, claim: &Claim) -> String {
    let Claim { generation, host, host_name, shared_with } = claim;
    let mut text = format!("{MAGIC}\nvm {vm}\ngeneration {generation}\nhost {host:016x}\nhost-name {host_name}\n");
    if let Some(other) = shared_with {
        writeln!(text, "shared-with {other:016x}").expect("a String takes everything");
    }
    text
}

fn parse(vm: &str, body: &str) -> Result<Claim, Flaw> {
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
