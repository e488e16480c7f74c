//! The person's terminal: raw mode that is always undone, and the escape key.

use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once, PoisonError};

/// `Ctrl-]`.
pub const ESCAPE: u8 = 0x1d;

/// How the terminal was before; also for the panic hook.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal passes every key on as it is, until this is dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal at standard input raw. `None` when there is no terminal.
    pub fn enter() -> io::Result<Option<RawMode>> {
        static HOOK: Once = Once::new();
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // Guests end lines with a bare newline, and our own messages do.
        raw.output_flags |= OutputFlags::OPOST;
        // A panic's message is to be readable, and the terminal usable after it.
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                hook(info);
            }));
        });
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = RawMode(());
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // `try_lock`: a panic must not wait for the thread that panics.
    if let Some(before) = BEFORE.try_lock().ok().and_then(|mut before| before.take()) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// What the person wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Bytes for the guest.
    Type(Vec<u8>),
    /// Leave the console.
    Quit,
    /// Show the status.
    Status,
    /// Show the keys.
    Help,
}

/// Finds the escape key in what is typed.
#[derive(Debug, Default)]
pub struct Escape {
    escaped: bool,
}

impl Escape {
    /// What the bytes mean, in order.
    pub fn keys(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            let key = match (self.escaped, byte) {
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                // The escape key twice types it.
                (false, byte) | (true, byte @ ESCAPE) => {
                    plain.push(byte);
                    self.escaped = false;
                    continue;
                }
                (true, b'q' | b'.') => Key::Quit,
                (true, b's') => Key::Status,
                (true, _) => Key::Help,
            };
            self.escaped = false;
            if !plain.is_empty() {
                keys.push(Key::Type(std::mem::take(&mut plain)));
            }
            keys.push(key);
        }
        if !plain.is_empty() {
            keys.push(Key::Type(plain));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_is_found_wherever_the_bytes_are_cut() {
        let bytes = b"ab\x1d\x1dc\x1dsd\x1d?\x1dxe\x1dq";
        let typed = |bytes: &[u8]| Key::Type(bytes.to_vec());
        let expected = [typed(b"ab\x1dc"), Key::Status, typed(b"d"), Key::Help, Key::Help, typed(b"e"), Key::Quit];
        assert_eq!(Escape::default().keys(bytes), expected);
        for cut in 0..bytes.len() {
            let mut escape = Escape::default();
            let mut keys = escape.keys(&bytes[..cut]);
            keys.extend(escape.keys(&bytes[cut..]));
            let mut joined: Vec<Key> = Vec::new();
            for key in keys {
                match (joined.last_mut(), key) {
                    (Some(Key::Type(before)), Key::Type(more)) => before.extend(more),
                    (_, key) => joined.push(key),
                }
            }
            assert_eq!(joined, expected, "cut at {cut}");
        }
    }
}
