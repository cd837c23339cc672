//! What one node has announced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portolan_proto::path;
use portolan_proto::v1::HoldingChange;

/// Domains of a node, each with its objects. Unchanged domains are shared between snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeHoldings {
    pub(super) domains: BTreeMap<Vec<u8>, Arc<BTreeSet<Vec<u8>>>>,
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
            let domain = change.domain.to_vec();
            match (&change.object, change.removed) {
                (None, true) => {
                    self.domains.remove(&domain);
                }
                (None, false) => {
                    self.domains.entry(domain).or_default();
                }
                (Some(object), removed) => {
                    let objects = Arc::make_mut(self.domains.entry(domain).or_default());
                    if removed {
                        objects.remove(&object[..]);
                    } else {
                        objects.insert(object.to_vec());
                    }
                }
            }
        }
    }
}
