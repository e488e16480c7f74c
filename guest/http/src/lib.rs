//! A small web site as a [`Service`]: HTTP/1.1 with keep-alive and pipelining, no I/O. A page with a counter that runs in the guest,
//! and the counter by itself for the page to ask for.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | the page |
//! | `GET /counter` | counts, and gives the figures as JSON |
//! | `HEAD` | the same without the body |
//! | other methods | 405 |
//! | other paths | 404 |
//! | what is no HTTP, or has no `Host`, or a body that cannot be skipped | 400, and the connection ends |
//! | a head beyond [`HEAD_MAX`] bytes or [`FIELDS_MAX`] fields | 431, and the connection ends |
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::string::String;
use core::fmt::Write;
use httparse::{Header, Request, Status};
use lockstep_service::{Now, Output, Service};

#[cfg(test)]
mod tests;

/// The longest request line and header fields together, in bytes.
pub const HEAD_MAX: usize = 8 << 10;
/// The most header fields of a request.
pub const FIELDS_MAX: usize = 64;
/// The longest body of a request that is skipped, in bytes.
const BODY_MAX: u64 = 1 << 20;

const PAGE: &str = include_str!("page.html");

/// The site. `host` names the host that the guest runs on at that moment.
pub struct Site<H> {
    host: H,
    now: Now,
    counter: u64,
    connections: u64,
}

/// What the site remembers of a connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// Bytes of a request's body that are still to be skipped.
    body: u64,
}

/// What an answer says of itself.
struct Answer<'a> {
    status: &'static str,
    kind: &'static str,
    /// Further fields, each with its line's end.
    fields: &'static str,
    body: &'a str,
}

impl<H: Fn() -> String> Site<H> {
    /// A site whose counter stands at 0.
    pub fn new(host: H) -> Self {
        Site { host, now: Now { since_boot_ms: 0 }, counter: 0, connections: 0 }
    }

    /// Answers a request that is well-formed.
    fn answer(&mut self, request: &Asked, output: &mut Output) {
        let path = request.target.split(['?', '#']).next().unwrap_or_default();
        let mut figures = String::new();
        let answer = match (request.method, path) {
            ("GET" | "HEAD", "/" | "/index.html") => {
                Answer { status: "200 OK", kind: "text/html; charset=utf-8", fields: "", body: PAGE }
            }
            ("GET" | "HEAD", "/counter") => {
                // Asking for the head only changes nothing.
                self.counter += u64::from(request.method == "GET");
                self.figures(&mut figures);
                let fields = "Cache-Control: no-store\r\n";
                Answer { status: "200 OK", kind: "application/json", fields, body: &figures }
            }
            ("GET" | "HEAD", _) => plain("404 Not Found", "", "no such page\n"),
            _ => plain("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "GET and HEAD only\n"),
        };
        say(&answer, request.method != "HEAD", request.stays, output);
    }

    fn figures(&self, json: &mut String) {
        let Site { counter, connections, .. } = self;
        let _ = write!(json, r#"{{"counter":{counter},"connections":{connections}"#);
        let _ = write!(json, r#","uptime_ms":{},"host":"#, self.now.since_boot_ms);
        quote(&(self.host)(), json);
        json.push('}');
    }
}

/// A short text about what went wrong.
fn plain(status: &'static str, fields: &'static str, body: &'static str) -> Answer<'static> {
    Answer { status, kind: "text/plain; charset=utf-8", fields, body }
}

/// Writes an answer. `stays`: more requests may follow on this connection.
fn say(answer: &Answer, with_body: bool, stays: bool, output: &mut Output) {
    let Answer { status, kind, fields, body } = answer;
    let connection = if stays { "" } else { "Connection: close\r\n" };
    let length = body.len();
    // `Output` takes everything.
    let _ = write!(output, "HTTP/1.1 {status}\r\nServer: lockstep\r\nContent-Type: {kind}\r\n");
    let _ = write!(output, "Content-Length: {length}\r\n{fields}{connection}\r\n");
    if with_body {
        output.write(body.as_bytes());
    }
    if !stays {
        output.close();
    }
}

/// A JSON string.
fn quote(text: &str, json: &mut String) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            '\0'..='\x1f' => drop(write!(json, "\\u{:04x}", u32::from(character))),
            _ => json.push(character),
        }
    }
    json.push('"');
}

impl<H: Fn() -> String> Service for Site<H> {
    type Connection = Connection;
    const INPUT_MAX: usize = 2 * HEAD_MAX;

    fn open(&mut self, _port: u16) -> Connection {
        self.connections += 1;
        Connection::default()
    }

    fn receive(&mut self, connection: &mut Connection, input: &[u8], output: &mut Output) -> usize {
        let mut taken = 0;
        while taken < input.len() && !output.is_full() && !output.is_closing() {
            let rest = &input[taken..];
            if connection.body > 0 {
                let skipped = connection.body.min(rest.len() as u64);
                connection.body -= skipped;
                taken += skipped as usize;
                continue;
            }
            match parse(rest) {
                Ok(None) if rest.len() < HEAD_MAX => break,
                Ok(None) => refuse(Refused::TooLong, output),
                Ok(Some((head_bytes, request))) => {
                    taken += head_bytes;
                    connection.body = request.body;
                    self.answer(&request, output);
                }
                Err(why) => refuse(why, output),
            }
        }
        taken
    }

    fn closed(&mut self, _connection: Connection) {
        self.connections -= 1;
    }

    fn turn(&mut self, now: Now) {
        self.now = now;
    }
}

/// A request that is well-formed.
#[derive(Debug)]
struct Asked<'a> {
    method: &'a str,
    target: &'a str,
    /// More requests may follow on this connection.
    stays: bool,
    /// Bytes of its body.
    body: u64,
}

/// Why there is no other answer than to end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    NoHttp,
    NoHost,
    Body,
    TooLong,
}

fn refuse(why: Refused, output: &mut Output) {
    let answer = match why {
        Refused::NoHttp => plain("400 Bad Request", "", "this is no HTTP/1 request\n"),
        Refused::NoHost => plain("400 Bad Request", "", "the request has no Host\n"),
        Refused::Body => plain("400 Bad Request", "", "the request has a body that cannot be skipped\n"),
        Refused::TooLong => plain("431 Request Header Fields Too Large", "", "the request is too long\n"),
    };
    say(&answer, true, false, output);
}

/// The request at the start of `input` and the bytes of its head; `None` if the end of the head has not come yet.
fn parse(input: &[u8]) -> Result<Option<(usize, Asked<'_>)>, Refused> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = Request::new(&mut fields);
    let head_bytes = match request.parse(input) {
        Ok(Status::Complete(bytes)) if bytes > HEAD_MAX => return Err(Refused::TooLong),
        Ok(Status::Complete(bytes)) => bytes,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLong),
        Err(_) => return Err(Refused::NoHttp),
    };
    let Request { method: Some(method), path: Some(target), version: Some(version), headers } = request else {
        return Err(Refused::NoHttp);
    };
    let headers: &[Header] = headers;
    let named = |name: &'static str| {
        headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    if version == 1 && named("Host").count() != 1 {
        return Err(Refused::NoHost);
    }
    let mut body = 0;
    if named("Transfer-Encoding").next().is_some() || named("Content-Length").count() > 1 {
        return Err(Refused::Body);
    }
    if let Some(length) = named("Content-Length").next() {
        let digits = core::str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        body =
            digits.and_then(|digits| digits.parse().ok()).filter(|&length| length <= BODY_MAX).ok_or(Refused::Body)?;
    }
    let says = |word: &str| {
        named("Connection")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|value| value.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    let stays = if version == 1 { !says("close") } else { says("keep-alive") };
    Ok(Some((head_bytes, Asked { method, target, stays, body })))
}
