//! Requests drawn at random: templates of all commands, filled in with few keys and members, so that they meet.

use proptest::prelude::*;

/// Requests to be filled in: `k` key, `m` member or field, `s` string, `i` whole number, `f` floating point number, `g` one that is whole,
/// `x` index, `t` time, `b` bound of scores, `l` bound of texts, `p` pattern, `(…)*` one to three times, `A|B` one of them or nothing.
pub const TEMPLATES: &[&str] = &[
    "GET k",
    "SET k s",
    "SET k i",
    "SET k s NX|XX GET|KEEPTTL",
    "SET k s EXAT|PXAT t",
    "SET k s NX|XX GET PXAT t",
    "SETNX k s",
    "GETSET k s",
    "GETEX k",
    "GETEX k PERSIST",
    "GETEX k PXAT t",
    "GETDEL k",
    "APPEND k tail",
    "STRLEN k",
    "GETRANGE k x x",
    "SETRANGE k x tail",
    "SETRANGE k x ",
    "INCR k",
    "DECR k",
    "INCRBY k i",
    "DECRBY k i",
    "INCRBYFLOAT k g",
    "MGET (k)*",
    "MSET (k s)*",
    "MSETNX (k s)*",
    "SETEX k -1 s",
    "PSETEX k 0 s",
    "DEL (k)*",
    "UNLINK k",
    "EXISTS (k)*",
    "TOUCH (k)*",
    "TYPE k",
    "EXPIREAT k t NX|XX|GT|LT",
    "PEXPIREAT k t NX|XX|GT|LT XX|GT|LT",
    "EXPIRE k -1",
    "EXPIRE k 0 NX|bad",
    "EXPIRE k 0",
    "PEXPIRE k 9223372036854775807",
    "EXPIRETIME k",
    "PEXPIRETIME k",
    "PERSIST k",
    "RENAME k k",
    "RENAMENX k k",
    "COPY k k REPLACE",
    "KEYS p",
    "SCAN 0 COUNT 1000 MATCH p",
    "SCAN 0 COUNT 0|bad|-1",
    "SCAN 0 TYPE|COUNT",
    "SCAN bad",
    "FLUSHALL ASYNC|SYNC|bad",
    "LPUSH k (s)*",
    "RPUSH k (m)*",
    "LPUSHX k s",
    "RPUSHX k (s)*",
    "LPOP k",
    "RPOP k",
    "LPOP k x",
    "RPOP k x",
    "LLEN k",
    "LRANGE k x x",
    "LINDEX k x",
    "LSET k x s",
    "LINSERT k BEFORE|AFTER m s",
    "LREM k x m",
    "LTRIM k x x",
    "LPOS k m",
    "LPOS k m RANK x",
    "LPOS k m COUNT x MAXLEN|RANK x",
    "RPOPLPUSH k k",
    "LMOVE k k LEFT|RIGHT LEFT|RIGHT",
    "HSET k (m s)*",
    "HSET k m i",
    "HMSET k (m s)*",
    "HSETNX k m s",
    "HGET k m",
    "HMGET k (m)*",
    "HDEL k (m)*",
    "HLEN k",
    "HEXISTS k m",
    "HSTRLEN k m",
    "HGETALL k",
    "HKEYS k",
    "HVALS k",
    "HINCRBY k m i",
    "HINCRBYFLOAT k m g",
    "HRANDFIELD k 1000",
    "HRANDFIELD k 1000 WITHVALUES",
    "HSCAN k 0 COUNT 1000 MATCH p",
    "SADD k (m)*",
    "SREM k (m)*",
    "SCARD k",
    "SISMEMBER k m",
    "SMISMEMBER k (m)*",
    "SMEMBERS k",
    "SMOVE k k m",
    "SPOP k 1000",
    "SRANDMEMBER k 1000",
    "SUNION (k)*",
    "SINTER (k)*",
    "SDIFF (k)*",
    "SUNIONSTORE k (k)*",
    "SINTERSTORE k (k)*",
    "SDIFFSTORE k (k)*",
    "SINTERCARD 1 k",
    "SINTERCARD 2 k k LIMIT x",
    "SINTERCARD x k",
    "SSCAN k 0 COUNT 1000",
    "ZADD k (f m)*",
    "ZADD k NX|XX GT|LT CH|INCR f m",
    "ZADD k NX|XX CH f m",
    "ZADD k GT|LT CH (f m)*",
    "ZADD k INCR f m",
    "ZINCRBY k f m",
    "ZREM k (m)*",
    "ZCARD k",
    "ZSCORE k m",
    "ZMSCORE k (m)*",
    "ZRANK k m",
    "ZREVRANK k m",
    "ZCOUNT k b b",
    "ZADD z (0 m)*",
    "ZADD z 0 m 0 m 0 m",
    "ZREM z m",
    "ZRANK z m",
    "ZLEXCOUNT z l l",
    "ZRANGE k x x WITHSCORES",
    "ZRANGE k x x REV WITHSCORES",
    "ZRANGE k b b BYSCORE WITHSCORES",
    "ZRANGE k b b BYSCORE REV LIMIT x x",
    "ZRANGE z l l BYLEX",
    "ZRANGE z l l BYLEX REV LIMIT x x",
    "ZRANGE k x x LIMIT x x",
    "ZRANGE z l l BYLEX WITHSCORES",
    "ZREVRANGE k x x WITHSCORES",
    "ZRANGEBYSCORE k b b WITHSCORES",
    "ZRANGEBYSCORE k b b LIMIT x x",
    "ZREVRANGEBYSCORE k b b WITHSCORES LIMIT x x",
    "ZRANGEBYLEX z l l",
    "ZREVRANGEBYLEX z l l LIMIT x x",
    "ZREMRANGEBYRANK k x x",
    "ZREMRANGEBYSCORE k b b",
    "ZREMRANGEBYLEX z l l",
    "ZPOPMIN k",
    "ZPOPMAX k",
    "ZPOPMIN k x",
    "ZPOPMAX k x",
    "ZRANDMEMBER k 1000 WITHSCORES",
    "ZSCAN k 0 COUNT 1000",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "WATCH (k)*",
    "UNWATCH",
    "PING",
    "PING s",
    "PING s s",
    "ECHO s",
    "SELECT 0",
    "SELECT x",
    "NOSUCH s s",
    "OBJECT bad k",
    "CONFIG bad",
    "CONFIG GET save",
    "CONFIG GET append*y",
    "CLIENT GETNAME",
    "CLIENT SETNAME m",
    "CLIENT bad",
    "HELLO 4",
    "HELLO 3x",
    "COMMAND GETKEYS MSET k s k s",
    "OBJECT ENCODING",
];

/// Fills a template in, with numbers that stand for choices.
fn fill(template: &str, choices: &mut impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let mut args: Vec<Vec<u8>> = Vec::new();
    let mut tokens = template.split(' ');
    while let Some(token) = tokens.next() {
        if let Some(first) = token.strip_prefix('(') {
            let mut group = vec![first];
            while !group.last().unwrap().ends_with(")*") {
                group.push(tokens.next().unwrap());
            }
            for _ in 0..=choices.next().unwrap() % 3 {
                for token in &group {
                    args.extend(word(token.trim_end_matches(")*"), choices));
                }
            }
        } else {
            args.extend(word(token, choices));
        }
    }
    args
}

fn word(token: &str, choices: &mut impl Iterator<Item = usize>) -> Option<Vec<u8>> {
    let choice = choices.next().unwrap();
    let one_of = |words: &[&str]| Some(words[choice % words.len()].as_bytes().to_vec());
    match token {
        "k" => one_of(&["a", "b", "c", "d", "a key that takes more than twenty-four bytes"]),
        "m" => one_of(&["x", "y", "z", "", "10", "w", "a member that takes more than twenty-four bytes", "0.5"]),
        "s" => one_of(&[
            "1",
            "hello",
            "",
            "-7",
            "3.25",
            "a\r\nb",
            "a text that takes more than twenty-four bytes",
            "x",
            "9223372036854775807",
        ]),
        "i" => one_of(&["1", "-1", "0", "100", "9223372036854775807", "-9223372036854775808", "01", "1.5", "x"]),
        "f" => one_of(&["1", "0.5", "-2", "1e3", "0", "100.25", "inf", "-inf", "nan", "x", "3"]),
        "g" => one_of(&["1", "-2", "3", "1000000", "inf", "nan", "x", "0"]),
        "x" => one_of(&["0", "1", "-1", "2", "-2", "3", "-100", "100", "x"]),
        "t" => one_of(&["9000000000000", "8000000000", "8000000001", "1", "0", "-5", "9223372036854775807"]),
        "b" => one_of(&["-inf", "+inf", "0", "(1", "3", "(0.5", "-2", "(x", "1000"]),
        "l" => one_of(&["-", "+", "[x", "(x", "[10", "(w", "x", "["]),
        "p" => one_of(&["*", "a*", "[a-c]", "?", "\\a", "x", "[^a]", "*y*"]),
        _ if token.contains('|') => {
            let words: Vec<&str> = token.split('|').collect();
            choice.is_multiple_of(2).then(|| words[choice / 2 % words.len()].as_bytes().to_vec())
        }
        literal => Some(literal.as_bytes().to_vec()),
    }
}

/// A client's request; shows itself as text.
#[derive(Clone)]
pub struct Request {
    pub client: usize,
    pub args: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.client)?;
        self.args.iter().try_for_each(|arg| write!(f, " '{}'", arg.escape_ascii()))
    }
}

/// One request: its client, its template, the choices in it, and how many arguments to leave out by mistake.
pub fn requests() -> impl Strategy<Value = Vec<Request>> {
    requests_like(TEMPLATES)
}

/// As [`requests`], of these templates.
pub fn requests_like(templates: &'static [&'static str]) -> impl Strategy<Value = Vec<Request>> {
    let one = (0..8usize, 0..templates.len(), prop::collection::vec(0..720usize, 16), 0..40usize);
    let filled = one.prop_map(|(client, template, choices, mistake)| {
        let mut args = fill(templates[template], &mut choices.into_iter().cycle());
        // Without its last argument, a draw would take less than all.
        let draws = [&b"SPOP"[..], b"SRANDMEMBER", b"HRANDFIELD", b"ZRANDMEMBER"].contains(&args[0].as_slice());
        if mistake == 0 && args.len() > 1 && !draws {
            args.pop();
        } else if mistake == 1 {
            args.push(b"more".to_vec());
        }
        Request { client: client / 7, args }
    });
    prop::collection::vec(filled, 1..120)
}
