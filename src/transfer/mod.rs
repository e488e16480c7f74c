//! A machine's state on its way to a new backup or into a file.

pub mod chunk;
pub mod file;
pub mod state;
pub mod take;
