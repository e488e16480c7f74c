//! Promise: a running guest's memory can be copied from another thread, page by page, and what the guest writes meanwhile is known: with digests and
//! without, again and again. At the end the copy is the guest's memory, and a machine made of it has its digest at once.

mod recording;

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lockstep::backends::world::World;
use lockstep::doors::Behind;
use lockstep::doors::live::{LiveDoor, NoLog};
use lockstep::host::vcpu_thread::VcpuThread;
use lockstep::machine::doors::{EndReason, Event, Halt};
use lockstep::machine::pages::Pages;
use lockstep::machine::vcpu::KvmError;
use lockstep::machine::{Blank, Machine, Tracking};
use recording::machine::{Terminal, boot};
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
    let mut door =
        LiveDoor::new(world.clone(), Behind::console(std::sync::Arc::new(Terminal::default())), NoLog, 5_000_000);
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
        // The digest that grew with the pages is that of the memory as a whole: taken once more, of everything.
        let mut door = Script::new([Some(Event::Digest), Some(Event::Capture)]);
        door.leave_at_capture = true;
        assert!(matches!(machine.run(&mut door), Err(Halt::Requested(_))));
        let (_, state) = door.captured.pop().expect("a state");
        let mut again = recording::moving::moved(&machine, &state);
        let mut other = Script::new([Some(Event::Digest), Some(Event::Stop)]);
        assert_eq!(again.run(&mut other).expect("it stops"), EndReason::Stopped);
        assert!(door.digests[0].1.same_state(&other.digests[0].1), "round {round}");
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
