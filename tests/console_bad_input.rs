//! Promise: whatever bytes reach the console port, the connection that sent them gets a named error or
//! what it asked for, and everybody else notices nothing. The same for a client and a mad server.

#[path = "console/cluster.rs"]
#[allow(dead_code, reason = "the scripted guest is for the tests of failovers")]
mod cluster;

use cluster::{Host, Owner};
use lockstep::console::client::{Client, Options, What};
use lockstep::console::hub::{Hub, Protection};
use lockstep::console::server::{Who, serve_connection};
use lockstep::console::wire::{
    Answer, Attach, Attached, ClientMessage, Command, NotLive, Reader, Refusal, ServerMessage, Start, WireError,
};
use lockstep::log::frame::HEADER_BYTES;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CASES: u32 = 20_000;

/// What is done to a valid conversation.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Replace(Vec<u8>),
    /// Damaged in a frame whose checksums are right: only what they protect can be wrong.
    Forge(usize, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => Just(Damage::None),
        4 => (any::<usize>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        2 => any::<usize>().prop_map(Damage::Cut),
        2 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Damage::Replace),
        6 => (any::<usize>(), 1u8..).prop_map(|(at, bits)| Damage::Forge(at, bits)),
    ]
}

impl Damage {
    fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let length = bytes.len();
        match self {
            Damage::None => {}
            Damage::Flip(at, bits) => bytes[at % length] ^= bits,
            Damage::Cut(at) => bytes.truncate(at % length),
            Damage::Insert(at, more) => drop(bytes.splice(at % length..at % length, more.iter().copied())),
            Damage::Replace(other) => bytes.clone_from(other),
            Damage::Forge(at, bits) => {
                let at = at % length;
                let mut start = 0;
                while start < length {
                    let claimed = u32::from_le_bytes(bytes[start + 8..start + 12].try_into().unwrap()) as usize;
                    let end = start + HEADER_BYTES + claimed;
                    if (start..start + 24).contains(&at) || (start + HEADER_BYTES..end).contains(&at) {
                        bytes[at] ^= bits;
                        let payload_crc = crc32fast::hash(&bytes[start + HEADER_BYTES..end]);
                        bytes[start + 24..start + 28].copy_from_slice(&payload_crc.to_le_bytes());
                        let header_crc = crc32fast::hash(&bytes[start..start + 28]);
                        bytes[start + 28..start + 32].copy_from_slice(&header_crc.to_le_bytes());
                    }
                    start = end;
                }
            }
        }
        bytes
    }
}

fn client_messages() -> Vec<u8> {
    let mut bytes = Vec::new();
    let attach = Attach {
        session: 3,
        start: Start::Tail(5),
        unacknowledged: 0,
        sent: 0,
        born: u64::MAX,
        search: 1,
        generation: 1,
    };
    for message in [
        ClientMessage::StatusRequest,
        ClientMessage::Attach(attach),
        ClientMessage::Input { offset: 0, bytes: b"typed" },
        ClientMessage::KeepAlive,
        ClientMessage::Control(Command::Stop),
        ClientMessage::Input { offset: 5, bytes: b"more" },
    ] {
        message.encode(&mut bytes);
    }
    bytes
}

fn server_messages() -> Vec<u8> {
    let mut bytes = Vec::new();
    let attached = Attached {
        vm: "vm".into(),
        host: "host".into(),
        generation: 1,
        output_position: 0,
        input_offset: 0,
        entries: 0,
        peer: Some("127.0.0.1:1".into()),
    };
    for message in [
        ServerMessage::NotLive(NotLive { role: lockstep::console::status::Role::Backup, peer: None }),
        ServerMessage::Attached(attached),
        ServerMessage::Output { position: 0, bytes: b"output" },
        ServerMessage::Gap(9),
        ServerMessage::InputAck(0),
        ServerMessage::Status(b"{}"),
        ServerMessage::Answer(Answer { accepted: true, text: "text".into() }),
        ServerMessage::Refused(Refusal::BadMessage("text".into())),
    ] {
        message.encode(&mut bytes);
    }
    bytes
}

/// The name of an error, for counting.
fn name(error: &impl std::fmt::Debug) -> String {
    let words = format!("{error:?}");
    let words = words.split(|c: char| !c.is_alphanumeric()).filter(|word| word.starts_with(char::is_uppercase));
    words.take(3).collect::<Vec<_>>().join(".")
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn a_server_names_what_is_wrong_and_forgets_the_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hub = Arc::new(Hub::new("vm", "host", 1 << 10));
    hub.go_live(1, Protection::Unprotected);
    hub.output(0, b"a guest's output");
    let owner = Arc::new(Owner("host".into()));
    let names = RefCell::new(BTreeMap::new());
    let result = TestRunner::new(config()).run(&damage(), |damage| {
        let bytes = damage.apply(client_messages());
        let who = Who { address: ([127, 0, 0, 1], 1).into() };
        let mut answers = Vec::new();
        let served = runtime.block_on(serve_connection(&bytes[..], &mut answers, who, hub.clone(), owner.clone()));
        let kind = match &served {
            Ok(()) => "Ok".to_string(),
            Err(error) => name(error),
        };
        *names.borrow_mut().entry(kind).or_insert(0) += 1;
        let told = runtime.block_on(async {
            let (mut reader, mut told) = (Reader::new(&answers[..]), None);
            while let Some(message) = reader.server_message().await.expect("a server speaks the protocol") {
                if let ServerMessage::Refused(refusal) = message {
                    told = Some(refusal);
                }
            }
            told
        });
        if let Err(error) = served {
            prop_assert_eq!(told, Some(Refusal::BadMessage(error.to_string())));
        }
        prop_assert_eq!((hub.console_status().clients, hub.input_waiting()), (0, 0), "nothing is left of it");
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let names = names.into_inner();
    println!("{names:?}");
    // The cases reach every reason there is, or they prove little.
    let frame = ["Magic", "Version", "HeaderChecksum", "PayloadChecksum", "Kind", "Reserved", "TooLong"];
    let frame = frame.map(|reason| format!("Wire.Frame.{reason}"));
    let others = ["Ok", "Wire.Cut", "Wire.Kind", "Wire.Payload", "Input.Gap", "OutOfPlace"];
    for reason in frame.iter().map(String::as_str).chain(others) {
        assert!(names.keys().any(|key| key.starts_with(reason)), "{reason} is missing in {names:?}");
    }
}

#[test]
fn a_client_names_what_a_mad_server_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = TestRunner::new(config()).run(&damage(), |damage| {
        let bytes = damage.apply(server_messages());
        runtime.block_on(async {
            let mut reader = Reader::new(&bytes[..]);
            loop {
                match reader.server_message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(WireError::Io(error)) => return Err(TestCaseError::fail(error.to_string())),
                    Err(_) => return Ok(()),
                }
            }
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Over real sockets, while somebody works.
#[tokio::test]
async fn everybody_else_goes_on() {
    let host = Host::start("a");
    host.hub.go_live(1, Protection::Unprotected);
    let mut client = Client::connect(Options::new([&host.address()])).await.unwrap();
    let mut runner = TestRunner::new(config());
    for round in 0..300 {
        let damage = damage().new_tree(&mut runner).unwrap().current();
        let mut stream = TcpStream::connect(host.place.address).await.unwrap();
        // It may close the connection before everything is written.
        let _ = stream.write_all(&damage.apply(client_messages())).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        host.hub.output(round, b"x");
        match client.next().await.unwrap().what {
            What::Output { position, bytes } => assert_eq!((position, bytes), (round, b"x".to_vec())),
            other => panic!("{other:?}"),
        }
    }
}

/// More connections than there are slots: the last are told, and the first are served.
#[tokio::test]
async fn connections_are_bounded() {
    let host = Host::start("a");
    let mut open = Vec::new();
    let mut request = Vec::new();
    ClientMessage::StatusRequest.encode(&mut request);
    for _ in 0..lockstep::console::server::CONNECTIONS_MAX {
        let (reader, mut writer) = TcpStream::connect(host.place.address).await.unwrap().into_split();
        writer.write_all(&request).await.unwrap();
        let mut reader = Reader::new(reader);
        assert!(matches!(reader.server_message().await, Ok(Some(ServerMessage::Status(_)))));
        open.push((reader, writer));
    }
    let (reader, _writer) = TcpStream::connect(host.place.address).await.unwrap().into_split();
    let mut reader = Reader::new(reader);
    assert!(matches!(reader.server_message().await, Ok(Some(ServerMessage::Refused(Refusal::Busy(_))))));
}
