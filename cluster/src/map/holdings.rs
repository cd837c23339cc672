//! What one node has announced.

use imbl::{OrdMap, OrdSet};
use portolan_proto::path;
use portolan_proto::v1::HoldingChange;

/// Domains of a node, each with its objects. Persistent trees: a copy costs nothing and shares all that does not change,
/// so that a change costs in proportion to itself, however much the node holds.
#[derive(Debug, Clone, Default)]
pub struct NodeHoldings {
    pub(super) domains: OrdMap<Box<[u8]>, OrdSet<Box<[u8]>>>,
}

impl NodeHoldings {
    /// Applies changes in order. Names that break the rules of paths are left out: a node that announces
    /// them is at fault, and nothing could be asked of it by such a name.
    pub fn apply(&mut self, changes: &[HoldingChange]) {
        for change in changes {
            if path::check_component(&change.domain).is_err() {
                tracing::warn!(
                    domain = path::display(&change.domain),
                    "a node announces a domain of a bad name"
                );
                continue;
            }
            match (&change.object, change.removed) {
                (None, true) => {
                    self.domains.remove(&change.domain[..]);
                }
                (None, false) => {
                    self.domains.entry(change.domain[..].into()).or_default();
                }
                (Some(object), removed) => {
                    let objects = self.domains.entry(change.domain[..].into()).or_default();
                    if removed {
                        objects.remove(&object[..]);
                    } else {
                        objects.insert(object[..].into());
                    }
                }
            }
        }
    }

    /// Each domain with its objects.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&[u8], impl Iterator<Item = &[u8]>)> {
        self.domains.iter().map(|(domain, objects)| (&domain[..], objects.iter().map(|object| &object[..])))
    }

    /// Is a domain, or an object of it, announced?
    pub(crate) fn has(&self, domain: &[u8], object: Option<&[u8]>) -> bool {
        object.map_or_else(|| self.holds(domain), |object| self.holds_object(domain, object))
    }

    pub(super) fn holds(&self, domain: &[u8]) -> bool {
        self.domains.contains_key(domain)
    }

    pub(super) fn holds_object(&self, domain: &[u8], object: &[u8]) -> bool {
        self.domains.get(domain).is_some_and(|objects| objects.contains(object))
    }
}
