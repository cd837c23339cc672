//! An agent's configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_proto::id::NodeId;

use super::directory::GrantedDomains;
use super::log::{Log, Tracing};
use super::tls::{Anchors, Identity};
use super::{Checker, span};
use crate::error::Faults;
use crate::raw::{self, Document};

/// What an agent needs to run. Keys and defaults: docs/configuration.md.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Where it was read from.
    pub file: PathBuf,
    pub node: NodeId,
    pub address: SocketAddr,
    pub security: Security,
    /// What each front end may do; `None`: all that their certificates let in may do everything.
    pub allow: Option<Vec<AllowRule>>,
    pub store: Store,
    pub drain_timeout: Duration,
    pub log: Log,
    pub tracing: Option<Tracing>,
    /// Where metrics and health are served; `None`: nowhere.
    pub http: Option<SocketAddr>,
}

/// How an agent's port is protected.
#[derive(Debug, Clone)]
pub enum Security {
    /// Front ends show a certificate of this authority, the agent shows its own.
    Mutual { identity: Identity, client_ca: Anchors },
    /// Plaintext: on loopback, or because the configuration says `insecure = true`.
    Plain,
}

/// What a front end may do at most, whatever grants it states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowRule {
    /// A name in its certificate.
    pub frontend: String,
    pub backup: bool,
    pub restore: bool,
    pub domains: GrantedDomains,
}

#[derive(Debug, Clone)]
pub enum Store {
    Tree { root: PathBuf, rescan_interval: Duration, modes: Modes, links: Links },
}

/// Permission bits of what a store makes, where the folder that it is made in does not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    pub file: u32,
    pub directory: u32,
}

impl Default for Modes {
    fn default() -> Self {
        Self { file: 0o600, directory: 0o700 }
    }
}

/// What symbolic links below a store's root are to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Themselves.
    Show,
    /// For reading the file that they lead to, where that lies in the store.
    Follow,
}

impl Agent {
    pub fn load(path: &Path) -> Result<Self, Faults> {
        check(Document::read(path)?)
    }
}

pub(crate) fn check(document: Document) -> Result<Agent, Faults> {
    let (raw, faults) = document.deserialize::<raw::Agent>()?;
    let mut checker = Checker::new(document, faults);
    let agent = build(&raw, &mut checker);
    checker.finish()?;
    Ok(agent.expect("no fault, so every part is there"))
}

fn build(raw: &raw::Agent, checker: &mut Checker) -> Option<Agent> {
    checker.version(&raw.version);
    checker.required(&raw.node, "node");
    let node = checker.parse::<NodeId>(&raw.node, "node");
    checker.required(&raw.listen.address, "listen.address");
    let address = socket_address(checker, &raw.listen.address, "listen.address");
    let security = security(raw, checker, address);
    let allow = allow(raw, checker, security.as_ref());
    let store = store(raw, checker);
    let drain_timeout = checker.duration(&raw.drain_timeout, "drain_timeout", 0, 86_400, 30);
    let log = checker.log(&raw.log, None);
    let tracing = checker.tracing(&raw.tracing);
    let http = socket_address(checker, &raw.http.address, "http.address");
    Some(Agent {
        file: checker.document.path().to_owned(),
        node: node?,
        address: address?,
        security: security?,
        allow,
        store: store?,
        drain_timeout,
        log,
        tracing,
        http,
    })
}

/// `IP:PORT`; port 0 lets the system choose.
pub(crate) fn socket_address(checker: &mut Checker, field: &raw::Text, key: &str) -> Option<SocketAddr> {
    let text = checker.optional(field, key)?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let message = format!("{text:?} is not an address; allowed: IP:PORT, such as 127.0.0.1:7171");
            checker.fault(span(field), key, message);
            None
        }
    }
}

fn security(raw: &raw::Agent, checker: &mut Checker, address: Option<SocketAddr>) -> Option<Security> {
    let listen = &raw.listen;
    let identity = checker.identity(&listen.certificate, &listen.key, "listen.");
    let client_ca = checker.anchors(&listen.client_ca, "listen.client_ca");
    let insecure = checker.optional(&listen.insecure, "listen.insecure").copied().unwrap_or(false);
    if listen.certificate.is_none() && listen.key.is_none() && listen.client_ca.is_none() {
        if !insecure && address.is_some_and(|address| !address.ip().is_loopback()) {
            let message = "not a loopback address, so certificate, key and client_ca are required \
                           (or insecure = true, which lets anybody who reaches the port read all mail)";
            checker.fault(span(&listen.address), "listen.address", message);
        }
        return Some(Security::Plain);
    }
    if listen.client_ca.is_none() {
        checker.fault(span(&listen.certificate), "listen.client_ca", "required with a certificate");
    }
    if listen.certificate.is_none() && listen.key.is_none() {
        checker.fault(span(&listen.client_ca), "listen.certificate", "required with client_ca");
    }
    Some(Security::Mutual { identity: identity?, client_ca: client_ca? })
}

fn allow(raw: &raw::Agent, checker: &mut Checker, security: Option<&Security>) -> Option<Vec<AllowRule>> {
    if raw.allow.is_empty() {
        return None;
    }
    if let Some(Security::Plain) = security {
        checker.fault(
            None,
            "allow",
            "without certificates no front end has a name; listen.client_ca is required",
        );
    }
    let rules = raw.allow.iter().enumerate().filter_map(|(index, raw)| {
        let key = |name: &str| format!("allow[{index}].{name}");
        let frontend = checker.required(&raw.frontend, &key("frontend")).cloned();
        let (backup, restore) = checker.rights(&raw.rights, &key("rights"));
        let domains = match raw.domains {
            Some(_) => checker.domains(&raw.domains, &key("domains")),
            None => GrantedDomains { all: true, ..GrantedDomains::default() },
        };
        Some(AllowRule { frontend: frontend?, backup, restore, domains })
    });
    Some(rules.collect())
}

fn store(raw: &raw::Agent, checker: &mut Checker) -> Option<Store> {
    checker.choice(&raw.store.kind, "store.kind", &[("tree", ())], ());
    checker.required(&raw.store.root, "store.root");
    let root = checker.path(&raw.store.root, "store.root");
    if let Some(root) = &root
        && !root.is_dir()
    {
        let message = format!("{} is not a folder", root.display());
        checker.fault(span(&raw.store.root), "store.root", message);
    }
    let rescan_interval =
        checker.duration(&raw.store.rescan_interval, "store.rescan_interval", 1, 86_400, 10);
    let default = Modes::default();
    let modes = Modes {
        file: checker.mode(&raw.store.file_mode, "store.file_mode", default.file, 0o666),
        directory: checker.mode(&raw.store.directory_mode, "store.directory_mode", default.directory, 0o777),
    };
    let links = [("show", Links::Show), ("follow", Links::Follow)];
    let links = checker.choice(&raw.store.links, "store.links", &links, Links::Show);
    Some(Store::Tree { root: root?, rescan_interval, modes, links })
}
