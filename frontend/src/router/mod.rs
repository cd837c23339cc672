//! Path to node, from an immutable snapshot of what is known.
//!
//! Who calls it: `tree` asks, `node_client` reports what the nodes announce.
//! What it calls: nothing.
//! What it never does: I/O, or guess. Where sources disagree their order decides, and the log says so.

mod given;
mod holdings;
mod snapshot;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use portolan_config::checked::frontend::Map;
use portolan_proto::id::NodeId;
use portolan_proto::v1::HoldingChange;

use given::GivenMap;
pub use holdings::NodeHoldings;
pub use snapshot::{MapRow, Route, Site, Snapshot};

/// A node by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub usize);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No source knows the domain.
    #[error("no such domain")]
    UnknownDomain,
    /// A node that may hold it has not been heard since the front end started, so nobody knows.
    #[error("node {node} has not been heard yet, so it is not known what it holds")]
    Unheard { node: NodeId },
    /// It is to be created, and neither a source nor the placement policy says where.
    #[error("the domain map does not say on which node it belongs")]
    Unplaced,
}

/// Holds the current snapshot. Readers never wait.
#[derive(Debug)]
pub struct Router {
    current: ArcSwap<Snapshot>,
    /// One writer at a time.
    update: Mutex<()>,
}

impl Router {
    pub fn new(nodes: Vec<NodeId>, map: &Map) -> Self {
        Self { current: ArcSwap::from_pointee(Snapshot::new(nodes, map)), update: Mutex::new(()) }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// What a node holds, whole: after it was connected.
    pub fn replace_holdings(&self, node: NodeIndex, holdings: NodeHoldings) {
        self.update(|snapshot| snapshot.set_holdings(node, holdings));
    }

    /// What changed on a node.
    pub fn change_holdings(&self, node: NodeIndex, changes: &[HoldingChange]) {
        self.update(|snapshot| snapshot.change_holdings(node, changes));
    }

    /// A node is away: what it announced last stands, but is no longer certain.
    pub fn set_away(&self, node: NodeIndex) {
        self.update(|snapshot| snapshot.set_away(node));
    }

    /// Another static map, order of sources and placement. What the nodes announced stays.
    pub fn replace_map(&self, map: &Map) {
        self.update(|snapshot| snapshot.set_map(map));
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let _one_at_a_time = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
    }
}
