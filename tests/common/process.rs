//! One lockstep process: started, listened to, signalled, and ended with the test that started it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// A running `lockstep`.
pub struct Side {
    name: &'static str,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    listener: Option<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Side {
    /// Starts `lockstep` with `arguments`; through the command `through`, if it is not empty, which must become lockstep (exec)
    /// and finds it in the environment as `LOCKSTEP`.
    pub fn spawn(name: &'static str, through: &[String], arguments: &[String]) -> Side {
        let lockstep = env!("CARGO_BIN_EXE_lockstep");
        let mut command = match through {
            [script, first @ ..] => {
                let mut command = Command::new(script);
                command.args(first).env("LOCKSTEP", lockstep);
                command
            }
            [] => Command::new(lockstep),
        };
        command.args(arguments).env("LOCKSTEP_LOG", "lockstep=info");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let lines = said.clone();
        let listener = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Side { name, child, said, listener: Some(listener), ended: None }
    }

    /// Everything it has said so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it says a line in which `find` finds something.
    #[track_caller]
    pub fn hears<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        eventually(&format!("the {} says {what}", self.name), || self.said().iter().find_map(|line| find(line)))
    }

    /// The word after `label` in the line that says where it listens.
    #[track_caller]
    pub fn address(&self, label: &str) -> String {
        self.hears(label, |line| {
            let rest = line.strip_prefix("lockstep: ")?.split_once(&format!("{label} "))?.1;
            Some(rest.split([',', ' ']).next().unwrap_or(rest).to_owned())
        })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends a signal; nothing happens to a process that has been waited for.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            kill(self.pid(), signal).expect("a child that was not waited for can be signalled");
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Whether it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be asked");
        }
        self.ended
    }

    /// Waits until it has ended by itself and all it said is here.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        let what = format!("the {} ends", self.name);
        let status = eventually(&what, || self.status());
        self.listened();
        status
    }

    fn wait(&mut self) {
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
        self.listened();
    }

    fn listened(&mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- the {} said:", self.name);
            self.said().iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
