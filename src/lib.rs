//! lockstep: a virtual machine that survives the death of its host, by deterministic replay.
//!
//! The map of the house. What stands above must not look below it: the machine knows nothing of the log, the
//! log nothing of the protocol, the protocol nothing of sockets.
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`machine`] | the deterministic machine: vCPU, memory, boot, instants, digests, and the traits of its two doors. No clock, no socket, no thread |
//! | [`devices`] | device models: register machines behind the doors |
//! | [`log`] | entries, their bytes, frames, files |
//! | [`doors`] | who stands at the machine's doors: the world, a log, or first the one and then the other |
//! | [`replication`] | the fault-tolerance protocol as pure state machines |
//! | [`arbiter`] | who may live: registers that only one side can win |
//! | [`ladder`] | files that only climb, on storage that several hosts reach: what registers and stamps are made of |
//! | [`agent`] | the daemon that keeps a cluster's VMs running and protected |
//! | [`cluster`] | what is known of all hosts and VMs, kept in the ensemble that is their arbiter |
//! | [`backends`] | the world: clock, timer, random numbers, scheduling |
//! | [`console`] | the guest's console over the network, every byte once; status and control |
//! | [`net`] | the network outside of the guest's card: TAP or socket, packets held until released |
//! | [`disk`] | the disk outside of the guest's device: images, requests under way, changes held until released |
//! | [`transfer`] | a machine's state on its way to a new backup or into a file |
//! | [`host`] | what joins machine, doors and protocol to threads, files and sockets |
//! | [`guest`] | the built-in guest image (its sources are in `guest/`) |
//! | [`mod@bench`] | the measurements of `lockstep bench` |
//! | [`load`] | clients of the guest's network services, for the demo and the measurements |
//! | [`cli`] | one file per subcommand |

pub mod agent;
pub mod arbiter;
pub mod backends;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod console;
pub mod devices;
pub mod disk;
pub mod doors;
pub mod guest;
pub mod host;
pub mod ladder;
pub mod load;
pub mod log;
pub mod machine;
pub mod net;
pub mod replication;
pub mod transfer;
