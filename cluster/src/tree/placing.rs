//! Where new domains and objects have gone, until the nodes announce them.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use crate::map::NodeIndex;

/// Placements that are remembered at most; the oldest are forgotten first, which the nodes have announced long since.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// See the module. Without it a domain that was made a moment ago would not be found, and what follows into it could be
/// placed on another node.
#[derive(Debug)]
pub(super) struct Placing {
    /// One decision at a time: two for one name must not come out differently.
    pub(super) turn: tokio::sync::Mutex<()>,
    placed: Mutex<LruCache<Vec<u8>, NodeIndex>>,
}

impl Placing {
    pub(super) fn new() -> Self {
        Self { turn: tokio::sync::Mutex::default(), placed: Mutex::new(LruCache::new(REMEMBERED_MAX)) }
    }

    /// The node of a domain or object, a path of the wire.
    pub(super) fn node(&self, path: &[u8]) -> Option<NodeIndex> {
        self.placed.lock().get(path).copied()
    }

    pub(super) fn remember(&self, path: &[u8], node: NodeIndex) {
        self.placed.lock().put(path.to_vec(), node);
    }
}
