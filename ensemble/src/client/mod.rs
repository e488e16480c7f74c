//! What a member does for clients.

mod answer;
pub mod connection;
pub mod listen;
mod slots;
pub mod statistics;
mod words;
