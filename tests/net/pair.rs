//! A primary and its backup on the hosts of a site, with a relay in the logging channel if one is wanted.

use std::sync::MutexGuard;

use lockstep::console::status::Status;
use tempfile::TempDir;

use super::site::{CHANNEL, GUEST, MAC, Site, within};
use crate::common::console::status;
use crate::common::eventually;
use crate::common::pair::{needs_kvm, turn};
use crate::common::process::Side;
use crate::common::relay::Relay;

/// What kind of pair.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The guest's application and its arguments.
    pub guest: Vec<String>,
    /// Silence after which the other side is suspected. Longer than in production where false alarms would spoil a test, for the tests
    /// share two processors with others.
    pub timeout_ms: u64,
    /// The guest's memory.
    pub memory_mib: u64,
    /// Whether there is a relay in the logging channel.
    pub relay: bool,
}

impl Setup {
    /// A pair that serves Redis clients.
    pub fn kv() -> Setup {
        Setup { guest: vec!["kv".into()], timeout_ms: 1000, memory_mib: 64, relay: false }
    }
}

/// A relay whose threads are on a host of the site.
struct RelayThere {
    relay: Option<Relay>,
    namespace: String,
}

impl Drop for RelayThere {
    fn drop(&mut self) {
        // It ends by connecting to itself.
        let relay = self.relay.take();
        within(&self.namespace, || drop(relay));
    }
}

/// A running pair.
pub struct Pair<'a> {
    /// The sides: host a's, the first primary; host b's, its backup.
    pub sides: [Side; 2],
    relay: Option<RelayThere>,
    site: &'a Site,
    consoles: [String; 2],
    _arbiter: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// What `--net` says on the side that boots the guest.
pub fn net_option() -> String {
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    format!("tap=tap0,mac={mac},ip={GUEST}/24,gw=10.9.0.1")
}

/// The words that run lockstep in a namespace.
pub fn lockstep_in(namespace: &str) -> Vec<String> {
    ["ip", "netns", "exec", namespace, env!("CARGO_BIN_EXE_lockstep")].map(str::to_owned).to_vec()
}

impl<'a> Pair<'a> {
    /// Starts a pair and waits until the guest runs, protected.
    #[track_caller]
    pub fn start(site: &'a Site, setup: &Setup) -> Pair<'a> {
        needs_kvm();
        let turn = turn();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let arbiter = directory.path().display();
        let mut arguments = words(format!(
            "primary --name vm --host a --arbiter {arbiter} --control 127.0.0.1:0 --channel {}:0 --timeout {} --memory {} --net {} \
             --guest {}",
            CHANNEL[0],
            setup.timeout_ms,
            setup.memory_mib,
            net_option(),
            setup.guest[0],
        ));
        arguments.push("--".into());
        arguments.extend(setup.guest[1..].iter().cloned());
        let primary = Side::spawn("primary", &lockstep_in(&site.host(0)), &arguments);
        let channel = primary.address("logging channel");
        let relay = setup.relay.then(|| {
            let relay = within(&site.host(1), || Relay::to(&channel));
            RelayThere { relay: Some(relay), namespace: site.host(1) }
        });
        let there = relay.as_ref().and_then(|there| there.relay.as_ref()).map_or(channel, Relay::address);
        // The copy of the log goes where it is removed with all else, also after SIGKILL.
        let arguments = words(format!(
            "backup --name vm --host b --arbiter {arbiter} --control 127.0.0.1:0 --primary {there} --net tap=tap0 \
             --log {arbiter}/backup.lslog --log-limit 64"
        ));
        let backup = Side::spawn("backup", &lockstep_in(&site.host(1)), &arguments);
        let consoles = [primary.address("console"), backup.address("console")];
        let pair = Pair { sides: [primary, backup], relay, site, consoles, _arbiter: directory, _turn: turn };
        pair.waits_for(0, &["protected"]);
        pair
    }

    /// The relay.
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().and_then(|there| there.relay.as_ref()).expect("a pair with a relay")
    }

    /// The status of a side.
    pub fn status(&self, side: usize) -> Option<Status> {
        status(&self.consoles[side], Some(&self.site.host(side)))
    }

    /// Waits until a side is in one of these states of the protocol.
    #[track_caller]
    pub fn waits_for(&self, side: usize, states: &[&str]) {
        eventually(&format!("side {side} is {states:?}"), || {
            states.contains(&self.status(side)?.state.as_str()).then_some(())
        });
    }

    /// Waits until one side goes on alone, and says which; never both.
    #[track_caller]
    pub fn one_lives(&self) -> usize {
        eventually("one lives", || {
            let lives = [0, 1]
                .map(|side| self.status(side).is_some_and(|status| matches!(status.state.as_str(), "unprotected")));
            assert!(lives != [true, true], "both live");
            lives.iter().position(|&lives| lives)
        })
    }

    /// Waits until a side has ended because it lost the guest.
    #[track_caller]
    pub fn lost(&mut self, side: usize) {
        let status = self.sides[side].ends();
        let said = self.sides[side].said();
        assert_eq!(status.code(), Some(1), "{said:?}");
        assert!(said.iter().any(|line| line.contains("stopped: lost generation 2")), "{said:?}");
    }

    /// Nothing has gone wrong on this side so far, and it runs.
    #[track_caller]
    pub fn runs(&mut self, side: usize) {
        let ended = self.sides[side].status();
        assert!(ended.is_none(), "{ended:?}: {:?}", self.sides[side].said());
    }
}
