//! The domain map of a front end: its sources, and the static one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use portolan_proto::id::NodeId;
use portolan_proto::{levels, path};

use super::directory::Directory;
use super::nodes::{Node, is_standby};
use super::{Checker, span};
use crate::error::Faults;
use crate::raw::{self, Document};

/// Where domains and their objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// In the order in which they decide; at least one.
    pub sources: Vec<MapSource>,
    pub placement: Placement,
    /// While a node is away, what is known of it by name is listed all the same.
    pub mark_partial: bool,
    /// In percent, 1 to 100: where more of a node or domain is missing than that, it is not believed.
    pub missing_share: usize,
    /// Of the configuration, then of the map file.
    pub domains: Vec<MapDomain>,
    pub ldap: Option<LdapMap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapSource {
    /// `[[map.domains]]` of this file, and the map file.
    Static,
    /// Entries of a directory.
    Ldap,
    /// What the agents say they hold.
    Announced,
}

impl MapSource {
    const ALL: [MapSource; 3] = [MapSource::Static, MapSource::Ldap, MapSource::Announced];
}

impl fmt::Display for MapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapSource::Static => "static",
            MapSource::Ldap => "ldap",
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

/// How a directory is read for the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LdapMap {
    /// The name of one of the directories.
    pub directory: String,
    /// Of domains and users: what the directory calls the node.
    pub node_attribute: String,
    pub domains: MapSearch,
    pub users: MapSearch,
    pub refresh: Duration,
    /// For reading all of it.
    pub timeout: Duration,
}

/// Which entries count, and what names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapSearch {
    pub base: String,
    pub filter: String,
    /// Of a domain: its name. Of a user: `local@domain`.
    pub attribute: String,
}

pub(super) fn map(raw: &raw::Map, checker: &mut Checker, nodes: &[Node], directories: &[Directory]) -> Map {
    let sources = sources(raw, checker);
    let placements = [
        ("refuse", Placement::Refuse),
        ("home-node", Placement::HomeNode),
        ("least-used", Placement::LeastUsed),
    ];
    let placement = checker.choice(&raw.placement, "map.placement", &placements, Placement::Refuse);
    let partial = [("refuse", false), ("mark", true)];
    let mark_partial = checker.choice(&raw.partial_listings, "map.partial_listings", &partial, false);
    let missing_share = checker.number(&raw.missing_share, "map.missing_share", 1, 100, 20);
    let missing_share = usize::try_from(missing_share).expect("at most 100");
    let mut seen = BTreeSet::new();
    let mut domains = Vec::new();
    add_domains(&raw.domains, "map.domains", checker, nodes, &mut seen, &mut domains);
    if let Some(path) = checker.path(&raw.file, "map.file")
        && let Err(faults) = map_file(&path, nodes, &mut seen, &mut domains)
    {
        checker.fault(span(&raw.file), "map.file", "the map file has faults");
        checker.foreign(faults);
    }
    let ldap = raw.ldap.as_ref().and_then(|raw| ldap(raw, checker, directories));
    Map { sources, placement, mark_partial, missing_share, domains, ldap }
}

fn sources(raw: &raw::Map, checker: &mut Checker) -> Vec<MapSource> {
    let has = |source: &MapSource| *source != MapSource::Ldap || raw.ldap.is_some();
    let Some(written) = checker.optional(&raw.sources, "map.sources") else {
        return MapSource::ALL.into_iter().filter(has).collect();
    };
    let mut sources = Vec::new();
    for word in written {
        let Some(source) = MapSource::ALL.into_iter().find(|source| source.to_string() == *word) else {
            let message = format!("{word:?} is not valid; allowed: \"static\", \"ldap\", \"announced\"");
            checker.fault(span(&raw.sources), "map.sources", message);
            continue;
        };
        if sources.contains(&source) {
            checker.fault(span(&raw.sources), "map.sources", format!("{word:?} stands there twice"));
        } else if !has(&source) {
            checker.fault(span(&raw.sources), "map.sources", "\"ldap\" takes a table [map.ldap]");
        }
        sources.push(source);
    }
    if written.is_empty() {
        checker.fault(span(&raw.sources), "map.sources", "at least one source is required");
    } else if raw.ldap.is_some() && !sources.contains(&MapSource::Ldap) {
        checker.fault(span(&raw.sources), "map.sources", "[map.ldap] is there, but \"ldap\" is no source");
    }
    sources
}

/// A file of `[[domains]]`.
fn map_file(
    path: &Path,
    nodes: &[Node],
    seen: &mut BTreeSet<Vec<u8>>,
    domains: &mut Vec<MapDomain>,
) -> Result<(), Faults> {
    let document = Document::read(path)?;
    let (raw, faults) = document.deserialize::<raw::MapFile>()?;
    let mut checker = Checker::new(document, faults);
    add_domains(&raw.domains, "domains", &mut checker, nodes, seen, domains);
    checker.finish()
}

fn add_domains(
    raw: &[raw::MapDomain],
    table: &str,
    checker: &mut Checker,
    nodes: &[Node],
    seen: &mut BTreeSet<Vec<u8>>,
    domains: &mut Vec<MapDomain>,
) {
    for (index, raw) in raw.iter().enumerate() {
        let prefix = format!("{table}[{index}]");
        if let Some(domain) = map_domain(raw, &prefix, checker, nodes) {
            if !seen.insert(domain.name.clone()) {
                let key = format!("{prefix}.name");
                checker.fault(span(&raw.name), &key, "this domain stands in the map twice");
            }
            domains.push(domain);
        }
    }
}

fn ldap(raw: &raw::LdapMap, checker: &mut Checker, directories: &[Directory]) -> Option<LdapMap> {
    let name = checker.required(&raw.directory, "map.ldap.directory").cloned();
    let directory = directories.iter().find(|directory| Some(&directory.name) == name.as_ref());
    if let (Some(name), None) = (&name, directory) {
        let message = format!("there is no directory {name:?} in [[directories]]");
        checker.fault(span(&raw.directory), "map.ldap.directory", message);
    }
    let mut text = |field: &raw::Text, key: &str, default: &str| {
        let key = format!("map.ldap.{key}");
        let text = checker.optional(field, &key).cloned();
        if text.as_ref().is_some_and(String::is_empty) {
            checker.fault(span(field), &key, "an empty text");
        }
        text.unwrap_or_else(|| default.to_owned())
    };
    let node_attribute = text(&raw.node_attribute, "node_attribute", "mailHost");
    let base = directory.map(|directory| directory.user.base.clone()).unwrap_or_default();
    let mut search = |base_field, filter_field, attribute_field, kind: &str, default: &str| {
        let attribute = text(attribute_field, &format!("{kind}_attribute"), default);
        let all = format!("(&({attribute}=*)({node_attribute}=*))");
        MapSearch {
            base: text(base_field, &format!("{kind}_base"), &base),
            filter: text(filter_field, &format!("{kind}_filter"), &all),
            attribute,
        }
    };
    let domains =
        search(&raw.domain_base, &raw.domain_filter, &raw.domain_attribute, "domain", "associatedDomain");
    let users = search(&raw.user_base, &raw.user_filter, &raw.user_attribute, "user", "mail");
    let refresh = checker.duration(&raw.refresh, "map.ldap.refresh", 10, 86_400, 300);
    let timeout = checker.duration(&raw.timeout, "map.ldap.timeout", 1, 3_600, 120);
    Some(LdapMap { directory: name?, node_attribute, domains, users, refresh, timeout })
}

fn map_domain(
    raw: &raw::MapDomain,
    prefix: &str,
    checker: &mut Checker,
    nodes: &[Node],
) -> Option<MapDomain> {
    let key = |name: &str| format!("{prefix}.{name}");
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
            Some(node) if is_standby(nodes, &node.name) => {
                let message = format!("{word:?} is a standby; name the node that it stands in for");
                checker.fault(span(&raw.nodes), &key("nodes"), message);
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
        levels::is_container(container.as_bytes()) && path::check_component(name.as_bytes()).is_ok()
    });
    match parts {
        Some(_) => Ok(()),
        None => Err(format!("{object:?} is not an object; allowed: CONTAINER/NAME, such as \"users/anna\"")),
    }
}
