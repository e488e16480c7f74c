//! Promise: of all that claim a generation in a register file, exactly one wins, whatever dies in between,
//! and a damaged register is never taken for an empty one.

mod arbiters;

use arbiters::{Place, VM, claim};
use lockstep::arbiter::register::RegisterFile;
use lockstep::arbiter::{Arbiter, ArbiterError, Verdict};
use std::fs;
use tempfile::TempDir;

/// A directory of its own.
struct Directory(TempDir);

impl Place for Directory {
    fn uri(&self) -> String {
        format!("file://{}", self.0.path().display())
    }

    fn raw(&self, vm: &str) -> Option<Vec<u8>> {
        fs::read(self.register().path(vm).unwrap()).ok()
    }

    fn put_raw(&self, vm: &str, bytes: &[u8]) {
        fs::write(self.register().path(vm).unwrap(), bytes).unwrap();
    }
}

impl Directory {
    fn new() -> Self {
        Directory(tempfile::tempdir().unwrap())
    }

    fn register(&self) -> RegisterFile {
        RegisterFile::open(self.0.path()).unwrap()
    }
}

#[test]
fn one_thread_wins_each_generation() {
    arbiters::one_thread_wins_each_generation(&Directory::new());
}

#[test]
fn a_contender_claims_generation_after_generation() {
    arbiters::contender_process();
}

#[test]
fn one_process_wins_each_generation() {
    arbiters::one_process_wins_each_generation(&Directory::new());
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_register_that_works() {
    arbiters::a_claimant_killed_at_any_moment_leaves_a_register_that_works(&Directory::new(), 30);
}

/// The states in which a crash between the write and the rename leaves the directory: the new file whole, torn, empty.
#[test]
fn what_was_written_and_not_renamed_does_not_count() {
    let whole = {
        let place = Directory::new();
        place.open().compare_and_set(VM, None, &claim(2, 22)).unwrap();
        place.raw(VM).unwrap()
    };
    for left in [&whole[..], &whole[..whole.len() / 2], b""] {
        let place = Directory::new();
        let register = place.register();
        register.compare_and_set(VM, None, &claim(1, 11)).unwrap();
        fs::write(place.0.path().join(format!("{VM}.new")), left).unwrap();
        assert_eq!(register.read(VM).unwrap(), Some(claim(1, 11)));
        assert_eq!(register.compare_and_set(VM, Some(1), &claim(2, 33)).unwrap(), Verdict::Won);
        assert_eq!(register.read(VM).unwrap(), Some(claim(2, 33)));
    }
}

#[test]
fn the_same_claim_again_has_won_and_another_has_lost() {
    arbiters::the_same_claim_again_has_won_and_another_has_lost(&Directory::new());
}

#[test]
fn a_generation_won_for_two_is_told_from_one_won_alone() {
    arbiters::a_generation_won_for_two_is_told_from_one_won_alone(&Directory::new());
}

#[test]
fn a_damaged_register_is_a_named_error_and_stays_as_it_is() {
    arbiters::a_damaged_register_is_a_named_error_and_stays_as_it_is(&Directory::new(), 1);
}

#[test]
fn names_are_kept_apart_and_those_that_are_none_are_errors() {
    arbiters::names_are_kept_apart_and_those_that_are_none_are_errors(&Directory::new());
}

#[test]
fn storage_that_is_not_there_is_an_error() {
    let place = Directory::new();
    let register = place.register();
    let missing = place.0.path().join("missing");
    assert!(matches!(RegisterFile::open(&missing), Err(ArbiterError::Storage { what: "use", .. })));
    assert!(!missing.exists());
    assert_eq!(register.location(), place.0.path().display().to_string());
    drop(place);
    assert!(matches!(register.read(VM), Err(ArbiterError::Storage { .. })), "gone storage is no empty register");
}
