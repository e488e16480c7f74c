//! The table of commands, and the way from a name to its place there.

use super::{Call, Outcome, server, strings, transactions};

/// Changes data.
pub(crate) const WRITE: u16 = 1;
/// Reads data.
pub(crate) const READ: u16 = 2;
/// Takes memory: refused when there is none.
pub(crate) const DENY_OOM: u16 = 4;
/// Takes constant or logarithmic time.
pub(crate) const FAST: u16 = 8;
/// Carried out at once even inside of a transaction.
pub(crate) const IMMEDIATE: u16 = 16;
/// Refused inside of a transaction.
pub(crate) const NOT_IN_MULTI: u16 = 64;
/// For administrators.
pub(crate) const ADMIN: u16 = 32;

/// One command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// Number of arguments with the name; at least so many, if negative.
    pub(crate) arity: i8,
    pub(crate) flags: u16,
    /// First key, last key (negative: from the end), step; zeros without keys.
    pub(crate) keys: (i8, i8, i8),
    pub(crate) run: fn(&mut Call<'_, '_>) -> Outcome,
}

impl Command {
    #[inline]
    pub(crate) fn takes(&self, args: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        args == wanted || (self.arity < 0 && args > wanted)
    }

    #[inline]
    pub(crate) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

const fn command(
    name: &'static str,
    arity: i8,
    flags: u16,
    keys: (i8, i8, i8),
    run: fn(&mut Call<'_, '_>) -> Outcome,
) -> Command {
    Command { name, arity, flags, keys, run }
}

const NO_KEYS: (i8, i8, i8) = (0, 0, 0);
const ONE_KEY: (i8, i8, i8) = (1, 1, 1);
const ALL_KEYS: (i8, i8, i8) = (1, -1, 1);

/// All commands, in the order of `COMMAND`.
#[rustfmt::skip]
pub(crate) static COMMANDS: &[Command] = &[
    command("get", 2, READ | FAST, ONE_KEY, strings::get),
    command("set", -3, WRITE | DENY_OOM, ONE_KEY, strings::set),
    command("setnx", 3, WRITE | DENY_OOM | FAST, ONE_KEY, strings::setnx),
    command("setex", 4, WRITE | DENY_OOM, ONE_KEY, strings::setex),
    command("psetex", 4, WRITE | DENY_OOM, ONE_KEY, strings::psetex),
    command("getset", 3, WRITE | DENY_OOM | FAST, ONE_KEY, strings::getset),
    command("getex", -2, WRITE | FAST, ONE_KEY, strings::getex),
    command("getdel", 2, WRITE | FAST, ONE_KEY, strings::getdel),
    command("append", 3, WRITE | DENY_OOM | FAST, ONE_KEY, strings::append),
    command("strlen", 2, READ | FAST, ONE_KEY, strings::strlen),
    command("getrange", 4, READ, ONE_KEY, strings::getrange),
    command("substr", 4, READ, ONE_KEY, strings::getrange),
    command("setrange", 4, WRITE | DENY_OOM, ONE_KEY, strings::setrange),
    command("incr", 2, WRITE | DENY_OOM | FAST, ONE_KEY, strings::incr),
    command("decr", 2, WRITE | DENY_OOM | FAST, ONE_KEY, strings::decr),
    command("incrby", 3, WRITE | DENY_OOM | FAST, ONE_KEY, strings::incrby),
    command("decrby", 3, WRITE | DENY_OOM | FAST, ONE_KEY, strings::decrby),
    command("incrbyfloat", 3, WRITE | DENY_OOM | FAST, ONE_KEY, strings::incrbyfloat),
    command("mget", -2, READ | FAST, ALL_KEYS, strings::mget),
    command("mset", -3, WRITE | DENY_OOM, (1, -1, 2), strings::mset),
    command("msetnx", -3, WRITE | DENY_OOM, (1, -1, 2), strings::msetnx),

    command("multi", 1, FAST | IMMEDIATE, NO_KEYS, transactions::multi),
    command("exec", 1, IMMEDIATE, NO_KEYS, transactions::exec),
    command("discard", 1, FAST | IMMEDIATE, NO_KEYS, transactions::discard),
    command("watch", -2, FAST | IMMEDIATE, ALL_KEYS, transactions::watch),
    command("unwatch", 1, FAST, NO_KEYS, transactions::unwatch),

    command("ping", -1, FAST, NO_KEYS, server::ping),
    command("echo", 2, FAST, NO_KEYS, server::echo),
    command("quit", -1, FAST | IMMEDIATE, NO_KEYS, server::quit),
    command("reset", 1, FAST | IMMEDIATE, NO_KEYS, server::reset),
];

/// Slots of the table of names; more than four times the commands.
const SLOTS: usize = 1024;

/// Longest name.
const NAME_BYTES: usize = 24;

/// Finds commands by name, in any case.
#[derive(Debug)]
pub(crate) struct Names {
    /// Number of a command plus one; 0 is free.
    slots: [u16; SLOTS],
}

impl Names {
    pub(crate) fn new() -> Self {
        let mut slots = [0; SLOTS];
        for (number, command) in COMMANDS.iter().enumerate() {
            let (_, mut slot) = fold(command.name.as_bytes());
            while slots[slot] != 0 {
                slot = (slot + 1) % SLOTS;
            }
            slots[slot] = number as u16 + 1;
        }
        Names { slots }
    }

    #[inline]
    pub(crate) fn find(&self, name: &[u8]) -> Option<u16> {
        if name.len() > NAME_BYTES {
            return None;
        }
        let (folded, mut slot) = fold(name);
        loop {
            let number = self.slots[slot].checked_sub(1)?;
            if COMMANDS[usize::from(number)].name.as_bytes() == &folded[..name.len()] {
                return Some(number);
            }
            slot = (slot + 1) % SLOTS;
        }
    }
}

/// A name in small letters, and the slot where the search for it begins.
#[inline]
fn fold(name: &[u8]) -> ([u8; NAME_BYTES], usize) {
    let mut folded = [0; NAME_BYTES];
    let mut sum = 0u32;
    for (to, &from) in folded.iter_mut().zip(name) {
        *to = from.to_ascii_lowercase();
        sum = sum.wrapping_mul(31).wrapping_add(u32::from(*to));
    }
    (folded, (sum.wrapping_mul(0x9e37_79b1) >> 22) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case() {
        let names = Names::new();
        for (number, command) in COMMANDS.iter().enumerate() {
            assert!(command.name.len() <= NAME_BYTES);
            assert_eq!(names.find(command.name.as_bytes()), Some(number as u16), "{}", command.name);
            assert_eq!(names.find(command.name.to_uppercase().as_bytes()), Some(number as u16));
        }
        for name in ["", "ge", "gett", "a name that is longer than any command", "\0"] {
            assert_eq!(names.find(name.as_bytes()), None, "{name}");
        }
        assert!(COMMANDS.len() * 4 < SLOTS);
    }
}
