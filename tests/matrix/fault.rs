//! What may fail: named by the part that a machine has at that moment, so that each fault is the same one whoever has which part.

use std::fmt;

use super::site::{ARBITERS, Cable, Machine};

/// A host's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// It runs the VM.
    Primary,
    /// It protects it.
    Backup,
    /// It has nothing to do.
    Spare,
}

/// An arbiter's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seat {
    /// It leads the group.
    Leader,
    /// It follows.
    Follower,
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Net {
    /// The guest's.
    Guests,
    /// The logging channels'.
    Channel,
    /// The arbiters'.
    Manage,
}

/// A failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// All that runs on a host is killed.
    Kill(Part),
    /// It all stands still, and wakes up when it is repaired.
    Freeze(Part),
    /// A host's cable is pulled.
    Cut(Net, Part),
    /// The two hosts of the pair do not hear each other any more, and all others do.
    Between,
    /// An arbiter is killed.
    KillArbiter(Seat),
    /// It stands still.
    FreezeArbiter(Seat),
    /// Its cable is pulled.
    CutArbiter(Seat),
}

/// A failure of machines and cables that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// A cable is pulled.
    Cut(Cable),
    /// A machine stands still.
    Freeze(Machine),
    /// All that runs on a machine is killed.
    Kill(Machine),
}

/// Who has which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The hosts: who runs the VM, who protects it, who has nothing to do.
    pub hosts: [usize; 3],
    /// The arbiter that leads.
    pub leader: usize,
}

impl Parts {
    /// A host's part.
    pub fn name(&self, host: usize) -> Part {
        [Part::Primary, Part::Backup, Part::Spare]
            .into_iter()
            .find(|part| self.hosts[*part as usize] == host)
            .expect("every host has a part")
    }
}

/// All of them, hosts first.
pub fn all() -> Vec<Fault> {
    let parts = [Part::Primary, Part::Backup, Part::Spare];
    let mut all: Vec<Fault> = parts.iter().flat_map(|&part| [Fault::Kill(part), Fault::Freeze(part)]).collect();
    for net in [Net::Channel, Net::Manage, Net::Guests] {
        all.extend(parts.iter().map(|&part| Fault::Cut(net, part)));
    }
    all.push(Fault::Between);
    for seat in [Seat::Leader, Seat::Follower] {
        all.extend([Fault::KillArbiter(seat), Fault::FreezeArbiter(seat), Fault::CutArbiter(seat)]);
    }
    all
}

impl Fault {
    /// The host whose processes it hits.
    fn hits(self) -> Option<Part> {
        match self {
            Fault::Kill(part) | Fault::Freeze(part) => Some(part),
            _ => None,
        }
    }

    fn is_of_an_arbiter(self) -> bool {
        matches!(self, Fault::KillArbiter(_) | Fault::FreezeArbiter(_) | Fault::CutArbiter(_))
    }

    /// Whether the two together are two failures. (There are two followers, and when the leader is lost another one leads.)
    pub fn goes_with(self, other: Fault) -> bool {
        (self != other || self.is_of_an_arbiter()) && (self.hits().is_none() || self.hits() != other.hits())
    }

    /// The failure among these machines; an arbiter that has failed already is not hit again.
    pub fn among(self, parts: &Parts, before: &[Deed]) -> Deed {
        let host = |part: Part| parts.hosts[part as usize];
        let arbiter = |seat: Seat| {
            let hit = |arbiter: &usize| {
                let machine = Machine::Arbiter(*arbiter);
                let deeds = [Deed::Kill(machine), Deed::Freeze(machine), Deed::Cut(Cable::Arbiter(*arbiter))];
                before.iter().any(|deed| deeds.contains(deed))
            };
            let followers = (1..ARBITERS).map(|after| (parts.leader + after) % ARBITERS);
            let mut wanted: Vec<usize> = followers.collect();
            match seat {
                Seat::Leader => wanted.insert(0, parts.leader),
                Seat::Follower => wanted.push(parts.leader),
            }
            wanted.into_iter().find(|arbiter| !hit(arbiter)).expect("at most two arbiters fail")
        };
        match self {
            Fault::Kill(part) => Deed::Kill(Machine::Host(host(part))),
            Fault::Freeze(part) => Deed::Freeze(Machine::Host(host(part))),
            Fault::Cut(Net::Guests, part) => Deed::Cut(Cable::Guests(host(part))),
            Fault::Cut(Net::Channel, part) => Deed::Cut(Cable::Channel(host(part))),
            Fault::Cut(Net::Manage, part) => Deed::Cut(Cable::Manage(host(part))),
            Fault::Between => Deed::Cut(Cable::Between(host(Part::Primary), host(Part::Backup))),
            Fault::KillArbiter(seat) => Deed::Kill(Machine::Arbiter(arbiter(seat))),
            Fault::FreezeArbiter(seat) => Deed::Freeze(Machine::Arbiter(arbiter(seat))),
            Fault::CutArbiter(seat) => Deed::Cut(Cable::Arbiter(arbiter(seat))),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Fault::Kill(part) => format!("{part} killed"),
            Fault::Freeze(part) => format!("{part} frozen"),
            Fault::Cut(net, part) => format!("{part}: {net} cut"),
            Fault::Between => "pair's link cut".into(),
            Fault::KillArbiter(seat) => format!("{seat} killed"),
            Fault::FreezeArbiter(seat) => format!("{seat} frozen"),
            Fault::CutArbiter(seat) => format!("{seat} cut off"),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Primary => "primary",
            Part::Backup => "backup",
            Part::Spare => "spare",
        })
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Seat::Leader => "leader",
            Seat::Follower => "follower",
        })
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Net::Guests => "guests",
            Net::Channel => "channel",
            Net::Manage => "arbiters",
        })
    }
}
