//! Who wants to hear of which change: the watches of the connections of this member.
//!
//! They are not replicated. A connection that is gone has none, and its client sets them again where it comes next. There are two
//! tables, as in ZooKeeper 3.8: one for a node's data and being, one for its children; a connection has at most one watch for a
//! path in each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::tree::acl::Acl;
use crate::tree::{Effect, path};
use crate::wire::request::{WatchMode, WatchType};

/// What has happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum EventKind {
    /// It is there.
    Created = 1,
    /// It is gone.
    Deleted = 2,
    /// It has other data.
    DataChanged = 3,
    /// It has other children.
    ChildrenChanged = 4,
}

/// A connection.
pub type Watcher = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Data,
    Child,
}

/// All watches.
#[derive(Debug, Default)]
pub struct Watches {
    data: BTreeMap<Arc<str>, BTreeMap<Watcher, WatchMode>>,
    child: BTreeMap<Arc<str>, BTreeMap<Watcher, WatchMode>>,
    watchers: BTreeMap<Watcher, BTreeSet<(Table, Arc<str>)>>,
    /// Recursive watches in both tables: where there are none, nobody above a node has to be looked for.
    recursive: usize,
}

impl Watches {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.watchers.values().map(BTreeSet::len).sum()
    }

    /// Watches a node's data and being for one event.
    pub fn watch_data(&mut self, watcher: Watcher, path: &str) {
        self.set(Table::Data, watcher, path.into(), WatchMode::Once);
    }

    /// Watches a node's children for one event.
    pub fn watch_children(&mut self, watcher: Watcher, path: &str) {
        self.set(Table::Child, watcher, path.into(), WatchMode::Once);
    }

    /// Watches everything about a node, or about all below it as well, until told otherwise.
    pub fn add(&mut self, watcher: Watcher, path: &str, mode: WatchMode) {
        let path: Arc<str> = path.into();
        self.set(Table::Data, watcher, path.clone(), mode);
        self.set(Table::Child, watcher, path, mode);
    }

    /// Whether `watcher` watches this path so.
    pub fn has(&self, watcher: Watcher, path: &str, kind: WatchType) -> bool {
        let in_table = |table: &BTreeMap<Arc<str>, BTreeMap<Watcher, WatchMode>>| {
            table.get(path).is_some_and(|watchers| watchers.contains_key(&watcher))
        };
        match kind {
            WatchType::Data => in_table(&self.data),
            WatchType::Children => in_table(&self.child),
            WatchType::Any => in_table(&self.data) || in_table(&self.child),
        }
    }

    /// Watches this path so no more; whether it was watched.
    pub fn remove(&mut self, watcher: Watcher, path: &str, kind: WatchType) -> bool {
        let tables: &[Table] = match kind {
            WatchType::Data => &[Table::Data],
            WatchType::Children => &[Table::Child],
            WatchType::Any => &[Table::Data, Table::Child],
        };
        let path: Arc<str> = path.into();
        // Both are to go: no short cut.
        tables.iter().filter(|table| self.unset(**table, watcher, &path)).count() > 0
    }

    /// Forgets a connection.
    pub fn forget(&mut self, watcher: Watcher) {
        for (table, path) in self.watchers.remove(&watcher).unwrap_or_default() {
            self.take(table, watcher, &path);
        }
    }

    /// What a change makes known to whom: `deliver` is called for each event, in order, with the ACL that says who may hear of it.
    pub fn fire(&mut self, effect: &Effect, mut deliver: impl FnMut(Watcher, EventKind, &Arc<str>, &Acl)) {
        let parent_of = |path: &Arc<str>| path::parent(path).map(Arc::<str>::from);
        match effect {
            Effect::Created { path, acl, parent_acl } => {
                for watcher in self.trigger(Table::Data, path, EventKind::Created) {
                    deliver(watcher, EventKind::Created, path, acl);
                }
                self.fire_children(parent_of(path), parent_acl, &mut deliver);
            }
            Effect::Deleted { path, acl, parent_acl } => {
                let told = self.trigger(Table::Data, path, EventKind::Deleted);
                let also = self.trigger(Table::Child, path, EventKind::Deleted);
                for watcher in told.iter().chain(also.difference(&told)) {
                    deliver(*watcher, EventKind::Deleted, path, acl);
                }
                self.fire_children(parent_of(path), parent_acl, &mut deliver);
            }
            Effect::DataChanged { path, acl } => {
                for watcher in self.trigger(Table::Data, path, EventKind::DataChanged) {
                    deliver(watcher, EventKind::DataChanged, path, acl);
                }
            }
        }
    }

    fn fire_children(
        &mut self,
        parent: Option<Arc<str>>,
        acl: &Acl,
        deliver: &mut impl FnMut(Watcher, EventKind, &Arc<str>, &Acl),
    ) {
        let Some(parent) = parent else { return };
        for watcher in self.trigger(Table::Child, &parent, EventKind::ChildrenChanged) {
            deliver(watcher, EventKind::ChildrenChanged, &parent, acl);
        }
    }

    /// Who is told of an event in a table. Watches for one event are used up.
    fn trigger(&mut self, table: Table, path: &Arc<str>, kind: EventKind) -> BTreeSet<Watcher> {
        let mut told = BTreeSet::new();
        let mut used_up = Vec::new();
        for (watcher, mode) in self.table(table).get(path).into_iter().flatten() {
            match mode {
                WatchMode::Recursive if kind == EventKind::ChildrenChanged => continue,
                WatchMode::Recursive | WatchMode::Persistent => {}
                WatchMode::Once => used_up.push(*watcher),
            }
            told.insert(*watcher);
        }
        for watcher in used_up {
            self.unset(table, watcher, path);
        }
        if self.recursive > 0 && kind != EventKind::ChildrenChanged {
            let mut above = path::parent(path);
            while let Some(path) = above {
                let watchers = self.table(table).get(path).into_iter().flatten();
                told.extend(watchers.filter(|(_, mode)| **mode == WatchMode::Recursive).map(|(watcher, _)| *watcher));
                above = path::parent(path);
            }
        }
        told
    }

    fn table(&mut self, table: Table) -> &mut BTreeMap<Arc<str>, BTreeMap<Watcher, WatchMode>> {
        match table {
            Table::Data => &mut self.data,
            Table::Child => &mut self.child,
        }
    }

    fn set(&mut self, table: Table, watcher: Watcher, path: Arc<str>, mode: WatchMode) {
        self.recursive += usize::from(mode == WatchMode::Recursive);
        let replaced = self.table(table).entry(path.clone()).or_default().insert(watcher, mode);
        self.recursive -= usize::from(replaced == Some(WatchMode::Recursive));
        self.watchers.entry(watcher).or_default().insert((table, path));
    }

    /// Removes a watch from its table and from its watcher's list.
    fn unset(&mut self, table: Table, watcher: Watcher, path: &Arc<str>) -> bool {
        if let Some(watched) = self.watchers.get_mut(&watcher) {
            watched.remove(&(table, path.clone()));
            if watched.is_empty() {
                self.watchers.remove(&watcher);
            }
        }
        self.take(table, watcher, path)
    }

    /// Removes a watch from its table.
    fn take(&mut self, table: Table, watcher: Watcher, path: &Arc<str>) -> bool {
        let watches = self.table(table);
        let Some(watchers) = watches.get_mut(path) else { return false };
        let taken = watchers.remove(&watcher);
        if watchers.is_empty() {
            watches.remove(path);
        }
        self.recursive -= usize::from(taken == Some(WatchMode::Recursive));
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::acl;

    fn fire(watches: &mut Watches, effect: Effect) -> Vec<(Watcher, EventKind, String)> {
        let mut events = Vec::new();
        watches.fire(&effect, |watcher, kind, path, _| events.push((watcher, kind, path.to_string())));
        events
    }

    fn created(path: &str) -> Effect {
        Effect::Created { path: path.into(), acl: acl::OPEN.clone(), parent_acl: acl::OPEN.clone() }
    }

    fn deleted(path: &str) -> Effect {
        Effect::Deleted { path: path.into(), acl: acl::OPEN.clone(), parent_acl: acl::OPEN.clone() }
    }

    fn changed(path: &str) -> Effect {
        Effect::DataChanged { path: path.into(), acl: acl::OPEN.clone() }
    }

    #[test]
    fn a_watch_is_used_up_by_one_event() {
        let mut watches = Watches::default();
        watches.watch_data(1, "/a");
        watches.watch_children(1, "/");
        watches.watch_children(2, "/");
        let events = fire(&mut watches, created("/a"));
        let children = |watcher| (watcher, EventKind::ChildrenChanged, "/".to_string());
        assert_eq!(events, [(1, EventKind::Created, "/a".into()), children(1), children(2)]);
        assert_eq!((fire(&mut watches, deleted("/a")).len(), watches.count()), (0, 0));
    }

    #[test]
    fn a_deletion_is_told_once_to_whoever_watches_data_and_children() {
        let mut watches = Watches::default();
        watches.watch_data(1, "/a");
        watches.watch_children(1, "/a");
        watches.watch_children(2, "/a");
        let events = fire(&mut watches, deleted("/a"));
        assert_eq!(events, [(1, EventKind::Deleted, "/a".into()), (2, EventKind::Deleted, "/a".into())]);
    }

    #[test]
    fn persistent_watches_stay_and_recursive_ones_see_everything_below() {
        let mut watches = Watches::default();
        watches.add(1, "/a", WatchMode::Persistent);
        watches.add(2, "/", WatchMode::Recursive);
        for _ in 0..2 {
            assert_eq!(fire(&mut watches, changed("/a")).iter().map(|event| event.0).collect::<Vec<_>>(), [1, 2]);
        }
        assert_eq!(
            fire(&mut watches, created("/a/b")),
            [(2, EventKind::Created, "/a/b".into()), (1, EventKind::ChildrenChanged, "/a".into())]
        );
        assert_eq!(fire(&mut watches, deleted("/a/b")).len(), 2);
        assert!(watches.remove(2, "/", WatchType::Any) && !watches.remove(2, "/", WatchType::Any));
        assert_eq!((fire(&mut watches, changed("/x")).len(), watches.recursive), (0, 0));
    }

    #[test]
    fn another_watch_for_the_same_path_takes_the_place_of_the_first() {
        let mut watches = Watches::default();
        watches.add(1, "/a", WatchMode::Persistent);
        watches.watch_data(1, "/a");
        assert_eq!((fire(&mut watches, changed("/a")).len(), fire(&mut watches, changed("/a")).len()), (1, 0));
        assert!(watches.has(1, "/a", WatchType::Children) && !watches.has(1, "/a", WatchType::Data));
        watches.forget(1);
        assert_eq!((watches.count(), watches.child.len()), (0, 0));
    }
}
