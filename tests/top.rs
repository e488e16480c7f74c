//! Promise: `lockstep top` shows a cluster on any terminal, follows what happens, and leaves the terminal as it was, however it ends.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use common::eventually;
use common::zookeeper::{Kind, ZooKeeper};
use lockstep::arbiter::Claim;
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

/// `lockstep top` on a terminal of 80 columns and 24 lines.
struct Top {
    child: Child,
    keys: File,
    /// Kept open, so that the terminal stays when the program has ended.
    terminal: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Top {
    fn start(uri: &str) -> Top {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let (near, terminal) = (File::from(pty.master), File::from(pty.slave));
        let end = || terminal.try_clone().expect("a handle");
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.args(["top", "--every", "100", "--arbiter", uri]).env("TERM", "xterm-256color");
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec, two system calls that touch no memory of the parent's.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let child = command.spawn().expect("it starts");
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut screen, shown_there) = (near.try_clone().expect("a handle"), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                shown_there.lock().unwrap().extend(&buffer[..length]);
            }
        });
        Top { child, keys: near, terminal, shown }
    }

    /// What came to the terminal so far.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn shows(&self, what: &str) {
        eventually(&format!("`{what}` on the screen"), || self.text().contains(what).then_some(()));
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("a terminal takes keys");
    }

    /// Whether the terminal collects lines and shows what is typed, as a shell wants it.
    fn is_as_it_was(&self) -> bool {
        let flags = tcgetattr(self.terminal.as_fd()).expect("a terminal").local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        eventually("it ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- the screen:\n{:?}", self.text());
        }
    }
}

/// Sequences of terminals: the screen that is drawn on comes, and goes.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

#[test]
fn it_follows_a_cluster_of_debians_and_leaves_the_terminal_as_it_was() {
    follows_and_leaves_the_terminal_as_it_was(Kind::Debian);
}

#[test]
fn it_follows_a_cluster_of_our_own_and_leaves_the_terminal_as_it_was() {
    follows_and_leaves_the_terminal_as_it_was(Kind::Lockstep);
}

fn follows_and_leaves_the_terminal_as_it_was(kind: Kind) {
    let mut servers = ZooKeeper::start(kind, 1);
    let uri = servers.uri("");
    let (arbiter, _) = lockstep::arbiter::open(&uri.parse().unwrap()).unwrap();
    let claim = |host: &str| Claim { generation: 1, host: 1, host_name: host.into(), shared_with: None };
    arbiter.compare_and_set("first-vm", None, &claim("alpha")).unwrap();
    for end in ["q", "Ctrl-C", "Esc", "SIGTERM", "SIGINT", "SIGHUP"] {
        let mut top = Top::start(&uri);
        assert!(top.is_as_it_was(), "{end}: a new terminal");
        top.shows("first-vm");
        top.shows("- (last alph");
        assert!(top.text().starts_with(ENTER) && !top.is_as_it_was(), "{end}: it is not drawn on");
        let pid = Pid::from_raw(top.child.id() as i32);
        match end {
            "q" => top.press(b"jks\tq"),
            "Ctrl-C" => top.press(b"\x03"),
            "Esc" => top.press(b"\x1b"),
            "SIGTERM" => kill(pid, Signal::SIGTERM).unwrap(),
            "SIGINT" => kill(pid, Signal::SIGINT).unwrap(),
            _ => kill(pid, Signal::SIGHUP).unwrap(),
        }
        assert_eq!(top.ends().code(), Some(0), "{end}");
        top.shows(LEAVE);
        assert!(top.is_as_it_was(), "{end}: the terminal is not as it was");
    }
    let mut top = Top::start(&uri);
    top.shows("first-vm");
    arbiter.compare_and_set("second-vm", None, &claim("beta")).unwrap();
    top.shows("second-vm");
    servers.member(0).kill();
    top.shows("what follows may be old");
    servers.member(0).restart();
    servers.serves();
    let again =
        eventually("the arbiter answers again", || arbiter.compare_and_set("third-vm", None, &claim("gamma")).ok());
    println!("{again:?}");
    top.shows("third-vm");
    top.press(b"q");
    assert_eq!(top.ends().code(), Some(0));
}

#[test]
fn a_cluster_that_cannot_be_watched_is_an_error_and_no_screen() {
    let mut top = Top::start("zk://127.0.0.1:1");
    assert_eq!(top.ends().code(), Some(1));
    top.shows("lockstep: no answer from zk://127.0.0.1:1/lockstep: 127.0.0.1:1: Connection refused");
    assert!(!top.text().contains(ENTER) && top.is_as_it_was());
}
