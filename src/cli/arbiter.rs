//! `lockstep arbiter`: a member of the group that decides who may live.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use lockstep_ensemble::core::Core;
use lockstep_ensemble::net::Tcp;
use lockstep_ensemble::peer::frame::Kind;
use lockstep_ensemble::peer::message::{ChangeError, Who};
use lockstep_ensemble::raft::group::{self, Beginning};
use lockstep_ensemble::server::{End, Member, Plan, Storage};
use lockstep_ensemble::settings::{Settings, World};

use super::remote::address;

/// The port of other members where none is named.
const CLIENT_PORT: u16 = 2181;

/// Run an arbiter: one of three or five that decide by majority who may live, and speak the ZooKeeper protocol.
///
/// Three go on without one of them, five without two. Start each with its own number and the same
/// list of all:
///
///   a$ lockstep arbiter --id 1 --peers 1=10.0.0.1:7710,2=10.0.0.2:7710,3=10.0.0.3:7710
///   b$ lockstep arbiter --id 2 --peers 1=10.0.0.1:7710,2=10.0.0.2:7710,3=10.0.0.3:7710
///   c$ lockstep arbiter --id 3 --peers 1=10.0.0.1:7710,2=10.0.0.2:7710,3=10.0.0.3:7710
///
/// and tell hosts and agents where they are: --arbiter zk://10.0.0.1,10.0.0.2,10.0.0.3
///
/// The group forms itself once all of them are there. An arbiter whose disk was lost is started
/// as before, with an empty directory, and the others take it in again.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, verbatim_doc_comment)]
pub struct ArbiterArgs {
    #[command(subcommand)]
    command: Option<ArbiterCommand>,
    /// Number of this arbiter
    #[arg(long, value_name = "N", required = true, value_parser = clap::value_parser!(u32).range(1..))]
    id: Option<u32>,
    /// All arbiters, this one among them, and where they reach each other: N=HOST:PORT,…
    #[arg(long, value_name = "PEERS", required = true, value_delimiter = ',', value_parser = peer)]
    peers: Vec<(u32, String)>,
    /// Where clients reach this arbiter: HOST:PORT. Its host among the peers and port 2181 where it is left out
    #[arg(long, value_name = "ADDR", value_parser = address)]
    client: Option<String>,
    /// Where to listen for the other arbiters, if not on the address that they use
    #[arg(long, value_name = "ADDR", value_parser = address)]
    listen_peers: Option<String>,
    /// Where to listen for clients, if not on the address that they use
    #[arg(long, value_name = "ADDR", value_parser = address)]
    listen_clients: Option<String>,
    /// Where this arbiter keeps its log and its snapshots: a directory on a disk that is quick to flush. /var/lib/lockstep/arbiter-N where it is
    /// left out
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// This arbiter is a new one of a group that is there already (`--peers` names some of that, and this one)
    #[arg(long)]
    join: bool,
    /// Time between two signs of life of the leader, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 40)]
    heartbeat: u64,
    /// Silence of the leader after which an election is held, in milliseconds: drawn each time between this and twice as much
    #[arg(long, value_name = "MS", default_value_t = 150)]
    election_timeout: u64,
    /// The shortest time-out that a client's session may have, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 400)]
    min_session_timeout: u64,
    /// The longest, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    max_session_timeout: u64,
    /// Time between two looks for container nodes that have become empty, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    container_check: u64,
    /// Threads that serve clients; the processors there are, but at most 4, where it is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum ArbiterCommand {
    /// Show who the arbiters are, as one of them sees it
    Members {
        /// Where that one is for the other arbiters: HOST:PORT
        #[arg(value_name = "PEER", value_parser = address)]
        peer: String,
        /// One JSON object, for programs
        #[arg(long)]
        json: bool,
    },
    /// Have the arbiters do without one of them from now on
    Remove {
        /// Where any of them is for the others: HOST:PORT
        #[arg(value_name = "PEER", value_parser = address)]
        peer: String,
        /// Number of the one that goes
        #[arg(value_name = "N")]
        id: u32,
    },
}

/// `N=HOST:PORT`.
fn peer(text: &str) -> Result<(u32, String), String> {
    let wrong = || "write it as N=HOST:PORT, for example 1=10.0.0.1:7710".to_owned();
    let (id, at) = text.split_once('=').ok_or_else(wrong)?;
    let id = id.parse().ok().filter(|id| *id > 0).ok_or_else(wrong)?;
    Ok((id, address(at).map_err(|_| wrong())?))
}

/// Runs `lockstep arbiter`.
pub fn run(args: ArbiterArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(ArbiterCommand::Members { peer, json }) => members(peer, *json),
        Some(ArbiterCommand::Remove { peer, id }) => remove(peer, *id),
        None => serve(args),
    }
}

fn runtime(threads: Option<u16>) -> anyhow::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.map_or(processors.min(4), usize::from);
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).thread_name("arbiter").enable_all().build().context("cannot start the I/O runtime")
}

fn plan(args: &ArbiterArgs) -> anyhow::Result<Plan> {
    let id = args.id.context("--id is needed")?;
    let peers: BTreeMap<u32, String> = args.peers.iter().cloned().collect();
    if peers.len() < args.peers.len() {
        bail!("--peers names a number twice");
    }
    let Some(peer) = peers.get(&id) else { bail!("--peers does not name this arbiter (number {id}) itself") };
    let (host, _) = peer.rsplit_once(':').context("a peer is HOST:PORT")?;
    let client = args.client.clone().unwrap_or_else(|| format!("{host}:{CLIENT_PORT}"));
    let ms = Duration::from_millis;
    let settings = Settings {
        heartbeat: ms(args.heartbeat),
        election: (ms(args.election_timeout), ms(args.election_timeout.saturating_mul(2))),
        // An election takes a few of its time-outs, and nobody is sent away for one.
        patience: ms(args.election_timeout.saturating_mul(6)).max(Settings::default().patience),
        min_session: ms(args.min_session_timeout),
        max_session: ms(args.max_session_timeout),
        container_check: ms(args.container_check),
        ..Settings::default()
    };
    Ok(Plan {
        id,
        peer: (args.listen_peers.clone().unwrap_or_else(|| peer.clone()), peer.clone()),
        client: (args.listen_clients.clone().unwrap_or_else(|| client.clone()), client),
        beginning: Beginning { peers, join: args.join },
        settings,
        world: world(),
    })
}

fn world() -> World {
    let wall_ms = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).expect("the kernel has random numbers");
    World { wall_ms: Arc::new(wall_ms), random: Arc::new(random) }
}

fn serve(args: ArbiterArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(&args)?;
    let id = plan.id;
    let data = args.data.unwrap_or_else(|| format!("/var/lib/lockstep/arbiter-{id}").into());
    let storage = Storage::open(&data).context("choose another directory with --data")?;
    runtime(args.threads)?.block_on(async {
        let member = Member::start(plan, Tcp, storage).await?;
        eprintln!(
            "lockstep: arbiter {id}; other arbiters {}, clients {}; data in {}",
            member.peer_address()?,
            member.client_address()?,
            data.display()
        );
        let telling = tokio::spawn(tell(member.core()));
        let end = member.run(super::interrupts::signalled()).await;
        telling.abort();
        match end? {
            End::Stopped => Ok(ExitCode::SUCCESS),
            End::Removed => {
                eprintln!("lockstep: the group goes on without this arbiter");
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// Says what becomes of the group, a line for each change.
async fn tell(core: Arc<Core<Tcp>>) {
    let mut metrics = core.raft.server_metrics();
    let mut serving = core.serving.subscribe();
    let mut said = String::new();
    loop {
        let group = group::group(&core);
        let line = match group {
            None => "waiting for the other arbiters, to form a group with them".to_owned(),
            Some(group) => {
                let leader = match group.leader {
                    None => "no leader".to_owned(),
                    Some(leader) if leader == core.me.member => format!("leads in term {}", group.term),
                    Some(leader) => format!("follows arbiter {} in term {}", leader.id, group.term),
                };
                let serves =
                    if *serving.borrow_and_update() { "serves clients" } else { "serves no clients: no majority" };
                format!("one of {}, {leader}, {serves}", group.voters.len())
            }
        };
        if line != said {
            eprintln!("lockstep: arbiter {}: {line}", core.me.member.id);
            said = line;
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            changed = serving.changed() => if changed.is_err() { return },
        }
    }
}

fn who(peer: &str) -> anyhow::Result<Who> {
    let asked = runtime(Some(1))?.block_on(group::ask(&Tcp, None, peer, Kind::Who, vec![]));
    asked.with_context(|| format!("cannot ask the arbiter at {peer}"))
}

fn members(peer: &str, json: bool) -> anyhow::Result<ExitCode> {
    let who = who(peer)?;
    if json {
        super::print(&format!("{}\n", serde_json::to_string(&who)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(group) = who.group else { bail!("arbiter {} belongs to no group yet", who.me.id) };
    let mut table = format!("{:<4} {:<9} {:<22} CLIENTS\n", "ID", "ROLE", "PEERS");
    for (member, at) in &group.members {
        let role = match member {
            _ if group.leader == Some(*member) => "leader",
            _ if group.voters.contains(member) => "follower",
            _ => "learner",
        };
        table += &format!("{:<4} {role:<9} {:<22} {}\n", member.id, at.peer, at.client);
    }
    table += &format!("term {}, {} entries applied at arbiter {}\n", group.term, group.applied, who.me.id);
    super::print(&table)?;
    Ok(ExitCode::SUCCESS)
}

fn remove(peer: &str, id: u32) -> anyhow::Result<ExitCode> {
    let mut at = peer.to_owned();
    // From any member to the one that leads, which may change meanwhile.
    for _ in 0..5 {
        let question = lockstep_ensemble::log::entry::cold(&id);
        let asked = runtime(Some(1))?.block_on(group::ask(&Tcp, None, &at, Kind::Remove, question));
        let outcome: Result<(), ChangeError> = asked.with_context(|| format!("cannot ask the arbiter at {at}"))?;
        match outcome {
            Ok(()) => {
                println!("the arbiters do without number {id}");
                return Ok(ExitCode::SUCCESS);
            }
            Err(ChangeError::NotLeader(Some((_, leader)))) => at = leader.peer,
            Err(error) => return Err(error.into()),
        }
    }
    bail!("the leader of the arbiters changes all the time; try again")
}
