//! The network outside of the guest's card: where its packets come from and go to.
//!
//! | room | its one job |
//! | --- | --- |
//! | [`spec`] | what `--net` says |
//! | [`merge`] | outgoing TCP segments, merged for the host's kernel |
//! | [`port`] | the meeting point: packets for the guest, packets that wait for their release, and who may send |

pub mod merge;
pub mod port;
pub mod spec;

/// What can be wrong with a network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {}
