//! The connection: pieces of requests, pipelines, back-pressure, and what ends it.

use lockstep_kv::{Connection, Next, Served, Settings, Store};

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
