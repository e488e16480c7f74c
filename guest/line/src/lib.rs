//! The guest's line editor: keys in, echo and whole lines out, no I/O.
//!
//! Backspace takes a character, Ctrl-U the line; Ctrl-C gives up, Ctrl-D on an empty line ends the input. Carriage
//! return, line feed or both end a line. Escape sequences (arrow keys) and other control characters do nothing.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;

/// What a key meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The line is complete; without its end.
    Line(String),
    /// Ctrl-C; the line is gone.
    Interrupt,
    /// Ctrl-D on an empty line.
    EndOfInput,
}

/// Where in an escape sequence the input stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    Outside,
    /// Behind ESC.
    Begun,
    /// Behind ESC and `[` or `O`: up to the final byte.
    Inside,
}

/// A line being typed.
#[derive(Debug, Default)]
pub struct Editor {
    line: Vec<u8>,
    escape: Escape,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_return: bool,
}

impl Editor {
    /// The longest line in bytes; more is not taken, with a bell.
    pub const MAX: usize = 1024;

    /// An empty line.
    pub const fn new() -> Self {
        Editor { line: Vec::new(), escape: Escape::Outside, after_return: false }
    }

    /// Takes one typed byte; `echo` gets what the terminal shall show for it.
    pub fn type_byte(&mut self, byte: u8, echo: &mut impl FnMut(&[u8])) -> Option<Key> {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match (self.escape, byte) {
            (Escape::Outside, 0x1b) => self.escape = Escape::Begun,
            (Escape::Outside, _) => return self.plain_byte(byte, after_return, echo),
            (Escape::Begun, b'[' | b'O') => self.escape = Escape::Inside,
            (Escape::Inside, 0x20..=0x3f) => {}
            (Escape::Begun | Escape::Inside, _) => self.escape = Escape::Outside,
        }
        None
    }

    fn plain_byte(&mut self, byte: u8, after_return: bool, echo: &mut impl FnMut(&[u8])) -> Option<Key> {
        match byte {
            b'\n' if after_return => None,
            b'\r' | b'\n' => {
                echo(b"\r\n");
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                Some(Key::Line(line))
            }
            0x03 => {
                echo(b"^C\r\n");
                self.line.clear();
                Some(Key::Interrupt)
            }
            0x04 if self.line.is_empty() => Some(Key::EndOfInput),
            0x08 | 0x7f => {
                self.take_character(echo);
                None
            }
            0x15 => {
                while self.take_character(echo) {}
                None
            }
            0x20.. if self.line.len() < Self::MAX => {
                self.line.push(byte);
                echo(&[byte]);
                None
            }
            0x20.. => {
                echo(b"\x07");
                None
            }
            _ => None,
        }
    }

    /// Removes the last character; false if there is none.
    fn take_character(&mut self, echo: &mut impl FnMut(&[u8])) -> bool {
        // A UTF-8 character ends with its continuation bytes.
        while let Some(last) = self.line.pop() {
            if last & 0xc0 != 0x80 || self.line.is_empty() {
                echo(b"\x08 \x08");
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
