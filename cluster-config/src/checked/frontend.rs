//! A front end's configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_proto::id::NodeId;
use portolan_proto::path;

use super::agent::socket_address;
use super::tls::{Anchors, Identity};
use super::{Checker, Log, span};
use crate::admins::AdminsFile;
use crate::error::Faults;
use crate::raw::{self, Document};
use crate::units::{HostPort, PortRange};

/// What a front end needs to run. Keys and defaults: docs/configuration.md.
#[derive(Debug, Clone)]
pub struct Frontend {
    /// At least one.
    pub listeners: Vec<Listener>,
    pub admins: AdminsFile,
    pub cluster: Security,
    /// At least one; names and addresses are distinct.
    pub nodes: Vec<Node>,
    pub map: Map,
    pub drain_timeout: Duration,
    pub log: Log,
}

#[derive(Debug, Clone)]
pub struct Listener {
    pub address: SocketAddr,
    pub engine: Engine,
    pub tls: Tls,
    pub session_reuse: SessionReuse,
    pub close_notify: CloseNotify,
    /// Whether PORT and EPRT are served.
    pub active: bool,
    pub ascii: Ascii,
    pub passive_ports: PortRange,
    /// The address that PASV names; `None`: the one the client connected to.
    pub passive_address: Option<Ipv4Addr>,
    pub idle_timeout: Duration,
    pub sessions_max: usize,
}

/// Which implementation of the FTP protocol serves a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Ours.
    Native,
    /// The library's.
    Libunftp,
}

#[derive(Debug, Clone)]
pub enum Tls {
    Off,
    /// AUTH TLS (RFC 4217); `required` refuses logins and data in plaintext.
    Explicit {
        identity: Identity,
        required: bool,
    },
    /// TLS from the first byte on; data is protected unless the client says PROT C.
    Implicit {
        identity: Identity,
        /// Refuses data in plaintext; the control connection is always protected.
        required: bool,
    },
}

/// Whether a data connection must resume the TLS session of its control connection, which proves that both
/// have the same client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionReuse {
    Off,
    /// A client that offers to resume a session must offer one of its own.
    MatchIfOffered,
    Require,
}

/// What the end of an upload over TLS without the closing alert (RFC 8446 section 6.1) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseNotify {
    /// It was cut off: nothing is stored.
    Required,
    /// It is complete, as without TLS.
    Optional,
}

/// What TYPE A does to content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ascii {
    /// Nothing: bytes are never altered.
    Verbatim,
    /// Line ends become CR LF on the way out and LF on the way in (RFC 959 section 3.1.1.1).
    Convert,
}

/// How connections to the agents are protected.
#[derive(Debug, Clone)]
pub enum Security {
    Mutual { identity: Identity, ca: Anchors },
    Plain,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub name: NodeId,
    pub address: HostPort,
}

/// Where domains and their objects lie.
#[derive(Debug, Clone)]
pub struct Map {
    /// In the order in which they decide; at least one.
    pub sources: Vec<MapSource>,
    pub placement: Placement,
    pub domains: Vec<MapDomain>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapSource {
    /// `[[map.domains]]` of this file.
    Static,
    /// What the agents say they hold.
    Announced,
}

/// Where a domain or object is created that no source places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Nowhere: the client gets 550.
    Refuse,
    /// On the first node of its domain. A domain that no source knows is refused all the same.
    HomeNode,
}

#[derive(Debug, Clone)]
pub struct MapDomain {
    pub name: Vec<u8>,
    /// At least one; the first is the home node.
    pub nodes: Vec<NodeId>,
    /// Object (`users/anna`) to the node that holds it.
    pub objects: BTreeMap<Vec<u8>, NodeId>,
}

impl Frontend {
    pub fn load(path: &Path) -> Result<Self, Faults> {
        check(Document::read(path)?)
    }
}

pub(crate) fn check(document: Document) -> Result<Frontend, Faults> {
    let (raw, faults) = document.deserialize::<raw::Frontend>()?;
    let mut checker = Checker::new(document, faults);
    let frontend = build(&raw, &mut checker);
    checker.finish()?;
    Ok(frontend.expect("no fault, so every part is there"))
}

fn build(raw: &raw::Frontend, checker: &mut Checker) -> Option<Frontend> {
    checker.version(&raw.version);
    if raw.listeners.is_empty() {
        checker.fault(None, "listeners", "at least one [[listeners]] is required");
    }
    let listeners: Vec<_> =
        raw.listeners.iter().enumerate().map(|(index, raw)| listener(raw, index, checker)).collect();
    let admins = admins(raw, checker);
    let nodes = nodes(&raw.nodes, checker);
    let cluster = cluster(raw, checker, &nodes);
    let map = map(&raw.map, checker, &nodes);
    let drain_timeout = checker.duration(&raw.drain_timeout, "drain_timeout", 0, 86_400, 30);
    let log = checker.log(&raw.log);
    Some(Frontend {
        listeners: listeners.into_iter().collect::<Option<_>>()?,
        admins: admins?,
        cluster: cluster?,
        nodes,
        map,
        drain_timeout,
        log,
    })
}

fn listener(raw: &raw::Listener, index: usize, checker: &mut Checker) -> Option<Listener> {
    let key = |name: &str| format!("listeners[{index}].{name}");
    checker.required(&raw.address, &key("address"));
    let address = socket_address(checker, &raw.address, &key("address"));
    let engines = [("native", Engine::Native), ("libunftp", Engine::Libunftp)];
    let engine = checker.choice(&raw.engine, &key("engine"), &engines, Engine::Native);
    let tls = tls(raw, index, checker, address);
    let reuses = [
        ("off", SessionReuse::Off),
        ("match-if-offered", SessionReuse::MatchIfOffered),
        ("require", SessionReuse::Require),
    ];
    let session_reuse =
        checker.choice(&raw.session_reuse, &key("session_reuse"), &reuses, SessionReuse::MatchIfOffered);
    let notifies = [("required", CloseNotify::Required), ("optional", CloseNotify::Optional)];
    let close_notify =
        checker.choice(&raw.close_notify, &key("close_notify"), &notifies, CloseNotify::Required);
    let active = checker.optional(&raw.active, &key("active")).copied().unwrap_or(false);
    let asciis = [("verbatim", Ascii::Verbatim), ("convert", Ascii::Convert)];
    let ascii = checker.choice(&raw.ascii, &key("ascii"), &asciis, Ascii::Verbatim);
    if engine == Engine::Libunftp {
        only_native(raw, index, checker, tls.as_ref());
    }
    let passive_ports = checker
        .parse::<PortRange>(&raw.passive_ports, &key("passive_ports"))
        .unwrap_or(PortRange { first: 50_000, last: 50_999 });
    let passive_address = checker.optional(&raw.passive_address, &key("passive_address")).cloned();
    let passive_address = passive_address.and_then(|text| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let message = format!("{text:?} is not an address; allowed: an IPv4 address");
            checker.fault(span(&raw.passive_address), &key("passive_address"), message);
            None
        }
    });
    let idle_timeout = checker.duration(&raw.idle_timeout, &key("idle_timeout"), 10, 86_400, 300);
    let sessions_max = match checker.optional(&raw.sessions_max, &key("sessions_max")) {
        None => 200,
        Some(count @ 1..=100_000) => usize::try_from(*count).expect("below 100000"),
        Some(count) => {
            let message = format!("{count} is out of range; allowed: 1 to 100000");
            checker.fault(span(&raw.sessions_max), &key("sessions_max"), message);
            200
        }
    };
    Some(Listener {
        address: address?,
        engine,
        tls: tls?,
        session_reuse,
        close_notify,
        active,
        ascii,
        passive_ports,
        passive_address,
        idle_timeout,
        sessions_max,
    })
}

/// What the library cannot do must not be asked of it.
fn only_native(raw: &raw::Listener, index: usize, checker: &mut Checker, tls: Option<&Tls>) {
    let key = |name: &str| format!("listeners[{index}].{name}");
    let message = "engine = \"libunftp\" cannot do this; engine = \"native\" can";
    if let Some(Tls::Implicit { .. }) = tls {
        checker.fault(span(&raw.tls), &key("tls"), message);
    }
    for (text, name) in
        [(&raw.session_reuse, "session_reuse"), (&raw.close_notify, "close_notify"), (&raw.ascii, "ascii")]
    {
        if text.is_some() {
            checker.fault(span(text), &key(name), message);
        }
    }
    if raw.active.is_some() {
        checker.fault(span(&raw.active), &key("active"), message);
    }
}

fn tls(raw: &raw::Listener, index: usize, checker: &mut Checker, address: Option<SocketAddr>) -> Option<Tls> {
    let key = |name: &str| format!("listeners[{index}].{name}");
    let loopback = address.is_none_or(|address| address.ip().is_loopback());
    let modes = [("off", TlsMode::Off), ("explicit", TlsMode::Explicit), ("implicit", TlsMode::Implicit)];
    let mode = checker.choice(&raw.tls, &key("tls"), &modes, TlsMode::Explicit);
    let identity = checker.identity(&raw.certificate, &raw.key, &format!("listeners[{index}]."));
    let required = checker.optional(&raw.tls_required, &key("tls_required")).copied().unwrap_or(!loopback);
    let insecure = checker.optional(&raw.insecure, &key("insecure")).copied().unwrap_or(false);
    let protected = mode != TlsMode::Off && required;
    if !(loopback || insecure || protected) {
        let message = "not a loopback address, so TLS is required (tls = \"explicit\" or \"implicit\", \
                       tls_required = true); insecure = true allows passwords and mail in plaintext";
        checker.fault(span(&raw.address), &key("address"), message);
    }
    if mode == TlsMode::Off {
        if required && raw.tls_required.is_some() {
            checker.fault(span(&raw.tls_required), &key("tls_required"), "cannot be true with tls = \"off\"");
        }
        return Some(Tls::Off);
    }
    if raw.certificate.is_none() && raw.key.is_none() {
        let message = "required with tls = \"explicit\" (the default) and \"implicit\"";
        checker.fault(span(&raw.tls), &key("certificate"), message);
    }
    let identity = identity?;
    Some(match mode {
        TlsMode::Implicit => Tls::Implicit { identity, required },
        TlsMode::Off | TlsMode::Explicit => Tls::Explicit { identity, required },
    })
}

/// The values of the key `tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsMode {
    Off,
    Explicit,
    Implicit,
}

fn admins(raw: &raw::Frontend, checker: &mut Checker) -> Option<AdminsFile> {
    checker.required(&raw.admins.file, "admins.file");
    let path: PathBuf = checker.path(&raw.admins.file, "admins.file")?;
    match AdminsFile::read(&path) {
        Ok(admins) => Some(admins),
        Err(faults) => {
            // The reader named its own file and lines; the key that led there is told once more here.
            checker.fault(span(&raw.admins.file), "admins.file", "the admins file has faults");
            checker.foreign(faults);
            None
        }
    }
}

fn nodes(raw: &[raw::Node], checker: &mut Checker) -> Vec<Node> {
    if raw.is_empty() {
        checker.fault(None, "nodes", "at least one [[nodes]] is required");
    }
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut nodes = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = |name: &str| format!("nodes[{index}].{name}");
        checker.required(&raw.name, &key("name"));
        checker.required(&raw.address, &key("address"));
        let name = checker.parse::<NodeId>(&raw.name, &key("name"));
        let address = checker.parse::<HostPort>(&raw.address, &key("address"));
        if name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
            checker.fault(span(&raw.name), &key("name"), "another node has this name");
        }
        if address.as_ref().is_some_and(|address| !addresses.insert(address.to_string())) {
            checker.fault(span(&raw.address), &key("address"), "another node has this address");
        }
        if let (Some(name), Some(address)) = (name, address) {
            nodes.push(Node { name, address });
        }
    }
    nodes
}

fn cluster(raw: &raw::Frontend, checker: &mut Checker, nodes: &[Node]) -> Option<Security> {
    let cluster = &raw.cluster;
    let identity = checker.identity(&cluster.certificate, &cluster.key, "cluster.");
    let ca = checker.anchors(&cluster.ca, "cluster.ca");
    let insecure = checker.optional(&cluster.insecure, "cluster.insecure").copied().unwrap_or(false);
    if cluster.ca.is_none() && cluster.certificate.is_none() && cluster.key.is_none() {
        if !insecure && nodes.iter().any(|node| !node.address.is_loopback()) {
            let message = "ca, certificate and key are required, because not every node is on loopback \
                           (or insecure = true, which sends mail over the network in plaintext)";
            checker.fault(None, "cluster", message);
        }
        return Some(Security::Plain);
    }
    if cluster.ca.is_none() {
        checker.fault(span(&cluster.certificate), "cluster.ca", "required with a certificate");
    }
    if cluster.certificate.is_none() && cluster.key.is_none() {
        checker.fault(span(&cluster.ca), "cluster.certificate", "required with ca");
    }
    Some(Security::Mutual { identity: identity?, ca: ca? })
}

fn map(raw: &raw::Map, checker: &mut Checker, nodes: &[Node]) -> Map {
    let mut sources = Vec::new();
    if let Some(written) = checker.optional(&raw.sources, "map.sources") {
        for word in written {
            let source = match word.as_str() {
                "static" => MapSource::Static,
                "announced" => MapSource::Announced,
                _ => {
                    let message = format!("{word:?} is not valid; allowed: \"static\", \"announced\"");
                    checker.fault(span(&raw.sources), "map.sources", message);
                    continue;
                }
            };
            if sources.contains(&source) {
                checker.fault(span(&raw.sources), "map.sources", format!("{word:?} stands there twice"));
            } else {
                sources.push(source);
            }
        }
        if written.is_empty() {
            checker.fault(span(&raw.sources), "map.sources", "at least one source is required");
        }
    } else {
        sources = vec![MapSource::Static, MapSource::Announced];
    }
    let placements = [("refuse", Placement::Refuse), ("home-node", Placement::HomeNode)];
    let placement = checker.choice(&raw.placement, "map.placement", &placements, Placement::Refuse);
    let mut seen = BTreeSet::new();
    let mut domains = Vec::new();
    for (index, raw) in raw.domains.iter().enumerate() {
        if let Some(domain) = map_domain(raw, index, checker, nodes) {
            if !seen.insert(domain.name.clone()) {
                let key = format!("map.domains[{index}].name");
                checker.fault(span(&raw.name), &key, "this domain stands in the map twice");
            }
            domains.push(domain);
        }
    }
    Map { sources, placement, domains }
}

fn map_domain(
    raw: &raw::MapDomain,
    index: usize,
    checker: &mut Checker,
    nodes: &[Node],
) -> Option<MapDomain> {
    let key = |name: &str| format!("map.domains[{index}].{name}");
    let name = checker.required(&raw.name, &key("name")).cloned();
    if let Some(fault) = name.as_ref().and_then(|name| path::check_component(name.as_bytes()).err()) {
        checker.fault(span(&raw.name), &key("name"), format!("not a domain's name: {fault}"));
    }
    let written = checker.required(&raw.nodes, &key("nodes")).cloned().unwrap_or_default();
    if raw.nodes.is_some() && written.is_empty() {
        checker.fault(
            span(&raw.nodes),
            &key("nodes"),
            "at least one node is required; the first is the home node",
        );
    }
    let mut held_by: Vec<NodeId> = Vec::new();
    for word in &written {
        match nodes.iter().find(|node| node.name.as_str() == word) {
            Some(node) if held_by.contains(&node.name) => {
                checker.fault(span(&raw.nodes), &key("nodes"), format!("{word:?} stands there twice"));
            }
            Some(node) => held_by.push(node.name.clone()),
            None => {
                checker.fault(
                    span(&raw.nodes),
                    &key("nodes"),
                    format!("there is no node {word:?} in [[nodes]]"),
                );
            }
        }
    }
    let mut objects = BTreeMap::new();
    for (object, word) in checker.optional(&raw.objects, &key("objects")).into_iter().flatten() {
        if let Err(message) = check_object(object) {
            checker.fault(span(&raw.objects), &key("objects"), message);
        }
        match held_by.iter().find(|node| node.as_str() == word) {
            Some(node) => {
                objects.insert(object.clone().into_bytes(), node.clone());
            }
            None => {
                let message = format!("{object:?} lies on {word:?}, which is not among the domain's nodes");
                checker.fault(span(&raw.objects), &key("objects"), message);
            }
        }
    }
    Some(MapDomain { name: name?.into_bytes(), nodes: held_by, objects })
}

fn check_object(object: &str) -> Result<(), String> {
    let parts = object.split_once('/').filter(|(container, name)| {
        path::is_container(container.as_bytes()) && path::check_component(name.as_bytes()).is_ok()
    });
    match parts {
        Some(_) => Ok(()),
        None => Err(format!("{object:?} is not an object; allowed: CONTAINER/NAME, such as \"users/anna\"")),
    }
}
