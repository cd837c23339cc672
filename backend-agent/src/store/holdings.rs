//! What a node holds: its domains and their objects. Compared to find what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

/// Domains of a node. Cheap to clone in parts: what is unchanged is shared with the set before.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    pub domains: BTreeMap<Vec<u8>, Arc<Objects>>,
    /// Domains that could not be read, and why. Each is among `domains` too, with the objects that were known of it last:
    /// its content is unknown, which is no absence.
    pub unreadable: BTreeMap<Vec<u8>, String>,
}

/// Objects that one part of a set has, about.
const PART_OBJECTS: usize = 128;

/// The objects of one domain on this node, as paths below the domain: `users/anna`, `publicFolder/board`, or an entry of
/// the domain's own level. In parts, chosen by a hash of the path: a change of one object copies and compares its part and
/// shares the others, so that it costs the same in a domain of 300,000.
#[derive(Debug, Clone)]
pub struct Objects {
    /// As many as a power of two.
    parts: Vec<Arc<BTreeSet<Vec<u8>>>>,
    count: usize,
}

impl Default for Objects {
    fn default() -> Self {
        Self { parts: vec![Arc::default()], count: 0 }
    }
}

impl FromIterator<Vec<u8>> for Objects {
    fn from_iter<T: IntoIterator<Item = Vec<u8>>>(objects: T) -> Self {
        let objects: Vec<Vec<u8>> = objects.into_iter().collect();
        let parts = (objects.len() / PART_OBJECTS).next_power_of_two();
        Self::in_parts(objects, parts)
    }
}

impl PartialEq for Objects {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.without(other).is_empty()
    }
}

impl Objects {
    fn in_parts(objects: Vec<Vec<u8>>, parts: usize) -> Self {
        let mut sets: Vec<BTreeSet<Vec<u8>>> = vec![BTreeSet::new(); parts];
        for object in objects {
            sets[place(&object, parts)].insert(object);
        }
        let count = sets.iter().map(BTreeSet::len).sum();
        Self { parts: sets.into_iter().map(Arc::new).collect(), count }
    }

    /// The set of these, which shares with `before` what is the same.
    pub fn from_before(objects: Vec<Vec<u8>>, before: &Objects) -> Self {
        let parts = before.parts.len();
        let fits = (PART_OBJECTS / 8..=PART_OBJECTS * 8).contains(&(objects.len() / parts))
            || (parts == 1 && objects.len() <= PART_OBJECTS);
        if !fits {
            return objects.into_iter().collect();
        }
        let mut found = Self::in_parts(objects, parts);
        for (part, before) in found.parts.iter_mut().zip(&before.parts) {
            if part == before {
                *part = Arc::clone(before);
            }
        }
        found
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn contains(&self, object: &[u8]) -> bool {
        self.parts[place(object, self.parts.len())].contains(object)
    }

    /// Adds an object, or takes it out.
    pub fn set(&mut self, object: &[u8], is_there: bool) {
        let at = place(object, self.parts.len());
        let part = Arc::make_mut(&mut self.parts[at]);
        if is_there {
            self.count += usize::from(part.insert(object.to_vec()));
        } else {
            self.count -= usize::from(part.remove(object));
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// Those that `other` has not. Parts that both share cost a pointer comparison.
    pub fn without<'a>(&'a self, other: &'a Objects) -> Vec<&'a Vec<u8>> {
        if self.parts.len() != other.parts.len() {
            return self.iter().filter(|object| !other.contains(object)).collect();
        }
        let pairs = self.parts.iter().zip(&other.parts).filter(|(own, other)| !Arc::ptr_eq(own, other));
        pairs.flat_map(|(own, other)| own.difference(other)).collect()
    }
}

/// The part that an object belongs in, of so many.
fn place(object: &[u8], parts: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    usize::try_from(hasher.finish() & (parts as u64 - 1)).expect("less than parts")
}

/// One difference between two sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub domain: Vec<u8>,
    /// `None`: the domain itself.
    pub object: Option<Vec<u8>>,
    pub removed: bool,
}

impl Holdings {
    /// What turns `before` into `self`. Domains, and parts of them, that are unchanged cost a pointer comparison.
    pub fn changes_since(&self, before: &Holdings) -> Vec<Change> {
        let mut changes = Vec::new();
        for domain in before.domains.keys().filter(|domain| !self.domains.contains_key(*domain)) {
            changes.push(Change { domain: domain.clone(), object: None, removed: true });
        }
        let nothing = Objects::default();
        for (domain, held) in &self.domains {
            let old = before.domains.get(domain);
            if old.is_some_and(|old| Arc::ptr_eq(old, held)) {
                continue;
            }
            if old.is_none() {
                changes.push(Change { domain: domain.clone(), object: None, removed: false });
            }
            let old = old.map_or(&nothing, |old| &**old);
            let change = |object: &Vec<u8>, removed| Change {
                domain: domain.clone(),
                object: Some(object.clone()),
                removed,
            };
            changes.extend(old.without(held).into_iter().map(|object| change(object, true)));
            changes.extend(held.without(old).into_iter().map(|object| change(object, false)));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdings(domains: &[(&str, &[&str])]) -> Holdings {
        let domain =
            |objects: &[&str]| Arc::new(objects.iter().map(|object| object.as_bytes().to_vec()).collect());
        let domains =
            domains.iter().map(|(name, objects)| (name.as_bytes().to_vec(), domain(objects))).collect();
        Holdings { domains, ..Holdings::default() }
    }

    #[test]
    fn a_change_of_one_object_copies_its_part_alone() {
        let names = |range: std::ops::Range<u32>| range.map(|number| format!("users/{number}").into_bytes());
        let before: Objects = names(0..20_000).collect();
        assert_eq!((before.len(), before.parts.len()), (20_000, 256));
        let mut after = before.clone();
        after.set(b"users/7", false);
        after.set(b"users/7", false);
        after.set(b"users/new", true);
        after.set(b"users/new", true);
        assert_eq!(after.len(), 20_000);
        let shared = after.parts.iter().zip(&before.parts).filter(|(one, other)| Arc::ptr_eq(one, other));
        assert!(shared.count() >= 254);
        assert_eq!(after.without(&before), [b"users/new"]);
        assert_eq!(before.without(&after), [b"users/7"]);
        assert!(after != before && after.contains(b"users/new") && !after.contains(b"users/7"));
        // Read anew, the same shares all, and another number of parts changes nothing.
        let again = Objects::from_before(after.iter().cloned().collect(), &after);
        assert!(again.parts.iter().zip(&after.parts).all(|(one, other)| Arc::ptr_eq(one, other)));
        let few = Objects::from_before(names(0..5).collect(), &before);
        assert_eq!((few.len(), few.parts.len()), (5, 1));
        assert_eq!(before.without(&few).len(), 19_995);
        assert!(few.without(&before).is_empty());
    }

    #[test]
    fn changes_lead_from_one_set_to_the_other() {
        let before = holdings(&[("a", &["users/1", "users/2"]), ("b", &["users/3"]), ("c", &[])]);
        let after = holdings(&[("a", &["users/2", "users/4"]), ("c", &[]), ("d", &["groups/x"])]);
        let shown: Vec<String> = after
            .changes_since(&before)
            .iter()
            .map(|change| {
                let object = change.object.as_deref().unwrap_or_default();
                format!(
                    "{}{}/{}",
                    if change.removed { '-' } else { '+' },
                    String::from_utf8_lossy(&change.domain),
                    String::from_utf8_lossy(object)
                )
            })
            .collect();
        assert_eq!(shown, ["-b/", "-a/users/1", "+a/users/4", "+d/", "+d/groups/x"]);
        assert!(after.changes_since(&after.clone()).is_empty());
    }
}
