//! `lockstep primary` and `lockstep backup`: the two sides of a pair.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::TcpListener;

use super::machine_args::{MachineArgs, open_disk, plug_in};
use crate::arbiter::{self, uri::ArbiterUri};
use crate::backends::priority::prefer_this_thread;
use crate::cluster::process::Process;
use crate::cluster::records::Side;
use crate::cluster::side::{Entry, Listed, reachable};
use crate::console::hub::Hub;
use crate::console::server;
use crate::disk::open::Owner;
use crate::disk::port::DiskPort;
use crate::disk::spec::DiskSpec;
use crate::host::board::Board;
use crate::host::outlets::Outlets;
use crate::host::pair::{self, Site, Start};
use crate::host::remains::{SideEnd, scratch_log};
use crate::host::{Keeping, Outcome, precopy};
use crate::machine::{cpuid, vcpu};
use crate::net::port::Port;
use crate::net::spec::NetSpec;
use crate::replication::{Identity, Settings, StopReason};

/// Output that a host keeps for clients that come back, in bytes.
const HISTORY_BYTES: usize = 4 << 20;

/// What both sides of a pair take.
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "it is the text of `--help`, where brackets mean what may be left out"
)]
#[derive(Clone, Debug, clap::Args)]
pub struct PairArgs {
    /// Who decides which side may go on alone; the same for both: DIR, zk://HOST,… or etcd://HOST,…
    ///
    /// DIR or file:///DIR: a directory on storage that both hosts reach (NFS, say), which must exist. The register file in it is the arbiter.
    ///
    /// zk://[USER:PASSWORD@]HOST[:2181],HOST,HOST[/PATH]: an ensemble that speaks ZooKeeper's protocol. PATH is where everything is kept; /lockstep
    /// where none is named. Name all the servers: each of them is kept in touch with, so that one that dies with a host costs no time.
    ///
    /// etcd://[USER:PASSWORD@]HOST[:2379],HOST,HOST[/PREFIX]: the same for a cluster of etcd servers.
    ///
    /// In a URI, what is special in it is percent-escaped (`%40` for an `@` in a password). A password is better kept out of the command line, in
    /// the environment.
    #[arg(long, value_name = "URI", env = "LOCKSTEP_ARBITER", hide_env_values = true)]
    pub arbiter: ArbiterUri,
    /// Where this host serves the guest's console and `lockstep status`
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7701")]
    pub control: String,
    /// Console address of the other host, told to clients that come to the wrong one
    #[arg(long, value_name = "ADDR")]
    pub peer_control: Option<String>,
    /// Name of this host, for people; the system's host name where it is left out
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// A host that has lost the machine to the other one becomes its backup, and one that starts while the other one runs the machine as well
    #[arg(long)]
    pub rejoin: bool,
    /// The most that the state of the running guest may take of the link to a new backup, in MiB a second
    #[arg(long, value_name = "MIB")]
    pub transfer_rate: Option<u64>,
    /// Keep a copy of the log in this file (a backup that diverges keeps one in any case, and says where)
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Size at which the copy of the log is given up, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub log_limit: u64,
    /// Time between two digests of the machine, by which the backup checks itself, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub digest_interval: u64,
    /// Say in this file how this side came to its end, for programs: a JSON object with `ended` (whether the guest has ended) and `text`
    #[arg(long, value_name = "FILE")]
    pub outcome: Option<PathBuf>,
}

/// Run a guest as the primary of a pair: waits for its backup, then boots the guest. A backup may also come later, at any time.
///
/// Nothing the guest says leaves this host before the backup holds everything that led to it. When the
/// backup is lost, the primary wins the VM's register at the arbiter and goes on alone.
#[derive(Clone, Debug, clap::Args)]
pub struct PrimaryArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    pair: PairArgs,
    /// Where backups connect with their logging channel
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700")]
    channel: String,
    /// Logging channel of the other host (or hosts: ADDR,ADDR), for `--rejoin`
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = super::remote::address)]
    peer: Vec<String>,
    /// Time between two heartbeats, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20)]
    heartbeat: u64,
    /// Silence after which the other side is suspected, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 200)]
    timeout: u64,
    /// How far the backup may be behind before the guest is slowed down, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    lag_limit: u64,
    /// Boot the guest at once, without a backup
    #[arg(long)]
    start_alone: bool,
    /// Boot the guest only if nobody has run the VM since this generation (0: only if it has never run), and end otherwise. The arbiter decides, in the
    /// moment in which the guest would start
    #[arg(long, value_name = "GENERATION", conflicts_with = "rejoin")]
    only_after: Option<u64>,
}

/// Stand by as the backup of a pair: gets the guest's state if that runs already, replays what the primary does, and takes over when
/// it dies. From then on it is the primary, and waits for a backup of its own.
#[derive(Clone, Debug, clap::Args)]
pub struct BackupArgs {
    #[command(flatten)]
    pair: PairArgs,
    /// Name of the VM; the primary must have the same
    #[arg(long, default_value = "lockstep")]
    name: String,
    /// Where the guest's network card is plugged in once this side is live: `tap=NAME` or `socket=PATH`. The addresses are the
    /// primary's
    #[arg(long, value_name = "SPEC")]
    net: Option<NetSpec>,
    /// Keep what the guest's network card sends and receives here, once this side is live, in this file, for Wireshark (pcap)
    #[arg(long, value_name = "FILE", requires = "net")]
    pcap: Option<PathBuf>,
    /// The guest's disk on this host: the same image as on the primary, or with `mode=separate` this host's own, of the same size, which becomes a copy. Mode and reads
    /// as on the primary; `cache=`, `format=`, `stamp=` as this host needs them (see `lockstep primary --help`)
    #[arg(long, value_name = "SPEC")]
    disk: Option<DiskSpec>,
    /// The primary's logging channel; of several hosts (ADDR,ADDR), whichever runs the machine
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700", value_delimiter = ',', value_parser = super::remote::address)]
    primary: Vec<String>,
    /// Where the next backup connects, once this host runs the machine
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    channel: String,
}

async fn listen(address: &str, option: &str, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for {what}: choose another address with {option}"))
}

impl PairArgs {
    /// Everything but the machine: what the drivers are given, and the console's listener.
    async fn site(
        &self,
        vm: &str,
        cpu: &cpuid::CpuKind,
        settings: Settings,
        plugged: (Option<Arc<Port>>, Option<Arc<DiskPort>>),
        channel: &str,
        peers: Vec<String>,
    ) -> anyhow::Result<(Site, TcpListener, Option<Entry>)> {
        if !arbiter::is_name(vm) || vm.contains('/') {
            bail!("the VM's name must be 1 to {} bytes long, without `/`", arbiter::MAX_NAME);
        }
        let host = match &self.host {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let number = getrandom::u64()?;
        let me = Identity::new(vm, number, &host, &cpu.to_string())?;
        let (arbiter, sessions) = arbiter::open(&self.arbiter)
            .with_context(|| format!("{} cannot serve as arbiter (--arbiter)", self.arbiter))?;
        let control = listen(&self.control, "--control", "the console").await?;
        let listener = listen(channel, "--channel", "backups").await?;
        let hub = Arc::new(Hub::new(vm, &host, HISTORY_BYTES));
        hub.set_peer(self.peer_control.clone());
        let board = Board::new(hub.clone(), vm, &host);
        let addresses = (control.local_addr()?, listener.local_addr()?);
        let entry = sessions.map(|sessions| {
            let [control, channel] = [addresses.0, addresses.1].map(|address| reachable(address, &sessions));
            let process = Process::this(number);
            let (vm, cpu) = (vm.into(), cpu.to_string());
            Entry { side: Side { vm, host, process, control, channel, cpu, ..Side::default() }, sessions }
        });
        let keeping = Keeping {
            digest_every_ns: self.digest_interval.saturating_mul(1_000_000),
            file: self.log.clone(),
            scratch: false,
            limit_bytes: self.log_limit.saturating_mul(1 << 20),
        };
        let transfer = precopy::Settings { bytes_per_s: self.transfer_rate.map(|mib| mib.saturating_mul(1 << 20)) };
        let (network, disk) = plugged;
        let outlets = Outlets { hub, network, disk };
        let rejoin = self.rejoin;
        let site = Site { me, settings, keeping, transfer, outlets, board, arbiter, listener, peers, rejoin };
        Ok((site, control, entry))
    }
}

/// Serves the console while `machine` runs, and until its clients have what was released.
///
/// The machine's driver is a task of its own: waking the future that a runtime blocks on costs two system calls more.
async fn serve<T: Send + 'static>(
    control: TcpListener,
    hub: Arc<Hub>,
    board: Arc<Board>,
    machine: impl Future<Output = T> + Send + 'static,
) -> anyhow::Result<T> {
    let (over, stop) = tokio::sync::oneshot::channel::<()>();
    let serve = tokio::spawn(server::serve(control, hub, board.clone(), async {
        let _ = stop.await;
    }));
    let interrupts = tokio::spawn(super::interrupts::stop_on_signal(board));
    let result = tokio::spawn(machine).await.context("the driver of the pair panicked");
    interrupts.abort();
    drop(over);
    let _ = serve.await;
    result
}

/// The exit status of a side whose machine has ended.
fn exit_status(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Ended(reason) => super::guest_status(reason),
        Outcome::Stopped(StopReason::Operator | StopReason::Ended) => ExitCode::SUCCESS,
        Outcome::Stopped(StopReason::Diverged { .. }) => ExitCode::from(super::DIVERGED),
        Outcome::Stopped(
            StopReason::Lost { .. } | StopReason::Fenced { .. } | StopReason::Refused(_) | StopReason::Mismatch(_),
        ) => ExitCode::from(super::FAILED),
    }
}

/// Says how a side came to its end where it was asked to.
fn told_in(file: Option<PathBuf>, end: anyhow::Result<(SideEnd, ExitCode)>) -> anyhow::Result<ExitCode> {
    let said = match &end {
        Ok((said, _)) => said.clone(),
        Err(error) => SideEnd { ended: false, text: format!("{error:#}") },
    };
    if let Some(file) = file {
        said.tell(&file).with_context(|| format!("cannot write {} (--outcome)", file.display()))?;
    }
    end.map(|(_, status)| status)
}

/// Runs the primary.
pub fn run_primary(args: PrimaryArgs) -> anyhow::Result<ExitCode> {
    told_in(args.pair.outcome.clone(), primary(args))
}

fn primary(args: PrimaryArgs) -> anyhow::Result<(SideEnd, ExitCode)> {
    let milliseconds = |ms: u64| ms.saturating_mul(1_000_000);
    let settings = Settings {
        heartbeat_ns: milliseconds(args.heartbeat),
        timeout_ns: milliseconds(args.timeout),
        lag_limit_ns: milliseconds(args.lag_limit),
        start_alone: args.start_alone,
        only_after: args.only_after,
        ..Settings::default()
    };
    if !Settings::times_are_sane(settings.heartbeat_ns, settings.timeout_ns) {
        bail!("--timeout must be at least twice --heartbeat, and both above 0");
    }
    let disk = open_disk(&args.machine.disk, Owner::Pair(&args.machine.name))?;
    let boot = args.machine.boot(&disk)?;
    if args.pair.rejoin && args.peer.is_empty() {
        bail!("--rejoin needs --peer: where the logging channel of the other host is");
    }
    channel_runtime()?.block_on(async {
        let cpu = cpuid::CpuKind::of(&boot.cpuid);
        let name = &args.machine.name;
        let plugged = (args.machine.port()?, disk);
        let (site, control, mut entry) =
            args.pair.site(name, &cpu, settings, plugged, &args.channel, args.peer.clone()).await?;
        if let Some(entry) = &mut entry {
            entry.side.memory_mib = Some(args.machine.memory);
        }
        let (channel, console) = (site.listener.local_addr()?, control.local_addr()?);
        let register = site.arbiter.read(name).context("cannot ask the arbiter for the VM's generation")?;
        if let Some(disk) = site.outlets.disk.as_ref().filter(|_| register.is_none() || !args.pair.rejoin) {
            disk.check_generation(register.as_ref().map(|claim| claim.generation))?;
        }
        let held = register.as_ref().map_or(0, |claim| claim.generation);
        if let (Some(wanted), Some(claim)) = (args.only_after.filter(|wanted| *wanted != held), &register) {
            bail!(
                "`{name}` has been run by {} since (generation {held}, not {wanted} any more): nothing is booted",
                claim.host_name
            );
        }
        let start = match register {
            Some(claim) if args.pair.rejoin => {
                eprintln!(
                    "lockstep: `{name}` was last run by {} (generation {}): waiting for {} as a backup; console {console}. (To boot the guest \
                     anew, start without --rejoin.)",
                    claim.host_name,
                    claim.generation,
                    args.peer.join(" or ")
                );
                Start::Backup
            }
            _ => {
                eprintln!("lockstep: primary of `{name}`; logging channel {channel}, console {console}");
                Start::Primary(Box::new(boot))
            }
        };
        run_side(site, control, start, entry).await
    })
}

/// Runs one side to its end.
async fn run_side(
    site: Site,
    control: TcpListener,
    start: Start,
    entry: Option<Entry>,
) -> anyhow::Result<(SideEnd, ExitCode)> {
    let (hub, board) = (site.outlets.hub.clone(), site.board.clone());
    let listed = entry.map(|entry| Listed::start(entry, &board));
    let end = serve(control, hub, board, pair::run(site, start)).await;
    if let Some(listed) = listed {
        listed.end().await;
    }
    let end = end??;
    let said = SideEnd::from(&end.outcome);
    eprintln!("lockstep: {}", said.text);
    if let (Some(_), Some(log)) = (&end.divergence, &end.log) {
        eprintln!("lockstep: the log is kept: lockstep replay {}", log.display());
    }
    Ok((said, exit_status(&end.outcome)))
}

/// Runs the backup.
pub fn run_backup(args: BackupArgs) -> anyhow::Result<ExitCode> {
    told_in(args.pair.outcome.clone(), backup(args))
}

fn backup(args: BackupArgs) -> anyhow::Result<(SideEnd, ExitCode)> {
    let cpu = cpuid::CpuKind::of(&cpuid::template(&vcpu::host_cpuid()?));
    channel_runtime()?.block_on(async {
        let plugged = (plug_in(&args.net, &args.pcap)?, open_disk(&args.disk, Owner::Pair(&args.name))?);
        let peers = args.primary.clone();
        let (mut site, control, entry) =
            args.pair.site(&args.name, &cpu, Settings::default(), plugged, &args.channel, peers).await?;
        // A divergence is worth nothing without the log that shows it. Whoever names no file gets one for that case alone.
        let scratch = scratch_log(&std::env::temp_dir(), &args.name, std::process::id());
        let asked_for = site.keeping.file.is_some();
        if !asked_for {
            (site.keeping.file, site.keeping.scratch) = (Some(scratch.clone()), true);
        }
        eprintln!(
            "lockstep: backup of `{}`; primary {}, logging channel {}, console {}",
            args.name,
            args.primary.join(" or "),
            site.listener.local_addr()?,
            control.local_addr()?
        );
        let result = run_side(site, control, Start::Backup, entry).await;
        let diverged = matches!(&result, Ok((_, status)) if *status == ExitCode::from(super::DIVERGED));
        if !asked_for && !diverged {
            // Gone already if the primary never came.
            let _ = std::fs::remove_file(&scratch);
        }
        result
    })
}

/// The runtime of the thread that carries the channel, the console and the timers.
fn channel_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    if !prefer_this_thread() {
        tracing::debug!("no real-time priority for the channel thread (CAP_SYS_NICE)");
    }
    super::remote::runtime()
}
