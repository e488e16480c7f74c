//! The console on COM1. Output is collected to whole lines, because every byte is an exit; input is drained from
//! the UART only after it has interrupted.

use crate::single::Single;
use crate::{gate, nucleus, wait};
use alloc::collections::VecDeque;
use core::fmt::{self, Write};
use lockstep_abi::port::COM1;
use lockstep_line::{Editor, Key};

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

struct Output {
    bytes: [u8; 512],
    length: usize,
}

impl Output {
    fn push(&mut self, byte: u8) {
        if self.length == self.bytes.len() {
            self.flush();
        }
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn flush(&mut self) {
        // The gate alone is 9 µs.
        if self.length > 0 {
            gate::write(&self.bytes[..self.length]);
            self.length = 0;
        }
    }
}

/// Ends lines as a terminal wants them, and sends them when they are whole.
impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        if text.ends_with('\n') {
            self.flush();
        }
        Ok(())
    }
}

static OUTPUT: Single<Output> = Single::new(Output { bytes: [0; 512], length: 0 });

struct Input {
    bytes: [u8; 64],
    next: usize,
    length: usize,
    /// COM1 interrupts taken when the UART was last found empty; `None` if it may hold more.
    drained_at: Option<u64>,
}

static INPUT: Single<Input> = Single::new(Input { bytes: [0; 64], next: 0, length: 0, drained_at: None });

/// Turns on the UART: FIFOs, 8N1, interrupts for received bytes. What was typed during boot is kept: read before the
/// FIFOs are turned on, which empties them on a real 16550, and they are not told to clear.
pub(crate) fn init() {
    let mut input = INPUT.borrow_mut();
    input.length = gate::read(&mut input.bytes);
    for (register, value) in [(1, 0x00), (3, 0x03), (2, 0x01), (4, 0x0b), (1, 0x01)] {
        gate::outb(COM1 + register, value);
    }
}

/// Prints; what [`print!`](crate::print!) calls. Appears at the end of the line, or with [`flush`].
pub fn print(arguments: fmt::Arguments) {
    // `Output` never fails; what a failing `Display` has printed so far stands.
    let _ = OUTPUT.borrow_mut().write_fmt(arguments);
}

/// Prints bytes as they are.
pub fn write(bytes: &[u8]) {
    let mut output = OUTPUT.borrow_mut();
    bytes.iter().for_each(|&byte| output.push(byte));
}

/// Sends what has been printed.
pub fn flush() {
    OUTPUT.borrow_mut().flush();
}

/// Prints from a panic, which may have come out of printing.
pub(crate) fn emergency(arguments: fmt::Arguments) {
    match OUTPUT.try_borrow_mut() {
        Some(mut output) => {
            let _ = output.write_fmt(arguments);
            output.flush();
        }
        None => gate::write(b"guest panicked while printing\r\n"),
    }
}

/// Bytes typed while somebody looked for Ctrl-C, kept for whoever reads next.
static AHEAD: Single<VecDeque<u8>> = Single::new(VecDeque::new());
/// The most of them; what is typed beyond is lost, as in a terminal's line buffer.
const AHEAD_MAX: usize = 4096;

/// Whether Ctrl-C was typed. What else was typed stays to be read; what was typed before the Ctrl-C is dropped with it.
pub fn interrupted() -> bool {
    while let Some(byte) = receive() {
        let mut ahead = AHEAD.borrow_mut();
        if byte == 3 {
            ahead.clear();
            return true;
        }
        if ahead.len() < AHEAD_MAX {
            ahead.push_back(byte);
        }
    }
    false
}

/// The next byte typed, if there is one.
pub fn read_byte() -> Option<u8> {
    let ahead = AHEAD.borrow_mut().pop_front();
    ahead.or_else(receive)
}

/// The next byte out of the UART, if there is one.
fn receive() -> Option<u8> {
    let mut input = INPUT.borrow_mut();
    let input = &mut *input;
    if input.next == input.length {
        let interrupts = nucleus::com1_interrupts();
        if input.drained_at == Some(interrupts) {
            return None;
        }
        input.next = 0;
        input.length = gate::read(&mut input.bytes);
        input.drained_at = (input.length < input.bytes.len()).then_some(interrupts);
    }
    let byte = *input.bytes[..input.length].get(input.next)?;
    input.next += 1;
    Some(byte)
}

/// Feeds what has been typed to `editor`, echoing it. The first key that means something, if there is one.
pub fn poll_line(editor: &mut Editor) -> Option<Key> {
    while let Some(byte) = read_byte() {
        let key = editor.type_byte(byte, &mut write);
        if let Some(key) = key {
            flush();
            return Some(key);
        }
    }
    None
}

/// Prints a prompt and waits for a line.
pub fn read_line(editor: &mut Editor, prompt: &str) -> Key {
    print(format_args!("{prompt}"));
    wait::until(|| poll_line(editor))
}
