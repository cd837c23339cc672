//! Asking a node, or who has the same data while it is away.
//!
//! Reads go to the standbys of a node in their order. Changes do only where the configuration says so, and only while the
//! node is known to be away: what a node that went silent has done is not known, and must not be done twice.

use std::sync::Arc;

use super::Tree;
use crate::map::NodeIndex;
use crate::nodes::{self, NodeClient};

impl Tree {
    pub(super) fn node(&self, index: NodeIndex) -> Arc<NodeClient> {
        self.nodes.get(index)
    }

    /// Who may answer for a node: itself, then its standbys.
    pub(super) fn answering(&self, index: NodeIndex) -> Vec<Arc<NodeClient>> {
        let map = self.router.snapshot();
        let all = std::iter::once(&index).chain(map.standbys(index));
        all.map(|node| self.nodes.get(*node)).collect()
    }

    /// Asks a node for what does not change it. Where it fails, the next one that has the same is asked; where all fail, the
    /// failure is the node's own.
    pub(super) async fn ask<T, F>(
        &self,
        index: NodeIndex,
        call: impl Fn(Arc<NodeClient>) -> F,
    ) -> nodes::Result<T>
    where
        F: Future<Output = nodes::Result<T>>,
    {
        let node = self.node(index);
        let failure = match call(Arc::clone(&node)).await {
            Err(error) if error.is_of_the_node() => error,
            answer => return answer,
        };
        for standby in self.answering(index).into_iter().skip(1) {
            match call(Arc::clone(&standby)).await {
                Err(error) if error.is_of_the_node() => {}
                answer => {
                    report(&node, &standby, &failure);
                    return answer;
                }
            }
        }
        Err(failure)
    }

    /// The node that a change goes to.
    pub(super) fn changed(&self, index: NodeIndex) -> Arc<NodeClient> {
        let node = self.node(index);
        let map = self.router.snapshot();
        if !node.is_away() || !map.writes_to_standbys(index) {
            return node;
        }
        let standbys = map.standbys(index).iter().map(|standby| self.nodes.get(*standby));
        standbys.into_iter().find(|standby| !standby.is_away()).unwrap_or(node)
    }
}

/// Logs a standby that answers, once for each absence.
pub(super) fn report(node: &NodeClient, standby: &NodeClient, failure: &nodes::Error) {
    if node.note_stand_in() {
        let cause = portolan_telemetry::chain(failure);
        tracing::warn!(node = %node.name(), standby = %standby.name(), cause, "a standby is read in place of a node");
    }
}
