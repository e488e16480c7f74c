//! Programs of other people that run in a site: `redis-benchmark`, `ping`, `redis-server`.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use crate::common::eventually;

/// A running program; killed when this is dropped.
pub struct Tool {
    what: String,
    child: Child,
    output: Option<JoinHandle<String>>,
}

impl Tool {
    /// Starts `words` in a namespace.
    #[track_caller]
    pub fn start(namespace: &str, words: &[&str]) -> Tool {
        // Both outputs in one, in their order. `ip` becomes the shell, and that the program.
        let command = "exec \"$@\" 2>&1";
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace, "sh", "-c", command, "sh"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`ip` can be started");
        let mut stdout = child.stdout.take().expect("a pipe");
        let output = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What cannot be read any more is missed by whoever looks for it.
            let _ = stdout.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Tool { what: words.join(" "), child, output: Some(output) }
    }

    /// Whether it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Its output, once it has ended by itself without complaint.
    #[track_caller]
    pub fn succeeds(mut self) -> String {
        let status = eventually(&format!("`{}` ends", self.what), || self.status());
        self.ended(status)
    }

    /// The same, however long it takes.
    #[track_caller]
    pub fn succeeds_at_last(mut self) -> String {
        let status = self.child.wait().expect("our own child");
        self.ended(status)
    }

    #[track_caller]
    fn ended(&mut self, status: ExitStatus) -> String {
        let output = self.output.take().expect("taken once").join().expect("reading does not panic");
        assert!(status.success(), "`{}`: {status}\n{output}", self.what);
        output
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
