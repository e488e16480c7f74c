//! What is promised of registers that several servers keep between them, whatever protocol these speak.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]

use lockstep::arbiter::Verdict;

use crate::arbiters::{self, Contended, Place, Uri, VM, claim, generation, goes_on};
use crate::common::eventually;
use crate::common::members::Member;

/// Servers of which a majority decides.
pub trait Quorum: Place {
    /// From now on, its registers are elsewhere.
    fn move_to(&mut self, root: String);
    /// Which one leads.
    fn leader(&self) -> usize;
    /// One that follows.
    fn follower(&self) -> usize;
    /// Where clients find one.
    fn address(&self, index: usize) -> String;
    /// Its process.
    fn member(&mut self, index: usize) -> &mut Member;
    /// The arbiter, asked in the order that begins with this one.
    fn uri_beginning_with(&self, first: usize) -> String;
    /// Waits until all of them serve.
    fn serves(&mut self);
}

/// A promise's name, and what holds a place to it.
type Promise = (&'static str, fn(&dyn Place));

/// What is promised of registers while no server is lost: one promise after the other, each with registers of its own, since servers take their time to start.
pub fn registers_are_what_an_arbiter_promises(mut quorum: impl Quorum) {
    let promises: [Promise; 7] = [
        ("one_thread_wins_each_generation", arbiters::one_thread_wins_each_generation),
        ("one_process_wins_each_generation", arbiters::one_process_wins_each_generation),
        ("a_claimant_killed_at_any_moment_leaves_a_register_that_works", |place| {
            arbiters::a_claimant_killed_at_any_moment_leaves_a_register_that_works(place, 6)
        }),
        (
            "the_same_claim_again_has_won_and_another_has_lost",
            arbiters::the_same_claim_again_has_won_and_another_has_lost,
        ),
        (
            "a_generation_won_for_two_is_told_from_one_won_alone",
            arbiters::a_generation_won_for_two_is_told_from_one_won_alone,
        ),
        ("a_damaged_register_is_a_named_error_and_stays_as_it_is", |place| {
            arbiters::a_damaged_register_is_a_named_error_and_stays_as_it_is(place, 7)
        }),
        (
            "names_are_kept_apart_and_those_that_are_none_are_errors",
            arbiters::names_are_kept_apart_and_those_that_are_none_are_errors,
        ),
    ];
    for (name, holds) in promises {
        println!("{name}");
        quorum.move_to(format!("/some/{name}"));
        holds(&quorum);
    }
}

/// Contenders, while a server is silent or dead for a while and comes back. It is the first that they ask.
fn contend_while_lost(quorum: &mut impl Quorum, server: usize, silent: bool, first: u64) -> Contended {
    let arbiter = quorum.open();
    let place = Uri(quorum.uri_beginning_with(server));
    let (contended, ()) = arbiters::contend_while(&place, first, || {
        let at = generation(arbiter.as_ref());
        goes_on(arbiter.as_ref(), at + 5);
        if silent {
            quorum.member(server).stop()
        } else {
            quorum.member(server).kill()
        }
        goes_on(arbiter.as_ref(), at + 25);
        if silent {
            quorum.member(server).go_on()
        } else {
            quorum.member(server).restart()
        }
        goes_on(arbiter.as_ref(), at + 40);
    });
    println!(
        "{} generations, longest answer {:?}, {} claims without one",
        contended.won.len(),
        contended.longest,
        contended.in_vain,
    );
    quorum.serves();
    contended
}

/// The promise is an answer to each claim, and that within the time after which the protocol would take it for none.
pub fn one_dead_or_silent_follower_keeps_no_answer_away(mut quorum: impl Quorum) {
    let mut first = 1;
    for silent in [true, false] {
        let follower = quorum.follower();
        let contended = contend_while_lost(&mut quorum, follower, silent, first);
        assert_eq!(contended.in_vain, 0, "a claim got no answer");
        first = generation(quorum.open().as_ref()) + 1;
    }
}

/// Another leader is found, and then every claim is answered.
pub fn a_dead_or_silent_leader_costs_an_election(mut quorum: impl Quorum) {
    let mut first = 1;
    for silent in [true, false] {
        let leader = quorum.leader();
        contend_while_lost(&mut quorum, leader, silent, first);
        first = generation(quorum.open().as_ref()) + 1;
    }
}

pub fn without_a_majority_there_is_no_answer_and_nothing_is_won(mut quorum: impl Quorum) {
    let arbiter = quorum.open();
    assert_eq!(arbiter.compare_and_set(VM, None, &claim(1, 1)).unwrap(), Verdict::Won);
    for silent in [false, true] {
        let held = generation(arbiter.as_ref());
        let down = [quorum.leader(), quorum.follower()];
        for member in down {
            if silent { quorum.member(member).stop() } else { quorum.member(member).kill() }
        }
        // Two claims on one generation, each asked for again and again within its time: nobody hears that it has won or lost.
        for host in [7, 8] {
            let error =
                arbiter.compare_and_set(VM, Some(held), &claim(held + 1, host)).expect_err("a verdict of a minority");
            assert!(arbiters::is_no_answer(&error), "{error}");
            let text = error.to_string();
            assert!((0..3).all(|server| text.contains(&quorum.address(server))), "{text}");
        }
        let error = arbiter.read(VM).expect_err("the word of a minority");
        assert!(arbiters::is_no_answer(&error), "{error}");
        for member in down {
            if silent { quorum.member(member).go_on() } else { quorum.member(member).restart() }
        }
        quorum.serves();
        // Of the two that asked, exactly one wins, now or by what it asked then.
        let mut in_vain = 0;
        let verdicts =
            [7, 8].map(|host| arbiters::claimed(arbiter.as_ref(), Some(held), &claim(held + 1, host), &mut in_vain));
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Won).count(), 1, "{verdicts:?}");
        assert_eq!(quorum.open().read(VM).unwrap().unwrap().generation, held + 1);
    }
}

pub fn servers_that_are_not_there_are_named_and_found_when_they_come(mut quorum: impl Quorum) {
    quorum.member(0).kill();
    let arbiter = quorum.open();
    let error = arbiter.read(VM).expect_err("nobody is there");
    let (address, text) = (quorum.address(0), error.to_string());
    assert!(text.contains(&format!("{address}: Connection refused")), "{text}");
    assert_eq!(arbiter.location(), quorum.uri());
    quorum.member(0).restart();
    let found = eventually("the arbiter is found", || arbiter.read(VM).ok());
    assert_eq!(found, None);
}
