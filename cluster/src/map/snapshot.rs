//! One immutable state of the map: its sources, combined by their order.

use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use itertools::Itertools as _;
use portolan_config::checked::map::{Map, MapSource, Placement};
use portolan_proto::id::NodeId;
use portolan_proto::path;
use portolan_proto::v1::HoldingChange;

use super::{Error, GivenMap, NodeFacts, NodeHoldings, NodeIndex, Role};
use crate::path::{Place, VirtualPath};
use crate::record::{self, Doubts};

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

/// Where something is created that lies nowhere yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Site {
    Node(NodeIndex),
    /// On the one of these that has the most room.
    Roomiest(Vec<NodeIndex>),
}

/// An object of a domain, and the node that it lies on by the sources that count.
pub type PlacedObject = (Vec<u8>, Option<NodeIndex>);

/// A domain as the map has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRow {
    pub domain: Vec<u8>,
    pub source: MapSource,
    /// The home node first.
    pub nodes: Vec<NodeIndex>,
    /// What sources that come later say, where it is something else.
    pub conflicts: Vec<(MapSource, Vec<NodeIndex>)>,
    /// A word of the directory that means no node.
    pub unresolved: Option<Box<str>>,
}

#[derive(Debug, Clone)]
pub struct Snapshot {
    nodes: Arc<[NodeFacts]>,
    /// Those that hold a part of the cluster, by their rank.
    primaries: Arc<[NodeIndex]>,
    /// Before so many primaries were heard, announcements are not known whole.
    nodes_min: usize,
    sources: Arc<[MapSource]>,
    placement: Placement,
    mark_partial: bool,
    fixed: Arc<GivenMap>,
    /// `None` until it was read for the first time.
    ldap: Option<Arc<GivenMap>>,
    /// The directory's name, for errors.
    directory: Arc<str>,
    /// By node; `None` until the node was heard for the first time. A node that goes away keeps its last.
    announced: Vec<Option<NodeHoldings>>,
    /// By node: whether what it announced is what it holds now.
    current: Vec<bool>,
    /// By node: what it announces no longer and is not believed to be gone.
    doubts: Vec<Arc<Doubts>>,
    /// When what it says changed last.
    pub since: SystemTime,
}

/// Domains by source.
#[derive(Debug, Clone)]
pub struct Sizes {
    pub fixed: usize,
    /// `None`: it was not read yet, or is no source.
    pub ldap: Option<usize>,
    pub announced: Vec<(NodeId, usize)>,
}

impl Snapshot {
    pub(super) fn new(nodes: Vec<NodeFacts>, nodes_min: usize, map: &Map) -> Self {
        let mut snapshot = Self {
            nodes: [].into(),
            primaries: [].into(),
            nodes_min,
            sources: [].into(),
            placement: map.placement,
            mark_partial: map.mark_partial,
            fixed: Arc::default(),
            ldap: None,
            directory: "".into(),
            announced: Vec::new(),
            current: Vec::new(),
            doubts: Vec::new(),
            since: SystemTime::now(),
        };
        snapshot.set(nodes, nodes_min, map);
        snapshot
    }

    pub(super) fn set(&mut self, nodes: Vec<NodeFacts>, nodes_min: usize, map: &Map) {
        self.announced.resize(nodes.len(), None);
        self.current.resize(nodes.len(), false);
        self.doubts.resize(nodes.len(), Arc::default());
        for (index, _) in nodes.iter().enumerate().filter(|(_, node)| node.role == Role::Out) {
            self.announced[index] = None;
            self.current[index] = false;
            self.doubts[index] = Arc::default();
        }
        self.fixed = Arc::new(GivenMap::of_configuration(&nodes, &map.domains));
        self.since = SystemTime::now();
        let is_primary = |index: &usize| matches!(nodes[*index].role, Role::Primary { .. });
        let by_rank = (0..nodes.len()).filter(is_primary).sorted_by_key(|index| nodes[*index].rank);
        self.primaries = by_rank.map(NodeIndex).collect();
        self.nodes = nodes.into();
        self.nodes_min = nodes_min;
        self.sources = map.sources.clone().into();
        self.placement = map.placement;
        self.mark_partial = map.mark_partial;
        // The map of another directory says nothing of this one's.
        let directory = map.ldap.as_ref().map(|ldap| ldap.directory.as_str()).unwrap_or_default();
        if *self.directory != *directory {
            self.directory = directory.into();
            self.ldap = None;
        }
        self.report_all_conflicts();
    }

    pub(super) fn set_ldap(&mut self, given: GivenMap) {
        if self.ldap.as_deref() == Some(&given) {
            return;
        }
        self.since = SystemTime::now();
        self.ldap = Some(Arc::new(given));
        self.report_all_conflicts();
    }

    fn report_all_conflicts(&self) {
        for node in self.primaries() {
            self.report_conflicts(node, None);
        }
    }

    pub(super) fn set_holdings(&mut self, node: NodeIndex, holdings: NodeHoldings) {
        self.since = SystemTime::now();
        self.announced[node.0] = Some(holdings);
        self.current[node.0] = true;
        self.report_conflicts(node, None);
    }

    pub(super) fn set_away(&mut self, node: NodeIndex) {
        self.current[node.0] = false;
    }

    pub(super) fn change_holdings(&mut self, node: NodeIndex, changes: &[HoldingChange]) {
        if changes.is_empty() {
            return;
        }
        self.since = SystemTime::now();
        self.announced[node.0].get_or_insert_default().apply(changes);
        let touched: Vec<&[u8]> = changes
            .iter()
            .filter(|change| !change.removed)
            .map(|change| &change.domain[..])
            .dedup()
            .collect();
        self.report_conflicts(node, Some(&touched));
    }

    pub(super) fn set_doubts(&mut self, node: NodeIndex, doubts: Doubts) {
        self.since = SystemTime::now();
        self.doubts[node.0] = Arc::new(doubts);
    }

    /// What of a node is not believed to be gone.
    pub fn doubts(&self, node: NodeIndex) -> &Arc<Doubts> {
        &self.doubts[node.0]
    }

    /// Domains and objects of a node that are not believed to be gone. The node may be newer than the snapshot.
    pub fn count_in_doubt(&self, node: NodeIndex) -> usize {
        self.doubts.get(node.0).map_or(0, |doubts| record::count(doubts))
    }

    /// What a node announces now; `None` while it is away.
    pub(super) fn announces_now(&self, node: NodeIndex) -> Option<&NodeHoldings> {
        self.announced[node.0].as_ref().filter(|_| self.current[node.0])
    }

    /// A node announces an object now.
    pub fn announces(&self, node: NodeIndex, domain: &[u8], object: &[u8]) -> bool {
        self.announces_now(node).is_some_and(|held| held.holds_object(domain, object))
    }

    /// Another node announces it now.
    pub(super) fn is_elsewhere(&self, node: NodeIndex, domain: &[u8], object: Option<&[u8]>) -> bool {
        let mut others = self.primaries().filter(|other| *other != node);
        others.any(|other| self.announces_now(other).is_some_and(|held| held.has(domain, object)))
    }

    /// A primary by its name.
    pub fn primary(&self, name: &NodeId) -> Option<NodeIndex> {
        self.primaries().find(|node| self.name(*node) == name)
    }

    /// A node has a domain, by its own word or because its absence is in doubt.
    fn has_domain(&self, node: NodeIndex, domain: &[u8]) -> bool {
        self.held(node).is_some_and(|held| held.holds(domain)) || self.doubts[node.0].contains_key(domain)
    }

    /// An object, or with it all of a domain, is missing on a node and not believed to be gone.
    fn doubt(&self, nodes: &[NodeIndex], domain: &[u8], object: Option<&[u8]>) -> Option<Error> {
        let announced = |node: &NodeIndex| self.held(*node).is_some_and(|held| held.has(domain, object));
        if nodes.iter().any(announced) {
            return None;
        }
        nodes.iter().find_map(|node| {
            let doubt = self.doubts[node.0].get(domain)?;
            let is_of_domain = || {
                doubt.whole
                    && !nodes.iter().any(|node| self.held(*node).is_some_and(|held| held.holds(domain)))
            };
            let is_doubted =
                object.is_some_and(|object| doubt.objects.contains_key(object)) || is_of_domain();
            let name = self.name(*node);
            let confirm = if doubt.of_node { name.to_string() } else { path::display(domain) };
            is_doubted.then(|| Error::InDoubt { node: name.clone(), confirm })
        })
    }

    /// Objects of a domain that are in doubt on a node, whose names begin with `prefix`, each with the time since which it
    /// is missing, in nanoseconds since 1970.
    pub fn doubted_objects<'a>(
        &'a self,
        node: NodeIndex,
        domain: &[u8],
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], i64)> {
        let objects = self.doubts[node.0].get(domain).map(|doubt| &doubt.objects);
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let objects = objects.into_iter().flat_map(move |objects| objects.range::<[u8], _>(from));
        objects.map(|(name, since)| (&name[..], *since)).take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// Objects of a domain that a node announces now, whose names begin with `prefix`, after one of them, in byte order.
    pub fn announced_objects<'a>(
        &'a self,
        node: NodeIndex,
        domain: &[u8],
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = &'a [u8]> {
        let objects = self.announces_now(node).and_then(|held| held.domains.get(domain));
        let from = (after.map_or(Bound::Included(prefix), Bound::Excluded), Bound::Unbounded);
        let objects = objects.into_iter().flat_map(move |objects| objects.range::<_, [u8]>(from));
        objects.map(|name| &name[..]).take_while(move |name| name.starts_with(prefix))
    }

    /// How many domains each source knows.
    pub fn sizes(&self) -> Sizes {
        let announced = self.primaries().filter_map(|node| {
            let holdings = self.announced[node.0].as_ref()?;
            Some((self.name(node).clone(), holdings.domains.len()))
        });
        Sizes {
            fixed: self.fixed.len(),
            ldap: self.ldap.as_ref().map(|ldap| ldap.len()),
            announced: announced.collect(),
        }
    }

    pub fn name(&self, node: NodeIndex) -> &NodeId {
        &self.nodes[node.0].name
    }

    /// Those that are not taken out.
    pub fn facts(&self) -> impl Iterator<Item = (NodeIndex, &NodeFacts)> {
        let nodes = self.nodes.iter().enumerate().map(|(index, facts)| (NodeIndex(index), facts));
        nodes.filter(|(_, facts)| facts.role != Role::Out).sorted_by_key(|(_, facts)| facts.rank)
    }

    /// Those that hold a part of the cluster.
    pub fn primaries(&self) -> impl Iterator<Item = NodeIndex> + use<'_> {
        self.primaries.iter().copied()
    }

    /// Fewer nodes are known than there are said to be.
    fn too_few(&self) -> Option<Error> {
        let (found, expected) = (self.primaries.len(), self.nodes_min);
        (found < expected).then_some(Error::TooFew { found, expected })
    }

    pub(super) fn role(&self, node: NodeIndex) -> &Role {
        &self.nodes[node.0].role
    }

    /// The places of all nodes, also of those that are taken out.
    pub(super) fn indexes(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        (0..self.nodes.len()).map(NodeIndex)
    }

    /// Who has what a node has, in the order in which they are asked when it is away.
    pub fn standbys(&self, node: NodeIndex) -> &[NodeIndex] {
        match &self.nodes[node.0].role {
            Role::Primary { standbys, .. } => standbys,
            Role::Standby | Role::Out => &[],
        }
    }

    /// True when the standbys of a node are written to while it is away.
    pub fn writes_to_standbys(&self, node: NodeIndex) -> bool {
        matches!(self.nodes[node.0].role, Role::Primary { writes: true, .. })
    }

    /// True when what is known by name is listed while its node is away.
    pub fn marks_partial(&self) -> bool {
        self.mark_partial
    }

    /// What a node holds as far as it was heard, or else one that has the same.
    pub(super) fn held(&self, node: NodeIndex) -> Option<&NodeHoldings> {
        let who = std::iter::once(&node).chain(self.standbys(node));
        who.filter_map(|node| self.announced[node.0].as_ref()).next()
    }

    /// Logs where what a node announces and what is given disagree.
    fn report_conflicts(&self, node: NodeIndex, only: Option<&[&[u8]]>) {
        if !self.uses(MapSource::Announced) {
            return;
        }
        let Some(held) = self.held(node) else { return };
        let name = self.name(node);
        for (source, given) in self.givens() {
            let elsewhere = |domain: &[u8]| {
                given.nodes(domain).is_some_and(|nodes| held.holds(domain) && !nodes.contains(&node))
            };
            let absent = |domain: &[u8]| {
                given
                    .nodes(domain)
                    .is_some_and(|nodes| nodes.contains(&node) && self.is_surely_absent(domain, nodes))
            };
            let report = |domain: &[u8]| {
                let shown = || path::display(domain);
                if elsewhere(domain) {
                    tracing::warn!(domain = shown(), node = %name, "the {source} map places a domain elsewhere than a node announces");
                }
                if absent(domain) {
                    tracing::warn!(domain = shown(), node = %name, "the {source} map places a domain where no node has it; it is not listed");
                }
            };
            match only {
                Some(only) => only.iter().copied().for_each(report),
                None => given.domains.keys().map(|domain| &domain[..]).for_each(report),
            }
        }
    }

    /// True when every node that should hold a part of a domain is there and says that it holds none.
    fn is_surely_absent(&self, domain: &[u8], nodes: &[NodeIndex]) -> bool {
        // Where all its nodes are unknown words, nobody can say so.
        !nodes.is_empty()
            && nodes.iter().all(|node| {
                self.current[node.0]
                    && !self.doubts[node.0].contains_key(domain)
                    && self.announced[node.0].as_ref().is_some_and(|held| !held.holds(domain))
            })
    }

    fn uses(&self, source: MapSource) -> bool {
        self.sources.contains(&source)
    }

    /// The maps that somebody keeps and that count, as far as they were read.
    fn givens(&self) -> impl Iterator<Item = (MapSource, &GivenMap)> {
        self.sources.iter().filter_map(|source| Some((*source, self.given(*source)?)))
    }

    fn given(&self, source: MapSource) -> Option<&GivenMap> {
        match source {
            MapSource::Static => Some(&self.fixed),
            MapSource::Ldap => self.ldap.as_deref(),
            MapSource::Announced => None,
        }
    }

    /// What of a source is not known yet.
    fn unknown(&self, source: MapSource) -> Option<Error> {
        match source {
            MapSource::Static => None,
            MapSource::Ldap if self.ldap.is_some() => None,
            MapSource::Ldap => Some(Error::Unread { directory: self.directory.to_string() }),
            MapSource::Announced => {
                if let Some(unheard) = self.primaries().find(|node| self.held(*node).is_none()) {
                    return Some(Error::Unheard { node: self.name(unheard).clone() });
                }
                self.too_few()
            }
        }
    }

    /// The next domains after a name that a source knows, in byte order, each once. A domain that is only given is left out
    /// when all its nodes are there and say that they hold none of it: then it can be made again by a restore.
    ///
    /// # Errors
    /// A source that counts is not known yet: the list could lack its domains.
    pub fn domains_after(&self, after: Option<&[u8]>, most: usize) -> Result<Vec<Vec<u8>>, Error> {
        // Where names are kept while their nodes are away, the maps that somebody keeps are enough.
        let enough = self.mark_partial && self.givens().any(|(_, given)| !given.is_empty());
        let needed = self.sources.iter().filter(|source| !(enough && **source == MapSource::Announced));
        if let Some(unknown) = needed.copied().find_map(|source| self.unknown(source)) {
            return Err(unknown);
        }
        let range = || (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let announcements_count = self.uses(MapSource::Announced);
        let given = self.givens().map(|(_, given)| {
            let domains = given.domains.range::<[u8], _>(range());
            let present = domains.filter(move |(name, given)| {
                let known = given.unresolved.is_none();
                !(announcements_count && known && self.is_surely_absent(name, &given.nodes))
            });
            Box::new(present.map(|(name, _)| &name[..])) as Box<dyn Iterator<Item = &[u8]>>
        });
        let heard = self.primaries().filter_map(|node| self.held(node));
        let held = heard.filter(|_| announcements_count).map(|held| {
            let domains = held.domains.range::<_, [u8]>(range());
            Box::new(domains.map(|(name, _)| &name[..])) as Box<dyn Iterator<Item = &[u8]>>
        });
        let doubts = self.primaries().map(|node| {
            let domains = self.doubts[node.0].range::<[u8], _>(range());
            Box::new(domains.map(|(name, _)| &name[..])) as Box<dyn Iterator<Item = &[u8]>>
        });
        Ok(given.chain(held).chain(doubts).kmerge().dedup().take(most).map(<[u8]>::to_vec).collect())
    }

    /// What the sources say of a domain, in their order; those that do not know it are left out.
    fn says(&self, domain: &[u8]) -> impl Iterator<Item = Result<(MapSource, Vec<NodeIndex>), Error>> {
        self.sources.iter().filter_map(move |source| {
            // Where a source is not known whole, what it would add is not known either.
            if let Some(unknown) = self.unknown(*source) {
                return Some(Err(unknown));
            }
            let nodes = match self.given(*source) {
                Some(given) => {
                    let given = given.domains.get(domain);
                    if let Some(word) = given.and_then(|given| given.unresolved.as_ref()) {
                        return Some(Err(Error::Unresolved { word: word.to_string() }));
                    }
                    given.map(|given| given.nodes.clone()).unwrap_or_default()
                }
                None => self.holders(domain),
            };
            (!nodes.is_empty()).then_some(Ok((*source, nodes)))
        })
    }

    /// The nodes of a domain by the first source that knows it, and that source; the home node first.
    pub(super) fn domain_nodes(&self, domain: &[u8]) -> Result<(MapSource, Vec<NodeIndex>), Error> {
        self.says(domain).next().unwrap_or(Err(Error::UnknownDomain))
    }

    /// The domain as the map has it, with what sources say otherwise.
    pub fn row(&self, domain: &[u8]) -> Result<MapRow, Error> {
        let (source, nodes) = match self.domain_nodes(domain) {
            Err(Error::Unresolved { .. }) => {
                let given =
                    self.givens().find_map(|(source, given)| Some((source, given.domains.get(domain)?)));
                let (source, given) = given.ok_or(Error::UnknownDomain)?;
                let (domain, nodes) = (domain.to_vec(), given.nodes.clone());
                let unresolved = given.unresolved.clone();
                return Ok(MapRow { domain, source, nodes, conflicts: Vec::new(), unresolved });
            }
            nodes => nodes?,
        };
        let sorted = |nodes: &[NodeIndex]| nodes.iter().copied().sorted().collect_vec();
        let others = self.says(domain).skip(1).filter_map(Result::ok);
        let conflicts = others.filter(|(_, other)| sorted(other) != sorted(&nodes)).collect();
        Ok(MapRow { domain: domain.to_vec(), source, nodes, conflicts, unresolved: None })
    }

    /// The nodes that may hold a part of a domain. Announcements help to find data, but they lag, so they never
    /// prove absence: where they decide, every node that is there is asked too.
    fn nodes_to_ask(&self, domain: &[u8]) -> Result<Vec<NodeIndex>, Error> {
        let (source, mut nodes) = self.domain_nodes(domain)?;
        if source == MapSource::Announced {
            let others = self.primaries().filter(|node| self.current[node.0] && !nodes.contains(node));
            nodes.extend(others.collect_vec());
        }
        Ok(nodes)
    }

    pub(super) fn announcers(&self, holds: impl Fn(&NodeHoldings) -> bool) -> Vec<NodeIndex> {
        self.primaries().filter(|node| self.held(*node).is_some_and(&holds)).collect()
    }

    fn holders(&self, domain: &[u8]) -> Vec<NodeIndex> {
        self.primaries().filter(|node| self.has_domain(*node, domain)).collect()
    }

    /// Which node to ask for `path`.
    pub fn route(&self, path: &VirtualPath) -> Result<Route, Error> {
        match path.place() {
            Place::Root | Place::Domains | Place::Cluster | Place::ClusterFile { .. } => Ok(Route::Virtual),
            Place::Nowhere => Err(Error::UnknownDomain),
            Place::Domain { domain } | Place::Container { domain } => {
                let nodes = self.nodes_to_ask(domain)?;
                if let Some(doubt) = self.doubt(&nodes, domain, None) {
                    return Err(doubt);
                }
                Ok(if let [only] = nodes[..] { Route::Node(only) } else { Route::Union(nodes) })
            }
            Place::Object { domain, object } => {
                let nodes = match self.nodes_to_ask(domain) {
                    // What the directory places itself can be asked for all the same.
                    Err(unresolved @ Error::Unresolved { .. }) => {
                        let placed = self.givens().find_map(|(_, given)| given.object(domain, object));
                        return placed.map(Route::Node).ok_or(unresolved);
                    }
                    nodes => nodes?,
                };
                if let Some(doubt) = self.doubt(&nodes, domain, Some(object)) {
                    return Err(doubt);
                }
                if let [only] = nodes[..] {
                    return Ok(Route::Node(only));
                }
                Ok(self.object_node(domain, object, &nodes).map_or(Route::Search(nodes), Route::Node))
            }
        }
    }

    /// The node of an object of a domain that lies on several, by the first source that knows it.
    pub(super) fn object_node(&self, domain: &[u8], object: &[u8], nodes: &[NodeIndex]) -> Option<NodeIndex> {
        self.sources.iter().find_map(|source| match self.given(*source) {
            // One that a source places where, by the source that decides, nothing of the domain lies, would not be listed.
            Some(given) => given.object(domain, object).filter(|node| nodes.contains(node)),
            // In the order of the domain's nodes, so that its own files come from the home node.
            None if *source == MapSource::Announced => {
                let holds = |node: &&NodeIndex| {
                    self.held(**node).is_some_and(|held| held.holds_object(domain, object))
                };
                nodes.iter().find(holds).copied()
            }
            None => None,
        })
    }

    /// Objects of a domain that a node is known to have, as of now or as it announced last, whose names begin with `prefix`, after
    /// one of them, in byte order. `None`: nothing is known of the node's part.
    pub fn known_objects(
        &self,
        node: NodeIndex,
        domain: &[u8],
        prefix: &[u8],
        after: Option<&[u8]>,
        most: usize,
    ) -> Option<Vec<Vec<u8>>> {
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let held = self.held(node).map(|held| {
            let objects = held.domains.get(domain);
            let objects = objects.map(|objects| objects.range::<_, [u8]>((from, Bound::Unbounded)));
            let named = objects.into_iter().flatten().map(|name| &name[..]);
            Box::new(named) as Box<dyn Iterator<Item = &[u8]>>
        });
        let given = self.givens().filter_map(|(_, given)| {
            let objects = &given.domains.get(domain)?.objects;
            // Only the first page has to find out whether anything is known: a look at all of them for each would add up.
            (self.held(node).is_some() || after.is_some() || objects.values().any(|at| *at == node)).then(
                || {
                    let range = objects.range::<[u8], _>((from, Bound::Unbounded));
                    let named = range.filter(move |(_, at)| **at == node).map(|(name, _)| &name[..]);
                    Box::new(named) as Box<dyn Iterator<Item = &[u8]>>
                },
            )
        });
        let known: Vec<_> = held.into_iter().chain(given).collect();
        if known.is_empty() {
            return None;
        }
        let below = known.into_iter().kmerge().dedup().take_while(|name| name.starts_with(prefix));
        Some(below.take(most).map(<[u8]>::to_vec).collect())
    }

    /// The next objects of a domain after one of them that its nodes are known to have, in byte order, each once.
    pub fn objects_after(
        &self,
        domain: &[u8],
        after: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<PlacedObject>, Error> {
        let (_, nodes) = self.domain_nodes(domain)?;
        let known = nodes.iter().filter_map(|node| self.known_objects(*node, domain, b"", after, most));
        let next = known.kmerge().dedup().take(most);
        let placed = next.map(|object| {
            let node = self.object_node(domain, &object, &nodes);
            (object, node)
        });
        Ok(placed.collect())
    }

    /// Where a domain or object is created that lies nowhere yet. `seen`: the node that it was last seen on, which counts
    /// before the placement, but never against a map that somebody keeps.
    pub fn place(&self, path: &VirtualPath, seen: Option<NodeIndex>) -> Result<Site, Error> {
        let domain = match path.place() {
            Place::Domain { domain } | Place::Container { domain } | Place::Object { domain, .. } => domain,
            Place::Root | Place::Domains | Place::Cluster | Place::ClusterFile { .. } | Place::Nowhere => {
                return Err(Error::Unplaced);
            }
        };
        if let Some(too_few) = self.too_few() {
            return Err(too_few);
        }
        let placed = self.domain_nodes(domain);
        if let Some(seen) = seen {
            let counts = match &placed {
                Ok((source, nodes)) => *source == MapSource::Announced || nodes.contains(&seen),
                Err(error) => *error == Error::UnknownDomain,
            };
            if counts {
                return Ok(Site::Node(seen));
            }
        }
        match (placed, self.placement) {
            // One node holds the domain: the map itself places what is new in it.
            (Ok((_, nodes)), _) if nodes.len() == 1 => Ok(Site::Node(nodes[0])),
            (Ok((_, nodes)), Placement::HomeNode) => Ok(Site::Node(nodes[0])),
            (Ok((_, nodes)), Placement::LeastUsed) => Ok(Site::Roomiest(nodes)),
            (Err(Error::UnknownDomain), Placement::HomeNode) => match &self.primaries().collect_vec()[..] {
                [only] => Ok(Site::Node(*only)),
                _ => Err(Error::Unplaced),
            },
            (Err(Error::UnknownDomain), Placement::LeastUsed) => {
                Ok(Site::Roomiest(self.primaries().collect()))
            }
            (Ok(_) | Err(Error::UnknownDomain), Placement::Refuse) => Err(Error::Unplaced),
            (Err(error), _) => Err(error),
        }
    }

    /// How a path is routed, step by step, for people.
    pub fn explain(&self, path: &VirtualPath) -> Vec<String> {
        let named = |nodes: &[NodeIndex]| nodes.iter().map(|node| self.name(*node).as_str()).join(", ");
        let mut steps = vec![format!("path: {path}")];
        let domain = match path.place() {
            Place::Domain { domain } | Place::Container { domain } | Place::Object { domain, .. } => domain,
            Place::Root | Place::Domains | Place::Cluster | Place::ClusterFile { .. } | Place::Nowhere => &[],
        };
        for source in self.sources.iter().filter(|_| !domain.is_empty()) {
            let said = match (self.unknown(*source), self.given(*source)) {
                (Some(unknown), _) => unknown.to_string(),
                (None, Some(given)) => {
                    given.nodes(domain).map_or("does not know the domain".to_owned(), named)
                }
                (None, None) => match &self.holders(domain)[..] {
                    [] => "no node announces the domain".to_owned(),
                    nodes => named(nodes),
                },
            };
            steps.push(format!("source {source}: {said}"));
        }
        if let Ok(row) = self.row(domain) {
            steps.push(format!("the domain lies on: {} (by {})", named(&row.nodes), row.source));
            for (source, nodes) in &row.conflicts {
                steps.push(format!("conflict: {source} says {}", named(nodes)));
            }
        }
        for node in self.primaries().filter(|node| !self.current[node.0]) {
            steps.push(format!("node {} is away: what it announced last is taken to stand", self.name(node)));
        }
        steps.push(match self.route(path) {
            Ok(Route::Virtual) => "made by the front end".to_owned(),
            Ok(Route::Node(node)) => format!("asked: {}", self.name(node)),
            Ok(Route::Union(nodes)) => format!("asked, and their parts joined: {}", named(&nodes)),
            Ok(Route::Search(nodes)) => format!("searched for on: {}", named(&nodes)),
            Err(error) => format!("not routed: {error}"),
        });
        steps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::conflicts::{Conflicts, Hidden, HiddenObject};

    use portolan_config::checked::map::MapDomain;

    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn facts(names: &[&str]) -> Vec<NodeFacts> {
        let primary = || Role::Primary { standbys: Vec::new(), writes: false };
        let facts = |(rank, name): (usize, &&str)| NodeFacts {
            name: node(name),
            is_discovered: false,
            role: primary(),
            mail_hosts: Vec::new(),
            rank,
        };
        names.iter().enumerate().map(facts).collect()
    }

    fn domains(snapshot: &Snapshot) -> Result<Vec<Vec<u8>>, Error> {
        snapshot.domains_after(None, 1_000)
    }

    fn map(placement: Placement) -> Map {
        Map {
            sources: vec![MapSource::Static, MapSource::Announced],
            placement,
            mark_partial: false,
            missing_share: 20,
            ldap: None,
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
        Snapshot::new(facts(&["n0", "n1", "n2"]), 0, &map(placement))
    }

    fn announce(snapshot: &mut Snapshot, node: usize, held: &[(&str, &str)]) {
        let mut holdings = NodeHoldings::default();
        for (domain, object) in held {
            let object = (!object.is_empty()).then(|| object.as_bytes().to_vec().into());
            let domain = domain.as_bytes().to_vec().into();
            holdings.apply(&[HoldingChange { domain, object, removed: false }]);
        }
        snapshot.set_holdings(NodeIndex(node), holdings);
    }

    fn route(snapshot: &Snapshot, path: &str) -> Result<Route, Error> {
        snapshot.route(&VirtualPath::resolve(&VirtualPath::default(), path.as_bytes()).unwrap())
    }

    #[test]
    fn without_all_announcements_nothing_is_said_to_be_absent() {
        let mut snapshot = snapshot(Placement::Refuse);
        assert_eq!(domains(&snapshot), Err(Error::Unheard { node: node("n0") }));
        assert_eq!(route(&snapshot, "/domains/three"), Err(Error::Unheard { node: node("n0") }));
        assert_eq!(route(&snapshot, "/domains/one/users/x"), Ok(Route::Node(NodeIndex(0))));
        announce(&mut snapshot, 0, &[]);
        announce(&mut snapshot, 1, &[]);
        assert_eq!(domains(&snapshot), Err(Error::Unheard { node: node("n2") }));
        announce(&mut snapshot, 2, &[("three", "")]);
        let names = domains(&snapshot).unwrap();
        // Those that the map knows and nobody has are not listed, as long as nobody is away.
        assert_eq!(names, [&b"three"[..]]);
        snapshot.set_away(NodeIndex(0));
        let names = domains(&snapshot).unwrap();
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
    fn copies_that_nobody_is_shown_are_found() {
        let mut snapshot = snapshot(Placement::Refuse);
        let (n0, n1, n2) = (NodeIndex(0), NodeIndex(1), NodeIndex(2));
        announce(
            &mut snapshot,
            0,
            &[("one", "users/carl"), ("two", "users/bob"), ("two", "domainRegistry.bin")],
        );
        announce(
            &mut snapshot,
            1,
            &[("two", "users/anna"), ("two", "users/bob"), ("two", "domainRegistry.bin")],
        );
        announce(&mut snapshot, 2, &[("one", "users/dora"), ("three", "users/emil")]);
        let hidden = snapshot.hidden(b"two", &[n1, n0]);
        // The static map has anna on n0, where she is not.
        let anna = HiddenObject { object: b"users/anna".to_vec(), shown: None, hidden: vec![n1] };
        let bob = HiddenObject { object: b"users/bob".to_vec(), shown: Some(n1), hidden: vec![n0] };
        assert_eq!(hidden, Hidden { elsewhere: vec![], objects: vec![anna, bob], objects_count: 2 });
        assert_eq!(snapshot.hidden(b"one", &[n0]), Hidden { elsewhere: vec![n2], ..Hidden::default() });
        assert_eq!(snapshot.conflicts(), Conflicts { domains: 1, objects: 2 });
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
        assert_eq!(refusing.place(&path("/domains/one/users/x"), None), Ok(Site::Node(NodeIndex(0))));
        assert_eq!(refusing.place(&path("/domains/two/users/x"), None), Err(Error::Unplaced));
        assert_eq!(homing.place(&path("/domains/two/users/x"), None), Ok(Site::Node(NodeIndex(1))));
        assert_eq!(homing.place(&path("/domains/new"), None), Err(Error::Unplaced));
        // Where it was last seen counts before the placement, and never against a map that somebody keeps.
        let [first, last] = [0, 2].map(NodeIndex);
        assert_eq!(homing.place(&path("/domains/two/users/x"), Some(first)), Ok(Site::Node(first)));
        assert_eq!(homing.place(&path("/domains/two/users/x"), Some(last)), Ok(Site::Node(NodeIndex(1))));
        assert_eq!(refusing.place(&path("/domains/new/users/x"), Some(last)), Ok(Site::Node(last)));
        let mut roomy = snapshot(Placement::LeastUsed);
        assert!(matches!(roomy.place(&path("/domains/new"), None), Err(Error::Unheard { .. })));
        for index in 0..3 {
            announce(&mut roomy, index, &[]);
        }
        let roomiest = |of: &[usize]| Ok(Site::Roomiest(of.iter().copied().map(NodeIndex).collect()));
        assert_eq!(roomy.place(&path("/domains/one/users/x"), None), Ok(Site::Node(NodeIndex(0))));
        assert_eq!(roomy.place(&path("/domains/two/users/x"), None), roomiest(&[1, 0]));
        assert_eq!(roomy.place(&path("/domains/new"), None), roomiest(&[0, 1, 2]));
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
