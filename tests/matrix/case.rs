//! One case: failures, what becomes of the VM, repair, and everything whole again, with clients at work all the time. The judges:
//!
//! - the clients' histories: one order explains every answer, nothing acknowledged is lost, no connection is reset;
//! - ears on the guests' network: the hosts from which the guest is heard, one after the other, are those that won its generations, in their order;
//! - the model: who may go on, whether the clients are served, whether there is protection again;
//! - at the end, everything is as it was before the case, without a person, but for a guest whose hosts are both dead.

use std::time::{Duration, Instant};

use lockstep::cluster::view::Condition;
use lockstep::console::status::Status;

use super::cluster::{Cluster, VM};
use super::fault::{Deed, Fault, Parts};
use super::model::{Fate, World};
use super::ping::Pinger;
use super::site::{HOSTS, Machine, NAMES, guests_port};
use crate::common::{PATIENCE, Random, eventually};
use crate::net::capture::{Capture, Heard};
use crate::net::crowd::{Crowd, Seen};
use crate::net::resp::{Connection, Reply};
use crate::net::site::SERVER;

/// The clients, by the time that each takes between two calls, at most so many microseconds.
const CLIENTS_US: [u64; 4] = [1000, 1000, 5000, 20_000];

/// How an answer to an echo that was asked for long enough after a failure shows that somebody still answers. What was on its way then has arrived.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// What may fail, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// One failure.
    One(Fault),
    /// Two at the same moment.
    Both(Fault, Fault),
    /// A second one when what came of the first is over, by the parts that the machines have then.
    Then(Fault, Fault),
}

impl Case {
    fn steps(self) -> Vec<Vec<Fault>> {
        match self {
            Case::One(fault) => vec![vec![fault]],
            Case::Both(one, other) => vec![vec![one, other]],
            Case::Then(first, second) => vec![vec![first], vec![second]],
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Case::One(fault) => write!(f, "{fault}"),
            Case::Both(one, other) => write!(f, "{one} + {other}"),
            Case::Then(first, second) => write!(f, "{first}, then {second}"),
        }
    }
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// The longest time without an answer to the client, from the last failure on until the service was there again; `None`: it was not, before the repair.
    pub pause: Option<Duration>,
    /// From the last failure until there was protection again; zero: it was there all the time. `None`: there was none before the repair.
    pub protected: Option<Duration>,
    /// In words.
    pub outcome: String,
    /// From the repair until all was whole.
    pub whole: Duration,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Option<Duration>| time.map_or("-".into(), |time| time.as_millis().to_string());
        let protected = match self.protected {
            Some(Duration::ZERO) => "kept".into(),
            protected => ms(protected),
        };
        let Row { case, outcome, whole, .. } = self;
        write!(f, "| {case} | {} | {protected} | {outcome} | {} |", ms(self.pause), whole.as_millis())
    }
}

/// A cluster that suffers one case after the other.
pub struct Matrix {
    cluster: Cluster,
    random: Random,
    /// Cases so far.
    cases: u64,
    /// How long is waited for what must not come: longer than a side takes to suspect the other and to ask the arbiters.
    hold: Duration,
}

/// What came of a step.
struct Settled {
    /// Who runs the VM.
    live: Option<usize>,
    outcome: String,
    protected: Option<Duration>,
    served: bool,
    lost: bool,
}

/// The part of the work that ends with the case.
struct Watch {
    pinger: Pinger,
    crowd: Crowd,
}

impl Matrix {
    /// Starts a cluster.
    #[track_caller]
    pub fn new(timeout_ms: u64, seed: u64) -> Matrix {
        let cluster = Cluster::start(timeout_ms);
        Matrix { cluster, random: Random::new(seed), cases: 0, hold: Duration::from_millis(timeout_ms) * 3 / 2 }
    }

    /// Waits until everything is whole, and tells who has which part.
    #[track_caller]
    fn whole(&self, what: &str) -> Parts {
        let begun = Instant::now();
        loop {
            match self.cluster.whole() {
                Ok(parts) => return parts,
                Err(missing) => assert!(begun.elapsed() < PATIENCE, "{what}: not whole again: {missing}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Goes through a case.
    #[track_caller]
    pub fn suffers(&mut self, case: Case) -> Row {
        let mut parts = self.whole("before the case");
        let site = &self.cluster.site;
        let client = site.namespace(Machine::Client);
        let ports: Vec<&str> = (0..HOSTS).map(guests_port).collect();
        let capture = Capture::at(&site.switch(), &ports);
        let std::net::IpAddr::V4(guest) = SERVER.ip() else { unreachable!("the guest's address is of IPv4") };
        let pinger = Pinger::start(&client, guest);
        let crowd = Crowd::gather_thinking(SERVER, &client, &CLIENTS_US, self.cases, &mut self.random);
        self.cases += 1;
        crowd.goes_on(3);
        crowd.work_for(Duration::from_micros(self.random.below(50_000)));
        let watch = Watch { pinger, crowd };
        let won_before = self.cluster.winners().len().saturating_sub(1);

        let mut world = World::default();
        let mut settled = None;
        let mut failed_at = Instant::now();
        for step in case.steps() {
            if let Some(Settled { live: Some(live), .. }) = &settled {
                parts = self.parts_now(&world, *live);
            }
            let before = world.deeds();
            let mut deeds: Vec<Deed> = Vec::new();
            for fault in step {
                let so_far: Vec<Deed> = before.iter().chain(&deeds).copied().collect();
                deeds.push(fault.among(&parts, &so_far));
            }
            // What cuts a way comes before what is noticed at once, and would have had its effect by then.
            deeds.sort();
            let generation = self.generation(&parts, &world);
            failed_at = Instant::now();
            for deed in deeds {
                self.cluster.suffers(deed);
                world.suffers(deed);
            }
            settled = Some(self.settles(&parts, &world, generation, failed_at, &watch));
        }
        let settled = settled.expect("a case has steps");
        let pause = settled.served.then(|| watch.pinger.pause(failed_at, Instant::now()));

        let repaired = Instant::now();
        for deed in world.deeds().into_iter().rev() {
            self.cluster.recovers(deed);
        }
        let Watch { pinger, crowd } = watch;
        let seen = if settled.lost { self.is_lost(crowd) } else { self.goes_on(crowd, &case) };
        seen.is_linearizable();
        let whole = repaired.elapsed();
        drop(pinger);
        self.one_at_a_time(&capture.everything(), won_before);
        if settled.lost {
            self.boots_anew();
        }
        self.cluster.nothing_is_wrong();
        Row { case, pause, protected: settled.protected, outcome: settled.outcome, whole }
    }

    /// Everything is whole, and all clients go on with the connections that they have.
    #[track_caller]
    fn goes_on(&self, crowd: Crowd, case: &Case) -> Seen {
        self.whole(&case.to_string());
        crowd.goes_on(3);
        let seen = crowd.finish();
        // The next case shall find room in the guest's memory.
        let client = self.cluster.site.namespace(Machine::Client);
        let emptied = Connection::open(SERVER, &client).and_then(|mut client| client.ask(&["FLUSHALL"]));
        assert!(emptied.is_ok_and(|reply| reply == Reply::Simple("OK".into())), "the guest is not emptied");
        seen
    }

    /// Nobody has the VM's state any more: nobody boots it unasked.
    #[track_caller]
    fn is_lost(&self, crowd: Crowd) -> Seen {
        eventually("all agents are back, and nobody runs the VM", || {
            let view = self.cluster.view()?;
            let back = view.hosts.values().filter(|host| host.record.is_some()).count() == HOSTS;
            (back && view.vms.get(VM)?.condition() == Condition::Down).then_some(())
        });
        crowd.work_for(self.hold);
        let live = self.cluster.live(|_| false);
        assert!(live.is_none(), "a guest whose hosts are both dead runs: {live:?}");
        crowd.has_lost_its_server()
    }

    /// A person boots it again.
    #[track_caller]
    fn boots_anew(&self) {
        self.cluster.lockstep(&format!("protect {VM} --boot-anew"));
    }

    fn asleep(world: &World) -> impl Fn(usize) -> bool + '_ {
        |host| !world.is_up(Machine::Host(host))
    }

    fn live(&self, world: &World) -> Option<(usize, Status)> {
        self.cluster.live(Self::asleep(world))
    }

    fn generation(&self, parts: &Parts, world: &World) -> u64 {
        let (live, status) = self.live(world).expect("somebody runs the VM before it fails");
        assert_eq!(live, parts.hosts[0], "the primary is another one: {status}");
        status.generation
    }

    /// The parts of a pair that runs while something has failed.
    #[track_caller]
    fn parts_now(&self, world: &World, live: usize) -> Parts {
        let backup = eventually("the VM has a backup", || {
            let backup = |host: &usize| self.cluster.status(*host).is_some_and(|status| status.state == "following");
            (0..HOSTS).filter(|host| *host != live && world.is_up(Machine::Host(*host))).find(backup)
        });
        let leader = eventually("the arbiters have a leader", || self.cluster.leader());
        Parts { hosts: [live, backup, HOSTS - live - backup], leader }
    }

    /// Waits for what must come, or long enough for what must not.
    #[track_caller]
    fn settles(&self, parts: &Parts, world: &World, generation: u64, at: Instant, watch: &Watch) -> Settled {
        let [primary, backup, _] = parts.hosts;
        let fate = world.pair(primary, backup);
        let say = |what: &str| format!("{what} ({world:?}, {fate:?})");
        let kept = |live: usize, outcome: String, served: bool| Settled {
            live: Some(live),
            outcome,
            protected: Some(Duration::ZERO),
            served,
            lost: false,
        };
        match &fate {
            Fate::Stays | Fate::Undecided => {
                watch.crowd.work_for(self.hold);
                let (live, status) = self.live(world).unwrap_or_else(|| panic!("{}", say("nobody runs it")));
                assert_eq!(status.state, "protected", "{}", say("a healthy pair"));
                assert!(
                    fate == Fate::Undecided || (live, status.generation) == (primary, generation),
                    "{}",
                    say("moved")
                );
                let reached = world.is_reached(live);
                if reached {
                    self.is_served(watch, &say("clients are served"));
                }
                kept(live, if reached { "goes on" } else { "goes on, its clients cut off" }.into(), reached)
            }
            Fate::Moves(to) => {
                let live = eventually(&say("the VM is moved to its clients"), || {
                    let (live, status) = self.live(world)?;
                    (to.contains(&live) && status.state == "protected").then_some(live)
                });
                self.is_served(watch, &say("clients are served"));
                kept(live, format!("moved to the {}", parts.name(live)), true)
            }
            Fate::OneOf(may) => {
                eventually(&say("somebody goes on"), || (self.live(world)?.1.generation > generation).then_some(()));
                // The next one may have won by now, where the VM is moved; who was first, the register has shown.
                let first = |(won, host): &(u64, usize)| (*won > generation).then_some(*host);
                let winner = eventually("the register is seen", || self.cluster.winners().iter().find_map(first));
                assert!(may.contains(&winner), "{}: {}", say("the wrong one goes on"), NAMES[winner]);
                self.settles_alone(parts, world, winner, at, watch)
            }
            Fate::Nobody | Fate::Lost => {
                watch.crowd.work_for(ON_ITS_WAY);
                let since = Instant::now();
                watch.crowd.work_for(self.hold.max(Duration::from_secs(2)));
                assert!(!watch.pinger.answered_since(since), "{}", say("somebody answers"));
                let live = self.live(world);
                assert!(live.is_none(), "{}: {live:?}", say("somebody runs it"));
                let lost = fate == Fate::Lost;
                let outcome = if lost { "lost with both its hosts; not booted" } else { "waits, nothing leaves" };
                Settled { live: None, outcome: outcome.into(), protected: None, served: false, lost }
            }
        }
    }

    /// The VM has changed hands to `winner`, or has lost its backup there.
    #[track_caller]
    fn settles_alone(&self, parts: &Parts, world: &World, winner: usize, at: Instant, watch: &Watch) -> Settled {
        let alone = world.alone(winner);
        let say = |what: &str| format!("{what} ({world:?}, {} goes on, {alone:?})", NAMES[winner]);
        let mut protected = None;
        let mut live = winner;
        if alone.protectors.is_empty() {
            watch.crowd.work_for(self.hold);
            let status = self.live(world).map(|(_, status)| status.state);
            assert!(status.is_some_and(|state| state != "protected"), "{}", say("it cannot be protected"));
        } else {
            eventually(&say("protection is restored"), || {
                let (now, status) = self.live(world)?;
                live = now;
                (status.state == "protected").then_some(())
            });
            protected = Some(at.elapsed());
            if !alone.served_at.is_empty() && !world.is_reached(live) {
                live = eventually(&say("the VM is moved to its clients"), || {
                    let (now, status) = self.live(world)?;
                    (alone.served_at.contains(&now) && status.state == "protected").then_some(now)
                });
            }
        }
        let served = !alone.served_at.is_empty();
        if served {
            self.is_served(watch, &say("clients are served"));
        }
        let moved = if live == winner { String::new() } else { format!(", moved to the {}", parts.name(live)) };
        let reached = if served { "" } else { ", its clients cut off" };
        let outcome = format!("the {} goes on{moved}{reached}", parts.name(winner));
        Settled { live: Some(live), outcome, protected, served, lost: false }
    }

    #[track_caller]
    fn is_served(&self, watch: &Watch, what: &str) {
        let since = Instant::now();
        eventually(what, || watch.pinger.answered_since(since).then_some(()));
    }

    /// The hosts from which the guest was heard are those that won its generations, in their order: whoever spoke when another one had won, or without
    /// having won, would be out of it.
    #[track_caller]
    fn one_at_a_time(&self, heard: &[Heard], won_before: usize) {
        let mut spoke: Vec<usize> = heard.iter().map(|heard| heard.side).collect();
        spoke.dedup();
        let winners = &self.cluster.winners()[won_before..];
        let turns: Vec<String> = heard
            .windows(2)
            .filter(|pair| pair[0].side != pair[1].side)
            .map(|pair| format!("{} after {:?}", NAMES[pair[1].side], pair[1].at - heard[0].at))
            .collect();
        assert!(
            in_their_turn(&spoke, winners),
            "the guest was heard from {spoke:?} ({turns:?}), and these won: {winners:?}"
        );
    }
}

/// Whether these hosts are among the winners of these generations, in this order. Whoever follows the register sees what it holds, and where it changed twice at
/// once, not what it held in between: that may have been anybody.
fn in_their_turn(spoke: &[usize], winners: &[(u64, usize)]) -> bool {
    let mut won: Vec<Option<usize>> = Vec::new();
    for (index, (generation, host)) in winners.iter().enumerate() {
        let before = index.checked_sub(1).map_or(generation - 1, |before| winners[before].0);
        won.extend((before + 1..*generation).map(|_| None));
        won.push(Some(*host));
    }
    let mut left = won.iter();
    spoke.iter().all(|host| left.any(|winner| winner.is_none_or(|winner| winner == *host)))
}

#[test]
fn who_speaks_out_of_turn_is_found_out() {
    assert!(in_their_turn(&[0], &[(1, 0)]) && in_their_turn(&[], &[(1, 0)]));
    assert!(in_their_turn(&[0, 1], &[(1, 0), (2, 1)]) && in_their_turn(&[0, 2], &[(1, 0), (2, 1), (3, 2)]));
    assert!(in_their_turn(&[0, 1, 2], &[(1, 0), (3, 2)]), "generation 2 was not seen");
    // Woken up; without having won; before it has won; two that take turns.
    for (spoke, winners) in [
        (&[0, 1, 0][..], &[(1, 0), (2, 1)][..]),
        (&[0, 1], &[(1, 0)]),
        (&[1, 0], &[(1, 0), (2, 1)]),
        (&[0, 1, 0, 1], &[(1, 0), (2, 1), (3, 1)]),
    ] {
        assert!(!in_their_turn(spoke, winners), "{spoke:?} {winners:?}");
    }
}
