//! Paths of a store: what a call names, checked by the rules of the wire.
//!
//! Who calls it: `service`, and the kinds of store.
//! What it calls: `portolan_proto::path`.
//! What it never does: touch a disk, or assume that a name is UTF-8.

use std::fmt;

use portolan_proto::path::{self, PathFault};

/// A path below the store's root: checked, relative, components joined by '/'; empty is the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Vec<u8>);

impl StorePath {
    pub fn new(path: &[u8]) -> Result<Self, PathFault> {
        path::check(path)?;
        Ok(Self(path.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// Its first `depth` levels; itself where it has no more.
    pub fn first_levels(&self, depth: usize) -> StorePath {
        StorePath(self.components().take(depth).collect::<Vec<_>>().join(&b'/'))
    }

    /// The path of the directory, and the last name; `None` for the root.
    pub fn split_last(&self) -> Option<(StorePath, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        let at = self.0.iter().rposition(|byte| *byte == b'/');
        let parent = StorePath(at.map_or_else(Vec::new, |at| self.0[..at].to_vec()));
        Some((parent, &self.0[at.map_or(0, |at| at + 1)..]))
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", path::display(&self.0))
    }
}
