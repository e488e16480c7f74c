//! Promise: whatever becomes of the processes of a minority of arbiters (SIGKILL at any moment, SIGSTOP, an emptied disk), and whoever
//! takes whose place meanwhile, all clients see one order of changes, with every acknowledged one in it; synced reads show it, each
//! client's requests are carried out in its order, events come before what they announce, and the group goes on.
//!
//! Real processes and disks; `ensemble/tests/simulation.rs` shows the same under thousands of simulated schedules, with cut networks.
//! `LOCKSTEP_KILLS=n`: so many blows.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "../ensemble/tests/common/client.rs"]
mod client;
mod common;
#[path = "../ensemble/tests/common/history.rs"]
mod history;
#[path = "../ensemble/tests/common/random.rs"]
mod random;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use client::Client;
use common::members::{Member, Port};
use common::zookeeper::{Kind, Settings, ZooKeeper, background};
use common::{count_from, eventually, seed};
use history::History;
use lockstep_ensemble::net::Tcp;
use random::Random;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const CLIENTS: usize = 4;

/// What one arbiter says of the group.
fn group(peer: &str) -> Option<serde_json::Value> {
    let asked = Command::new(LOCKSTEP).args(["arbiter", "members", peer, "--json"]).output().expect("it can be asked");
    asked.status.success().then(|| serde_json::from_slice(&asked.stdout).expect("JSON"))
}

/// Numbers and incarnations of those who vote, if the arbiter there knows a group.
fn voters(peer: &str) -> Option<Vec<(u64, u64)>> {
    let group = group(peer)?;
    let voters = group["group"]["voters"].as_array()?;
    Some(voters.iter().map(|voter| (voter["id"].as_u64().unwrap(), voter["incarnation"].as_u64().unwrap())).collect())
}

struct Fire {
    arbiters: ZooKeeper,
    random: Random,
    history: History,
}

impl Fire {
    /// Waits until the clients get on.
    fn gets_on(&self, what: &str) {
        let before = self.history.answered();
        eventually(what, || (self.history.answered() > before + 40).then_some(()));
    }

    fn some_time(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.below(most_ms)));
    }

    fn kill(&mut self, index: usize) {
        self.arbiters.member(index).kill();
        self.some_time(700);
        self.arbiters.member(index).restart();
        self.arbiters.serves();
    }

    fn stop(&mut self, index: usize) {
        self.arbiters.member(index).stop();
        self.some_time(2500);
        self.arbiters.member(index).go_on();
    }

    /// All at once: what was acknowledged is on disks.
    fn kill_all(&mut self) {
        for index in 0..self.arbiters.count() {
            self.arbiters.member(index).kill_at_once();
        }
        for index in 0..self.arbiters.count() {
            self.arbiters.member(index).kill();
        }
        for index in 0..self.arbiters.count() {
            self.arbiters.member(index).restart();
        }
        self.arbiters.serves();
    }

    /// A member loses its disk, and is taken in again as another one.
    fn wipe(&mut self, index: usize) {
        let (peer, id) = (self.arbiters.peer((index + 1) % self.arbiters.count()), index as u64 + 1);
        let before = voters(&peer).expect("it knows its group");
        self.arbiters.member(index).kill();
        let data = self.arbiters.directory().join(format!("data{index}"));
        std::fs::remove_dir_all(data).expect("its data can be removed");
        self.arbiters.member(index).restart();
        eventually("a member without its disk is taken in again", || {
            let now = voters(&peer)?;
            let taken_in = now.iter().any(|voter| voter.0 == id && !before.contains(voter));
            (taken_in && now.len() == before.len()).then_some(())
        });
        self.arbiters.serves();
    }

    /// A fourth member comes, and another one goes and comes back with an empty disk.
    fn change_members(&mut self, index: usize) {
        let (peer, client) = (Port::reserve(), Port::reserve());
        let directory = tempfile::tempdir().expect("a directory");
        let others: Vec<String> =
            (0..self.arbiters.count()).map(|index| format!("{}={}", index + 1, self.arbiters.peer(index))).collect();
        let peers = format!("{},9={}", others.join(","), peer.address());
        let (client, data) = (client.address(), directory.path().join("data"));
        let fourth = Member::start(&directory.path().join("out"), move || {
            let mut command = Command::new(LOCKSTEP);
            command.args(["arbiter", "--id", "9", "--peers", &peers, "--client", &client, "--join", "--data"]);
            command.arg(&data);
            command
        });
        let at = self.arbiters.peer(index);
        eventually("the fourth member is one of the group", || (voters(&at)?.len() == 4).then_some(()));
        self.gets_on("clients of four arbiters");
        eventually("the fourth member goes", || {
            let removing =
                Command::new(LOCKSTEP).args(["arbiter", "remove", &at, "9"]).output().expect("it can be asked");
            removing.status.success().then_some(())
        });
        eventually("the group is as before", || (voters(&at)?.len() == 3).then_some(()));
        drop(fourth);
    }

    /// Whether every member votes, and has what the leader has.
    fn is_whole(&self) -> bool {
        let groups: Vec<_> = (0..self.arbiters.count()).filter_map(|index| group(&self.arbiters.peer(index))).collect();
        let seen = |group: &serde_json::Value| (group["group"]["voters"].clone(), group["group"]["leader"].clone());
        groups.len() == self.arbiters.count()
            && groups.iter().all(|group| {
                let me = &group["me"];
                seen(group) == seen(&groups[0])
                    && group["group"]["voters"]
                        .as_array()
                        .is_some_and(|voters| voters.contains(me) && voters.len() == 3)
            })
    }
}

#[test]
fn one_order_explains_what_clients_of_arbiters_under_fire_saw() {
    let (blows, mut random) = (count_from("LOCKSTEP_KILLS", 9), Random::new(seed()));
    let settings = Settings { session_ms: [1000, 10_000], ..Settings::default() };
    let arbiters = ZooKeeper::start_set(Kind::Lockstep, 3, settings);
    let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
    let runtime = background();
    let members: Vec<String> = (0..arbiters.count()).map(|index| arbiters.address(index)).collect();
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|number| {
            let client = Client::new(Tcp, number, members.clone(), Random::new(random.next()), history.clone());
            let stop = stop.clone();
            runtime.spawn(client.run(move || stop.load(SeqCst)))
        })
        .collect();
    let mut fire = Fire { arbiters, random, history: history.clone() };
    fire.gets_on("clients of three arbiters");
    let mut dealt = std::collections::BTreeMap::new();
    for blow in 0..blows {
        let index = fire.random.below(3) as usize;
        // Each kind has its turn in a short run, too.
        let kind = if blow < 5 { blow } else { fire.random.below(8) };
        let name = match kind {
            0 => {
                eventually("the group is whole", || fire.is_whole().then_some(()));
                fire.wipe(index);
                "emptied disks"
            }
            1 => {
                fire.kill_all();
                "all killed at once"
            }
            2 => {
                fire.change_members(index);
                "members changed"
            }
            3 | 4 => {
                let leader = fire.arbiters.leader();
                if kind == 3 {
                    fire.stop(leader)
                } else {
                    fire.kill(leader)
                };
                "leaders stopped or killed"
            }
            5 => {
                fire.stop(index);
                "stopped"
            }
            _ => {
                fire.kill(index);
                "killed"
            }
        };
        *dealt.entry(name).or_insert(0) += 1;
        fire.gets_on(name);
    }
    stop.store(true, SeqCst);
    for client in clients {
        runtime.block_on(client).expect("a client found nothing wrong");
    }
    println!("{} answers; {dealt:?}", history.answered());
    history.check().unwrap_or_else(|error| panic!("{error}"));
}
