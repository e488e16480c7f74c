//! Promise: register files, opened by their URI, keep what every kind of arbiter promises. (What is special to them is in `tests/arbiter_register.rs`.)

mod arbiters;

use arbiters::Place;
use lockstep::arbiter::register::RegisterFile;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A directory of its own.
struct Directory(TempDir);

impl Place for Directory {
    fn uri(&self) -> String {
        format!("file://{}", self.0.path().display())
    }

    fn raw(&self, vm: &str) -> Option<Vec<u8>> {
        fs::read(self.file(vm)).ok()
    }

    fn put_raw(&self, vm: &str, bytes: &[u8]) {
        fs::write(self.file(vm), bytes).unwrap();
    }
}

impl Directory {
    fn new() -> Self {
        Directory(tempfile::tempdir().unwrap())
    }

    fn file(&self, vm: &str) -> PathBuf {
        RegisterFile::open(self.0.path()).and_then(|register| register.path(vm)).unwrap()
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
fn a_claimant_killed_at_any_moment_leaves_a_register_that_works() {
    arbiters::a_claimant_killed_at_any_moment_leaves_a_register_that_works(&Directory::new(), 30);
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
    arbiters::a_damaged_register_is_a_named_error_and_stays_as_it_is(&Directory::new(), 7);
}

#[test]
fn names_are_kept_apart_and_those_that_are_none_are_errors() {
    arbiters::names_are_kept_apart_and_those_that_are_none_are_errors(&Directory::new());
}
