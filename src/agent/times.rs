//! For how long things have been as they are. An agent's decisions are a function of what it sees and of this; the clock is its own, and nobody else's is
//! asked. An agent that was asleep, or saw nothing for a while, begins anew: it has no right to impatience.

use std::collections::BTreeMap;

use crate::cluster::placement::Out;
use crate::cluster::view::{Condition, View, Vm};
use crate::console::status::Role;

/// How long a host that was chosen may take to have a transfer begun (or, where a guest is to boot, its side waiting).
pub const PATIENCE_NS: u64 = 3_000_000_000;

/// How often a transfer to a host may begin and break off.
pub const FALLS: u32 = 3;

/// How long a host has had no agent before it counts as gone: an agent whose session was lost is back before that.
pub const GONE_NS: u64 = 200_000_000;

/// After how long a host that has failed may be tried again; after its second failure in a row twice as long, and so on, up to [`RETRY_DOUBLINGS`].
pub const RETRY_NS: u64 = 3_000_000_000;

/// The most doublings of it.
pub const RETRY_DOUBLINGS: u32 = 4;

/// How long a host's uplink has to be dead before a guest is moved because of that.
pub const CUT_OFF_NS: u64 = 300_000_000;

/// How long a side that is to leave may take before it is looked at more closely.
pub const LEAVING_NS: u64 = 3_000_000_000;

/// A VM's placement, as long as it has its number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    number: u64,
    /// Since when it has made no progress.
    since_ns: u64,
    /// Where it stood when it was last looked at.
    stage: Stage,
    falls: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its first side is not there yet, or it runs and the backup that it was given has not begun.
    Bare,
    /// Nobody runs it; who may, asks the arbiter.
    Asking,
    /// A primary waits for its first backup.
    Booting,
    /// Its state is on its way.
    Transferring,
    /// There is nothing to wait for.
    Settled,
}

/// Since when things are as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    now_ns: u64,
    placed: BTreeMap<String, Placed>,
    /// By VM and host; with how often it had failed.
    out: BTreeMap<(String, String), (u32, u64)>,
    absent: BTreeMap<String, u64>,
    cut_off: BTreeMap<String, u64>,
    /// Sides of this host that are to leave, by VM and process.
    leaving: BTreeMap<(String, u32), u64>,
}

/// Whether a VM's first side waits for its backup, and its guest has not started.
pub fn boots(vm: &Vm) -> bool {
    let primary = vm.placement.as_ref().and_then(|placement| placement.is.primary.as_ref());
    let waits = |state: &str| matches!(state, "waiting" | "claiming" | "preparing");
    vm.sides.iter().any(|side| Some(&side.host) == primary && side.role == Role::Waiting && waits(&side.state))
}

fn stage(vm: &Vm) -> Stage {
    let backup = vm.placement.as_ref().and_then(|placement| placement.is.backup.as_ref());
    let protector = || vm.runner().and_then(|side| side.peer.as_ref());
    match vm.condition() {
        // The one that protects it is there until its successor has come.
        Condition::Protected if backup.is_some() && backup != protector() => Stage::Bare,
        Condition::Protected => Stage::Settled,
        Condition::Joining => Stage::Transferring,
        Condition::Unprotected => Stage::Bare,
        Condition::Waiting | Condition::Down if boots(vm) => Stage::Booting,
        Condition::Waiting => Stage::Asking,
        // Until there is a side that may boot it, this is what is waited for; otherwise it matters to nobody.
        Condition::Down => Stage::Bare,
    }
}

impl Times {
    /// Looks at everything, at `now_ns` on a clock of one's own.
    pub fn look(&mut self, now_ns: u64, view: &View) {
        self.now_ns = now_ns;
        self.placed.retain(|vm, _| view.vms.get(vm).is_some_and(|vm| vm.placement.is_some()));
        let mut out = BTreeMap::new();
        for (name, vm) in &view.vms {
            let Some(placement) = vm.placement.as_ref().map(|placement| &placement.is) else { continue };
            let stage = stage(vm);
            let fresh = || Placed { number: placement.number, since_ns: now_ns, stage, falls: 0 };
            let placed = self.placed.entry(name.clone()).or_insert_with(fresh);
            if placed.number != placement.number {
                *placed = fresh();
            }
            let fell = placed.stage == Stage::Transferring && stage == Stage::Bare;
            placed.falls += u32::from(fell);
            if placed.stage != stage || matches!(stage, Stage::Transferring | Stage::Settled) {
                placed.since_ns = now_ns;
            }
            placed.stage = stage;
            for entry in &placement.out {
                let key = (name.clone(), entry.host.clone());
                let since =
                    self.out.get(&key).filter(|(times, _)| *times == entry.times).map_or(now_ns, |(_, since)| *since);
                out.insert(key, (entry.times, since));
            }
        }
        self.out = out;
        let named = view.vms.values().filter_map(|vm| vm.placement.as_ref()).flat_map(|placement| placement.is.hosts());
        let agent = |host: &String| view.hosts.get(host).and_then(|host| host.record.as_ref());
        let absent: Vec<String> = named.filter(|host| agent(host).is_none()).cloned().collect();
        self.absent = kept(&self.absent, absent, now_ns);
        let cut_off = view.hosts.keys().filter(|host| agent(host).is_some_and(|agent| agent.uplink == Some(false)));
        self.cut_off = kept(&self.cut_off, cut_off.cloned().collect(), now_ns);
    }

    /// The same for the sides on this host that are to leave.
    pub fn look_at_leaving(&mut self, leaving: impl IntoIterator<Item = (String, u32)>) {
        self.leaving = kept(&self.leaving, leaving.into_iter().collect(), self.now_ns);
    }

    fn long(&self, since_ns: Option<&u64>, wanted_ns: u64) -> bool {
        since_ns.is_some_and(|since| self.now_ns.saturating_sub(*since) >= wanted_ns)
    }

    /// Whether a VM's placement has had its time, and nothing has come of it.
    pub fn is_late(&self, vm: &str) -> bool {
        self.placed.get(vm).is_some_and(|placed| {
            placed.falls >= FALLS || (placed.stage != Stage::Settled && self.long(Some(&placed.since_ns), PATIENCE_NS))
        })
    }

    /// Whether a host that somebody has placed a side on has no agent any more.
    pub fn is_gone(&self, host: &str) -> bool {
        self.long(self.absent.get(host), GONE_NS)
    }

    /// Whether a host's guests are cut off from their clients.
    pub fn is_cut_off(&self, host: &str) -> bool {
        self.long(self.cut_off.get(host), CUT_OFF_NS)
    }

    /// Whether a host that was left out for its failure may be tried again.
    pub fn may_try_again(&self, vm: &str, out: &Out) -> bool {
        let (times, since) = match self.out.get(&(vm.to_owned(), out.host.clone())) {
            Some((times, since)) if *times == out.times => (*times, since),
            _ => return false,
        };
        self.long(Some(since), RETRY_NS << times.saturating_sub(1).min(RETRY_DOUBLINGS))
    }

    /// Whether a side of this host has been to leave for too long.
    pub fn is_overdue(&self, vm: &str, pid: u32) -> bool {
        self.long(self.leaving.get(&(vm.to_owned(), pid)), LEAVING_NS)
    }
}

fn kept<K: Ord>(before: &BTreeMap<K, u64>, now: Vec<K>, now_ns: u64) -> BTreeMap<K, u64> {
    now.into_iter()
        .map(|key| {
            let since = before.get(&key).copied().unwrap_or(now_ns);
            (key, since)
        })
        .collect()
}
