//! What a guest does while its hosts fail, and what its console must have shown in the end.

use std::time::{Duration, Instant};

use lockstep_kernels::work::{Kind, Work};

use super::checker::check_transcript;
use super::console::{Console, Seen};
use super::pair::Setup;
use super::{Random, count_from};

/// The kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The guest waits for its keyboard and gets nothing while hosts fail.
    Idle,
    /// Lines are typed all the time, and the guest prints on its own as well.
    Typing,
    /// The guest computes, and prints a line now and then.
    Computing,
    /// The guest prints as fast as it can.
    Printing,
}

/// All loads.
pub const LOADS: [Job; 4] = [Job::Idle, Job::Typing, Job::Computing, Job::Printing];

/// Rounds of the computing guest, and lines of the printing one.
const ROUNDS: u64 = 80;
const NUMBERS: u64 = 12_000;

/// A load on a guest, and the console through which it is seen.
pub struct Load {
    work: Job,
    /// The console that types.
    pub console: Console,
    typed: Vec<String>,
}

impl Job {
    /// The pair for this load.
    pub fn setup(self) -> Setup {
        match self {
            Job::Idle => Setup::of("transcript"),
            Job::Typing => Setup::of("transcript tick"),
            Job::Computing => Setup { arguments: vec![ROUNDS.to_string()], ..Setup::of("compute") },
            Job::Printing => Setup::of("shell"),
        }
    }
}

impl Load {
    /// Begins, and waits until the guest has answered.
    #[track_caller]
    pub fn begin(work: Job, console: Console, random: &mut Random) -> Load {
        let mut load = Load { work, console, typed: Vec::new() };
        match work {
            Job::Idle => {
                load.type_lines(3, random);
                load.answered();
            }
            Job::Typing => load.console.shows("transcript\r\n"),
            Job::Computing => load.console.sees("output", |seen| (!seen.output.is_empty()).then_some(())),
            Job::Printing => {
                load.console.type_bytes(format!("count {NUMBERS}\r").as_bytes());
                load.console.shows("\r\n1\r\n");
            }
        }
        load
    }

    /// Whether the guest says more by itself than what was `seen`.
    pub fn goes_on(&self, seen: &Seen) -> bool {
        match self.work {
            Job::Idle => false,
            Job::Typing => true,
            Job::Computing => seen.ended.is_none(),
            Job::Printing => !seen.text().contains(&format!("\r\n{NUMBERS}\r\n")),
        }
    }

    fn type_lines(&mut self, count: u64, random: &mut Random) {
        for _ in 0..count {
            let length = random.below(40) as usize;
            let line: String = (0..length).map(|_| char::from(b'!' + random.below(90) as u8)).collect();
            // In two pieces, so that a failure may come between them.
            let (head, tail) = line.split_at(random.below(length as u64 + 1) as usize);
            self.console.type_bytes(head.as_bytes());
            self.console.type_bytes(format!("{tail}\r").as_bytes());
            self.typed.push(line);
        }
    }

    /// Goes on for this long.
    pub fn work_for(&mut self, time: Duration, random: &mut Random) {
        let until = Instant::now() + time;
        while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            if self.work == Job::Typing {
                self.type_lines(1, random);
            }
            std::thread::sleep(rest.min(Duration::from_micros(random.below(8000))));
        }
    }

    /// Waits until every line typed has its answer.
    #[track_caller]
    fn answered(&self) {
        self.console.sees("every line has its answer", |seen| {
            let progress = check_transcript(&seen.output, &self.typed).unwrap_or_else(|error| panic!("{error}"));
            (progress.lines == self.typed.len() as u64).then_some(())
        });
    }

    /// Ends the guest in an orderly way and checks everything the console showed.
    #[track_caller]
    pub fn finish(mut self, random: &mut Random) -> Seen {
        let code = match self.work {
            Job::Idle | Job::Typing => {
                self.type_lines(3, random);
                self.answered();
                self.console.type_bytes(b"\x04");
                0
            }
            Job::Computing => 0,
            Job::Printing => {
                self.console.shows(&format!("\r\n{NUMBERS}\r\n"));
                self.console.type_bytes(b"exit 7\r");
                7
            }
        };
        let seen = self.console.sees("the guest's end", |seen| seen.ended.is_some().then(|| seen.clone()));
        assert_eq!(seen.ended.as_ref().map(|(_, code)| *code), Some(code), "{:?}", seen.ended);
        self.check(&seen.output, true);
        seen
    }

    /// Checks what a console showed, or the part of it that there is.
    #[track_caller]
    pub fn check(&self, output: &[u8], complete: bool) {
        match self.work {
            Job::Idle | Job::Typing => {
                let progress = check_transcript(output, &self.typed).unwrap_or_else(|error| panic!("{error}"));
                if complete {
                    assert_eq!((progress.lines, progress.ended), (self.typed.len() as u64, true), "lines are missing");
                }
            }
            Job::Computing => check_against(output, &computed(), complete),
            Job::Printing => check_against(output, &printed(), complete),
        }
    }
}

/// What `compute` prints, by the same code run natively; its last line, which has a time in it, is left out.
fn computed() -> String {
    let mut work = Work::new(1);
    let line = |round| {
        let hash = work.round(&Kind::ALL, &mut || {});
        format!("compute {round} {:016x}\r\n", u64::from_be_bytes(hash[..8].try_into().expect("eight bytes")))
    };
    (1..=ROUNDS).map(line).collect()
}

/// What the shell shows from the answer to `count` on.
fn printed() -> String {
    (1..=NUMBERS).map(|number| format!("{number}\r\n")).collect()
}

/// Everything that is asked for, in this order, without anything in between.
#[track_caller]
fn check_against(output: &[u8], expected: &str, complete: bool) {
    let text = String::from_utf8_lossy(output);
    let first = &expected[..expected.find('\n').expect("lines") + 1];
    let found = match (text.starts_with(first), text.find(&format!("\n{first}"))) {
        (true, _) => &text[..],
        (false, Some(at)) => &text[at + 1..],
        (false, None) => "",
    };
    let length = found.len().min(expected.len());
    let differs = found.as_bytes().iter().zip(expected.as_bytes()).position(|(found, expected)| found != expected);
    if let Some(at) = differs.filter(|&at| at < length) {
        let around = at.saturating_sub(60)..(at + 60).min(length);
        panic!("the console shows {:?} where {:?} is due", &found[around.clone()], &expected[around]);
    }
    assert!(!complete || length == expected.len(), "only {length} of {} bytes", expected.len());
}

/// How many rounds a campaign has: `LOCKSTEP_KILLS`, or the short version's.
pub fn kills(short: u64) -> u64 {
    count_from("LOCKSTEP_KILLS", short)
}
