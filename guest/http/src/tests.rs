//! What a client gets to read, byte by byte.

use super::*;

/// Sends `request` in pieces of `piece` bytes, as a connection would: what was not taken comes again. The answers, and whether the
/// site ended the connection.
fn talk_in_pieces(request: &[u8], piece: usize) -> (String, bool) {
    let mut site = Site::new(|| String::from("alpha \"1\""));
    site.turn(Now { since_boot_ms: 1230 });
    let mut connection = site.open(80);
    let (mut output, mut waiting, mut said) = (Output::default(), Vec::new(), Vec::new());
    for piece in request.chunks(piece) {
        waiting.extend_from_slice(piece);
        loop {
            let taken = site.receive(&mut connection, &waiting, &mut output);
            waiting.drain(..taken);
            said.extend_from_slice(output.waiting());
            output.taken(output.waiting().len());
            if taken == 0 || output.is_closing() {
                break;
            }
        }
        if output.is_closing() {
            break;
        }
    }
    (String::from_utf8(said).unwrap(), output.is_closing())
}

/// The same, whole and byte by byte: no difference.
fn talk(request: &str) -> (String, bool) {
    let whole = talk_in_pieces(request.as_bytes(), usize::MAX);
    assert_eq!(whole, talk_in_pieces(request.as_bytes(), 1));
    whole
}

/// The status line of each answer, given that bodies have no line like it.
fn statuses(said: &str) -> Vec<&str> {
    said.split("HTTP/1.1 ").skip(1).map(|answer| answer.lines().next().unwrap()).collect()
}

#[test]
fn the_page_comes_with_its_length() {
    let (said, ended) = talk("GET / HTTP/1.1\r\nHost: guest\r\n\r\n");
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/html; charset=utf-8\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", PAGE.len())), "{head}");
    assert_eq!(body, PAGE);
    assert!(!ended);
}

#[test]
fn the_counter_counts_what_is_got() {
    let get = "GET /counter?x=1 HTTP/1.1\r\nHost: guest\r\n\r\n";
    let head = "HEAD /counter HTTP/1.1\r\nHost: guest\r\n\r\n";
    let (said, ended) = talk(&[get, head, get].concat());
    let figures = |n: u64| format!(r#"{{"counter":{n},"connections":1,"uptime_ms":1230,"host":"alpha \"1\""}}"#);
    let answers: Vec<&str> = said.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    assert_eq!(answers.len(), 3, "{said}");
    assert!(answers[0].ends_with(&format!("\r\n\r\n{}", figures(1))), "{said}");
    assert!(answers[1].ends_with("\r\n\r\n") && answers[1].contains("Content-Length: 67\r\n"), "{said}");
    assert!(answers[2].ends_with(&format!("\r\n\r\n{}", figures(2))), "{said}");
    assert!(answers.iter().all(|answer| answer.contains("Cache-Control: no-store\r\n")), "{said}");
    assert!(!ended);
}

#[test]
fn a_connection_stays_or_ends_as_the_client_says() {
    for (request, ends) in [
        ("GET / HTTP/1.1\r\nHost: g\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, CLOSE\r\n\r\n", true),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", false),
    ] {
        let (said, ended) = talk(request);
        assert_eq!(statuses(&said), ["200 OK"], "{request}");
        assert_eq!((ended, said.contains("Connection: close\r\n")), (ends, ends), "{request}");
    }
    // Nothing is answered behind the end.
    let (said, _) = talk("GET /a HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: g\r\n\r\n");
    assert_eq!(statuses(&said), ["404 Not Found"]);
}

#[test]
fn other_paths_and_methods_are_refused_and_the_connection_stays() {
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\nHost: g\r\n\r\n", "404 Not Found"),
        ("HEAD /nothing HTTP/1.1\r\nHost: g\r\n\r\n", "404 Not Found"),
        ("GET http://g/ HTTP/1.1\r\nHost: g\r\n\r\n", "404 Not Found"),
        ("DELETE / HTTP/1.1\r\nHost: g\r\n\r\n", "405 Method Not Allowed"),
        ("POST /counter HTTP/1.1\r\nHost: g\r\nContent-Length: 7\r\n\r\nGET /xx", "405 Method Not Allowed"),
    ] {
        let (said, ended) = talk(&format!("{request}GET / HTTP/1.1\r\nHost: g\r\n\r\n"));
        assert_eq!(statuses(&said), [status, "200 OK"], "{request}");
        assert_eq!(said.contains("Allow: GET, HEAD\r\n"), status.starts_with("405"), "{request}");
        assert!(!ended, "{request}");
    }
}

#[test]
fn what_is_no_request_ends_the_connection() {
    for request in [
        "hello\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: g\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nbad field\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nContent-Length: +1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: g\r\nContent-Length: 1048577\r\n\r\n",
        "\0\u{1}\u{2}",
    ] {
        let (said, ended) = talk(request);
        assert_eq!(statuses(&said), ["400 Bad Request"], "{request:?}");
        assert!(ended, "{request:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let fits = format!("GET / HTTP/1.1\r\nHost: g\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX - 100));
    assert_eq!(statuses(&talk(&fits).0), ["200 OK"]);
    let too_long = format!("GET / HTTP/1.1\r\nHost: g\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX));
    let endless = "GET /".to_owned() + &"x".repeat(3 * HEAD_MAX);
    let many = "GET / HTTP/1.1\r\nHost: g\r\n".to_owned() + &"X: x\r\n".repeat(FIELDS_MAX) + "\r\n";
    for request in [too_long, endless, many] {
        let (said, ended) = talk(&request);
        assert_eq!(statuses(&said), ["431 Request Header Fields Too Large"]);
        assert!(ended);
    }
}

/// A client that sends without reading does not make answers pile up.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let mut site = Site::new(String::new);
    let mut connection = site.open(80);
    let mut output = Output::default();
    let requests = "GET / HTTP/1.1\r\nHost: g\r\n\r\n".repeat(1000);
    let taken = site.receive(&mut connection, requests.as_bytes(), &mut output);
    assert!(taken < requests.len() && output.is_full());
    assert!(output.waiting().len() < Output::FULL + 2 * PAGE.len());
    assert_eq!(site.receive(&mut connection, &requests.as_bytes()[taken..], &mut output), 0);
}

#[test]
fn connections_are_counted_until_they_are_gone() {
    let mut site = Site::new(String::new);
    let (first, second) = (site.open(80), site.open(80));
    site.closed(first);
    let mut json = String::new();
    site.figures(&mut json);
    assert!(json.contains(r#""connections":1,"#), "{json}");
    site.closed(second);
}
