//! Promise: within bounds, *every* order of events keeps "never two live" and "no output lost or contradicted": from the boot on, when a backup
//! joins a running guest, when the two sides change their roles, and when a survivor takes a new backup while what was said in the generation before arrives.
//!
//! A stateright model whose hosts are the real state machines. The guest makes an output with every entry; time moves
//! in steps of half the time-out, so every process may be slow or asleep (whoever gets no turn is stopped, at any point and for any time within the bounds), and whatever has been sent may come
//! late. The arbiter is a service of several members as its clients see it: a question may take any time, may be carried out although its answer is lost, or long after it was given
//! up (and asked again, or lost to somebody else), or never; a read may be answered by a member that does not know of the newest claim; who has won may hear that it was overtaken. Bounds:
//! a few entries, one and a half time-outs, one crash, one broken connection, one question given up, one transfer, one switch.

mod model;

use lockstep::replication::election::{Answer, Question};
use lockstep::replication::{StopReason, backup, primary};
use model::actions::{Action, Ending, Plant, Start};
use model::machine::Machine;
use model::state::State;
use model::{A, B, ENTRIES, ONCE, Pair, STEP};
use stateright::{Checker, HasDiscoveries, Model, Property};

fn stopped_as_loser(machine: &Machine) -> bool {
    matches!(
        machine,
        Machine::Primary(p) if matches!(p.state(), primary::State::Stopped(StopReason::Lost { .. }))
    ) || matches!(machine, Machine::Backup(b) if matches!(b.state(), backup::State::Stopped(StopReason::Lost { .. })))
}

impl Model for Pair {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.plant, self.start)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < self.steps * STEP {
            actions.push(Action::Step);
        }
        for side in [A, B] {
            let host = &state.hosts[side as usize];
            // A question that has been asked has its effect even if whoever asked is dead by then.
            if let Some(question) = host.question {
                actions.push(Action::Arbitrate(side));
                if question == Question::Read && state.register_before.0 < state.register.0 {
                    actions.push(Action::ReadStale(side));
                }
            }
            if host.dead {
                continue;
            }
            if host.deadline().is_some_and(|deadline| deadline <= state.now) {
                actions.push(Action::Tick(side));
            }
            if !host.incoming.is_empty() {
                actions.push(Action::Deliver(side));
            }
            if host.answer.is_some() {
                actions.push(Action::Answer(side));
            }
            if host.answer == Some(Answer::Won) && host.claimed > 0 && host.claimed < state.register.0 {
                actions.push(Action::AnswerOvertaken(side));
            }
            // A read that is given up is asked again, and nothing has come of it but time. But before a switch it decides.
            let claims = matches!(host.question, Some(Question::Claim { .. }))
                || matches!(host.answer, Some(Answer::Won | Answer::Lost(_)));
            let asks = claims || (self.start == Start::Switch && host.question == Some(Question::Read));
            if asks && state.give_ups < self.give_ups {
                actions.push(Action::GiveUp(side));
            }
            if state.crashes < ONCE {
                actions.extend([Ending::Close, Ending::Cut, Ending::Silence].map(|ending| Action::Crash(side, ending)));
            }
            if host.connecting && host.incoming.is_empty() {
                actions.push(Action::Connect(side));
            }
            let waits = host.held.left_below() < host.held.released_below();
            if waits && host.lease_holds(self.plant, state.now) {
                actions.push(Action::Write(side));
            }
            // A few entries on the first primary, and one on whoever takes over.
            let most = if side == B { host.base + 1 } else { ENTRIES - u64::from(self.start == Start::Switch) };
            let appended = host.primary().map(primary::Primary::appended);
            if host.running && !host.parked && appended.is_some_and(|appended| appended < most) {
                actions.push(Action::Append(side));
            }
            if host.capture.is_some() && matches!(self.start, Start::Alone | Start::Survivor) {
                actions.push(Action::Capture(side));
            }
            if host.park {
                actions.push(Action::Park(side));
            }
            if host.backup().is_some_and(|backup| *backup.state() == backup::State::GoingLive) {
                actions.push(Action::WentLive(side));
            }
        }
        actions.extend((0..state.overdue.len()).map(Action::CarryOut));
        for (which, (side, envelope)) in state.late.iter().enumerate() {
            let host = &state.hosts[*side as usize];
            if host.connected && !host.dead && host.generation() > envelope.generation {
                actions.push(Action::Late(which));
            }
        }
        let protected = |side| state.hosts[side as usize].primary().map(primary::Primary::state);
        if self.start == Start::Switch && !state.switched && protected(A) == Some(&primary::State::Protected) {
            actions.push(Action::Switch);
        }
        if state.breaks < ONCE && state.hosts.iter().all(|host| host.connected) {
            actions.extend([Ending::Close, Ending::Cut].map(Action::Break));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        state.act(self.plant, action).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("never two live", |_, state: &State| !state.hosts.iter().all(|host| host.lives_alone())),
            Property::always("no host lives before the guest has started", |_, state: &State| {
                state.guest_started || !state.hosts.iter().any(|host| host.lives_alone())
            }),
            Property::always("no output contradicted", |_, state: &State| !state.contradicted && !state.out_of_order),
            Property::always("nothing leaves that the backup does not hold", |_, state: &State| !state.unheld),
            Property::always("nothing leaves after a time-out", |_, state: &State| !state.released_late),
            Property::always("nothing leaves a silent primary after its survivor is live", |_, state: &State| {
                !state.left_after_the_survivor
            }),
            Property::always("no output missing", |_, state: &State| !state.missing),
            Property::always("silent after suspicion", |_, state: &State| {
                !state.hosts.iter().any(|host| host.gave_up() && host.connected)
            }),
            Property::sometimes("a side loses and stops", |_, state: &State| {
                state.hosts.iter().any(|host| stopped_as_loser(&host.machine))
            }),
            Property::sometimes("the first backup lives on after a crash", |_, state: &State| {
                state.hosts[0].dead && state.hosts[1].lives_alone() && state.seen.contains(&B)
            }),
            Property::sometimes("an acknowledged output leaves", |_, state: &State| state.acknowledged_left),
            Property::always("the register never goes back", |_, state: &State| {
                state.register_before.0 < state.register.0 || state.register.0 == 0
            }),
            Property::sometimes("a question is given up, asked again, and won", |_, state: &State| {
                state.give_ups > 0
                    && state.register.0 > 1
                    && state.hosts.iter().any(|host| host.primary().is_some() && host.lives_alone())
            }),
            Property::sometimes("a claim that was given up is set all the same", |_, state: &State| state.won_late),
            Property::sometimes("a claim that was given up comes too late", |_, state: &State| state.came_too_late),
        ];
        match self.start {
            Start::Boot => properties.extend([
                Property::sometimes("released outputs wait for a lease that has lapsed", |_, state: &State| {
                    let host = &state.hosts[0];
                    state.now >= host.lease_until && host.held.left_below() < host.held.released_below()
                }),
                Property::sometimes("a survivor need not repeat an output", |_, state: &State| {
                    state.hosts[1].left > 0 && state.hosts[1].lives_alone()
                }),
            ]),
            Start::Alone => properties.extend([
                Property::sometimes("a backup joins", |_, state: &State| {
                    state.hosts[0].base > 0
                        && state.hosts[0].primary().is_some_and(|p| *p.state() == primary::State::Protected)
                }),
                Property::sometimes("a backup that joined is lost, and the guest goes on", |_, state: &State| {
                    state.hosts[0].ended_transfer && state.hosts[0].lives_alone()
                }),
            ]),
            Start::Survivor => properties.extend([
                Property::sometimes("what was said in an older generation is refused", |_, state: &State| state.fenced),
                Property::sometimes("the survivor is protected", |_, state: &State| {
                    state.hosts[0].primary().is_some_and(|p| *p.state() == primary::State::Protected)
                }),
            ]),
            Start::Switch => properties.extend([
                Property::sometimes("the roles change", |_, state: &State| {
                    state.hosts[0].backup().is_some() && state.hosts[1].primary().is_some() && state.seen.contains(&B)
                }),
                Property::sometimes("a guest that was handed over is taken back", |_, state: &State| {
                    state.hosts[0].taken_back && state.hosts[0].lives_alone()
                }),
                Property::sometimes("an heir is lost before its first word", |_, state: &State| {
                    state.hosts[0].taken_back && state.register == (3, A, None)
                }),
                Property::sometimes("an heir asks again after it has lost the old primary", |_, state: &State| {
                    state.register == (3, B, None)
                }),
                Property::sometimes("who has won hears that it was overtaken", |_, state: &State| state.overtaken),
            ]),
        }
        properties
    }
}

fn check(start: Start, steps: u64) {
    // `LOCKSTEP_STEPS=3` and `LOCKSTEP_GIVE_UPS=2` are long runs.
    let from = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u8>().expect("a number"));
    let (steps, give_ups) =
        (from("LOCKSTEP_STEPS").map_or(steps, u64::from), from("LOCKSTEP_GIVE_UPS").unwrap_or(ONCE));
    let checker = Pair { plant: Plant::Nothing, start, steps, give_ups }.checker().threads(2).spawn_dfs().join();
    println!(
        "{start:?}: {} states, {} of them different, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
    assert!(checker.is_done());
}

#[test]
fn every_order_of_events_from_the_boot_on_keeps_the_promises() {
    check(Start::Boot, 2);
}

#[test]
fn every_order_of_events_while_a_backup_joins_keeps_the_promises() {
    check(Start::Alone, 2);
}

#[test]
fn every_order_of_events_around_a_switch_keeps_the_promises() {
    check(Start::Switch, 1);
}

#[test]
fn every_order_of_events_when_a_survivor_takes_a_new_backup_keeps_the_promises() {
    check(Start::Survivor, 1);
}

/// The model with the mistake breaks this property.
fn finds(start: Start, plant: Plant, property: &'static str) {
    let model = Pair { plant, start, steps: if start == Start::Boot { 3 } else { 2 }, give_ups: ONCE };
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AllOf([property].into())).spawn_dfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{plant:?} keeps `{property}`"));
    let actions = path.into_actions();
    println!("{plant:?} breaks `{property}`: {actions:?}");
}

const SILENT: &str = "nothing leaves a silent primary after its survivor is live";
const UNHELD: &str = "nothing leaves that the backup does not hold";

#[test]
fn a_claim_that_is_not_conditional_is_found() {
    finds(Start::Boot, Plant::ClaimUnasked, "never two live");
}

#[test]
fn a_stale_read_that_is_believed_is_found() {
    finds(Start::Boot, Plant::StaleReadBelieved, "never two live");
}

#[test]
fn a_side_that_looks_at_no_token_is_found() {
    finds(Start::Survivor, Plant::NoFence, UNHELD);
}

#[test]
fn releasing_what_is_only_sent_is_found() {
    finds(Start::Boot, Plant::ReleaseOnSent, UNHELD);
}

#[test]
fn going_on_without_the_arbiter_is_found() {
    finds(Start::Boot, Plant::SkipArbiter, "never two live");
}

#[test]
fn acknowledging_after_the_suspicion_is_found() {
    finds(Start::Boot, Plant::AckAfterSuspicion, UNHELD);
}

#[test]
fn a_primary_that_ignores_time_is_found() {
    finds(Start::Boot, Plant::IgnoreTime, "nothing leaves after a time-out");
}

#[test]
fn going_live_without_the_tail_is_found() {
    finds(Start::Boot, Plant::ForgetTail, "no output contradicted");
}

#[test]
fn a_primary_without_a_lease_is_found() {
    finds(Start::Boot, Plant::IgnoreLease, SILENT);
}

#[test]
fn a_lease_that_runs_from_the_arrival_of_the_acknowledgement_is_found() {
    finds(Start::Boot, Plant::LeaseFromArrival, SILENT);
}

#[test]
fn a_survivor_that_repeats_nothing_is_found() {
    finds(Start::Boot, Plant::RepeatNothing, "no output missing");
}

#[test]
fn a_primary_that_takes_acknowledged_for_left_is_found() {
    finds(Start::Boot, Plant::LeftFromAcks, "no output missing");
}

#[test]
fn outputs_that_leave_while_a_backup_joins_are_found() {
    finds(Start::Alone, Plant::JoiningLeaks, UNHELD);
}

#[test]
fn taking_the_guest_back_without_the_arbiter_is_found() {
    finds(Start::Switch, Plant::TakeBackUnasked, "never two live");
}

#[test]
fn an_heir_that_thinks_it_has_won_alone_is_found() {
    finds(Start::Switch, Plant::HeirAlone, "never two live");
}

#[test]
fn an_heir_that_lets_out_what_nobody_else_has_is_found() {
    finds(Start::Switch, Plant::HeirLeaks, UNHELD);
}

#[test]
fn an_old_primary_that_takes_any_loss_for_a_switch_is_found() {
    finds(Start::Switch, Plant::SharedWithAnybody, "never two live");
}
