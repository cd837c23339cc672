//! What a node holds: its domains and their objects. Compared to find what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Domains of a node. Cheap to clone in parts: an unchanged domain is shared with the set before.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    pub domains: BTreeMap<Vec<u8>, Arc<Objects>>,
}

/// The objects of one domain on this node, as paths below the domain: `users/anna`, `publicFolder/board`, or an entry of
/// the domain's own level.
pub type Objects = BTreeSet<Vec<u8>>;

/// One difference between two sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub domain: Vec<u8>,
    /// `None`: the domain itself.
    pub object: Option<Vec<u8>>,
    pub removed: bool,
}

impl Holdings {
    /// What turns `before` into `self`. Unchanged domains cost a pointer comparison.
    pub fn changes_since(&self, before: &Holdings) -> Vec<Change> {
        let mut changes = Vec::new();
        for domain in before.domains.keys().filter(|domain| !self.domains.contains_key(*domain)) {
            changes.push(Change { domain: domain.clone(), object: None, removed: true });
        }
        let nothing = BTreeSet::new();
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
            changes.extend(old.difference(held).map(|object| change(object, true)));
            changes.extend(held.difference(old).map(|object| change(object, false)));
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
        Holdings { domains }
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
