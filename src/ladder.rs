//! Files that only climb: `NAME.1`, `NAME.2`, … on storage that several hosts reach. Each rung is made once, whole, by one host, and the highest counts. There is
//! no lock, so nobody who is stopped in the middle of anything keeps the others from going on.
//!
//! | step of a climb to rung *n* | what it leaves if nothing follows |
//! | --- | --- |
//! | 1. write a file under a name that nobody else uses, sync it | a file that nobody looks at |
//! | 2. link it to `NAME.n`: fails if there is one | rung *n*, whole, if there was none; now it counts, if nothing is higher |
//! | 3. remove the first name, sync the directory | |
//! | 4. list the directory: is a rung higher? | |
//! | 5. remove lower rungs | |
//!
//! Whoever finds nothing higher in step 4 is at the top; at the moment of its link nothing was higher. Why: a rung is removed only when there is a higher one
//! (step 5), so the top never vanishes, and what was ever higher than *n* is still there in step 4, or something yet higher. That is also why it does no harm that rungs are
//! removed: a sleeper that comes to make one of those, years too late, makes it, and finds that it is not at the top. It has to look *after* it has linked.
//!
//! A listing has to be of one moment, at least as far as that goes: what is there before it begins and after it has ended is in it. Linux's own file systems list a directory of up to some
//! hundred files in one system call, with the directory locked; on NFS the rungs that [`Ladder::clear_below`] leaves stand for that (it takes as many climbs
//! during one listing as it leaves rungs to miss the top).
//!
//! Links are atomic on NFS as well, but for a client whose answer was lost, and which asked again: its own first try is in its way. So whoever finds
//! the rung taken looks whether it is its own that it finds.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// How often a rung may vanish between the listing and the look at it; each time somebody has climbed higher.
const LOOKS: usize = 64;

/// The calls that a ladder makes. Tests put their own in place of a directory's, to stop in between.
pub trait Directory: Send + Sync {
    /// The names of all files, those that end in neither a rung's nor a new file's way included.
    fn list(&self) -> io::Result<Vec<String>>;

    /// The first `limit` bytes of a file. `None`: there is no such file.
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>>;

    /// Makes a file with these bytes, durably, under a name that begins and ends as said and that nobody else uses. Returns the name.
    fn make(&self, begin: &str, end: &str, bytes: &[u8]) -> io::Result<String>;

    /// Gives the file a second name. `false`: that name is taken.
    fn link(&self, name: &str, to: &str) -> io::Result<bool>;

    /// Puts the file in another one's place.
    fn rename(&self, name: &str, to: &str) -> io::Result<()>;

    /// Takes a name away. There may be no such file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;

    /// Where it is, for people.
    fn path(&self) -> PathBuf;
}

/// A directory of a file system.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The directory at `path`; an empty path is the current one.
    pub fn new(path: &Path) -> Self {
        Folder(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.into() })
    }
}

/// A name that nobody else uses. Hosts that share a directory do not share process numbers.
#[allow(clippy::disallowed_methods, reason = "names of files: nothing of the machine depends on them")]
fn unique() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}

impl Directory for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        // A name that is no text is none of ours.
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
        fs::read_dir(&self.0)?.filter_map(|entry| name(entry).transpose()).collect()
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.0.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn make(&self, begin: &str, end: &str, bytes: &[u8]) -> io::Result<String> {
        let name = format!("{begin}{:016x}{end}", unique()?);
        let path = self.0.join(&name);
        let mut file = File::create_new(&path)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // A full disk must not be filled further.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(name)
    }

    fn link(&self, name: &str, to: &str) -> io::Result<bool> {
        match fs::hard_link(self.0.join(name), self.0.join(to)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(name), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct LadderError {
    /// What was tried.
    pub what: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// A rung.
#[derive(Clone, PartialEq, Eq)]
pub struct Rung {
    /// Its number.
    pub number: u64,
    /// What is on it, up to the ladder's limit.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.number, String::from_utf8_lossy(&self.bytes))
    }
}

/// How a climb has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Climb {
    /// At the top, durably: nothing was higher when this rung was made.
    Top,
    /// Somebody else has this rung, or a higher one.
    Passed,
}

/// The files `NAME.1`, `NAME.2`, … in a directory.
#[derive(Clone, Debug)]
pub struct Ladder<D> {
    directory: D,
    name: String,
    limit: u64,
}

impl<D: Directory> Ladder<D> {
    /// The rungs of this name, each of at most `limit` bytes.
    pub fn new(directory: D, name: &str, limit: u64) -> Self {
        Ladder { directory, name: name.into(), limit }
    }

    fn file(&self, number: u64) -> String {
        format!("{}.{number}", self.name)
    }

    /// Where a rung is.
    pub fn path(&self, number: u64) -> PathBuf {
        self.directory.path().join(self.file(number))
    }

    fn failed<'a>(&'a self, what: &'static str, name: &'a str) -> impl FnOnce(io::Error) -> LadderError + 'a {
        move |source| LadderError { what, path: self.directory.path().join(name), source }
    }

    /// The number of the highest rung; 0: there is none.
    fn highest(&self) -> Result<u64, LadderError> {
        let names = self.directory.list().map_err(self.failed("list", ""))?;
        Ok(names.iter().filter_map(|name| self.rung(name)).max().unwrap_or(0))
    }

    /// The rung that a file of this name is.
    fn rung(&self, name: &str) -> Option<u64> {
        number(name.strip_prefix(&self.name)?.strip_prefix('.')?).filter(|number| *number > 0)
    }

    /// The rung that a new file of this name is to be.
    fn new_file(&self, name: &str) -> Option<u64> {
        let rest = name.strip_prefix('.')?.strip_prefix(&self.name)?.strip_prefix('.')?.strip_suffix(NEW)?;
        number(rest.split_once('.')?.0)
    }

    /// The highest rung. `None`: there is none.
    pub fn top(&self) -> Result<Option<Rung>, LadderError> {
        for _ in 0..LOOKS {
            let number = self.highest()?;
            if number == 0 {
                return Ok(None);
            }
            let name = self.file(number);
            // If it is gone, somebody has climbed higher.
            if let Some(bytes) = self.directory.read(&name, self.limit).map_err(self.failed("read", &name))? {
                return Ok(Some(Rung { number, bytes }));
            }
        }
        Err(self.failed("keep up with", &self.name)(io::ErrorKind::WouldBlock.into()))
    }

    /// Makes this rung, with these bytes. Whoever makes one with the same bytes has made the same.
    pub fn climb(&self, rung: &Rung) -> Result<Climb, LadderError> {
        let (begin, name) = (format!(".{}.{}.", self.name, rung.number), self.file(rung.number));
        let new = self.directory.make(&begin, NEW, &rung.bytes).map_err(self.failed("write a file in", ""))?;
        let linked = self.directory.link(&new, &name);
        // It is there under its own name, or shall not be there.
        let _ = self.directory.remove(&new);
        let own = match linked {
            Ok(true) => true,
            // An earlier call's, or this one's, by what a client of NFS can know.
            Ok(false) => {
                let there = self.directory.read(&name, self.limit).map_err(self.failed("read", &name))?;
                there.is_some_and(|there| there == rung.bytes)
            }
            // Somebody who is higher has cleared up.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.highest()? > rung.number => false,
            Err(error) => return Err(self.failed("link", &name)(error)),
        };
        // Only now: see above.
        if !own || self.highest()? != rung.number {
            return Ok(Climb::Passed);
        }
        self.directory.sync().map_err(self.failed("sync", ""))?;
        Ok(Climb::Top)
    }

    /// Removes the rungs below this number, and what is left of climbs to them. Only whoever has seen this rung, or a higher one, may.
    pub fn clear_below(&self, number: u64) -> Result<(), LadderError> {
        let mut names = self.directory.list().map_err(self.failed("list", ""))?;
        names.retain(|name| self.rung(name).or_else(|| self.new_file(name)).is_some_and(|below| below < number));
        for name in names {
            self.directory.remove(&name).map_err(self.failed("remove", &name))?;
        }
        Ok(())
    }

    /// The directory.
    pub fn directory(&self) -> &D {
        &self.directory
    }
}

/// How names of new files end.
const NEW: &str = ".new";

/// A number as names have it. Rungs are counted from 1; new files that are to be none have 0.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}
