//! The four-letter words of ZooKeeper: what people and monitors ask a member by itself.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use openraft::ServerState;

use crate::core::Core;

/// The version of ZooKeeper whose protocol this is: clients go by it. Behind it, our own.
const VERSION: &str = concat!("3.8.0-lockstep-", env!("CARGO_PKG_VERSION"));

/// The answer, if the connection begins with a word.
pub(super) fn answer<N>(core: &Core<N>, first: &[u8]) -> Option<String> {
    let word: &[u8; 4] = first.first_chunk()?;
    let serving = *core.serving.borrow();
    let unless_serving = |answer: fn(&Core<N>) -> String| match serving {
        true => answer(core),
        false => "This ZooKeeper instance is not currently serving requests\n".to_string(),
    };
    Some(match word {
        b"ruok" => "imok".into(),
        b"envi" => format!("Environment:\nzookeeper.version={VERSION}\n"),
        b"isro" => if serving { "rw" } else { "null" }.into(),
        b"srvr" => unless_serving(srvr),
        b"stat" => unless_serving(stat),
        b"mntr" => unless_serving(mntr),
        b"conf" => unless_serving(conf),
        _ => return None,
    })
}

fn mode<N>(core: &Core<N>) -> &'static str {
    let metrics = core.raft.server_metrics();
    let metrics = metrics.borrow();
    let alone = metrics.membership_config.membership().voter_ids().count() == 1;
    match metrics.state {
        _ if alone => "standalone",
        ServerState::Leader => "leader",
        ServerState::Follower | ServerState::Candidate => "follower",
        ServerState::Learner | ServerState::Shutdown => "observer",
    }
}

fn stat<N>(core: &Core<N>) -> String {
    let mut text = format!("Zookeeper version: {VERSION}\nClients:\n");
    for (address, session) in core.replica.clients() {
        writeln!(text, " /{address}[1](queued=0,recved=0,sent=0,sid=0x{session:x})")
            .expect("a String takes everything");
    }
    text.push('\n');
    let rest = srvr(core);
    text.push_str(rest.split_once('\n').map_or("", |(_, rest)| rest));
    text
}

fn conf<N>(core: &Core<N>) -> String {
    let port = |address: &str| address.rsplit_once(':').map_or_else(String::new, |(_, port)| port.to_string());
    let settings = &core.settings;
    format!(
        "clientPort={}\nmaxClientCnxns={}\nminSessionTimeout={}\nmaxSessionTimeout={}\nserverId={}\nquorumPort={}\n",
        port(&core.address.client),
        settings.max_connections,
        settings.min_session.as_millis(),
        settings.max_session.as_millis(),
        core.me.member.id,
        port(&core.address.peer),
    )
}

fn srvr<N>(core: &Core<N>) -> String {
    let (least, mean, most) = core.statistics.latency_ms();
    let (received, sent) = (core.statistics.received.load(Relaxed), core.statistics.sent.load(Relaxed));
    let (connections, outstanding) = (core.replica.connection_count(), core.replica.pending().len());
    let state = core.replica.state();
    format!(
        "Zookeeper version: {VERSION}\nLatency min/avg/max: {least}/{mean:.4}/{most}\nReceived: {received}\nSent: {sent}\n\
         Connections: {connections}\nOutstanding: {outstanding}\nZxid: 0x{:x}\nMode: {}\nNode count: {}\n",
        state.tree.zxid(),
        mode(core),
        state.tree.node_count(),
    )
}

fn mntr<N>(core: &Core<N>) -> String {
    let (least, mean, most) = core.statistics.latency_ms();
    let watches = core.replica.watches().count();
    let (connections, outstanding) = (core.replica.connection_count(), core.replica.pending().len());
    let mode = mode(core);
    let mut text = String::new();
    let mut row = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "zk_{name}\t{value}").expect("a String takes everything");
    };
    row("version", &VERSION);
    row("server_state", &mode);
    row("avg_latency", &format_args!("{mean:.4}"));
    row("min_latency", &least);
    row("max_latency", &most);
    row("packets_received", &core.statistics.received.load(Relaxed));
    row("packets_sent", &core.statistics.sent.load(Relaxed));
    row("num_alive_connections", &connections);
    row("outstanding_requests", &outstanding);
    row("watch_count", &watches);
    {
        let state = core.replica.state();
        row("znode_count", &state.tree.node_count());
        row("ephemerals_count", &state.tree.ephemeral_count());
        row("approximate_data_size", &state.tree.bytes());
        row("global_sessions", &state.tree.sessions().count());
    }
    if mode == "leader" {
        let metrics = core.raft.server_metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let others: Vec<_> = membership.voter_ids().filter(|member| *member != core.me.member).collect();
        let synced = others
            .iter()
            .filter(|member| core.links.answered(**member).is_some_and(|ago| ago < core.settings.patience));
        row("learners", &others.len());
        row("synced_followers", &synced.count());
    }
    text
}
