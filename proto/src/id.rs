//! Names that must not be mixed up: nodes, sessions, transfers.
//!
//! Who calls it: configuration, router, node client, agent.
//! What it calls: nothing.
//! What it never does: accept a name it has not checked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of a node: 1 to 63 characters of `[a-z0-9.-]`, beginning and ending with a letter or digit, as it
/// stands in configurations and in the subjectAltName of its certificate (RFC 1123 section 2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// The name is not one of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a node's name: 1 to 63 characters of a-z, 0-9, '.' and '-', beginning and ending with a letter or digit"
)]
pub struct BadNodeId;

impl NodeId {
    pub const CHARACTERS_MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(name: &str) -> Result<Self, BadNodeId> {
        let edge =
            |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let inner =
            |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'.' || *byte == b'-';
        let bytes = name.as_bytes();
        let plain = bytes.len() <= Self::CHARACTERS_MAX
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(inner);
        if plain { Ok(Self(name.into())) } else { Err(BadNodeId) }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One control connection of a front end, unique within its process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId(u64);

/// One transfer of a front end, unique within its process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransferId(u64);

macro_rules! counted {
    ($name:ident, $prefix:literal) => {
        impl $name {
            /// The next one.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                static NEXT: AtomicU64 = AtomicU64::new(1);
                Self(NEXT.fetch_add(1, Ordering::Relaxed))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}
counted!(SessionId, "s");
counted!(TransferId, "t");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_host_names() {
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "ä", ".", &"a".repeat(64)] {
            assert_eq!(bad.parse::<NodeId>(), Err(BadNodeId), "{bad}");
        }
        for good in ["a", "mail-1", "mail-1.example.org", &"a".repeat(63)] {
            assert!(good.parse::<NodeId>().is_ok(), "{good}");
        }
    }
}
