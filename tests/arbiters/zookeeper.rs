//! What is promised of registers in a ZooKeeper ensemble, whatever kind of servers it has.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arbiters::{self, Place, VM, claim};
use crate::common::members::Member;
use crate::common::valve::Valve;
use crate::common::zookeeper::{Kind, ZooKeeper};
use crate::quorum::Quorum;
use lockstep::arbiter::{ArbiterError, Verdict};
use zookeeper_client as zk;

/// One ensemble of a kind at a time: three Java machines are enough for two processors.
static TURNS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];

fn turn(kind: Kind) -> MutexGuard<'static, ()> {
    TURNS[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
}

/// An ensemble of its own.
pub struct Ensemble {
    servers: ZooKeeper,
    /// Where its registers are.
    root: String,
    runtime: tokio::runtime::Handle,
    client: zk::Client,
    _turn: MutexGuard<'static, ()>,
}

/// Where the registers of these tests are; it is not there at first.
pub const ROOT: &str = "/some/where";

impl Ensemble {
    /// One of `count` servers.
    pub fn of(kind: Kind, count: usize) -> Self {
        let turn = turn(kind);
        Self::with(ZooKeeper::start(kind, count), turn)
    }

    /// One of three servers of Debian's, of which the first can be kept from hearing the others.
    pub fn with_a_straggler() -> (Self, Vec<Valve>) {
        let turn = turn(Kind::Debian);
        let (servers, valves) = ZooKeeper::start_with_a_straggler(Kind::Debian, 3);
        (Self::with(servers, turn), valves)
    }

    fn with(servers: ZooKeeper, turn: MutexGuard<'static, ()>) -> Self {
        let runtime = crate::common::zookeeper::background();
        let client = runtime.block_on(zk::Client::connect(&servers.addresses())).unwrap();
        Ensemble { servers, root: ROOT.into(), runtime, client, _turn: turn }
    }

    /// Written out here once more: this is where users look.
    fn path(&self, vm: &str) -> String {
        let name = match vm {
            "a vm, 100 %" => "a%20vm,%20100%20%25",
            plain => plain,
        };
        format!("{}/vms/{name}/generation", self.root)
    }
}

impl Place for Ensemble {
    fn uri(&self) -> String {
        self.servers.uri(&self.root)
    }

    fn raw(&self, vm: &str) -> Option<Vec<u8>> {
        self.runtime.block_on(async {
            self.client.sync(&self.path(vm)).await.unwrap();
            match self.client.get_data(&self.path(vm)).await {
                Ok((bytes, _)) => Some(bytes),
                Err(zk::Error::NoNode) => None,
                Err(error) => panic!("{error}"),
            }
        })
    }

    fn put_raw(&self, vm: &str, bytes: &[u8]) {
        self.runtime.block_on(self.client.set_data(&self.path(vm), bytes, None)).unwrap();
    }
}

impl Quorum for Ensemble {
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

/// What a server says that has missed the newest writes is not what the register holds: neither is a winner told that it has lost, nor
/// somebody who was beaten that it has won.
pub fn a_server_that_lags_behind_misleads_nobody() {
    let (ensemble, valves) = Ensemble::with_a_straggler();
    let arbiter = arbiters::open(&format!("zk://{}{ROOT}", ensemble.servers.address(1)));
    // A host that knows the straggler only.
    let alone = arbiters::open(&format!("zk://{}{ROOT}", ensemble.servers.address(0)));
    let won = |generation: u64, host| {
        let expected = (generation > 1).then(|| generation - 1);
        assert_eq!(arbiter.compare_and_set(VM, expected, &claim(generation, host)).unwrap(), Verdict::Won);
    };
    won(1, 1);
    for round in 0..2u64 {
        let known = 2 * round + 1;
        assert_eq!(alone.read(VM).unwrap(), Some(claim(known, 1)));
        let straggler = ensemble.runtime.block_on(zk::Client::connect(&ensemble.servers.address(0))).unwrap();
        valves.iter().for_each(|valve| valve.shut(true));
        won(known + 1, 2);
        won(known + 2, 1);
        let (old, _) = ensemble.runtime.block_on(straggler.get_data(&ensemble.path(VM))).unwrap();
        let old = String::from_utf8(old).unwrap();
        assert!(old.contains(&format!("generation {known}\n")), "it does not lag: {old}");
        let newest = claim(known + 2, 1);
        let before = (known > 1).then(|| known - 1);
        // What has happened since, and what is long over.
        let again = || alone.compare_and_set(VM, Some(known + 1), &newest);
        let over = || alone.compare_and_set(VM, before, &claim(known, 1));
        let next = || alone.compare_and_set(VM, Some(known), &claim(known + 1, 3));
        for verdict in [again(), over(), next()] {
            let error = verdict.expect_err("a verdict of a server that lags");
            assert!(arbiters::is_no_answer(&error), "{error}");
        }
        assert!(arbiters::is_no_answer(&alone.read(VM).expect_err("the word of a server that lags")));
        valves.iter().for_each(|valve| valve.shut(false));
        assert_eq!(again().unwrap(), Verdict::Won, "the winner was told that it has lost");
        assert_eq!(
            over().unwrap(),
            Verdict::Lost(Some(newest.clone())),
            "won what the register does not hold any more"
        );
        assert_eq!(next().unwrap(), Verdict::Lost(Some(newest.clone())));
        assert_eq!(alone.read(VM).unwrap(), Some(newest));
    }
}

pub fn whoever_lacks_the_password_is_told_so_and_changes_nothing(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let open =
        |credentials: &str| arbiters::open(&format!("zk://{credentials}{}/secret", ensemble.servers.addresses()));
    let owner = open("lock:s%40fe@");
    assert_eq!(owner.compare_and_set(VM, None, &claim(1, 1)).unwrap(), Verdict::Won);
    assert!(!owner.location().contains("fe"), "the password is shown: {}", owner.location());
    for stranger in [open(""), open("lock:guess@")] {
        for error in [stranger.read(VM).err(), stranger.compare_and_set(VM, Some(1), &claim(2, 2)).err()] {
            assert!(matches!(error, Some(ArbiterError::Denied { .. })), "{error:?}");
        }
        let other = stranger.compare_and_set("other", None, &claim(1, 2));
        assert!(matches!(other, Err(ArbiterError::Denied { .. })), "{other:?}");
    }
    assert_eq!(open("lock:s%40fe@").read(VM).unwrap(), Some(claim(1, 1)));
    // Every node on the way belongs to whoever has made it.
    for path in ["/secret", "/secret/vms", "/secret/vms/a%20vm,%20100%20%25"] {
        let refused = ensemble.runtime.block_on(ensemble.client.get_acl(path));
        assert_eq!(refused.unwrap_err(), zk::Error::NoAuth, "{path}");
    }
}

/// Holds a kind of servers to all promises.
macro_rules! promises {
    ($kind:expr) => {
        #[test]
        fn registers_are_what_an_arbiter_promises() {
            quorum::registers_are_what_an_arbiter_promises(Ensemble::of($kind, 3));
        }

        #[test]
        fn one_dead_or_silent_follower_keeps_no_answer_away() {
            quorum::one_dead_or_silent_follower_keeps_no_answer_away(Ensemble::of($kind, 3));
        }

        #[test]
        fn a_dead_or_silent_leader_costs_an_election() {
            quorum::a_dead_or_silent_leader_costs_an_election(Ensemble::of($kind, 3));
        }

        #[test]
        fn without_a_majority_there_is_no_answer_and_nothing_is_won() {
            quorum::without_a_majority_there_is_no_answer_and_nothing_is_won(Ensemble::of($kind, 3));
        }

        #[test]
        fn whoever_lacks_the_password_is_told_so_and_changes_nothing() {
            zookeeper::whoever_lacks_the_password_is_told_so_and_changes_nothing($kind);
        }

        #[test]
        fn servers_that_are_not_there_are_named_and_found_when_they_come() {
            quorum::servers_that_are_not_there_are_named_and_found_when_they_come(Ensemble::of($kind, 1));
        }
    };
}
pub(crate) use promises;
