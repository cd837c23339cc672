//! The virtual tree: what an admin sees and does, whichever nodes it lies on.
//!
//! Who calls it: the FTP engines.
//! What it calls: `map` for the way, `nodes` for the calls, `auth::grants` for what may be seen.
//! What it never does: touch a file system, speak FTP, or answer with less than there is.

mod cluster;
mod content;
pub mod error;
mod listing;
mod placing;
mod standby;
mod upload;

use std::sync::{Arc, Weak};
use std::time::SystemTime;

use futures_util::future::join_all;
use parking_lot::Mutex;
use portolan_proto::id::{NodeId, TransferId};
use portolan_proto::levels::{DOMAINS, domain_of};
use portolan_proto::rights::Need;
use portolan_proto::v1::{self, DigestAlgorithm, DigestResponse, Reason};

use crate::auth::Login;
use crate::map::{self, NodeIndex, Route, Router, Site, Snapshot};
use crate::nodes::{self, Batches, ListOptions, NodeClient, Nodes};

pub use crate::nodes::Begins;
use crate::path::{CLUSTER, Place, VirtualPath};
use crate::record::now_ns;
use cluster::{ClusterFile, Generated};
pub use content::Content;
use content::Request;
pub use error::Error;
pub use listing::Listing;
use listing::{Known, PartSource};
use placing::Placing;
pub use upload::Upload;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    // What stands on a node and has no content: seen, never opened.
    Symlink,
    Socket,
    Pipe,
    BlockDevice,
    CharacterDevice,
    /// One of these, of an agent that does not say which.
    Other,
}

impl Kind {
    /// True for what no client can fetch.
    pub fn is_special(self) -> bool {
        match self {
            Kind::File | Kind::Directory => false,
            Kind::Symlink
            | Kind::Socket
            | Kind::Pipe
            | Kind::BlockDevice
            | Kind::CharacterDevice
            | Kind::Other => true,
        }
    }
}

/// One name of the tree.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Last component, as bytes; empty for the root.
    pub name: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
    pub modified: SystemTime,
    /// Permission bits, 07777.
    pub unix_mode: u32,
    /// `None` for the levels that exist on no disk.
    pub identity: Option<Identity>,
    /// Of a symbolic link, as bytes; empty where it is not known, and for all else.
    pub target: Vec<u8>,
}

impl Entry {
    /// A level that no disk has. Its mode lets a mirror that copies modes write into its copy.
    fn level(name: &[u8], modified: SystemTime) -> Self {
        Self {
            name: name.to_vec(),
            kind: Kind::Directory,
            size: 0,
            modified,
            unix_mode: 0o755,
            identity: None,
            target: Vec::new(),
        }
    }
}

/// What tells one file of the cluster from all others while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its node's place in the configuration.
    pub node: usize,
    pub device: u64,
    pub inode: u64,
}

/// A change that was made.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    /// Where.
    pub nodes: Vec<NodeId>,
}

impl Changed {
    fn on(node: &NodeClient) -> Self {
        Self { nodes: vec![node.name().clone()] }
    }
}

/// The rights of an admin at one place, as far as the place allows anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    pub read: bool,
    pub change: bool,
    /// What is below it may be removed.
    pub purge: bool,
    pub remove: bool,
    pub rename: bool,
}

impl Permissions {
    pub const NONE: Self = Self { read: false, change: false, purge: false, remove: false, rename: false };
}

/// The tree over a set of nodes. Cheap to share.
#[derive(Debug)]
pub struct Tree {
    router: Arc<Router>,
    nodes: Arc<Nodes>,
    placing: Placing,
    /// The size of the domain map as text, of the state that it was counted for last.
    map_size: Mutex<(Weak<Snapshot>, u64)>,
    /// Time shown for the levels that exist on no disk.
    started: SystemTime,
}

impl Tree {
    pub fn new(router: Arc<Router>, nodes: Arc<Nodes>) -> Self {
        let map_size = Mutex::new((Weak::new(), 0));
        Self { router, nodes, placing: Placing::new(), map_size, started: SystemTime::now() }
    }

    /// What may not be seen does not exist; what may be seen but not done is refused.
    fn authorize(login: &Login, path: &VirtualPath, need: Need) -> Result<()> {
        let Some(domain) = domain_of(path.as_wire()) else {
            let generated = matches!(path.place(), Place::Cluster | Place::ClusterFile { .. });
            return match need {
                _ if generated && !login.admin.grants.backup.all => {
                    Err(Error::NotFound { path: path.to_string() })
                }
                Need::Look | Need::Read => Ok(()),
                Need::Change | Need::Delete => Err(Error::Fixed { path: path.to_string() }),
            };
        };
        let grants = &login.admin.grants;
        if !grants.may_see(domain) {
            return Err(Error::NotFound { path: path.to_string() });
        }
        if need.is_met_by(grants.rights(domain)) {
            return Ok(());
        }
        let right = match need {
            Need::Look | Need::Read => "read",
            Need::Change => "write",
            Need::Delete => "delete",
        };
        Err(Error::NotGranted { path: path.to_string(), right })
    }

    /// As [`Tree::authorize`], for a change of the name itself: nobody moves or removes what its own tree begins with.
    fn authorize_name(login: &Login, path: &VirtualPath, need: Need) -> Result<()> {
        if path.is_root() {
            Err(Error::Fixed { path: path.to_string() })
        } else {
            Self::authorize(login, path, need)
        }
    }

    fn route(&self, path: &VirtualPath) -> Result<Route> {
        self.known_route(path).map_err(|error| Error::from_route(path, error))
    }

    /// The route by the map, or to where a new domain has just been placed.
    fn known_route(&self, path: &VirtualPath) -> std::result::Result<Route, map::Error> {
        let routed = self.router.snapshot().route(path);
        if let (Err(map::Error::UnknownDomain), Some(domain)) = (&routed, domain_of(path.as_wire()))
            && let Some(node) = self.placing.node(&[DOMAINS, domain].join(&b'/'))
            && self.router.snapshot().primaries().any(|primary| primary == node)
        {
            return Ok(Route::Node(node));
        }
        routed
    }

    /// The node of a path that exists, asking the nodes where no source knows it.
    async fn find(&self, login: &Login, path: &VirtualPath, need: Need) -> Result<Route> {
        match self.route(path)? {
            Route::Search(nodes) => match self.search(login, path, &nodes, need).await? {
                Some(node) => Ok(Route::Node(node)),
                None => Err(Error::NotFound { path: path.to_string() }),
            },
            known => Ok(known),
        }
    }

    /// As [`Tree::find`], placing what does not exist yet.
    async fn find_or_place(&self, login: &Login, path: &VirtualPath) -> Result<Route> {
        let nodes = match self.known_route(path) {
            Ok(Route::Search(nodes)) => nodes,
            Ok(known) => return Ok(known),
            Err(map::Error::UnknownDomain) => Vec::new(),
            Err(error) => return Err(Error::from_route(path, error)),
        };
        if let Some(node) = self.search(login, path, &nodes, Need::Change).await? {
            return Ok(Route::Node(node));
        }
        let whole = match path.place() {
            Place::Object { domain, object } if !nodes.is_empty() => [DOMAINS, domain, object].join(&b'/'),
            _ => [DOMAINS, domain_of(path.as_wire()).unwrap_or_default()].join(&b'/'),
        };
        let site = self.place(path).map_err(|error| Error::from_route(path, error))?;
        let _turn = self.placing.turn.lock().await;
        let node = match site {
            Site::Node(node) => node,
            // What was remembered before the map changed could be a node that is the domain's no more.
            Site::Roomiest(nodes) => match self.placing.node(&whole).filter(|node| nodes.contains(node)) {
                Some(node) => node,
                None => self.roomiest(login, &whole, &nodes).await?,
            },
        };
        self.placing.remember(&whole, node);
        Ok(Route::Node(node))
    }

    /// Where something new goes: by the map, by where it was last seen, by the placement.
    fn place(&self, path: &VirtualPath) -> std::result::Result<Site, map::Error> {
        let map = self.router.snapshot();
        let name = match path.place() {
            Place::Object { domain, object } => self.router.with_record(|record| {
                // Of an object that nobody has ever seen its domain says where, if that is known nowhere now.
                let of_domain = || record.last_seen(domain, None).filter(|_| map.row(domain).is_err());
                record.last_seen(domain, Some(object)).or_else(of_domain)
            }),
            Place::Domain { domain } | Place::Container { domain } => {
                let is_known = map.row(domain).is_ok();
                self.router.with_record(|record| record.last_seen(domain, None)).filter(|_| !is_known)
            }
            Place::Root | Place::Domains | Place::Cluster | Place::ClusterFile { .. } | Place::Nowhere => {
                None
            }
        };
        let seen = name.as_ref().and_then(|name| map.primary(name));
        if let (Some(name), None) = (&name, seen) {
            tracing::info!(path = path.in_cluster(), node = %name, "the node that it was last seen on is not configured any more; the placement decides");
        }
        let site = map.place(path, seen);
        match &site {
            Ok(Site::Node(node)) if Some(*node) == seen => {
                tracing::info!(path = path.in_cluster(), node = %map.name(*node), "placed on the node where it was last seen");
            }
            Err(map::Error::Unplaced) => tracing::warn!(
                path = path.in_cluster(),
                "an upload has no place and is refused; name its node in [[map.domains]] or set map.placement"
            ),
            _ => {}
        }
        site
    }

    /// A domain or object was removed, or renamed, on these nodes: its absence is no loss.
    fn note_removed<'a>(&self, path: &VirtualPath, nodes: impl Iterator<Item = &'a NodeId>) {
        let (domain, object) = match path.place() {
            Place::Domain { domain } => (domain, None),
            Place::Object { domain, object } if path.as_wire() == [DOMAINS, domain, object].join(&b'/') => {
                (domain, Some(object))
            }
            _ => return,
        };
        self.router.change_record(|record| {
            for node in nodes {
                record.removed(node, domain, object, now_ns());
            }
        });
    }

    /// What the nodes do not show below `path` and is listed all the same.
    fn missing(&self, path: &VirtualPath, nodes: &[NodeIndex]) -> Vec<(NodeIndex, PartSource)> {
        let map = self.router.snapshot();
        let of_node = |node: &NodeIndex| {
            let (node, missing) = (*node, Known::missing(&self.router, &map, *node, path));
            missing.map(move |known| (node, PartSource::Known(known)))
        };
        nodes.iter().flat_map(of_node).collect()
    }

    /// A node does not know an object that it still announces: nobody can say yet that it is gone.
    fn unsettled(&self, path: &VirtualPath, node: NodeIndex, error: nodes::Error) -> Error {
        if error.reason() == Some(Reason::NotFound)
            && let Place::Object { domain, object } = path.place()
            && path.as_wire() == [DOMAINS, domain, object].join(&b'/')
        {
            let map = self.router.snapshot();
            let name = map.name(node);
            if map.announces(node, domain, object)
                && !self.router.with_record(|record| record.is_removed(name, domain, object))
            {
                return Error::Unknown(map::Error::Unsettled { node: name.clone() });
            }
        }
        error.into()
    }

    /// The node for something new, a path of the wire. Any node that does not answer makes the answer unknown: what is to be
    /// created may be there.
    async fn roomiest(&self, login: &Login, whole: &[u8], nodes: &[NodeIndex]) -> Result<NodeIndex> {
        // Somebody else may have made it, and it is not announced yet.
        if let Some((node, _)) = self.stat_all(login, whole, nodes, Need::Change).await?.first() {
            return Ok(*node);
        }
        let free = self.all_bytes_free(nodes).await?;
        let (node, _) = nodes
            .iter()
            .zip(&free)
            .reduce(|most, next| if next.1 > most.1 { next } else { most })
            .ok_or_else(|| Error::Unplaced { path: portolan_proto::path::display(whole) })?;
        tracing::info!(path = portolan_proto::path::display(whole), node = %self.node(*node).name(), "placed on the node with the most room");
        Ok(*node)
    }

    /// Asks nodes which of them has the object that `path` lies in. Any node that does not answer makes the
    /// whole answer unknown.
    async fn search(
        &self,
        login: &Login,
        path: &VirtualPath,
        nodes: &[NodeIndex],
        need: Need,
    ) -> Result<Option<NodeIndex>> {
        let Place::Object { domain, object } = path.place() else { return Ok(None) };
        let whole = [DOMAINS, domain, object].join(&b'/');
        let found = self.stat_all(login, &whole, nodes, need).await?;
        if let [(first, _), (second, _), ..] = &found[..] {
            tracing::warn!(
                path = portolan_proto::path::display(&whole),
                decided = %self.node(*first).name(),
                also = %self.node(*second).name(),
                "an object lies on two nodes; the order of the domain's nodes decides"
            );
        }
        Ok(found.into_iter().next().map(|(node, _)| node))
    }

    /// The entry on each of `nodes` that has it, in their order. For a change nobody answers for a node that is away: a standby
    /// that lags would lead to a second one elsewhere.
    async fn stat_all(
        &self,
        login: &Login,
        path: &[u8],
        nodes: &[NodeIndex],
        need: Need,
    ) -> Result<Vec<(NodeIndex, v1::Entry)>> {
        let stats = nodes.iter().map(|node| async move {
            if need.changes() {
                self.changed(*node).stat(login.caller(path), path).await
            } else {
                self.stat_on(login, path, *node).await
            }
        });
        let mut found = Vec::new();
        for (node, stat) in nodes.iter().zip(join_all(stats).await) {
            match stat {
                Ok(entry) => found.push((*node, entry)),
                Err(error) if error.reason() == Some(Reason::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    async fn stat_on(&self, login: &Login, path: &[u8], node: NodeIndex) -> nodes::Result<v1::Entry> {
        self.ask(node, |node| async move { node.stat(login.caller(path), path).await }).await
    }

    async fn list_on(
        &self,
        login: &Login,
        path: &[u8],
        node: NodeIndex,
        options: ListOptions,
    ) -> nodes::Result<Batches> {
        let list = |node: Arc<NodeClient>| async move { node.list(login.caller(path), path, options).await };
        self.ask(node, list).await
    }

    /// What stands at `path`.
    pub async fn stat(&self, login: &Login, path: &VirtualPath) -> Result<Entry> {
        Self::authorize(login, path, Need::Look)?;
        let wire = path.as_wire();
        match self.find(login, path, Need::Look).await? {
            Route::Virtual => match path.place() {
                Place::ClusterFile { name } => {
                    self.cluster_entry(Self::cluster_file(name, path)?, path).await
                }
                _ => Ok(Entry::level(path.name(), self.started)),
            },
            Route::Node(node) => match self.stat_on(login, wire, node).await {
                Err(error)
                    if error.reason() == Some(Reason::NotFound)
                        && !self.missing(path, &[node]).is_empty() =>
                {
                    Ok(Entry::level(path.name(), self.started))
                }
                Err(error) => Err(self.unsettled(path, node, error)),
                Ok(entry) => Ok(Self::shown_entry(path, node, entry)),
            },
            Route::Union(nodes) | Route::Search(nodes) => {
                let found = match self.stat_all(login, wire, &nodes, Need::Look).await {
                    // As its listing: what is known of it by name is there.
                    Err(Error::Node(error)) if error.is_of_the_node() && self.is_known(path, &nodes) => {
                        return Ok(Entry::level(path.name(), self.started));
                    }
                    found => found?,
                };
                if found.is_empty() && !self.missing(path, &nodes).is_empty() {
                    return Ok(Entry::level(path.name(), self.started));
                }
                let first = found.into_iter().next();
                first
                    .map(|(node, entry)| Self::shown_entry(path, node, entry))
                    .ok_or_else(|| Error::NotFound { path: path.to_string() })
            }
        }
    }

    /// True for a directory of several nodes that is listed while one of them is away.
    fn is_known(&self, path: &VirtualPath, nodes: &[NodeIndex]) -> bool {
        let map = self.router.snapshot();
        let known =
            |node: &NodeIndex| !self.node(*node).is_away() || Known::held(&map, *node, path).is_some();
        map.marks_partial() && nodes.iter().all(known)
    }

    /// An entry by the name that the client knows it by.
    fn shown_entry(path: &VirtualPath, node: NodeIndex, entry: v1::Entry) -> Entry {
        let entry = listing::entry(node, entry);
        // A file has a name, also where a root was set to one.
        if entry.kind == Kind::Directory { Entry { name: path.name().to_vec(), ..entry } } else { entry }
    }

    /// The entries of a directory. It is known to be complete only when [`Listing::next_batch`] has said so.
    pub async fn list(&self, login: &Login, path: &VirtualPath) -> Result<Listing> {
        self.list_again(login, path, None, false).await
    }

    /// The same, of a directory that was met before: also if it has another name in its parent by now. With
    /// `directories_only` nodes tell no other entries.
    pub async fn list_again(
        &self,
        login: &Login,
        path: &VirtualPath,
        was: Option<Identity>,
        directories_only: bool,
    ) -> Result<Listing> {
        Self::authorize(login, path, Need::Look)?;
        let wire = path.as_wire();
        match self.find(login, path, Need::Look).await? {
            Route::Virtual => self.list_virtual(login, path).await,
            Route::Node(node) if !self.missing(path, &[node]).is_empty() => {
                self.list_union(login, path, &[node], directories_only).await
            }
            Route::Node(node) => {
                let was = was.filter(|was| was.node == node.0);
                let was = was.map(|Identity { device, inode, .. }| v1::DirectoryId { device, inode });
                let options = ListOptions { sorted: false, directories_only, was };
                let listed = self.list_on(login, wire, node, options).await;
                Ok(Listing::one(node, listed.map_err(|error| self.unsettled(path, node, error))?))
            }
            Route::Union(nodes) | Route::Search(nodes) => {
                self.list_union(login, path, &nodes, directories_only).await
            }
        }
    }

    async fn list_virtual(&self, login: &Login, path: &VirtualPath) -> Result<Listing> {
        match path.place() {
            Place::Cluster => {
                let mut files = Vec::new();
                for file in ClusterFile::ALL {
                    files.push(self.cluster_entry(file, path).await?);
                }
                Ok(Listing::whole(files))
            }
            Place::ClusterFile { name } => {
                Self::cluster_file(name, path)?;
                Err(Error::NotADirectory { path: path.to_string() })
            }
            Place::Root => {
                let levels = [CLUSTER, DOMAINS].into_iter();
                // Who may not see all domains does not see what names them.
                let seen = levels.filter(|level| *level == DOMAINS || login.admin.grants.backup.all);
                Ok(Listing::whole(seen.map(|level| Entry::level(level, self.started)).collect()))
            }
            _ => Listing::domains(path, self.router.snapshot(), login, self.started),
        }
    }

    fn cluster_file(name: &[u8], path: &VirtualPath) -> Result<ClusterFile> {
        ClusterFile::of(name).ok_or_else(|| Error::NotFound { path: path.to_string() })
    }

    async fn cluster_entry(&self, file: ClusterFile, path: &VirtualPath) -> Result<Entry> {
        let (text, size) = self.generate(file, path).await?;
        Ok(file.entry(size, text.map()))
    }

    /// A generated file and its size.
    async fn generate(&self, file: ClusterFile, path: &VirtualPath) -> Result<(Generated, u64)> {
        let map = self.router.snapshot();
        let text = Generated::new(file, path, Arc::clone(&map), &self.nodes);
        if let Some(size) = text.known_size() {
            return Ok((text, size));
        }
        {
            let (counted, size) = &*self.map_size.lock();
            if std::ptr::eq(counted.as_ptr(), Arc::as_ptr(&map)) {
                return Ok((text, *size));
            }
        }
        // With many domains this takes a while.
        let counted = Generated::new(file, path, Arc::clone(&map), &self.nodes);
        let counting = tokio::task::spawn_blocking(move || counted.count());
        let size =
            counting.await.unwrap_or_else(|stopped| std::panic::resume_unwind(stopped.into_panic()))?;
        *self.map_size.lock() = (Arc::downgrade(&map), size);
        Ok((text, size))
    }

    async fn list_union(
        &self,
        login: &Login,
        path: &VirtualPath,
        nodes: &[NodeIndex],
        directories_only: bool,
    ) -> Result<Listing> {
        let wire = path.as_wire();
        let options = ListOptions { sorted: true, directories_only, was: None };
        let parts = nodes.iter().map(|node| self.list_on(login, wire, *node, options));
        let map = self.router.snapshot();
        let mut present = Vec::new();
        for (node, part) in nodes.iter().zip(join_all(parts).await) {
            match part {
                Ok(batches) => present.push((*node, PartSource::Node(Box::new(batches)))),
                // A node that answers and has no such directory has no part of it.
                Err(error) if error.reason() == Some(Reason::NotFound) => {}
                Err(error) if error.is_of_the_node() && map.marks_partial() => {
                    let known = Known::held(&map, *node, path).ok_or(error)?;
                    present.push((*node, PartSource::Known(known)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // By what is announced once the nodes have begun to tell: it still has what vanishes from now on.
        present.extend(self.missing(path, nodes));
        if present.is_empty() {
            return Err(Error::NotFound { path: path.to_string() });
        }
        Ok(Listing::merged(path, present))
    }

    /// The node that alone holds `path`; a level that several hold, or none, is a directory and no file.
    fn single(route: Route, path: &VirtualPath) -> Result<NodeIndex> {
        match route {
            Route::Node(node) => Ok(node),
            Route::Virtual | Route::Union(_) | Route::Search(_) => {
                Err(Error::IsADirectory { path: path.to_string() })
            }
        }
    }

    /// The content of a file from `offset` on: `length` bytes, or all.
    pub async fn read(
        &self,
        login: &Login,
        path: &VirtualPath,
        offset: u64,
        length: Option<u64>,
        transfer: TransferId,
    ) -> Result<Content> {
        if let Place::ClusterFile { name } = path.place() {
            Self::authorize(login, path, Need::Read)?;
            let (text, size) = self.generate(Self::cluster_file(name, path)?, path).await?;
            return Content::generated(text, size, offset, length);
        }
        let node = self.readable(login, path).await?;
        let wire = path.as_wire();
        let request = Request { caller: login.caller(wire), path: wire.to_vec(), transfer };
        Content::open(self.answering(node), request, offset, length).await
    }

    /// A digest of `length` bytes of a file from `offset` on, or of all, computed on its node.
    pub async fn digest(
        &self,
        login: &Login,
        path: &VirtualPath,
        algorithm: DigestAlgorithm,
        offset: u64,
        length: Option<u64>,
    ) -> Result<DigestResponse> {
        if let Place::ClusterFile { name } = path.place() {
            Self::authorize(login, path, Need::Read)?;
            Self::cluster_file(name, path)?;
            return Err(Error::NoDigest { path: path.to_string() });
        }
        let node = self.readable(login, path).await?;
        let wire = path.as_wire();
        let digest = |node: Arc<NodeClient>| async move {
            node.digest(login.caller(wire), wire, algorithm, offset, length).await
        };
        Ok(self.ask(node, digest).await?)
    }

    /// The node of a file that may be read.
    async fn readable(&self, login: &Login, path: &VirtualPath) -> Result<NodeIndex> {
        Self::authorize(login, path, Need::Read)?;
        Self::single(self.find(login, path, Need::Read).await?, path)
    }

    /// The node of a file or directory that may be changed and lies on one node.
    async fn changeable(&self, login: &Login, path: &VirtualPath) -> Result<NodeIndex> {
        Self::authorize(login, path, Need::Change)?;
        match self.find(login, path, Need::Change).await? {
            Route::Node(node) => Ok(node),
            // Levels that several nodes have a part of, or none.
            Route::Virtual | Route::Union(_) | Route::Search(_) => {
                Err(Error::Fixed { path: path.to_string() })
            }
        }
    }

    /// Sets the modification time of a file or directory, in nanoseconds since 1970; the one that is kept.
    pub async fn set_times(
        &self,
        login: &Login,
        path: &VirtualPath,
        modified_ns: i64,
    ) -> Result<(Changed, i64)> {
        let node = self.changeable(login, path).await?;
        let wire = path.as_wire();
        let node = self.changed(node);
        let kept = node.set_times(login.caller(wire), wire, modified_ns).await?;
        Ok((Changed::on(&node), kept))
    }

    /// Sets the permission bits of a file or directory, 0777 at most.
    pub async fn set_mode(&self, login: &Login, path: &VirtualPath, unix_mode: u32) -> Result<Changed> {
        let node = self.changeable(login, path).await?;
        let wire = path.as_wire();
        let node = self.changed(node);
        node.set_mode(login.caller(wire), wire, unix_mode).await?;
        Ok(Changed::on(&node))
    }

    /// Bytes that may still be written at `path`. Where several nodes have a part of it, as many as the
    /// fullest of them has room for.
    pub async fn bytes_free(&self, login: &Login, path: &VirtualPath) -> Result<u64> {
        Self::authorize(login, path, Need::Look)?;
        let nodes = match self.find(login, path, Need::Look).await? {
            Route::Node(node) => vec![node],
            Route::Union(nodes) | Route::Search(nodes) => nodes,
            Route::Virtual => self.router.snapshot().primaries().collect(),
        };
        Ok(self.all_bytes_free(&nodes).await?.into_iter().min().unwrap_or(0))
    }

    /// Of each of `nodes`.
    async fn all_bytes_free(&self, nodes: &[NodeIndex]) -> Result<Vec<u64>> {
        let asked = nodes.iter().map(|node| {
            let node = self.changed(*node);
            async move { node.bytes_free().await }
        });
        Ok(join_all(asked).await.into_iter().collect::<nodes::Result<_>>()?)
    }

    /// What this admin may do at `path`, so far as its place in the tree allows.
    pub fn permissions(login: &Login, path: &VirtualPath) -> Permissions {
        let is_fixed = matches!(path.place(), Place::Domain { .. } | Place::Container { .. });
        Permissions {
            read: Self::authorize(login, path, Need::Read).is_ok(),
            change: Self::authorize(login, path, Need::Change).is_ok(),
            purge: Self::authorize(login, path, Need::Delete).is_ok(),
            remove: Self::authorize_name(login, path, Need::Delete).is_ok(),
            rename: !is_fixed && Self::authorize_name(login, path, Need::Change).is_ok(),
        }
    }

    /// Begins an upload.
    pub async fn write(
        &self,
        login: &Login,
        path: &VirtualPath,
        begins: Begins,
        transfer: TransferId,
    ) -> Result<Upload> {
        Self::authorize(login, path, Need::Change)?;
        if path.is_root() || matches!(path.place(), Place::Domain { .. } | Place::Container { .. }) {
            return Err(Error::IsADirectory { path: path.to_string() });
        }
        let node = Self::single(self.find_or_place(login, path).await?, path)?;
        let wire = path.as_wire();
        let upload = self.changed(node).write(login.caller(wire), wire, begins, transfer).await?;
        Ok(Upload::to_node(upload))
    }

    pub async fn make_directory(&self, login: &Login, path: &VirtualPath) -> Result<Changed> {
        Self::authorize(login, path, Need::Change)?;
        // The levels of a domain may be missing on the node that is asked, but a client makes one level at a time.
        if let Some(parent) = path.parent()
            && matches!(parent.place(), Place::Domain { .. } | Place::Container { .. })
        {
            self.stat(login, &parent).await?;
        }
        let wire = path.as_wire();
        let node = match self.find_or_place(login, path).await? {
            Route::Node(node) => node,
            Route::Union(nodes) => {
                if !self.stat_all(login, wire, &nodes, Need::Change).await?.is_empty() {
                    return Err(Error::AlreadyExists { path: path.to_string() });
                }
                // The other nodes make the level when the first object is put there.
                nodes[0]
            }
            Route::Virtual | Route::Search(_) => return Err(Error::AlreadyExists { path: path.to_string() }),
        };
        let node = self.changed(node);
        node.make_directory(login.caller(wire), wire).await?;
        Ok(Changed::on(&node))
    }

    pub async fn remove(&self, login: &Login, path: &VirtualPath) -> Result<Changed> {
        Self::authorize_name(login, path, Need::Delete)?;
        let node = Self::single(self.find(login, path, Need::Delete).await?, path)?;
        let wire = path.as_wire();
        let primary = self.node(node);
        let node = self.changed(node);
        node.remove(login.caller(wire), wire).await?;
        self.note_removed(path, std::iter::once(primary.name()));
        Ok(Changed::on(&node))
    }

    /// Removes an empty directory, on every node that has a part of it.
    pub async fn remove_directory(&self, login: &Login, path: &VirtualPath) -> Result<Changed> {
        Self::authorize_name(login, path, Need::Delete)?;
        let wire = path.as_wire();
        let nodes = match self.find(login, path, Need::Delete).await? {
            Route::Node(node) => vec![node],
            Route::Union(nodes) | Route::Search(nodes) => {
                let found = self.stat_all(login, wire, &nodes, Need::Delete).await?;
                if found.is_empty() {
                    return Err(Error::NotFound { path: path.to_string() });
                }
                // Nothing is removed anywhere while there is an entry anywhere.
                let mut entries = self.list_union(login, path, &nodes, false).await?;
                if entries.next_batch().await?.is_some() {
                    return Err(Error::NotEmpty { path: path.to_string() });
                }
                found.into_iter().map(|(node, _)| node).collect()
            }
            Route::Virtual => return Err(Error::Fixed { path: path.to_string() }),
        };
        let mut changed = Changed::default();
        for node in nodes {
            let primary = self.node(node);
            let node = self.changed(node);
            node.remove_directory(login.caller(wire), wire).await?;
            self.note_removed(path, std::iter::once(primary.name()));
            changed.nodes.push(node.name().clone());
        }
        Ok(changed)
    }

    /// Renames within one node. What would move between nodes is refused.
    pub async fn rename(&self, login: &Login, from: &VirtualPath, to: &VirtualPath) -> Result<Changed> {
        Self::authorize_name(login, from, Need::Change)?;
        Self::authorize_name(login, to, Need::Change)?;
        for path in [from, to] {
            if let Place::Domain { .. } | Place::Container { .. } = path.place() {
                return Err(Error::Fixed { path: path.to_string() });
            }
        }
        if domain_of(from.as_wire()) != domain_of(to.as_wire()) {
            return Err(Error::CrossesDomains { from: from.to_string(), to: to.to_string() });
        }
        let source = Self::single(self.find(login, from, Need::Change).await?, from)?;
        let target = match self.route(to)? {
            // A name that no node has yet stays where the old one is.
            Route::Search(nodes) => self.search(login, to, &nodes, Need::Change).await?.unwrap_or(source),
            route => Self::single(route, to)?,
        };
        if source != target {
            return Err(Error::CrossesNodes {
                from: self.node(source).name().clone(),
                to: self.node(target).name().clone(),
            });
        }
        let wire = from.as_wire();
        let node = self.changed(source);
        node.rename(login.caller(wire), wire, to.as_wire()).await?;
        self.note_removed(from, std::iter::once(self.node(source).name()));
        Ok(Changed::on(&node))
    }
}

impl From<nodes::Error> for Error {
    fn from(error: nodes::Error) -> Self {
        Error::Node(error)
    }
}
