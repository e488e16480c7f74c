//! Promise: what `lockstep demo --net` shows is so, and its exit status says whether it is. The table has requests before and
//! after the kill, no connection in error, nothing lost and nothing doubled; and nothing of its networks is left behind.

use std::process::{Command, Stdio};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// The last `count` figures of the line that begins with `label`.
#[track_caller]
fn figures(shown: &str, label: &str, count: usize) -> Vec<f64> {
    let line =
        shown.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_else(|| panic!("no `{label}`: {shown}"));
    let figures: Vec<f64> = line.split_whitespace().filter_map(|cell| cell.parse().ok()).collect();
    assert_eq!(figures.len(), count, "{line}");
    figures
}

#[test]
fn clients_keep_their_connections_when_the_host_is_killed() {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
    let demo = Command::new(LOCKSTEP)
        .args(["demo", "--net", "--seconds", "1", "--clients", "6"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("lockstep can be started");
    let id = demo.id();
    let output = demo.wait_with_output().expect("it can be waited for");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {shown}{}", output.status, String::from_utf8_lossy(&output.stderr));
    let answered = figures(&shown, "requests answered", 3);
    assert!(answered[0] > 0.0 && answered[2] > 0.0, "{shown}");
    assert_eq!(figures(&shown, "time, s", 3)[0].floor(), 1.0, "{shown}");
    for promise in ["connections reset, closed or in error", "acknowledged increments lost", "increments applied twice"]
    {
        assert_eq!(figures(&shown, promise, 1), [0.0], "{shown}");
    }
    for state in ["A: primary, protected, generation 1", "B: backup, following, generation 1", "B: unprotected"] {
        assert!(shown.contains(state), "{state}: {shown}");
    }
    let left = std::fs::read_dir("/run/netns").expect("there is a directory of namespaces");
    let left: Vec<_> =
        left.flatten().filter(|name| name.file_name().to_string_lossy().starts_with(&format!("ls{id}-"))).collect();
    assert!(left.is_empty(), "{left:?}");
}
