//! One script of what ZooKeeper does (`script.txt`), run by several clients against servers of several kinds: the judge of whether
//! ours answer as ZooKeeper does. Each client runs it in a tree of its own (the script's `~`), with a cable of its own for each of its
//! sessions; what it got is held against what the script says, line by line.

pub mod cable;
pub mod cli;
pub mod compare;
pub mod driver;
pub mod library;
pub mod script;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cable::Cable;
use compare::Symbols;
use driver::{Driver, Request};
use script::{Script, Step, Word};

/// The script's file.
pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/zookeeper/script.txt");

/// What became of a run.
pub struct Outcome {
    /// How many steps were executed.
    pub executed: usize,
    /// Each step whose results were not what the script says, as a text for a person.
    pub differences: Vec<String>,
    /// The results as the script writes them, by the line of their step.
    pub written: BTreeMap<usize, Vec<String>>,
}

struct Run<'a> {
    driver: &'a mut dyn Driver,
    members: Vec<SocketAddr>,
    cables: BTreeMap<String, Cable>,
    /// What the script's `~` stands for.
    root: String,
}

impl Run<'_> {
    /// The member that a step names, or the client's own: the first for a, the second for b. A single server is every member.
    fn member(&self, step: &Step) -> SocketAddr {
        let own = || usize::from(step.client.as_bytes()[0].saturating_sub(b'a')) + 1;
        let number = driver::named(&step.words, "member").map_or_else(own, |text| text.parse().expect("a number"));
        self.members[(number - 1) % self.members.len()]
    }

    fn word(&self, word: &Word) -> Word {
        let text = word.text.as_ref().map(|text| {
            let text = text.replacen('~', &self.root, 1);
            // Also after a name: `prefix=~/a`.
            text.replacen("=~", &format!("={}", self.root), 1)
        });
        Word { text, quoted: word.quoted }
    }

    fn request(&self, step: &Step, verb: &str) -> Request {
        let words = |words: &[Word]| words.iter().map(|word| self.word(word)).collect();
        let address = self.cables.get(&step.client).map(Cable::address);
        Request {
            client: step.client.clone(),
            verb: verb.to_owned(),
            words: words(&step.words),
            operations: step.operations.iter().map(|operation| words(operation)).collect(),
            address: address.map(|address| (address.ip().to_string(), address.port())),
        }
    }

    /// Executes a step; its results.
    fn step(&mut self, step: &Step) -> Vec<String> {
        let mut verb = step.verb.as_str();
        match verb {
            "connect" | "attach" => {
                let cable = Cable::to(self.member(step));
                self.cables.insert(step.client.clone(), cable);
            }
            "cut" => {
                self.cables[&step.client].cut();
                return Vec::new();
            }
            // Both are the client's own reconnection.
            "mend" | "move" => {
                self.cables[&step.client].plug(self.member(step));
                verb = "reconnected";
            }
            _ => {}
        }
        let request = self.request(step, verb);
        self.driver.step(&request).iter().map(|line| line.replace(&self.root, "~")).collect()
    }
}

/// Has one client execute what it can of the script.
pub fn run(script: &Script, driver: &mut dyn Driver, members: &[SocketAddr]) -> Outcome {
    let (name, capabilities, time_step_ms) = (driver.name(), driver.capabilities(), driver.time_step_ms());
    let mut symbols = Symbols::default();
    let mut outcome = Outcome { executed: 0, differences: Vec::new(), written: BTreeMap::new() };
    let root = format!("/{name}");
    let mut run = Run { driver, members: members.to_vec(), cables: BTreeMap::new(), root };
    for step in script.executable(&capabilities) {
        let got = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.step(step)));
        let got = got.unwrap_or_else(|_| panic!("{name} fails in line {}: {} {}", step.line, step.client, step.verb));
        outcome.executed += 1;
        let fits = step.expected.len() == got.len()
            && step.expected.iter().zip(&got).all(|(expected, actual)| symbols.fits(expected, actual));
        for line in &got {
            if let Err(error) = symbols.times_fit(line, time_step_ms) {
                outcome.differences.push(format!("{name}, line {}: {error}", step.line));
            }
        }
        if !fits {
            let text = format!("{name}, line {}: {} {}", step.line, step.client, step.verb);
            let (expected, got) = (step.expected.join("\n    "), got.join("\n    "));
            outcome.differences.push(format!("{text}\n  the script says\n    {expected}\n  but\n    {got}"));
        }
        outcome.written.insert(step.line, got.iter().map(|line| symbols.written(line)).collect());
    }
    outcome
}

/// The script with the results that a run got in the place of its own.
pub fn rewritten(text: &str, outcome: &Outcome) -> String {
    let mut lines = Vec::new();
    let mut replaced = false;
    for (index, line) in text.lines().enumerate() {
        let is_result = line.starts_with("  ") && !line.starts_with("  + ");
        if is_result && replaced {
            continue;
        }
        if !line.starts_with("  ") {
            replaced = false;
        }
        lines.push(line.to_owned());
        if let Some(written) = outcome.written.get(&(index + 1)) {
            replaced = true;
            // The operations of a step stand before its results.
            let operations = text.lines().skip(index + 1).take_while(|line| line.starts_with("  + "));
            let operations: Vec<String> = operations.map(str::to_owned).collect();
            lines.extend(operations.iter().cloned());
            lines.extend(written.iter().map(|line| format!("  {line}")));
        } else if line.starts_with("  + ") && replaced {
            // They have been written with their step.
            lines.pop();
        }
    }
    lines.join("\n") + "\n"
}
