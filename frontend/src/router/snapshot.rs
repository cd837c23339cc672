//! One immutable state of the map: the static map and what the nodes announced, combined by order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portolan_config::checked::frontend::{Map, MapDomain, MapSource, Placement};
use portolan_proto::id::NodeId;
use portolan_proto::path;
use portolan_proto::v1::HoldingChange;

use super::{Error, NodeHoldings, NodeIndex};
use crate::tree::path::{Place, VirtualPath};

/// Which node to ask for a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The levels that the front end makes itself: `/` and `/domains`.
    Virtual,
    /// The whole path is this node's.
    Node(NodeIndex),
    /// A directory whose entries lie on several nodes; the home node first.
    Union(Vec<NodeIndex>),
    /// It lies on one of these, if anywhere, and no source says on which; the home node first.
    Search(Vec<NodeIndex>),
}

#[derive(Debug, Clone)]
pub struct Snapshot {
    nodes: Arc<[NodeId]>,
    sources: Arc<[MapSource]>,
    placement: Placement,
    fixed: Arc<BTreeMap<Vec<u8>, FixedDomain>>,
    /// By node; `None` until the node was heard for the first time. A node that goes away keeps its last.
    announced: Vec<Option<Arc<NodeHoldings>>>,
    /// By node: whether what it announced is what it holds now.
    current: Vec<bool>,
}

#[derive(Debug)]
struct FixedDomain {
    nodes: Vec<NodeIndex>,
    objects: BTreeMap<Vec<u8>, NodeIndex>,
}

impl Snapshot {
    pub(super) fn new(nodes: Vec<NodeId>, map: &Map) -> Self {
        Self {
            fixed: Arc::new(fixed(&nodes, map)),
            announced: vec![None; nodes.len()],
            current: vec![false; nodes.len()],
            nodes: nodes.into(),
            sources: map.sources.clone().into(),
            placement: map.placement,
        }
    }

    pub(super) fn set_map(&mut self, map: &Map) {
        self.fixed = Arc::new(fixed(&self.nodes, map));
        self.sources = map.sources.clone().into();
        self.placement = map.placement;
        for node in 0..self.nodes.len() {
            self.report_conflicts(NodeIndex(node), None);
        }
    }

    pub(super) fn set_holdings(&mut self, node: NodeIndex, holdings: Arc<NodeHoldings>) {
        self.announced[node.0] = Some(holdings);
        self.current[node.0] = true;
        self.report_conflicts(node, None);
    }

    pub(super) fn set_away(&mut self, node: NodeIndex) {
        self.current[node.0] = false;
    }

    pub(super) fn change_holdings(&mut self, node: NodeIndex, changes: &[HoldingChange]) {
        let mut holdings = self.announced[node.0].take().unwrap_or_default();
        Arc::make_mut(&mut holdings).apply(changes);
        self.announced[node.0] = Some(holdings);
        let touched = changes.iter().filter(|change| !change.removed).map(|change| change.domain.to_vec());
        self.report_conflicts(node, Some(touched.collect()));
    }

    /// Logs where what a node announces and the static map disagree.
    fn report_conflicts(&self, node: NodeIndex, only: Option<BTreeSet<Vec<u8>>>) {
        if !(self.uses(MapSource::Static) && self.uses(MapSource::Announced)) {
            return;
        }
        let Some(held) = &self.announced[node.0] else { return };
        let concerned = |name: &Vec<u8>| only.as_ref().is_none_or(|only| only.contains(name));
        let node_name = &self.nodes[node.0];
        for domain in held.domains.keys().filter(|name| concerned(name)) {
            if self.fixed.get(domain).is_some_and(|fixed| !fixed.nodes.contains(&node)) {
                let domain = path::display(domain);
                tracing::warn!(domain, node = %node_name, "the static map places a domain elsewhere than a node announces");
            }
        }
        for (domain, fixed) in self.fixed.iter().filter(|(name, _)| concerned(name)) {
            if fixed.nodes.contains(&node) && self.is_surely_absent(domain, fixed) {
                let domain = path::display(domain);
                tracing::warn!(domain, node = %node_name, "the static map places a domain where no node has it; it is not listed");
            }
        }
    }

    /// True when every node that should hold a part of a domain is there and says that it holds none.
    fn is_surely_absent(&self, domain: &[u8], fixed: &FixedDomain) -> bool {
        fixed.nodes.iter().all(|node| {
            let held = self.announced[node.0].as_ref();
            self.current[node.0] && held.is_some_and(|held| !held.domains.contains_key(domain))
        })
    }

    fn uses(&self, source: MapSource) -> bool {
        self.sources.contains(&source)
    }

    /// The first node that has not been heard yet.
    fn unheard(&self) -> Option<Error> {
        let place = self.announced.iter().position(Option::is_none)?;
        Some(Error::Unheard { node: self.nodes[place].clone() })
    }

    /// All domains that a source knows, in byte order. A domain of the static map is left out only when all
    /// its nodes are there and say that they hold none of it: then it can be made again by a restore.
    ///
    /// # Errors
    /// `Unheard`, when announcements count and a node has made none: the list could lack its domains.
    pub fn domains(&self) -> Result<BTreeSet<Vec<u8>>, Error> {
        let mut domains = BTreeSet::new();
        let announcements_count = self.uses(MapSource::Announced);
        if self.uses(MapSource::Static) {
            let present = self
                .fixed
                .iter()
                .filter(|(name, fixed)| !(announcements_count && self.is_surely_absent(name, fixed)));
            domains.extend(present.map(|(name, _)| name.clone()));
        }
        if announcements_count {
            if let Some(unheard) = self.unheard() {
                return Err(unheard);
            }
            for held in self.announced.iter().flatten() {
                domains.extend(held.domains.keys().cloned());
            }
        }
        Ok(domains)
    }

    /// The nodes of a domain by the first source that knows it; the home node first.
    fn domain_nodes(&self, domain: &[u8]) -> Result<Vec<NodeIndex>, Error> {
        for source in self.sources.iter() {
            match source {
                MapSource::Static => {
                    if let Some(fixed) = self.fixed.get(domain) {
                        return Ok(fixed.nodes.clone());
                    }
                }
                MapSource::Announced => {
                    // A node that was never heard may hold a part: without it the set would be short.
                    if let Some(unheard) = self.unheard() {
                        return Err(unheard);
                    }
                    let nodes = self.announcers(|held| held.domains.contains_key(domain));
                    if !nodes.is_empty() {
                        return Ok(nodes);
                    }
                }
            }
        }
        Err(Error::UnknownDomain)
    }

    /// The nodes that may hold a part of a domain. Announcements help to find data, but they lag, so they never
    /// prove absence: where they decide, every node that is there is asked too.
    fn nodes_to_ask(&self, domain: &[u8]) -> Result<Vec<NodeIndex>, Error> {
        let mut nodes = self.domain_nodes(domain)?;
        if !(self.uses(MapSource::Static) && self.fixed.contains_key(domain)) {
            let there = (0..self.nodes.len()).map(NodeIndex).filter(|node| self.current[node.0]);
            let others: Vec<_> = there.filter(|node| !nodes.contains(node)).collect();
            nodes.extend(others);
        }
        Ok(nodes)
    }

    fn announcers(&self, holds: impl Fn(&NodeHoldings) -> bool) -> Vec<NodeIndex> {
        let holders = self.announced.iter().enumerate();
        holders
            .filter(|(_, held)| held.as_ref().is_some_and(|held| holds(held)))
            .map(|(index, _)| NodeIndex(index))
            .collect()
    }

    /// Which node to ask for `path`.
    pub fn route(&self, path: &VirtualPath) -> Result<Route, Error> {
        match path.place() {
            Place::Root | Place::Domains => Ok(Route::Virtual),
            Place::Nowhere => Err(Error::UnknownDomain),
            Place::Domain { domain } | Place::Container { domain } => {
                let nodes = self.nodes_to_ask(domain)?;
                Ok(if let [only] = nodes[..] { Route::Node(only) } else { Route::Union(nodes) })
            }
            Place::Object { domain, object } => {
                let nodes = self.nodes_to_ask(domain)?;
                if let [only] = nodes[..] {
                    return Ok(Route::Node(only));
                }
                Ok(self.object_node(domain, object, &nodes).map_or(Route::Search(nodes), Route::Node))
            }
        }
    }

    /// The node of an object of a domain that lies on several, by the first source that knows it.
    fn object_node(&self, domain: &[u8], object: &[u8], nodes: &[NodeIndex]) -> Option<NodeIndex> {
        for source in self.sources.iter() {
            let found = match source {
                MapSource::Static => {
                    self.fixed.get(domain).and_then(|fixed| fixed.objects.get(object).copied())
                }
                MapSource::Announced => {
                    let holders = self.announcers(|held| {
                        held.domains.get(domain).is_some_and(|objects| objects.contains(object))
                    });
                    // In the order of the domain's nodes, so that its own files come from the home node.
                    nodes.iter().copied().find(|node| holders.contains(node))
                }
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Where a domain or object is created that lies nowhere yet.
    pub fn place(&self, path: &VirtualPath) -> Result<NodeIndex, Error> {
        let domain = match path.place() {
            Place::Domain { domain } | Place::Container { domain } | Place::Object { domain, .. } => domain,
            Place::Root | Place::Domains | Place::Nowhere => return Err(Error::Unplaced),
        };
        match (self.domain_nodes(domain), self.placement) {
            // One node holds the domain: the map itself places what is new in it.
            (Ok(nodes), _) if nodes.len() == 1 => Ok(nodes[0]),
            (Ok(nodes), Placement::HomeNode) => Ok(nodes[0]),
            (Err(Error::UnknownDomain), Placement::HomeNode) if self.nodes.len() == 1 => Ok(NodeIndex(0)),
            (Err(error @ (Error::Unheard { .. } | Error::Unplaced)), _) => Err(error),
            (Ok(_) | Err(Error::UnknownDomain), Placement::Refuse | Placement::HomeNode) => {
                Err(Error::Unplaced)
            }
        }
    }
}

/// The domains of the static map.
fn fixed(nodes: &[NodeId], map: &Map) -> BTreeMap<Vec<u8>, FixedDomain> {
    let index = |name: &NodeId| {
        let place = nodes.iter().position(|node| node == name);
        NodeIndex(place.expect("the configuration was checked: the map names its nodes"))
    };
    let domain = |domain: &MapDomain| {
        let fixed = FixedDomain {
            nodes: domain.nodes.iter().map(index).collect(),
            objects: domain.objects.iter().map(|(object, node)| (object.clone(), index(node))).collect(),
        };
        (domain.name.clone(), fixed)
    };
    map.domains.iter().map(domain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn map(placement: Placement) -> Map {
        Map {
            sources: vec![MapSource::Static, MapSource::Announced],
            placement,
            domains: vec![
                MapDomain { name: b"one".to_vec(), nodes: vec![node("n0")], objects: BTreeMap::new() },
                MapDomain {
                    name: b"two".to_vec(),
                    nodes: vec![node("n1"), node("n0")],
                    objects: [(b"users/anna".to_vec(), node("n0"))].into(),
                },
            ],
        }
    }

    fn snapshot(placement: Placement) -> Snapshot {
        Snapshot::new(vec![node("n0"), node("n1"), node("n2")], &map(placement))
    }

    fn announce(snapshot: &mut Snapshot, node: usize, held: &[(&str, &str)]) {
        let mut holdings = NodeHoldings::default();
        for (domain, object) in held {
            let object = (!object.is_empty()).then(|| object.as_bytes().to_vec().into());
            let domain = domain.as_bytes().to_vec().into();
            holdings.apply(&[HoldingChange { domain, object, removed: false }]);
        }
        snapshot.set_holdings(NodeIndex(node), Arc::new(holdings));
    }

    fn route(snapshot: &Snapshot, path: &str) -> Result<Route, Error> {
        snapshot.route(&VirtualPath::resolve(&VirtualPath::default(), path.as_bytes()).unwrap())
    }

    #[test]
    fn without_all_announcements_nothing_is_said_to_be_absent() {
        let mut snapshot = snapshot(Placement::Refuse);
        assert_eq!(snapshot.domains(), Err(Error::Unheard { node: node("n0") }));
        assert_eq!(route(&snapshot, "/domains/three"), Err(Error::Unheard { node: node("n0") }));
        assert_eq!(route(&snapshot, "/domains/one/users/x"), Ok(Route::Node(NodeIndex(0))));
        announce(&mut snapshot, 0, &[]);
        announce(&mut snapshot, 1, &[]);
        assert_eq!(snapshot.domains(), Err(Error::Unheard { node: node("n2") }));
        announce(&mut snapshot, 2, &[("three", "")]);
        let names: Vec<_> = snapshot.domains().unwrap().into_iter().collect();
        // Those that the map knows and nobody has are not listed, as long as nobody is away.
        assert_eq!(names, [&b"three"[..]]);
        snapshot.set_away(NodeIndex(0));
        let names: Vec<_> = snapshot.domains().unwrap().into_iter().collect();
        assert_eq!(names, [&b"one"[..], b"three", b"two"]);
        let all = vec![NodeIndex(2), NodeIndex(1)];
        assert_eq!(
            route(&snapshot, "/domains/three/users"),
            Ok(Route::Union(all)),
            "all that are there are asked"
        );
        assert_eq!(route(&snapshot, "/domains/four"), Err(Error::UnknownDomain));
    }

    #[test]
    fn a_spread_domain_is_a_union_and_its_objects_lie_on_one_node() {
        let mut snapshot = snapshot(Placement::Refuse);
        let (n0, n1) = (NodeIndex(0), NodeIndex(1));
        announce(&mut snapshot, 0, &[("two", "users/bob"), ("two", "domainRegistry.bin")]);
        announce(&mut snapshot, 1, &[("two", "users/anna"), ("two", "domainRegistry.bin")]);
        assert_eq!(route(&snapshot, "/domains/two"), Ok(Route::Union(vec![n1, n0])));
        assert_eq!(route(&snapshot, "/domains/two/users"), Ok(Route::Union(vec![n1, n0])));
        assert_eq!(route(&snapshot, "/domains/two/users/bob/x"), Ok(Route::Node(n0)));
        // The static map is asked first and places anna on n0, whatever n1 says.
        assert_eq!(route(&snapshot, "/domains/two/users/anna"), Ok(Route::Node(n0)));
        assert_eq!(route(&snapshot, "/domains/two/domainRegistry.bin"), Ok(Route::Node(n1)));
        assert_eq!(route(&snapshot, "/domains/two/users/carl"), Ok(Route::Search(vec![n1, n0])));
    }

    #[test]
    fn what_no_source_places_is_placed_by_policy() {
        let path = |text: &str| VirtualPath::resolve(&VirtualPath::default(), text.as_bytes()).unwrap();
        let mut refusing = snapshot(Placement::Refuse);
        let mut homing = snapshot(Placement::HomeNode);
        for index in 0..3 {
            announce(&mut refusing, index, &[]);
            announce(&mut homing, index, &[]);
        }
        assert_eq!(refusing.place(&path("/domains/one/users/x")), Ok(NodeIndex(0)));
        assert_eq!(refusing.place(&path("/domains/two/users/x")), Err(Error::Unplaced));
        assert_eq!(homing.place(&path("/domains/two/users/x")), Ok(NodeIndex(1)));
        assert_eq!(homing.place(&path("/domains/new")), Err(Error::Unplaced));
    }

    #[test]
    fn a_removed_object_is_searched_for_again() {
        let mut snapshot = snapshot(Placement::Refuse);
        announce(&mut snapshot, 1, &[("two", "users/bob")]);
        announce(&mut snapshot, 0, &[]);
        announce(&mut snapshot, 2, &[]);
        assert_eq!(route(&snapshot, "/domains/two/users/bob"), Ok(Route::Node(NodeIndex(1))));
        let removed = HoldingChange {
            domain: b"two".to_vec().into(),
            object: Some(b"users/bob".to_vec().into()),
            removed: true,
        };
        snapshot.change_holdings(NodeIndex(1), &[removed]);
        assert!(matches!(route(&snapshot, "/domains/two/users/bob"), Ok(Route::Search(_))));
    }
}
