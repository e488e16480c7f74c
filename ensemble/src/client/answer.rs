//! Answers to questions, out of this member's own state.

use bytes::BytesMut;

use crate::replica::mailbox::Mailbox;
use crate::replica::{Replica, State};
use crate::tree::Tree;
use crate::tree::acl::Ids;
use crate::watch::EventKind;
use crate::wire::code::Code;
use crate::wire::jute::Write;
use crate::wire::reply::{self, reply};
use crate::wire::request::{Query, Watched, op};

/// Who asks.
pub(super) struct Asker<'a> {
    pub replica: &'a Replica,
    pub mailbox: &'a Mailbox,
    pub session: i64,
    pub ids: Ids<'a>,
}

impl Asker<'_> {
    /// Appends the answer to `query`, the request `xid`. What is to be watched is watched from the very moment of the answer on.
    pub fn answer(&self, state: &State, xid: i32, query: &Query<'_>, out: &mut BytesMut) {
        let (tree, zxid, watcher) = (&state.tree, state.tree.zxid(), self.mailbox.watcher());
        match query {
            Query::Exists { path, watch } => {
                let exists = tree.exists(path);
                // Its creation can be waited for.
                if *watch && exists != Err(Code::BadArguments) {
                    self.replica.watches().watch_data(watcher, path);
                }
                reply(out, xid, zxid, exists.map(|stat| move |out: &mut BytesMut| stat.write(out)));
            }
            Query::GetData { path, watch } => {
                let node = tree.readable(path, self.ids);
                if *watch && node.is_ok() {
                    self.replica.watches().watch_data(watcher, path);
                }
                let record = node.map(|node| {
                    |out: &mut BytesMut| {
                        reply::data(out, node.data.as_deref());
                        node.stat().write(out);
                    }
                });
                reply(out, xid, zxid, record);
            }
            Query::GetChildren { path, watch, stat } => {
                let node = tree.readable(path, self.ids);
                if *watch && node.is_ok() {
                    self.replica.watches().watch_children(watcher, path);
                }
                let record = node.map(|node| {
                    |out: &mut BytesMut| {
                        reply::strings(out, node.children.len(), node.children.iter());
                        if *stat {
                            node.stat().write(out);
                        }
                    }
                });
                reply(out, xid, zxid, record);
            }
            Query::GetAcl { path } => {
                let acl = tree.acl(path, self.ids);
                reply(out, xid, zxid, acl.map(|(acl, stat)| move |out: &mut BytesMut| reply::acl(out, &acl, &stat)));
            }
            Query::CountBelow { path } => {
                let count = tree.count(path, self.ids);
                reply(out, xid, zxid, count.map(|count| move |out: &mut BytesMut| out.int(count as i32)));
            }
            Query::GetEphemerals { prefix } => {
                let paths = tree.ephemerals(self.session, *prefix);
                reply(out, xid, zxid, Ok(|out: &mut BytesMut| reply::strings(out, paths.len(), paths.iter())));
            }
            Query::Multi(queries) => {
                reply(out, xid, zxid, Ok(|out: &mut BytesMut| self.answer_multi(tree, queries, out)));
            }
            Query::AddWatch { path, mode } => {
                self.replica.watches().add(watcher, path, *mode);
                reply(out, xid, zxid, Ok(|out: &mut BytesMut| out.int(0)));
            }
            Query::RemoveWatches { path, kind } => {
                let removed = self.replica.watches().remove(watcher, path, *kind);
                reply::bare(out, xid, zxid, if removed { Ok(()) } else { Err(Code::NoWatcher) });
            }
            Query::CheckWatches { path, kind } => {
                let watched = self.replica.watches().has(watcher, path, *kind);
                reply::bare(out, xid, zxid, if watched { Ok(()) } else { Err(Code::NoWatcher) });
            }
            Query::SetWatches(watched) => {
                self.set_watches(tree, watched, out);
                reply::bare(out, xid, zxid, Ok(()));
            }
            Query::WhoAmI => {
                let ids = self.mailbox.ids();
                reply(out, xid, zxid, Ok(|out: &mut BytesMut| reply::identities(out, &ids)));
            }
        }
    }

    fn answer_multi(&self, tree: &Tree, queries: &[Query<'_>], out: &mut BytesMut) {
        for query in queries {
            let (Query::GetData { path, .. } | Query::GetChildren { path, .. }) = query else { continue };
            match (tree.readable(path, self.ids), query) {
                (Err(code), _) => reply::failed_operation(out, code.number()),
                (Ok(node), Query::GetData { .. }) => {
                    reply::multi_header(out, op::GET_DATA, false, 0);
                    reply::data(out, node.data.as_deref());
                    node.stat().write(out);
                }
                (Ok(node), _) => {
                    reply::multi_header(out, op::GET_CHILDREN, false, 0);
                    reply::strings(out, node.children.len(), node.children.iter());
                }
            }
        }
        reply::multi_end(out);
    }

    /// Watches what a client had watched before it came here. What has happened since is told at once.
    fn set_watches(&self, tree: &Tree, watched: &Watched<'_>, out: &mut BytesMut) {
        let watcher = self.mailbox.watcher();
        let mut watches = self.replica.watches();
        for path in &watched.data {
            match tree.asked(path) {
                Err(_) => reply::event(out, EventKind::Deleted, path),
                Ok(node) if node.mzxid > watched.since => reply::event(out, EventKind::DataChanged, path),
                Ok(_) => watches.watch_data(watcher, path),
            }
        }
        for path in &watched.exist {
            match tree.asked(path) {
                Ok(_) => reply::event(out, EventKind::Created, path),
                Err(_) => watches.watch_data(watcher, path),
            }
        }
        for path in &watched.child {
            match tree.asked(path) {
                Err(_) => reply::event(out, EventKind::Deleted, path),
                Ok(node) if node.pzxid > watched.since => reply::event(out, EventKind::ChildrenChanged, path),
                Ok(_) => watches.watch_children(watcher, path),
            }
        }
        for (paths, mode) in [
            (&watched.persistent, crate::wire::request::WatchMode::Persistent),
            (&watched.recursive, crate::wire::request::WatchMode::Recursive),
        ] {
            paths.iter().for_each(|path| watches.add(watcher, path, mode));
        }
    }
}
