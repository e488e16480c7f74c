//! Builds the guest's image with the host's own cargo and tells the crate where it lies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Settings of the outer build that the guest, a build of its own, must not inherit: flags for
/// other code, target directories, and wrappers and job servers that expect the outer workspace.
const NOT_INHERITED: [&str; 8] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_MAKEFLAGS",
];

/// The guest's sources, and nothing else that lies there.
const SOURCES: [&str; 16] = [
    "Cargo.toml",
    "Cargo.lock",
    "abi",
    "aof",
    "apps",
    "disk",
    "examples",
    "http",
    "kernels",
    "kv",
    "line",
    "link",
    "net",
    "runtime",
    "service",
    "virtio",
];

fn main() {
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let guest = Path::new(&variable("CARGO_MANIFEST_DIR")).join("guest");
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("guest");

    // A `target` folder of somebody working in the guest changes nothing here.
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", guest.join(source).display());
    }

    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(&guest);
    cargo.args(["build", "--release", "--locked", "--target", TARGET]);
    cargo.args(["--package", "lockstep-apps", "--package", "hello"]);
    cargo.arg("--target-dir").arg(&target_dir);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run cargo for the guest: {error}"));
    assert!(status.success(), "the guest does not build ({status}); see cargo's messages above");

    let images = target_dir.join(TARGET).join("release");
    println!("cargo::rustc-env=LOCKSTEP_GUEST_ELF={}", images.join("lockstep-guest").display());
    // For the test that boots the guide's example.
    println!("cargo::rustc-env=LOCKSTEP_HELLO_ELF={}", images.join("hello").display());
}
