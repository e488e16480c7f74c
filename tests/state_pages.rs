//! Promise: a running guest's memory can be copied from another thread, page by page, and what the guest writes meanwhile is known: with digests and
//! without, again and again. At the end the copy is the guest's memory, and a machine made of it has its digest at once.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod recording;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep::backends::world::World;
use lockstep::console::hub::Hub;
use lockstep::doors::Behind;
use lockstep::doors::live::{LiveDoor, NoLog};
use lockstep::host::vcpu_thread::VcpuThread;
use lockstep::machine::doors::{EndReason, Event};
use lockstep::machine::memory_digest::MemoryDigest;
use lockstep::machine::pages::Pages;
use lockstep::machine::vcpu::KvmError;
use lockstep::machine::{Blank, Machine, Tracking};
use lockstep::transfer::chunk::{ChunkError, Part, Unpacker};
use lockstep::transfer::state::GuestState;
use lockstep::transfer::take::{Subject, take};
use recording::image::image;
use recording::machine::{Terminal, boot, boot_image};
use recording::process::until;
use recording::script::Script;

fn copy(pages: &Pages, which: &[u64], to: &mut Blank) -> u32 {
    let mut bytes = [0; 4096];
    let mut copied = 0;
    for page in (0..pages.count() as u32).filter(|page| which[*page as usize / 64] >> (page % 64) & 1 != 0) {
        pages.read(page, &mut bytes);
        to.put_page(page, bytes.iter().any(|&byte| byte != 0).then_some(&bytes));
        copied += 1;
    }
    copied
}

fn copies_of_a_running_guest(tracking: Tracking) {
    let boot = boot("mix 8 100000 hz=1000");
    let mut machine = Machine::new(&boot, tracking).expect("a machine");
    let (pages, safepoints) = (machine.pages(), machine.safepoints());
    let world = World::new(machine.safepoints(), 0, 0);
    let mut door = LiveDoor::new(world.clone(), Behind::console(Arc::new(Terminal::default())), NoLog, 5_000_000);
    let thread = VcpuThread::spawn(move || machine.run(&mut door).expect("it is stopped")).expect("a thread");
    until("the guest to work", || (safepoints.count() > 100_000).then_some(()));
    let mut longest = (Duration::ZERO, Duration::ZERO);
    for round in 0..10 {
        let began = Instant::now();
        pages.begin_copy().expect("a copy begins");
        longest.0 = longest.0.max(began.elapsed());
        assert!(matches!(pages.begin_copy(), Err(KvmError::Copied)), "one at a time");
        let mut blank = Blank::new(&boot, Tracking::On).expect("a machine");
        let all = pages.take_written().expect("pages");
        assert_eq!(copy(&pages, &all, &mut blank), pages.count() as u32, "first all of them");
        for _ in 0..3 {
            let before = safepoints.count();
            until("the guest to write", || (safepoints.count() > before + 1000).then_some(()));
            let some = pages.take_written().expect("pages");
            let copied = copy(&pages, &some, &mut blank);
            // The guest works on half a megabyte, and has a stack and some tables.
            assert!((1..1000).contains(&copied), "round {round}: {copied} pages");
        }
        let (say, said) = channel();
        let source = pages.clone();
        world.request_capture(Box::new(move |captured| {
            let mut last = source.take_written().expect("pages");
            let page = source.safepoint_page().expect("the guest has safepoints");
            last[page as usize / 64] |= 1 << (page % 64);
            let copied = copy(&source, &last, &mut blank);
            let machine = blank.finish(&captured.state).expect("a machine");
            // The guest stands still: here is what its memory is.
            let (mut here, mut there) = ([0; 4096], [0; 4096]);
            let different: Vec<u32> = (0..source.count() as u32)
                .filter(|&at| {
                    source.read(at, &mut here);
                    machine.pages().read(at, &mut there);
                    here != there && at != page
                })
                .collect();
            say.send((machine, different, copied)).expect("the test listens");
        }));
        let (mut machine, different, _) = said.recv_timeout(Duration::from_secs(60)).expect("a state");
        assert_eq!(different, [0u32; 0], "round {round}");
        let began = Instant::now();
        pages.end_copy().expect("the copy ends");
        longest.1 = longest.1.max(began.elapsed());
        // The digest that grew with the pages is that of the memory as a whole.
        let mut whole = MemoryDigest::new(pages.count());
        let mut bytes = [0; 4096];
        let copy = machine.pages();
        for page in (0..pages.count()).filter(|&page| Some(page as u32) != copy.safepoint_page()) {
            copy.read(page as u32, &mut bytes);
            whole.put(page, Some(&bytes));
        }
        let mut door = Script::new([Some(Event::Digest), Some(Event::Stop)]);
        assert_eq!(machine.run(&mut door).expect("it stops"), EndReason::Stopped);
        assert_eq!(door.digests[0].1.memory, whole.total(), "round {round}");
        assert!(door.digests[0].1.pages.is_empty(), "nothing has changed since the machine was made");
    }
    let before = safepoints.count();
    until("the guest to go on", || (safepoints.count() > before).then_some(()));
    assert!(pages.take_written().expect("pages").iter().all(|&word| word == 0), "nobody copies");
    world.stop();
    until("the guest to stop", || thread.finished().then_some(()));
    world.end();
    println!("{tracking:?}: begin_copy at most {:?}, end_copy at most {:?}, 32 MiB", longest.0, longest.1);
}

#[test]
fn a_guest_that_takes_digests_is_copied_while_it_runs() {
    copies_of_a_running_guest(Tracking::On);
}

#[test]
fn a_guest_that_takes_none_is_copied_while_it_runs() {
    copies_of_a_running_guest(Tracking::Off);
}

/// A guest that writes one page after the other, without end, and every other time zeros: never few, and never the same.
#[test]
fn a_snapshot_of_a_guest_that_writes_everywhere_is_its_memory_at_one_instant() {
    let code = [
        &[0xb8, 1, 0, 0, 0][..],                  // mov eax, 1
        &[0xbf, 0, 0, 0x20, 0],                   // outer: mov edi, 0x200000
        &[0x89, 0x07, 0x89, 0xc3],                // inner: mov [edi], eax; mov ebx, eax
        &[0xe4, 0x80, 0x89, 0xd8],                // in al, 0x80; mov eax, ebx
        &[0x81, 0xc7, 0, 0x10, 0, 0],             // add edi, 0x1000
        &[0x81, 0xff, 0, 0, 0xf0, 1, 0x72, 0xea], // cmp edi, 0x1f00000; jb inner
        &[0x83, 0xf0, 1, 0xeb, 0xe0],             // xor eax, 1; jmp outer
    ]
    .concat();
    let boot = boot_image(image(&code), "");
    let mut machine = Machine::new(&boot, Tracking::Off).expect("a machine");
    let (pages, safepoints) = (machine.pages(), machine.safepoints());
    let world = World::new(machine.safepoints(), 0, 0);
    let hub = Arc::new(Hub::new("vm", "host", 1 << 16));
    let subject = Subject { world: world.clone(), pages: pages.clone(), hub: hub.clone() };
    let mut door = LiveDoor::new(world.clone(), Behind::console(hub), NoLog, u64::MAX);
    let thread = VcpuThread::spawn(move || machine.run(&mut door).expect("it is stopped")).expect("a thread");
    until("the guest to work", || (safepoints.exits() > 10_000).then_some(()));
    for round in 0..6 {
        let chunks = Arc::new(Mutex::new(Vec::new()));
        let (before, source, (say, said)) = (chunks.clone(), pages.clone(), channel());
        let boot = boot.clone();
        let sent = |chunk| {
            chunks.lock().expect("not poisoned").push(chunk);
            true
        };
        let finish = move |last: Vec<Vec<u8>>, state: GuestState| {
            let mut blank = Blank::new(&boot, Tracking::Off).expect("a machine");
            let (mut unpacker, before) = (Unpacker::default(), before.lock().expect("not poisoned"));
            for chunk in before.iter().chain(&last) {
                let put = |part: Part<'_>| match part {
                    Part::Page { number, bytes } => {
                        blank.put_page(number, bytes);
                        Ok::<(), ChunkError>(())
                    }
                    Part::Piece { .. } => unreachable!("there is no disk"),
                };
                unpacker.unpack(chunk, put).expect("a chunk");
            }
            let (mut here, mut there) = ([0; 4096], [0; 4096]);
            let copy = blank.pages();
            let different = (0..source.count() as u32).filter(|&at| {
                source.read(at, &mut here);
                copy.read(at, &mut there);
                here != there
            });
            say.send((different.count(), state.machine.exits)).expect("the test listens");
        };
        take(&subject, round % 2 == 0, sent, finish).expect("a snapshot");
        let (different, exits) = said.recv_timeout(Duration::from_secs(60)).expect("a state");
        assert_eq!(different, 0, "round {round}, at exit {exits}");
    }
    world.stop();
    until("the guest to stop", || thread.finished().then_some(()));
    world.end();
}
