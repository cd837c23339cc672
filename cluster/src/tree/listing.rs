//! A directory being listed: whole, from one node, or merged from several.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portolan_proto::LIST_BATCH_ENTRIES_MAX;
use portolan_proto::levels::is_container;
use portolan_proto::v1;

use super::{Entry, Error, Identity, Kind, Place, Result, VirtualPath};
use crate::auth::Login;
use crate::map::{NodeIndex, Router, Snapshot};
use crate::nodes::Batches;

/// The entries of a directory, batch by batch: memory does not grow with their number.
#[derive(Debug)]
pub struct Listing {
    source: Source,
}

/// A directory as it was when its names were read.
#[derive(Debug, Clone, Copy)]
pub struct Directory<'a> {
    pub identity: Identity,
    /// Its present name.
    pub name: &'a [u8],
    /// Nanoseconds since 1970: any change of its entries, as the node's system sets it.
    pub changed_ns: i64,
}

#[derive(Debug)]
enum Source {
    Whole(Option<Vec<Entry>>),
    Domains(Domains),
    One(NodeIndex, Box<Batches>),
    Merged(Merge),
}

/// The domains of one state of the map that an admin may see.
#[derive(Debug)]
struct Domains {
    /// The directory, for errors.
    path: VirtualPath,
    map: Arc<Snapshot>,
    login: Login,
    modified: SystemTime,
    /// The last one that was told; `None` at the beginning.
    last: Option<Vec<u8>>,
}

/// Sorted parts being joined.
#[derive(Debug)]
struct Merge {
    /// The directory, for the log.
    path: VirtualPath,
    parts: Vec<Part>,
}

/// The rest of one node's part, in byte order of the names.
#[derive(Debug)]
struct Part {
    node: NodeIndex,
    source: PartSource,
    ready: VecDeque<v1::Entry>,
}

/// Where a part comes from.
#[derive(Debug)]
pub(super) enum PartSource {
    Node(Box<Batches>),
    /// These names are known to be there, whatever the node shows.
    Known(Known),
}

/// Names that a node has of a domain's level or of a container, by one state of the map.
#[derive(Debug)]
pub(super) struct Known {
    map: Arc<Snapshot>,
    node: NodeIndex,
    domain: Vec<u8>,
    /// Of a container its name and a slash; empty for the domain's own level.
    prefix: Vec<u8>,
    /// The last object that was told.
    last: Option<Vec<u8>>,
    which: Which,
}

#[derive(Debug)]
enum Which {
    /// Of a node that is away, all.
    Held,
    /// What is in doubt there.
    Doubted,
    /// Of a node that is there, what it announces and was not removed through a front end: what it does not show of that is gone
    /// or lost since it counted last, and only its next count tells which.
    Announced(Arc<Router>),
}

impl PartSource {
    async fn next(&mut self) -> Result<Option<VecDeque<v1::Entry>>> {
        match self {
            PartSource::Node(batches) => Ok(batches.next().await?.map(VecDeque::from)),
            PartSource::Known(known) => Ok(known.next()),
        }
    }
}

impl Known {
    /// The domain, and how objects of the level begin.
    fn level_of(path: &VirtualPath) -> Option<(&[u8], Vec<u8>)> {
        match path.place() {
            Place::Domain { domain } => Some((domain, Vec::new())),
            Place::Container { domain } => {
                let container = path.as_wire().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                Some((domain, [container, b"/"].concat()))
            }
            Place::Root
            | Place::Domains
            | Place::Object { .. }
            | Place::Cluster
            | Place::ClusterFile { .. }
            | Place::Nowhere => None,
        }
    }

    fn of(which: Which, map: &Arc<Snapshot>, node: NodeIndex, path: &VirtualPath) -> Option<Self> {
        let (domain, prefix) = Self::level_of(path)?;
        Some(Self { map: Arc::clone(map), node, domain: domain.to_vec(), prefix, last: None, which })
    }

    /// `None`: nothing is known of the node's part, or the directory is none that several nodes have.
    pub(super) fn held(map: &Arc<Snapshot>, node: NodeIndex, path: &VirtualPath) -> Option<Self> {
        Self::of(Which::Held, map, node, path).filter(|known| known.objects_after(None, 1).is_some())
    }

    /// What is not shown there and is not believed to be gone; empty where nothing can be missing.
    pub(super) fn missing(
        router: &Arc<Router>,
        map: &Arc<Snapshot>,
        node: NodeIndex,
        path: &VirtualPath,
    ) -> impl Iterator<Item = Self> {
        let doubted = Self::of(Which::Doubted, map, node, path)
            .filter(|known| map.doubted_objects(node, &known.domain, &known.prefix).next().is_some());
        let announced = Self::of(Which::Announced(Arc::clone(router)), map, node, path).filter(|known| {
            map.announced_objects(node, &known.domain, &known.prefix, None)
                .any(|object| !known.is_removed(object))
        });
        doubted.into_iter().chain(announced)
    }

    /// The next objects, at most so many; `None`: nothing is known.
    fn objects_after(&self, after: Option<&[u8]>, most: usize) -> Option<Vec<Vec<u8>>> {
        let Self { map, node, domain, prefix, last: _, which } = self;
        match which {
            Which::Held => map.known_objects(*node, domain, prefix, after, most),
            Which::Doubted | Which::Announced(_) => {
                let objects = map.announced_objects(*node, domain, prefix, after);
                Some(objects.take(most).map(<[u8]>::to_vec).collect())
            }
        }
    }

    /// The node announces the object, and by the record it was removed.
    fn is_removed(&self, object: &[u8]) -> bool {
        let Which::Announced(router) = &self.which else { return false };
        let name = self.map.name(self.node);
        router.with_record(|record| record.is_removed(name, &self.domain, object))
    }

    /// A name of the level stands for nothing that would still have to be there.
    fn is_gone(&self, name: &[u8]) -> bool {
        if self.prefix.is_empty() && is_container(name) {
            let prefix = [name, b"/"].concat();
            let mut objects = self.map.announced_objects(self.node, &self.domain, &prefix, None);
            matches!(self.which, Which::Announced(_)) && objects.all(|object| self.is_removed(object))
        } else {
            self.is_removed(&[&self.prefix, name].concat())
        }
    }

    /// All at once: they are counted, and few but for a disaster.
    fn all_doubted(&mut self) -> Option<VecDeque<v1::Entry>> {
        if self.last.replace(Vec::new()).is_some() {
            return None;
        }
        let mut names = BTreeMap::new();
        for (object, since) in self.map.doubted_objects(self.node, &self.domain, &self.prefix) {
            let name = object[self.prefix.len()..].split(|byte| *byte == b'/').next().unwrap_or_default();
            names.entry(name.to_vec()).or_insert(since);
        }
        let entries = names.iter().map(|(name, since)| {
            let is_file = self.prefix.is_empty() && !is_container(name);
            let kind = if is_file { v1::EntryKind::File } else { v1::EntryKind::Directory };
            v1::Entry { modified_ns: *since, ..self.entry(name, kind) }
        });
        Some(entries.collect())
    }

    fn next(&mut self) -> Option<VecDeque<v1::Entry>> {
        if matches!(self.which, Which::Doubted) {
            return self.all_doubted();
        }
        if self.prefix.is_empty() {
            return self.level();
        }
        let objects = self.objects_after(self.last.as_deref(), LIST_BATCH_ENTRIES_MAX)?;
        self.last = Some(objects.last()?.clone());
        let names = objects.iter().map(|object| &object[self.prefix.len()..]);
        Some(names.map(|name| self.entry(name, v1::EntryKind::Directory)).collect())
    }

    /// The domain's own level, at once: its containers and its few files.
    fn level(&mut self) -> Option<VecDeque<v1::Entry>> {
        let mut names = BTreeSet::new();
        while let Some(object) = self.objects_after(self.last.as_deref(), 1)?.pop() {
            let name = object.split(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
            // Past all that lies in the container: no name is as long as that.
            self.last = Some(if name == object { object } else { [&name[..], b"/", &[0xff; 256]].concat() });
            names.insert(name);
        }
        let kind = |name: &[u8]| match is_container(name) {
            true => v1::EntryKind::Directory,
            false => v1::EntryKind::File,
        };
        Some(names.iter().map(|name| self.entry(name, kind(name))).collect::<VecDeque<_>>())
            .filter(|entries| !entries.is_empty())
    }

    fn entry(&self, name: &[u8], kind: v1::EntryKind) -> v1::Entry {
        let since = self.map.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        v1::Entry {
            name: name.to_vec().into(),
            kind: kind.into(),
            modified_ns: i64::try_from(since.as_nanos()).unwrap_or_default(),
            unix_mode: if kind == v1::EntryKind::Directory { 0o755 } else { 0o644 },
            ..v1::Entry::default()
        }
    }
}

impl Listing {
    pub(super) fn whole(entries: Vec<Entry>) -> Self {
        Self { source: Source::Whole(Some(entries)) }
    }

    /// The domains of the map.
    ///
    /// # Errors
    /// A source of the map is not known yet.
    pub(super) fn domains(
        path: &VirtualPath,
        map: Arc<Snapshot>,
        login: &Login,
        modified: SystemTime,
    ) -> Result<Self> {
        map.domains_after(None, 1).map_err(|error| Error::from_route(path, error))?;
        let domains = Domains { path: path.clone(), map, login: login.clone(), modified, last: None };
        Ok(Self { source: Source::Domains(domains) })
    }

    /// The directory, where it lies on one node.
    pub fn directory(&self) -> Option<Directory<'_>> {
        match &self.source {
            Source::One(node, batches) => {
                let v1::ListedDirectory { device, inode, changed_ns, name } = batches.directory()?;
                let identity = Identity { node: node.0, device: *device, inode: *inode };
                Some(Directory { identity, name, changed_ns: *changed_ns })
            }
            Source::Whole(_) | Source::Domains(_) | Source::Merged(_) => None,
        }
    }

    pub(super) fn one(node: NodeIndex, batches: Batches) -> Self {
        Self { source: Source::One(node, Box::new(batches)) }
    }

    /// The union of sorted parts. A name that several parts have is told once, from the earliest part.
    pub(super) fn merged(path: &VirtualPath, parts: Vec<(NodeIndex, PartSource)>) -> Self {
        let part = |(node, source)| Part { node, source, ready: VecDeque::new() };
        let parts = parts.into_iter().map(part).collect();
        Self { source: Source::Merged(Merge { path: path.clone(), parts }) }
    }

    /// The next entries; `None` once the listing is complete. After an error it is not.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Entry>>> {
        match &mut self.source {
            Source::Whole(entries) => Ok(entries.take().filter(|entries| !entries.is_empty())),
            Source::Domains(domains) => domains.next_batch().await,
            Source::One(node, batches) => {
                let batch = batches.next().await?;
                Ok(batch.map(|batch| batch.into_iter().map(|next| entry(*node, next)).collect()))
            }
            Source::Merged(merge) => {
                let mut merged = Vec::new();
                while merged.len() < LIST_BATCH_ENTRIES_MAX {
                    match merge.next().await? {
                        Some((node, next)) => merged.push(entry(node, next)),
                        None => break,
                    }
                }
                Ok(Some(merged).filter(|merged| !merged.is_empty()))
            }
        }
    }
}

impl Domains {
    async fn next_batch(&mut self) -> Result<Option<Vec<Entry>>> {
        loop {
            let names = self.map.domains_after(self.last.as_deref(), LIST_BATCH_ENTRIES_MAX);
            let names = names.map_err(|error| Error::from_route(&self.path, error))?;
            let Some(last) = names.last() else { return Ok(None) };
            self.last = Some(last.clone());
            let grants = &self.login.admin.grants;
            let seen = names.iter().filter(|name| grants.may_see(name));
            let seen: Vec<Entry> = seen.map(|name| Entry::level(name, self.modified)).collect();
            if !seen.is_empty() {
                return Ok(Some(seen));
            }
            // An admin of one domain passes over all others, and lets other sessions have the thread meanwhile.
            tokio::task::yield_now().await;
        }
    }
}

impl Merge {
    async fn next(&mut self) -> Result<Option<(NodeIndex, v1::Entry)>> {
        loop {
            let mut index = 0;
            while index < self.parts.len() {
                let part = &mut self.parts[index];
                if part.ready.is_empty() {
                    match part.source.next().await? {
                        Some(batch) => part.ready = batch,
                        None => {
                            self.parts.remove(index);
                            continue;
                        }
                    }
                }
                index += 1;
            }
            let heads = self
                .parts
                .iter()
                .enumerate()
                .filter_map(|(index, part)| Some((&part.ready.front()?.name, index)));
            let Some((name, first)) = heads.min() else { return Ok(None) };
            let name = name.clone();
            let node = self.parts[first].node;
            let next = self.parts[first].ready.pop_front().map(|next| (node, next));
            if matches!(&self.parts[first].source, PartSource::Known(known) if known.is_gone(&name)) {
                continue;
            }
            for part in &mut self.parts[first + 1..] {
                if let Some(hidden) = part.ready.pop_front_if(|head| head.name == name)
                    && part.node != node
                {
                    report_hidden(&self.path, &hidden);
                }
            }
            return Ok(next);
        }
    }
}

/// Two nodes have the same name, and only the first one's is shown. That is as it should be for the containers
/// of a domain and for its own files, which come from the home node; anything else is data that no backup sees.
fn report_hidden(path: &VirtualPath, entry: &v1::Entry) {
    let own_level = matches!(path.place(), Place::Domain { .. });
    if own_level && (is_container(&entry.name) || entry.kind() == v1::EntryKind::File) {
        return;
    }
    let name = portolan_proto::path::display(&entry.name);
    tracing::warn!(path = path.in_cluster(), name, "a name lies on two nodes; only the first one's is shown");
}

/// An entry of the wire.
pub(super) fn entry(node: NodeIndex, entry: v1::Entry) -> Entry {
    let kind = match entry.kind() {
        v1::EntryKind::File => Kind::File,
        v1::EntryKind::Directory => Kind::Directory,
        v1::EntryKind::Symlink => Kind::Symlink,
        v1::EntryKind::Socket => Kind::Socket,
        v1::EntryKind::Pipe => Kind::Pipe,
        v1::EntryKind::BlockDevice => Kind::BlockDevice,
        v1::EntryKind::CharacterDevice => Kind::CharacterDevice,
        v1::EntryKind::Other | v1::EntryKind::Unspecified => Kind::Other,
    };
    Entry {
        kind,
        size: entry.size,
        modified: time(entry.modified_ns),
        unix_mode: entry.unix_mode,
        // No file has inode 0: it is known by name only.
        identity: (entry.inode != 0).then_some(Identity {
            node: node.0,
            device: entry.device,
            inode: entry.inode,
        }),
        name: entry.name.into(),
        target: entry.target.into(),
    }
}

fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    let time =
        if nanoseconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}
