//! The connection and the server itself.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use super::catalogue::{self, COMMANDS, Command};
use super::{Call, Outcome, clients, transactions};
use crate::client::Next;
use crate::glob;
use crate::refusal::Refusal;

/// The version of Redis whose commands, replies and errors these are.
pub(super) const VERSION: &str = "7.0.15";

pub(super) fn ping(c: &mut Call<'_, '_>) -> Outcome {
    match c.args.len() {
        1 => c.out.raw(b"+PONG\r\n"),
        2 => c.out.bulk(c.args.at(1)),
        _ => return Err(c.arity()),
    }
    Ok(())
}

pub(super) fn echo(c: &mut Call<'_, '_>) -> Outcome {
    c.out.bulk(c.args.at(1));
    Ok(())
}

pub(super) fn quit(c: &mut Call<'_, '_>) -> Outcome {
    c.out.ok();
    c.client.next = Next::Close;
    Ok(())
}

pub(super) fn reset(c: &mut Call<'_, '_>) -> Outcome {
    transactions::end(c);
    if let Some(info) = c.store.clients.get_mut(&c.client.id) {
        info.name = Default::default();
    }
    c.out.simple("RESET");
    Ok(())
}

pub(super) fn select(c: &mut Call<'_, '_>) -> Outcome {
    if c.int(1)? != 0 {
        return Err(Refusal::Database);
    }
    c.out.ok();
    Ok(())
}

pub(super) fn auth(c: &mut Call<'_, '_>) -> Outcome {
    // There is no password; with a name, only the default user exists, who needs none.
    match c.args.len() {
        2 => Err(Refusal::NoPassword),
        3 if c.args.at(1) == b"default" => {
            c.out.ok();
            Ok(())
        }
        3 => Err(Refusal::WrongPassword),
        _ => Err(Refusal::Syntax),
    }
}

pub(super) fn hello(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len() > 1 {
        let version = c.int(1).map_err(|_| Refusal::ProtocolNumber)?;
        if version != 2 {
            return Err(Refusal::Protocol);
        }
    }
    let mut name = None;
    let mut at = 2;
    while at < c.args.len() {
        if c.is(at, "AUTH") && at + 2 < c.args.len() {
            if c.args.at(at + 1) != b"default" {
                return Err(Refusal::WrongPassword);
            }
            at += 3;
        } else if c.is(at, "SETNAME") && at + 1 < c.args.len() {
            name = Some(clients::checked_name(c.args.at(at + 1))?);
            at += 2;
        } else {
            return Err(c.say("Syntax error in HELLO option '", c.args.at(at), "'"));
        }
    }
    if let (Some(name), Some(info)) = (name, c.store.clients.get_mut(&c.client.id)) {
        info.name = name;
    }
    c.out.array(14);
    for (name, value) in [("server", "redis"), ("version", VERSION)] {
        c.out.bulk(name.as_bytes());
        c.out.bulk(value.as_bytes());
    }
    c.out.bulk(b"proto");
    c.out.int(2);
    c.out.bulk(b"id");
    c.out.int(c.client.id.cast_signed());
    for (name, value) in [("mode", "standalone"), ("role", "master")] {
        c.out.bulk(name.as_bytes());
        c.out.bulk(value.as_bytes());
    }
    c.out.bulk(b"modules");
    c.out.array(0);
    Ok(())
}

pub(super) fn time(c: &mut Call<'_, '_>) -> Outcome {
    c.out.array(2);
    c.out.bulk(format!("{}", c.now_ms / 1000).as_bytes());
    c.out.bulk(format!("{}", c.now_ms % 1000 * 1000).as_bytes());
    Ok(())
}

pub(super) fn shutdown(c: &mut Call<'_, '_>) -> Outcome {
    // Nothing is saved anywhere, so all ways to end are one.
    for at in 1..c.args.len() {
        if !["NOSAVE", "SAVE", "NOW", "FORCE"].iter().any(|word| c.is(at, word)) {
            return Err(Refusal::Syntax);
        }
    }
    c.client.next = Next::Shutdown;
    Ok(())
}

/// The parameters that `CONFIG GET` tells.
fn parameters(c: &Call<'_, '_>) -> [(&'static str, String); 9] {
    let store = &*c.store;
    let maxmemory = if store.maxmemory_bytes == usize::MAX { 0 } else { store.maxmemory_bytes };
    [
        ("appendonly", if store.journal.is_some() { "yes" } else { "no" }.into()),
        ("bind", "*".into()),
        ("databases", "1".into()),
        ("maxmemory", format!("{maxmemory}")),
        ("maxmemory-policy", "noeviction".into()),
        ("proto-max-bulk-len", format!("{}", store.settings.bulk_bytes)),
        ("save", String::new()),
        ("timeout", "0".into()),
        ("tcp-keepalive", "0".into()),
    ]
}

pub(super) fn config(c: &mut Call<'_, '_>) -> Outcome {
    if c.is(1, "GET") {
        let parameters = parameters(c);
        let wanted = |name: &str| {
            c.args
                .from(2)
                .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes(), c.store.settings.poll))
        };
        let mark = c.out.mark();
        let mut told = 0;
        for (name, value) in parameters.iter().filter(|(name, _)| wanted(name)) {
            c.out.bulk(name.as_bytes());
            c.out.bulk(value.as_bytes());
            told += 2;
        }
        c.out.array_since(mark, told);
        return Ok(());
    }
    if c.is(1, "SET") {
        return config_set(c);
    }
    if c.is(1, "RESETSTAT") {
        c.store.stats = Default::default();
        c.out.ok();
        return Ok(());
    }
    // What is left is `REWRITE`.
    Err(Refusal::NoConfigFile)
}

/// A size as in a configuration: bytes, or with a unit.
fn size(text: &[u8]) -> Option<usize> {
    let text = text.to_ascii_lowercase();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let unit = match &text[digits..] {
        b"" | b"b" => 1,
        b"k" => 1000,
        b"kb" => 1 << 10,
        b"m" => 1_000_000,
        b"mb" => 1 << 20,
        b"g" => 1_000_000_000,
        b"gb" => 1 << 30,
        _ => return None,
    };
    usize::try_from(crate::bytes::parse_i64(&text[..digits])?).ok()?.checked_mul(unit)
}

/// `maxmemory` can be made less than the budget; the rest can only be set to what it is.
fn config_set(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len() % 2 == 1 {
        return Err(Refusal::Arity("config|set"));
    }
    let parameters = parameters(c);
    let mut maxmemory_bytes = c.store.maxmemory_bytes;
    for at in (2..c.args.len()).step_by(2) {
        let value = c.args.at(at + 1);
        let Some((name, now)) = parameters.iter().find(|(name, _)| c.is(at, name)) else {
            return Err(c.say("Unknown option or number of arguments for CONFIG SET - '", c.args.at(at), "'"));
        };
        let budget = c.store.settings.maxmemory_bytes;
        match *name {
            "maxmemory" => match size(value) {
                Some(0) => maxmemory_bytes = budget,
                Some(bytes) if bytes <= budget => maxmemory_bytes = bytes,
                _ => {
                    return Err(c.say(
                        "CONFIG SET failed (possibly related to argument '",
                        c.args.at(at),
                        "') - argument must be a memory value within the budget",
                    ));
                }
            },
            _ if now.as_bytes() == value => {}
            _ => {
                return Err(c.say(
                    "CONFIG SET failed (possibly related to argument '",
                    c.args.at(at),
                    "') - can't set immutable config",
                ));
            }
        }
    }
    c.store.maxmemory_bytes = maxmemory_bytes;
    c.out.ok();
    Ok(())
}

/// A section of `INFO`: its name, and its lines.
type Section = (&'static str, fn(&Call<'_, '_>, &mut String) -> core::fmt::Result);

const SECTIONS: [Section; 6] = [
    ("Server", |c, text| {
        let up_s = c.now_ms.saturating_sub(c.store.started_ms.unwrap_or(c.now_ms)) / 1000;
        write!(
            text,
            "redis_version:{VERSION}\r\nserver_name:lockstep-kv\r\nredis_mode:standalone\r\narch_bits:64\r\n"
        )?;
        write!(
            text,
            "server_time_usec:{}\r\nuptime_in_seconds:{up_s}\r\nuptime_in_days:{}\r\n",
            c.now_ms * 1000,
            up_s / 86400
        )
    }),
    ("Clients", |c, text| write!(text, "connected_clients:{}\r\nblocked_clients:0\r\n", c.store.clients.len())),
    ("Memory", |c, text| {
        let used = (c.store.settings.heap_used)();
        let most = if c.store.maxmemory_bytes == usize::MAX { 0 } else { c.store.maxmemory_bytes };
        write!(text, "used_memory:{used}\r\nused_memory_human:{}\r\n", human(used))?;
        write!(text, "maxmemory:{most}\r\nmaxmemory_human:{}\r\nmaxmemory_policy:noeviction\r\n", human(most))
    }),
    ("Stats", |c, text| {
        let stats = &c.store.stats;
        write!(
            text,
            "total_connections_received:{}\r\ntotal_commands_processed:{}\r\n",
            stats.connections, stats.commands
        )?;
        write!(
            text,
            "total_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\n",
            stats.input_bytes, stats.output_bytes
        )?;
        write!(text, "expired_keys:{}\r\nevicted_keys:0\r\n", stats.expired_keys)?;
        write!(text, "keyspace_hits:{}\r\nkeyspace_misses:{}\r\n", stats.hits, stats.misses)?;
        write!(text, "total_error_replies:{}\r\n", stats.errors)
    }),
    ("Replication", |_, text| write!(text, "role:master\r\nconnected_slaves:0\r\n")),
    ("Keyspace", |c, text| match c.store.len() {
        0 => Ok(()),
        keys => write!(text, "db0:keys={keys},expires={},avg_ttl=0\r\n", c.store.volatile()),
    }),
];

/// A number of bytes as Redis shows it to people.
fn human(bytes: usize) -> String {
    let bytes = bytes as f64;
    match bytes {
        0.0..1024.0 => format!("{bytes}B"),
        1024.0..1048576.0 => format!("{:.2}K", bytes / 1024.0),
        1048576.0..1073741824.0 => format!("{:.2}M", bytes / 1048576.0),
        _ => format!("{:.2}G", bytes / 1073741824.0),
    }
}

pub(super) fn info(c: &mut Call<'_, '_>) -> Outcome {
    let all = c.args.len() == 1
        || (1..c.args.len()).any(|at| ["all", "default", "everything"].iter().any(|word| c.is(at, word)));
    let mut text = String::new();
    for (name, lines) in SECTIONS {
        if all || (1..c.args.len()).any(|at| c.is(at, name)) {
            // Writing into a string cannot fail.
            let _ = write!(text, "{}# {name}\r\n", if text.is_empty() { "" } else { "\r\n" });
            let _ = lines(c, &mut text);
        }
    }
    c.out.bulk(text.as_bytes());
    Ok(())
}

/// One command as `COMMAND` describes it.
fn describe(c: &mut Call<'_, '_>, command: &Command) {
    c.out.array(10);
    c.out.bulk(command.name.as_bytes());
    c.out.int(command.arity.into());
    let flags = [
        (catalogue::WRITE, "write"),
        (catalogue::READ, "readonly"),
        (catalogue::DENY_OOM, "denyoom"),
        (catalogue::ADMIN, "admin"),
        (catalogue::NOT_IN_MULTI, "no_multi"),
        (catalogue::FAST, "fast"),
    ];
    c.out.array(flags.iter().filter(|(flag, _)| command.is(*flag)).count());
    for (_, name) in flags.iter().filter(|(flag, _)| command.is(*flag)) {
        c.out.simple(name);
    }
    let (first, last, step) = command.keys;
    for value in [first, last, step] {
        c.out.int(value.into());
    }
    // Categories, tips, key specifications, subcommands: none told.
    for _ in 0..4 {
        c.out.array(0);
    }
}

/// The commands that a request names from an argument on.
fn named(c: &Call<'_, '_>, first: usize) -> alloc::vec::Vec<Option<&'static Command>> {
    c.args.from(first).map(|name| c.store.names.find(name).map(|number| &COMMANDS[usize::from(number)])).collect()
}

pub(super) fn command(c: &mut Call<'_, '_>) -> Outcome {
    let all = c.args.len() == 1 || c.is(1, "INFO") && c.args.len() == 2;
    if all {
        c.out.array(COMMANDS.len());
        for command in COMMANDS {
            describe(c, command);
        }
    } else if c.is(1, "INFO") {
        let named = named(c, 2);
        c.out.array(named.len());
        for command in named {
            match command {
                Some(command) => describe(c, command),
                None => c.out.null_array(),
            }
        }
    } else if c.is(1, "COUNT") {
        c.out.size(COMMANDS.len());
    } else if c.is(1, "LIST") {
        c.out.array(COMMANDS.len());
        for command in COMMANDS {
            c.out.bulk(command.name.as_bytes());
        }
    } else if c.is(1, "DOCS") {
        let named: alloc::vec::Vec<&Command> =
            if c.args.len() == 2 { COMMANDS.iter().collect() } else { named(c, 2).into_iter().flatten().collect() };
        c.out.array(2 * named.len());
        for command in named {
            c.out.bulk(command.name.as_bytes());
            c.out.array(2);
            c.out.bulk(b"since");
            c.out.bulk(b"1.0.0");
        }
    } else {
        return get_keys(c);
    }
    Ok(())
}

fn get_keys(c: &mut Call<'_, '_>) -> Outcome {
    let number = c.store.names.find(c.args.at(2)).ok_or(Refusal::NoCommand)?;
    let command = &COMMANDS[usize::from(number)];
    let length = c.args.len() - 2;
    if !command.takes(length) {
        return Err(Refusal::CommandArity);
    }
    let (first, last, step) = command.keys;
    if first == 0 {
        return Err(Refusal::NoKeyArguments);
    }
    let last = if last < 0 { length as i64 + i64::from(last) } else { i64::from(last) };
    let keys = (i64::from(first)..=last).step_by(usize::from(step.unsigned_abs()).max(1));
    c.out.array(keys.clone().count());
    for (number, at) in keys.enumerate() {
        c.out.bulk(c.args.at(at as usize + 2));
        c.poll_at(number);
    }
    Ok(())
}
