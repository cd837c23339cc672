//! Path to node, from an immutable snapshot of what is known.
//!
//! Who calls it: `tree` asks, `nodes` reports what the nodes announce.
//! What it calls: nothing.
//! What it never does: I/O, or guess. Where sources disagree their order decides, and the log says so.

pub mod conflicts;
pub mod directory;
mod given;
mod holdings;
mod snapshot;
mod stores;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use portolan_config::checked::map::Map;
use portolan_proto::id::NodeId;
use portolan_proto::v1::HoldingChange;

use conflicts::Conflicts;
use stores::Stores;

pub use given::GivenMap;
pub use holdings::NodeHoldings;
pub use snapshot::{MapRow, PlacedObject, Route, Site, Snapshot};

/// A node by its place among all that there have been since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub usize);

/// What the router knows of a node beside what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: NodeId,
    /// Discovery finds it: its address is nobody's to write down.
    pub is_discovered: bool,
    pub role: Role,
    /// What a directory calls it, beside its name.
    pub mail_hosts: Vec<String>,
    /// Where it stands among the nodes; those that are written down come first, in their order.
    pub rank: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Holds a part of the cluster.
    Primary {
        /// Who has the same, in the order in which they are asked when this one is away.
        standbys: Vec<NodeIndex>,
        /// They are written to as well.
        writes: bool,
    },
    /// Has what a primary has.
    Standby,
    /// Taken out.
    Out,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No source knows the domain.
    #[error("no such domain")]
    UnknownDomain,
    /// A node that may hold it has not been heard since the front end started, so nobody knows.
    #[error("node {node} has not been heard yet, so it is not known what it holds")]
    Unheard { node: NodeId },
    /// Fewer nodes were found than there are said to be, so nobody knows what the others hold.
    #[error("only {found} of at least {expected} nodes were found")]
    TooFew { found: usize, expected: usize },
    /// The directory that the map is read from has not answered since the front end started.
    #[error("the domain map of directory {directory} has not been read yet")]
    Unread { directory: String },
    /// A directory names a node of the domain that there is none of, so nobody knows what lies there.
    #[error("there is no node {word:?}, on which a part of the domain lies by the directory")]
    Unresolved { word: String },
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
    /// The last time that they were looked for.
    conflicts: ArcSwap<Conflicts>,
    stores: Stores,
}

impl Router {
    pub fn new(nodes: Vec<NodeFacts>, nodes_min: usize, map: &Map) -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::new(nodes, nodes_min, map)),
            update: Mutex::default(),
            conflicts: ArcSwap::default(),
            stores: Stores::default(),
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Notes the id of a node's store, as its agent says it; an empty one is none.
    ///
    /// # Errors
    /// The node that was heard with this store before, which is neither this one's standby nor has it as one.
    pub fn claim_store(&self, node: NodeIndex, store_id: &str) -> Result<(), NodeId> {
        self.stores.claim(node, store_id.parse().ok(), &self.snapshot())
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

    /// Other nodes, static map, order of sources and placement. Nodes keep their places; what they announced stays.
    pub fn replace(&self, nodes: Vec<NodeFacts>, nodes_min: usize, map: &Map) {
        self.update(|snapshot| snapshot.set(nodes, nodes_min, map));
    }

    /// What the directory says, whole.
    pub fn replace_ldap(&self, given: GivenMap) {
        self.update(|snapshot| snapshot.set_ldap(given));
    }

    /// How much no client is shown, as of the last [`Router::look_for_conflicts`].
    pub fn conflicts(&self) -> Conflicts {
        **self.conflicts.load()
    }

    /// Counts anew what no client is shown. Blocks for as long as the map is large.
    pub fn look_for_conflicts(&self) {
        let (before, now) = (self.conflicts(), self.snapshot().conflicts());
        let Conflicts { domains, objects } = now;
        if domains > before.domains || objects > before.objects {
            tracing::warn!(
                domains,
                objects,
                "nodes hold what no client is shown, so no backup has it; portolan map --conflicts lists it"
            );
        }
        self.conflicts.store(Arc::new(now));
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let _one_at_a_time = self.update.lock();
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
    }
}
