//! The requests of a guest between its device and the image, as pure data: which one may begin, which wait for which, and what is to be told
//! to the guest. It knows no thread, no file and no clock; whoever asks says what time it is.
//!
//! ```text
//!             submit, replayed
//!                    ▼
//!   waiting ──(nothing it overlaps is before it)──► ready ──(may begin)──► running ──► executed ──► done ──► the guest
//!                    ▲                                ▲                       │                  (live)
//!                    │                                └──────(not allowed)────┘
//!             what overlaps it and came before: unfinished, or a read that the backup has yet to make
//! ```
//!
//! | | shared, live | shared, backup | separate, live | separate, backup |
//! | --- | --- | --- | --- | --- |
//! | a read begins | at once | at once if the backup reads by itself, else never | at once | as on the left, and before a change that overlaps it |
//! | a flush begins | at once | never | at once | after all changes before it |
//! | another change begins | when this host's stamp is the newest, its entry is released, and in the lease | never | at once | at once |
//! | a read is over for changes that overlap it | when the backup has executed its end | never, or when the log says so | when it is made | when it is made, or the log says so |
//! | it is over | when the guest has it | when the log says so | when the guest has it | when the log says so, and it is executed |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::spec::Mode;
use crate::console::hub::Protection;
use crate::machine::blocks::{Ask, Completion, Completions, MAX_COUNT, MAX_REQUEST, Outcome, Request};

/// Where a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not begun (any more).
    Waiting,
    /// At work.
    Running,
    /// This is what became of it.
    Executed(Outcome),
}

/// What the log says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logged {
    /// Nothing: it is in flight.
    Nothing,
    /// It was done.
    Done,
    /// It failed.
    Failed,
}

#[derive(Clone, Debug)]
struct Item {
    entry: u64,
    id: u64,
    ask: Arc<Ask>,
    /// What it touches, in whole blocks of the image: beginning and end.
    extent: Option<(u64, u64)>,
    state: State,
    /// So many requests before it keep it from beginning.
    blockers: usize,
    /// It keeps later ones from beginning.
    blocks: bool,
    /// A change waits for this read.
    awaited: bool,
    /// It came from the log, not from a live guest.
    replayed: bool,
    logged: Logged,
}

/// What a request touches, and how.
#[derive(Clone, Copy)]
struct Reach {
    extent: Option<(u64, u64)>,
    is_read: bool,
}

impl Item {
    fn reach(&self) -> Reach {
        Reach { extent: self.extent, is_read: self.is_read() }
    }

    fn is_read(&self) -> bool {
        !self.ask.changes()
    }

    fn is_flush(&self) -> bool {
        *self.ask == Ask::Flush
    }

    fn bytes(&self) -> usize {
        if let Ask::Write { data, .. } = &*self.ask { data.len() } else { 0 }
    }
}

/// What may begin, beside the order of requests.
#[derive(Clone, Copy, Debug)]
struct Gate {
    live: bool,
    /// Changes of entries below this may be made.
    below: u64,
    on_hold: bool,
    /// From which entry on a backup replays; `None`: there is no backup.
    held_from: Option<u64>,
    /// Shared: this host's stamp is the newest.
    stamped: bool,
    frozen: bool,
    lease_until_ns: u64,
}

/// A request to carry out.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its place in the order.
    pub number: u64,
    /// What is asked for.
    pub ask: Arc<Ask>,
    /// Whether it waits for leave, which may be over before it has begun.
    pub needs_leave: bool,
}

/// What the log's word about a request means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The log speaks of a request that was not made.
    Unknown,
    /// All is well.
    Settled,
    /// This image could not do what the primary's could.
    Broken,
}

/// What has become of a read that this side makes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnRead {
    /// It is on its way.
    Pending,
    /// It waits for something that the log has not said.
    Stuck,
    /// This.
    Is(Outcome),
}

/// The requests under way.
#[derive(Debug)]
pub struct Queue {
    mode: Mode,
    backup_reads: bool,
    align: u64,
    gate: Gate,
    next: u64,
    items: BTreeMap<u64, Item>,
    numbers: BTreeMap<u64, u64>,
    /// Items that are waiting, with nothing before them.
    ready: BTreeSet<u64>,
    /// Items whose end the guest has to hear of.
    done: VecDeque<u64>,
    /// Reads whose end the guest has, and the backup has yet to get to: (entry of the end, number).
    echoes: BTreeSet<(u64, u64)>,
    /// The same between `take` and `completed`: id → number.
    taken: BTreeMap<u64, u64>,
    /// Whether the reads of the batch taken last are the backup's to make.
    batch_elsewhere: bool,
    running: usize,
    running_changes: usize,
    /// Of those at work: what was forgotten, or has to be done again. Nothing begins before they are gone.
    orphans: usize,
    /// Changes not executed yet, and their bytes.
    unexecuted: usize,
    unexecuted_bytes: usize,
    /// Requests with lower ids may have been asked for before this side knew of any.
    unknown_below: u64,
}

impl Queue {
    /// No requests; the image takes blocks of `align` bytes.
    pub fn new(mode: Mode, backup_reads: bool, align: u64) -> Self {
        let gate = Gate {
            live: false,
            below: 0,
            on_hold: false,
            held_from: None,
            stamped: false,
            frozen: false,
            lease_until_ns: u64::MAX,
        };
        Queue {
            mode,
            backup_reads,
            align,
            gate,
            next: 0,
            items: BTreeMap::new(),
            numbers: BTreeMap::new(),
            ready: BTreeSet::new(),
            done: VecDeque::new(),
            echoes: BTreeSet::new(),
            taken: BTreeMap::new(),
            batch_elsewhere: false,
            running: 0,
            running_changes: 0,
            orphans: 0,
            unexecuted: 0,
            unexecuted_bytes: 0,
            unknown_below: 0,
        }
    }

    /// Forgets every request; what is at work finishes, and comes to nothing.
    pub fn clear(&mut self) {
        let (running, running_changes) = (self.running, self.running_changes);
        let (next, gate) = (self.next, self.gate);
        let fresh = Queue::new(self.mode, self.backup_reads, self.align);
        *self = Queue { next, running, running_changes, orphans: running, ..fresh };
        self.gate = Gate { live: false, below: 0, held_from: None, stamped: false, ..gate };
    }

    /// A request of entry `entry`: of the live guest, or out of the log.
    pub fn push(&mut self, entry: u64, request: Request, replayed: bool) {
        let Request { id, ask } = request;
        let extent =
            ask.extent().map(|(at, length)| (at & !(self.align - 1), (at + length).next_multiple_of(self.align)));
        let item = Item {
            entry,
            id,
            extent,
            // Also a read that waits for the log's word alone: it may have to be made here, and what it reads must still be there.
            blocks: true,
            awaited: false,
            ask: Arc::new(ask),
            state: State::Waiting,
            blockers: 0,
            replayed,
            logged: Logged::Nothing,
        };
        let keeps_back = |(_, before): &(&u64, &Item)| before.blocks && self.keeps_back(before.reach(), &item);
        let before: Vec<u64> = self.items.iter().filter(keeps_back).map(|(number, _)| *number).collect();
        let blockers = before.len();
        for number in before {
            self.items.get_mut(&number).expect("just seen").awaited = true;
        }
        if !item.is_read() {
            self.unexecuted += 1;
            self.unexecuted_bytes += item.bytes();
        }
        let number = self.next;
        self.next += 1;
        if blockers == 0 {
            self.ready.insert(number);
        }
        self.numbers.insert(id, number);
        self.items.insert(number, Item { blockers, ..item });
    }

    /// Whether a request with the reach `before` has to be over before `item` begins, which comes after it.
    fn keeps_back(&self, before: Reach, item: &Item) -> bool {
        if before.is_read && item.is_read() {
            return false;
        }
        match (before.extent, item.extent) {
            (Some((from, to)), Some((begin, end))) => from < end && begin < to,
            // What a flush is to cover the guest has seen completed, so it is executed; but in a replay the image may be behind.
            (Some(_), None) => self.mode == Mode::Separate && item.replayed && !before.is_read,
            (None, _) => false,
        }
    }

    /// A machine was made from a state: requests of lower ids than the next ones' may have been under way.
    pub fn adopted(&mut self) {
        self.unknown_below = u64::MAX;
    }

    /// The next requests of the log have ids from here on.
    pub fn ids_from(&mut self, id: u64) {
        if self.unknown_below == u64::MAX {
            self.unknown_below = id;
        }
    }

    fn may_begin(&self, item: &Item, now_ns: u64) -> bool {
        let Gate { live, below, on_hold, stamped, frozen, lease_until_ns, .. } = self.gate;
        match self.mode {
            _ if self.orphans > 0 => false,
            // A change that overlaps it is made here before the log says what the read has come to.
            _ if item.is_read() => {
                live || item.replayed && (self.backup_reads || item.awaited && self.mode == Mode::Separate)
            }
            _ if frozen => false,
            Mode::Separate => live || item.replayed,
            Mode::Shared if item.is_flush() => live,
            Mode::Shared => live && stamped && !on_hold && item.entry < below && now_ns < lease_until_ns,
        }
    }

    /// The next request to carry out, if there is one at `now_ns`.
    pub fn begin(&mut self, now_ns: u64) -> Option<Job> {
        let number = *self.ready.iter().find(|number| self.may_begin(&self.items[number], now_ns))?;
        self.start(number)
    }

    /// Begins a read whose id this is, if it may; for whoever has its bytes at hand.
    pub fn begin_read(&mut self, id: u64) -> Option<Job> {
        let number = *self.numbers.get(&id)?;
        let item = self.items.get(&number)?;
        (item.is_read() && self.ready.contains(&number) && self.may_begin(item, 0)).then(|| self.start(number))?
    }

    fn start(&mut self, number: u64) -> Option<Job> {
        let item = self.items.get_mut(&number)?;
        self.ready.remove(&number);
        item.state = State::Running;
        self.running += 1;
        self.running_changes += usize::from(!item.is_read());
        let needs_leave = self.mode == Mode::Shared && !item.is_read() && !item.is_flush();
        Some(Job { number, ask: item.ask.clone(), needs_leave })
    }

    /// Whether a request could begin at `now_ns`.
    pub fn has_work(&self, now_ns: u64) -> bool {
        self.ready.iter().any(|number| self.may_begin(&self.items[number], now_ns))
    }

    fn no_longer_running(&mut self, job: &Job) {
        self.running -= 1;
        self.running_changes -= usize::from(job.ask.changes());
        self.orphans -= usize::from(!self.items.contains_key(&job.number));
    }

    /// It was not done, and has to be begun again.
    pub fn put_back(&mut self, job: &Job) {
        self.no_longer_running(job);
        if let Some(item) = self.items.get_mut(&job.number) {
            item.state = State::Waiting;
            self.ready.insert(job.number);
        }
    }

    /// It is executed. Says whether this image could do what the log says that it must.
    pub fn finish(&mut self, job: &Job, outcome: Outcome) -> Word {
        self.no_longer_running(job);
        let Some(item) = self.items.get_mut(&job.number) else { return Word::Settled };
        let (logged, failed, is_read) = (item.logged, outcome == Outcome::Failed, item.is_read());
        item.state = State::Executed(outcome);
        let bytes = item.bytes();
        if !is_read {
            self.unexecuted -= 1;
            self.unexecuted_bytes -= bytes;
        }
        // Before the backup knows what was read here it must not change: the backup may have to read it, by itself or as the survivor.
        let echoes = self.mode == Mode::Shared && is_read && self.gate.live && self.gate.held_from.is_some();
        if !echoes {
            self.unblock(job.number);
        }
        match logged {
            Logged::Nothing if self.gate.live => self.done.push_back(job.number),
            Logged::Nothing => {}
            Logged::Done | Logged::Failed => self.remove(job.number),
        }
        if logged == Logged::Done && failed && !is_read { Word::Broken } else { Word::Settled }
    }

    /// Those that it has kept back, it keeps back no more.
    fn unblock(&mut self, number: u64) {
        let Some(item) = self.items.get_mut(&number) else { return };
        if !std::mem::take(&mut item.blocks) {
            return;
        }
        let reach = item.reach();
        let later = self.items.range(number + 1..);
        let freed: Vec<u64> =
            later.filter(|(_, other)| self.keeps_back(reach, other)).map(|(later, _)| *later).collect();
        for later in freed {
            let other = self.items.get_mut(&later).expect("just seen");
            other.blockers -= 1;
            if other.blockers == 0 && other.state == State::Waiting {
                self.ready.insert(later);
            }
        }
    }

    fn remove(&mut self, number: u64) {
        self.unblock(number);
        self.ready.remove(&number);
        if let Some(item) = self.items.remove(&number) {
            if self.numbers.get(&item.id) == Some(&number) {
                self.numbers.remove(&item.id);
            }
            if !item.is_read() && !matches!(item.state, State::Executed(_)) {
                self.unexecuted -= 1;
                self.unexecuted_bytes -= item.bytes();
            }
        }
    }

    /// Whether the backup makes the reads of this entry by itself.
    fn is_elsewhere(&self, entry: u64) -> bool {
        self.backup_reads && self.gate.held_from.is_some_and(|from| entry >= from)
    }

    /// What the guest has to hear of, in the order in which it came to its end; bounded. A batch has only reads that are the
    /// backup's, or none of them.
    pub fn take(&mut self) -> Option<Completions> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(number) = self.done.front().copied()
            && batch.len() < MAX_COUNT
        {
            let Some(item) = self.items.get(&number) else {
                self.done.pop_front();
                continue;
            };
            // A shared image must not have changed since, so what has not kept changes back until now is not the backup's to read.
            let elsewhere = self.is_elsewhere(item.entry) && (self.mode == Mode::Separate || item.blocks);
            if let Ask::Read { bytes: more, .. } = &*item.ask {
                if bytes > 0 && (bytes + *more as usize > MAX_REQUEST || elsewhere != self.batch_elsewhere) {
                    break;
                }
                bytes += *more as usize;
                self.batch_elsewhere = elsewhere;
            }
            self.done.pop_front();
            let item = self.items.get_mut(&number).expect("just seen");
            let State::Executed(outcome) = std::mem::replace(&mut item.state, State::Executed(Outcome::Done)) else {
                unreachable!("only what is executed is done")
            };
            batch.push(Completion { id: item.id, outcome });
            if item.is_read() && item.blocks {
                self.taken.insert(item.id, number);
            } else {
                self.remove(number);
            }
        }
        if bytes == 0 {
            self.batch_elsewhere = false;
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Whether the reads of the batch that was taken last are the backup's to make.
    pub fn batch_elsewhere(&self) -> bool {
        self.batch_elsewhere
    }

    /// The guest has these completions, by entry `entry`.
    pub fn completed(&mut self, entry: u64, completions: &Completions) {
        for completion in completions {
            let Some(number) = self.taken.remove(&completion.id) else { continue };
            if self.gate.held_from.is_some() {
                self.echoes.insert((entry, number));
            } else {
                self.remove(number);
            }
        }
    }

    /// The backup has executed so many entries. Says whether that frees anything.
    pub fn executed(&mut self, entries: u64) -> bool {
        let before = self.echoes.len();
        while let Some((entry, number)) = self.echoes.first().copied()
            && entry < entries
        {
            self.echoes.pop_first();
            self.remove(number);
        }
        self.echoes.len() < before
    }

    /// The log's word about a request: it is over, with a read's bytes or without.
    pub fn logged(&mut self, id: u64, failed: bool) -> Word {
        let Some(number) = self.numbers.get(&id).copied() else {
            return if id < self.unknown_below { Word::Settled } else { Word::Unknown };
        };
        let item = self.items.get_mut(&number).expect("every number has its item");
        item.logged = if failed { Logged::Failed } else { Logged::Done };
        match (&item.state, self.mode, item.ask.changes()) {
            (State::Running, _, _) => Word::Settled,
            (State::Executed(own), Mode::Separate, true) => {
                let broken = !failed && *own == Outcome::Failed;
                self.remove(number);
                if broken { Word::Broken } else { Word::Settled }
            }
            // It will be executed here as well.
            (State::Waiting, Mode::Separate, true) => Word::Settled,
            (State::Executed(_) | State::Waiting, _, _) => {
                self.remove(number);
                Word::Settled
            }
        }
    }

    /// What this side's own read `id` has come to. `None`: there is no such read.
    pub fn own_read(&self, id: u64) -> Option<OwnRead> {
        let item = self.items.get(self.numbers.get(&id)?).filter(|item| item.is_read())?;
        Some(match &item.state {
            State::Executed(outcome) => OwnRead::Is(outcome.clone()),
            State::Waiting if self.mode == Mode::Shared && item.blockers > 0 => OwnRead::Stuck,
            State::Waiting | State::Running => OwnRead::Pending,
        })
    }

    /// Whether an id lies before everything that this side can know.
    pub fn may_be_unknown(&self, id: u64) -> bool {
        id < self.unknown_below
    }

    /// This host runs the machine. What is in flight goes on, in order.
    pub fn go_live(&mut self, protection: Protection) {
        let was_live = std::mem::replace(&mut self.gate.live, true);
        self.protect(protection);
        if was_live {
            return;
        }
        let numbers: Vec<u64> = self.items.keys().copied().collect();
        for number in numbers {
            let item = self.items.get_mut(&number).expect("nobody removes any");
            if item.logged != Logged::Nothing {
                continue;
            }
            match &item.state {
                State::Executed(Outcome::Failed) if item.is_read() => {
                    item.state = State::Waiting;
                    if item.blockers == 0 {
                        self.ready.insert(number);
                    }
                }
                State::Executed(_) => self.done.push_back(number),
                State::Waiting | State::Running => {}
            }
        }
    }

    /// Which changes wait for a backup.
    pub fn protect(&mut self, protection: Protection) {
        self.gate.on_hold = false;
        (self.gate.below, self.gate.held_from) = match protection {
            Protection::HeldFrom(entry) => (entry, Some(entry)),
            Protection::Unprotected => (u64::MAX, None),
        };
        if protection == Protection::Unprotected {
            // There is nobody who has yet to read.
            for (_, number) in std::mem::take(&mut self.echoes) {
                self.remove(number);
            }
            for number in std::mem::take(&mut self.taken).into_values() {
                self.remove(number);
            }
            let read: Vec<u64> = self.done.iter().copied().collect();
            read.into_iter().for_each(|number| self.unblock(number));
        }
    }

    /// Changes of entries below `below` may be made.
    pub fn release(&mut self, below: u64) {
        self.gate.on_hold = false;
        self.gate.below = below;
    }

    /// No change begins until the next release.
    pub fn hold(&mut self) {
        self.gate.on_hold = true;
    }

    /// Changes may begin before this time.
    pub fn set_lease(&mut self, until_ns: u64) {
        self.gate.lease_until_ns = until_ns;
    }

    /// Shared: whether this host's stamp is the newest. Going live takes that back.
    pub fn set_stamped(&mut self, stamped: bool) {
        self.gate.stamped = stamped;
    }

    /// Whether changes may begin at all.
    pub fn set_frozen(&mut self, frozen: bool) {
        self.gate.frozen = frozen;
    }

    /// This host does not run the machine. What the guest has not heard of is in flight again.
    pub fn not_live(&mut self) {
        if !std::mem::take(&mut self.gate.live) {
            return;
        }
        (self.gate.held_from, self.gate.below) = (None, 0);
        self.done.clear();
        for (_, number) in std::mem::take(&mut self.echoes) {
            self.remove(number);
        }
        for number in std::mem::take(&mut self.taken).into_values() {
            self.remove(number);
        }
        // From here on the log says what they come to. On a shared image they are executed again if it comes to that: it may have had
        // another owner by then. So is what is at work now, once it is no more.
        self.orphans = self.running;
        self.numbers.clear();
        self.ready.clear();
        (self.unexecuted, self.unexecuted_bytes) = (0, 0);
        for item in std::mem::take(&mut self.items).into_values() {
            // What was read as well: what overlaps it may have changed since.
            let keep = self.mode == Mode::Separate && matches!(item.state, State::Executed(_));
            let (entry, id, changes, state) = (item.entry, item.id, item.ask.changes(), item.state);
            let bytes = if let Ask::Write { data, .. } = &*item.ask { data.len() } else { 0 };
            self.push(entry, Request { id, ask: Arc::unwrap_or_clone(item.ask) }, true);
            if keep {
                let number = self.next - 1;
                self.ready.remove(&number);
                let item = self.items.get_mut(&number).expect("just pushed");
                item.state = state;
                if changes {
                    self.unexecuted -= 1;
                    self.unexecuted_bytes -= bytes;
                }
                self.unblock(number);
            }
        }
    }

    /// Whether the guest has to hear of something.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Whether anything waits for nothing but leave.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether changes out of the log are not executed yet.
    pub fn is_behind(&self) -> bool {
        let behind = |item: &Item| item.replayed && !item.is_read() && !matches!(item.state, State::Executed(_));
        self.orphans > 0 || self.items.values().any(behind)
    }

    /// Requests at work on the image.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Changes at work on the image.
    pub fn running_changes(&self) -> usize {
        self.running_changes
    }

    /// Changes not executed, at work or not, and their bytes.
    pub fn unexecuted(&self) -> (usize, usize) {
        (self.unexecuted, self.unexecuted_bytes)
    }

    /// Requests in flight: the guest has not heard of their end.
    pub fn in_flight(&self) -> usize {
        self.numbers.len() - self.echoes.len() - self.taken.len()
    }

    /// Changes that wait for leave alone.
    pub fn held(&self) -> usize {
        let held = |number: &&u64| !self.items[*number].is_read() && !self.may_begin(&self.items[*number], 0);
        self.ready.iter().filter(held).count()
    }

    /// Whether this host runs the machine.
    pub fn is_live(&self) -> bool {
        self.gate.live
    }
}
