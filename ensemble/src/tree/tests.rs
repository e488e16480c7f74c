//! The state machine by itself: what holds for every sequence of changes.

use bytes::BytesMut;
use proptest::prelude::*;

use super::batch::{Applied, Observer};
use super::snapshot::SnapshotError;
use super::*;
use crate::log::proposal::{Batch, Group, Origin, Proposal, begin_batch};
use crate::member::MemberId;
use crate::tree::acl::Ids;
use crate::wire::code::Code;
use crate::wire::jute::Write;
use crate::wire::request::op;
use crate::wire::stat::write_acl;

/// What was observed, in order.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    effects: Vec<Effect>,
    applied: Vec<(u64, i64, Applied)>,
    closed: Vec<i64>,
}

impl Observer for Seen {
    fn effects(&mut self, effects: &[Effect]) {
        self.effects.extend_from_slice(effects);
    }

    fn applied(&mut self, _: Origin, _: u64, number: u64, zxid: i64, applied: Applied) {
        self.applied.push((number, zxid, applied));
    }

    fn attached(&mut self, _: i64, _: i64) {}

    fn closed(&mut self, session: i64) {
        self.closed.push(session);
    }
}

const MEMBER: MemberId = MemberId { id: 1, incarnation: 7 };

fn batch(start: u64, first: u64, proposals: &[Vec<u8>]) -> Batch {
    let mut batch = begin_batch(1000);
    let group = Group { origin: MEMBER, start, first, count: proposals.len() as u32, proposals: &proposals.concat() };
    group.write(&mut batch);
    Batch(batch.freeze())
}

fn proposal(proposal: Proposal<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    proposal.write(&mut bytes);
    bytes.to_vec()
}

fn open() -> Vec<u8> {
    proposal(Proposal::Open { timeout_ms: 1000, password: [1; 16] })
}

/// A request of session 1, over its first connection.
fn request(kind: i32, body: &[u8]) -> Vec<u8> {
    proposal(Proposal::Request { session: 1, attached: 1, ids: Ids::default(), kind, body })
}

fn create(path: &str, flags: i32) -> (i32, Vec<u8>) {
    let mut body = Vec::new();
    body.string(path);
    body.buffer(b"data");
    write_acl(&acl::OPEN, &mut body);
    body.int(flags);
    (op::CREATE2, body)
}

fn delete(path: &str) -> (i32, Vec<u8>) {
    let mut body = Vec::new();
    body.string(path);
    body.int(-1);
    (op::DELETE, body)
}

fn multi(operations: &[(i32, Vec<u8>)]) -> (i32, Vec<u8>) {
    let mut body = Vec::new();
    for (kind, record) in operations {
        body.int(*kind);
        body.bool(false);
        body.int(-1);
        body.extend_from_slice(record);
    }
    body.int(-1);
    body.bool(true);
    body.int(-1);
    (op::MULTI, body)
}

/// A tree with session 1, to which these requests were made.
fn after(requests: &[(i32, Vec<u8>)]) -> (Tree, Seen) {
    let (mut tree, mut seen) = (Tree::default(), Seen::default());
    let requests = requests.iter().map(|(kind, body)| request(*kind, body));
    let proposals: Vec<_> = std::iter::once(open()).chain(requests).collect();
    tree.apply_batch(1, &batch(1, 1, &proposals), &mut seen);
    (tree, seen)
}

fn errors(seen: &Seen) -> Vec<Option<Code>> {
    let replies = seen.applied.iter().skip(1);
    replies
        .map(|(_, _, applied)| if let Applied::Reply(reply) = applied { reply.as_ref().err().copied() } else { None })
        .collect()
}

#[test]
fn proposals_count_once_and_in_order() {
    let (mut tree, mut seen) = (Tree::default(), Seen::default());
    let (kind, body) = create("/a-", 2);
    let create = request(kind, &body);
    tree.apply_batch(1, &batch(1, 1, &[open(), create.clone()]), &mut seen);
    // Said again as a whole, in part, and with one that was lost on the way: nothing happens.
    tree.apply_batch(1, &batch(1, 1, &[open(), create.clone()]), &mut seen);
    tree.apply_batch(1, &batch(1, 2, std::slice::from_ref(&create)), &mut seen);
    tree.apply_batch(1, &batch(1, 4, std::slice::from_ref(&create)), &mut seen);
    assert_eq!(tree.node("/").unwrap().children.len(), 2);
    tree.apply_batch(1, &batch(1, 2, &[create.clone(), create.clone()]), &mut seen);
    assert_eq!(tree.node("/").unwrap().children.len(), 3);
    // A new start counts anew, and what an older one still has on the way is over.
    tree.apply_batch(1, &batch(2, 1, std::slice::from_ref(&create)), &mut seen);
    tree.apply_batch(1, &batch(1, 4, std::slice::from_ref(&create)), &mut seen);
    assert_eq!(tree.node("/").unwrap().children.len(), 4);
    assert_eq!(seen.applied.iter().map(|(number, ..)| *number).collect::<Vec<_>>(), [1, 2, 3, 1]);
}

#[test]
fn a_connection_that_was_replaced_changes_nothing_any_more() {
    let (mut tree, mut seen) = after(&[]);
    let attach = proposal(Proposal::Attach { session: 1, timeout_ms: 5, password: &[1; 16] });
    let wrong = proposal(Proposal::Attach { session: 1, timeout_ms: 5, password: &[2; 16] });
    let (kind, body) = create("/late", 0);
    tree.apply_batch(1, &batch(1, 2, &[attach, request(kind, &body), wrong]), &mut seen);
    assert_eq!(seen.applied[1].2, Applied::Attached(Ok(())));
    assert_eq!(seen.applied[2].2, Applied::Reply(Err(Code::SessionMoved)));
    assert_eq!(seen.applied[3].2, Applied::Attached(Err(Code::SessionExpired)));
    assert!(tree.node("/late").is_none());
}

#[test]
fn only_the_leader_that_heard_the_silence_ends_a_session() {
    let (mut tree, mut seen) = after(&[create("/e", 1)]);
    let expire = proposal(Proposal::Expire { session: 1, term: 3 });
    tree.apply_batch(4, &batch(1, 3, std::slice::from_ref(&expire)), &mut seen);
    assert!(tree.node("/e").is_some() && seen.closed.is_empty());
    tree.apply_batch(3, &batch(1, 4, &[expire]), &mut seen);
    assert!(tree.node("/e").is_none() && tree.session(1).is_none());
    assert_eq!(seen.closed, [1]);
}

#[test]
fn a_multi_that_fails_leaves_nothing() {
    let (before, _) = after(&[create("/a", 0)]);
    let (tree, seen) =
        after(&[create("/a", 0), multi(&[create("/b", 0), create("/a/c-", 3), delete("/none"), delete("/a")])]);
    let Applied::Reply(Ok(Outcome::Failed(codes))) = &seen.applied[2].2 else { panic!("{:?}", seen.applied) };
    assert_eq!(*codes, [0, 0, Code::NoNode.number(), Code::RuntimeInconsistency.number()]);
    assert_eq!(seen.effects.len(), 1, "of the first request only");
    assert_eq!(tree.zxid(), before.zxid() + 1);
    assert_eq!(Tree { zxid: before.zxid, origins: before.origins.clone(), ..tree }, before);
}

#[test]
fn sequential_names_count_all_that_were_ever_created() {
    let (tree, seen) =
        after(&[create("/p", 0), create("/p/x", 0), delete("/p/x"), create("/p/n-", 2), create("/p/", 2)]);
    assert_eq!(errors(&seen), [None; 5]);
    let names: Vec<_> = tree.node("/p").unwrap().children.iter().map(|name| name.to_string()).collect();
    assert_eq!(names, ["0000000002", "n-0000000001"]);
    assert_eq!(tree.node("/p").unwrap().stat().cversion, 4, "three created, one deleted");
}

#[test]
fn a_container_is_spent_when_its_last_child_is_gone() {
    let mut container = create("/c", 4);
    container.0 = op::CREATE_CONTAINER;
    let (tree, _) = after(&[container.clone()]);
    assert_eq!(tree.spent_containers().count(), 0, "it never had a child");
    let (mut tree, mut seen) = after(&[container, create("/c/x", 0), delete("/c/x")]);
    assert_eq!(tree.spent_containers().map(|path| path.to_string()).collect::<Vec<_>>(), ["/c"]);
    let remove = proposal(Proposal::RemoveContainer { path: "/c" });
    tree.apply_batch(1, &batch(1, 5, &[remove]), &mut seen);
    assert!(tree.node("/c").is_none() && tree.spent_containers().count() == 0);
}

fn operation() -> impl Strategy<Value = (i32, Vec<u8>)> {
    let path =
        prop_oneof![Just("/a"), Just("/a/b"), Just("/a/b/c"), Just("/d"), Just("/"), Just("/a//"), Just("/zookeeper")];
    let single = (path, 0..8i32, 0..4u8).prop_map(|(path, flags, what)| match what {
        0 => delete(path),
        1 => {
            let mut body = Vec::new();
            body.string(path);
            body.buffer(&[0; 5]);
            body.int(flags - 1);
            (op::SET_DATA, body)
        }
        2 => (op::CREATE_CONTAINER, create(path, flags).1),
        _ => create(path, flags),
    });
    prop_oneof![4 => single.clone(), 1 => proptest::collection::vec(single, 0..4).prop_map(|operations| multi(&operations))]
}

proptest! {
    /// Bytes, counts, ephemerals and containers are those of the nodes: a state that is made anew of its nodes is the same.
    #[test]
    fn a_state_is_its_nodes_and_sessions(operations in proptest::collection::vec(operation(), 0..40), close: bool) {
        let mut operations = operations;
        if close {
            operations.push((op::CLOSE_SESSION, Vec::new()));
        }
        let (tree, _) = after(&operations);
        let bytes = tree.encode();
        let again = Tree::decode(&bytes).unwrap();
        prop_assert_eq!(&again, &tree);
        prop_assert_eq!(again.encode(), bytes);
        prop_assert_eq!(tree.count_below("/") + 1, tree.node_count());
        let below = |path: &str| tree.nodes.keys().filter(|key| key.starts_with(&format!("{path}/"))).count();
        prop_assert_eq!(tree.count_below("/a"), below("/a"));
        if close {
            prop_assert_eq!(tree.ephemeral_count(), 0);
        }
    }

    #[test]
    fn any_bytes_are_a_state_or_an_error(cut in 0usize..400, flip in 0usize..400) {
        let (tree, _) = after(&[create("/a", 0), create("/a/b", 1)]);
        let mut bytes = tree.encode();
        let cut = cut.min(bytes.len() - 1);
        prop_assert!(Tree::decode(&bytes[..cut]).is_err());
        let length = bytes.len();
        bytes[flip % length] ^= 0x40;
        let _ = Tree::decode(&bytes);
        bytes[flip % length] ^= 0x40;
        bytes.push(0);
        prop_assert_eq!(Tree::decode(&bytes).unwrap_err(), SnapshotError::Trailing);
    }
}
