//! Promise: two VMs are never at one image; and an image that missed what its VM did elsewhere is not taken for the VM's disk: stale ones, copies of a backup and unfinished copies are
//! refused by name, through deaths of the process, until an operator says that he knows better.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/host.rs"]
mod host;

use std::path::Path;

use host::{Host, spec};
use lockstep::console::hub::Protection::Unprotected;
use lockstep::disk::DiskError;
use lockstep::disk::open::Owner;
use lockstep::disk::port::DiskPort;
use lockstep::disk::stamp::StampError;
use lockstep::doors::Disk;
use lockstep::machine::blocks::{Ask, Request};

const SEPARATE: &str = ",mode=separate";
const SHARED: &str = ",cache=writeback";

fn alone(path: &Path, settings: &str) -> Result<std::sync::Arc<DiskPort>, DiskError> {
    DiskPort::open_for(&spec(path, settings), Owner::Alone("vm"))
}

fn write(host: &Host, id: u64) {
    host.port.submit(id, vec![Request { id, ask: Ask::Write { sector: 0, data: vec![1; 512] } }]);
    assert_eq!(host.wait().len(), 1);
}

#[test]
fn one_image_has_one_vm() {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    let other = |settings| DiskPort::open_for(&spec(&path, settings), Owner::Pair("other"));
    let in_use = |result: Result<_, _>| matches!(result.map(drop), Err(DiskError::InUse { .. }));
    let primary = Host::open(&path, SHARED).unwrap();
    let backup = Host::open(&path, SHARED).unwrap();
    assert_eq!(primary.port.config(), backup.port.config());
    backup.port.fit(&primary.port.config()).unwrap();
    assert!(in_use(other(SHARED)) && in_use(alone(&path, SHARED)) && in_use(alone(&path, ",ro")));
    assert!(matches!(Host::open(&path, SEPARATE).err(), Some(DiskError::InUse { .. })));
    drop((primary, backup));
    let single = alone(&path, SHARED).unwrap();
    assert!(matches!(Host::open(&path, SHARED).err(), Some(DiskError::InUse { .. })));
    drop(single);
    let readers = (alone(&path, ",ro").unwrap(), other(",ro").unwrap());
    assert!(in_use(alone(&path, SHARED)));
    assert!(readers.0.config().read_only);
    drop(readers);
    drop(other(SHARED).unwrap());
}

#[test]
fn a_stale_image_is_refused() {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    let first = Host::open(&path, SEPARATE).unwrap();
    first.port.check_generation(None).unwrap();
    first.port.go_live(4, Unprotected).unwrap();
    write(&first, 0);
    // Dies here.
    drop(first);
    let again = Host::open(&path, SEPARATE).unwrap();
    again.port.check_generation(Some(4)).unwrap();
    let refused = again.port.check_generation(Some(5));
    assert!(matches!(refused, Err(DiskError::Stale { image: 4, vm: 5, .. })), "{refused:?}");
    drop(again);
    Host::open(&path, ",mode=separate,force").unwrap().port.check_generation(Some(5)).unwrap();
    // Another VM counts anew.
    let other = DiskPort::open_for(&spec(&path, SEPARATE), Owner::Pair("other")).unwrap();
    other.check_generation(Some(1)).unwrap();
    other.go_live(2, Unprotected).unwrap();
    drop(other);
    let other = DiskPort::open_for(&spec(&path, SEPARATE), Owner::Pair("other")).unwrap();
    assert!(matches!(other.check_generation(Some(3)), Err(DiskError::Stale { image: 2, vm: 3, .. })));
}

#[test]
fn a_copy_is_refused_where_the_vm_starts() {
    let directory = host::directory();
    let live = Host::open(&host::image(directory.path(), "a.img", 64), SEPARATE).unwrap();
    let path = host::image(directory.path(), "b.img", 64);
    let backup = Host::open(&path, SEPARATE).unwrap();
    backup.port.fit(&live.port.config()).unwrap();
    assert!(backup.port.needs_copy());
    // An image that is no copy is neither touched nor lived on.
    backup.port.replayed(0, &mut vec![Request { id: 0, ask: Ask::Write { sector: 0, data: vec![9; 512] } }]);
    assert!(matches!(backup.port.broken(), Some(DiskError::NotACopy { .. })));
    assert!(matches!(backup.port.go_live(1, Unprotected), Err(DiskError::NotACopy { .. })));
    assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    backup.port.fit(&live.port.config()).unwrap();
    backup.port.begin_receiving().unwrap();
    drop(backup);
    assert!(matches!(alone(&path, SEPARATE).err(), Some(DiskError::Copying { .. })));
    let backup = Host::open(&path, SEPARATE).unwrap();
    assert!(matches!(backup.port.check_generation(Some(3)), Err(DiskError::Copying { .. })));
    assert!(matches!(backup.port.go_live(4, Unprotected), Err(DiskError::Copying { .. })));
    backup.port.fit(&live.port.config()).unwrap();
    backup.port.begin_receiving().unwrap();
    backup.port.copied(3).unwrap();
    drop(backup);
    assert!(matches!(alone(&path, SEPARATE).err(), Some(DiskError::Following { .. })));
    let backup = Host::open(&path, SEPARATE).unwrap();
    assert!(matches!(backup.port.check_generation(Some(3)), Err(DiskError::Following { .. })));
    assert!(matches!(backup.port.go_live(4, Unprotected), Err(DiskError::Following { .. })));
    drop(backup);
    drop(alone(&path, ",mode=separate,force").unwrap());
}

#[test]
fn images_that_went_apart_are_not_taken_for_copies_of_each_other() {
    let directory = host::directory();
    let (a, b) = (host::image(directory.path(), "a.img", 64), host::image(directory.path(), "b.img", 64));
    let copy = || {
        let (live, backup) = (Host::open(&a, SEPARATE).unwrap(), Host::open(&b, SEPARATE).unwrap());
        live.port.go_live(1, Unprotected).unwrap();
        backup.port.fit(&live.port.config()).unwrap();
        let needed = backup.port.needs_copy();
        backup.port.begin_receiving().unwrap();
        backup.port.copied(1).unwrap();
        live.port.ended().unwrap();
        backup.port.ended().unwrap();
        needed
    };
    assert!(copy());
    assert!(!copy(), "both came to the same end");
    // One runs without the other, and comes to its end.
    let live = Host::open(&a, SEPARATE).unwrap();
    live.port.go_live(2, Unprotected).unwrap();
    write(&live, 7);
    live.port.ended().unwrap();
    drop(live);
    assert!(copy());
    // One is killed, having changed or not.
    let live = Host::open(&a, SEPARATE).unwrap();
    live.port.go_live(3, Unprotected).unwrap();
    drop(live);
    assert!(copy());
}

#[test]
fn a_damaged_stamp_is_not_taken_for_none() {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    drop(Host::open(&path, SEPARATE).unwrap());
    std::fs::write(directory.path().join("a.img.lockstep"), "{}").unwrap();
    let refused = Host::open(&path, SEPARATE).err();
    assert!(matches!(refused, Some(DiskError::Stamp(StampError::Damaged { .. }))), "{refused:?}");
    drop(Host::open(&path, ",mode=separate,force").unwrap());
    drop(Host::open(&path, SEPARATE).unwrap());
}

#[test]
fn the_wrong_image_is_refused() {
    let directory = host::directory();
    let (a, b) = (host::image(directory.path(), "a.img", 64), host::image(directory.path(), "b.img", 64));
    let long = host::image(directory.path(), "long.img", 128);
    let primary = Host::open(&a, SHARED).unwrap().port.config();
    let misfit = |path: &Path, settings: &str| {
        let refused = Host::open(path, settings).unwrap().port.fit(&primary);
        matches!(refused, Err(DiskError::Misfit { .. }))
    };
    assert!(misfit(&b, SHARED) && misfit(&long, SEPARATE) && misfit(&a, ",ro"));
    assert!(!misfit(&a, SHARED) && !misfit(&b, SEPARATE));
}
