//! A host's side of a machine: what joins the deterministic machine, its doors and the protocol to threads, files and
//! sockets.
#![allow(clippy::disallowed_methods, reason = "this is where the host's time enters")]

pub mod file_log;
pub mod incoming;
pub mod outgoing;
pub mod vcpu_thread;
