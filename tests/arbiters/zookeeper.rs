//! What is promised of registers in a ZooKeeper ensemble, whatever kind of servers it has.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arbiters::{self, Place, Uri, VM, claim, generation, goes_on};
use crate::common::eventually;
use crate::common::valve::Valve;
use crate::common::zookeeper::{Kind, ZooKeeper};
use lockstep::arbiter::{ArbiterError, Verdict};
use zookeeper_client as zk;

/// One ensemble at a time: three Java machines are enough for two processors.
static TURN: Mutex<()> = Mutex::new(());

/// An ensemble of its own.
pub struct Ensemble {
    servers: ZooKeeper,
    runtime: tokio::runtime::Handle,
    client: zk::Client,
    _turn: MutexGuard<'static, ()>,
}

/// Where the registers of these tests are; it is not there at first.
pub const ROOT: &str = "/some/where";

impl Ensemble {
    /// One of `count` servers.
    pub fn of(kind: Kind, count: usize) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self::with(ZooKeeper::start(kind, count), turn)
    }

    /// One of three servers of Debian's, of which the first can be kept from hearing the others.
    pub fn with_a_straggler() -> (Self, Vec<Valve>) {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (servers, valves) = ZooKeeper::start_with_a_straggler(Kind::Debian, 3);
        (Self::with(servers, turn), valves)
    }

    fn with(servers: ZooKeeper, turn: MutexGuard<'static, ()>) -> Self {
        let runtime = crate::common::zookeeper::background();
        let client = runtime.block_on(zk::Client::connect(&servers.addresses())).unwrap();
        Ensemble { servers, runtime, client, _turn: turn }
    }

    /// Written out here once more: this is where users look.
    fn path(vm: &str) -> String {
        let name = match vm {
            "a vm, 100 %" => "a%20vm,%20100%20%25",
            plain => plain,
        };
        format!("{ROOT}/vms/{name}/generation")
    }
}

impl Place for Ensemble {
    fn uri(&self) -> String {
        self.servers.uri(ROOT)
    }

    fn raw(&self, vm: &str) -> Option<Vec<u8>> {
        self.runtime.block_on(async {
            self.client.sync(&Self::path(vm)).await.unwrap();
            match self.client.get_data(&Self::path(vm)).await {
                Ok((bytes, _)) => Some(bytes),
                Err(zk::Error::NoNode) => None,
                Err(error) => panic!("{error}"),
            }
        })
    }

    fn put_raw(&self, vm: &str, bytes: &[u8]) {
        self.runtime.block_on(self.client.set_data(&Self::path(vm), bytes, None)).unwrap();
    }
}

/// The promise is an answer to each claim, and that within the time after which the protocol would take it for none.
pub fn one_dead_or_silent_follower_keeps_no_answer_away(kind: Kind) {
    let mut ensemble = Ensemble::of(kind, 3);
    let mut first = 1;
    for silent in [true, false] {
        let follower = ensemble.servers.follower();
        let arbiter = ensemble.open();
        let place = Uri(ensemble.servers.uri_beginning_with(follower, ROOT));
        let servers = &mut ensemble.servers;
        let (contended, ()) = arbiters::contend_while(&place, first, || {
            let at = generation(arbiter.as_ref());
            goes_on(arbiter.as_ref(), at + 5);
            if silent {
                servers.member(follower).stop()
            } else {
                servers.member(follower).kill()
            }
            goes_on(arbiter.as_ref(), at + 25);
            if silent {
                servers.member(follower).go_on()
            } else {
                servers.member(follower).restart()
            }
            goes_on(arbiter.as_ref(), at + 40);
        });
        println!("{} generations, longest answer {:?}", contended.won.len(), contended.longest);
        assert_eq!(contended.in_vain, 0, "a claim got no answer");
        first = generation(arbiter.as_ref()) + 1;
        ensemble.servers.serves();
    }
}

/// Another leader is found, and then every claim is answered.
pub fn a_dead_or_silent_leader_costs_an_election(kind: Kind) {
    let mut ensemble = Ensemble::of(kind, 3);
    let mut first = 1;
    for silent in [true, false] {
        let leader = ensemble.servers.leader();
        let arbiter = ensemble.open();
        let place = Uri(ensemble.servers.uri_beginning_with(leader, ROOT));
        let servers = &mut ensemble.servers;
        let (contended, ()) = arbiters::contend_while(&place, first, || {
            let at = generation(arbiter.as_ref());
            goes_on(arbiter.as_ref(), at + 5);
            if silent {
                servers.member(leader).stop()
            } else {
                servers.member(leader).kill()
            }
            goes_on(arbiter.as_ref(), at + 25);
            if silent {
                servers.member(leader).go_on()
            } else {
                servers.member(leader).restart()
            }
            goes_on(arbiter.as_ref(), at + 40);
        });
        println!(
            "{} generations, longest answer {:?}, {} claims without one",
            contended.won.len(),
            contended.longest,
            contended.in_vain,
        );
        first = generation(arbiter.as_ref()) + 1;
        ensemble.servers.serves();
    }
}

pub fn without_a_majority_there_is_no_answer_and_nothing_is_won(kind: Kind) {
    let mut ensemble = Ensemble::of(kind, 3);
    let arbiter = ensemble.open();
    assert_eq!(arbiter.compare_and_set(VM, None, &claim(1, 1)).unwrap(), Verdict::Won);
    for silent in [false, true] {
        let held = generation(arbiter.as_ref());
        let down = [ensemble.servers.leader(), ensemble.servers.follower()];
        for member in down {
            if silent { ensemble.servers.member(member).stop() } else { ensemble.servers.member(member).kill() }
        }
        // Two claims on one generation, asked for again and again: nobody hears that it has won or lost.
        for host in [7, 8, 7, 8] {
            let error =
                arbiter.compare_and_set(VM, Some(held), &claim(held + 1, host)).expect_err("a verdict of a minority");
            assert!(arbiters::is_no_answer(&error), "{error}");
            let text = error.to_string();
            assert!((0..3).all(|server| text.contains(&ensemble.servers.address(server))), "{text}");
        }
        let error = arbiter.read(VM).expect_err("the word of a minority");
        assert!(arbiters::is_no_answer(&error), "{error}");
        for member in down {
            if silent { ensemble.servers.member(member).go_on() } else { ensemble.servers.member(member).restart() }
        }
        ensemble.servers.serves();
        // Of the two that asked, exactly one wins, now or by what it asked then.
        let mut in_vain = 0;
        let verdicts =
            [7, 8].map(|host| arbiters::claimed(arbiter.as_ref(), Some(held), &claim(held + 1, host), &mut in_vain));
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Won).count(), 1, "{verdicts:?}");
        assert_eq!(ensemble.open().read(VM).unwrap().unwrap().generation, held + 1);
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
        let (old, _) = ensemble.runtime.block_on(straggler.get_data(&Ensemble::path(VM))).unwrap();
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

pub fn servers_that_are_not_there_are_named_and_found_when_they_come(kind: Kind) {
    let mut ensemble = Ensemble::of(kind, 1);
    ensemble.servers.member(0).kill();
    let arbiter = ensemble.open();
    let error = arbiter.read(VM).expect_err("nobody is there");
    let (address, text) = (ensemble.servers.address(0), error.to_string());
    assert!(text.contains(&format!("{address}: Connection refused")), "{text}");
    assert_eq!(arbiter.location(), format!("zk://{address}{ROOT}"));
    ensemble.servers.member(0).restart();
    let found = eventually("the arbiter is found", || arbiter.read(VM).ok());
    assert_eq!(found, None);
}

/// Holds a kind of servers to all promises.
macro_rules! promises {
    ($kind:expr) => {
        #[test]
        fn a_contender_claims_generation_after_generation() {
            arbiters::contender_process();
        }

        #[test]
        fn one_thread_wins_each_generation() {
            arbiters::one_thread_wins_each_generation(&Ensemble::of($kind, 3));
        }

        #[test]
        fn one_process_wins_each_generation() {
            arbiters::one_process_wins_each_generation(&Ensemble::of($kind, 3));
        }

        #[test]
        fn a_claimant_killed_at_any_moment_leaves_a_register_that_works() {
            arbiters::a_claimant_killed_at_any_moment_leaves_a_register_that_works(&Ensemble::of($kind, 3), 12);
        }

        #[test]
        fn the_same_claim_again_has_won_and_another_has_lost() {
            arbiters::the_same_claim_again_has_won_and_another_has_lost(&Ensemble::of($kind, 3));
        }

        #[test]
        fn a_generation_won_for_two_is_told_from_one_won_alone() {
            arbiters::a_generation_won_for_two_is_told_from_one_won_alone(&Ensemble::of($kind, 3));
        }

        #[test]
        fn a_damaged_register_is_a_named_error_and_stays_as_it_is() {
            arbiters::a_damaged_register_is_a_named_error_and_stays_as_it_is(&Ensemble::of($kind, 3), 7);
        }

        #[test]
        fn names_are_kept_apart_and_those_that_are_none_are_errors() {
            arbiters::names_are_kept_apart_and_those_that_are_none_are_errors(&Ensemble::of($kind, 3));
        }

        #[test]
        fn one_dead_or_silent_follower_keeps_no_answer_away() {
            zookeeper::one_dead_or_silent_follower_keeps_no_answer_away($kind);
        }

        #[test]
        fn a_dead_or_silent_leader_costs_an_election() {
            zookeeper::a_dead_or_silent_leader_costs_an_election($kind);
        }

        #[test]
        fn without_a_majority_there_is_no_answer_and_nothing_is_won() {
            zookeeper::without_a_majority_there_is_no_answer_and_nothing_is_won($kind);
        }

        #[test]
        fn whoever_lacks_the_password_is_told_so_and_changes_nothing() {
            zookeeper::whoever_lacks_the_password_is_told_so_and_changes_nothing($kind);
        }

        #[test]
        fn servers_that_are_not_there_are_named_and_found_when_they_come() {
            zookeeper::servers_that_are_not_there_are_named_and_found_when_they_come($kind);
        }
    };
}
pub(crate) use promises;
