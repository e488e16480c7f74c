//! Promise: what a person types reaches the guest exactly once and in order, whatever connections
//! break, hosts die, and acknowledgements are late; and two hosts that replay the same log agree on
//! how much they have. Pure: real sessions and input tables, random schedules between them.

use lockstep::console::input::{InputError, InputTable};
use lockstep::console::session::Session;
use lockstep::console::wire::{Attached, Start};
use lockstep::machine::doors::ConsoleInput;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::collections::{BTreeMap, VecDeque};

/// What session `id` types at `offset`.
fn key(id: u64, offset: u64) -> u8 {
    (id.wrapping_mul(31).wrapping_add(offset.wrapping_mul(7)) % 251) as u8
}

struct Person {
    id: u64,
    session: Session,
    typed: u64,
    wire: Option<Wire>,
}

/// A connection: input on its way to the host, and acknowledged offsets on their way back.
type Wire = (VecDeque<(u64, Vec<u8>)>, VecDeque<u64>);

/// A live host, a log that its backup has up to `acknowledged` at least, and some people.
struct World {
    live: InputTable,
    log: Vec<ConsoleInput>,
    acknowledged: usize,
    backup: InputTable,
    replayed: usize,
    people: Vec<Person>,
    next_id: u64,
    forgotten: usize,
}

impl World {
    fn new(people: u64) -> Self {
        let mut world = World {
            live: InputTable::default(),
            log: Vec::new(),
            acknowledged: 0,
            backup: InputTable::default(),
            replayed: 0,
            people: Vec::new(),
            next_id: 0,
            forgotten: 0,
        };
        (0..people).for_each(|_| world.arrive());
        world
    }

    fn arrive(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        self.people.push(Person { id, session: Session::new(id, Start::At(0)), typed: 0, wire: None });
    }

    fn act(&mut self, action: u8, who: usize, n: usize) {
        let who = who % self.people.len();
        let person = &mut self.people[who];
        match action {
            0 | 1 => {
                let bytes: Vec<u8> = (person.typed..person.typed + n as u64).map(|o| key(person.id, o)).collect();
                person.session.typed(&bytes);
                person.typed += n as u64;
                self.send(who, n);
            }
            2 => self.send(who, n),
            3 | 4 => self.deliver(who, n),
            5 | 6 => {
                if let Some(input) = self.live.take(n) {
                    self.live.logged(&input, self.log.len() as u64);
                    self.log.push(input);
                }
            }
            7 => {
                self.acknowledged = (self.acknowledged + n).min(self.log.len());
                self.live.safe(self.acknowledged as u64);
            }
            8 => self.tell_safe(who),
            9 => {
                if let Some(offset) = person.wire.as_mut().and_then(|(_, acks)| acks.pop_front()) {
                    person.session.input_safe(offset).expect("acknowledges what was typed");
                }
            }
            10 => {
                for _ in 0..n {
                    self.replay_one();
                }
            }
            11 => {
                self.hang_up(who);
            }
            12 | 13 => self.attach(who),
            14 => {
                // The vCPU has taken input; before it is logged, its session changes connections.
                let taken = self.live.take(n);
                self.hang_up(who);
                self.attach(who);
                self.tell_safe(who);
                if let Some(input) = taken {
                    self.live.logged(&input, self.log.len() as u64);
                    self.log.push(input);
                }
            }
            _ => self.fail_over(n),
        }
    }

    fn send(&mut self, who: usize, n: usize) {
        let person = &mut self.people[who];
        if let Some((input, _)) = &mut person.wire {
            input.extend(person.session.next_input(n));
        }
    }

    /// Part of what is on its way arrives; the host takes what it has room for.
    fn deliver(&mut self, who: usize, n: usize) {
        let person = &mut self.people[who];
        let Some((input, _)) = &mut person.wire else { return };
        let Some((offset, mut bytes)) = input.pop_front() else { return };
        let arrived = bytes.len().min(n);
        let done = self.live.offer(person.id, offset, &bytes[..arrived]).expect("no gap");
        bytes.drain(..done);
        if !bytes.is_empty() {
            input.push_front((offset + done as u64, bytes));
        }
    }

    fn tell_safe(&mut self, who: usize) {
        let person = &mut self.people[who];
        if let Some((_, acks)) = &mut person.wire {
            acks.push_back(self.live.safe_offset(person.id));
        }
    }

    fn hang_up(&mut self, who: usize) {
        let person = &mut self.people[who];
        if person.wire.take().is_some() {
            self.live.detach(person.id);
        }
    }

    fn attach(&mut self, who: usize) {
        let person = &mut self.people[who];
        if person.wire.is_some() {
            return;
        }
        match self.live.attach(&person.session.attach()) {
            Ok(input_offset) => {
                let attached = Attached {
                    vm: String::new(),
                    host: String::new(),
                    generation: 0,
                    output_position: 0,
                    input_offset,
                    entries: self.acknowledged as u64,
                    peer: None,
                };
                person.session.attached(&attached).expect("the host goes on where this session stands");
                person.wire = Some(Default::default());
            }
            Err(InputError::Forgotten(_)) => {
                assert!(self.live.log_view().1.is_some(), "only an eviction makes a host forget");
                self.forgotten += 1;
                self.people.remove(who);
                self.arrive();
            }
            Err(error) => panic!("session {} is refused: {error}", person.id),
        }
    }

    fn replay_one(&mut self) {
        // The backup may replay what it has received before the primary hears of it.
        if let Some(input) = self.log.get(self.replayed) {
            self.backup.replayed(input, self.replayed as u64).expect("the log has no gaps");
            self.replayed += 1;
        }
    }

    /// The live host dies; the backup has what it has acknowledged, and up to `extra` entries more.
    fn fail_over(&mut self, extra: usize) {
        self.log.truncate((self.acknowledged.max(self.replayed) + extra).min(self.log.len()));
        while self.replayed < self.log.len() {
            self.replay_one();
        }
        assert_eq!(self.backup.log_view(), replay(&self.log).log_view(), "the table is a pure function of the log");
        self.live = std::mem::replace(&mut self.backup, replay(&self.log));
        self.live.drop_queued();
        self.acknowledged = self.log.len();
        self.live.hold_from(self.acknowledged as u64);
        self.people.iter_mut().for_each(|person| person.wire = None);
    }

    fn check(&self) {
        let mut guest: BTreeMap<u64, u64> = BTreeMap::new();
        let mut safe: BTreeMap<u64, u64> = BTreeMap::new();
        for (entry, input) in self.log.iter().enumerate() {
            let next = guest.entry(input.session).or_default();
            for (index, &byte) in input.bytes.iter().enumerate() {
                assert_eq!(byte, key(input.session, *next), "session {} at {index} of {input:?}", input.session);
                *next += 1;
            }
            if entry < self.acknowledged {
                safe.insert(input.session, *next);
            }
        }
        for person in &self.people {
            let kept_from = person.session.safe_offset();
            assert!(
                kept_from <= safe.get(&person.id).copied().unwrap_or(0),
                "session {} forgot what is not safe",
                person.id
            );
        }
        assert_eq!(self.live.log_view(), replay(&self.log).log_view());
    }

    /// Everything works again: all that was typed must arrive.
    fn heal(&mut self) {
        let forgotten = self.forgotten;
        for who in 0..self.people.len() {
            self.attach(who);
        }
        for _ in 0..2_000 {
            for who in 0..self.people.len() {
                self.send(who, 64);
                self.deliver(who, 64);
                self.tell_safe(who);
                self.act(9, who, 0);
            }
            self.act(5, 0, 64);
            self.act(7, 0, 1_000);
            if self.people.iter().all(|person| person.session.safe_offset() == person.typed) {
                self.check();
                return;
            }
        }
        assert!(self.forgotten > forgotten, "what was typed did not arrive");
    }
}

fn replay(log: &[ConsoleInput]) -> InputTable {
    let mut table = InputTable::default();
    for (entry, input) in log.iter().enumerate() {
        table.replayed(input, entry as u64).expect("the log has no gaps");
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_typed_byte_reaches_the_guest_exactly_once(
        actions in prop::collection::vec((0u8..16, 0usize..3, 1usize..12), 1..120)
    ) {
        let mut world = World::new(3);
        (0..3).for_each(|who| world.attach(who));
        for (action, who, n) in actions {
            world.act(action, who, n);
        }
        world.check();
        world.heal();
        prop_assert_eq!(world.forgotten, 0, "three sessions fit the table");
    }
}

/// More sessions than the table keeps. A session that was forgotten is told so where its input is
/// in doubt; nothing is ever doubled, lost or out of order.
#[test]
fn more_sessions_than_the_table_keeps() {
    let strategy = prop::collection::vec((0u8..24, 0usize..90, 1usize..6), 500..1_500);
    let forgotten = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() });
    let result = runner.run(&strategy, |actions| {
        let mut world = World::new(90);
        for (action, who, n) in actions {
            match action {
                // With 90 people, one must get through at a time, or the table never fills.
                16.. => [12, 0, 3, 5, 8, 9].into_iter().for_each(|action| world.act(action, who, n)),
                // A failover takes all connections; a few of them are enough.
                15 if n > 1 => world.act(10, who, n),
                _ => world.act(action, who, n),
            }
        }
        world.check();
        forgotten.set(forgotten.get() + world.forgotten);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(forgotten.get() > 0, "no session was ever forgotten: this proves nothing");
}

#[test]
fn input_sent_again_is_taken_once() {
    let mut table = InputTable::default();
    table.attach(&Session::new(9, Start::At(0)).attach()).unwrap();
    assert_eq!(table.offer(9, 0, b"abc"), Ok(3));
    assert_eq!(table.offer(9, 0, b"ab"), Ok(2));
    assert_eq!(table.offer(9, 1, b"bcde"), Ok(4));
    assert_eq!(table.take(64).unwrap().bytes, b"abcde");
    assert_eq!(table.offer(9, 3, b"def"), Ok(3));
    let rest = table.take(64).unwrap();
    assert_eq!((rest.offset, rest.bytes), (5, b"f".to_vec()));
}

#[test]
fn a_full_queue_takes_a_part_and_takes_the_rest_later() {
    let mut table = InputTable::default();
    let mut session = Session::new(9, Start::At(0));
    assert_eq!(table.attach(&session.attach()), Ok(0));
    let many = vec![7; InputTable::QUEUE_MAX + 10];
    assert_eq!(table.offer(9, 0, &many), Ok(InputTable::QUEUE_MAX));
    assert_eq!(table.offer(9, InputTable::QUEUE_MAX as u64, &many[InputTable::QUEUE_MAX..]), Ok(0));
    let input = table.take(1_000).unwrap();
    assert_eq!((input.offset, input.bytes.len()), (0, ConsoleInput::MAX));
    assert_eq!(table.offer(9, InputTable::QUEUE_MAX as u64, &many[InputTable::QUEUE_MAX..]), Ok(10));
}

#[test]
fn sessions_take_turns() {
    let mut table = InputTable::default();
    for id in [3, u64::MAX, 5] {
        table.attach(&Session::new(id, Start::At(0)).attach()).unwrap();
        table.offer(id, 0, &[1; 300]).unwrap();
    }
    let turns: Vec<u64> = (0..6).map(|_| table.take(64).unwrap().session).collect();
    assert_eq!(turns, [3, 5, u64::MAX, 3, 5, u64::MAX]);
}

#[test]
fn wrong_offers_are_named() {
    let mut table = InputTable::default();
    assert_eq!(table.offer(1, 0, b"x"), Err(InputError::NotAttached(1)));
    table.attach(&Session::new(1, Start::At(0)).attach()).unwrap();
    assert_eq!(table.offer(1, 1, b"x"), Err(InputError::Gap { queued: 0, offset: 1 }));
    assert_eq!(table.offer(1, u64::MAX, b"xy"), Err(InputError::Gap { queued: 0, offset: u64::MAX }));
    table.detach(1);
    assert_eq!(table.offer(1, 0, b"x"), Err(InputError::NotAttached(1)));
    let elsewhere =
        lockstep::console::wire::Attach { unacknowledged: 7, sent: 9, ..Session::new(2, Start::At(0)).attach() };
    assert_eq!(table.attach(&elsewhere), Err(InputError::OtherMachine { session: 2, known: 0, claimed: 7 }));
}

#[test]
fn what_is_not_in_the_log_is_dropped_when_a_host_goes_live() {
    let mut table = InputTable::default();
    let mut session = Session::new(9, Start::At(0));
    table.attach(&session.attach()).unwrap();
    table.offer(9, 0, b"abcd").unwrap();
    let input = table.take(1).unwrap();
    table.logged(&input, 0);
    table.drop_queued();
    assert_eq!((table.waiting_bytes(), table.take(64)), (0, None));
    let attach = lockstep::console::wire::Attach { sent: 4, ..session.attach() };
    assert_eq!(table.attach(&attach), Ok(1), "the client sends the rest again");
}

#[test]
fn the_session_that_has_not_typed_for_longest_is_forgotten() {
    let mut table = InputTable::default();
    // Session 1 types most, and least recently.
    let typed = |session, offset| ConsoleInput { session, offset, bytes: vec![b'x'; 1 + usize::from(session == 1)] };
    for session in 0..InputTable::SESSIONS_MAX as u64 {
        table.replayed(&typed(session, 0), session).unwrap();
    }
    table.replayed(&typed(0, 1), 64).unwrap();
    table.replayed(&typed(1000, 0), 65).unwrap();
    let (sessions, evicted_entry) = table.log_view();
    let kept: Vec<u64> = sessions.iter().map(|&(session, ..)| session).collect();
    assert_eq!((kept.len(), kept.contains(&0), kept.contains(&1), evicted_entry), (64, true, false, Some(1)));
}
