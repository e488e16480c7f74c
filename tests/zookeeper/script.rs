//! The script's language. A line that begins in the first column is a step: who, what, with which words. Lines below it, two spaces
//! in, are its results; those that begin with `+` are the operations of one that has several. What a client must be able to do
//! beyond the usual stands in braces at the end of the line. `==` opens a section, `#` is for the reader.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// One word of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Word {
    /// `None` is the script's `null`: data that are not there.
    pub text: Option<String>,
    /// Whether it was in quotes, which take away the meaning of `=`.
    pub quoted: bool,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// In the file, from 1.
    pub line: usize,
    /// Whose session.
    pub client: String,
    /// What it does.
    pub verb: String,
    /// The words after the verb.
    pub words: Vec<Word>,
    /// The operations of a multi.
    pub operations: Vec<Vec<Word>>,
    /// What a client must be able to do.
    pub needs: BTreeSet<String>,
    /// The results.
    pub expected: Vec<String>,
}

/// The whole script.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// What is asked for in braces anywhere, and why not every client can (the lines `#! capability NAME: WHY`).
    pub capabilities: BTreeMap<String, String>,
    /// How many steps each client executes (the lines `#! NAME executes N`).
    pub executes: BTreeMap<String, usize>,
    /// The steps of all sections.
    pub steps: Vec<Step>,
}

/// A word, and what follows it.
fn word(rest: &str) -> Result<(Word, &str), String> {
    if !rest.starts_with('"') {
        let end = rest.find(' ').unwrap_or(rest.len());
        let text = (&rest[..end] != "null").then(|| rest[..end].to_owned());
        return Ok((Word { text, quoted: false }, rest[end..].trim_start()));
    }
    // A string as JSON writes it.
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let text = values.next().expect("there is a quote").map_err(|error| format!("{rest}: {error}"))?;
    let after = &rest[values.byte_offset()..];
    let Some(times) = after.strip_prefix('*') else {
        return Ok((Word { text: Some(text), quoted: true }, after.trim_start()));
    };
    let end = times.find(' ').unwrap_or(times.len());
    let count: usize = times[..end].parse().map_err(|error| format!("{times}: {error}"))?;
    Ok((Word { text: Some(text.repeat(count)), quoted: true }, times[end..].trim_start()))
}

fn words(line: &str) -> Result<Vec<Word>, String> {
    let mut rest = line.trim();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (next, after) = word(rest)?;
        all.push(next);
        rest = after;
    }
    Ok(all)
}

/// What stands in braces at the end of a line, and the line without it.
fn needs(line: &str) -> (BTreeSet<String>, &str) {
    match line.rsplit_once('{') {
        Some((before, inside)) if inside.ends_with('}') => {
            let names = inside[..inside.len() - 1].split([',', ' ']).filter(|name| !name.is_empty());
            (names.map(str::to_owned).collect(), before.trim_end())
        }
        _ => (BTreeSet::new(), line),
    }
}

impl Script {
    /// Reads a script. The error says in which line.
    pub fn parse(text: &str) -> Result<Script, String> {
        let mut script = Script::default();
        let mut section_needs = BTreeSet::new();
        for (index, line) in text.lines().enumerate() {
            let at = |error: String| format!("line {}: {error}", index + 1);
            if let Some(note) = line.strip_prefix("#! ") {
                script.note(note).map_err(at)?;
            } else if line.starts_with('#') || line.is_empty() {
            } else if line.starts_with("==") {
                section_needs = needs(line).0;
            } else if let Some(result) = line.strip_prefix("  ") {
                let step = script.steps.last_mut().ok_or_else(|| at("a result without a step".to_owned()))?;
                match result.strip_prefix("+ ") {
                    Some(operation) => step.operations.push(words(operation).map_err(at)?),
                    None => step.expected.push(result.to_owned()),
                }
            } else {
                let (mut needs, line) = needs(line);
                needs.extend(section_needs.iter().cloned());
                let mut words = words(line).map_err(at)?;
                if words.len() < 2 {
                    return Err(at("a step is a client and a verb".to_owned()));
                }
                let mut name = || words.remove(0).text.unwrap_or_default();
                let (client, verb) = (name(), name());
                let line = index + 1;
                script.steps.push(Step {
                    line,
                    client,
                    verb,
                    words,
                    operations: Vec::new(),
                    needs,
                    expected: Vec::new(),
                });
            }
        }
        let known = |name: &&String| !script.capabilities.contains_key(*name);
        match script.steps.iter().find_map(|step| step.needs.iter().find(known).map(|name| (step.line, name))) {
            Some((line, name)) => {
                Err(format!("line {line}: {name} is not among the capabilities at the script's head"))
            }
            None => Ok(script),
        }
    }

    fn note(&mut self, note: &str) -> Result<(), String> {
        if let Some((name, why)) = note.strip_prefix("capability ").and_then(|rest| rest.split_once(": ")) {
            self.capabilities.insert(name.to_owned(), why.to_owned());
        } else if let Some((name, count)) = note.split_once(" executes ") {
            self.executes.insert(name.to_owned(), count.parse().map_err(|error| format!("{count}: {error}"))?);
        } else {
            return Err(format!("neither a capability nor a count: {note}"));
        }
        Ok(())
    }

    /// The steps that a client with these capabilities can execute.
    pub fn executable<'a>(&'a self, capabilities: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Step> {
        self.steps.iter().filter(|step| step.needs.is_subset(capabilities))
    }
}

/// What changes something that others can read.
const WRITES: [&str; 8] = ["create", "delete", "set", "setacl", "multi", "multi-errors", "close", "pipeline"];
/// What sees only what its member has got to know.
const READS: [&str; 7] = ["exists", "stat", "get", "children", "getacl", "descendants", "multi-read"];

/// The lines in which a client reads what another has written on another member, without having made sure that its own member
/// knows it: by a `sync`, a write of its own, or a new session. Such a read is a matter of luck.
pub fn hasty_reads(script: &Script) -> Vec<usize> {
    let mut written_at = BTreeMap::new();
    let mut knows_until: BTreeMap<&str, usize> = BTreeMap::new();
    let mut hasty = Vec::new();
    for (now, step) in script.steps.iter().enumerate() {
        let (client, verb) = (step.client.as_str(), step.verb.as_str());
        if WRITES.contains(&verb) {
            written_at.insert(client, now);
        }
        if WRITES.contains(&verb) || ["sync", "await", "connect", "events"].contains(&verb) {
            knows_until.insert(client, now);
        }
        let known = knows_until.get(client).copied().unwrap_or_default();
        if READS.contains(&verb) && written_at.iter().any(|(other, at)| *other != client && *at > known) {
            hasty.push(step.line);
        }
    }
    hasty
}
