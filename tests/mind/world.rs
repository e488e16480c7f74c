//! A cluster of the mind: hosts with real agents (their pure part) and processes that keep to the protocol's outlines, in rounds of a tenth of a second. Hosts die,
//! come back empty, fall asleep and wake up; agents see the registry late; two write at once and one is refused.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::agent::decide::{Act, Place, decide};
use lockstep::agent::duties::{Duty, Here, Process as State, Started, What, duties, tell};
use lockstep::agent::times::Times;
use lockstep::arbiter::Claim;
use lockstep::cluster::process::Process;
use lockstep::cluster::records::{Host, Side, VERSION};
use lockstep::cluster::spec::Spec;
use lockstep::cluster::view::{HostView, Versioned, View, Vm};
use lockstep::console::status::Role;

use crate::common::Random;

/// One round, ns.
pub const ROUND_NS: u64 = 100_000_000;
/// Rounds for which the record of a dead process stays.
const SESSION_ROUNDS: u64 = 10;

/// What a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It waits for a backup, to boot the guest as the successor of this generation.
    Waiting(u64),
    /// It looks for its primary at this logging channel.
    Connecting(String),
    /// It gets the state of this process.
    Joining(u64),
    /// It protects this process.
    Following(u64),
    /// It runs the machine; the process that protects it.
    Live(Option<u64>),
}

#[derive(Clone, Debug)]
pub(super) struct Proc {
    pub(super) host: String,
    pub(super) number: u64,
    pub(super) part: Part,
    pub(super) generation: u64,
    /// It is up, and listed, from this round on.
    ready: u64,
    /// It is dead since this round; its record is still there.
    pub(super) dead: Option<u64>,
}

pub(super) struct Node {
    pub(super) alive: bool,
    pub(super) asleep: bool,
    /// Round in which its agent was last awake.
    pub(super) awake: u64,
    pub(super) record: Host,
    pub(super) here: Here,
    pub(super) times: Times,
    view: View,
}

pub(super) struct Machine {
    pub(super) register: Option<Claim>,
    pub(super) vm: Vm,
    pub(super) procs: Vec<Proc>,
}

/// What may be planted in it, for the checks to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// None.
    None,
    /// A reservation's version is not looked at.
    NoReservations,
    /// Who boots takes any generation.
    NoRegister,
}

/// The cluster.
pub struct World {
    pub round: u64,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) machines: BTreeMap<String, Machine>,
    reservations: BTreeMap<String, i32>,
    next: u64,
    mistake: Mistake,
    /// How often each thing happened.
    pub seen: BTreeMap<&'static str, u64>,
}

impl World {
    pub fn new(hosts: &[Host], specs: &[(String, Spec)], mistake: Mistake) -> World {
        let mut world = World {
            round: 100,
            nodes: BTreeMap::new(),
            machines: BTreeMap::new(),
            reservations: BTreeMap::new(),
            next: 1,
            mistake,
            seen: BTreeMap::new(),
        };
        for host in hosts {
            let process = world.process();
            let record = Host { version: VERSION, process, ..host.clone() };
            let node = Node {
                alive: true,
                asleep: false,
                awake: world.round,
                record,
                here: Here::new(),
                times: Times::default(),
                view: View::default(),
            };
            world.nodes.insert(host.name.clone(), node);
        }
        for (name, spec) in specs {
            let vm = Vm { spec: Some(Versioned { is: spec.clone(), version: 0 }), ..Vm::default() };
            world.machines.insert(name.clone(), Machine { register: None, vm, procs: Vec::new() });
        }
        world
    }

    pub(super) fn process(&mut self) -> Process {
        self.next += 1;
        Process { number: format!("{:016x}", self.next), pid: self.next as u32, ..Process::default() }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// How much the agents have done: placements written, sides started, asked to leave or to switch, killed.
    pub fn deeds(&self) -> u64 {
        let deeds = ["writes", "processes started", "sides that left", "sides that were killed", "switches"];
        deeds.iter().filter_map(|deed| self.seen.get(deed)).sum()
    }

    /// How many VMs there are.
    pub fn count_of_vms(&self) -> u64 {
        self.machines.len() as u64
    }

    pub fn hosts(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    pub(super) fn is_up(&self, host: &str) -> bool {
        let node = &self.nodes[host];
        node.alive && !node.asleep
    }

    /// What anybody may see in the registry at this moment.
    pub fn view(&self) -> View {
        let mut view = View { reservations: self.reservations.clone(), ..View::default() };
        for (name, node) in &self.nodes {
            if node.awake + SESSION_ROUNDS >= self.round {
                let host = HostView { record: Some(node.record.clone()), ..HostView::default() };
                view.hosts.insert(name.clone(), host);
            }
        }
        for (name, machine) in &self.machines {
            let mut vm = machine.vm.clone();
            vm.register.clone_from(&machine.register);
            vm.sides =
                machine.procs.iter().filter(|proc| self.is_listed(proc)).map(|proc| self.side(name, proc)).collect();
            view.vms.insert(name.clone(), vm);
        }
        view
    }

    fn is_listed(&self, proc: &Proc) -> bool {
        let node = &self.nodes[&proc.host];
        let since = proc.dead.unwrap_or(if node.asleep { node.awake } else { self.round });
        proc.ready <= self.round && since + SESSION_ROUNDS >= self.round
    }

    fn side(&self, vm: &str, proc: &Proc) -> Side {
        let host_of = |number: u64| {
            let procs = &self.machines[vm].procs;
            procs.iter().find(|proc| proc.number == number).map(|proc| proc.host.clone())
        };
        let joins = self.machines[vm].procs.iter().any(|other| other.part == Part::Joining(proc.number));
        let (role, state, peer) = match &proc.part {
            Part::Waiting(_) => (Role::Waiting, "waiting", None),
            Part::Connecting(_) => (Role::Backup, "connecting", None),
            Part::Joining(primary) => (Role::Backup, "receiving", host_of(*primary)),
            Part::Following(primary) => (Role::Backup, "following", host_of(*primary)),
            Part::Live(Some(backup)) => (Role::Primary, "protected", host_of(*backup)),
            Part::Live(None) if joins => (Role::Unprotected, "transferring", None),
            Part::Live(None) => (Role::Unprotected, "unprotected", None),
        };
        let spec = self.machines[vm].vm.spec.as_ref().map(|spec| spec.is.memory_mib);
        Side {
            version: VERSION,
            vm: vm.into(),
            host: proc.host.clone(),
            process: Process { number: format!("{:016x}", proc.number), pid: proc.number as u32, ..Process::default() },
            role,
            state: state.into(),
            generation: proc.generation,
            peer,
            control: format!("{}:{}", proc.host, proc.number),
            channel: format!("{}:{}", proc.host, proc.number),
            memory_mib: spec,
            cpu: self.nodes[&proc.host].record.cpu.clone(),
            ..Side::default()
        }
    }

    pub(super) fn ended(&mut self, vm: &str, proc: &Proc) {
        let node = self.nodes.get_mut(&proc.host).unwrap();
        if let Some(started) = node.here.get_mut(vm).filter(|started| started.pid == proc.number as u32) {
            started.state = State::Ended { guest: false, text: "the process was killed".into() };
        }
    }

    /// One round: the protocol's, then every agent's.
    pub fn turn(&mut self, random: &mut Random, sees: u64) {
        self.round += 1;
        for name in self.machines.keys().cloned().collect::<Vec<_>>() {
            self.protocol(&name);
        }
        for host in self.hosts() {
            if !self.is_up(&host) {
                continue;
            }
            if random.below(100) < sees {
                let view = self.view();
                self.nodes.get_mut(&host).unwrap().view = view;
            }
            self.agent(&host, random);
            self.nodes.get_mut(&host).unwrap().awake = self.round;
        }
        self.holds();
    }

    /// What the sides of a VM do by themselves.
    fn protocol(&mut self, name: &str) {
        let up: BTreeSet<String> = self.hosts().into_iter().filter(|host| self.is_up(host)).collect();
        let (round, mistake) = (self.round, self.mistake);
        let machine = self.machines.get_mut(name).unwrap();
        machine.procs.retain(|proc| proc.dead.is_none_or(|since| since + SESSION_ROUNDS >= round));
        let works = |proc: &Proc| proc.dead.is_none() && proc.ready <= round && up.contains(&proc.host);
        let held = machine.register.as_ref().map_or(0, |claim| claim.generation);
        let mut gone = Vec::new();
        let alone = machine.vm.spec.as_ref().is_some_and(|spec| spec.is.backups == 0);
        let mut register = machine.register.clone();
        let claim = |register: &mut Option<Claim>, proc: &Proc, after: u64| {
            let won = register.as_ref().map_or(0, |claim| claim.generation) == after
                || mistake == Mistake::NoRegister && matches!(proc.part, Part::Waiting(_));
            if won {
                let (host_name, host) = (proc.host.clone(), proc.number);
                let generation = register.as_ref().map_or(0, |claim| claim.generation).max(after) + 1;
                *register = Some(Claim { generation, host, host_name, shared_with: None });
            }
            won
        };
        let mut events: Vec<&'static str> = Vec::new();
        for index in 0..machine.procs.len() {
            // As they are now: what the sides before this one have done counts.
            let procs = machine.procs.clone();
            let find = |number: u64| procs.iter().find(|proc| proc.number == number);
            let proc = machine.procs[index].clone();
            if !works(&proc) {
                continue;
            }
            let channel = format!("{}:{}", proc.host, proc.number);
            let caller =
                machine.procs.iter().position(|other| works(other) && other.part == Part::Connecting(channel.clone()));
            match proc.part {
                Part::Waiting(after) if alone || caller.is_some() => {
                    if claim(&mut register, &proc, after) {
                        let holder = procs.iter().find(|other| {
                            let has_it = matches!(other.part, Part::Live(_) | Part::Following(_));
                            has_it && other.dead.is_none() && other.generation >= held
                        });
                        assert!(holder.is_none(), "{name} is booted anew while {holder:?} has it");
                        let generation = register.as_ref().unwrap().generation;
                        let backup = caller.filter(|_| !alone);
                        let number = backup.map(|at| machine.procs[at].number);
                        (machine.procs[index].part, machine.procs[index].generation) = (Part::Live(number), generation);
                        if let Some(at) = backup {
                            (machine.procs[at].part, machine.procs[at].generation) =
                                (Part::Following(proc.number), generation);
                        }
                        events.push("guests booted");
                    } else {
                        gone.push(proc.number);
                    }
                }
                Part::Live(Some(backup)) => {
                    let there =
                        find(backup).is_some_and(|other| works(other) && other.part == Part::Following(proc.number));
                    // One that slept, and was taken over meanwhile, has lost.
                    if held > proc.generation {
                        gone.push(proc.number);
                    } else if !there && claim(&mut register, &proc, proc.generation) {
                        let generation = proc.generation + 1;
                        (machine.procs[index].part, machine.procs[index].generation) = (Part::Live(None), generation);
                    }
                }
                Part::Live(None) if held > proc.generation => gone.push(proc.number),
                Part::Live(None) => {
                    let joining = machine.procs.iter().position(|other| other.part == Part::Joining(proc.number));
                    match (joining, caller) {
                        (Some(at), _) if works(&machine.procs[at]) => {
                            machine.procs[index].part = Part::Live(Some(machine.procs[at].number));
                            machine.procs[at].part = Part::Following(proc.number);
                            events.push("protections");
                        }
                        (Some(at), _) => machine.procs[at].part = Part::Connecting(channel),
                        (None, Some(at)) => {
                            (machine.procs[at].part, machine.procs[at].generation) =
                                (Part::Joining(proc.number), proc.generation);
                        }
                        (None, None) => {}
                    }
                }
                Part::Following(primary) => {
                    let there =
                        find(primary).is_some_and(|other| works(other) && other.part == Part::Live(Some(proc.number)));
                    if held > proc.generation {
                        gone.push(proc.number);
                    } else if !there && claim(&mut register, &proc, proc.generation) {
                        let generation = proc.generation + 1;
                        (machine.procs[index].part, machine.procs[index].generation) = (Part::Live(None), generation);
                        events.push("take-overs");
                    }
                }
                Part::Joining(primary) if !find(primary).is_some_and(works) => {
                    let at = find(primary)
                        .map_or_else(|| "nowhere".into(), |other| format!("{}:{}", other.host, other.number));
                    (machine.procs[index].part, machine.procs[index].generation) = (Part::Connecting(at), 0);
                }
                Part::Waiting(_) | Part::Connecting(_) | Part::Joining(_) => {}
            }
        }
        machine.register = register;
        let (gone, left): (Vec<Proc>, Vec<Proc>) =
            std::mem::take(&mut machine.procs).into_iter().partition(|proc| gone.contains(&proc.number));
        machine.procs = left;
        for proc in gone {
            self.ended(name, &proc);
            events.push("sides that had lost");
        }
        events.into_iter().for_each(|event| self.count(event));
    }

    /// What the agent of a host does.
    fn agent(&mut self, me: &str, random: &mut Random) {
        let now_ns = self.round * ROUND_NS;
        let mut view = self.nodes[me].view.clone();
        // It knows first which of its own processes are gone.
        for (name, vm) in &mut view.vms {
            vm.sides.retain(|side| side.host != me || self.proc_runs(name, side.process.pid));
        }
        let node = self.nodes.get_mut(me).unwrap();
        node.record = tell(&view, me, &node.here, &node.record);
        // Only as the host that the others see.
        if view
            .hosts
            .get(me)
            .and_then(|host| host.record.as_ref())
            .is_none_or(|seen| seen.process != node.record.process)
        {
            return;
        }
        node.times.look(now_ns, &view);
        let acts = decide(&view, me, &node.times);
        let mut reservations = view.reservations.clone();
        let (mut written, mut overtaken) = (false, false);
        for act in acts {
            match act {
                Act::Place(place) => {
                    if !self.place(&view, &place, &mut reservations) {
                        overtaken = true;
                        break;
                    }
                    written = true;
                }
                Act::Switch { vm, version, .. } => self.switch(&vm, version),
            }
        }
        if written || overtaken {
            self.count(if overtaken { "writes that were overtaken" } else { "writes" });
            return;
        }
        let node = self.nodes.get_mut(me).unwrap();
        let (todo, leaving) = duties(&view, me, &node.here, &node.times);
        node.times.look_at_leaving(leaving);
        for Duty { vm, version, what } in todo {
            if let What::Decline { number, boot, misfit } = &what {
                let state = State::Ended { guest: false, text: misfit.to_string() };
                let started = Started { number: *number, boot: *boot, primary: String::new(), pid: 0, state };
                self.nodes.get_mut(me).unwrap().here.insert(vm, started);
                self.count("sides that found no place");
                continue;
            }
            let now = self.machines[&vm].vm.placement.as_ref().map(|placement| placement.version);
            if now != Some(version) {
                self.count("deeds that were not confirmed");
                continue;
            }
            // Some processes do not come up.
            let comes = (random.below(20) > 0).then(|| self.round + random.below(5));
            self.does(me, &vm, what, comes);
        }
    }

    fn proc_runs(&self, vm: &str, pid: u32) -> bool {
        self.machines[vm].procs.iter().any(|proc| proc.number as u32 == pid && proc.dead.is_none())
    }

    fn does(&mut self, me: &str, vm: &str, what: What, comes: Option<u64>) {
        self.next += 1;
        let number_here = self.next;
        let (part, started) = match what {
            What::Leave { control } => {
                let machine = self.machines.get_mut(vm).unwrap();
                // It refuses where the machine may depend on it.
                let leaves = |proc: &Proc| {
                    format!("{}:{}", proc.host, proc.number) == control
                        && !matches!(proc.part, Part::Live(_))
                        && proc.dead.is_none()
                };
                if let Some(index) = machine.procs.iter().position(leaves) {
                    let proc = machine.procs.remove(index);
                    self.ended(vm, &proc);
                    self.count("sides that left");
                }
                return;
            }
            What::Decline { .. } => return,
            What::Kill { pid } => {
                let machine = self.machines.get_mut(vm).unwrap();
                if let Some(index) = machine.procs.iter().position(|proc| proc.number as u32 == pid) {
                    let proc = machine.procs.remove(index);
                    assert!(
                        !matches!(proc.part, Part::Live(_))
                            || proc.generation < machine.register.as_ref().unwrap().generation
                    );
                    self.ended(vm, &proc);
                    self.count("sides that were killed");
                }
                return;
            }
            What::Boot { number, after, .. } => {
                let started = Started {
                    number,
                    boot: Some(after),
                    primary: String::new(),
                    pid: number_here as u32,
                    state: State::Runs,
                };
                (Part::Waiting(after), started)
            }
            What::Protect { number, boot, primary, .. } => {
                let started =
                    Started { number, boot, primary: primary.clone(), pid: number_here as u32, state: State::Runs };
                (Part::Connecting(primary), started)
            }
        };
        let state = if comes.is_some() { State::Runs } else { State::Ended { guest: false, text: "no disk".into() } };
        self.nodes.get_mut(me).unwrap().here.insert(vm.into(), Started { state, ..started });
        let machine = self.machines.get_mut(vm).unwrap();
        assert!(
            !machine.procs.iter().any(|proc| proc.host == me && proc.dead.is_none()),
            "two processes of {vm} on {me}: {:?}",
            machine.procs
        );
        if let Some(ready) = comes {
            // A process of the same host before takes its record with it.
            machine.procs.retain(|proc| proc.host != me);
            machine.procs.push(Proc { host: me.into(), number: number_here, part, generation: 0, ready, dead: None });
        }
        self.count("processes started");
    }

    fn switch(&mut self, vm: &str, version: i32) {
        let machine = self.machines.get_mut(vm).unwrap();
        if machine.vm.placement.as_ref().is_none_or(|placement| placement.version != version) {
            return;
        }
        let Some(from) =
            machine.procs.iter().position(|proc| matches!(proc.part, Part::Live(Some(_))) && proc.dead.is_none())
        else {
            return;
        };
        let Part::Live(Some(heir)) = machine.procs[from].part else { return };
        let old = machine.procs[from].number;
        let Some(to) = machine
            .procs
            .iter()
            .position(|proc| proc.number == heir && proc.part == Part::Following(old) && proc.dead.is_none())
        else {
            return;
        };
        let generation = machine.procs[from].generation + 1;
        let (host, host_name) = (heir, machine.procs[to].host.clone());
        machine.register = Some(Claim { generation, host, host_name, shared_with: Some(old) });
        (machine.procs[from].part, machine.procs[from].generation) = (Part::Following(heir), generation);
        (machine.procs[to].part, machine.procs[to].generation) = (Part::Live(Some(old)), generation);
        self.count("switches");
    }

    /// A placement is written, if what it depends on is still so. What its agent saw when it chose: `saw`.
    fn place(&mut self, saw: &View, place: &Place, reservations: &mut BTreeMap<String, i32>) -> bool {
        let now = self.machines[&place.vm].vm.placement.as_ref().map(|placement| placement.version);
        let fresh = place.added.iter().all(|host| self.reservations.get(host) == reservations.get(host));
        if now != place.instead_of || (!fresh && self.mistake != Mistake::NoReservations) {
            return false;
        }
        self.is_sane(saw, place);
        for host in &place.added {
            let version = self.reservations.get(host).map_or(0, |version| version + 1);
            self.reservations.insert(host.clone(), version);
            reservations.insert(host.clone(), version);
        }
        let version = now.map_or(0, |version| version + 1);
        let machine = self.machines.get_mut(&place.vm).unwrap();
        machine.vm.placement = Some(Versioned { is: place.placement.clone(), version });
        true
    }
}
