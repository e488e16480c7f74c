//! The log: entries, their byte format, the file, the buffer between vCPU and channel.

pub mod entry;
