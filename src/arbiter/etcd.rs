//! Registers as keys of an etcd cluster: `PREFIX/vms/VM/generation`, with the same text as a register file.
//!
//! A claim is a linearizable read and one transaction: *if the key was last modified where it was read (or is not there still), put, else get*. So every
//! verdict is of a moment at which a majority agreed on it.
//!
//! etcd is asked through its JSON gateway (`/v3/kv/range`, `/v3/kv/txn`), which every etcd from 3.4 on serves on its client port. The
//! clients for its gRPC interface need a protobuf compiler on the machine that builds them, and bring some 40 crates for two calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::ensemble::{Ensemble, Health, Io, Server, Silence, Trouble};
use super::register::{Flaw, from_text, to_text};
use super::standing::{Standing, check_claim, check_vm};
use super::uri::{ArbiterUri, Credentials, EnsembleUri};
use super::{Arbiter, ArbiterError, Claim, Verdict, names};

/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// Time between two looks at a server, so that its connection is warm and it is known whether it answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a server may take to answer such a look, before it is asked last.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);

/// Connections to one server that are kept for the next question.
const MAX_IDLE: usize = 4;

/// The most bytes of an answer that are read: a register has 4 KiB at most, and base64 makes a third more of it.
const MAX_ANSWER: usize = 64 << 10;

type Connection = SendRequest<Full<Bytes>>;

/// One server.
struct Member {
    address: String,
    credentials: Option<Credentials>,
    location: String,
    /// A key under the prefix: what a look asks for.
    looked_at: String,
    idle: Mutex<Vec<Connection>>,
    /// What it gave for user and password.
    token: Mutex<Option<String>>,
    health: watch::Sender<Health>,
}

impl Server for Member {
    fn address(&self) -> &str {
        &self.address
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
}

/// What is wrong with a request, in etcd's words.
#[derive(Debug, Deserialize)]
struct Refused {
    #[serde(default)]
    message: String,
    #[serde(default)]
    code: i64,
}

/// Codes of gRPC.
mod code {
    pub const INVALID_ARGUMENT: i64 = 3;
    pub const PERMISSION_DENIED: i64 = 7;
    pub const FAILED_PRECONDITION: i64 = 9;
    pub const UNAUTHENTICATED: i64 = 16;
}

/// Why a request failed.
enum Failed {
    Silence(Silence),
    Refused(Refused),
}

impl From<Silence> for Failed {
    fn from(silence: Silence) -> Self {
        Failed::Silence(silence)
    }
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct KeyValue {
    /// A number of 64 bits, as a string.
    mod_revision: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Txn {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<TxnResponse>,
}

#[derive(Deserialize)]
struct TxnResponse {
    response_range: Option<Range>,
}

impl Member {
    async fn connect(&self) -> Result<Connection, Silence> {
        let connect = async {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = match timeout(CONNECT_PATIENCE, connect).await {
            Ok(stream) => stream.map_err(|error: std::io::Error| Silence::from(error))?,
            Err(_) => return Err(Silence::Silent),
        };
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Silence::Lost)?;
        // Ends with the handle, or when the server closes it.
        tokio::spawn(connection);
        Ok(requests)
    }

    /// A connection that was good a moment ago, if there is one.
    fn warm(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    fn token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One request and its answer. Dropping the future closes the connection, so nothing is ever answered to the wrong question.
    async fn exchange(&self, path: &str, body: &Value) -> Result<Bytes, Failed> {
        loop {
            let (mut connection, warm) = match self.warm() {
                Some(connection) => (connection, true),
                None => (self.connect().await?, false),
            };
            let mut request =
                hyper::Request::post(path).header(HOST, &self.address).header(CONTENT_TYPE, "application/json");
            if let Some(token) = self.token() {
                request = request.header(AUTHORIZATION, token);
            }
            let request = request.body(Full::from(body.to_string())).map_err(|_| Silence::Unreadable)?;
            let response = match connection.send_request(request).await {
                Ok(response) => response,
                // The server may have closed it while nobody looked; what was asked may be asked again.
                Err(_) if warm => continue,
                Err(_) => return Err(Silence::Lost.into()),
            };
            let status = response.status();
            let body = match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
                Ok(body) => body.to_bytes(),
                Err(_) => return Err(Silence::Lost.into()),
            };
            self.keep(connection);
            if status.is_success() {
                return Ok(body);
            }
            return Err(match serde_json::from_slice::<Refused>(&body) {
                Ok(refused) => Failed::Refused(refused),
                Err(_) => Silence::Said(format!("HTTP status {status}")).into(),
            });
        }
    }

    /// Has a token, if there is a password to get one for.
    async fn authenticate(&self) -> Result<(), Trouble> {
        let Some(Credentials { user, password }) = &self.credentials else { return Ok(()) };
        if self.token().is_some() {
            return Ok(());
        }
        #[derive(Deserialize)]
        struct Authenticated {
            token: String,
        }
        let token = match self.exchange("/v3/auth/authenticate", &json!({ "name": user, "password": password })).await {
            Ok(body) => parsed::<Authenticated>(&body)?.token,
            // A cluster that asks for no password lets everybody in.
            Err(Failed::Refused(Refused { code: code::FAILED_PRECONDITION, .. })) => return Ok(()),
            Err(Failed::Refused(Refused { code: code::INVALID_ARGUMENT, message })) => return Err(self.denied(message)),
            Err(failed) => return Err(self.trouble(failed)),
        };
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    /// Asks for something. A token that is no good any more is replaced.
    async fn request<T: for<'a> Deserialize<'a>>(&self, path: &str, body: Value) -> Result<T, Trouble> {
        let mut again = true;
        loop {
            self.authenticate().await?;
            match self.exchange(path, &body).await {
                Ok(body) => return Ok(parsed(&body)?),
                Err(Failed::Refused(refused))
                    if again && refused.is_about_the_token() && self.credentials.is_some() =>
                {
                    again = false;
                    self.token.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
                Err(failed) => return Err(self.trouble(failed)),
            }
        }
    }

    fn denied(&self, reason: String) -> Trouble {
        Trouble::Final(ArbiterError::Denied { location: self.location.clone(), reason })
    }

    fn trouble(&self, failed: Failed) -> Trouble {
        match failed {
            Failed::Silence(silence) => silence.into(),
            Failed::Refused(refused) if refused.code == code::PERMISSION_DENIED || refused.is_about_the_token() => {
                self.denied(refused.message)
            }
            Failed::Refused(refused) => Silence::Said(refused.message).into(),
        }
    }

    /// Keeps a connection warm, and knows whether the server answers.
    async fn look(&self) {
        let body = json!({ "key": encoded(&self.looked_at), "keys_only": true });
        loop {
            let health = match timeout(LOOK_PATIENCE, self.request::<Range>("/v3/kv/range", body.clone())).await {
                // What it does not allow is the question's affair.
                Ok(Ok(_) | Err(Trouble::Final(_))) => Ok(()),
                Ok(Err(Trouble::NoAnswer(silence))) => Err(silence),
                Err(_) => Err(Silence::Silent),
            };
            if let Err(silence) = &health {
                tracing::debug!(server = self.address, %silence, "the server does not answer");
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            let _ = self.health.send_replace(health);
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Refused {
    /// Whether another token, or one at all, would help. The last two come with the code of a wrong argument.
    fn is_about_the_token(&self) -> bool {
        let told = |what: &str| self.message.contains(what);
        self.code == code::UNAUTHENTICATED
            || (self.code == code::INVALID_ARGUMENT
                && (told("user name is empty") || told("revision of auth store is old")))
    }
}

fn parsed<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Silence> {
    serde_json::from_slice(body).map_err(|_| Silence::Unreadable)
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

/// Registers in a cluster.
pub struct Etcd {
    ensemble: Ensemble<Member>,
    root: String,
}

/// A register: under which key, and whose.
#[derive(Clone, Debug)]
struct Register {
    key: String,
    vm: String,
    location: String,
}

/// What a register holds, and where it was last modified.
type Held = Option<(Claim, String)>;

impl Etcd {
    /// Begins to connect to the servers of a cluster.
    pub fn open(uri: &EnsembleUri) -> Result<Self, ArbiterError> {
        let io = Io::start().map_err(ArbiterError::Thread)?;
        let location = ArbiterUri::Etcd(uri.clone()).to_string();
        let member = |address: &super::uri::Address| {
            let member = Arc::new(Member {
                address: address.to_string(),
                credentials: uri.credentials.clone(),
                location: location.clone(),
                looked_at: format!("{}/vms", uri.root),
                idle: Mutex::default(),
                token: Mutex::default(),
                health: watch::Sender::new(Err(Silence::Connecting)),
            });
            let looking = member.clone();
            io.handle().spawn(async move { looking.look().await });
            member
        };
        let members = uri.servers.iter().map(member).collect();
        let ensemble = Ensemble::new(io, members, location);
        ensemble.warn_of_loss();
        Ok(Etcd { ensemble, root: uri.root.clone() })
    }

    fn register(&self, vm: &str) -> Result<Register, ArbiterError> {
        check_vm(vm)?;
        let key = names::register_path(&self.root, vm);
        Ok(Register { key, vm: vm.into(), location: self.location() })
    }
}

impl Arbiter for Etcd {
    fn read(&self, vm: &str) -> Result<Option<Claim>, ArbiterError> {
        let register = self.register(vm)?;
        self.ensemble.ask(move |member| {
            let register = register.clone();
            async move { Ok(register.held(&member).await?.map(|(claim, _)| claim)) }
        })
    }

    fn compare_and_set(&self, vm: &str, expected: Option<u64>, claim: &Claim) -> Result<Verdict, ArbiterError> {
        check_claim(expected, claim)?;
        let (register, claim) = (self.register(vm)?, claim.clone());
        self.ensemble.ask(move |member| {
            let (register, claim) = (register.clone(), claim.clone());
            async move { register.compare_and_set(&member, expected, &claim).await }
        })
    }

    fn location(&self) -> String {
        self.ensemble.location().into()
    }
}

impl Register {
    fn get(&self) -> Value {
        // Linearizable, unless asked otherwise.
        json!({ "key": encoded(&self.key) })
    }

    fn found(&self, range: Range) -> Result<Held, Trouble> {
        let Some(KeyValue { mod_revision, value }) = range.kvs.into_iter().next() else { return Ok(None) };
        let bytes = BASE64.decode(value).map_err(|_| Silence::Unreadable)?;
        match from_text(&self.vm, &bytes) {
            Ok(claim) => Ok(Some((claim, mod_revision))),
            Err(flaw) => Err(self.corrupt(flaw)),
        }
    }

    fn corrupt(&self, flaw: Flaw) -> Trouble {
        let path = format!("{} ({})", self.key, self.location).into();
        Trouble::Final(ArbiterError::Corrupt { path, flaw })
    }

    async fn held(&self, member: &Member) -> Result<Held, Trouble> {
        self.found(member.request("/v3/kv/range", self.get()).await?)
    }

    async fn compare_and_set(&self, member: &Member, expected: Option<u64>, claim: &Claim) -> Result<Verdict, Trouble> {
        let mut held = self.held(member).await?;
        loop {
            match Standing::of(held.as_ref().map(|(claim, _)| claim), expected, claim) {
                Standing::Held => return Ok(Verdict::Won),
                Standing::Beaten => return Ok(Verdict::Lost(held.map(|(claim, _)| claim))),
                Standing::Next => {}
            }
            let mut unchanged = match &held {
                Some((_, revision)) => json!({ "target": "MOD", "mod_revision": revision }),
                None => json!({ "target": "CREATE", "create_revision": "0" }),
            };
            unchanged["key"] = encoded(&self.key).into();
            unchanged["result"] = "EQUAL".into();
            let put = json!({ "key": encoded(&self.key), "value": encoded(to_text(&self.vm, claim)) });
            let body = json!({
                "compare": [unchanged],
                "success": [{ "request_put": put }],
                "failure": [{ "request_range": self.get() }],
            });
            let txn: Txn = member.request("/v3/kv/txn", body).await?;
            if txn.succeeded {
                return Ok(Verdict::Won);
            }
            let range = txn.responses.into_iter().find_map(|response| response.response_range);
            held = self.found(range.ok_or(Silence::Unreadable)?)?;
        }
    }
}
