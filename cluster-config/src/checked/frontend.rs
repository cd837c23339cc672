//! A front end's configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::access::{Bandwidth, Bans, Errors, Limits, Scope};
use super::agent::socket_address;
use super::directory::{Directory, GrantRule};
use super::listener::{Inherited, Listener, listeners};
use super::log::{self, Log, Tracing};
use super::map::{Map, map};
use super::nodes::{self, Discovery, Node};
use super::tls::{Anchors, Identity};
use super::{Checker, span};
use crate::admins::AdminsFile;
use crate::error::{Fault, Faults};
use crate::raw::{self, Document};
use crate::units::HostPort;
use crate::{AGENT_KEYS, FRONTEND_KEYS};

/// What a front end needs to run. Keys and defaults: docs/configuration.md.
#[derive(Debug, Clone)]
pub struct Frontend {
    /// Where it was read from.
    pub file: PathBuf,
    /// The front end's own folder, for what it remembers over a restart; `None`: it asks the agents then.
    pub state_dir: Option<PathBuf>,
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
    /// Names and addresses are distinct; at least one where there is no discovery.
    pub nodes: Vec<Node>,
    pub discovery: Option<Discovery>,
    pub map: Map,
    pub drain_timeout: Duration,
    pub log: Log,
    pub tracing: Option<Tracing>,
    /// Where metrics and health are served; `None`: nowhere.
    pub http: Option<SocketAddr>,
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

impl Frontend {
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let document = Document::read(path)?;
        let sentence =
            "this is an agent's configuration, which portolan-agent reads; a front end's has [[listeners]]";
        document.refuse_others(FRONTEND_KEYS, AGENT_KEYS, sentence)?;
        check(document, &mut Vec::new())
    }
}

/// Warnings are added to those given, also where there are faults.
pub(crate) fn check(document: Document, warnings: &mut Vec<Fault>) -> Result<Frontend, Faults> {
    let (raw, faults) = document.deserialize::<raw::Frontend>()?;
    let mut checker = Checker::new(document, faults);
    let frontend = build(&raw, &mut checker);
    warnings.append(&mut checker.take_warnings());
    checker.finish()?;
    Ok(frontend.expect("no fault, so every part is there"))
}

fn build(raw: &raw::Frontend, checker: &mut Checker) -> Option<Frontend> {
    checker.version(&raw.version);
    let state_dir = checker.path(&raw.state_dir, "state_dir");
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
    let discovery = raw.discovery.as_ref().and_then(|raw| nodes::discovery(raw, checker));
    let nodes = nodes::nodes(&raw.nodes, checker, raw.discovery.is_some());
    let cluster = cluster(raw, checker, &nodes);
    let map = map(&raw.map, checker, &nodes, directories.as_deref().unwrap_or_default());
    let drain_timeout = checker.duration(&raw.drain_timeout, "drain_timeout", 0, 86_400, 30);
    let names = listeners.iter().flatten().map(|listener| &listener.name);
    let log = checker.log(&raw.log, Some(&log::listener_names(names)));
    let tracing = checker.tracing(&raw.tracing);
    let http = socket_address(checker, &raw.http.address, "http.address");
    Some(Frontend {
        file: checker.document.path().to_owned(),
        state_dir,
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
        discovery,
        map,
        drain_timeout,
        log,
        tracing,
        http,
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

fn is_loopback(node: &Node) -> bool {
    node.address.as_ref().is_none_or(HostPort::is_loopback)
}

fn cluster(raw: &raw::Frontend, checker: &mut Checker, nodes: &[Node]) -> Option<Security> {
    let cluster = &raw.cluster;
    let identity = checker.identity(&cluster.certificate, &cluster.key, "cluster.");
    let ca = checker.anchors(&cluster.ca, "cluster.ca");
    let insecure = checker.optional(&cluster.insecure, "cluster.insecure").copied().unwrap_or(false);
    if cluster.ca.is_none() && cluster.certificate.is_none() && cluster.key.is_none() {
        if !insecure && (raw.discovery.is_some() || nodes.iter().any(|node| !is_loopback(node))) {
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
    let (identity, ca) = (identity?, ca?);
    checker.same_authority(&identity, &ca, &cluster.certificate, ("cluster.certificate", "cluster.ca"));
    checker.is_of_frontend(&identity, &cluster.certificate, "cluster.certificate");
    Some(Security::Mutual { identity, ca })
}
