//! Promise: the guest sleeps through nothing. A line typed at *any* exit of its boot and of its first prompt wakes it up,
//! even one between its last look at the keyboard and its `hlt`. Tried at every single exit, which a deterministic
//! machine can do; without timer ticks, since the next tick would wake a guest that has missed its wake-up.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use lockstep::guest;
use lockstep::machine::blocks::Requests;
use lockstep::machine::digest::Digest;
use lockstep::machine::doors::{ConsoleInput, EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use lockstep::machine::instant::Instant;
use lockstep::machine::packets::Packets;
use lockstep::machine::snapshot::{Boot, MachineState};
use lockstep::machine::{Machine, Tracking, cpuid};

/// Types one line at a chosen exit, and stops a guest that then waits for more.
struct Typist {
    /// Type at this exit; `None`: never.
    at_exit: Option<u64>,
    typed: bool,
    screen: Vec<u8>,
}

impl Inputs for Typist {
    fn clock(&mut self, _: Instant) -> Result<u64, Halt> {
        Ok(0)
    }

    fn entropy(&mut self, _: Instant) -> Result<u64, Halt> {
        Ok(0)
    }

    fn host_name(&mut self, _: Instant, _: usize) -> Result<u64, Halt> {
        Ok(0)
    }

    fn run_until(&mut self, _: Instant) -> Result<Until, Halt> {
        Ok(Until::Exit)
    }

    fn event(&mut self, at: Instant, ready: Readiness) -> Result<Option<Event>, Halt> {
        if !self.typed && self.at_exit.is_some_and(|exit| at.exits >= exit) {
            self.typed = true;
            return Ok(Some(Event::Console(ConsoleInput { session: 1, offset: 0, bytes: b"exit 9\r".to_vec() })));
        }
        if ready.idle { Err(Halt::Requested(at)) } else { Ok(None) }
    }

    fn interrupted(&mut self, _: Instant) -> Result<(), Halt> {
        Ok(())
    }
}

impl Outputs for Typist {
    fn console(&mut self, _: Instant, bytes: &[u8]) -> Result<(), Halt> {
        self.screen.extend(bytes);
        Ok(())
    }

    fn disk(&mut self, _: Instant, _: &mut Requests) -> Result<(), Halt> {
        Ok(())
    }

    fn captured(&mut self, _: Instant, _: Box<MachineState>) -> Result<(), Halt> {
        Ok(())
    }

    fn network(&mut self, _: Instant, _: &mut Packets) -> Result<(), Halt> {
        Ok(())
    }

    fn digest(&mut self, _: Instant, _: Digest) -> Result<(), Halt> {
        Ok(())
    }

    fn ended(&mut self, _: Instant, _: &EndReason) -> Result<(), Halt> {
        Ok(())
    }
}

/// Boots the shell without a timer: how it ended, and what it said.
fn shell(boot: &Boot, at_exit: Option<u64>) -> (Result<EndReason, Halt>, String) {
    let mut machine = Machine::new(boot, Tracking::Off).expect("a machine; these tests need /dev/kvm");
    let mut door = Typist { at_exit, typed: false, screen: Vec::new() };
    let end = machine.run(&mut door);
    (end, String::from_utf8_lossy(&door.screen).into_owned())
}

#[test]
fn a_line_typed_at_any_exit_is_answered() {
    let kvm = kvm_ioctls::Kvm::new().expect("/dev/kvm does not open: this test needs KVM");
    let host = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("CPUID of this host");
    let boot = Boot {
        name: "typed".into(),
        memory_bytes: 64 << 20,
        command_line: "shell hz=0".into(),
        boot_time_ns: 0,
        net: None,

        disk: None,
        cpuid: cpuid::template(&host),
        image: guest::IMAGE.to_vec(),
    };

    let (end, screen) = shell(&boot, None);
    let Err(Halt::Requested(prompt)) = end else { panic!("did not wait at its prompt: {end:?}\n{screen}") };
    assert!(screen.ends_with("lockstep> "), "{screen}");

    let slept: Vec<u64> = (1..=prompt.exits)
        .filter(|&exit| match shell(&boot, Some(exit)) {
            (Ok(EndReason::Exit(9)), _) => false,
            (Err(Halt::Requested(_)), _) => true,
            (end, screen) => panic!("typed at exit {exit}: {end:?}\n{screen}"),
        })
        .collect();
    assert!(slept.is_empty(), "the guest slept through lines typed at these exits: {slept:?}");
}
