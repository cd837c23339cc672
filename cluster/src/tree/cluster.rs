//! `/cluster`: what is needed to rebuild the routing, as text that a configuration takes.
//!
//! Generated piece by piece from one state of the map, so that memory does not grow with it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use itertools::Itertools as _;
use portolan_proto::path;

use super::{Entry, Error, Kind, Result, VirtualPath};
use crate::map::{NodeFacts, Role, Snapshot};
use crate::nodes::Nodes;

/// Domains, or objects of one of them, that are written at once.
const PIECE_ROWS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClusterFile {
    Nodes,
    DomainMap,
}

impl ClusterFile {
    pub(super) const ALL: [Self; 2] = [Self::DomainMap, Self::Nodes];

    fn name(self) -> &'static [u8] {
        match self {
            Self::Nodes => b"nodes.cfg",
            Self::DomainMap => b"domain-map.cfg",
        }
    }

    pub(super) fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name() == name)
    }

    pub(super) fn entry(self, size: u64, map: &Snapshot) -> Entry {
        Entry {
            name: self.name().to_vec(),
            kind: Kind::File,
            size,
            modified: map.since,
            unix_mode: 0o644,
            identity: None,
            target: Vec::new(),
        }
    }
}

/// The rest of such a file.
#[derive(Debug)]
pub(super) struct Generated {
    /// For errors.
    path: VirtualPath,
    map: Arc<Snapshot>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Text that is there already.
    Text(Option<String>),
    /// Domains after this one.
    Domains(Option<Vec<u8>>),
    /// Objects of this domain after this one.
    Objects(Vec<u8>, Option<Vec<u8>>),
    End,
}

impl Generated {
    pub(super) fn new(file: ClusterFile, path: &VirtualPath, map: Arc<Snapshot>, nodes: &Nodes) -> Self {
        let state = match file {
            ClusterFile::Nodes => State::Text(Some(nodes_text(&map, nodes))),
            ClusterFile::DomainMap => State::Domains(None),
        };
        Self { path: path.clone(), map, state }
    }

    pub(super) fn map(&self) -> &Snapshot {
        &self.map
    }

    pub(super) fn path(&self) -> &VirtualPath {
        &self.path
    }

    /// Nanoseconds since 1970.
    pub(super) fn modified_ns(&self) -> i64 {
        let since = self.map.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    /// Bytes of it, where they are there already.
    pub(super) fn known_size(&self) -> Option<u64> {
        match &self.state {
            State::Text(text) => Some(text.as_ref().map_or(0, |text| text.len() as u64)),
            State::Domains(_) | State::Objects(..) | State::End => None,
        }
    }

    /// Bytes of all that is still to come.
    pub(super) fn count(mut self) -> Result<u64> {
        let mut size = 0;
        while let Some(piece) = self.next()? {
            size += piece.len() as u64;
        }
        Ok(size)
    }

    /// The next piece, never an empty one; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let text = match &mut self.state {
                State::Text(text) => {
                    let text = text.take();
                    self.state = State::End;
                    text.unwrap_or_default()
                }
                State::Domains(last) => {
                    let last = last.take();
                    self.domains(last)?
                }
                State::Objects(domain, last) => {
                    let (domain, last) = (std::mem::take(domain), last.take());
                    self.objects(domain, last.as_deref())?
                }
                State::End => return Ok(None),
            };
            if !text.is_empty() {
                return Ok(Some(text.into()));
            }
        }
    }

    fn domains(&mut self, mut last: Option<Vec<u8>>) -> Result<String> {
        let failed = |error| Error::from_route(&self.path, error);
        let mut text = String::new();
        if last.is_none() {
            text.push_str("# Which nodes each domain lies on: a file for the key `file` of [map].\n");
        }
        let names = self.map.domains_after(last.as_deref(), PIECE_ROWS).map_err(failed)?;
        let is_end = names.len() < PIECE_ROWS;
        for name in names {
            let row = self.map.row(&name).map_err(failed)?;
            last = Some(name.clone());
            let Ok(shown) = std::str::from_utf8(&name) else {
                // TOML is UTF-8 (toml.io, version 1.0.0).
                let _ = writeln!(text, "\n# {} is not UTF-8 and cannot be named here.", path::display(&name));
                continue;
            };
            if let Some(word) = &row.unresolved {
                let _ = writeln!(text, "\n# {shown:?} lies on a node {word:?}, and there is none.");
                continue;
            }
            let nodes = row.nodes.iter().map(|node| quoted(self.map.name(*node).as_str())).join(", ");
            let _ = write!(text, "\n[[domains]]\nname = {}\nnodes = [{nodes}]\n", quoted(shown));
            if row.nodes.len() > 1 {
                self.state = State::Objects(name, None);
                return Ok(text);
            }
        }
        self.state = if is_end { State::End } else { State::Domains(last) };
        Ok(text)
    }

    fn objects(&mut self, domain: Vec<u8>, last: Option<&[u8]>) -> Result<String> {
        let failed = |error| Error::from_route(&self.path, error);
        let objects = self.map.objects_after(&domain, last, PIECE_ROWS).map_err(failed)?;
        let mut text = String::new();
        if last.is_none() && !objects.is_empty() {
            text.push_str("[domains.objects]\n");
        }
        for (object, node) in &objects {
            match (std::str::from_utf8(object), node) {
                (Ok(shown), Some(node)) if shown.contains('/') => {
                    let value = toml::Value::String(self.map.name(*node).to_string());
                    text += &toml::Table::from_iter([(shown.to_owned(), value)]).to_string();
                }
                // The domain's own files come from its home node.
                (Ok(_), _) => {}
                (Err(_), _) => {
                    let _ =
                        writeln!(text, "# {} is not UTF-8 and cannot be named here.", path::display(object));
                }
            }
        }
        self.state = match objects.into_iter().next_back() {
            Some((object, _)) => State::Objects(domain, Some(object)),
            None => State::Domains(Some(domain)),
        };
        Ok(text)
    }
}

fn nodes_text(map: &Snapshot, nodes: &Nodes) -> String {
    let mut text = "# The nodes of this cluster: tables for the configuration of a front end.\n".to_owned();
    for (index, NodeFacts { name, is_discovered, role, mail_hosts, .. }) in map.facts() {
        let _ = write!(text, "\n[[nodes]]\nname = {}\n", quoted(name.as_str()));
        match nodes.get(index).address() {
            // Written down it would stay in force where discovery finds the node elsewhere.
            Some(address) if *is_discovered => {
                let _ = writeln!(text, "# Discovery has found it at {address}.");
            }
            Some(address) => {
                let _ = writeln!(text, "address = {}", quoted(&address.to_string()));
            }
            None => text.push_str("# Its address is not known.\n"),
        }
        if let Role::Primary { standbys, writes } = role
            && !standbys.is_empty()
        {
            let names = standbys.iter().map(|standby| quoted(map.name(*standby).as_str())).join(", ");
            let _ = writeln!(text, "standby = [{names}]\nstandby_writes = {writes}");
        }
        if !mail_hosts.is_empty() {
            let _ =
                writeln!(text, "mail_hosts = [{}]", mail_hosts.iter().map(|host| quoted(host)).join(", "));
        }
    }
    text
}

/// A text as a value of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
