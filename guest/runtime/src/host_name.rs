//! Which host the machine is on. The answer changes when the machine moves to another one.

use crate::pv;
use alloc::string::String;
use alloc::vec::Vec;
use lockstep_abi::pv::{HOST_NAME, HOST_NAME_WORDS};

/// The name of the host; "qemu" where there is no paravirtual page. An exit and an entry in the log for every eight bytes.
pub fn host_name() -> String {
    if !pv::present() {
        return "qemu".into();
    }
    let mut name = Vec::new();
    for word in 0..HOST_NAME_WORDS {
        let part = pv::read(HOST_NAME + 8 * word).to_le_bytes();
        let length = part.iter().position(|&byte| byte == 0).unwrap_or(part.len());
        name.extend_from_slice(&part[..length]);
        if length < part.len() {
            break;
        }
    }
    String::from_utf8_lossy(&name).into_owned()
}
