//! `lockstep hosts` and `lockstep vms`: the hosts and VMs of a cluster, as the ensemble that is their arbiter knows them, and as they say of
//! themselves.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::remote::runtime;
use super::table::Table;
use crate::agent::advice::advice;
use crate::arbiter::ensemble::PATIENCE;
use crate::arbiter::uri::ArbiterUri;
use crate::arbiter::zookeeper::{Session, Sessions};
use crate::cluster::ClusterError;
use crate::cluster::figures::{self, Figures};
use crate::cluster::records::Side;
use crate::cluster::view::{Condition, HostView, View, Vm};
use crate::console::status::{Role, Status, duration};

/// How long a side may take to answer.
pub const SIDE_PATIENCE: Duration = Duration::from_millis(500);

/// Which cluster.
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "it is the text of `--help`, where brackets mean what may be left out"
)]
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// The ensemble that is the arbiter of its VMs: zk://[USER:PASSWORD@]HOST[:2181],HOST,HOST[/PATH]
    #[arg(long, value_name = "URI", env = "LOCKSTEP_ARBITER", hide_env_values = true)]
    pub arbiter: ArbiterUri,
}

/// List the hosts of a cluster: those whose agents run, and those on which there are sides of VMs.
#[derive(Clone, Debug, clap::Args)]
pub struct HostsArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

/// List the VMs of a cluster: who runs them, whether they are protected, and how far their backups are behind.
///
/// What they are comes from the arbiter, the figures from the hosts themselves; a host that does not answer is shown as unreachable.
#[derive(Clone, Debug, clap::Args)]
pub struct VmsArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

impl ClusterArgs {
    /// Begins to open sessions to the ensemble.
    pub fn open(&self) -> Result<Arc<Sessions>, ClusterError> {
        match &self.arbiter {
            ArbiterUri::ZooKeeper(ensemble) => Ok(Sessions::open(ensemble)?),
            other @ (ArbiterUri::File(_) | ArbiterUri::Etcd(_)) => {
                Err(ClusterError::NoRegistry { arbiter: other.to_string() })
            }
        }
    }
}

/// A session, within the patience that an answer of an ensemble deserves.
pub async fn session(sessions: &Sessions) -> Result<Session, ClusterError> {
    match timeout(PATIENCE, sessions.any(None)).await {
        Ok((_, session)) => Ok(session),
        Err(_) => Err(sessions.no_answer().into()),
    }
}

/// Reads what the ensemble knows, within the same patience.
pub async fn read(sessions: &Sessions, session: &Session) -> Result<View, ClusterError> {
    match timeout(PATIENCE, View::read(sessions, session)).await {
        Ok(view) => view,
        Err(_) => Err(sessions.no_answer().into()),
    }
}

/// The view, read once. What cannot be understood in it is said.
pub async fn look(args: &ClusterArgs) -> anyhow::Result<View> {
    let sessions = args.open()?;
    let session = session(&sessions).await?;
    match timeout(PATIENCE, View::renew(&sessions, &session)).await {
        Ok(renewed) => renewed?,
        Err(_) => return Err(sessions.no_answer().into()),
    }
    let view = read(&sessions, &session).await?;
    for (path, why) in &view.unreadable {
        eprintln!("lockstep: {path}: {why}");
    }
    Ok(view)
}

/// The same, and the figures.
async fn look_and_ask(args: &ClusterArgs) -> anyhow::Result<(View, Figures)> {
    let view = look(args).await?;
    let figures = figures::ask(&view, SIDE_PATIENCE).await;
    Ok((view, figures))
}

/// Prints both tables.
pub fn print_once(args: &ClusterArgs) -> anyhow::Result<ExitCode> {
    let (view, figures) = runtime()?.block_on(look_and_ask(args))?;
    super::print(&format!("{}\n{}{}", hosts_table(&view), vms_table(&view, &figures), advices(&view)))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `lockstep hosts`.
pub fn hosts(args: HostsArgs) -> anyhow::Result<ExitCode> {
    let view = runtime()?.block_on(look(&args.cluster))?;
    if args.json {
        let lines = view.hosts.iter().map(|(name, host)| format!("{}\n", host_json(name, host)));
        super::print(&lines.collect::<String>())?;
    } else if view.hosts.is_empty() {
        eprintln!("lockstep: no hosts are known to {}", args.cluster.arbiter);
    } else {
        super::print(&hosts_table(&view).to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `lockstep vms`.
pub fn vms(args: VmsArgs) -> anyhow::Result<ExitCode> {
    let (view, figures) = runtime()?.block_on(look_and_ask(&args.cluster))?;
    if args.json {
        let lines = view.vms.iter().map(|(name, vm)| format!("{}\n", vm_json(&view, name, vm, &figures)));
        super::print(&lines.collect::<String>())?;
    } else if view.vms.is_empty() {
        eprintln!("lockstep: no VMs are known to {}", args.cluster.arbiter);
    } else {
        super::print(&format!("{}{}", vms_table(&view, &figures), advices(&view)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

/// The status of a side, if it has answered.
pub fn status_of<'a>(figures: &'a Figures, side: &Side) -> Option<&'a Status> {
    figures.get(&side.control)?.as_deref().ok()
}

fn unreachable(figures: &Figures, side: &Side) -> bool {
    figures.get(&side.control).is_some_and(Result::is_err)
}

/// How much room there is to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// For words.
    Wide,
    /// For signs: `!` is a side that cannot be reached.
    Narrow,
}

/// A side's host, with what is not as it should be.
fn host_of(figures: &Figures, side: &Side, state: bool, room: Room) -> String {
    match (state, unreachable(figures, side), room) {
        (false, false, _) => side.host.clone(),
        (true, false, _) => format!("{} ({})", side.host, side.state),
        (_, true, Room::Wide) => format!("{} (unreachable)", side.host),
        (_, true, Room::Narrow) => format!("{} !", side.host),
    }
}

/// Who runs a VM, for people.
pub fn runs_on(vm: &Vm, figures: &Figures, room: Room) -> String {
    let waits = || -> Vec<String> {
        let waiting = vm.sides.iter().filter(|side| side.role == Role::Waiting);
        waiting.map(|side| format!("({})", host_of(figures, side, false, room))).collect()
    };
    match (vm.runner(), &vm.register) {
        (Some(side), _) => host_of(figures, side, false, room),
        (None, Some(claim)) if vm.condition() == Condition::Down => format!("- (last {})", claim.host_name),
        (None, _) => or_dash(waits().join(", ")),
    }
}

/// Who stands by for it.
pub fn backups(vm: &Vm, figures: &Figures, room: Room) -> String {
    let shown = |side: &Side| host_of(figures, side, side.state != "following", room);
    or_dash(vm.backups().map(shown).collect::<Vec<_>>().join(", "))
}

/// How far its backup is behind.
pub fn lag(vm: &Vm, figures: &Figures) -> Option<u64> {
    status_of(figures, vm.runner()?)?.execution_lag_ns
}

/// The VMs, for people.
pub fn vms_table(view: &View, figures: &Figures) -> Table<9> {
    let mut table =
        Table::new(["VM", "STATE", "GENERATION", "RUNS ON", "BACKUP", "LAG", "OUTPUTS HELD", "LOG B/S", "WANTED"]);
    for (name, vm) in &view.vms {
        let status = vm.runner().and_then(|side| status_of(figures, side));
        let figure = |figure: &dyn Fn(&Status) -> String| status.map_or_else(|| "-".into(), figure);
        table.row([
            name.clone(),
            vm.condition().to_string(),
            vm.generation().to_string(),
            runs_on(vm, figures, Room::Wide),
            backups(vm, figures, Room::Wide),
            lag(vm, figures).map_or_else(|| "-".into(), duration),
            figure(&|status| status.outputs_held.to_string()),
            figure(&|status| status.log_bytes_per_s.to_string()),
            wanted(vm),
        ]);
    }
    table
}

/// Where the agents want the sides of a VM that was given to them.
fn wanted(vm: &Vm) -> String {
    let (Some(spec), Some(placement)) = (&vm.spec, &vm.placement) else {
        return if vm.spec.is_some() { "?" } else { "-" }.into();
    };
    let pair = |primary: Option<&String>, backup: Option<&String>| {
        let name = |host: Option<&String>| host.map_or("?", String::as_str).to_owned();
        if spec.is.backups == 0 { name(primary) } else { format!("{}, {}", name(primary), name(backup)) }
    };
    let placement = &placement.is;
    match (&placement.ended, &placement.wish) {
        (Some(_), _) => "ended".into(),
        (None, Some(wish)) => format!("{} (moving)", pair(Some(&wish.primary), wish.backup.as_ref())),
        (None, None) => pair(placement.primary.as_ref(), placement.backup.as_ref()),
    }
}

/// What there is to say of VMs that are not as they should be, a line for each.
fn advices(view: &View) -> String {
    let lines = view.vms.keys().filter_map(|name| Some(format!("{name}: {}\n", advice(view, name)?)));
    lines.collect()
}

/// The memory of a host that is taken and that there is, for people.
pub fn memory(host: &HostView) -> String {
    match &host.record {
        Some(record) => format!("{} of {} MiB", record.used_mib, record.capacity_mib),
        None => format!("{} MiB", host.guests_mib),
    }
}

/// The hosts, for people.
pub fn hosts_table(view: &View) -> Table<7> {
    let mut table = Table::new(["HOST", "AGENT", "RUNS", "PROTECTS", "GUEST MEMORY", "CPU", "LABELS"]);
    for (name, host) in &view.hosts {
        let record = host.record.as_ref();
        let labels = record.map(|record| record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect());
        table.row([
            name.clone(),
            or_dash(record.map(|record| record.program.clone()).unwrap_or_default()),
            host.runs.len().to_string(),
            host.protects.len().to_string(),
            memory(host),
            or_dash(host.cpu.clone().unwrap_or_default()),
            or_dash(labels.map(|labels: Vec<String>| labels.join(",")).unwrap_or_default()),
        ]);
    }
    table
}

fn host_json(name: &str, host: &HostView) -> Value {
    json!({
        "name": name,
        "agent": host.record,
        "runs": host.runs,
        "protects": host.protects,
        "guests_mib": host.guests_mib,
        "cpu": host.cpu,
    })
}

fn vm_json(view: &View, name: &str, vm: &Vm, figures: &Figures) -> Value {
    let side = |side: &Side| {
        json!({
            "record": side,
            "over": vm.is_over(side),
            "status": status_of(figures, side),
            "unreachable": figures.get(&side.control).and_then(|answer| answer.as_ref().err()),
        })
    };
    let register = vm.register.as_ref().map(|claim| {
        json!({
            "generation": claim.generation,
            "process": format!("{:016x}", claim.host),
            "host": claim.host_name,
            "shared_with": claim.shared_with.map(|process| format!("{process:016x}")),
        })
    });
    json!({
        "name": name,
        "condition": vm.condition(),
        "generation": vm.generation(),
        "runs_on": vm.runner().map(|side| &side.host),
        "backups": vm.backups().map(|side| &side.host).collect::<Vec<_>>(),
        "lag_ns": lag(vm, figures),
        "register": register,
        "spec": vm.spec.as_ref().map(|spec| &spec.is),
        "placement": vm.placement.as_ref().map(|placement| &placement.is),
        "advice": advice(view, name),
        "sides": vm.sides.iter().map(side).collect::<Vec<_>>(),
    })
}
