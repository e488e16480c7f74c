//! Promise: `lockstep console`, `status` and `stop` do at a shell and at a terminal what they say, follow the
//! guest to the other host, leave the terminal as it was, and say in one line what is wrong.

#[path = "console/cluster.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
mod cluster;

use cluster::{Guest, Host, Log, Place, Random, Vcpu};
use lockstep::console::hub::Protection;
use lockstep::log::frame::VERSION;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A process that is being forked holds every socket of this one for a moment, also those of a host that is
/// being killed; so the tests take turns.
fn my_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lockstep(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end without input.
fn run(arguments: &[&str]) -> Output {
    lockstep(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A process that a failing test does not leave behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads until the bytes read end with `end`.
fn read_to(from: &mut impl Read, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(end) {
        assert!(matches!(from.read(&mut byte), Ok(1)), "no {:?} in {:?}", text(end), text(&bytes));
        bytes.push(byte[0]);
    }
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A pair with the scripted guest on the first of two hosts.
struct Pair {
    live: Host,
    backup: Host,
    vcpu: Vcpu,
    log: Arc<Mutex<Log>>,
    generation: u64,
}

impl Pair {
    fn start() -> Pair {
        let log = Arc::new(Mutex::new(Log::default()));
        let (live, backup) = (Host::start("a"), Host::start("b"));
        let vcpu = Vcpu::go_live(&live, &log, 1, 1);
        Pair { live, backup, vcpu, log, generation: 1 }
    }

    fn addresses(&self) -> String {
        format!("{},{}", self.live.address(), self.backup.address())
    }

    fn fail_over(self) -> Pair {
        self.vcpu.kill();
        let place = self.live.place.clone();
        drop(self.live);
        self.log.lock().unwrap().cut(&mut Random::new(self.generation));
        let generation = self.generation + 1;
        let vcpu = Vcpu::go_live(&self.backup, &self.log, generation, generation);
        Pair { live: self.backup, backup: Host::start_at("c", place), vcpu, log: self.log, generation }
    }
}

#[test]
fn a_pipe_carries_everything_once_over_failovers_and_ends_with_the_guest() {
    let _turn = my_turn();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut pair = Pair::start();
    let (transcript, events) = (path("transcript"), path("events"));
    let mut command = lockstep(&["console", &pair.addresses(), "--transcript", &transcript, "--events", &events]);
    let mut child = Running(command.spawn().unwrap());
    let (mut stdin, mut stdout) = (child.0.stdin.take().unwrap(), child.0.stdout.take().unwrap());
    let mut typed = Vec::new();
    let mut shown = Vec::new();
    for round in 0..5 {
        let line = format!("line {round} is typed before host {round} dies\n");
        stdin.write_all(line.as_bytes()).unwrap();
        typed.extend_from_slice(line.as_bytes());
        // It dies while some of the line is still on its way.
        let before = shown.len();
        shown.resize(Guest::transcript(&typed[..typed.len() - 20]).len(), 0);
        stdout.read_exact(&mut shown[before..]).unwrap();
        pair = pair.fail_over();
    }
    stdin.write_all(&[Guest::EOT]).unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    shown.extend(rest);
    let expected = Guest::transcript(&typed);
    assert_eq!(text(&shown), text(&expected));
    assert_eq!(std::fs::read(transcript).unwrap(), expected);
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("[lockstep: moved to host b, generation 2, "), "{said}");
    assert!(said.contains("[lockstep: the guest ended with code 7]"), "{said}");
    assert_eq!(child.0.wait().unwrap().code(), Some(Guest::CODE.into()));

    let events = std::fs::read_to_string(events).unwrap();
    let events: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut position = 0;
    for event in events.iter().filter(|event| event["event"] == "output") {
        assert_eq!(event["position"], position);
        position += event["length"].as_u64().unwrap();
    }
    assert_eq!(position, expected.len() as u64);
    let attached: Vec<_> = events.iter().filter(|event| event["event"] == "attached").collect();
    assert_eq!(attached.len(), 6);
    assert!(attached[0]["away_us"].is_null() && attached[1]["away_us"].is_u64());
    assert!(events.windows(2).all(|pair| pair[0]["us"].as_u64() <= pair[1]["us"].as_u64()));
    pair.vcpu.kill();
}

#[test]
fn a_pipe_may_leave_at_the_end_of_its_input_when_that_is_safe() {
    let _turn = my_turn();
    let pair = Pair::start();
    let mut child = lockstep(&["console", &pair.addresses(), "--eof-quit", "--quiet"]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"all of this").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let in_log = |log: &Log| log.items.iter().map(cluster::Item::typed).collect::<Vec<_>>().concat();
    assert_eq!(text(&in_log(&pair.log.lock().unwrap())), "all of this");
    pair.vcpu.kill();
}

/// A console at a terminal.
struct AtTerminal {
    child: Running,
    screen: File,
    terminal: std::os::fd::OwnedFd,
    before: Termios,
}

impl AtTerminal {
    fn open(addresses: &str) -> AtTerminal {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = lockstep(&["console", addresses]).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let child = Running(child);
        let mut screen = File::from(master);
        read_to(&mut screen, b"Ctrl-] ? for help]\r\r\n");
        let terminal = slave;
        assert!(tcgetattr(&terminal).unwrap() != before, "raw mode");
        AtTerminal { child, screen, terminal, before }
    }

    fn keys(&mut self, keys: &[u8]) {
        self.screen.write_all(keys).unwrap();
    }

    fn shows(&mut self, end: &str) -> String {
        text(&read_to(&mut self.screen, end.as_bytes()))
    }

    /// The exit code; the terminal must be as it was.
    fn left(mut self) -> Option<i32> {
        let code = self.child.0.wait().unwrap().code();
        assert!(tcgetattr(&self.terminal).unwrap() == self.before, "the terminal is as it was");
        code
    }
}

#[test]
fn at_a_terminal_the_escape_key_works_and_every_way_out_restores_it() {
    let _turn = my_turn();
    let mut pair = Pair::start();
    let addresses = pair.addresses();
    let mut console = AtTerminal::open(&addresses);
    console.keys(b"ab\x03\x1ds");
    console.shows("[lockstep: vm on a, backup, ");
    console.keys(b"\x1d?");
    console.shows("[lockstep: keys: ");
    pair = pair.fail_over();
    console.shows("[lockstep: moved to host b, generation 2, ");
    console.keys(b"cd\x1d\x1d");
    console.shows("cd\x1d");
    console.keys(b"\x1dq");
    assert_eq!(console.left(), Some(0));

    let console = AtTerminal::open(&addresses);
    kill(Pid::from_raw(console.child.0.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(console.left(), Some(128 + Signal::SIGTERM as i32));

    let mut console = AtTerminal::open(&addresses);
    console.keys(&[Guest::EOT]);
    console.shows("[lockstep: the guest ended with code 7]");
    assert_eq!(console.left(), Some(Guest::CODE.into()));
    pair.vcpu.kill();
}

#[test]
fn status_and_stop_ask_a_host() {
    let _turn = my_turn();
    let host = Host::start("a");
    host.hub.go_live(1, Protection::Unprotected);
    host.hub.output(0, b"four");
    let table = run(&["status", &host.address()]);
    assert!(text(&table.stdout).contains("console        0 clients, 4 of 4 bytes out\n"), "{}", text(&table.stdout));
    let json = run(&["status", "--json", &host.address()]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["vm"], &json["console"]["produced_bytes"]), (&"vm".into(), &4.into()));
    let stop = run(&["stop", &host.address()]);
    assert_eq!((stop.status.code(), text(&stop.stdout)), (Some(1), String::new()));
    assert!(text(&stop.stderr).ends_with("this host does not run the machine; ask the other host\n"));
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let _turn = my_turn();
    // A port on which nothing listens, one that is something else, and one of another version.
    let place = Place::new();
    let nobody = place.to_string();
    let answers = |bytes: &'static [u8]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(bytes);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        address
    };
    let ssh = answers(b"SSH-2.0-OpenSSH_9.2\r\n");
    let version = answers(b"lkst\x09\x00\x21\x00aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    for (address, expected) in [
        (&nobody, "cannot connect (Connection refused (os error 111)): is lockstep running there"),
        (&ssh, "what answers there is not lockstep's console port"),
        (&version, &format!("format version 9; this program reads and writes version {VERSION}: use the same version")),
    ] {
        for arguments in [vec!["console", address, "--wait", "0"], vec!["status", address], vec!["stop", address]] {
            let output = run(&arguments);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(said.starts_with(&format!("lockstep: {address}: {expected}")), "{arguments:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    let output = run(&["console", "nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("write it as HOST:PORT, for example 127.0.0.1:7701"));
}
