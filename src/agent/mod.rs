//! `lockstep agent`: a daemon on every host of a cluster. Together the agents keep each VM that was given to them running and protected.
//!
//! ```text
//!                 the ensemble (registers, records, specifications, placements)
//!                      ▲ │ what has changed                 ▲ conditional writes
//!                      │ ▼                                  │
//!   record of ◄── duties::tell ◄── view ──► decide ─────────┘   for the VMs that this agent acts for
//!   this host                       │
//!                                   └─────► duties ──► ledger   processes of this host: start, ask to leave
//! ```
//!
//! There is no leader. [`decide()`] and [`duties()`] are functions of what an agent sees; what two agents do that see
//! different things is settled by the versions that their writes depend on. Which side of a VM lives, no agent has a say in: that is won at the VM's register.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`advice`] | what a person should know |
//! | [`fit`] | which hosts fit a VM, and which best |
//! | [`mod@decide`] | what is to become of the VMs |
//! | [`mod@duties`] | what that means for this host's processes |
//! | [`times`] | for how long things have been as they are |
//! | [`ledger`] | the processes that were started here |
//! | [`plug`] | TAP devices, the uplink |
//! | [`run`] | the daemon; in `start`, the command lines of what it starts |
#![allow(
    clippy::disallowed_methods,
    reason = "the daemon is the outside world; what decides gets its time as a parameter"
)]

pub mod advice;
pub mod decide;
pub mod duties;
pub mod fit;
pub mod ledger;
pub mod plug;
pub mod run;
mod start;
pub mod times;

pub use decide::decide;
pub use duties::duties;
