//! Real code over a directory of the model checker's, one call at a time. Its files are the model's; what a process has done is the list of its calls' results. A step of a process
//! runs its code from the beginning, with the results that it has had, makes one call more (and those behind it that nobody else can notice), and leaves it there.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use lockstep::ladder::Directory;

/// What a call has returned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Result_ {
    Names(Vec<String>),
    Bytes(Option<Vec<u8>>),
    /// Of a link, a renaming, and what is also done; `None`: there is no such file.
    Linked(Option<bool>),
    Done,
}

pub type Files = BTreeMap<String, Vec<u8>>;

/// Mistakes, to see that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// A rung takes the place of one that is there.
    LinkReplaces,
    /// A process lists the directory once, and goes by that.
    OldListing,
    /// Rungs are removed whether there is a higher one or not.
    ClearTooMuch,
    /// Older rungs stay.
    ClearNothing,
}

/// One step of one process: the results of the calls before, then one call, then none.
struct Step {
    plant: Plant,
    coarse: bool,
    files: Files,
    process: usize,
    before: Vec<Result_>,
    next: usize,
    made: u32,
    now: Vec<Result_>,
    /// The answer of a link gets lost, and the file system's client asks again.
    lose: bool,
    lost: bool,
    /// It wanted to do more.
    more: bool,
}

/// The calls of one process.
#[derive(Clone)]
pub struct Calls(Arc<Mutex<Step>>);

impl Calls {
    /// Something that a process does, or looks at, beside the calls of its directory.
    pub fn also(&self, act: impl FnOnce(&Files) -> bool) -> io::Result<bool> {
        let result = self.call(|step| Result_::Linked(Some(act(&step.files))))?;
        Ok(result == Result_::Linked(Some(true)))
    }

    fn call(&self, make: impl FnOnce(&mut Step) -> Result_) -> io::Result<Result_> {
        let mut step = self.0.lock().unwrap();
        if let Some(result) = step.before.get(step.next).cloned() {
            step.next += 1;
            return Ok(result);
        }
        if !step.now.is_empty() {
            step.more = true;
            return Err(io::ErrorKind::Interrupted.into());
        }
        let result = make(&mut step);
        step.now.push(result.clone());
        Ok(result)
    }

    /// A call that nobody else can notice.
    fn unnoticed(&self, act: impl FnOnce(&mut Step)) -> io::Result<()> {
        let mut step = self.0.lock().unwrap();
        if step.more {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if step.next < step.before.len() {
            step.next += 1;
            return Ok(());
        }
        act(&mut step);
        step.now.push(Result_::Done);
        Ok(())
    }
}

impl Directory for Calls {
    fn list(&self) -> io::Result<Vec<String>> {
        let result = self.call(|step| {
            let old = step.before.iter().find(|result| matches!(result, Result_::Names(_))).cloned();
            let fresh = Result_::Names(step.files.keys().cloned().collect());
            if step.plant == Plant::OldListing { old.unwrap_or(fresh) } else { fresh }
        });
        result.map(|result| if let Result_::Names(names) = result { names } else { unreachable!() })
    }

    fn read(&self, name: &str, _: u64) -> io::Result<Option<Vec<u8>>> {
        let result = self.call(|step| Result_::Bytes(step.files.get(name).cloned()));
        result.map(|result| if let Result_::Bytes(bytes) = result { bytes } else { unreachable!() })
    }

    fn make(&self, begin: &str, end: &str, bytes: &[u8]) -> io::Result<String> {
        let number = {
            let mut step = self.0.lock().unwrap();
            step.made += 1;
            step.made
        };
        let (process, coarse) = {
            let step = self.0.lock().unwrap();
            (step.process, step.coarse)
        };
        let name = format!("{begin}{process}-{number}{end}");
        let act = |step: &mut Step| drop(step.files.insert(name.clone(), bytes.to_vec()));
        if coarse {
            self.unnoticed(act)?;
        } else {
            self.call(|step| {
                act(step);
                Result_::Done
            })?;
        }
        Ok(name)
    }

    fn link(&self, name: &str, to: &str) -> io::Result<bool> {
        let result = self.call(|step| {
            let Some(bytes) = step.files.get(name).cloned() else { return Result_::Linked(None) };
            let free = !step.files.contains_key(to) || step.plant == Plant::LinkReplaces;
            if free {
                step.files.insert(to.into(), bytes);
            }
            step.lost = free && step.lose;
            Result_::Linked(Some(free && !step.lose))
        });
        let Result_::Linked(linked) = result? else { unreachable!() };
        linked.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        let result = self.call(|step| {
            let bytes = step.files.remove(name);
            let found = bytes.map(|bytes| step.files.insert(to.into(), bytes)).is_some();
            Result_::Linked(found.then_some(true))
        });
        let Result_::Linked(found) = result? else { unreachable!() };
        found.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let own = format!(".{}-", self.0.lock().unwrap().process);
        if name.ends_with(".new") && name.contains(&own) {
            return self.unnoticed(|step| drop(step.files.remove(name)));
        }
        let result = self.call(|step| {
            if step.plant != Plant::ClearNothing || name.ends_with(".new") {
                step.files.remove(name);
            }
            if step.plant == Plant::ClearTooMuch && !name.ends_with(".new") {
                step.files.retain(|name, _| name.ends_with(".new") || name.ends_with(".register"));
            }
            Result_::Done
        });
        result.map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        self.unnoticed(|_| {})
    }

    fn path(&self) -> PathBuf {
        PathBuf::new()
    }
}

/// What a step has come to.
pub struct Gone {
    /// All results so far.
    pub results: Vec<Result_>,
    pub files: Files,
    /// An answer was lost.
    pub lost: bool,
    /// It goes on.
    pub more: bool,
    /// What its code has returned, unless it goes on.
    pub end: Result<(), String>,
}

/// How steps are made.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub plant: Plant,
    /// Nobody notices new files.
    pub coarse: bool,
    /// The answer of a link gets lost.
    pub lose: bool,
}

/// Runs `code` of a process one call further than its `results`.
pub fn step(
    how: How,
    files: &Files,
    process: usize,
    results: &[Result_],
    code: impl FnOnce(&Calls) -> Result<(), String>,
) -> Gone {
    let How { plant, coarse, lose } = how;
    let step = Step {
        plant,
        coarse,
        files: files.clone(),
        process,
        before: results.to_vec(),
        next: 0,
        made: 0,
        now: Vec::new(),
        lose,
        lost: false,
        more: false,
    };
    let calls = Calls(Arc::new(Mutex::new(step)));
    let end = code(&calls);
    let step = calls.0.lock().unwrap();
    let results = [results, &step.now].concat();
    Gone { results, files: step.files.clone(), lost: step.lost, more: step.more, end }
}
