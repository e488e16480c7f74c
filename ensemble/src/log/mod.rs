//! What stands in the replicated log, and where it is kept.

pub mod entry;
pub mod proposal;
pub mod store;
