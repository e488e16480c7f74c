//! The daemon: sees, decides, writes, and looks after its host's processes.
//!
//! Whatever it does, it does for a version of a placement: before a process is started, asked to leave or asked to switch, a majority of the ensemble has to
//! confirm that the placement is still of that version. So an agent that was asleep does nothing on the strength of what it dreamt; and since nothing
//! that runs a machine can be asked away, and nothing boots unless the register lets it, even the moment between the answer and the deed is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::decide::{Act, Place, decide};
use super::duties::{Duty, What, duties, tell};
use super::ledger::{Ledger, LedgerError};
use super::plug;
use super::times::Times;
use crate::arbiter::uri::ArbiterUri;
use crate::arbiter::zookeeper::Sessions;
use crate::backends::clock::boot_clock_ns;
use crate::cluster::ClusterError;
use crate::cluster::follow::{Following, Seen, Told};
use crate::cluster::paths::Paths;
use crate::cluster::placement::Placement;
use crate::cluster::publish::Publication;
use crate::cluster::records::{Host, Side};
use crate::cluster::view::View;
use crate::cluster::write::{Placing, Writer, Written};
use crate::console::control;
use crate::console::wire::Command;

/// How often it looks around though nothing has happened.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An agent that has not looked around for so long was asleep.
const ASLEEP_NS: u64 = 1_000_000_000;

/// Within this an agent is told of what it has written; otherwise it asks.
const SEEN_WITHIN_NS: u64 = 500_000_000;

/// How long a side may take to say whether it leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a switch may take.
const SWITCH_PATIENCE: Duration = Duration::from_secs(15);

/// Pause before a side is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How long the record of an earlier agent of this host may take to go away, before this one gives up.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(25);

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The record of its host, as it begins.
    pub host: Host,
    /// The host's own address, for consoles and logging channels.
    pub address: String,
    /// Ports for them; `None`: whichever are free.
    pub ports: Option<(u16, u16)>,
    /// The bridge for guests' cards.
    pub bridge: Option<String>,
    /// The interface by which the guests' clients are reached.
    pub uplink: Option<String>,
    /// Where it keeps account of its processes.
    pub data: PathBuf,
    /// The ensemble.
    pub arbiter: ArbiterUri,
}

/// Why an agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The account of its processes.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ensemble.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Another one runs.
    #[error(
        "an agent of host `{host}` runs already (process {pid}): every host needs a name of its own (--host), and one agent"
    )]
    Another {
        /// The host's name.
        host: String,
        /// Its process.
        pid: u32,
    },
}

/// Runs an agent until `stop` completes. The VMs whose sides go on without it.
pub async fn run(
    settings: Settings,
    sessions: Arc<Sessions>,
    stop: impl Future<Output = ()>,
) -> Result<Vec<String>, AgentError> {
    let (ended_here, ended) = mpsc::unbounded_channel();
    let ledger = Ledger::open(&settings.data, ended_here)?;
    let following = Following::start(sessions.clone());
    let mut agent = Agent::new(settings, sessions, ledger, following);
    tokio::pin!(stop);
    tokio::select! {
        ended = agent.work(ended) => ended?,
        () = &mut stop => {}
    }
    if let Some(publication) = agent.publication.take() {
        publication.end().await;
    }
    agent.ledger.look().await;
    Ok(agent.ledger.running())
}

/// The daemon.
pub(super) struct Agent {
    pub(super) settings: Settings,
    sessions: Arc<Sessions>,
    writer: Writer,
    pub(super) ledger: Ledger,
    following: Following,
    told: watch::Receiver<Told>,
    /// The host's record; published once it is sure that nobody else is this host.
    record: watch::Sender<Host>,
    publication: Option<Publication>,
    /// Whether the nodes that it writes below are there.
    prepared: bool,
    times: Times,
    looked_at_ns: u64,
    /// What was read before this is not to be acted upon.
    fresh_from_ns: u64,
    /// Placements that were written here and are not in the view yet: their versions, and when they were written.
    written: BTreeMap<String, (i32, u64)>,
    /// What was asked of sides lately, and when that may be asked again.
    asked: BTreeMap<(String, String), Instant>,
    answered: (mpsc::UnboundedSender<Answered>, mpsc::UnboundedReceiver<Answered>),
    /// What was said last of each VM, so that it is said once.
    said: BTreeMap<String, String>,
    /// Whether the ensemble cannot be reached, and that was said.
    alone: bool,
}

/// A side has answered, or not.
struct Answered {
    key: (String, String),
    said: String,
}

impl Agent {
    fn new(settings: Settings, sessions: Arc<Sessions>, ledger: Ledger, following: Following) -> Self {
        let told = following.told();
        let (record, _) = watch::channel(settings.host.clone());
        Agent {
            writer: Writer::new(sessions.clone()),
            told,
            record,
            settings,
            sessions,
            ledger,
            following,
            publication: None,
            prepared: false,
            times: Times::default(),
            looked_at_ns: boot_clock_ns(),
            fresh_from_ns: 0,
            written: BTreeMap::new(),
            asked: BTreeMap::new(),
            answered: mpsc::unbounded_channel(),
            said: BTreeMap::new(),
            alone: false,
        }
    }

    /// Its host's name.
    pub(super) fn me(&self) -> &str {
        &self.settings.host.name
    }

    async fn work(&mut self, mut ended: mpsc::UnboundedReceiver<String>) -> Result<(), AgentError> {
        self.wait_for_the_predecessor().await?;
        let parent = Paths::below(self.sessions.root()).hosts();
        let host = self.me().to_owned();
        self.publication = Some(Publication::start(self.sessions.clone(), parent, &host, self.record.subscribe()));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.told.changed() => if changed.is_err() { return Ok(()) },
                _ = look.tick() => {}
                _ = ended.recv() => {}
                Some(Answered { key, said }) = self.answered.1.recv() => {
                    tracing::info!(vm = key.0, asked = key.1, said, "a side has answered");
                    self.asked.insert(key, Instant::now() + ASK_AGAIN);
                }
            }
            let now_ns = boot_clock_ns();
            if now_ns.saturating_sub(std::mem::replace(&mut self.looked_at_ns, now_ns)) > ASLEEP_NS {
                // What it saw last may be old, and so may what is on its way to it.
                tracing::info!("this agent was asleep, or kept waiting; it reads everything anew");
                (self.fresh_from_ns, self.times) = (now_ns, Times::default());
                self.following.renew();
            }
            // Asleep in the midst of this is asleep as well.
            self.step().await;
        }
    }

    /// Waits until the record of an agent that ran here before is gone.
    async fn wait_for_the_predecessor(&mut self) -> Result<(), AgentError> {
        let mut began = None;
        loop {
            let told = self.told.borrow_and_update().clone();
            if let Ok(seen) = told {
                let before = seen.view.hosts.get(self.me()).and_then(|host| host.record.as_ref());
                match before.filter(|before| !before.process.is_gone()) {
                    None => return Ok(()),
                    Some(before) => {
                        let began = *began.get_or_insert_with(Instant::now);
                        if began.elapsed() > PREDECESSOR_PATIENCE {
                            return Err(AgentError::Another { host: self.me().into(), pid: before.process.pid });
                        }
                        self.say_once(
                            "",
                            &format!("an agent of {} is listed already; waiting for it to go", self.me()),
                        );
                    }
                }
            }
            let _ = tokio::time::timeout(LOOK_EVERY, self.told.changed()).await;
        }
    }

    fn say_once(&mut self, about: &str, what: &str) {
        if self.said.insert(about.into(), what.into()).as_deref() != Some(what) {
            eprintln!("lockstep: {what}");
        }
    }

    async fn step(&mut self) {
        for vm in self.ledger.look().await {
            let text = match self.ledger.here().get(&vm).map(|started| started.state.clone()) {
                Some(super::duties::Process::Ended { text, .. }) => text,
                _ => continue,
            };
            eprintln!("lockstep: the side of `{vm}` has ended: {text}");
        }
        let told = self.told.borrow_and_update().clone();
        let Seen { view, read_at_ns } = match told {
            Ok(seen) => seen,
            Err(error) => {
                self.times = Times::default();
                if !std::mem::replace(&mut self.alone, true) {
                    eprintln!(
                        "lockstep: {error}: nothing is started or moved until there is an answer; what runs goes on"
                    );
                }
                return self.look_at_the_uplink();
            }
        };
        if std::mem::take(&mut self.alone) {
            eprintln!(
                "lockstep: the ensemble answers; {} hosts and {} VMs are known",
                view.hosts.len(),
                view.vms.len()
            );
        }
        if read_at_ns < self.fresh_from_ns {
            return;
        }
        let view = here_only_what_lives(view, self.me());
        self.tell(&view);
        // Only as the host that the others see.
        let process = &self.settings.host.process.number;
        let listed = view.hosts.get(self.me()).and_then(|host| host.record.as_ref());
        if listed.is_none_or(|listed| listed.process.number != *process) {
            self.times = Times::default();
            return;
        }
        if !self.prepared {
            match self.writer.prepare().await {
                Ok(()) => self.prepared = true,
                Err(error) => return tracing::info!(error = &error as &dyn std::error::Error, "cannot write yet"),
            }
        }
        // What it has written itself is part of what it decides upon. (It may be gone before it was seen: somebody has the VM forgotten. So everything that was
        // read after the write will do as well.)
        self.written.retain(|vm, (version, at_ns)| {
            let placement = view.vms.get(vm).and_then(|vm| vm.placement.as_ref());
            read_at_ns < *at_ns && placement.is_none_or(|placement| placement.version < *version)
        });
        if let Some((_, at_ns)) = self.written.values().next() {
            if boot_clock_ns().saturating_sub(*at_ns) > SEEN_WITHIN_NS {
                self.following.renew();
            }
            return;
        }
        self.times.look(boot_clock_ns(), &view);
        let acts = decide(&view, self.me(), &self.times);
        let mut reservations: BTreeMap<String, i32> = view.reservations.clone();
        for act in acts {
            let goes_on = match act {
                Act::Place(place) => self.place(&place, &mut reservations).await,
                Act::Switch { vm, control, version } => {
                    self.have(&vm, version, &control, Command::Switch, SWITCH_PATIENCE).await
                }
            };
            if !goes_on {
                return;
            }
        }
        self.do_duties(&view).await;
    }

    /// The host's record, as it is now.
    fn tell(&mut self, view: &View) {
        let before = self.record.borrow().clone();
        let mut host = tell(view, self.me(), &self.ledger.here(), &before);
        host.uplink = self.settings.uplink.as_deref().map(plug::has_carrier);
        self.record.send_if_modified(|told| std::mem::replace(told, host) != *told);
    }

    fn look_at_the_uplink(&mut self) {
        if let Some(uplink) = &self.settings.uplink {
            let carrier = Some(plug::has_carrier(uplink));
            self.record.send_if_modified(|told| std::mem::replace(&mut told.uplink, carrier) != carrier);
        }
    }

    /// Writes a placement. False: it has to see first what others have written.
    async fn place(&mut self, place: &Place, reservations: &mut BTreeMap<String, i32>) -> bool {
        let Place { vm, instead_of, spec_version, placement, added } = place;
        let (instead_of, spec_version) = (*instead_of, *spec_version);
        let versions = added.iter().map(|host| (host.as_str(), reservations.get(host).copied())).collect();
        let placing = Placing { vm, instead_of, spec_version, placement, added: versions };
        match self.writer.place(&placing).await {
            Ok(Written::Done) => {
                for host in added {
                    let version = reservations.get(host).map_or(0, |version| version + 1);
                    reservations.insert(host.clone(), version);
                }
                let version = instead_of.map_or(0, |version| version + 1);
                self.written.insert(vm.clone(), (version, boot_clock_ns()));
                eprintln!("lockstep: `{vm}` (placement {}): {}", placement.number, in_words(placement));
                true
            }
            Ok(Written::Overtaken) => {
                tracing::info!(vm, "another agent was faster");
                false
            }
            Err(error) => {
                tracing::info!(vm, error = &error as &dyn std::error::Error, "cannot write");
                false
            }
        }
    }

    /// Whether the placement is still of this version.
    async fn confirmed(&self, vm: &str, version: i32) -> bool {
        match self.writer.confirm(vm, version).await {
            Ok(Written::Done) => true,
            Ok(Written::Overtaken) => false,
            Err(error) => {
                tracing::info!(vm, error = &error as &dyn std::error::Error, "not confirmed");
                false
            }
        }
    }

    /// Asks a side for something, unless it has been asked a moment ago. The answer is waited for elsewhere. False: nothing was asked.
    async fn have(&mut self, vm: &str, version: i32, control: &str, command: Command, patience: Duration) -> bool {
        let key = (vm.to_owned(), format!("{command:?} {control}"));
        self.asked.retain(|_, until| *until > Instant::now());
        if self.asked.contains_key(&key) {
            return true;
        }
        if !self.confirmed(vm, version).await {
            return false;
        }
        self.asked.insert(key.clone(), Instant::now() + patience);
        eprintln!(
            "lockstep: `{vm}`: the side at {control} is asked to {}",
            if command == Command::Leave { "leave" } else { "switch" }
        );
        let (answered, control) = (self.answered.0.clone(), control.to_owned());
        tokio::spawn(async move {
            let said = match control::command(&control, command, patience).await {
                Ok(answer) => answer.text,
                Err(error) => error.to_string(),
            };
            let _ = answered.send(Answered { key, said });
        });
        true
    }

    async fn do_duties(&mut self, view: &View) {
        let (duties, leaving) = duties(view, self.me(), &self.ledger.here(), &self.times);
        self.times.look_at_leaving(leaving);
        for Duty { vm, version, what } in duties {
            match what {
                What::Leave { control } => {
                    self.have(&vm, version, &control, Command::Leave, LEAVE_PATIENCE).await;
                }
                What::Kill { pid } => {
                    if self.confirmed(&vm, version).await {
                        let of = |side: &&Side| side.host == self.me() && side.process.pid == pid;
                        // Asked for last: the number may be another process's as soon as this one is gone.
                        let side = view.vms[&vm].sides.iter().find(of).filter(|side| !side.process.is_gone());
                        if side.is_some() {
                            eprintln!("lockstep: `{vm}`: process {pid} has lost the machine and does not go: killed");
                            let pid = nix::unistd::Pid::from_raw(pid as i32);
                            // It may have gone by itself.
                            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                        }
                    }
                }
                What::Boot { number, after, spec } => {
                    if self.confirmed(&vm, version).await {
                        self.start(&vm, number, Some(after), None, &spec).await;
                    }
                }
                What::Protect { number, boot, primary, spec } => {
                    if self.confirmed(&vm, version).await {
                        self.start(&vm, number, boot, Some(primary), &spec).await;
                    }
                }
            }
        }
    }
}

/// What a placement says, for the log.
fn in_words(placement: &Placement) -> String {
    if let Some(end) = &placement.ended {
        return format!("nothing is started any more: {end}");
    }
    let on = |host: &Option<String>| host.clone().unwrap_or_else(|| "nobody".into());
    let coming = if placement.protected || placement.backup.is_none() { "" } else { " as soon as it has come" };
    format!("{} runs it, {} protects it{coming}", on(&placement.primary), on(&placement.backup))
}

/// Of this host's sides, those whose processes are there. The records of the others will go away, and this host knows it first.
fn here_only_what_lives(view: Arc<View>, me: &str) -> Arc<View> {
    let gone: BTreeSet<(String, String)> = view
        .vms
        .iter()
        .flat_map(|(name, vm)| vm.sides.iter().map(move |side| (name, side)))
        .filter(|(_, side)| side.host == me && side.process.is_gone())
        .map(|(name, side)| (name.clone(), side.process.number.clone()))
        .collect();
    if gone.is_empty() {
        return view;
    }
    let mut view = View::clone(&view);
    for (name, vm) in &mut view.vms {
        vm.sides.retain(|side| side.host != me || !gone.contains(&(name.clone(), side.process.number.clone())));
    }
    Arc::new(view)
}
