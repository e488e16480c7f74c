//! The servers of an ensemble as processes of this test: ports that stay theirs, signals, and an end with the test.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt::ReuseAddr,
};
use nix::unistd::Pid;

/// A TCP port of the loopback interface that nobody else gets while this lives: bound, but not listened at, so that a server that
/// sets `SO_REUSEADDR` (they all do) can.
pub struct Port {
    /// Its number.
    pub number: u16,
    _bound: OwnedFd,
}

impl Port {
    /// A free one.
    pub fn reserve() -> Port {
        let bound = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        setsockopt(&bound, ReuseAddr, &true).expect("its option");
        bind(bound.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))
            .expect("a port");
        let number = getsockname::<SockaddrIn>(bound.as_raw_fd()).expect("its number").port();
        Port { number, _bound: bound }
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

/// One server: its command, and its process while it runs.
pub struct Member {
    command: Box<dyn Fn() -> Command>,
    output: PathBuf,
    child: Option<Child>,
}

impl Member {
    /// Starts the server that `command` makes. What it says goes to the file `output`.
    pub fn start(output: &Path, command: impl Fn() -> Command + 'static) -> Member {
        let mut member = Member { command: Box::new(command), output: output.into(), child: None };
        member.restart();
        member
    }

    /// Starts it again, after it was killed.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let output = File::options().create(true).append(true).open(&self.output).expect("a file for its output");
        let mut command = (self.command)();
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a handle")).stderr(output);
        // SAFETY: between fork and exec, one system call that touches no memory of the parent's. (The thread that starts a server lives
        // as long as the test.)
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")));
    }

    /// Whether it runs (or is stopped).
    pub fn is_there(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("and waited for");
        }
    }

    /// SIGKILL, without waiting.
    pub fn kill_at_once(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// SIGSTOP: it is there, and says nothing.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), signal).expect("a child can be signalled");
    }

    /// Fails if it has ended by itself.
    #[track_caller]
    pub fn must_run(&mut self) {
        if let Some(child) = &mut self.child {
            let ended = child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "a server has ended: {ended:?}\n{}", self.said());
        }
    }

    /// What it said, the end of it.
    pub fn said(&self) -> String {
        let said = std::fs::read(&self.output).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(3000)..]).into_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- the server said (the end of it):\n{}", self.said());
        }
    }
}
