//! `lockstep` as a process, which ends with the test that started it, whatever becomes of that.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take for what it should do at once, on a busy host.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The program under test.
pub const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// A running process; killed when this is dropped.
pub struct Process {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Process {
    /// Starts `lockstep` with these arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(LOCKSTEP);
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts a command, its output kept and its input at its end.
    pub fn spawn(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        Self::spawn_as_is(command)
    }

    /// Starts a command whose standard error goes to a file, to be read while it runs.
    pub fn spawn_into(mut command: Command, stderr: &Path) -> Self {
        command.stderr(std::fs::File::create(stderr).expect("a file"));
        Self::spawn_as_is(command)
    }

    /// Starts a command as it is, but for its standard output, which is kept.
    pub fn spawn_as_is(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.env_remove("LOCKSTEP_LOG").env_remove("RUST_BACKTRACE");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        Process { child, stdout, stderr }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the process is there");
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Output {
        let status = until("the process to end", || self.ended());
        let text = |reader: &mut Option<JoinHandle<Vec<u8>>>| {
            reader.take().map_or_else(Vec::new, |reader| reader.join().expect("a reader does not panic"))
        };
        Output { status, stdout: text(&mut self.stdout), stderr: text(&mut self.stderr) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Option<JoinHandle<Vec<u8>>> {
    let mut stream = stream?;
    Some(thread::spawn(move || {
        let mut bytes = Vec::new();
        // What cannot be read any more is missed by whoever looks for it.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }))
}

/// Runs `lockstep` with these arguments to its end.
pub fn lockstep(arguments: &[&str]) -> Output {
    Process::start(arguments).wait()
}

/// Waits until `ready` has an answer; fails loudly if it never does.
pub fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(began.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What a process wrote, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
