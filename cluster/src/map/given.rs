//! A map that somebody keeps: the static one of the configuration, or a directory's.

use std::collections::BTreeMap;

use portolan_config::checked::map::MapDomain;
use portolan_proto::id::NodeId;

use super::{NodeFacts, NodeIndex, Role};

/// Domains with their nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GivenMap {
    pub(super) domains: BTreeMap<Box<[u8]>, GivenDomain>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GivenDomain {
    /// The home node first.
    pub(super) nodes: Vec<NodeIndex>,
    /// Objects of which it is known on which of the nodes they lie.
    pub(super) objects: BTreeMap<Box<[u8]>, NodeIndex>,
    /// A word for one of its nodes that means none: so long as that is so, nobody knows all of its nodes.
    pub(super) unresolved: Option<Box<str>>,
}

impl GivenMap {
    /// The map of the configuration, which names nodes that there are.
    pub(super) fn of_configuration(nodes: &[NodeFacts], domains: &[MapDomain]) -> Self {
        let index = |name: &NodeId| {
            let place = nodes.iter().position(|node| node.name == *name && node.role != Role::Out);
            NodeIndex(place.expect("the configuration was checked: the map names its nodes"))
        };
        let mut map = Self::default();
        for domain in domains {
            for node in &domain.nodes {
                map.add_node(&domain.name, index(node));
            }
            for (object, node) in &domain.objects {
                map.add_object(&domain.name, object, index(node));
            }
        }
        map
    }

    /// A domain lies on a node; the first one that is told is its home node.
    pub fn add_node(&mut self, domain: &[u8], node: NodeIndex) {
        let given = self.domains.entry(domain.into()).or_default();
        if !given.nodes.contains(&node) {
            given.nodes.push(node);
        }
    }

    /// An object lies on a node, which then is one of the domain's.
    pub fn add_object(&mut self, domain: &[u8], object: &[u8], node: NodeIndex) {
        self.add_node(domain, node);
        if let Some(given) = self.domains.get_mut(domain) {
            given.objects.insert(object.into(), node);
        }
    }

    /// A part of a domain lies on a node that this word is for, and there is none.
    pub fn add_unresolved(&mut self, domain: &[u8], word: &str) {
        self.domains.entry(domain.into()).or_default().unresolved.get_or_insert_with(|| word.into());
    }

    /// Where an object lies that was added.
    pub fn object(&self, domain: &[u8], object: &[u8]) -> Option<NodeIndex> {
        self.domains.get(domain)?.objects.get(object).copied()
    }

    /// An object lies on one of the domain's nodes, and it is not known on which.
    pub fn forget_object(&mut self, domain: &[u8], object: &[u8]) {
        if let Some(given) = self.domains.get_mut(domain) {
            given.objects.remove(object);
        }
    }

    /// Domains that it knows.
    pub fn len(&self) -> usize {
        self.domains.len()
    }

    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    pub(super) fn nodes(&self, domain: &[u8]) -> Option<&[NodeIndex]> {
        self.domains.get(domain).map(|given| &given.nodes[..])
    }
}
