//! What stands in the replicated log, and where it is kept.


pub mod proposal;

