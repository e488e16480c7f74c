//! Promise: of all that claim a generation in an etcd cluster (Debian's, of three servers), at most one wins, whatever dies in between; one dead or
//! silent server does not keep an answer away; without a majority there is no answer, and nothing is won.

mod arbiters;
mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use arbiters::{Place, Uri, VM, claim, generation, goes_on};
use common::etcd::Etcd;
use common::eventually;
use lockstep::arbiter::{ArbiterError, Verdict};

/// One cluster at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A cluster of its own.
struct Cluster {
    servers: Etcd,
    _turn: MutexGuard<'static, ()>,
}

const ROOT: &str = "/some/where";

impl Cluster {
    fn new() -> Self {
        Self::of(3)
    }

    fn of(count: usize) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Cluster { servers: Etcd::start(count), _turn: turn }
    }

    /// Written out here once more: this is where users look.
    fn key(vm: &str) -> String {
        let name = match vm {
            "a vm, 100 %" => "a%20vm,%20100%20%25",
            plain => plain,
        };
        format!("{ROOT}/vms/{name}/generation")
    }
}

impl Place for Cluster {
    fn uri(&self) -> String {
        self.servers.uri(ROOT)
    }

    fn raw(&self, vm: &str) -> Option<Vec<u8>> {
        self.servers.get(&Self::key(vm))
    }

    fn put_raw(&self, vm: &str, bytes: &[u8]) {
        self.servers.put(&Self::key(vm), bytes);
    }
}

#[test]
fn one_thread_wins_each_generation() {
    arbiters::one_thread_wins_each_generation(&Cluster::new());
}

#[test]
fn a_contender_claims_generation_after_generation() {
    arbiters::contender_process();
}

#[test]
fn one_process_wins_each_generation() {
    arbiters::one_process_wins_each_generation(&Cluster::new());
}

#[test]
fn a_claimant_killed_at_any_moment_leaves_a_register_that_works() {
    arbiters::a_claimant_killed_at_any_moment_leaves_a_register_that_works(&Cluster::new(), 12);
}

#[test]
fn the_same_claim_again_has_won_and_another_has_lost() {
    arbiters::the_same_claim_again_has_won_and_another_has_lost(&Cluster::new());
}

#[test]
fn a_generation_won_for_two_is_told_from_one_won_alone() {
    arbiters::a_generation_won_for_two_is_told_from_one_won_alone(&Cluster::new());
}

#[test]
fn a_damaged_register_is_a_named_error_and_stays_as_it_is() {
    arbiters::a_damaged_register_is_a_named_error_and_stays_as_it_is(&Cluster::of(1), 7);
}

#[test]
fn names_are_kept_apart_and_those_that_are_none_are_errors() {
    arbiters::names_are_kept_apart_and_those_that_are_none_are_errors(&Cluster::of(1));
}

/// The promise is an answer to each claim, and that within the time after which the protocol would take it for none.
#[test]
fn one_dead_or_silent_follower_keeps_no_answer_away() {
    let mut cluster = Cluster::new();
    let mut first = 1;
    for silent in [true, false] {
        let follower = cluster.servers.follower();
        let place = Uri(cluster.servers.uri_beginning_with(follower, ROOT));
        let arbiter = place.open();
        let servers = &mut cluster.servers;
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
        cluster.servers.serves();
    }
}

/// Another leader is found, and then every claim is answered.
#[test]
fn a_dead_or_silent_leader_costs_an_election() {
    let mut cluster = Cluster::new();
    let mut first = 1;
    for silent in [true, false] {
        let leader = cluster.servers.leader();
        let place = Uri(cluster.servers.uri_beginning_with(leader, ROOT));
        let arbiter = place.open();
        let servers = &mut cluster.servers;
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
            contended.in_vain
        );
        first = generation(arbiter.as_ref()) + 1;
        cluster.servers.serves();
    }
}

#[test]
fn without_a_majority_there_is_no_answer_and_nothing_is_won() {
    let mut cluster = Cluster::new();
    let arbiter = cluster.open();
    assert_eq!(arbiter.compare_and_set(VM, None, &claim(1, 1)).unwrap(), Verdict::Won);
    for silent in [false, true] {
        let held = generation(arbiter.as_ref());
        let down = [cluster.servers.leader(), cluster.servers.follower()];
        for member in down {
            if silent { cluster.servers.member(member).stop() } else { cluster.servers.member(member).kill() }
        }
        // Two claims on one generation, asked for again and again: nobody hears that it has won or lost.
        for host in [7, 8, 7, 8] {
            let error =
                arbiter.compare_and_set(VM, Some(held), &claim(held + 1, host)).expect_err("a verdict of a minority");
            assert!(arbiters::is_no_answer(&error), "{error}");
            let text = error.to_string();
            assert!((0..3).all(|server| text.contains(&cluster.servers.address(server))), "{text}");
        }
        let error = arbiter.read(VM).expect_err("the word of a minority");
        assert!(arbiters::is_no_answer(&error), "{error}");
        for member in down {
            if silent { cluster.servers.member(member).go_on() } else { cluster.servers.member(member).restart() }
        }
        cluster.servers.serves();
        // Of the two that asked, exactly one wins, now or by what it asked then.
        let mut in_vain = 0;
        let verdicts =
            [7, 8].map(|host| arbiters::claimed(arbiter.as_ref(), Some(held), &claim(held + 1, host), &mut in_vain));
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Won).count(), 1, "{verdicts:?}");
        assert_eq!(cluster.open().read(VM).unwrap().unwrap().generation, held + 1);
    }
}

#[test]
fn whoever_lacks_the_password_is_told_so_and_changes_nothing() {
    let cluster = Cluster::of(1);
    let servers = &cluster.servers;
    // A cluster that asks for no password takes whoever has one, and goes on with it when it does ask.
    let open = |credentials: &str| arbiters::open(&servers.uri_as(credentials, ROOT));
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

#[test]
fn servers_that_are_not_there_are_named_and_found_when_they_come() {
    let mut cluster = Cluster::of(1);
    cluster.servers.member(0).kill();
    let arbiter = cluster.open();
    let error = arbiter.read(VM).expect_err("nobody is there");
    let (address, text) = (cluster.servers.address(0), error.to_string());
    assert!(text.contains(&format!("{address}: Connection refused")), "{text}");
    assert_eq!(arbiter.location(), format!("etcd://{address}{ROOT}"));
    cluster.servers.member(0).restart();
    let found = eventually("the arbiter is found", || arbiter.read(VM).ok());
    assert_eq!(found, None);
}
