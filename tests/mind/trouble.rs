//! What happens to the cluster of the mind from outside: hosts die, come back and sleep, processes die, people want something.

use lockstep::agent::duties::Process as State;
use lockstep::agent::times::Times;
use lockstep::cluster::placement::{Placement, Wish};
use lockstep::cluster::records::Host;

use super::world::{Part, Proc, World};
use crate::common::Random;

impl World {
    /// A host dies with all that is on it.
    pub fn kill_host(&mut self, host: &str) {
        let round = self.round;
        let node = self.nodes.get_mut(host).unwrap();
        if !std::mem::replace(&mut node.alive, false) {
            return;
        }
        if !std::mem::replace(&mut node.asleep, false) {
            node.awake = round;
        }
        for proc in self.machines.values_mut().flat_map(|machine| &mut machine.procs).filter(|proc| proc.host == host) {
            proc.dead.get_or_insert(node.awake);
        }
        self.count("hosts that died");
    }

    /// A dead host is back, with nothing on it; or one that slept wakes up.
    pub fn revive(&mut self, host: &str) {
        let process = self.process();
        let node = self.nodes.get_mut(host).unwrap();
        if !node.alive {
            node.record = Host { process, beat: 0, sides: Vec::new(), ..node.record.clone() };
            for started in node.here.values_mut().filter(|started| started.state == State::Runs) {
                started.state = State::Ended { guest: false, text: "the process was killed".into() };
            }
        }
        if node.asleep || !node.alive {
            // It reads everything before it does anything.
            node.times = Times::default();
        }
        (node.alive, node.asleep) = (true, false);
    }

    pub fn sleep(&mut self, host: &str) {
        let round = self.round;
        let node = self.nodes.get_mut(host).unwrap();
        if node.alive && !node.asleep {
            (node.asleep, node.awake) = (true, round);
            self.count("hosts that fell asleep");
        }
    }

    /// A host falls asleep at the worst moment: while a side there is about to boot a guest.
    pub fn sleep_where_one_boots(&mut self) {
        let waits = |proc: &&Proc| proc.dead.is_none() && matches!(proc.part, Part::Waiting(_));
        let host = self.machines.values().flat_map(|machine| &machine.procs).find(waits).map(|proc| proc.host.clone());
        if let Some(host) = host {
            self.sleep(&host);
        }
    }

    /// One process of a VM dies alone.
    pub fn kill_one(&mut self, random: &mut Random) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        let name = random.pick(&names).clone();
        let up: Vec<String> = self.hosts().into_iter().filter(|host| self.is_up(host)).collect();
        let machine = self.machines.get_mut(&name).unwrap();
        let alive: Vec<usize> = (0..machine.procs.len())
            .filter(|&index| machine.procs[index].dead.is_none() && up.contains(&machine.procs[index].host))
            .collect();
        if alive.is_empty() {
            return;
        }
        let index = *random.pick(&alive);
        // The host's agent knows at once.
        let proc = machine.procs.remove(index);
        self.ended(&name, &proc);
        self.count("processes that died");
    }

    /// A person boots what was lost, where it has been found that nobody has it.
    pub fn boot_what_is_lost(&mut self) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        for name in names {
            let has_it = |proc: &Proc| !matches!(proc.part, Part::Connecting(_)) && proc.dead.is_none();
            let machine = self.machines.get_mut(&name).unwrap();
            let held = machine.register.as_ref().map_or(0, |claim| claim.generation);
            let placement = machine.vm.placement.as_mut();
            if held == 0 || machine.procs.iter().any(has_it) || machine.vm.spec.as_ref().unwrap().is.restart {
                continue;
            }
            let Some(placement) = placement.filter(|placement| placement.is.boot != Some(held)) else { continue };
            let number = placement.is.number + 1;
            placement.is = Placement { number, boot: Some(held), ..Default::default() };
            placement.version += 1;
            self.count("guests that a person has booted");
        }
    }

    /// A person wants a VM elsewhere.
    pub fn wish(&mut self, random: &mut Random) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        let hosts = self.hosts();
        let (name, primary, backup) =
            (random.pick(&names).clone(), random.pick(&hosts).clone(), random.pick(&hosts).clone());
        if primary == backup {
            return;
        }
        if let Some(placement) = self.machines.get_mut(&name).and_then(|machine| machine.vm.placement.as_mut()) {
            placement.is.wish = Some(Wish { primary, backup: Some(backup) });
            placement.version += 1;
            self.count("wishes");
        }
    }
}
