//! A front end's configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_proto::id::NodeId;
use portolan_proto::path;

use super::access::{Bandwidth, Bans, Errors, Limits, Scope};
use super::directory::{Directory, GrantRule};
use super::listener::{Inherited, Listener, listeners};
use super::tls::{Anchors, Identity};
use super::{Checker, Log, span};
use crate::admins::AdminsFile;
use crate::error::Faults;
use crate::raw::{self, Document};
use crate::units::HostPort;

/// What a front end needs to run. Keys and defaults: docs/configuration.md.
#[derive(Debug, Clone)]
pub struct Frontend {
    /// Where it was read from.
    pub file: PathBuf,
    pub threads: Threads,
    pub control: Control,
    /// Limits over all services.
    pub global_limits: Limits,
    /// How many bits of an IPv6 address are one client's.
    pub ipv6_prefix: u8,
    /// Limits over all listeners of FTP.
    pub ftp_limits: Limits,
    pub bans: Bans,
    /// Of all sessions of one admin together.
    pub admin_bandwidth: Bandwidth,
    /// Those that are enabled; at least one.
    pub listeners: Vec<Listener>,
    /// Those of the admins file; nobody where there is none.
    pub admins: AdminsFile,
    pub directories: Vec<Directory>,
    pub grants: Vec<GrantRule>,
    /// In which order admins are looked up: names of directories, and [`LOCAL`] for the admins file.
    pub order: Vec<String>,
    pub cluster: Security,
    /// At least one; names and addresses are distinct.
    pub nodes: Vec<Node>,
    pub map: Map,
    pub drain_timeout: Duration,
    pub log: Log,
}

/// The name of the admins file among the directories.
pub const LOCAL: &str = "local";

/// Threads of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    pub min: usize,
    pub max: usize,
}

/// Where the operator's command reaches a running front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    pub socket: PathBuf,
    /// Named by the configuration: the front end does not run without it.
    pub required: bool,
}

/// Where the control socket is unless the configuration says otherwise.
pub const CONTROL_SOCKET: &str = "/run/portolan/frontend.sock";

/// How connections to the agents are protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    Mutual { identity: Identity, ca: Anchors },
    Plain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: NodeId,
    pub address: HostPort,
}

/// Where domains and their objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl fmt::Display for MapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapSource::Static => "static",
            MapSource::Announced => "announced",
        })
    }
}

/// Where a domain or object is created that no source places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Nowhere: the client gets 550.
    Refuse,
    /// On the first node of its domain. A domain that no source knows is refused all the same.
    HomeNode,
    /// On the node with the most room: of those of its domain, or of all for a domain that no source knows.
    LeastUsed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
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
    let threads = threads(&raw.threads, checker);
    let control = Control {
        socket: checker
            .path(&raw.control.socket, "control.socket")
            .unwrap_or_else(|| PathBuf::from(CONTROL_SOCKET)),
        required: raw.control.socket.is_some(),
    };
    let ipv6_prefix = checker.number(&raw.global.ipv6_prefix, "global.ipv6_prefix", 32, 128, 64);
    let global_access = checker.access(&raw.global.access, "global.access", Scope::Global);
    let ftp_access = checker.access(&raw.ftp.access, "ftp.access", Scope::Ftp);
    let global_limits = checker.limits(&raw.global.limits, "global.limits", Limits::default());
    let ftp_limits = checker.limits(&raw.ftp.limits, "ftp.limits", Limits::default());
    checker.nested((&raw.ftp.limits, ftp_limits, "ftp.limits"), (global_limits, "global.limits"));
    let errors = Errors { wrong_commands_max: 20, failed_logins_max: 5 };
    let errors = checker.errors(&raw.global.errors, "global.errors", errors);
    let errors = checker.errors(&raw.ftp.errors, "ftp.errors", errors);
    let bans = checker.bans(&raw.ftp.bans);
    let admin_bandwidth = checker.bandwidth(&raw.ftp.admin_bandwidth, "ftp.admin_bandwidth");
    let inherited = Inherited { access: ftp_access.or(global_access), limits: ftp_limits, errors };
    let listeners = listeners(&raw.listeners, checker, &inherited);
    let admins = admins(raw, checker);
    let directories = checker.directories(&raw.directories);
    let grants = checker.grants(&raw.grants, &raw.directories);
    let order = order(raw, checker);
    let nodes = nodes(&raw.nodes, checker);
    let cluster = cluster(raw, checker, &nodes);
    let map = map(&raw.map, checker, &nodes);
    let drain_timeout = checker.duration(&raw.drain_timeout, "drain_timeout", 0, 86_400, 30);
    let log = checker.log(&raw.log);
    Some(Frontend {
        file: checker.document.path().to_owned(),
        threads,
        control,
        global_limits,
        ipv6_prefix: u8::try_from(ipv6_prefix).expect("at most 128"),
        ftp_limits,
        bans,
        admin_bandwidth,
        listeners: listeners?,
        admins: admins?,
        directories: directories?,
        grants,
        order,
        cluster: cluster?,
        nodes,
        map,
        drain_timeout,
        log,
    })
}

fn threads(raw: &raw::Threads, checker: &mut Checker) -> Threads {
    let min = checker.number(&raw.min, "threads.min", 1, 128, 2);
    let max = checker.number(&raw.max, "threads.max", 1, 128, min.max(20));
    if max < min {
        checker.fault(
            span(&raw.max),
            "threads.max",
            format!("{max} is less than threads.min, which is {min}"),
        );
    }
    let count = |number| usize::try_from(number).expect("at most 128");
    Threads { min: count(min), max: count(max) }
}

fn admins(raw: &raw::Frontend, checker: &mut Checker) -> Option<AdminsFile> {
    if raw.admins.file.is_none() && !raw.directories.is_empty() {
        return Some(AdminsFile { admins: Vec::new() });
    }
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

/// All directories, each once; the admins file first unless the order says otherwise.
fn order(raw: &raw::Frontend, checker: &mut Checker) -> Vec<String> {
    let local = raw.admins.file.is_some().then(|| LOCAL.to_owned());
    let named = |directory: &raw::Directory| {
        directory.name.as_ref().and_then(|field| field.value.as_ref().ok()).cloned()
    };
    let all: Vec<String> = local.into_iter().chain(raw.directories.iter().filter_map(named)).collect();
    let Some(order) = checker.optional(&raw.admins.order, "admins.order").cloned() else { return all };
    let (mut written, mut expected) = (order.clone(), all.clone());
    written.sort();
    expected.sort();
    if written != expected {
        let message = format!("{order:?} is not valid; allowed: each of {all:?} once");
        checker.fault(span(&raw.admins.order), "admins.order", message);
    }
    order
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
    let placements = [
        ("refuse", Placement::Refuse),
        ("home-node", Placement::HomeNode),
        ("least-used", Placement::LeastUsed),
    ];
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
