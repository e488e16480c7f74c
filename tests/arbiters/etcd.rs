//! What is promised of registers in an etcd cluster (Debian's).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arbiters::{Place, VM, claim};
use crate::common::etcd::Etcd;
use crate::common::members::Member;
use crate::quorum::{self, Quorum};
use lockstep::arbiter::{ArbiterError, Verdict};

/// One cluster at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A cluster of its own.
struct Cluster {
    servers: Etcd,
    /// Where its registers are.
    root: String,
    _turn: MutexGuard<'static, ()>,
}

const ROOT: &str = "/some/where";

impl Cluster {
    fn new() -> Self {
        Self::of(3)
    }

    fn of(count: usize) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Cluster { servers: Etcd::start(count), root: ROOT.into(), _turn: turn }
    }

    /// Written out here once more: this is where users look.
    fn key(&self, vm: &str) -> String {
        let name = match vm {
            "a vm, 100 %" => "a%20vm,%20100%20%25",
            plain => plain,
        };
        format!("{}/vms/{name}/generation", self.root)
    }
}

impl Place for Cluster {
    fn uri(&self) -> String {
        self.servers.uri(&self.root)
    }

    fn raw(&self, vm: &str) -> Option<Vec<u8>> {
        self.servers.get(&self.key(vm))
    }

    fn put_raw(&self, vm: &str, bytes: &[u8]) {
        self.servers.put(&self.key(vm), bytes);
    }
}

impl Quorum for Cluster {
    fn move_to(&mut self, root: String) {
        self.root = root;
    }

    fn leader(&self) -> usize {
        self.servers.leader()
    }

    fn follower(&self) -> usize {
        self.servers.follower()
    }

    fn address(&self, index: usize) -> String {
        self.servers.address(index)
    }

    fn member(&mut self, index: usize) -> &mut Member {
        self.servers.member(index)
    }

    fn uri_beginning_with(&self, first: usize) -> String {
        self.servers.uri_beginning_with(first, &self.root)
    }

    fn serves(&mut self) {
        self.servers.serves();
    }
}

#[test]
fn registers_are_what_an_arbiter_promises() {
    quorum::registers_are_what_an_arbiter_promises(Cluster::new());
}

#[test]
fn one_dead_or_silent_follower_keeps_no_answer_away() {
    quorum::one_dead_or_silent_follower_keeps_no_answer_away(Cluster::new());
}

#[test]
fn a_dead_or_silent_leader_costs_an_election() {
    quorum::a_dead_or_silent_leader_costs_an_election(Cluster::new());
}

#[test]
fn without_a_majority_there_is_no_answer_and_nothing_is_won() {
    quorum::without_a_majority_there_is_no_answer_and_nothing_is_won(Cluster::new());
}

#[test]
fn servers_that_are_not_there_are_named_and_found_when_they_come() {
    quorum::servers_that_are_not_there_are_named_and_found_when_they_come(Cluster::of(1));
}

#[test]
fn whoever_lacks_the_password_is_told_so_and_changes_nothing() {
    let cluster = Cluster::of(1);
    let servers = &cluster.servers;
    // A cluster that asks for no password takes whoever has one, and goes on with it when it does ask.
    let open = |credentials: &str| crate::arbiters::open(&servers.uri_as(credentials, ROOT));
    let owner = open("lock:s%40fe@");
    assert_eq!(owner.compare_and_set(VM, None, &claim(1, 1)).unwrap(), Verdict::Won);
    for command in [
        "user add root:r00t",
        "user grant-role root root",
        "user add lock:s@fe",
        "role add lockstep",
        "role grant-permission lockstep --prefix=true readwrite /some/where/",
        "user grant-role lock lockstep",
        "user add other:other",
        "auth enable",
    ] {
        servers.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    assert_eq!(owner.compare_and_set(VM, Some(1), &claim(2, 1)).unwrap(), Verdict::Won);
    assert!(!owner.location().contains("fe"), "the password is shown: {}", owner.location());
    for stranger in [open(""), open("lock:guess@"), open("other:other@")] {
        for error in [stranger.read(VM).err(), stranger.compare_and_set(VM, Some(2), &claim(3, 2)).err()] {
            assert!(matches!(error, Some(ArbiterError::Denied { .. })), "{error:?}");
        }
    }
    assert_eq!(open("lock:s%40fe@").read(VM).unwrap(), Some(claim(2, 1)));
    // A change of who may do what makes the tokens old; the owner gets another one by itself.
    servers.ctl(&["--user", "root:r00t", "user", "add", "third:third"]);
    assert_eq!(owner.read(VM).unwrap(), Some(claim(2, 1)));
    servers.ctl(&["--user", "root:r00t", "auth", "disable"]);
    assert_eq!(owner.compare_and_set(VM, Some(2), &claim(3, 1)).unwrap(), Verdict::Won);
}
