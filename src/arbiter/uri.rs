//! Where an arbiter is: what `--arbiter` takes.
//!
//! | form | arbiter |
//! | --- | --- |
//! | `DIR`, `file:///DIR` | register files in a directory on storage that both hosts reach |
//! | `zk://[USER:PASSWORD@]HOST[:2181],…[/PATH]` | an ensemble that speaks ZooKeeper's protocol |
//! | `etcd://[USER:PASSWORD@]HOST[:2379],…[/PREFIX]` | an etcd cluster |
//!
//! What a URI cannot hold as it is (in a directory, a user, a password) is percent-escaped.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The path under which an ensemble keeps what is lockstep's, where the URI names none.
pub const DEFAULT_ROOT: &str = "/lockstep";

/// The most servers that a URI may name: more than any ensemble has.
pub const MAX_SERVERS: usize = 15;

/// The most bytes of a URI.
pub const MAX_BYTES: usize = 4096;

/// An arbiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterUri {
    /// Registers in this directory.
    File(PathBuf),
    /// A ZooKeeper ensemble.
    ZooKeeper(EnsembleUri),
    /// An etcd cluster.
    Etcd(EnsembleUri),
}

/// The servers of an ensemble, and where on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsembleUri {
    /// At least one, no two the same.
    pub servers: Vec<Address>,
    /// Who asks.
    pub credentials: Option<Credentials>,
    /// An absolute path without a `/` at its end; empty for the root of the tree itself.
    pub root: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name or address; a version 6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A user and its password. The password is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Not empty, without `:`.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What is wrong with a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// There is none.
    #[error("it is empty: name a directory, or servers (zk://HOST,HOST,HOST or etcd://HOST,HOST,HOST)")]
    Empty,
    /// It is far too long.
    #[error("it is longer than {MAX_BYTES} bytes")]
    Long,
    /// A control character, a zero byte for example.
    #[error("it has a control character in it")]
    Control,
    /// Another kind of URI.
    #[error("there is no arbiter `{0}://`: write a directory, file:///DIR, zk://HOST,… or etcd://HOST,…")]
    Scheme(String),
    /// `zk:host`.
    #[error("`//` must follow `{0}:`")]
    Slashes(String),
    /// `file://shared/dir`.
    #[error("`{0}` would be a host: a file URI has three slashes, file:///DIR")]
    FileHost(String),
    /// An escape that is none.
    #[error("`{0}` cannot be unescaped: `%` must be followed by two hexadecimal digits, and the result be UTF-8")]
    Escape(String),
    /// No server between two commas, or none at all.
    #[error("a server is missing: write HOST,HOST,HOST")]
    NoServer,
    /// Not the name of a host.
    #[error("`{0}` is no host: write HOST, HOST:PORT or [IPV6]:PORT")]
    Host(String),
    /// Not a port.
    #[error("the port of `{0}` is not a number from 1 to 65535")]
    Port(String),
    /// The same server twice: it has one vote.
    #[error("{0} is named twice")]
    Twice(String),
    /// More than any ensemble has.
    #[error("more than {MAX_SERVERS} servers")]
    TooMany,
    /// Not USER:PASSWORD.
    #[error("before the `@` stand USER:PASSWORD, both percent-escaped where they have `:`, `@`, `/` or `%` in them")]
    Credentials,
    /// Not an absolute path of a tree.
    #[error("`{path}` is no path: {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `?…` or `#…`.
    #[error("`{0}`: options in the URI are not known")]
    Extra(String),
}

impl FromStr for ArbiterUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.is_empty() {
            return Err(UriError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(UriError::Long);
        }
        if text.chars().any(char::is_control) {
            return Err(UriError::Control);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text.split_once(':') {
                Some((scheme @ ("file" | "zk" | "etcd"), _)) => Err(UriError::Slashes(scheme.into())),
                _ => Ok(ArbiterUri::File(text.into())),
            };
        };
        match scheme {
            "file" => directory(rest).map(ArbiterUri::File),
            "zk" => ensemble(rest, 2181).map(ArbiterUri::ZooKeeper),
            "etcd" => ensemble(rest, 2379).map(ArbiterUri::Etcd),
            // A directory whose name has `://` in it is still a directory, if it is named as one.
            _ if scheme.contains('/') || scheme.starts_with('.') => Ok(ArbiterUri::File(text.into())),
            _ => Err(UriError::Scheme(scheme.into())),
        }
    }
}

fn directory(rest: &str) -> Result<PathBuf, UriError> {
    match rest.split('/').next() {
        Some("") if !rest.is_empty() => Ok(unescape(rest)?.into()),
        Some("") | None => Err(UriError::Empty),
        Some(host) => Err(UriError::FileHost(host.into())),
    }
}

fn ensemble(rest: &str, default_port: u16) -> Result<EnsembleUri, UriError> {
    if let Some(at) = rest.find(['?', '#']) {
        return Err(UriError::Extra(rest[at..].into()));
    }
    let (authority, path) = match rest.find('/') {
        // A password with a `/` in it, and no part of it may be shown as a host.
        Some(at) if rest[at..].contains('@') => return Err(UriError::Credentials),
        Some(at) => (&rest[..at], &rest[at..]),
        None => (rest, DEFAULT_ROOT),
    };
    let (credentials, servers) = match authority.rsplit_once('@') {
        Some((credentials, servers)) => (Some(parse_credentials(credentials)?), servers),
        None => (None, authority),
    };
    let mut parsed: Vec<Address> = Vec::new();
    for server in servers.split(',') {
        let server = address(server, default_port)?;
        if parsed.contains(&server) {
            return Err(UriError::Twice(server.to_string()));
        }
        if parsed.len() == MAX_SERVERS {
            return Err(UriError::TooMany);
        }
        parsed.push(server);
    }
    Ok(EnsembleUri { servers: parsed, credentials, root: root(path)? })
}

fn parse_credentials(text: &str) -> Result<Credentials, UriError> {
    let (user, password) = text.split_once(':').ok_or(UriError::Credentials)?;
    if password.contains([':', '@']) {
        return Err(UriError::Credentials);
    }
    // What cannot be unescaped is not shown: it may be a password.
    let unescape = |text| unescape(text).map_err(|_| UriError::Credentials);
    let credentials = Credentials { user: unescape(user)?, password: unescape(password)? };
    if credentials.user.is_empty() || credentials.user.contains(':') || credentials.password.is_empty() {
        return Err(UriError::Credentials);
    }
    Ok(credentials)
}

fn address(text: &str, default_port: u16) -> Result<Address, UriError> {
    if text.is_empty() {
        return Err(UriError::NoServer);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| UriError::Host(text.into()))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(UriError::Host(text.into()));
            }
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err(UriError::Host(text.into())),
            }
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if host.is_empty() || !host.chars().all(fits) {
                return Err(UriError::Host(text.into()));
            }
            (host, port)
        }
    };
    let port = match port {
        None => default_port,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(UriError::Port(text.into())),
        },
    };
    Ok(Address { host: host.into(), port })
}

/// Checks a path, by the rules of ZooKeeper's and no more freedom than that.
fn root(path: &str) -> Result<String, UriError> {
    if path == "/" {
        return Ok(String::new());
    }
    let wrong = |why| UriError::Path { path: path.into(), why };
    for part in path[1..].split('/') {
        match part {
            "" => return Err(wrong("a `/` at its end, or two in a row")),
            "." | ".." => return Err(wrong("`.` and `..` mean nothing there")),
            _ if !part.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err(wrong("only visible ASCII characters"));
            }
            _ => {}
        }
    }
    if path == "/zookeeper" || path.starts_with("/zookeeper/") {
        return Err(wrong("`/zookeeper` is the servers' own"));
    }
    Ok(path.into())
}

fn unescape(text: &str) -> Result<String, UriError> {
    let wrong = || UriError::Escape(text.into());
    let bytes = text.as_bytes();
    let escapes_are_whole = bytes
        .iter()
        .enumerate()
        .filter(|&(_, &byte)| byte == b'%')
        .all(|(at, _)| bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
    if !escapes_are_whole {
        return Err(wrong());
    }
    let text = percent_decode_str(text).decode_utf8().map_err(|_| wrong())?;
    if text.chars().any(char::is_control) { Err(UriError::Control) } else { Ok(text.into_owned()) }
}

/// As a person would write it, without the password.
impl fmt::Display for ArbiterUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArbiterUri::File(directory) => write!(f, "{}", directory.display()),
            ArbiterUri::ZooKeeper(ensemble) => write!(f, "zk://{ensemble}"),
            ArbiterUri::Etcd(ensemble) => write!(f, "etcd://{ensemble}"),
        }
    }
}

impl ArbiterUri {
    /// The URI with its password, for a process that is to use the same arbiter. Not for people to see.
    pub fn with_password(&self) -> String {
        let (scheme, ensemble) = match self {
            ArbiterUri::File(_) => return self.to_string(),
            ArbiterUri::ZooKeeper(ensemble) => ("zk", ensemble),
            ArbiterUri::Etcd(ensemble) => ("etcd", ensemble),
        };
        let escaped = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        match &ensemble.credentials {
            Some(Credentials { user, password }) => {
                format!("{scheme}://{}:{}@{ensemble}", escaped(user), escaped(password))
            }
            None => format!("{scheme}://{ensemble}"),
        }
    }
}

impl fmt::Display for EnsembleUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            write!(f, "{}{server}", if index > 0 { "," } else { "" })?;
        }
        f.write_str(if self.root.is_empty() { "/" } else { &self.root })
    }
}

#[cfg(test)]
mod tests;
