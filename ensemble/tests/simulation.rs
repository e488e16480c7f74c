//! Promise: whatever crashes, is cut off, or loses its disk, all clients see one order of changes; every acknowledged change is in it;
//! synced reads show it; each client's requests are carried out in its order, and events come before what they announce. When the
//! faults are over, the ensemble goes on.
//!
//! The members are the real ones, over a simulated network (`turmoil`) and disks that lose what was not flushed. One seed is one run:
//! `LOCKSTEP_SEED=n` shows it, `LOCKSTEP_SEEDS=n` runs so many.

#[path = "common/client.rs"]
mod client;
#[path = "simulation/disk.rs"]
mod disk;
#[path = "common/history.rs"]
mod history;
#[path = "common/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_ensemble::core::Core;
use lockstep_ensemble::net::Net;
use lockstep_ensemble::raft::group::Beginning;
use lockstep_ensemble::server::{Member, Plan, Storage};
use lockstep_ensemble::settings::{Settings, World};

use client::Client;
use disk::Disk;
use history::History;
use random::Random;

/// turmoil's network.
#[derive(Clone, Copy)]
struct Simulated;

impl Net for Simulated {
    type Stream = turmoil::net::TcpStream;
    type Listener = turmoil::net::TcpListener;

    async fn connect(&self, address: &str) -> io::Result<Self::Stream> {
        turmoil::net::TcpStream::connect(address).await
    }

    async fn bind(&self, address: &str) -> io::Result<Self::Listener> {
        turmoil::net::TcpListener::bind(address).await
    }

    async fn accept(listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)> {
        listener.accept().await
    }

    fn local_address(listener: &Self::Listener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }
}

const MEMBERS: u32 = 3;
const CLIENTS: usize = 3;
/// Simulated time with faults, and after them.
const TROUBLE: Duration = Duration::from_secs(12);
const PEACE: Duration = Duration::from_secs(8);

fn name(id: u32) -> String {
    format!("a{id}")
}

/// The members that run, for the referee to look at.
type Running = Arc<Mutex<BTreeMap<u32, Arc<Core<Simulated>>>>>;

async fn member(id: u32, disk: Disk, random: Arc<Mutex<Random>>, running: Running) -> turmoil::Result {
    let (database, snapshots) = disk.open();
    let peers: BTreeMap<u32, String> = (1..=MEMBERS).map(|id| (id, format!("{}:7710", name(id)))).collect();
    let fill = {
        let random = random.clone();
        move |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte = random.lock().unwrap().next() as u8)
    };
    let wall_ms = || turmoil::sim_elapsed().unwrap_or_default().as_millis() as i64;
    // Snapshots are taken often, so that members that were away get them.
    let settings = Settings { snapshot_entries: 100, ..Settings::default() };
    let plan = Plan {
        id,
        peer: ("0.0.0.0:7710".into(), format!("{}:7710", name(id))),
        client: ("0.0.0.0:2181".into(), format!("{}:2181", name(id))),
        beginning: Beginning { peers, join: false },
        settings,
        world: World { wall_ms: Arc::new(wall_ms), random: Arc::new(fill) },
    };
    let member = Member::start(plan, Simulated, Storage::simulated(database, snapshots)).await?;
    running.lock().unwrap().insert(id, member.core());
    member.run(std::future::pending()).await?;
    Ok(())
}

/// What is wrong at the moment.
#[derive(Default)]
struct Trouble {
    down: Option<u32>,
    cut: Option<(String, String)>,
}

/// Runs a seed: how many calls were answered in trouble and after it.
fn run(seed: u64) -> Result<(usize, usize), String> {
    let mut random = Random::new(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(3600))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(Duration::from_millis(4))
        .tcp_capacity(1 << 14)
        .build();
    let disks: BTreeMap<u32, Disk> = (1..=MEMBERS).map(|id| (id, Disk::default())).collect();
    let running = Running::default();
    for (id, disk) in &disks {
        let (id, disk) = (*id, disk.clone());
        let numbers = Arc::new(Mutex::new(Random::new(seed ^ u64::from(id) << 40)));
        let running = running.clone();
        sim.host(name(id), move || member(id, disk.clone(), numbers.clone(), running.clone()));
    }
    let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
    for number in 1..=CLIENTS {
        let members = (1..=MEMBERS).map(|id| format!("{}:2181", name(id))).collect();
        let client =
            Client::new(Simulated, number, members, Random::new(seed ^ (number as u64) << 50), history.clone());
        let stop = stop.clone();
        sim.client(format!("c{number}"), async move {
            client.run(move || stop.load(SeqCst)).await;
            Ok(())
        });
    }
    let mut trouble = Trouble::default();
    let mut next = Duration::from_millis(1500);
    let mut in_trouble = 0;
    while !sim.step().map_err(|error| format!("seed {seed}: {error}"))? {
        let now = sim.elapsed();
        if now >= next && now < TROUBLE {
            next = now + Duration::from_millis(100 + random.below(1200));
            disturb(&mut sim, &mut random, &mut trouble, &disks, &running);
        } else if now >= TROUBLE && next < TROUBLE + PEACE {
            next = TROUBLE + PEACE;
            heal(&mut sim, &mut trouble);
            in_trouble = history.answered();
        } else if now >= TROUBLE + PEACE {
            stop.store(true, SeqCst);
        }
    }
    history.check().map_err(|error| format!("seed {seed}: {error}"))?;
    Ok((in_trouble, history.answered() - in_trouble))
}

fn heal(sim: &mut turmoil::Sim<'_>, trouble: &mut Trouble) {
    if let Some((one, other)) = trouble.cut.take() {
        sim.repair(one, other);
    }
    if let Some(id) = trouble.down.take() {
        sim.bounce(name(id));
    }
}

/// Whether every member is one of the group, with the disk that it has now, and holds what the leader has: then the loss of one disk is
/// the loss of one copy of three. (Disks that are lost faster than members can be taken in again are the loss of a majority.)
fn is_whole(running: &Running) -> bool {
    let running = running.lock().unwrap();
    let last = |core: &Core<Simulated>| core.raft.data_metrics().borrow().last_log;
    running.values().any(|leader| {
        let metrics = leader.raft.server_metrics();
        let metrics = metrics.borrow();
        let config = metrics.membership_config.membership().get_joint_config().clone();
        metrics.state == openraft::ServerState::Leader
            && config.len() == 1
            && config[0] == running.values().map(|core| core.me.member).collect()
            && running.values().all(|core| last(core) == last(leader))
    })
}

/// One more thing goes wrong, or is mended. At most one member is away at a time, and one cable cut.
fn disturb(
    sim: &mut turmoil::Sim<'_>,
    random: &mut Random,
    trouble: &mut Trouble,
    disks: &BTreeMap<u32, Disk>,
    running: &Running,
) {
    let id = 1 + random.below(u64::from(MEMBERS)) as u32;
    match random.below(6) {
        0 | 1 => match trouble.down.take() {
            Some(down) => sim.bounce(name(down)),
            None => {
                let whole = trouble.cut.is_none() && is_whole(running);
                // The disk first: what a dying process still flushes does not arrive.
                disks[&id].crash(random);
                sim.crash(name(id));
                if whole && random.one_in(3) {
                    disks[&id].wipe();
                }
                trouble.down = Some(id);
            }
        },
        // All at once: only what was flushed counts.
        2 if trouble.down.is_none() => {
            for (id, disk) in disks {
                disk.crash(random);
                sim.crash(name(*id));
            }
            for id in disks.keys() {
                sim.bounce(name(*id));
            }
        }
        3 | 4 => match trouble.cut.take() {
            Some((one, other)) => sim.repair(one, other),
            None => {
                let other = match random.one_in(2) {
                    true => format!("c{}", 1 + random.below(CLIENTS as u64)),
                    false => name(1 + id % MEMBERS),
                };
                sim.partition(name(id), other.clone());
                trouble.cut = Some((name(id), other));
            }
        },
        _ => heal(sim, trouble),
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Times are the simulation's.
struct SimulatedTime;

impl tracing_subscriber::fmt::time::FormatTime for SimulatedTime {
    fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(out, "{:?}", turmoil::sim_elapsed().unwrap_or_default())
    }
}

#[test]
fn one_order_explains_what_clients_saw() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_timer(SimulatedTime).init();
    }
    let seeds = match variable("LOCKSTEP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("LOCKSTEP_SEEDS").unwrap_or(12),
    };
    let (mut in_trouble, mut in_peace) = (0, 0);
    for seed in seeds {
        let (trouble, peace) = run(seed).unwrap_or_else(|error| panic!("{error}"));
        assert!(peace > 100, "seed {seed}: {peace} answers after the faults: it does not go on");
        (in_trouble, in_peace) = (in_trouble + trouble, in_peace + peace);
    }
    println!("{in_trouble} answers in trouble, {in_peace} after it");
    assert!(in_trouble > 100, "nothing was served in trouble");
}
