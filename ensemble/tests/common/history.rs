//! What clients asked and were told, and whether one order of events explains it.
//!
//! The service numbers its changes: an answer carries the zxid of the change, a node's stat that of its last one. So the order is
//! known, and what has to be shown is that it fits to what clients saw of time: a change that was acknowledged before something was
//! asked for comes before that in the order; a synced read shows every change that was acknowledged before it was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To set a node to this value, which nobody else sets.
    Set { node: usize, value: u64 },
    /// What a node is, after a sync.
    SyncedGet { node: usize },
    /// What a node is, as far as the member knows.
    Get { node: usize },
}

/// What was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The change has this number.
    Set { zxid: i64 },
    /// The node has this value, which the change of this number has set.
    Value { value: u64, mzxid: i64 },
}

/// A call of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose.
    pub client: usize,
    /// What was asked for.
    pub asked: Asked,
    /// When: the number of the event.
    pub from: u64,
    /// What was told, and when. `None`: the connection was lost; it may have been carried out or not.
    pub told: Option<(u64, Told)>,
}

/// All calls.
#[derive(Clone, Debug, Default)]
pub struct History {
    calls: Arc<Mutex<(u64, Vec<Call>)>>,
}

impl History {
    /// Something is asked for; its number.
    pub fn ask(&self, client: usize, asked: Asked) -> usize {
        let (clock, calls) = &mut *self.calls.lock().unwrap();
        *clock += 1;
        calls.push(Call { client, asked, from: *clock, told: None });
        calls.len() - 1
    }

    /// The answer.
    pub fn tell(&self, call: usize, told: Told) {
        let (clock, calls) = &mut *self.calls.lock().unwrap();
        *clock += 1;
        calls[call].told = Some((*clock, told));
    }

    /// Calls that were answered.
    pub fn answered(&self) -> usize {
        self.calls.lock().unwrap().1.iter().filter(|call| call.told.is_some()).count()
    }

    /// Whether one order explains everything; what does not fit otherwise.
    pub fn check(&self) -> Result<(), String> {
        let calls = self.calls.lock().unwrap().1.clone();
        let order = Order::of(&calls)?;
        order.check_changes(&calls)?;
        order.check_synced_reads(&calls)?;
        order.check_clients(&calls)
    }
}

/// The changes that are known to have been made: zxid, and which call.
struct Order {
    of_value: BTreeMap<u64, usize>,
    zxid_of: BTreeMap<u64, i64>,
}

impl Order {
    fn of(calls: &[Call]) -> Result<Self, String> {
        let mut order = Order { of_value: BTreeMap::new(), zxid_of: BTreeMap::new() };
        for (index, call) in calls.iter().enumerate() {
            if let Asked::Set { value, .. } = call.asked {
                order.of_value.insert(value, index);
            }
        }
        let mut value_at: BTreeMap<(usize, i64), u64> = BTreeMap::new();
        let mut note = |order: &mut Order, node, value, zxid, call: &Call| match order.zxid_of.insert(value, zxid) {
            Some(other) if other != zxid => Err(format!("value {value} was set at {other} and at {zxid}: {call:?}")),
            _ => match value_at.insert((node, zxid), value) {
                Some(other) if other != value => Err(format!("{other} and {value} at {zxid}: {call:?}")),
                _ => Ok(()),
            },
        };
        for call in calls {
            match (&call.asked, &call.told) {
                (Asked::Set { node, value }, Some((_, Told::Set { zxid }))) => {
                    note(&mut order, *node, *value, *zxid, call)?
                }
                (Asked::SyncedGet { node } | Asked::Get { node }, Some((at, Told::Value { value, mzxid }))) => {
                    if *value == 0 {
                        continue;
                    }
                    note(&mut order, *node, *value, *mzxid, call)?;
                    let set = order.of_value.get(value).map(|index| &calls[*index]);
                    match set {
                        Some(set) if set.asked == (Asked::Set { node: *node, value: *value }) && set.from < *at => {}
                        _ => return Err(format!("a value that nobody had set: {call:?}")),
                    }
                }
                _ => {}
            }
        }
        Ok(order)
    }

    /// Changes are in the order of their numbers, as far as time says something of it.
    fn check_changes(&self, calls: &[Call]) -> Result<(), String> {
        // (time, +: acknowledged with this zxid, -: asked for and known to have this zxid)
        let mut events: Vec<(u64, bool, i64, &Call)> = Vec::new();
        for call in calls {
            let Asked::Set { value, .. } = call.asked else { continue };
            let Some(zxid) = self.zxid_of.get(&value) else { continue };
            events.push((call.from, false, *zxid, call));
            if let Some((at, _)) = call.told {
                events.push((at, true, *zxid, call));
            }
        }
        events.sort_by_key(|event| event.0);
        let mut newest = 0;
        for (_, acknowledged, zxid, call) in events {
            if acknowledged {
                newest = newest.max(zxid);
            } else if zxid <= newest {
                return Err(format!("asked for after {newest} was acknowledged, and carried out at {zxid}: {call:?}"));
            }
        }
        Ok(())
    }

    /// A synced read shows what came before anything that was acknowledged or seen, of whatever node, before it was asked for.
    fn check_synced_reads(&self, calls: &[Call]) -> Result<(), String> {
        let mut events: Vec<(u64, &Call)> = Vec::new();
        for call in calls {
            events.push((call.from, call));
            if let Some((at, _)) = call.told {
                events.push((at, call));
            }
        }
        events.sort_by_key(|event| event.0);
        let mut changes: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
        for (value, zxid) in &self.zxid_of {
            if let Some(Call { asked: Asked::Set { node, .. }, .. }) =
                self.of_value.get(value).map(|call| &calls[*call])
            {
                changes.entry(*node).or_default().insert(*zxid);
            }
        }
        let newest_up_to =
            |node, zxid| changes.get(&node).and_then(|of_node| of_node.range(..=zxid).next_back()).copied();
        let mut known = 0;
        let mut known_at: BTreeMap<u64, i64> = BTreeMap::new();
        for (at, call) in events {
            if at == call.from {
                known_at.insert(at, known);
                continue;
            }
            match (&call.asked, &call.told) {
                (Asked::SyncedGet { node }, Some((_, Told::Value { mzxid, .. }))) => {
                    let wanted = newest_up_to(*node, known_at[&call.from]).unwrap_or(0);
                    if *mzxid < wanted {
                        return Err(format!("{wanted} came before what was known: {call:?}"));
                    }
                    known = known.max(*mzxid);
                }
                (Asked::Set { .. }, Some((_, Told::Set { zxid }))) => known = known.max(*zxid),
                _ => {}
            }
        }
        Ok(())
    }

    /// For each client: changes in the order in which it asked for them, those among them whose answer it never got; no read goes
    /// back, and each shows the client's own changes before it.
    fn check_clients(&self, calls: &[Call]) -> Result<(), String> {
        let clients: BTreeSet<usize> = calls.iter().map(|call| call.client).collect();
        for client in clients {
            let mut changed = 0;
            let mut seen: BTreeMap<usize, i64> = BTreeMap::new();
            for call in calls.iter().filter(|call| call.client == client) {
                match (&call.asked, &call.told) {
                    (Asked::Set { node, value }, told) => {
                        let Some(zxid) = self.zxid_of.get(value).copied() else { continue };
                        if zxid <= changed {
                            return Err(format!("out of the client's order, {zxid} after {changed}: {call:?}"));
                        }
                        changed = zxid;
                        if told.is_some() {
                            seen.insert(*node, zxid);
                        }
                    }
                    (Asked::SyncedGet { node } | Asked::Get { node }, Some((_, Told::Value { mzxid, .. }))) => {
                        let before = seen.entry(*node).or_insert(0);
                        if mzxid < before {
                            return Err(format!("the client had seen {before} before: {call:?}"));
                        }
                        *before = *mzxid;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client, what it asked and when, and when it was told what.
    type Line = (usize, Asked, u64, Option<(u64, Told)>);

    fn history(calls: &[Line]) -> Result<(), String> {
        let history = History::default();
        let made = calls.iter().map(|(client, asked, from, told)| Call {
            client: *client,
            asked: asked.clone(),
            from: *from,
            told: told.clone(),
        });
        history.calls.lock().unwrap().1 = made.collect();
        history.check()
    }

    fn set(value: u64) -> Asked {
        Asked::Set { node: 0, value }
    }

    fn value(at: u64, value: u64, mzxid: i64) -> Option<(u64, Told)> {
        Some((at, Told::Value { value, mzxid }))
    }

    fn done(at: u64, zxid: i64) -> Option<(u64, Told)> {
        Some((at, Told::Set { zxid }))
    }

    const SYNCED: Asked = Asked::SyncedGet { node: 0 };
    const LOCAL: Asked = Asked::Get { node: 0 };

    #[test]
    fn what_fits_is_found_to_fit() {
        history(&[
            (1, set(1), 1, done(4, 10)),
            (2, set(2), 2, None),
            (3, SYNCED, 3, value(6, 2, 11)),
            (3, SYNCED, 7, value(8, 2, 11)),
            (1, LOCAL, 9, value(10, 1, 10)),
        ])
        .unwrap();
    }

    #[test]
    fn what_does_not_fit_is_found() {
        for (what, calls) in [
            ("lost", vec![(1, set(1), 1, done(2, 10)), (2, SYNCED, 3, value(4, 0, 0))]),
            ("order", vec![(1, set(1), 1, done(2, 10)), (2, set(2), 3, done(4, 9))]),
            ("twice", vec![(1, set(1), 1, done(2, 10)), (2, LOCAL, 3, value(4, 1, 11))]),
            ("from nowhere", vec![(2, LOCAL, 3, value(4, 7, 11))]),
            ("from the future", vec![(2, LOCAL, 1, value(2, 7, 11)), (1, set(7), 3, done(4, 11))]),
            ("back", vec![(1, set(1), 1, None), (2, LOCAL, 2, value(3, 1, 5)), (2, LOCAL, 4, value(5, 0, 0))]),
            ("own", vec![(1, set(1), 1, done(2, 10)), (1, LOCAL, 3, value(4, 0, 0))]),
            ("late", vec![(1, set(1), 1, None), (1, set(2), 2, done(3, 10)), (2, LOCAL, 4, value(5, 1, 12))]),
            (
                "across nodes",
                vec![
                    (1, Asked::Set { node: 1, value: 5 }, 1, None),
                    (2, set(6), 2, done(3, 11)),
                    (3, Asked::SyncedGet { node: 1 }, 4, value(5, 0, 0)),
                    (3, Asked::Get { node: 1 }, 6, value(7, 5, 10)),
                ],
            ),
            ("synced back", vec![(1, set(1), 1, None), (2, SYNCED, 2, value(3, 1, 5)), (3, SYNCED, 4, value(5, 0, 0))]),
        ] {
            assert!(history(&calls).is_err(), "{what}");
        }
    }
}
