//! What the tests share: the server on a TCP port, Redis itself on a socket, replies as trees.
#![allow(dead_code, reason = "every test uses a part of it")]

pub mod requests;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_kv::{Connection, Next, Settings, Store};

/// The time of day.
#[allow(clippy::disallowed_methods, reason = "the tests are the outside world")]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Option<Vec<u8>>),
    Array(Option<Vec<Reply>>),
}

impl Reply {
    pub fn read(from: &mut impl BufRead) -> std::io::Result<Reply> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end_matches("\r\n").split_at(1);
        Ok(match kind {
            "+" => Reply::Simple(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" => match usize::try_from(rest.parse::<i64>().unwrap()) {
                Err(_) => Reply::Bulk(None),
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    from.read_exact(&mut bytes)?;
                    assert_eq!(&bytes[length..], b"\r\n");
                    bytes.truncate(length);
                    Reply::Bulk(Some(bytes))
                }
            },
            "*" => match usize::try_from(rest.parse::<i64>().unwrap()) {
                Err(_) => Reply::Array(None),
                Ok(length) => Reply::Array(Some((0..length).map(|_| Reply::read(from)).collect::<Result<_, _>>()?)),
            },
            _ => panic!("not a reply: {line:?}"),
        })
    }
}

/// A request as its bytes.
pub fn request(args: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.as_ref().len()).as_bytes());
        bytes.extend_from_slice(arg.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Debian's server, on a socket in a directory of its own; it ends with this.
pub struct Redis {
    process: Child,
    directory: tempfile::TempDir,
}

impl Redis {
    pub fn start() -> Redis {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--databases", "1", "--daemonize", "no"])
            .args(["--unixsocket", "redis.sock", "--dir", "."])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server (package redis-server) starts");
        let output = process.stdout.take().unwrap();
        let redis = Redis { process, directory };
        let mut lines = BufReader::new(output).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready to accept connections")), "redis-server is ready");
        // Whatever else it says is read, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        redis
    }

    pub fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.socket()).unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The crate behind a TCP port, a thread for each client.
pub struct Server {
    pub address: SocketAddr,
}

impl Server {
    pub fn start(settings: Settings, address: &str) -> Server {
        let store = Arc::new(Mutex::new(Store::new(settings)));
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = store.clone();
                std::thread::spawn(move || Self::serve(&store, stream));
            }
        });
        Server { address }
    }

    fn serve(store: &Mutex<Store>, mut stream: TcpStream) {
        let Ok(peer) = stream.peer_addr() else { return };
        let _ = stream.set_nodelay(true);
        let mut connection = Connection::open(&mut store.lock().unwrap(), peer.to_string(), now_ms());
        let (mut input, mut out) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; 16 << 10];
        'connection: while let Ok(read @ 1..) = stream.read(&mut buffer) {
            input.extend_from_slice(&buffer[..read]);
            let mut done = 0;
            loop {
                let served = connection.serve(&mut store.lock().unwrap(), now_ms(), &input[done..], &mut out);
                done += served.consumed;
                if stream.write_all(&out).is_err() {
                    break 'connection;
                }
                out.clear();
                match served.next {
                    Next::Read => break,
                    Next::Write => {}
                    Next::Close | Next::Shutdown => break 'connection,
                }
            }
            input.drain(..done);
        }
        connection.close(&mut store.lock().unwrap());
    }
}
