//! The log: entries, their byte format, the file, the buffer between vCPU and channel.

pub mod boot;
mod bytes;
pub mod codec;
#[cfg(test)]
mod codec_tests;
pub mod describe;
pub mod entry;
pub mod file;
#[cfg(test)]
mod file_tests;
pub mod frame;
pub mod measure;
pub mod stream;
pub mod summary;
