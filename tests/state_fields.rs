//! Promise: a machine is made from every state that a machine can be in, every register of it, and from no other: what is wrong with a state
//! is named, and nothing panics. And no state is taken in the middle of an instruction.
#![allow(clippy::disallowed_methods, reason = "what an invented state has in it is random")]

mod recording;

use lockstep::devices::DeviceStateError;
use lockstep::machine::doors::{EndReason, Event, Halt};
use lockstep::machine::instant::Instant;
use lockstep::machine::snapshot::{Boot, MachineState, SafepointState, StateError};
use lockstep::machine::vcpu::KvmError;
use lockstep::machine::{Blank, Machine, MachineError, Tracking};
use recording::image::image;
use recording::load::next;
use recording::machine::{boot, boot_image};
use recording::moving::{differences, moved};
use recording::script::Script;

/// The machine of `boot` after so many exits, and its state there.
fn captured(boot: &Boot, exits: usize) -> (Machine, MachineState) {
    let mut machine = Machine::new(boot, Tracking::On).expect("a machine");
    let mut door = Script::new((0..exits).map(|_| None).chain([Some(Event::Capture)]));
    door.leave_at_capture = true;
    let end = machine.run(&mut door);
    assert!(matches!(end, Err(Halt::Requested(_))), "{end:?}");
    let (_, state) = door.captured.pop().expect("a state");
    (machine, state)
}

#[test]
fn every_register_of_an_invented_state_comes_back() {
    let (machine, state) = captured(&boot("mix 1 1"), 60);
    let mut invented = state.clone();
    invented.vcpu.registers.iter_mut().enumerate().take(16).for_each(|(i, register)| *register = 0x1111 * i as u64);
    invented.vcpu.control[1] = 0xdead_b000; // cr2
    invented.vcpu.control[4] = 3; // cr8
    invented.vcpu.debug = [0x1000, 0x2000, 0x3000, 0x4000, state.vcpu.debug[4] | 2, state.vcpu.debug[5]];
    invented.vcpu.tables[1].0 += 0x10;
    invented.vcpu.segments[3].base = 0x7_0000;
    invented.vcpu.events.interrupt = [0, 0x21, 0, 1]; // a vector that was the last, and the shadow of an sti
    invented.vcpu.events.nmi[2] = 1;
    for (index, value) in &mut invented.vcpu.msrs {
        *value = match index {
            0x277 | 0xc000_0080 => *value, // PAT and EFER have their own rules
            0xc000_0100 => 0x7_0000,       // is that of the segment
            0xc000_0101 => *value,
            0x174..=0x176 => *value ^ 0x1230,
            _ => 0x20_0000 + u64::from(*index & 0xff) * 16,
        };
    }
    invented.vcpu.xsave[0..2].copy_from_slice(&0x027fu16.to_le_bytes());
    invented.vcpu.xsave[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
    invented.vcpu.xsave[160..416].iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    invented.vcpu.xsave[512] |= 3;
    (invented.halted, invented.waiting, invented.paused, invented.exits) = (true, true, true, 1 << 40);
    let mut other = moved(&machine, &invented);
    assert!(other.paused());
    assert_eq!(other.at(), Instant::new(1 << 40, invented.polls));
    let mut door = Script::new([Some(Event::Capture)]);
    door.leave_at_capture = true;
    let end = other.run(&mut door);
    assert!(matches!(end, Err(Halt::Requested(_))), "{end:?}");
    assert_eq!(differences(&invented, &door.captured[0].1), [""; 0]);
    assert!(differences(&state, &door.captured[0].1).len() >= 6, "and it was another one");
}

#[test]
fn a_state_that_cannot_be_is_refused_by_name() {
    let (machine, state) = captured(&boot("mix 1 1"), 60);
    let made = |change: &dyn Fn(&mut MachineState)| {
        let mut state = state.clone();
        change(&mut state);
        let error = Blank::new(machine.boot(), Tracking::Off).expect("a machine").finish(&state).err();
        error.expect("no machine of this")
    };
    let error = made(&|state| state.version += 1);
    assert!(matches!(error, MachineError::State(StateError::Version(2))), "{error}");
    let error = made(&|state| state.exits = u64::MAX);
    assert!(matches!(error, MachineError::State(StateError::Exits(u64::MAX))), "{error}");
    for page in [1, 1 << 40, !0xfff] {
        let error = made(&|state| state.safepoints = Some(SafepointState { page, count: 0 }));
        assert!(matches!(error, MachineError::State(StateError::SafepointPage(p)) if p == page), "{error}");
    }
    let error = made(&|state| state.safepoints = None);
    assert!(matches!(error, MachineError::State(StateError::SafepointPage(0))), "{error}");
    let error = made(&|state| state.vcpu.xsave.truncate(4095));
    assert!(matches!(error, MachineError::Kvm(KvmError::State(_))), "{error}");
    let error = made(&|state| state.vcpu.msrs[3].0 = 0x10);
    assert!(matches!(error, MachineError::Kvm(KvmError::State(_))), "{error}");
    let error = made(&|state| state.vcpu.msrs.truncate(4));
    assert!(matches!(error, MachineError::Kvm(KvmError::State(_))), "{error}");
    let error = made(&|state| state.vcpu.control[0] = 0x8000_0000); // paging without protection
    assert!(matches!(error, MachineError::Kvm(KvmError::Call { call: "KVM_SET_SREGS", .. })), "{error}");
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let (_, state) = captured(&boot("mix 1 1"), 60);
    let net = Some(lockstep::machine::snapshot::NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, offloads: false });
    let with_a_card = Boot { net, ..boot("mix 1 1") };
    let error = Blank::new(&with_a_card, Tracking::Off).expect("a machine").finish(&state).err();
    let refused = matches!(error, Some(MachineError::State(StateError::Device(DeviceStateError::OtherMachine(_)))));
    assert!(refused, "{error:?}");
}

/// Bytes that were damaged where no check saw it: refused or not, nothing panics, here or when the machine runs.
#[test]
fn damaged_states_do_no_harm() {
    let (machine, state) = captured(&boot("mix 1 1"), 60);
    let config = bincode::config::standard();
    let whole = bincode::encode_to_vec(&state, config).expect("a state can be written");
    let mut random = getrandom::u64().expect("a random number") | 1;
    println!("seed {random}");
    let (mut refused, mut undecodable, mut made) = (0, 0, 0);
    for round in 0..400u64 {
        let mut bytes = whole.clone();
        // The FPU's state is most of the bytes, and any contents of it are one.
        let places = if round % 8 == 0 { bytes.len() } else { 700 };
        let end = round % 2 == 0;
        for _ in 0..=next(&mut random) % 3 {
            let place = next(&mut random) as usize % places;
            let place = if end { bytes.len() - 1 - place } else { place };
            bytes[place] = next(&mut random) as u8;
        }
        let Ok((state, _)) = bincode::decode_from_slice::<MachineState, _>(&bytes, config.with_limit::<65536>()) else {
            undecodable += 1;
            continue;
        };
        match Blank::new(machine.boot(), Tracking::On).expect("a machine").finish(&state) {
            Err(_) => refused += 1,
            Ok(mut machine) => {
                made += 1;
                // A digest, a state; it may do what it likes then, up to its next exit or a doorbell.
                let events = [Some(Event::Digest), Some(Event::Capture), Some(Event::Tick), Some(Event::Stop)];
                let _ = machine.run(&mut Script::new(events));
            }
        }
    }
    println!("{undecodable} no states, {refused} refused, {made} made");
    assert!(undecodable > 10 && refused > 10 && made > 10, "{undecodable} {refused} {made}");
}

#[test]
fn no_state_is_taken_in_the_middle_of_an_instruction() {
    let mut code = vec![0xbe]; // mov esi, 0xc0000000
    code.extend(0xc000_0000u32.to_le_bytes());
    code.push(0xbf); // mov edi, 0xc0001000
    code.extend(0xc000_1000u32.to_le_bytes());
    code.push(0xa5); // movsd: reads where no memory is, and writes there
    code.extend([0xb0, 7, 0xe6, 0xf4]); // mov al, 7; out 0xf4, al
    let boot = boot_image(image(&code), "");
    let mut machine = Machine::new(&boot, Tracking::On).expect("a machine");
    // Behind the first exit, which is the read.
    let events = [None, Some(Event::Capture), Some(Event::Digest)];
    let mut door = Script::new(events);
    assert_eq!(machine.run(&mut door).expect("it ends"), EndReason::Exit(7));
    assert_eq!(machine.at(), Instant::new(3, 0), "the read, the write, the end");
    let (at, state) = &door.captured[0];
    assert_eq!((*at, state.exits), (Instant::new(2, 0), 2), "not between the read and the write");
    assert_eq!(state.vcpu.registers[4..6], [0xc000_0004, 0xc000_1004], "the instruction is over");
    // Nobody asks: the same execution.
    let mut machine = Machine::new(&boot, Tracking::On).expect("a machine");
    let mut door = Script::new([None, None, Some(Event::Digest)]);
    assert_eq!(machine.run(&mut door).expect("it ends"), EndReason::Exit(7));
    assert_eq!((machine.at(), door.digests[0].0), (Instant::new(3, 0), Instant::new(2, 0)));
}
