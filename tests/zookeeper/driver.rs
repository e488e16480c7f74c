//! Who executes a step: a client of some kind, in this process or in one of its own that takes steps as lines of JSON.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Serialize;

use super::script::Word;

/// A step as a client gets it.
#[derive(Debug, Serialize)]
pub struct Request {
    /// Whose session.
    pub client: String,
    /// What it does.
    pub verb: String,
    /// The words after the verb.
    pub words: Vec<Word>,
    /// The operations of a multi.
    pub operations: Vec<Vec<Word>>,
    /// Where a session is to be made.
    pub address: Option<(String, u16)>,
}

impl Request {
    /// The address as a socket's.
    pub fn socket(&self) -> SocketAddr {
        let (host, port) = self.address.as_ref().expect("a step that connects has an address");
        SocketAddr::new(host.parse().expect("an IP address"), *port)
    }

    /// The positional words. `null` is no text.
    pub fn positional(&self) -> Vec<Option<&str>> {
        positional(&self.words)
    }

    /// The positional word at this place.
    pub fn text(&self, index: usize) -> &str {
        self.positional()[index].expect("a word that is not null")
    }

    /// Whether a positional word is there, beyond the path.
    pub fn has(&self, word: &str) -> bool {
        self.positional().iter().skip(1).any(|text| *text == Some(word))
    }

    /// The value of `name=value`.
    pub fn named(&self, name: &str) -> Option<&str> {
        named(&self.words, name)
    }

    /// The number of `name=number`.
    pub fn number(&self, name: &str) -> Option<i32> {
        self.named(name).map(|text| text.parse().expect("a number"))
    }
}

fn is_named(word: &Word) -> bool {
    !word.quoted && word.text.as_ref().is_some_and(|text| text.contains('='))
}

/// The words that are not `name=value`.
pub fn positional(words: &[Word]) -> Vec<Option<&str>> {
    words.iter().filter(|word| !is_named(word)).map(|word| word.text.as_deref()).collect()
}

/// The value of `name=value` among words.
pub fn named<'a>(words: &'a [Word], name: &str) -> Option<&'a str> {
    let of_name = |word: &'a Word| word.text.as_deref()?.strip_prefix(name)?.strip_prefix('=');
    words.iter().filter(|word| is_named(word)).find_map(of_name)
}

/// A client of some kind.
pub trait Driver {
    /// As the script's head calls it.
    fn name(&self) -> &'static str;
    /// What it can do beyond the usual.
    fn capabilities(&self) -> BTreeSet<String>;
    /// How exactly it shows times, ms.
    fn time_step_ms(&self) -> u64 {
        1
    }
    /// Executes a step; its results, with numbers marked.
    fn step(&mut self, request: &Request) -> Vec<String>;
}

/// Several words as a set.
pub fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A program that takes steps as lines of JSON and answers each with a list of lines.
pub struct Program {
    name: &'static str,
    capabilities: BTreeSet<String>,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts a Python program that stands beside the script.
    pub fn python(name: &'static str, file: &str, capabilities: &[&str]) -> Program {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/zookeeper");
        // Debian's Python, for Debian's python3-kazoo.
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-B", file]).current_dir(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        Program { name, capabilities: set(capabilities), child, input, output }
    }
}

impl Driver for Program {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> BTreeSet<String> {
        self.capabilities.clone()
    }

    fn step(&mut self, request: &Request) -> Vec<String> {
        let line = serde_json::to_string(request).expect("a step can be written as JSON") + "\n";
        let input = self.input.as_mut().expect("it has not been ended");
        input.write_all(line.as_bytes()).unwrap_or_else(|error| panic!("{} has ended: {error}", self.name));
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("its output can be read");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{} answers {answer:?}: {error}", self.name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It ends when its input does; but not every library lets it.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
