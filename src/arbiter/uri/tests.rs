use super::*;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

fn parse(text: &str) -> Result<ArbiterUri, UriError> {
    text.parse()
}

fn zookeeper(text: &str) -> EnsembleUri {
    match parse(text).expect(text) {
        ArbiterUri::ZooKeeper(ensemble) => ensemble,
        other => panic!("{text} is {other:?}"),
    }
}

#[test]
fn directories() {
    for (text, directory) in [
        ("/shared/arbiter", "/shared/arbiter"),
        ("arbiter", "arbiter"),
        ("file:///shared/my%20dir", "/shared/my dir"),
        ("file:///", "/"),
        ("a:b", "a:b"),
        ("./zk://x", "./zk://x"),
        ("/100%", "/100%"),
    ] {
        assert_eq!(parse(text), Ok(ArbiterUri::File(directory.into())), "{text}");
    }
    assert_eq!(parse(""), Err(UriError::Empty));
    assert_eq!(parse("file://"), Err(UriError::Empty));
    assert_eq!(parse("file://shared/dir"), Err(UriError::FileHost("shared".into())));
    assert_eq!(parse("file:/shared"), Err(UriError::Slashes("file".into())));
    assert_eq!(parse("file:///a%2"), Err(UriError::Escape("/a%2".into())));
    assert_eq!(parse("file:///a%FF"), Err(UriError::Escape("/a%FF".into())));
    assert_eq!(parse("file:///a%00"), Err(UriError::Control));
    assert_eq!(parse("a\nb"), Err(UriError::Control));
}

#[test]
fn ensembles() {
    let ensemble = zookeeper("zk://a,b:2182,[fd00::1],[::1]:9");
    let shown: Vec<String> = ensemble.servers.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["a:2181", "b:2182", "[fd00::1]:2181", "[::1]:9"]);
    assert_eq!((ensemble.root.as_str(), ensemble.credentials), ("/lockstep", None));

    assert_eq!(zookeeper("zk://user:p%40s%3As%2F@a/x/y").root, "/x/y");
    let credentials = zookeeper("zk://user:p%40s%3As%2F@a").credentials.expect("credentials");
    assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("user", "p@s:s/"));
    assert!(!format!("{credentials:?}").contains("p@s"), "the password is shown");
    assert_eq!(zookeeper("zk://a/").root, "");

    let Ok(ArbiterUri::Etcd(etcd)) = parse("etcd://a,b") else { panic!("an etcd") };
    assert_eq!(etcd.to_string(), "a:2379,b:2379/lockstep");
}

#[test]
fn what_is_wrong_has_a_name() {
    let path = |text: &str| match parse(text) {
        Err(UriError::Path { why, .. }) => why,
        other => panic!("{text} is {other:?}"),
    };
    assert_eq!(parse("http://a"), Err(UriError::Scheme("http".into())));
    assert_eq!(parse("zookeeper://a"), Err(UriError::Scheme("zookeeper".into())));
    assert_eq!(parse("zk:a,b"), Err(UriError::Slashes("zk".into())));
    for text in ["zk://", "zk:///path", "zk://a,", "zk://,a", "zk://a,,b", "zk://u:p@", "etcd://"] {
        assert_eq!(parse(text), Err(UriError::NoServer), "{text}");
    }
    for text in ["zk://a b", "zk://[::1", "zk://[a]", "zk://[::1]x", "zk://:1", "zk://ä"] {
        assert!(matches!(parse(text), Err(UriError::Host(_))), "{text}");
    }
    for text in ["zk://a:", "zk://a:0", "zk://a:65536", "zk://a:x", "zk://::1", "zk://[::1]:"] {
        assert!(matches!(parse(text), Err(UriError::Port(_) | UriError::Host(_))), "{text}: {:?}", parse(text));
    }
    assert_eq!(parse("zk://a,b,a:2181"), Err(UriError::Twice("a:2181".into())));
    assert_eq!(
        parse(&format!("zk://{}", (0..16).map(|n| format!("h{n}")).collect::<Vec<_>>().join(","))),
        Err(UriError::TooMany)
    );
    for text in [
        "zk://user@a",
        "zk://:p@a",
        "zk://u:@a",
        "zk://u:p:q@a",
        "zk://u:p@q@a",
        "zk://u:%@a",
        "zk://a%3Ab:c@d",
        "zk://u:p/w@a",
        "zk://a/b@c",
    ] {
        assert_eq!(parse(text), Err(UriError::Credentials), "{text}");
    }
    assert!(path("zk://a//x").contains("two in a row") && path("zk://a/x/").contains("at its end"));
    assert!(path("zk://a/x/..").contains("mean nothing") && path("zk://a/ü").contains("ASCII"));
    assert!(path("zk://a/zookeeper/x").contains("own"));
    assert_eq!(zookeeper("zk://a/zookeepers").root, "/zookeepers");
    assert_eq!(parse("zk://a/x?tls=1"), Err(UriError::Extra("?tls=1".into())));
    assert_eq!(parse(&"x".repeat(5000)), Err(UriError::Long));
}

proptest! {
    #[test]
    fn any_text_is_a_uri_or_a_named_error(text in "\\PC{0,80}|(zk|etcd|file)(://|:)[a-c:@,/%\\[\\]?#.0-9]{0,30}") {
        match parse(&text) {
            Ok(uri) => {
                // What is shown is the same arbiter, but for who asks.
                let again = parse(&uri.to_string());
                match (uri, again) {
                    (ArbiterUri::File(one), Ok(ArbiterUri::File(other))) => prop_assert_eq!(one, other),
                    // A directory out of a file URI may look like anything.
                    (ArbiterUri::File(_), _) => prop_assert!(text.starts_with("file://")),
                    (ArbiterUri::ZooKeeper(one), Ok(ArbiterUri::ZooKeeper(other)))
                    | (ArbiterUri::Etcd(one), Ok(ArbiterUri::Etcd(other))) => {
                        prop_assert_eq!((one.servers, one.root), (other.servers, other.root));
                    }
                    (one, other) => prop_assert!(false, "{:?} became {:?}", one, other),
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn what_is_written_is_what_is_read(
        hosts in proptest::collection::btree_set("[a-z0-9-]{1,8}", 1..8),
        port in proptest::option::of(1u16..),
        credentials in proptest::option::of(("[^:\\p{C}]{1,8}", "\\PC{1,8}")),
        parts in proptest::collection::vec("[a-z0-9_-]{1,6}", 0..3),
        etcd: bool,
    ) {
        let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let user = credentials.as_ref().map(|(user, password)| format!("{}:{}@", escape(user), escape(password)));
        let port_text = port.map(|port| format!(":{port}")).unwrap_or_default();
        let servers: Vec<String> = hosts.iter().map(|host| format!("{host}{port_text}")).collect();
        let path: String = parts.iter().map(|part| format!("/{part}")).collect();
        let scheme = if etcd { "etcd" } else { "zk" };
        let uri = parse(&format!("{scheme}://{}{}{path}", user.unwrap_or_default(), servers.join(",")));
        prop_assume!(!path.starts_with("/zookeeper"));
        let expected = EnsembleUri {
            servers: hosts.iter().map(|host| Address { host: host.clone(), port: port.unwrap_or(if etcd { 2379 } else { 2181 }) }).collect(),
            credentials: credentials.map(|(user, password)| Credentials { user, password }),
            root: if path.is_empty() { DEFAULT_ROOT.into() } else { path },
        };
        let expected = if etcd { ArbiterUri::Etcd(expected) } else { ArbiterUri::ZooKeeper(expected) };
        prop_assert_eq!(parse(&expected.with_password()), Ok(expected.clone()));
        prop_assert_eq!(uri, Ok(expected));
    }
}
