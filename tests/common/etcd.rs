//! A cluster of Debian's `etcd` on loopback, started by the test and ended with it: unique ports, its data in a directory of the test's.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::eventually;
use super::members::{Member, Port};

/// A cluster.
pub struct Etcd {
    members: Vec<Member>,
    clients: Vec<Port>,
    _between: Vec<Port>,
    _directory: TempDir,
}

impl Etcd {
    /// Starts a cluster of `count` servers and waits until it serves.
    #[track_caller]
    pub fn start(count: usize) -> Etcd {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let clients: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let between: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let url = |port: &Port| format!("http://{}", port.address());
        let all: Vec<String> =
            between.iter().enumerate().map(|(index, port)| format!("m{index}={}", url(port))).collect();
        let all = all.join(",");
        let member = |index: usize| {
            let data = directory.path().join(format!("data{index}"));
            let arguments = [
                "--name".into(),
                format!("m{index}"),
                "--data-dir".into(),
                data.display().to_string(),
                "--listen-client-urls".into(),
                url(&clients[index]),
                "--advertise-client-urls".into(),
                url(&clients[index]),
                "--listen-peer-urls".into(),
                url(&between[index]),
                "--initial-advertise-peer-urls".into(),
                url(&between[index]),
                "--initial-cluster".into(),
                all.clone(),
                "--initial-cluster-token".into(),
                format!("test-{}", clients[0].number),
                "--heartbeat-interval".into(),
                "50".into(),
                "--election-timeout".into(),
                "500".into(),
                "--log-level".into(),
                "warn".into(),
                "--logger".into(),
                "zap".into(),
            ];
            Member::start(&directory.path().join(format!("server{index}.out")), move || {
                let mut command = Command::new("etcd");
                command.args(&arguments);
                command
            })
        };
        let members = (0..count).map(member).collect();
        let mut cluster = Etcd { members, clients, _between: between, _directory: directory };
        cluster.serves();
        cluster
    }

    /// Waits until all its servers that run serve.
    #[track_caller]
    pub fn serves(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].is_there() {
                eventually("a server serves", || {
                    self.members[index].must_run();
                    self.ctl_at(index, &["endpoint", "health"]).status.success().then_some(())
                });
            }
        }
    }

    /// The arbiter in it, as `--arbiter` takes it, under `path`.
    pub fn uri(&self, path: &str) -> String {
        self.uri_as("", path)
    }

    /// The same, for whoever has these credentials (`user:password@`).
    pub fn uri_as(&self, credentials: &str, path: &str) -> String {
        let servers: Vec<String> = self.clients.iter().map(Port::address).collect();
        format!("etcd://{credentials}{}{path}", servers.join(","))
    }

    /// The same arbiter, whose server `first` is named first, and so asked first.
    pub fn uri_beginning_with(&self, first: usize, path: &str) -> String {
        let mut addresses: Vec<String> = self.clients.iter().map(Port::address).collect();
        addresses.rotate_left(first);
        format!("etcd://{}{path}", addresses.join(","))
    }

    /// `HOST:PORT` of one of its servers.
    pub fn address(&self, index: usize) -> String {
        self.clients[index].address()
    }

    /// How many servers there are.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// One of the servers.
    pub fn member(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// Runs `etcdctl`, etcd's own client, against one server.
    pub fn ctl_at(&self, index: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.address(index)]).args(arguments);
        command
            .output()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}: install Debian's `etcd-client`"))
    }

    /// Runs it against the first server that runs, and must succeed; gives what it says.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let index = self.members.iter().position(Member::is_there).expect("a server that runs");
        let output = self.ctl_at(index, arguments);
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What a key holds, by `etcdctl`.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let index = self.members.iter().position(Member::is_there).expect("a server that runs");
        let output = self.ctl_at(index, &["get", "--print-value-only", key]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // It ends what it shows with a line feed of its own, and shows nothing of what is not there.
        output.stdout.strip_suffix(b"\n").map(<[u8]>::to_vec)
    }

    /// Writes a key, by `etcdctl`.
    pub fn put(&self, key: &str, value: &[u8]) {
        let index = self.members.iter().position(Member::is_there).expect("a server that runs");
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.address(index), "put", key]);
        if value.is_empty() {
            // What comes from a pipe must not be empty.
            command.arg("");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("etcdctl starts");
        let written = child.stdin.take().expect("a pipe").write_all(value);
        assert!(child.wait().expect("it ends").success() && written.is_ok(), "etcdctl put {key}");
    }

    /// The server that leads.
    #[track_caller]
    pub fn leader(&self) -> usize {
        let leads = |&index: &usize| {
            let said = self.ctl_at(index, &["endpoint", "status", "-w", "fields"]);
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let field = |name: &str| {
                said.lines().find_map(|line| line.strip_prefix(&format!("\"{name}\" : "))).map(str::to_owned)
            };
            let leader = field("Leader");
            leader.is_some() && leader.as_deref() != Some("0") && leader == field("MemberID")
        };
        eventually("somebody leads", || (0..self.count()).filter(|&index| self.members[index].is_there()).find(leads))
    }

    /// A server that follows.
    #[track_caller]
    pub fn follower(&self) -> usize {
        let leader = self.leader();
        (0..self.count()).find(|&index| index != leader && self.members[index].is_there()).expect("a follower")
    }
}
