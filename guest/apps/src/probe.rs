//! `probe-…`: guests that do what guests should not, or rarely do, for tests of the machine.

use alloc::vec::Vec;
use lockstep_runtime::gate::{self, Death};
use lockstep_runtime::{Args, println, pv, safepoint, time};

/// `probe-crash HOW`: see [`crate::crash`].
pub fn crash(args: &Args) -> u8 {
    crate::crash::crash(args.word(1).unwrap_or(""));
    crate::USAGE
}

/// `probe-irqoff [TIMES]`: keeps interrupts off across many exits, for some three ticks, TIMES times over. However
/// many ticks come meanwhile, exactly one is pending when interrupts go on again, and is taken before anything else.
pub fn irqoff(args: &Args) -> u8 {
    let times = args.number_at(1).unwrap_or(3);
    // How many device reads take three ticks is the machine's business: double until they do. Where the clock itself
    // counts ticks, it stands still meanwhile: a number that is plenty for an emulator.
    let mut exits = if pv::present() { 64 } else { 1 << 18 };
    while pv::present() && exits < 1 << 24 {
        let began = time::clock_ns();
        gate::spin_with_interrupts_off(exits, 100);
        if time::clock_ns() - began > 3 * time::tick_ns() {
            break;
        }
        exits *= 2;
    }
    for round in 1..=times {
        let before = time::ticks();
        gate::spin_with_interrupts_off(exits, 100);
        println!("irqoff {round}: {} tick taken", time::ticks() - before);
    }
    0
}

/// `probe-unclaimed`: reads every port below 0x400 and some addresses without memory, and writes where nobody listens.
pub fn unclaimed(_: &Args) -> u8 {
    let claimed: Vec<(u16, u8)> =
        (0..0x400).map(|port| (port, gate::inb(port))).filter(|(_, value)| *value != 0xff).collect();
    for (port, value) in &claimed {
        println!("port {port:#05x}: {value:#04x}");
    }
    for port in [0x0, 0x80, 0x1f0, 0x279, 0x3e8, 0xcf8, 0xffff] {
        gate::outb(port, 0xa5);
    }
    for address in [0xc000_0000_u64, 0xcfff_fff8, 0xd000_1000, 0xfec0_0000, 0xfff0_0000] {
        println!("address {address:#x}: {:#x}", read_u64(address));
        write_u64(address, 0x5a5a_5a5a_5a5a_5a5a);
    }
    println!("still here");
    0
}

/// `probe-pv`: misuses the paravirtual page.
pub fn paravirtual_page(_: &Args) -> u8 {
    use lockstep_abi::pv::{BASE, CLOCK_NS, DOORBELL, IDENTITY, SAFEPOINT_PAGE, SIZE};
    if !pv::present() {
        println!("no paravirtual page");
        return crate::USAGE;
    }
    for offset in (0..SIZE).step_by(8).filter(|offset| !(DOORBELL..=IDENTITY).contains(offset)) {
        let value = read_u64(BASE + offset);
        if value != 0 && value != u64::MAX {
            println!("unused register {offset:#x}: {value:#x}");
        }
        write_u64(BASE + offset, u64::MAX);
    }
    println!("registers that are only written: {:#x} {:#x}", read_u64(BASE), read_u64(BASE + SAFEPOINT_PAGE));
    println!("identity, shifted by one: {:#x}", read_u64(BASE + IDENTITY + 1));
    write_u64(BASE + CLOCK_NS, 0);
    write_u64(BASE + IDENTITY, 0);
    println!("identity still right: {}", read_u64(BASE + IDENTITY) == lockstep_abi::pv::MAGIC);
    println!("clock goes on: {}", time::clock_ns() < time::clock_ns());
    // A doorbell without a safepoint, and safepoint pages that are no pages of RAM.
    write_u64(BASE + DOORBELL, 1);
    for page in [1, 0xfff, BASE, 1 << 40, !0xfff, u64::MAX] {
        write_u64(BASE + SAFEPOINT_PAGE, page);
    }
    write_u64(BASE + SAFEPOINT_PAGE, safepoint::page_address());
    let before = time::ticks();
    while time::ticks() < before + 3 {
        safepoint();
    }
    println!("still here");
    0
}

/// `probe-backwards`: sets the safepoint count back.
pub fn backwards(_: &Args) -> u8 {
    (0..1000).for_each(|_| safepoint());
    println!("count at {}", safepoint::count());
    write_u64(safepoint::page_address(), 7);
    println!("count at {}", safepoint::count());
    0
}

/// `probe-flags [TIMES]`: enters ring 0 right behind a safepoint, with the flags as the safepoint left them, which
/// the processor then stores on ring 0's stack. A trace of the limit in them would make the memory of a replay differ.
pub fn flags(args: &Args) -> u8 {
    let mut buffer = [0; 16];
    // Known only at run time, and loaded by instructions that leave the flags alone. The gate makes no exit for it, so
    // that many of these safepoints lie between two events of one and the same exit count.
    let nothing = &mut buffer[..core::hint::black_box(0)];
    for _ in 0..args.number_at(1).unwrap_or(10_000) {
        safepoint();
        gate::read(nothing);
    }
    println!("still here");
    0
}

/// `probe-spin`: an endless loop at ring 3 without safepoints.
pub fn spin(_: &Args) -> u8 {
    println!("spinning at ring 3");
    loop {
        core::hint::spin_loop();
    }
}

/// `probe-spin0`: an endless loop at ring 0 with interrupts off.
pub fn spin_at_ring_0(_: &Args) -> u8 {
    println!("spinning at ring 0");
    gate::die(Death::Loop)
}

/// Reads eight bytes where no memory of Rust's is.
fn read_u64(address: u64) -> u64 {
    let value;
    // SAFETY: the whole lower 4 GiB are mapped; the probes read only where there is no RAM.
    unsafe { core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly)) };
    value
}

/// Writes eight bytes where no memory of Rust's is (or to the safepoint page, whose words are the machine's).
fn write_u64(address: u64, value: u64) {
    // SAFETY: as in `read_u64`.
    unsafe { core::arch::asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}
