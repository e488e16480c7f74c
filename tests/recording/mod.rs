//! What several promises need to be tried: machines recorded and replayed in this process, the program itself as a
//! process, and a busy host.
#![allow(dead_code, reason = "every test uses its own part of it")]
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

pub mod disk;
pub mod image;
pub mod load;
pub mod machine;
pub mod moving;
pub mod process;
pub mod script;
