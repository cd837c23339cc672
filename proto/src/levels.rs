//! The levels of the virtual tree: three are the cluster's, below them each store decides.
//!
//! ```text
//! domains / <domain> / <container> / <object> / ...
//!    1          2           3           4
//! ```
//!
//! Who calls it: `tree` and the map on the front end, the configuration, `holdings` and the stores on the agent.
//! What it calls: nothing.
//! What it never does: decide on which node something lies.

use std::ops::RangeInclusive;

/// The directory in the root below which all domains lie.
pub const DOMAINS: &[u8] = b"domains";

/// The directories of a domain that hold objects which may lie on different nodes.
pub const CONTAINERS: [&[u8]; 6] =
    [b"users", b"maillists", b"groups", b"forwarders", b"folderRecipients", b"publicFolder"];

/// How many levels are the cluster's. They exist where something lies below them: a change makes those that it needs, and
/// takes them back when it fails.
pub const CLUSTER_LEVELS: usize = 3;

/// Depths of the paths by which a node's holdings change: a domain, an entry of its own level, and an object of a container,
/// which stands one level below the cluster's.
pub const HOLDINGS_DEPTHS: RangeInclusive<usize> = 2..=CLUSTER_LEVELS + 1;

/// True for a name of [`CONTAINERS`].
pub fn is_container(name: &[u8]) -> bool {
    CONTAINERS.contains(&name)
}

/// The domain that a path of the wire lies in, `None` for the levels above.
pub fn domain_of(path: &[u8]) -> Option<&[u8]> {
    let mut components = path.split(|byte| *byte == b'/');
    if components.next() != Some(DOMAINS) {
        return None;
    }
    components.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_in_a_domain_or_above_all() {
        assert_eq!(domain_of(b"domains/example.org/users"), Some(&b"example.org"[..]));
        assert_eq!(domain_of(b"domains/example.org"), Some(&b"example.org"[..]));
        for above in [&b""[..], b"domains", b"cluster/nodes.cfg"] {
            assert_eq!(domain_of(above), None);
        }
    }
}
