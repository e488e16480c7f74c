//! What a process costs its host: CPU time of its threads, by `/proc/PID/task/*`. The totals are the scheduler's nanoseconds
//! (`schedstat`), the same time of which `stat` shows user and system in clock ticks; the share in guest mode is the kernel's count
//! of the clock ticks that found the thread there (`guest_time`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use nix::unistd::Pid;

/// CPU time so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    threads: BTreeMap<String, Thread>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Thread {
    total_ns: u64,
    ticks: u64,
    guest_ticks: u64,
}

impl Cpu {
    /// Of all threads of a process; threads of one name are one.
    pub fn of(process: Pid) -> anyhow::Result<Self> {
        let mut threads = BTreeMap::<String, Thread>::new();
        for task in std::fs::read_dir(format!("/proc/{process}/task")).context("cannot see the process's threads")? {
            let task = task?.path();
            // A thread that has ended meanwhile.
            let Some((name, thread)) = thread(&task) else { continue };
            let sum = threads.entry(name).or_default();
            sum.total_ns += thread.total_ns;
            sum.ticks += thread.ticks;
            sum.guest_ticks += thread.guest_ticks;
        }
        Ok(Cpu { threads })
    }

    /// The time since `before`.
    pub fn since(&self, before: &Cpu) -> Cpu {
        let rest = |(name, now): (&String, &Thread)| {
            let then = before.threads.get(name).copied().unwrap_or_default();
            let thread = Thread {
                total_ns: now.total_ns.saturating_sub(then.total_ns),
                ticks: now.ticks.saturating_sub(then.ticks),
                guest_ticks: now.guest_ticks.saturating_sub(then.guest_ticks),
            };
            (name.clone(), thread)
        };
        Cpu { threads: self.threads.iter().map(rest).collect() }
    }

    /// Of all threads, seconds.
    pub fn total_s(&self) -> f64 {
        self.threads.values().map(|thread| thread.total_ns as f64 / 1e9).sum()
    }

    /// Of the threads of this name, seconds.
    pub fn thread_s(&self, name: &str) -> f64 {
        self.threads.get(name).map_or(0.0, |thread| thread.total_ns as f64 / 1e9)
    }

    /// The share of its CPU time that a thread spent outside of guest mode.
    pub fn outside_guest(&self, name: &str) -> f64 {
        let thread = self.threads.get(name).copied().unwrap_or_default();
        1.0 - thread.guest_ticks as f64 / thread.ticks.max(1) as f64
    }
}

fn thread(task: &Path) -> Option<(String, Thread)> {
    let stat = std::fs::read_to_string(task.join("stat")).ok()?;
    let schedstat = std::fs::read_to_string(task.join("schedstat")).ok()?;
    parse(&stat, &schedstat)
}

/// Fields by `proc_pid_stat(5)`: the name is the second, in brackets; utime, stime and guest_time are the 14th, 15th and 43rd.
fn parse(stat: &str, schedstat: &str) -> Option<(String, Thread)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let total_ns = schedstat.split(' ').next()?.parse().ok()?;
    Some((name, Thread { total_ns, ticks: field(14)? + field(15)?, guest_ticks: field(43)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_times() {
        let stat = "12 (a (b) c) S 4 5 6 7 8 9 10 11 12 13 140 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45";
        let (name, thread) = parse(stat, "1234 5 6\n").unwrap();
        assert_eq!(name, "a (b) c");
        assert_eq!(thread, Thread { total_ns: 1234, ticks: 155, guest_ticks: 43 });
        assert_eq!(parse("12 (a) S", "1 2 3"), None);
    }

    #[test]
    fn this_process_uses_some() {
        let before = Cpu::of(Pid::this()).unwrap();
        let work = || std::hint::black_box((0..1_000_000_u64).map(std::hint::black_box).sum::<u64>());
        // The kernel counts at its ticks: some of them have to pass.
        let seen = (0..10_000).any(|_| {
            work();
            Cpu::of(Pid::this()).unwrap().since(&before).total_s() > 0.0
        });
        assert!(seen);
    }
}
