//! The table of commands, and the way from a name to its place there.

use super::{Call, Outcome, clients, hashes, keys, lists, scan, server, sets, strings, transactions, zsets};

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
/// Its first argument is one of the subcommands.
pub(crate) const CONTAINER: u16 = 128;
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
        takes(self.arity, args)
    }

    /// Whether it may need memory.
    pub(crate) fn takes_memory(&self) -> bool {
        self.is(DENY_OOM)
    }

    #[inline]
    pub(crate) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[inline]
fn takes(arity: i8, args: usize) -> bool {
    let wanted = usize::from(arity.unsigned_abs());
    args == wanted || (arity < 0 && args > wanted)
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

    command("del", -2, WRITE, ALL_KEYS, keys::del),
    command("unlink", -2, WRITE | FAST, ALL_KEYS, keys::del),
    command("exists", -2, READ | FAST, ALL_KEYS, keys::exists),
    command("touch", -2, READ | FAST, ALL_KEYS, keys::exists),
    command("type", 2, READ | FAST, ONE_KEY, keys::type_of),
    command("expire", -3, WRITE | FAST, ONE_KEY, keys::expire),
    command("pexpire", -3, WRITE | FAST, ONE_KEY, keys::pexpire),
    command("expireat", -3, WRITE | FAST, ONE_KEY, keys::expireat),
    command("pexpireat", -3, WRITE | FAST, ONE_KEY, keys::pexpireat),
    command("ttl", 2, READ | FAST, ONE_KEY, keys::ttl),
    command("pttl", 2, READ | FAST, ONE_KEY, keys::pttl),
    command("expiretime", 2, READ | FAST, ONE_KEY, keys::expiretime),
    command("pexpiretime", 2, READ | FAST, ONE_KEY, keys::pexpiretime),
    command("persist", 2, WRITE | FAST, ONE_KEY, keys::persist),
    command("rename", 3, WRITE, (1, 2, 1), keys::rename),
    command("renamenx", 3, WRITE | FAST, (1, 2, 1), keys::renamenx),
    command("copy", -3, WRITE | DENY_OOM, (1, 2, 1), keys::copy),
    command("randomkey", 1, READ, NO_KEYS, keys::randomkey),
    command("keys", 2, READ, NO_KEYS, keys::keys),
    command("scan", -2, READ, NO_KEYS, keys::scan),
    command("dbsize", 1, READ | FAST, NO_KEYS, keys::dbsize),
    command("flushdb", -1, WRITE, NO_KEYS, keys::flush),
    command("flushall", -1, WRITE, NO_KEYS, keys::flush),
    command("object", -2, READ | CONTAINER, (2, 2, 1), keys::object),
    command("memory", -2, READ | CONTAINER, (2, 2, 1), keys::memory),

    command("lpush", -3, WRITE | DENY_OOM | FAST, ONE_KEY, lists::lpush),
    command("rpush", -3, WRITE | DENY_OOM | FAST, ONE_KEY, lists::rpush),
    command("lpushx", -3, WRITE | DENY_OOM | FAST, ONE_KEY, lists::lpushx),
    command("rpushx", -3, WRITE | DENY_OOM | FAST, ONE_KEY, lists::rpushx),
    command("lpop", -2, WRITE | FAST, ONE_KEY, lists::lpop),
    command("rpop", -2, WRITE | FAST, ONE_KEY, lists::rpop),
    command("llen", 2, READ | FAST, ONE_KEY, lists::llen),
    command("lrange", 4, READ, ONE_KEY, lists::lrange),
    command("lindex", 3, READ, ONE_KEY, lists::lindex),
    command("lset", 4, WRITE | DENY_OOM, ONE_KEY, lists::lset),
    command("linsert", 5, WRITE | DENY_OOM, ONE_KEY, lists::linsert),
    command("lrem", 4, WRITE, ONE_KEY, lists::lrem),
    command("ltrim", 4, WRITE, ONE_KEY, lists::ltrim),
    command("lpos", -3, READ, ONE_KEY, lists::lpos),
    command("rpoplpush", 3, WRITE | DENY_OOM, (1, 2, 1), lists::rpoplpush),
    command("lmove", 5, WRITE | DENY_OOM, (1, 2, 1), lists::lmove),

    command("hset", -4, WRITE | DENY_OOM | FAST, ONE_KEY, hashes::hset),
    command("hmset", -4, WRITE | DENY_OOM | FAST, ONE_KEY, hashes::hmset),
    command("hsetnx", 4, WRITE | DENY_OOM | FAST, ONE_KEY, hashes::hsetnx),
    command("hget", 3, READ | FAST, ONE_KEY, hashes::hget),
    command("hmget", -3, READ | FAST, ONE_KEY, hashes::hmget),
    command("hdel", -3, WRITE | FAST, ONE_KEY, hashes::hdel),
    command("hlen", 2, READ | FAST, ONE_KEY, hashes::hlen),
    command("hexists", 3, READ | FAST, ONE_KEY, hashes::hexists),
    command("hstrlen", 3, READ | FAST, ONE_KEY, hashes::hstrlen),
    command("hgetall", 2, READ, ONE_KEY, hashes::hgetall),
    command("hkeys", 2, READ, ONE_KEY, hashes::hkeys),
    command("hvals", 2, READ, ONE_KEY, hashes::hvals),
    command("hincrby", 4, WRITE | DENY_OOM | FAST, ONE_KEY, hashes::hincrby),
    command("hincrbyfloat", 4, WRITE | DENY_OOM | FAST, ONE_KEY, hashes::hincrbyfloat),
    command("hrandfield", -2, READ, ONE_KEY, hashes::hrandfield),
    command("hscan", -3, READ, ONE_KEY, scan::hscan),

    command("sadd", -3, WRITE | DENY_OOM | FAST, ONE_KEY, sets::sadd),
    command("srem", -3, WRITE | FAST, ONE_KEY, sets::srem),
    command("scard", 2, READ | FAST, ONE_KEY, sets::scard),
    command("sismember", 3, READ | FAST, ONE_KEY, sets::sismember),
    command("smismember", -3, READ | FAST, ONE_KEY, sets::smismember),
    command("smembers", 2, READ, ONE_KEY, sets::smembers),
    command("smove", 4, WRITE | DENY_OOM | FAST, (1, 2, 1), sets::smove),
    command("spop", -2, WRITE | FAST, ONE_KEY, sets::spop),
    command("srandmember", -2, READ, ONE_KEY, sets::srandmember),
    command("sunion", -2, READ, ALL_KEYS, sets::sunion),
    command("sinter", -2, READ, ALL_KEYS, sets::sinter),
    command("sdiff", -2, READ, ALL_KEYS, sets::sdiff),
    command("sunionstore", -3, WRITE | DENY_OOM, ALL_KEYS, sets::sunionstore),
    command("sinterstore", -3, WRITE | DENY_OOM, ALL_KEYS, sets::sinterstore),
    command("sdiffstore", -3, WRITE | DENY_OOM, ALL_KEYS, sets::sdiffstore),
    command("sintercard", -3, READ, NO_KEYS, sets::sintercard),
    command("sscan", -3, READ, ONE_KEY, scan::sscan),

    command("zadd", -4, WRITE | DENY_OOM | FAST, ONE_KEY, zsets::zadd),
    command("zincrby", 4, WRITE | DENY_OOM | FAST, ONE_KEY, zsets::zincrby),
    command("zrem", -3, WRITE | FAST, ONE_KEY, zsets::zrem),
    command("zcard", 2, READ | FAST, ONE_KEY, zsets::zcard),
    command("zscore", 3, READ | FAST, ONE_KEY, zsets::zscore),
    command("zmscore", -3, READ | FAST, ONE_KEY, zsets::zmscore),
    command("zrank", 3, READ | FAST, ONE_KEY, zsets::zrank),
    command("zrevrank", 3, READ | FAST, ONE_KEY, zsets::zrevrank),
    command("zcount", 4, READ | FAST, ONE_KEY, zsets::zcount),
    command("zlexcount", 4, READ | FAST, ONE_KEY, zsets::zlexcount),
    command("zrange", -4, READ, ONE_KEY, zsets::zrange),
    command("zrevrange", -4, READ, ONE_KEY, zsets::zrevrange),
    command("zrangebyscore", -4, READ, ONE_KEY, zsets::zrangebyscore),
    command("zrevrangebyscore", -4, READ, ONE_KEY, zsets::zrevrangebyscore),
    command("zrangebylex", -4, READ, ONE_KEY, zsets::zrangebylex),
    command("zrevrangebylex", -4, READ, ONE_KEY, zsets::zrevrangebylex),
    command("zremrangebyrank", 4, WRITE, ONE_KEY, zsets::zremrangebyrank),
    command("zremrangebyscore", 4, WRITE, ONE_KEY, zsets::zremrangebyscore),
    command("zremrangebylex", 4, WRITE, ONE_KEY, zsets::zremrangebylex),
    command("zpopmin", -2, WRITE | FAST, ONE_KEY, zsets::zpopmin),
    command("zpopmax", -2, WRITE | FAST, ONE_KEY, zsets::zpopmax),
    command("zrandmember", -2, READ, ONE_KEY, zsets::zrandmember),
    command("zscan", -3, READ, ONE_KEY, scan::zscan),

    command("multi", 1, FAST | IMMEDIATE, NO_KEYS, transactions::multi),
    command("exec", -1, IMMEDIATE, NO_KEYS, transactions::exec),
    command("discard", 1, FAST | IMMEDIATE, NO_KEYS, transactions::discard),
    command("watch", -2, FAST | IMMEDIATE, ALL_KEYS, transactions::watch),
    command("unwatch", 1, FAST, NO_KEYS, transactions::unwatch),

    command("ping", -1, FAST, NO_KEYS, server::ping),
    command("echo", 2, FAST, NO_KEYS, server::echo),
    command("quit", -1, FAST | IMMEDIATE, NO_KEYS, server::quit),
    command("reset", 1, FAST | IMMEDIATE, NO_KEYS, server::reset),
    command("hello", -1, FAST, NO_KEYS, server::hello),
    command("auth", -2, FAST, NO_KEYS, server::auth),
    command("select", 2, FAST, NO_KEYS, server::select),
    command("client", -2, CONTAINER, NO_KEYS, clients::client),
    command("command", -1, CONTAINER, NO_KEYS, server::command),
    command("config", -2, ADMIN | CONTAINER, NO_KEYS, server::config),
    command("info", -1, 0, NO_KEYS, server::info),
    command("time", 1, FAST, NO_KEYS, server::time),
    command("shutdown", -1, ADMIN | NOT_IN_MULTI, NO_KEYS, server::shutdown),
];

/// All subcommands with their numbers of arguments, counted as with commands.
const SUBCOMMANDS: &[(&str, i8)] = &[
    ("client|getname", 2),
    ("client|id", 2),
    ("client|info", 2),
    ("client|kill", -3),
    ("client|list", -2),
    ("client|no-evict", 3),
    ("client|no-touch", 3),
    ("client|setinfo", 4),
    ("client|setname", 3),
    ("command|count", 2),
    ("command|docs", -2),
    ("command|getkeys", -3),
    ("command|info", -2),
    ("command|list", 2),
    ("config|get", -3),
    ("config|resetstat", 2),
    ("config|rewrite", 2),
    ("config|set", -4),
    ("memory|usage", -3),
    ("object|encoding", 3),
    ("object|refcount", 3),
];

/// A subcommand's full name, and whether it takes so many arguments.
pub(crate) fn subcommand(command: &str, name: &[u8], args: usize) -> Option<(&'static str, bool)> {
    SUBCOMMANDS.iter().find_map(|&(full, arity)| {
        let own = full.strip_prefix(command)?.strip_prefix('|')?;
        own.as_bytes().eq_ignore_ascii_case(name).then(|| (full, takes(arity, args)))
    })
}

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
