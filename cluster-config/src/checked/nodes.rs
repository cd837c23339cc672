//! The nodes of a front end: which there are, who stands in for whom, and how their addresses are found.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use portolan_proto::id::NodeId;

use super::{Checker, span};
use crate::raw;
use crate::units::HostPort;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: NodeId,
    /// `None`: discovery finds it.
    pub address: Option<HostPort>,
    /// Nodes that have the same data and are read when this one is away, in this order. Each stands in for one node, and
    /// nobody stands in for it.
    pub standby: Vec<NodeId>,
    /// They are written to as well.
    pub standby_writes: bool,
    /// What a directory calls this node, beside its name.
    pub mail_hosts: Vec<String>,
}

/// How agents are found in DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub query: DnsQuery,
    pub interval: Duration,
    /// Before so many nodes were found, nobody knows what there is.
    pub nodes_min: usize,
    /// Name servers; empty: those of the system.
    pub servers: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsQuery {
    /// The A and AAAA records of a name, with one port for all.
    Addresses(HostPort),
    /// SRV records (RFC 2782).
    Services(String),
}

pub(super) fn nodes(raw: &[raw::Node], checker: &mut Checker, discovered: bool) -> Vec<Node> {
    if raw.is_empty() && !discovered {
        checker.fault(None, "nodes", "at least one [[nodes]] is required, or [discovery]");
    }
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut nodes = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = |name: &str| format!("nodes[{index}].{name}");
        checker.required(&raw.name, &key("name"));
        if raw.address.is_none() && !discovered {
            checker.fault(None, &key("address"), "this key is required where there is no [discovery]");
        }
        let name = checker.parse::<NodeId>(&raw.name, &key("name"));
        let address = checker.parse::<HostPort>(&raw.address, &key("address"));
        if name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
            checker.fault(span(&raw.name), &key("name"), "another node has this name");
        }
        if address.as_ref().is_some_and(|address| !addresses.insert(address.to_string())) {
            checker.fault(span(&raw.address), &key("address"), "another node has this address");
        }
        let standby = checker.optional(&raw.standby, &key("standby")).cloned().unwrap_or_default();
        let standby = standby.iter().filter_map(|word| word.parse().ok()).collect();
        let standby_writes = checker.optional(&raw.standby_writes, &key("standby_writes")).copied();
        let mail_hosts = checker.optional(&raw.mail_hosts, &key("mail_hosts")).cloned().unwrap_or_default();
        if let Some(name) = name {
            let standby_writes = standby_writes.unwrap_or(false);
            nodes.push(Node { name, address, standby, standby_writes, mail_hosts });
        }
    }
    standbys(raw, checker, &nodes);
    mail_hosts(raw, checker, &nodes);
    without_effect(raw, checker, &nodes);
    nodes
}

/// A standby is another node, stands in for one node only, and has none itself.
fn standbys(raw: &[raw::Node], checker: &mut Checker, nodes: &[Node]) {
    let mut taken = BTreeSet::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("nodes[{index}].standby");
        let own = raw.name.as_ref().and_then(|name| name.value.as_ref().ok());
        let Some(words) = raw.standby.as_ref().and_then(|field| field.value.as_ref().ok()) else { continue };
        for word in words {
            let message = if own == Some(word) {
                format!("{word:?} is the node itself")
            } else {
                match nodes.iter().find(|node| node.name.as_str() == word) {
                    None => format!("there is no node {word:?} in [[nodes]]"),
                    Some(node) if !node.standby.is_empty() => {
                        format!("{word:?} has standbys of its own, and so is none")
                    }
                    Some(_) if !taken.insert(word.clone()) => {
                        format!("{word:?} stands in already; a standby has the data of one node")
                    }
                    Some(_) => continue,
                }
            };
            checker.fault(span(&raw.standby), &key, message);
        }
    }
}

/// What has no effect is not what was meant.
fn without_effect(raw: &[raw::Node], checker: &mut Checker, nodes: &[Node]) {
    for (index, raw) in raw.iter().enumerate() {
        if raw.standby_writes.is_some() && raw.standby.is_none() {
            let key = format!("nodes[{index}].standby_writes");
            checker.fault(span(&raw.standby_writes), &key, "without standby it has no effect");
        }
        let named = |node: &&Node| {
            raw.name.as_ref().is_some_and(|name| name.value.as_deref() == Ok(node.name.as_str()))
        };
        let node = nodes.iter().find(named);
        // One that names itself is told that.
        let stands_in = |node: &Node| {
            nodes.iter().any(|other| other.name != node.name && other.standby.contains(&node.name))
        };
        if raw.mail_hosts.is_some() && node.is_some_and(stands_in) {
            let message = "this node is a standby; give the words to the node that it stands in for";
            checker.fault(span(&raw.mail_hosts), &format!("nodes[{index}].mail_hosts"), message);
        }
    }
}

/// One word means one node.
fn mail_hosts(raw: &[raw::Node], checker: &mut Checker, nodes: &[Node]) {
    let mut seen = BTreeSet::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("nodes[{index}].mail_hosts");
        let Some(words) = raw.mail_hosts.as_ref().and_then(|field| field.value.as_ref().ok()) else {
            continue;
        };
        let own = raw.name.as_ref().and_then(|name| name.value.as_ref().ok());
        for word in words {
            let other = nodes.iter().any(|node| {
                node.name.as_str().eq_ignore_ascii_case(word)
                    && Some(node.name.as_str()) != own.map(String::as_str)
            });
            if word.is_empty() || other || !seen.insert(word.to_ascii_lowercase()) {
                let message = format!("{word:?} is not valid; allowed: a text that means no other node");
                checker.fault(span(&raw.mail_hosts), &key, message);
            }
        }
    }
}

/// The nodes that stand in for another.
pub fn is_standby(nodes: &[Node], name: &NodeId) -> bool {
    nodes.iter().any(|node| node.standby.contains(name))
}

pub(super) fn discovery(raw: &raw::Discovery, checker: &mut Checker) -> Option<Discovery> {
    let addresses = checker.parse::<HostPort>(&raw.addresses, "discovery.addresses");
    let services = checker.optional(&raw.services, "discovery.services").cloned();
    if raw.addresses.is_some() == raw.services.is_some() {
        let message = "either addresses (NAME:PORT, by A and AAAA records) or services (a name, by SRV records) is required, \
                       and not both";
        checker.fault(None, "discovery", message);
    }
    if services.as_ref().is_some_and(|name| name.is_empty() || name.contains(char::is_whitespace)) {
        checker.fault(span(&raw.services), "discovery.services", "not a DNS name");
    }
    let interval = checker.duration(&raw.interval, "discovery.interval", 1, 3_600, 10);
    checker.required(&raw.nodes_min, "discovery.nodes_min");
    let nodes_min = checker.number(&raw.nodes_min, "discovery.nodes_min", 1, 1_000, 1);
    let mut servers = Vec::new();
    for word in checker.optional(&raw.servers, "discovery.servers").cloned().unwrap_or_default() {
        match word.parse().or_else(|_| word.parse().map(|ip: std::net::IpAddr| SocketAddr::new(ip, 53))) {
            Ok(address) => servers.push(address),
            Err(_) => {
                let message =
                    format!("{word:?} is not valid; allowed: an IP address, with or without a port");
                checker.fault(span(&raw.servers), "discovery.servers", message);
            }
        }
    }
    let query = addresses.map(DnsQuery::Addresses).or(services.map(DnsQuery::Services))?;
    Some(Discovery {
        query,
        interval,
        nodes_min: usize::try_from(nodes_min).expect("at most 1,000"),
        servers,
    })
}
