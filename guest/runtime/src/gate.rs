//! The gate into ring 0: `int3` with a function number in `rax`. Arguments in `rdi` and `rsi`, result in
//! `rax`; `rcx`, `rdx`, `rsi` and `rdi` are lost. Of the ways into ring 0, `int3` is the one that works
//! everywhere and leaves the interrupt flag as it was.

use core::arch::asm;

/// The function numbers, in the order of the nucleus's table.
#[repr(u64)]
#[derive(Clone, Copy)]
enum Function {
    Idle,
    Out,
    In,
    Write,
    Read,
    Exit,
    Spin,
    Wait,
    Die,
}

/// How many functions there are.
pub(crate) const COUNT: u64 = Function::Die as u64 + 1;

fn call(function: Function, rdi: u64, rsi: u64) -> u64 {
    let result;
    // SAFETY: the nucleus keeps every register but these, runs on a stack of its own, and touches
    // memory only where `write` and `read` below let it.
    unsafe {
        asm!(
            "int3",
            inlateout("rax") function as u64 => result,
            inlateout("rdi") rdi => _,
            inlateout("rsi") rsi => _,
            lateout("rcx") _,
            lateout("rdx") _,
            options(nostack),
        );
    }
    result
}

/// Sleeps until the next interrupt, or not at all if [`interrupts`](crate::nucleus::interrupts) is no longer `seen`.
pub fn idle(seen: u64) {
    call(Function::Idle, seen, 0);
}

/// Waits for the machine's next event, or not at all if [`interrupts`](crate::nucleus::interrupts) is no longer `seen`. Only where there is
/// a paravirtual page. Unlike [`idle`], it also returns for an event that interrupts nobody.
pub fn wait(seen: u64) {
    call(Function::Wait, seen, 0);
}

/// Writes `value` to an I/O port.
pub fn outb(port: u16, value: u8) {
    call(Function::Out, port.into(), value.into());
}

/// Reads an I/O port.
pub fn inb(port: u16) -> u8 {
    call(Function::In, port.into(), 0) as u8
}

/// Writes bytes to COM1, waiting for the transmitter once for every sixteen.
pub fn write(bytes: &[u8]) {
    call(Function::Write, bytes.as_ptr() as u64, bytes.len() as u64);
}

/// Reads what COM1 has received into `buffer`; how many bytes. A full buffer means that there may be more.
pub fn read(buffer: &mut [u8]) -> usize {
    call(Function::Read, buffer.as_mut_ptr() as u64, buffer.len() as u64) as usize
}

/// Ends the machine with an exit code.
pub fn exit(code: u8) -> ! {
    call(Function::Exit, code.into(), 0);
    unreachable!("the nucleus does not come back from the exit gate")
}

/// Keeps interrupts off for `exits` reads of a device and about `instructions` after each of them.
pub fn spin_with_interrupts_off(exits: u64, instructions: u64) {
    call(Function::Spin, exits, instructions);
}

/// How [`die`] ends the machine.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    /// A fault without an interrupt table: the processor shuts down.
    TripleFault,
    /// `hlt` with interrupts off.
    Halt,
    /// An endless loop with interrupts off.
    Loop,
}

/// Ends the machine in a way that no guest should.
pub fn die(how: Death) -> ! {
    call(Function::Die, how as u64, 0);
    unreachable!("the nucleus does not come back from the dying gate")
}
