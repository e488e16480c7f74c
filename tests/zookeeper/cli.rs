//! Runs the script with Debian's `zkCli.sh`: commands are typed at it, and what it prints is read. It runs one process for each client
//! of the script; a new session is its command `connect`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::driver::{Driver, Request, set};
use super::library::show_list;
use crate::common::PATIENCE;

/// What it can do beyond the usual.
const CAPABILITIES: &[&str] = &[
    "container",
    "descendants",
    "ephemerals",
    "null-data",
    "persistent-watch",
    "remove-watch",
    "set-persistent-watches",
    "set-watches",
    "stat-of-write",
    "whoami",
];

/// Printed after every command, so that its end is known: what this command of its own prints.
const MARK: (&str, &str) = ("printwatches", "printwatches is on");

/// Its messages, and the errors that they stand for.
const MESSAGES: [(&str, &str); 12] = [
    ("Node does not exist", "NoNode"),
    ("Node already exists", "NodeExists"),
    ("Node not empty", "NotEmpty"),
    ("Ephemerals cannot have children", "NoChildrenForEphemerals"),
    ("Insufficient permission", "NoAuth"),
    ("Acl is not valid", "InvalidACL"),
    ("version No is not valid", "BadVersion"),
    ("Arguments are not valid", "BadArguments"),
    ("KeeperErrorCode = InvalidACL", ""),
    ("KeeperErrorCode = ConnectionLoss", "ConnectionLoss"),
    ("KeeperErrorCode = Session expired", "SessionExpired"),
    ("KeeperErrorCode = No such watcher", "NoWatcher"),
];

struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    timeout: String,
    events: Vec<String>,
    states: Vec<String>,
}

impl Shell {
    fn start(address: &str, timeout: &str) -> Shell {
        let mut command = Command::new("sh");
        // Both its outputs, in their order.
        command.args(["-c", "exec /usr/share/zookeeper/bin/zkCli.sh -timeout \"$1\" -server \"$2\" 2>&1", "zkCli"]);
        command.args([timeout, address]).env("TZ", "UTC");
        command.env("CLIENT_JVMFLAGS", "-Xmx48m -XX:+UseSerialGC -XX:TieredStopAtLevel=1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let input = child.stdin.take().expect("stdin is a pipe");
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (events, states) = (Vec::new(), Vec::new());
        Shell { child, input, lines, timeout: timeout.to_owned(), events, states }
    }

    /// The next line that is not about events; events are kept.
    fn line(&mut self, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())).ok()?;
            if let Some(event) = line.strip_prefix("WatchedEvent ") {
                self.note(event);
            } else if !line.is_empty() && line != "WATCHER::" {
                return Some(line);
            }
        }
    }

    fn note(&mut self, event: &str) {
        let part = |name: &str| event.split(' ').find_map(|word| word.strip_prefix(name)).unwrap_or_default();
        match part("type:") {
            "None" => self.states.push(part("state:").to_owned()),
            // That a watch was removed, the Java client tells itself.
            kind if kind.ends_with("Removed") => {}
            kind => self.events.push(format!("{kind} {}", part("path:"))),
        }
    }

    fn command(&mut self, line: &str) -> Vec<String> {
        let text = format!("{line}\n{}\n", MARK.0);
        self.input.write_all(text.as_bytes()).expect("zkCli.sh reads its commands");
        let mut printed = Vec::new();
        loop {
            let line = self.line(PATIENCE).unwrap_or_else(|| panic!("zkCli.sh says nothing after {line}: {printed:?}"));
            if line == MARK.1 {
                return printed;
            }
            printed.push(line);
        }
    }

    /// Waits until the connection's state is one of these; which.
    fn state(&mut self, wanted: &[&str]) -> String {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(state) = self.states.last().filter(|state| wanted.contains(&state.as_str())) {
                return state.clone();
            }
            // Whatever else comes now belongs to no command.
            self.line(Duration::from_millis(10));
        }
        panic!("zkCli.sh does not come to be {wanted:?}: {:?}", self.states);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The script starts a JVM, which is what has to end.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The clients of the script, by name.
#[derive(Default)]
pub struct Cli {
    shells: BTreeMap<String, Shell>,
}

/// A word as it is typed.
fn typed(text: Option<&str>) -> String {
    text.map_or(String::new(), |text| format!("\"{text}\""))
}

/// The error that a line stands for, if it is one.
fn error(line: &str) -> Option<&'static str> {
    MESSAGES.iter().find(|(message, _)| line.starts_with(message)).map(|(_, name)| *name)
}

/// Days since 1970 of a date.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: u64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    years + lengths[..month as usize - 1].iter().sum::<u64>() + day - 1
}

/// `Thu Nov 26 11:19:39 UTC 2026` in ms.
fn time(text: &str) -> u64 {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|error| panic!("{text}: {error}"));
    let month = MONTHS.iter().position(|name| *name == words[1]).expect("a month") as u64 + 1;
    let clock: Vec<u64> = words[3].split(':').map(number).collect();
    let seconds = clock[0] * 3600 + clock[1] * 60 + clock[2];
    (days(number(words[5]), month, number(words[2])) * 86_400 + seconds) * 1000
}

/// A stat that it has printed, from `cZxid = 0x…` on, as the script writes it.
fn show_stat(lines: &[String]) -> String {
    let value = |name: &str| {
        let value = |line: &'_ String| Some(line.strip_prefix(name)?.strip_prefix(" = ")?.to_owned());
        lines.iter().find_map(value).unwrap_or_else(|| panic!("no {name} in {lines:?}"))
    };
    let hex = |name: &str| u64::from_str_radix(value(name).trim_start_matches("0x"), 16).expect("a hexadecimal number");
    let owner = match hex("ephemeralOwner") {
        0 => "none".to_owned(),
        id => format!("s:{id}"),
    };
    format!(
        "czxid=z:{} mzxid=z:{} pzxid=z:{} ctime=t:{} mtime=t:{} version={} cversion={} aversion={} owner={owner} length={} children={}",
        hex("cZxid"),
        hex("mZxid"),
        hex("pZxid"),
        time(&value("ctime")),
        time(&value("mtime")),
        value("dataVersion"),
        value("cversion"),
        value("aclVersion"),
        value("dataLength"),
        value("numChildren")
    )
}

impl Cli {
    fn connect(&mut self, request: &Request) -> Vec<String> {
        let timeout = request.named("timeout").unwrap_or("10000");
        let address = request.socket().to_string();
        let reused = self.shells.get_mut(&request.client).filter(|shell| shell.timeout == timeout);
        match reused {
            Some(shell) => {
                shell.states.clear();
                shell.events.clear();
                shell.command(&format!("connect {address}"));
            }
            None => {
                self.shells.insert(request.client.clone(), Shell::start(&address, timeout));
            }
        }
        let shell = self.shells.get_mut(&request.client).expect("it has just been started");
        shell.state(&["SyncConnected"]);
        shell.command("sync /");
        vec!["connected".to_owned()]
    }
}

impl Driver for Cli {
    fn name(&self) -> &'static str {
        "cli"
    }

    fn capabilities(&self) -> BTreeSet<String> {
        set(CAPABILITIES)
    }

    fn time_step_ms(&self) -> u64 {
        1000
    }

    fn step(&mut self, request: &Request) -> Vec<String> {
        if request.verb == "connect" {
            return self.connect(request);
        }
        let shell = self.shells.get_mut(&request.client).expect("a session");
        let words = request.positional();
        let path = typed(words.first().copied().flatten());
        let watch = if request.has("watch") { "-w " } else { "" };
        let with_stat = request.named("with") == Some("stat");
        let version = request.named("version").map_or(String::new(), |version| format!("-v {version} "));
        let line = match request.verb.as_str() {
            "reconnected" => return reconnected(shell),
            "close" => {
                shell.command("close");
                return vec!["closed".to_owned()];
            }
            "create" => {
                let options = match words[1].expect("a mode") {
                    "persistent" => "",
                    "ephemeral" => "-e ",
                    "sequential" => "-s ",
                    "ephemeral-sequential" => "-e -s ",
                    _ => "-c ",
                };
                let acl = request.named("acl").unwrap_or_default();
                format!("create {options}{path} {} {acl}", typed(words[2]))
            }
            "delete" => format!("delete {version}{path}"),
            "set" => format!("set -s {version}{path} {}", typed(words[1])),
            "exists" | "stat" => format!("stat {watch}{path}"),
            "get" => format!("get -s {watch}{path}"),
            "children" => format!("ls -s {watch}{path}"),
            "sync" => format!("sync {path}"),
            "await" => return wait(shell, words[0] == Some("there"), words[1].expect("a path")),
            "ephemerals" => format!("getEphemerals {path}"),
            "descendants" => format!("getAllChildrenNumber {path}"),
            "getacl" => format!("getAcl -s {path}"),
            "setacl" => format!("setAcl -s {version}{path} {}", words[1].expect("an ACL")),
            "addauth" => format!("addauth {} {}", words[0].expect("a scheme"), words[1].expect("a credential")),
            "whoami" => "whoami".to_owned(),
            "watch" => format!("addWatch -m {} {path}", mode(words[1].expect("a mode"))),
            "unwatch" => format!("removewatches {path} {}", kind(words[1].expect("a kind"))),
            "events" => return events(shell, &words),
            other => panic!("zkCli.sh cannot {other}: line without a mark?"),
        };
        let mut printed = shell.command(&line);
        if let Some(name) = printed.iter().find_map(|line| error(line).filter(|name| !name.is_empty())) {
            return vec![name.to_owned()];
        }
        let stat =
            printed.iter().position(|line| line.starts_with("cZxid")).map(|at| show_stat(&printed.split_off(at)));
        let field = |name: &str| {
            let stat = stat.as_deref().unwrap_or_default();
            stat.split(' ').find(|word| word.starts_with(name)).unwrap_or("no stat").to_owned()
        };
        match request.verb.as_str() {
            "exists" => return vec![if stat.is_some() { "yes" } else { "nothing" }.to_owned()],
            "stat" => return vec![stat.unwrap_or_default()],
            "set" if !with_stat => return vec![field("version")],
            "setacl" if !with_stat => return vec![field("aversion")],
            "create" => printed = printed.iter().map(|line| line.replace("Created ", "")).collect(),
            "get" => printed = vec![shown(&printed.join("\n"))],
            "delete" => printed.push("deleted".to_owned()),
            "sync" => {
                printed =
                    vec![if printed == ["Sync is OK"] { words[0].unwrap_or_default() } else { "failed" }.to_owned()]
            }
            "addauth" => printed.push("ok".to_owned()),
            "watch" => printed.push("watching".to_owned()),
            "unwatch" => printed.push("removed".to_owned()),
            "children" | "ephemerals" => printed = printed.iter().map(|line| list(line)).collect(),
            "getacl" => printed = acls(&printed),
            "whoami" => {
                printed.retain(|line| line != "Auth scheme: User");
                printed.iter_mut().for_each(|line| *line = line.replacen(": ", " ", 1));
                printed.sort();
            }
            _ => {}
        }
        printed.extend(stat.filter(|_| with_stat));
        printed
    }
}

fn shown(data: &str) -> String {
    if data == "null" { data.to_owned() } else { serde_json::to_string(data).expect("text can be written as JSON") }
}

fn list(line: &str) -> String {
    let inside = line.trim_start_matches('[').trim_end_matches(']');
    show_list(inside.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// `'world,'anyone` and `: cdrwa`, which it prints in one line or in two.
fn acls(printed: &[String]) -> Vec<String> {
    let whole = printed.join("\n").replace("\n: ", ": ");
    let show = |line: &str| {
        let (id, letters) = line.rsplit_once(": ").unwrap_or((line, "-"));
        let (scheme, id) = id.trim_start_matches('\'').split_once(",'").unwrap_or((id, ""));
        format!("{scheme} {} {}", id.trim(), if letters.is_empty() { "-" } else { letters }).replace("  ", " ")
    };
    whole.lines().map(show).collect()
}

fn mode(word: &str) -> &'static str {
    if word == "persistent" { "PERSISTENT" } else { "PERSISTENT_RECURSIVE" }
}

fn kind(word: &str) -> &'static str {
    match word {
        "data" => "-d",
        "children" => "-c",
        _ => "-a",
    }
}

fn reconnected(shell: &mut Shell) -> Vec<String> {
    let lost = shell.states.iter().any(|state| state == "Disconnected" || state == "Expired");
    if !lost {
        shell.state(&["Disconnected", "Expired"]);
    }
    let state = shell.state(&["SyncConnected", "Expired"]);
    shell.states.clear();
    vec![if state == "Expired" { "expired" } else { "attached" }.to_owned()]
}

fn wait(shell: &mut Shell, there: bool, path: &str) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        shell.command(&format!("sync \"{path}\""));
        let printed = shell.command(&format!("stat \"{path}\""));
        if printed.iter().any(|line| line.starts_with("cZxid")) == there {
            return vec![if there { "there" } else { "gone" }.to_owned()];
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    vec!["waited in vain".to_owned()]
}

/// `sync` is answered in the thread that prints events, so that those that came before it are printed before it.
fn events(shell: &mut Shell, words: &[Option<&str>]) -> Vec<String> {
    if !words.contains(&Some("local")) {
        shell.command("sync /");
    }
    let mut events = std::mem::take(&mut shell.events);
    if words.contains(&Some("sorted")) {
        events.sort();
    }
    if events.is_empty() { vec!["none".to_owned()] } else { events }
}
