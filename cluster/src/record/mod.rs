//! Where each domain and object was last seen, what of it is missing, and what an operator has confirmed.
//!
//! Who calls it: `map::Router`, for each announcement; `tree`, for what is removed and placed; `keeper`, which keeps it.
//! What it calls: portolan-record for the order of entries.
//! What it never does: I/O, or ask a node. That is for `keeper`.
//!
//! One entry for each domain and each object on each node: present, absent (the node announces it no longer, and nobody
//! said why), or removed (through a front end, moved to another node, confirmed, or absent for a day without being
//! in doubt). Absent entries that are too many are in doubt. Two front ends with the same entries have the same doubts.
//!
//! An absent entry is one nanosecond newer than the present one that it follows from, so that whatever else was
//! written since outweighs it: a removal through another front end that is heard of later.

pub mod keeper;

use std::collections::BTreeMap;

use portolan_proto::id::NodeId;
use portolan_proto::path;
pub use portolan_record::now_ns;
use portolan_record::{Entries, Entry, Key};

use crate::map::NodeHoldings;

/// Objects that must be missing at least before a share of them is in doubt.
const MISSING_MIN: usize = 5;
/// Absent entries count for this long: a node that is emptied slice by slice is compared with what it had a day ago.
const ABSENT_KEPT_NS: i64 = 24 * 3_600 * SECOND_NS;
/// What another front end has seen a moment ago may not have been announced here yet.
const YOUNG_NS: i64 = 10 * SECOND_NS;
const SECOND_NS: i64 = 1_000_000_000;

const HOLDS: u8 = b'o';
const CONFIRMED: u8 = b'c';
const HEARD: u8 = b'h';

const PRESENT: u8 = b'p';
const ABSENT: u8 = b'a';
const REMOVED: u8 = b'r';

/// What was said to be missing on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    Node,
    Domain,
}

impl Confirmed {
    pub fn name(self) -> &'static str {
        match self {
            Confirmed::Node => "node",
            Confirmed::Domain => "domain",
        }
    }
}

/// What of a node's domain is not believed to be gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainDoubt {
    /// The domain itself is announced no longer.
    pub whole: bool,
    /// So much of the node is missing that the node is to be confirmed, not the domain.
    pub of_node: bool,
    /// With the time since which each is missing, in nanoseconds since 1970.
    pub objects: BTreeMap<Box<[u8]>, i64>,
}

/// By domain.
pub type Doubts = BTreeMap<Box<[u8]>, DomainDoubt>;

/// Domains and objects that are in doubt.
pub fn count(doubts: &Doubts) -> usize {
    doubts.values().map(|doubt| usize::from(doubt.whole) + doubt.objects.len()).sum()
}

/// See the module.
#[derive(Debug, Default)]
pub struct Record {
    entries: Entries,
    nodes: BTreeMap<NodeId, Held>,
    /// What was written since it was taken.
    fresh: Vec<(Key, Entry)>,
}

/// What the entries of one node come to.
#[derive(Debug, Default)]
struct Held {
    /// Objects.
    present: usize,
    absent: usize,
    domains: BTreeMap<Box<[u8]>, usize>,
    missing: BTreeMap<Box<[u8]>, Missing>,
    /// Its doubts may be others.
    is_dirty: bool,
    /// Time of the newest entry that was not written for what the node announced, until [`Record::settle`] has compared the two.
    unsettled: Option<i64>,
}

#[derive(Debug, Default)]
struct Missing {
    whole: bool,
    objects: BTreeMap<Box<[u8]>, i64>,
}

/// Does another node announce a domain, or an object of it, now?
pub type Elsewhere<'a> = &'a dyn Fn(&[u8], Option<&[u8]>) -> bool;

/// A node, a domain, and an object of it or the domain itself.
type Holding<'a> = (NodeId, &'a [u8], Option<&'a [u8]>);

fn key(node: &NodeId, domain: &[u8], object: Option<&[u8]>) -> Vec<u8> {
    let mut key = prefix(node);
    key.extend(domain);
    key.push(0);
    key.extend(object.unwrap_or_default());
    key
}

fn prefix(node: &NodeId) -> Vec<u8> {
    [&[HOLDS, 0], node.as_str().as_bytes(), &[0]].concat()
}

/// The node, domain and object of a key; `None` for other keys. No name holds a NUL.
fn holding(key: &[u8]) -> Option<Holding<'_>> {
    let mut parts = key.strip_prefix(&[HOLDS, 0])?.splitn(3, |byte| *byte == 0);
    let node = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let (domain, object) = (parts.next()?, parts.next()?);
    path::check_component(domain).ok()?;
    Some((node, domain, Some(object).filter(|object| !object.is_empty())))
}

fn state(entry: &Entry) -> u8 {
    entry.value.first().copied().unwrap_or_default()
}

/// Since when an absent entry is missing.
fn missing_since(entry: &Entry) -> i64 {
    let bytes = entry.value.get(1..9).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(entry.at_ns, i64::from_be_bytes)
}

impl Record {
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Takes an entry in that somebody else has written; true where it is newer.
    pub fn merge(&mut self, key: &[u8], entry: &Entry) -> bool {
        if !portolan_record::is_sound(key, entry) || self.entries.get(key).is_some_and(|own| own >= entry) {
            return false;
        }
        self.write(key.into(), entry.clone());
        if let Some((node, _, _)) = holding(key) {
            self.unsettle(node, entry.at_ns);
        }
        true
    }

    fn unsettle(&mut self, node: NodeId, at_ns: i64) {
        let held = self.nodes.entry(node).or_default();
        held.unsettled = held.unsettled.max(Some(at_ns));
    }

    /// What was written since the last call.
    pub fn take_fresh(&mut self) -> Vec<(Key, Entry)> {
        std::mem::take(&mut self.fresh)
    }

    fn write(&mut self, key: Key, entry: Entry) {
        if let Some((node, domain, object)) = holding(&key) {
            let held = self.nodes.entry(node).or_default();
            if let Some(old) = self.entries.get(&key) {
                held.count(domain, object, old, false);
            }
            held.count(domain, object, &entry, true);
        }
        self.entries.insert(key.clone(), entry.clone());
        self.fresh.push((key, entry));
    }

    /// Writes the state of a holding, so that it outweighs what was there.
    fn set(&mut self, key: Vec<u8>, state: u8, now: i64) {
        let old = self.entries.get(&key[..]).map(|entry| entry.at_ns);
        let at_ns = old.map_or(now, |old| now.max(old + 1));
        let entry = Entry { at_ns, removed: state == REMOVED, value: [state].into() };
        self.write(key.into(), entry);
    }

    fn set_absent(&mut self, key: Vec<u8>, now: i64) {
        let Some(present) = self.entries.get(&key[..]) else { return };
        let value = [&[ABSENT][..], &now.to_be_bytes()].concat().into();
        let entry = Entry { at_ns: present.at_ns + 1, removed: false, value };
        self.write(key.into(), entry);
    }

    fn is(&self, key: &[u8], wanted: u8) -> bool {
        self.entries.get(key).is_some_and(|entry| state(entry) == wanted)
    }

    /// A node announces all that it holds. `elsewhere`: another node announces it.
    pub fn heard_whole(&mut self, node: &NodeId, held: &NodeHoldings, elsewhere: Elsewhere<'_>, now: i64) {
        // A confirmation holds for what a node lacks that was away then, and for no later loss.
        let heard = self.at(&[&[HEARD, 0], node.as_str().as_bytes()].concat());
        let confirmed = |name: &[u8], what| self.confirmed(what, name).is_some_and(|at| Some(at) > heard);
        let of_node = confirmed(node.as_str().as_bytes(), Confirmed::Node);
        let missing = self.missing(node, held, i64::MAX);
        let (meant, unexplained): (Vec<_>, Vec<_>) = missing.into_iter().partition(|key| {
            let domain = holding(key).map(|(_, domain, _)| domain).unwrap_or_default();
            of_node || confirmed(domain, Confirmed::Domain)
        });
        for key in meant {
            self.set(key, REMOVED, now);
        }
        self.lose(unexplained, elsewhere, now);
        for (domain, objects) in held.each() {
            self.seen(node, domain, None, now);
            for object in objects {
                self.seen(node, domain, Some(object), now);
            }
        }
        self.heard(node, now);
    }

    /// The node was there until now.
    pub fn heard(&mut self, node: &NodeId, now: i64) {
        let key = [&[HEARD, 0], node.as_str().as_bytes()].concat();
        self.set(key, PRESENT, now);
    }

    /// A node announces a domain or an object that it did not have.
    pub fn seen(&mut self, node: &NodeId, domain: &[u8], object: Option<&[u8]>, now: i64) {
        let key = key(node, domain, object);
        if !self.is(&key, PRESENT) && key.len() <= portolan_record::KEY_BYTES_MAX {
            self.set(key, PRESENT, now);
        }
        // It has moved here.
        let others = self.nodes.iter().filter(|(other, held)| *other != node && !held.missing.is_empty());
        let moved = others.filter(|(_, held)| {
            held.missing.get(domain).is_some_and(|missing| match object {
                None => missing.whole && missing.objects.is_empty(),
                Some(object) => missing.objects.contains_key(object),
            })
        });
        let moved: Vec<_> = moved.map(|(other, _)| other.clone()).collect();
        for other in moved {
            self.set(self::key(&other, domain, object), REMOVED, now);
            let rest = self.nodes.get(&other).and_then(|held| held.missing.get(domain));
            if rest.is_some_and(|missing| missing.whole && missing.objects.is_empty()) {
                self.set(self::key(&other, domain, None), REMOVED, now);
            }
        }
    }

    /// A node announces a domain or an object no longer.
    pub fn lost(
        &mut self,
        node: &NodeId,
        domain: &[u8],
        object: Option<&[u8]>,
        elsewhere: Elsewhere<'_>,
        now: i64,
    ) {
        let keys = match object {
            Some(_) => vec![key(node, domain, object)],
            None => self.below(&key(node, domain, None)),
        };
        let keys = keys.into_iter().filter(|key| self.is(key, PRESENT)).collect();
        self.lose(keys, elsewhere, now);
    }

    /// Present entries become absent ones, but for what another node has.
    fn lose(&mut self, keys: Vec<Vec<u8>>, elsewhere: Elsewhere<'_>, now: i64) {
        let mut domains = Vec::new();
        for key in keys {
            match holding(&key) {
                Some((_, domain, Some(object))) if elsewhere(domain, Some(object)) => {
                    self.set(key, REMOVED, now);
                }
                Some((_, _, Some(_))) => self.set_absent(key, now),
                Some((_, _, None)) => domains.push(key),
                None => {}
            }
        }
        for key in domains {
            let Some((node, domain, _)) = holding(&key) else { continue };
            let missing = self.nodes.get(&node).and_then(|held| held.missing.get(domain));
            if missing.is_none_or(|missing| missing.objects.is_empty()) && elsewhere(domain, None) {
                self.set(key, REMOVED, now);
            } else {
                self.set_absent(key, now);
            }
        }
    }

    fn below(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        let range =
            self.entries.range::<[u8], _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        range.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, _)| key.to_vec()).collect()
    }

    /// Present entries, older than a time, of what a node does not announce.
    fn missing(&self, node: &NodeId, held: &NodeHoldings, before: i64) -> Vec<Vec<u8>> {
        let missing = self.of(node).filter(|(key, entry)| {
            state(entry) == PRESENT
                && entry.at_ns < before
                && holding(key).is_some_and(|(_, domain, object)| !held.has(domain, object))
        });
        missing.map(|(key, _)| key.to_vec()).collect()
    }

    /// Entries that a node announces and that were removed before a time: made again faster than it was announced, or
    /// while it was told of elsewhere.
    fn made_again(&self, node: &NodeId, held: &NodeHoldings, before: i64) -> Vec<Vec<u8>> {
        let again = self.of(node).filter(|(key, entry)| {
            state(entry) == REMOVED
                && entry.at_ns < before
                && holding(key).is_some_and(|(_, domain, object)| held.has(domain, object))
        });
        again.map(|(key, _)| key.to_vec()).collect()
    }

    fn of(&self, node: &NodeId) -> impl Iterator<Item = (&Key, &Entry)> {
        let prefix = prefix(node);
        let from = (std::ops::Bound::Included(&prefix[..]), std::ops::Bound::Unbounded);
        let range = self.entries.range::<[u8], _>(from);
        range.take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// What time and other front ends change: entries of theirs that this node does not bear out, and absences that
    /// are believed after a day. `held`: what the node announces now.
    pub fn settle(&mut self, node: &NodeId, held: &NodeHoldings, elsewhere: Elsewhere<'_>, now: i64) {
        if let Some(newest) = self.nodes.get(node).and_then(|held| held.unsettled) {
            let before = now - YOUNG_NS;
            let missing = self.missing(node, held, before);
            self.lose(missing, elsewhere, now);
            for key in self.made_again(node, held, before) {
                self.set(key, PRESENT, now);
            }
            if newest < before
                && let Some(held) = self.nodes.get_mut(node)
            {
                held.unsettled = None;
            }
        }
        let mut changes = Vec::new();
        for (domain, missing) in self.nodes.get(node).map(|held| &held.missing).into_iter().flatten() {
            let names = missing.objects.keys().map(|object| Some(&object[..]));
            for object in names.chain(missing.whole.then_some(None)) {
                if held.has(domain, object) {
                    changes.push((key(node, domain, object), PRESENT));
                } else if object.is_some() && elsewhere(domain, object) {
                    changes.push((key(node, domain, object), REMOVED));
                }
            }
        }
        for (key, state) in changes {
            self.set(key, state, now);
        }
    }

    /// Forgets what was removed long ago, and takes absences of a day that are not in doubt for removals.
    pub fn expire(&mut self, missing_share: usize, now: i64) {
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for node in nodes {
            let doubts = self.doubts(&node, missing_share);
            let Some(held) = self.nodes.get(&node) else { continue };
            let mut over = Vec::new();
            for (domain, missing) in held.missing.iter().filter(|(domain, _)| !doubts.contains_key(*domain)) {
                let old = missing.objects.iter().filter(|(_, since)| **since < now - ABSENT_KEPT_NS);
                over.extend(old.map(|(object, _)| key(&node, domain, Some(object))));
            }
            for key in over {
                self.set(key, REMOVED, now);
            }
        }
        self.entries.retain(|_, entry| !entry.is_over(now));
    }

    /// Removed or renamed through this front end.
    pub fn removed(&mut self, node: &NodeId, domain: &[u8], object: Option<&[u8]>, now: i64) {
        let keys = match object {
            Some(_) => vec![key(node, domain, object)],
            None => self.below(&key(node, domain, None)),
        };
        for key in keys {
            self.set(key, REMOVED, now);
        }
        self.unsettle(node.clone(), now);
    }

    /// An object was removed through a front end, or has moved; the node may still announce it.
    pub fn is_removed(&self, node: &NodeId, domain: &[u8], object: &[u8]) -> bool {
        self.is(&key(node, domain, Some(object)), REMOVED)
    }

    fn at(&self, key: &[u8]) -> Option<i64> {
        self.entries.get(key).map(|entry| entry.at_ns)
    }

    fn confirmed(&self, what: Confirmed, name: &[u8]) -> Option<i64> {
        self.at(&confirmation(what, name))
    }

    /// What is missing of a node or a domain is meant to be; how many domains and objects that are.
    pub fn confirm(&mut self, what: Confirmed, name: &[u8], by: &str, now: i64) -> usize {
        let mut keys = Vec::new();
        for (node, held) in &self.nodes {
            for (domain, missing) in &held.missing {
                let meant = match what {
                    Confirmed::Node => node.as_str().as_bytes() == name,
                    Confirmed::Domain => **domain == *name,
                };
                if meant {
                    keys.extend(missing.objects.keys().map(|object| key(node, domain, Some(object))));
                    keys.extend(missing.whole.then(|| key(node, domain, None)));
                }
            }
        }
        let count = keys.len();
        for key in keys {
            self.set(key, REMOVED, now);
        }
        let by = by.as_bytes();
        let value = by[..by.len().min(portolan_record::VALUE_BYTES_MAX)].into();
        self.write(confirmation(what, name).into(), Entry { at_ns: now, removed: false, value });
        count
    }

    /// What of a node is in doubt, where more than a share of a hundred is missing.
    pub fn doubts(&self, node: &NodeId, missing_share: usize) -> Doubts {
        let Some(held) = self.nodes.get(node) else { return Doubts::new() };
        let exceeds = |absent: usize, present: usize| {
            absent >= MISSING_MIN && absent * 100 > missing_share * (present + absent)
        };
        let of_node = exceeds(held.absent, held.present);
        let doubted = held.missing.iter().filter(|(domain, missing)| {
            let present = held.domains.get(*domain).copied().unwrap_or_default();
            of_node || missing.whole || exceeds(missing.objects.len(), present)
        });
        let doubt = |missing: &Missing| DomainDoubt {
            whole: missing.whole,
            of_node,
            objects: missing.objects.clone(),
        };
        doubted.map(|(domain, missing)| (domain.clone(), doubt(missing))).collect()
    }

    /// Nodes whose doubts may have changed since the last call.
    pub fn take_dirty(&mut self) -> Vec<NodeId> {
        let dirty = self
            .nodes
            .iter_mut()
            .filter_map(|(node, held)| std::mem::take(&mut held.is_dirty).then(|| node.clone()));
        dirty.collect()
    }

    /// The node that a domain or object was last seen on: one that has it, or else the one that had it last. Of two at the
    /// same time the one whose name comes last.
    pub fn last_seen(&self, domain: &[u8], object: Option<&[u8]>) -> Option<NodeId> {
        let seen = self.nodes.keys().filter_map(|node| {
            let entry = self.entries.get(&key(node, domain, object)[..])?;
            Some((state(entry) == PRESENT, entry.at_ns, node))
        });
        seen.max().map(|(_, _, node)| node.clone())
    }
}

fn confirmation(what: Confirmed, name: &[u8]) -> Vec<u8> {
    [&[CONFIRMED, 0], what.name().as_bytes(), &[0], name].concat()
}

impl Held {
    /// Counts an entry in, or out.
    fn count(&mut self, domain: &[u8], object: Option<&[u8]>, entry: &Entry, is_in: bool) {
        let step = |number: &mut usize| *number = if is_in { *number + 1 } else { number.saturating_sub(1) };
        match (state(entry), object) {
            (PRESENT, Some(_)) => {
                step(&mut self.present);
                let present = self.domains.entry(domain.into()).or_default();
                step(present);
                if *present == 0 {
                    self.domains.remove(domain);
                }
            }
            (ABSENT, object) => {
                let missing = self.missing.entry(domain.into()).or_default();
                match (object, is_in) {
                    (None, _) => missing.whole = is_in,
                    (Some(object), true) => {
                        missing.objects.insert(object.into(), missing_since(entry));
                    }
                    (Some(object), false) => {
                        missing.objects.remove(object);
                    }
                }
                if !missing.whole && missing.objects.is_empty() {
                    self.missing.remove(domain);
                }
                if object.is_some() {
                    step(&mut self.absent);
                }
            }
            _ => {}
        }
        // What is present counts only against what is missing.
        self.is_dirty |= !self.missing.is_empty() || state(entry) == ABSENT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_proto::v1::HoldingChange;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn holdings(domain: &str, users: std::ops::Range<usize>) -> NodeHoldings {
        let mut held = NodeHoldings::default();
        let change = |object: Option<String>| HoldingChange {
            domain: domain.as_bytes().to_vec().into(),
            object: object.map(|object| object.into_bytes().into()),
            removed: false,
        };
        held.apply(&[change(None)]);
        for user in users {
            held.apply(&[change(Some(format!("users/{user}")))]);
        }
        held
    }

    const NOWHERE: Elsewhere<'static> = &|_, _| false;

    fn doubted(record: &Record, name: &str) -> usize {
        count(&record.doubts(&node(name), 20))
    }

    #[test]
    fn a_few_that_go_are_believed_and_many_are_not_also_one_by_one() {
        let mut record = Record::default();
        let a = node("a");
        record.heard_whole(&a, &holdings("d", 0..50), NOWHERE, 1_000);
        for user in 0..10 {
            record.lost(&a, b"d", Some(format!("users/{user}").as_bytes()), NOWHERE, 2_000 + user);
        }
        assert_eq!(doubted(&record, "a"), 0);
        record.lost(&a, b"d", Some(b"users/10"), NOWHERE, 3_000);
        assert_eq!(doubted(&record, "a"), 11, "those that went before are back in doubt");
        // Those that come back are believed.
        record.seen(&a, b"d", Some(b"users/3"), 4_000);
        assert_eq!(doubted(&record, "a"), 0);
        // After a day they count no longer.
        let mut later = 5_000 + ABSENT_KEPT_NS;
        record.expire(20, later);
        record.lost(&a, b"d", Some(b"users/20"), NOWHERE, later);
        assert_eq!(doubted(&record, "a"), 0);
        later += 1;
        // A domain is never believed to be gone.
        record.lost(&a, b"d", None, NOWHERE, later);
        assert_eq!(doubted(&record, "a"), 1 + 40);
        record.expire(20, later + 10 * ABSENT_KEPT_NS);
        assert_eq!(doubted(&record, "a"), 1 + 40, "doubts do not grow old");
        assert_eq!(record.confirm(Confirmed::Domain, b"d", "root", later), 41);
        assert_eq!(doubted(&record, "a"), 0);
        assert_eq!(record.last_seen(b"d", Some(b"users/30")), Some(a));
    }

    #[test]
    fn what_was_removed_elsewhere_or_has_moved_is_no_doubt_in_whatever_order_it_is_heard() {
        let (a, b) = (node("a"), node("b"));
        let mut one = Record::default();
        one.heard_whole(&a, &holdings("d", 0..20), NOWHERE, 1_000);
        let mut two = Record::default();
        for (key, entry) in one.take_fresh() {
            assert!(two.merge(&key, &entry));
            assert!(!two.merge(&key, &entry));
        }
        two.take_fresh();
        // Removed through the first front end; the second hears of the absence first.
        one.removed(&a, b"d", None, 2_000);
        two.lost(&a, b"d", None, NOWHERE, 3_000);
        assert_eq!(doubted(&two, "a"), 21);
        let (from_one, from_two) = (one.take_fresh(), two.take_fresh());
        for (key, entry) in &from_one {
            two.merge(key, entry);
        }
        for (key, entry) in &from_two {
            one.merge(key, entry);
        }
        assert_eq!((doubted(&one, "a"), doubted(&two, "a")), (0, 0));
        assert_eq!(one.entries(), two.entries());
        // Gone from one node first, then seen on another.
        one.heard_whole(&a, &holdings("d", 0..20), NOWHERE, 4_000);
        one.lost(&a, b"d", None, NOWHERE, 5_000);
        assert_eq!(doubted(&one, "a"), 21);
        one.heard_whole(&b, &holdings("d", 0..20), NOWHERE, 6_000);
        assert_eq!(doubted(&one, "a"), 0);
        assert_eq!(one.last_seen(b"d", Some(b"users/3")), Some(b));
        // And the other way round.
        one.heard_whole(&a, &holdings("e", 0..20), NOWHERE, 7_000);
        one.lost(&a, b"e", None, &|_, _| true, 8_000);
        assert_eq!(doubted(&one, "a"), 0);
    }

    #[test]
    fn what_is_made_again_before_its_removal_was_announced_is_present_again() {
        let a = node("a");
        let mut record = Record::default();
        let held = holdings("d", 0..3);
        record.heard_whole(&a, &held, NOWHERE, 0);
        record.removed(&a, b"d", Some(b"users/1"), SECOND_NS);
        let is_removed = |record: &Record| record.is(&key(&a, b"d", Some(b"users/1")), REMOVED);
        record.settle(&a, &held, NOWHERE, 2 * SECOND_NS);
        assert!(is_removed(&record), "the announcement of the removal may be on its way");
        record.settle(&a, &held, NOWHERE, 12 * SECOND_NS);
        assert!(!is_removed(&record));
        // It is missed again when it goes.
        record.heard_whole(&a, &holdings("d", 0..0), NOWHERE, 13 * SECOND_NS);
        assert_eq!(record.nodes[&a].absent, 3);
    }

    #[test]
    fn a_confirmation_holds_for_a_node_that_was_away_and_for_no_later_loss() {
        let a = node("a");
        let mut record = Record::default();
        record.heard_whole(&a, &holdings("d", 0..20), NOWHERE, 1_000);
        record.heard(&a, 2_000);
        assert_eq!(record.confirm(Confirmed::Node, b"a", "root", 3_000), 0);
        record.heard_whole(&a, &NodeHoldings::default(), NOWHERE, 4_000);
        assert_eq!(doubted(&record, "a"), 0);
        record.heard_whole(&a, &holdings("d", 0..20), NOWHERE, 5_000);
        record.heard_whole(&a, &NodeHoldings::default(), NOWHERE, 6_000);
        assert_eq!(doubted(&record, "a"), 21);
        assert_eq!(record.doubts(&a, 20)[&b"d"[..]].objects.len(), 20);
    }
}
