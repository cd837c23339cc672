//! Path to node, from an immutable snapshot of what is known.
//!
//! Who calls it: `tree` asks, `nodes` reports what the nodes announce.
//! What it calls: `record`, which says what of an absence is believed.
//! What it never does: I/O, or guess. Where sources disagree their order decides, and the log says so.

pub mod conflicts;
pub mod directory;
mod given;
mod holdings;
mod snapshot;
mod stores;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use portolan_config::checked::map::Map;
use portolan_proto::id::NodeId;
use portolan_proto::path;
use portolan_proto::v1::HoldingChange;
use tokio::sync::broadcast;

use crate::record::{self, Record, now_ns};

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
    /// A node announces it no longer, and so much is missing there that this is not believed.
    #[error("node {node} no longer has it; if that is meant to be, run portolan map confirm {confirm}")]
    InDoubt { node: NodeId, confirm: String },
    /// A node announces it and does not have it: whether it is gone or lost shows when the node has counted again.
    #[error("node {node} had it a moment ago and is about to say whether it still does")]
    Unsettled { node: NodeId },
    /// It is to be created, and neither a source nor the placement policy says where.
    #[error("the domain map does not say on which node it belongs")]
    Unplaced,
}

/// Changes of the record that wait for a keeper at most. One that has missed some reads all of it.
const CHANGES_QUEUED_MAX: usize = 64;

/// Changes of the record that were made at once.
pub type Changes = Arc<Vec<(portolan_record::Key, portolan_record::Entry)>>;

/// Holds the current snapshot. Readers never wait.
#[derive(Debug)]
pub struct Router {
    current: ArcSwap<Snapshot>,
    /// One writer at a time.
    record: Mutex<Record>,
    /// In percent: a node or domain that lacks more is not believed.
    missing_share: AtomicUsize,
    changes: broadcast::Sender<Changes>,
    /// The last time that they were looked for.
    conflicts: ArcSwap<Conflicts>,
    stores: Stores,
}

impl Router {
    pub fn new(nodes: Vec<NodeFacts>, nodes_min: usize, map: &Map) -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::new(nodes, nodes_min, map)),
            record: Mutex::default(),
            missing_share: AtomicUsize::new(map.missing_share),
            changes: broadcast::Sender::new(CHANGES_QUEUED_MAX),
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

    /// What becomes newer in the record from now on.
    pub fn record_changes(&self) -> broadcast::Receiver<Changes> {
        self.changes.subscribe()
    }

    /// Looks into the record. Whoever announces something waits meanwhile.
    pub fn with_record<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.record.lock())
    }

    /// Changes the record, and what is in doubt with it.
    pub fn change_record<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        self.update(|_, record| change(record))
    }

    /// What a node holds, whole: after it was connected.
    pub fn replace_holdings(&self, node: NodeIndex, holdings: NodeHoldings) {
        self.update(|snapshot, record| {
            if is_primary(snapshot, node) {
                let elsewhere =
                    |domain: &[u8], object: Option<&[u8]>| snapshot.is_elsewhere(node, domain, object);
                record.heard_whole(snapshot.name(node), &holdings, &elsewhere, now_ns());
            }
            snapshot.set_holdings(node, holdings);
        });
    }

    /// What changed on a node.
    pub fn change_holdings(&self, node: NodeIndex, changes: &[HoldingChange]) {
        if changes.is_empty() {
            return;
        }
        self.update(|snapshot, record| {
            if is_primary(snapshot, node) {
                let (name, now) = (snapshot.name(node), now_ns());
                let elsewhere =
                    |domain: &[u8], object: Option<&[u8]>| snapshot.is_elsewhere(node, domain, object);
                for change in changes.iter().filter(|change| path::check_component(&change.domain).is_ok()) {
                    let (domain, object) = (&change.domain[..], change.object.as_deref());
                    if change.removed {
                        record.lost(name, domain, object, &elsewhere, now);
                    } else {
                        record.seen(name, domain, object, now);
                    }
                }
            }
            snapshot.change_holdings(node, changes);
        });
    }

    /// A node is away: what it announced last stands, but is no longer certain.
    pub fn set_away(&self, node: NodeIndex) {
        self.update(|snapshot, record| {
            if is_primary(snapshot, node) && snapshot.announces_now(node).is_some() {
                record.heard(snapshot.name(node), now_ns());
            }
            snapshot.set_away(node);
        });
    }

    /// Lets time pass over the record: see `Record::settle` and `Record::expire`.
    pub fn settle_record(&self) {
        let missing_share = self.missing_share.load(Ordering::Relaxed);
        self.update(|snapshot, record| {
            for node in snapshot.primaries() {
                let Some(held) = snapshot.announces_now(node) else { continue };
                let elsewhere =
                    |domain: &[u8], object: Option<&[u8]>| snapshot.is_elsewhere(node, domain, object);
                record.settle(snapshot.name(node), held, &elsewhere, now_ns());
            }
            record.expire(missing_share, now_ns());
        });
    }

    /// Other nodes, static map, order of sources and placement. Nodes keep their places; what they announced stays.
    pub fn replace(&self, nodes: Vec<NodeFacts>, nodes_min: usize, map: &Map) {
        self.missing_share.store(map.missing_share, Ordering::Relaxed);
        self.update(|snapshot, record| {
            snapshot.set(nodes, nodes_min, map);
            for node in snapshot.primaries().collect::<Vec<_>>() {
                snapshot.set_doubts(node, record.doubts(snapshot.name(node), map.missing_share));
            }
        });
    }

    /// What the directory says, whole.
    pub fn replace_ldap(&self, given: GivenMap) {
        self.update(|snapshot, _| snapshot.set_ldap(given));
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

    fn update<T>(&self, change: impl FnOnce(&mut Snapshot, &mut Record) -> T) -> T {
        let mut record = self.record.lock();
        let mut next = Snapshot::clone(&self.current.load());
        let changed = change(&mut next, &mut record);
        let missing_share = self.missing_share.load(Ordering::Relaxed);
        for name in record.take_dirty() {
            let Some(node) = next.primary(&name) else { continue };
            let doubts = record.doubts(&name, missing_share);
            let (before, after) = (record::count(next.doubts(node)), record::count(&doubts));
            if **next.doubts(node) != doubts {
                if after > before {
                    tracing::error!(
                        node = %name,
                        in_doubt = after,
                        "a node no longer announces much of what it held; the names stay listed and answer 450, until they come back or somebody runs portolan map confirm"
                    );
                } else if after == 0 {
                    tracing::info!(node = %name, "nothing of the node is in doubt any more");
                }
                next.set_doubts(node, doubts);
            }
        }
        self.current.store(Arc::new(next));
        let fresh = record.take_fresh();
        if !fresh.is_empty() {
            // Nobody may be listening yet: who comes later reads all of it.
            self.changes.send(Arc::new(fresh)).ok();
        }
        changed
    }
}

fn is_primary(snapshot: &Snapshot, node: NodeIndex) -> bool {
    snapshot.primaries().any(|primary| primary == node)
}
