//! What nodes hold and no client is shown, because the map leads elsewhere: it is in no backup.
//!
//! Who calls it: the operator's commands for a domain, a chore of the front end for all of them.
//! What it calls: the snapshot that it is part of.
//! What it never does: decide where a path leads; that is `snapshot`.

use itertools::Itertools as _;

use super::{NodeIndex, Snapshot};

/// Objects of a domain that are named at most; the others are counted.
const NAMED_MAX: usize = 20;

/// What is not shown of a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Nodes that announce the domain though the source that decides does not name them.
    pub elsewhere: Vec<NodeIndex>,
    /// The first objects of which a copy is not shown, in byte order.
    pub objects: Vec<HiddenObject>,
    /// All of them.
    pub objects_count: usize,
}

/// An object such as `users/anna` that lies on another node than the one that is asked for it, or on more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenObject {
    pub object: Vec<u8>,
    /// Where clients find it; `None`: nowhere.
    pub shown: Option<NodeIndex>,
    /// Where else it lies.
    pub hidden: Vec<NodeIndex>,
}

/// How much is not shown, in all domains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conflicts {
    /// Domains that lie on nodes which the map does not name.
    pub domains: usize,
    /// Objects of which a copy is not shown.
    pub objects: usize,
}

impl Snapshot {
    /// What is hidden of a domain that the map places on `nodes`. Entries of a domain's own level are left out: they come
    /// from the home node.
    pub fn hidden(&self, domain: &[u8], nodes: &[NodeIndex]) -> Hidden {
        let holders = self.announcers(|held| held.holds(domain));
        let (there, elsewhere): (Vec<_>, Vec<_>) = holders.into_iter().partition(|node| nodes.contains(node));
        let mut hidden = Hidden { elsewhere, ..Hidden::default() };
        if there.is_empty() || nodes.len() < 2 {
            return hidden;
        }
        let of_node = |node: NodeIndex| {
            let objects = self.held(node).and_then(|held| held.domains.get(domain));
            objects
                .into_iter()
                .flatten()
                .filter(|object| object.contains(&b'/'))
                .map(move |object| (object, node))
        };
        let all = there.into_iter().map(of_node).kmerge();
        for (object, copies) in &all.chunk_by(|(object, _)| *object) {
            let lies_on: Vec<NodeIndex> = copies.map(|(_, node)| node).collect();
            let shown = self.object_node(domain, object, nodes).or_else(|| {
                // No source knows it, so the nodes are asked in their order.
                nodes.iter().find(|node| lies_on.contains(node)).copied()
            });
            let others: Vec<NodeIndex> =
                lies_on.iter().filter(|node| shown != Some(**node)).copied().collect();
            if others.is_empty() {
                continue;
            }
            hidden.objects_count += 1;
            if hidden.objects.len() < NAMED_MAX {
                let shown = shown.filter(|node| lies_on.contains(node));
                hidden.objects.push(HiddenObject { object: object.to_vec(), shown, hidden: others });
            }
        }
        hidden
    }

    /// How much is hidden in all. It looks at each object of each domain of several nodes.
    pub fn conflicts(&self) -> Conflicts {
        let mut conflicts = Conflicts::default();
        let held = self.primaries().filter_map(|node| self.held(node));
        let domains = held.map(|held| held.domains.keys()).kmerge().dedup();
        for domain in domains {
            let Ok((_, nodes)) = self.domain_nodes(domain) else { continue };
            let hidden = self.hidden(domain, &nodes);
            conflicts.domains += usize::from(!hidden.elsewhere.is_empty());
            conflicts.objects += hidden.objects_count;
        }
        conflicts
    }
}
