//! Which process a record is of. A process that is killed leaves its records behind until its session is over, some seconds; the one that
//! takes its place on the same host knows better, and need not wait.

use serde::{Deserialize, Serialize};

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its random number, 16 hexadecimal digits: of all processes that ever were, this one.
    pub number: String,
    /// Its number on its host.
    pub pid: u32,
    /// When it started, in ticks since the host's boot, as the kernel counts them.
    pub started: u64,
    /// The boot of the host, and the namespace of process numbers; empty where that cannot be known. Only where it is the same, the two numbers before
    /// mean anything.
    pub place: String,
}

impl Process {
    /// This process, which calls itself by `number`.
    pub fn this(number: u64) -> Self {
        let pid = std::process::id();
        Process { number: format!("{number:016x}"), pid, started: started(pid).unwrap_or(0), place: place() }
    }

    /// The process of this number on this host, whatever it calls itself.
    pub fn of(pid: u32) -> Self {
        Process { number: String::new(), pid, started: started(pid).unwrap_or(0), place: place() }
    }

    /// Whether it is certain that it does not run any more: it was one of this very host, and is not there.
    pub fn is_gone(&self) -> bool {
        !self.place.is_empty() && self.place == place() && started(self.pid) != Some(self.started)
    }
}

fn place() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    match (boot, namespace) {
        (Ok(boot), Ok(namespace)) => format!("{} {}", boot.trim(), namespace.display()),
        _ => String::new(),
    }
}

/// When a process started; `None` if it is not there, or only waits to be waited for.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command stands in parentheses, and may have some of its own in it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Fields 3 (state) and 22 (start time) of proc(5).
    let dead = matches!(*fields.first()?, "Z" | "X");
    if dead { None } else { fields.get(19)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_gone_when_it_is_dead_and_not_before() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process { pid: child.id(), started: started(child.id()).unwrap(), ..Process::this(1) };
        assert!(!process.is_gone());
        child.kill().unwrap();
        while started(child.id()).is_some() {
            std::thread::yield_now();
        }
        assert!(process.is_gone(), "a process that has ended, and that nobody has waited for");
        child.wait().unwrap();
        assert!(process.is_gone());
    }

    #[test]
    fn of_another_host_or_boot_nothing_is_certain() {
        let here = Process::this(7);
        assert_eq!(here.number, "0000000000000007");
        assert!(!here.is_gone());
        assert!(Process { started: here.started + 1, ..here.clone() }.is_gone(), "another process with its number");
        for place in ["", "another boot pid:[4026531836]"] {
            assert!(!Process { started: 0, place: place.into(), ..here.clone() }.is_gone());
        }
    }
}
