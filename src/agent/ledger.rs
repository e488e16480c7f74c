//! The processes that an agent has started on its host. They do not end with it: each has a session of its own, says what it has to say into a file, and
//! how it came to its end into another. What is needed to find them again lies in the agent's directory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::duties::{Here, Process as State, Started};
use super::plug;
use crate::arbiter::names::{escape, unescape};
use crate::cluster::process::Process;
use crate::host::remains::{SideEnd, scratch_log, write_whole};

/// Why a process cannot be started or kept account of.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The directory is no use.
    #[error("cannot use the directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent has it.
    #[error("another agent has the directory {}: one agent runs on a host", .0.display())]
    Taken(PathBuf),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("cannot start {}", path.display())]
    Start {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is known of a process, and kept in a file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    vm: String,
    number: u64,
    boot: Option<u64>,
    /// Where it looks for its primary; empty for one that boots the guest.
    primary: String,
    process: Process,
    /// The TAP device that was made for it.
    tap: Option<String>,
    /// How it came to its end, once that is known.
    end: Option<SideEnd>,
}

/// What is to be started.
pub struct Order {
    /// The VM.
    pub vm: String,
    /// For the placement of this number.
    pub number: u64,
    /// What the placement says about booting.
    pub boot: Option<u64>,
    /// Where it looks for its primary; empty for one that boots the guest.
    pub primary: String,
    /// The TAP device that was made for it.
    pub tap: Option<String>,
    /// The program's arguments.
    pub arguments: Vec<String>,
    /// The arbiter, with its password: handed on where nobody sees it.
    pub arbiter: String,
}

/// The account of them.
pub struct Ledger {
    directory: PathBuf,
    entries: BTreeMap<String, Entry>,
    ended: mpsc::UnboundedSender<String>,
    /// For as long as this lives, no other agent has the directory.
    _lock: File,
}

/// The processes that run now and were started by an agent with this directory, whatever its account says of them: they have it in their environment. (Of other
/// users' processes, that cannot be seen.)
pub fn processes_of(directory: &Path) -> io::Result<Vec<u32>> {
    let Ok(directory) = directory.canonicalize() else { return Ok(Vec::new()) };
    let wanted = [b"TMPDIR=", directory.as_os_str().as_encoded_bytes()].concat();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile, or is another user's. (That of a process that only waits to be waited for is empty.)
        let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted) {
            found.push(pid);
        }
    }
    Ok(found)
}

impl Ledger {
    /// Opens the account in a directory, which is made if it is not there. `ended` hears of the VMs whose processes, started here, end.
    pub fn open(directory: &Path, ended: mpsc::UnboundedSender<String>) -> Result<Self, LedgerError> {
        let trouble = |source| LedgerError::Directory { path: directory.into(), source };
        std::fs::create_dir_all(directory).map_err(trouble)?;
        // Programs that are started from here find it from wherever they are.
        let directory = directory.canonicalize().map_err(trouble)?;
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(directory.join("lock"))
            .map_err(trouble)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(LedgerError::Taken(directory)),
            Err(std::fs::TryLockError::Error(source)) => return Err(trouble(source)),
        }
        let mut ledger = Ledger { directory: directory.clone(), entries: BTreeMap::new(), ended, _lock: lock };
        for file in std::fs::read_dir(&directory).map_err(trouble)? {
            let path = file.map_err(trouble)?.path();
            let Some(vm) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".side")) else { continue };
            // What cannot be read tells of no process that could be found again; its side, if it lives, is in the registry.
            let entry = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
            if let Some(entry) = entry.filter(|entry| entry.vm == unescape(vm)) {
                ledger.entries.insert(entry.vm.clone(), entry);
            }
        }
        Ok(ledger)
    }

    fn file(&self, vm: &str, what: &str) -> PathBuf {
        self.directory.join(format!("{}.{what}", escape(vm)))
    }

    /// Where a process says how it came to its end.
    pub fn outcome(&self, vm: &str) -> PathBuf {
        self.file(vm, "outcome")
    }

    /// Where the processes of a VM say what they have to say.
    pub fn log(&self, vm: &str) -> PathBuf {
        self.file(vm, "log")
    }

    fn keep(&self, entry: &Entry) -> Result<(), LedgerError> {
        let path = self.file(&entry.vm, "side");
        let bytes = serde_json::to_vec(entry).expect("strings and numbers can be written");
        write_whole(&path, &bytes).map_err(|source| LedgerError::Write { path, source })
    }

    /// Looks which of them run. The VMs whose processes have ended since the last look.
    pub async fn look(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        let gone = |entry: &Entry| entry.end.is_none() && entry.process.is_gone();
        let told: BTreeMap<String, Option<SideEnd>> = self
            .entries
            .values()
            .filter(|entry| gone(entry))
            .map(|entry| (entry.vm.clone(), SideEnd::told_in(&self.outcome(&entry.vm))))
            .collect();
        for (vm, told) in told {
            let Some(entry) = self.entries.get_mut(&vm) else { continue };
            if told.is_none() {
                // It could not remove it itself.
                let _ = std::fs::remove_file(scratch_log(&self.directory, &vm, entry.process.pid));
            }
            entry.end = Some(told.unwrap_or_else(|| SideEnd { ended: false, text: "the process was killed".into() }));
            if let Some(tap) = entry.tap.take() {
                plug::unplug(&tap).await;
            }
            ended.push(vm);
        }
        for vm in &ended {
            if let Err(error) = self.keep(&self.entries[vm]) {
                tracing::warn!(error = &error as &dyn std::error::Error, "the agent's account");
            }
        }
        ended
    }

    /// What is known of them.
    pub fn here(&self) -> Here {
        let started = |entry: &Entry| {
            let state = match &entry.end {
                None => State::Runs,
                Some(end) => State::Ended { guest: end.ended, text: end.text.clone() },
            };
            let Entry { number, boot, primary, .. } = entry.clone();
            Started { number, boot, primary, pid: entry.process.pid, state }
        };
        self.entries.iter().map(|(vm, entry)| (vm.clone(), started(entry))).collect()
    }

    /// The VMs whose processes run.
    pub fn running(&self) -> Vec<String> {
        self.entries.values().filter(|entry| entry.end.is_none()).map(|entry| entry.vm.clone()).collect()
    }

    /// Starts a process.
    pub fn start(&mut self, order: Order) -> Result<u32, LedgerError> {
        let Order { vm, number, boot, primary, tap, arguments, arbiter } = order;
        let (outcome, log) = (self.outcome(&vm), self.log(&vm));
        // Of the one before.
        let _ = std::fs::remove_file(&outcome);
        let open = OpenOptions::new().create(true).append(true).open(&log);
        let said = open.map_err(|source| LedgerError::Write { path: log, source })?;
        let again = said.try_clone().map_err(|source| LedgerError::Write { path: outcome, source })?;
        let program = std::env::current_exe().unwrap_or_else(|_| "lockstep".into());
        let mut command = Command::new(&program);
        command.args(arguments).env("LOCKSTEP_ARBITER", arbiter).env("TMPDIR", &self.directory).current_dir("/");
        command.stdin(Stdio::null()).stdout(said).stderr(again);
        // SAFETY: between fork and exec, one system call that touches no memory of the parent's.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                Ok(())
            })
        };
        let mut child = command.spawn().map_err(|source| LedgerError::Start { path: program, source })?;
        let pid = child.id().unwrap_or_default();
        let entry = Entry { vm: vm.clone(), number, boot, primary, process: Process::of(pid), tap, end: None };
        // A process of which this account has no record is found again in the registry.
        let kept = self.keep(&entry);
        self.entries.insert(vm.clone(), entry);
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let _ = child.wait().await;
            // The agent may have ended meanwhile.
            let _ = ended.send(vm);
        });
        kept.map(|()| pid)
    }

    /// Notes that a process could not be started.
    pub fn failed(&mut self, order: (String, u64, Option<u64>), text: String) {
        let (vm, number, boot) = order;
        let end = Some(SideEnd { ended: false, text });
        let entry = Entry { vm: vm.clone(), number, boot, end, ..Entry::default() };
        self.entries.insert(vm, entry);
    }
}
