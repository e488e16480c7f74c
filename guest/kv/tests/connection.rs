//! The connection: pieces of requests, pipelines, back-pressure, and what ends it.

mod support;

use lockstep_kv::{Connection, Next, Served, Settings, Store};
use proptest::prelude::*;

struct Client {
    store: Store,
    connection: Connection,
}

impl Client {
    fn new(settings: Settings) -> Self {
        let mut store = Store::new(settings);
        let connection = Connection::open(&mut store, "127.0.0.1:1000".into(), 0);
        Client { store, connection }
    }

    fn serve(&mut self, input: &[u8]) -> (Served, String) {
        let mut out = Vec::new();
        let served = self.connection.serve(&mut self.store, 1, input, &mut out);
        (served, String::from_utf8(out).unwrap())
    }
}

#[test]
fn a_pipeline_is_answered_in_order_and_the_rest_is_left() {
    let mut client = Client::new(Settings::default());
    let requests = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n41\r\nINCR k\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nPI";
    let (served, replies) = client.serve(requests);
    assert_eq!(replies, "+OK\r\n:42\r\n$2\r\n42\r\n");
    assert_eq!(served, Served { consumed: requests.len() - 10, next: Next::Read });
    let (served, replies) = client.serve(b"*1\r\n$4\r\nPING\r\n");
    assert_eq!((served.consumed, replies.as_str()), (14, "+PONG\r\n"));
}

#[test]
fn output_above_the_mark_stops_it_until_the_output_is_sent() {
    let mut client = Client::new(Settings { high_water_bytes: 14, ..Settings::default() });
    let (served, replies) = client.serve(b"PING\r\nPING\r\nPING\r\n");
    assert_eq!((served, replies.as_str()), (Served { consumed: 12, next: Next::Write }, "+PONG\r\n+PONG\r\n"));
    let (served, replies) = client.serve(b"PING\r\n");
    assert_eq!((served, replies.as_str()), (Served { consumed: 6, next: Next::Read }, "+PONG\r\n"));
}

#[test]
fn quit_closes_behind_its_reply() {
    let mut client = Client::new(Settings::default());
    let (served, replies) = client.serve(b"QUIT\r\nPING\r\n");
    assert_eq!((served, replies.as_str()), (Served { consumed: 6, next: Next::Close }, "+OK\r\n"));
}

#[test]
fn what_is_not_the_protocol_ends_the_connection_with_a_reason() {
    let cases: [(&[u8], &str); 7] = [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$16777217\r\n", "invalid bulk length"),
        (b"set \"a\r\n", "unbalanced quotes in request"),
        (&[b'a'; 65536], "too big inline request"),
    ];
    for (input, reason) in cases {
        let (served, replies) = Client::new(Settings::default()).serve(input);
        assert_eq!(replies, format!("-ERR Protocol error: {reason}\r\n"));
        assert_eq!(served.next, Next::Close);
    }
    let mut client = Client::new(Settings { request_bytes: 100, ..Settings::default() });
    let (served, replies) = client.serve(b"*2\r\n$3\r\nGET\r\n$100\r\n");
    assert_eq!(replies, "-ERR Protocol error: request of more than 100 bytes\r\n");
    assert_eq!(served.next, Next::Close);
}

/// A request out of a few words, so that many of them mean something.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "SET",
        "GET",
        "LPUSH",
        "LRANGE",
        "MULTI",
        "EXEC",
        "k",
        "0",
        "-1",
        "some text",
        "",
        "PING",
        "KEYS",
        "*",
    ]);
    let request = prop::collection::vec(word, 1..6).prop_map(|args| support::request(&args));
    let line = prop::sample::select(vec![
        &b"PING\r\n"[..],
        b"GET k\n",
        b"\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"SET 'a b' \"\\x41\\n\"\r\n",
    ])
    .prop_map(<[u8]>::to_vec);
    prop::collection::vec(prop_oneof![4 => request, 1 => line], 1..30).prop_map(|requests| requests.concat())
}

/// Shows `input` to a connection in pieces that end at `cuts`, as it would come out of a socket.
fn in_pieces(input: &[u8], cuts: &[usize]) -> (Vec<u8>, Next) {
    let mut client = Client::new(Settings { request_bytes: 1 << 20, high_water_bytes: 100, ..Settings::default() });
    let (mut out, mut consumed, mut next) = (Vec::new(), 0, Next::Read);
    for end in cuts.iter().map(|cut| cut % (input.len() + 1)).chain([input.len()]) {
        if end < consumed {
            continue;
        }
        loop {
            let mut part = Vec::new();
            let served = client.connection.serve(&mut client.store, 1, &input[consumed..end], &mut part);
            assert!(served.consumed <= end - consumed);
            consumed += served.consumed;
            out.extend(part);
            next = served.next;
            if next != Next::Write {
                break;
            }
        }
        if next != Next::Read {
            break;
        }
    }
    (out, next)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_get_the_same_replies_as_the_whole(input in requests(), mut cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        let whole = in_pieces(&input, &[]);
        cuts.sort_by_key(|cut| cut % (input.len() + 1));
        prop_assert_eq!(in_pieces(&input, &cuts), whole.clone());
        let every_byte: Vec<usize> = (0..=input.len()).collect();
        prop_assert_eq!(in_pieces(&input, &every_byte), whole);
    }

    #[test]
    fn damage_ends_no_more_than_the_connection(
        mut input in requests(),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..10),
        mut cuts in prop::collection::vec(any::<usize>(), 0..5),
    ) {
        let length = input.len();
        damage.into_iter().for_each(|(at, byte)| input[at % length] = byte);
        cuts.sort_by_key(|cut| cut % (length + 1));
        in_pieces(&input, &cuts);
    }

    #[test]
    fn any_bytes_are_taken(input in prop::collection::vec(any::<u8>(), 0..2000)) {
        in_pieces(&input, &[]);
    }
}

#[test]
fn killed_and_listed() {
    let mut client = Client::new(Settings::default());
    let other = Connection::open(&mut client.store, "127.0.0.1:2000".into(), 0);
    let (_, list) = client.serve(b"CLIENT LIST\r\n");
    assert!(list.contains("addr=127.0.0.1:1000") && list.contains("addr=127.0.0.1:2000"), "{list}");
    assert!(!other.is_killed(&client.store));
    assert_eq!(client.serve(format!("CLIENT KILL ID {}\r\n", other.id()).as_bytes()).1, ":1\r\n");
    assert_eq!(client.store.kills(), 1);
    assert!(other.is_killed(&client.store));
    other.close(&mut client.store);
    let (served, reply) = client.serve(b"CLIENT KILL 127.0.0.1:1000\r\n");
    assert_eq!((served.next, reply.as_str()), (Next::Close, "+OK\r\n"));
}

#[test]
fn shutdown_is_said_to_the_caller() {
    let mut client = Client::new(Settings::default());
    let (served, reply) = client.serve(b"SHUTDOWN NOSAVE\r\n");
    assert_eq!((served.next, reply.as_str()), (Next::Shutdown, ""));
}

#[test]
fn a_closed_connection_watches_nothing_and_its_transaction_is_gone() {
    let mut client = Client::new(Settings::default());
    let mut other = Connection::open(&mut client.store, "other".into(), 0);
    let mut out = Vec::new();
    other.serve(&mut client.store, 1, b"WATCH k\r\nMULTI\r\nSET k 1\r\n", &mut out);
    assert_eq!(out, b"+OK\r\n+OK\r\n+QUEUED\r\n");
    other.close(&mut client.store);
    assert_eq!(client.serve(b"GET k\r\n").1, "$-1\r\n");
    assert!(client.serve(b"INFO clients\r\n").1.contains("connected_clients:1\r\n"));
}
