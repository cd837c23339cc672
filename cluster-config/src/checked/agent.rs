//! An agent's configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_proto::id::NodeId;
use portolan_proto::mark::{MARK_BYTES_MAX, MARK_PATH, Mark};
use portolan_proto::rights::Rights;

use super::directory::GrantedDomains;
use super::log::{Log, Tracing};
use super::tls::{Anchors, Identity};
use super::{Checker, span};
use crate::error::{Fault, Faults};
use crate::raw::{self, Document};
use crate::units::{FreeMin, Rate};
use crate::{AGENT_KEYS, FRONTEND_KEYS};

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
    pub mark: MarkRule,
    pub limits: Limits,
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
    pub rights: Rights,
    pub domains: GrantedDomains,
}

/// Which mark a store has to carry to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarkRule {
    /// That of this node: the agent's own, or the one that `store.mark_of` names.
    Of(NodeId),
    /// None. The agent cannot tell its volume from the folder that it is mounted on.
    Unchecked,
}

#[derive(Debug, Clone)]
pub enum Store {
    Tree {
        root: PathBuf,
        rescan_interval: Duration,
        modes: Modes,
        links: Links,
        /// Room that uploads leave to others.
        free_min: FreeMin,
        access: Access,
    },
}

/// What the agent may do below a store's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// All. Uploads are written in `staging` until they are complete; `None`: in the agent's folder in the root.
    Write { staging: Option<PathBuf> },
    /// Nothing is changed. What does not fit into memory goes to `state_dir`; `None`: it stays in memory.
    Read { state_dir: Option<PathBuf> },
}

impl Default for Access {
    fn default() -> Self {
        Self::Write { staging: None }
    }
}

/// How fast content may be read from the store and written to it, for all front ends together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub read: Rate,
    pub write: Rate,
}

/// The least rate of [`Limits`]: hundreds of transfers share it, and none of them must seem to stand still.
const LIMIT_LEAST: u64 = 1 << 20;

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
        let document = Document::read(path)?;
        let sentence = "this is a front end's configuration, which portolan-frontend reads; an agent's has node and [store]";
        document.refuse_others(AGENT_KEYS, FRONTEND_KEYS, sentence)?;
        check(document, &mut Vec::new())
    }
}

/// Warnings are added to those given, also where there are faults.
pub(crate) fn check(document: Document, warnings: &mut Vec<Fault>) -> Result<Agent, Faults> {
    let (raw, faults) = document.deserialize::<raw::Agent>()?;
    let mut checker = Checker::new(document, faults);
    let agent = build(&raw, &mut checker);
    warnings.append(&mut checker.take_warnings());
    checker.finish()?;
    Ok(agent.expect("no fault, so every part is there"))
}

fn build(raw: &raw::Agent, checker: &mut Checker) -> Option<Agent> {
    checker.version(&raw.version);
    checker.required(&raw.node, "node");
    let node = checker.parse::<NodeId>(&raw.node, "node");
    checker.required(&raw.listen.address, "listen.address");
    let address = socket_address(checker, &raw.listen.address, "listen.address");
    let security = security(raw, checker, address, node.as_ref());
    let allow = allow(raw, checker, security.as_ref());
    let store = store(raw, checker);
    let mark = mark(raw, checker, node.as_ref(), store.as_ref());
    let limits = Limits {
        read: rate(checker, &raw.limits.read_rate, "limits.read_rate"),
        write: rate(checker, &raw.limits.write_rate, "limits.write_rate"),
    };
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
        mark: mark?,
        limits,
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

fn security(
    raw: &raw::Agent,
    checker: &mut Checker,
    address: Option<SocketAddr>,
    node: Option<&NodeId>,
) -> Option<Security> {
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
    let (identity, client_ca) = (identity?, client_ca?);
    let keys = ("listen.certificate", "listen.client_ca");
    checker.same_authority(&identity, &client_ca, &listen.certificate, keys);
    if let Some(node) = node {
        checker.is_of_node(&identity, node, &listen.certificate, keys.0);
    }
    Some(Security::Mutual { identity, client_ca })
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
        let rights = checker.rights(&raw.rights, &key("rights"));
        let domains = match raw.domains {
            Some(_) => checker.domains(&raw.domains, &key("domains")),
            None => GrantedDomains { all: true, ..GrantedDomains::default() },
        };
        Some(AllowRule { frontend: frontend?, rights, domains })
    });
    Some(rules.collect())
}

fn rate(checker: &mut Checker, field: &raw::Text, key: &str) -> Rate {
    let rate = checker.parse::<Rate>(field, key).unwrap_or_default();
    if rate != Rate::default() && rate.0 < LIMIT_LEAST {
        let message =
            "too slow for many transfers at once; allowed: from 1MiB to 1TiB a second, or \"0\" for no limit";
        checker.fault(span(field), key, message);
        return Rate::default();
    }
    rate
}

fn store(raw: &raw::Agent, checker: &mut Checker) -> Option<Store> {
    let kinds: [(&str, StoreOfKind); 1] = [("tree", tree)];
    checker.choice(&raw.store.kind, "store.kind", &kinds, tree)(raw, checker)
}

/// The mark that counts; a store that does not carry it is a warning, for an agent starts over it and serves nothing.
fn mark(
    raw: &raw::Agent,
    checker: &mut Checker,
    node: Option<&NodeId>,
    store: Option<&Store>,
) -> Option<MarkRule> {
    let choices = [("required", true), ("none", false)];
    let is_required = checker.choice(&raw.store.mark, "store.mark", &choices, true);
    let of = checker.parse::<NodeId>(&raw.store.mark_of, "store.mark_of");
    if !is_required {
        if raw.store.mark_of.is_some() {
            let message = "without effect beside mark = \"none\"; allowed: one of the two";
            checker.fault(span(&raw.store.mark_of), "store.mark_of", message);
        }
        let message = "the agent serves whatever is at store.root when it starts, also the empty folder of a volume that \
                       is not mounted: a backup takes that for a node without domains";
        checker.warn(span(&raw.store.mark), "store.mark", message);
        return Some(MarkRule::Unchecked);
    }
    let of = if raw.store.mark_of.is_some() { of? } else { node?.clone() };
    if let Some(Store::Tree { root, .. }) = store
        && root.is_dir()
        && let Some(message) = mark_missing(root, &of)
    {
        checker.warn(span(&raw.store.root), "store.root", message);
    }
    Some(MarkRule::Of(of))
}

/// What is wrong with the mark of a store; `None`: it is as it should be, or this user may not look.
fn mark_missing(root: &Path, of: &NodeId) -> Option<String> {
    use std::io::Read as _;
    let shown = root.display();
    let file = root.join(MARK_PATH);
    let mut content = Vec::new();
    let read = std::fs::File::open(&file)
        .and_then(|file| file.take(MARK_BYTES_MAX as u64 + 1).read_to_end(&mut content));
    let serves_nothing = "the agent starts and serves nothing";
    match (read, Mark::parse(&content)) {
        (Ok(_), Ok(mark)) if mark.node == *of => None,
        (Ok(_), Ok(mark)) => Some(format!(
            "{shown} is marked for node {}, not {of}: {serves_nothing}; is the right volume mounted? A standby names the \
             node whose store it has as store.mark_of",
            mark.node
        )),
        (Ok(_), Err(bad)) => Some(format!("{} is no mark: {bad}; {serves_nothing}", file.display())),
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => Some(format!(
            "{shown} carries no mark, so {serves_nothing}; see that its volume is mounted, then run once: portolan-agent \
             mark {shown} --node {of}"
        )),
        // The agent may run as another user than this check.
        (Err(_), _) => None,
    }
}

/// Reads the keys of one kind of store.
type StoreOfKind = fn(&raw::Agent, &mut Checker) -> Option<Store>;

fn tree(raw: &raw::Agent, checker: &mut Checker) -> Option<Store> {
    checker.required(&raw.store.root, "store.root");
    let root = checker.path(&raw.store.root, "store.root");
    if let Some(root) = &root {
        folders(root, &raw.store.root, checker);
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
    let free_min = match raw.store.free_min {
        Some(_) => checker.parse::<FreeMin>(&raw.store.free_min, "store.free_min").unwrap_or_default(),
        None => "1GiB or 5%".parse().expect("the default is allowed"),
    };
    let access = access(raw, checker, root.as_deref());
    Some(Store::Tree { root: root?, rescan_interval, modes, links, free_min, access })
}

fn access(raw: &raw::Agent, checker: &mut Checker, root: Option<&Path>) -> Access {
    let store = &raw.store;
    let read_only = checker.optional(&store.read_only, "store.read_only").copied().unwrap_or(false);
    let staging = checker.path(&store.staging, "store.staging");
    let state_dir = checker.path(&store.state_dir, "store.state_dir");
    if read_only {
        if store.staging.is_some() {
            let message = "a store with read_only = true takes no uploads, so it has no staging folder";
            checker.fault(span(&store.staging), "store.staging", message);
        }
        if let Some(folder) = state_dir.as_deref().filter(|folder| !folder.is_dir()) {
            let message = format!("{} is not a folder", folder.display());
            checker.fault(span(&store.state_dir), "store.state_dir", message);
        }
        return Access::Read { state_dir };
    }
    if store.state_dir.is_some() {
        let message =
            "only with read_only = true; otherwise the agent keeps its things in .portolan in the root";
        checker.fault(span(&store.state_dir), "store.state_dir", message);
    }
    if let (Some(folder), Some(root)) = (&staging, root) {
        staging_folder(folder, root, &store.staging, checker);
    }
    Access::Write { staging }
}

/// Uploads are renamed from there into the tree, which only works within one file system.
fn staging_folder(folder: &Path, root: &Path, field: &raw::Text, checker: &mut Checker) {
    use std::os::unix::fs::MetadataExt as _;
    let (shown, key) = (folder.display(), "store.staging");
    match (folder.metadata(), root.metadata()) {
        (Ok(metadata), _) if !metadata.is_dir() => {
            checker.fault(span(field), key, format!("{shown} is not a folder"));
        }
        (Err(error), _) => {
            checker.fault(span(field), key, format!("cannot look at {shown}: {error}; expected: a folder"));
        }
        (Ok(staging), Ok(root)) if staging.dev() != root.dev() => {
            let message = format!(
                "{shown} lies on another file system than store.root; uploads are renamed into place"
            );
            checker.fault(span(field), key, message);
        }
        (Ok(_), _) => {}
    }
}

/// The root must be there, and `domains` in it a folder, if it is there: the agent reads through no link. Without it, or
/// with one that it cannot write to, the agent starts.
fn folders(root: &Path, field: &raw::Text, checker: &mut Checker) {
    use std::os::unix::fs::MetadataExt as _;
    let shown = root.display();
    let metadata = match root.metadata() {
        Ok(metadata) if metadata.is_dir() => metadata,
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("cannot look at {shown}: {error}");
            return checker.fault(span(field), "store.root", message);
        }
        other => {
            let found = if other.is_ok() { "is not a folder" } else { "is not a folder: nothing is there" };
            let message = format!(
                "{shown} {found}; expected: a folder that holds domains/<domain>/..., on a file system that is mounted"
            );
            return checker.fault(span(field), "store.root", message);
        }
    };
    let domains = root.join("domains");
    let shown = domains.display();
    match domains.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!(
                "{shown} is missing, so this node holds no domains; expected: domains/<domain>/... in store.root; is \
                 the file system mounted?"
            );
            checker.warn(span(field), "store.root", message);
        }
        // The agent may run as another user than this check.
        Err(_) => {}
        Ok(found) if found.is_symlink() => {
            let message = format!(
                "{shown} is a link, and the agent follows none there; make it a folder, or let store.root name the \
                 folder around the one that the link leads to"
            );
            checker.fault(span(field), "store.root", message);
        }
        Ok(found) if !found.is_dir() => {
            let message = format!("{shown} is not a folder; expected: domains/<domain>/... in store.root");
            checker.fault(span(field), "store.root", message);
        }
        Ok(found) if found.dev() != metadata.dev() => {
            let message = format!(
                "{shown} lies on another file system than store.root: the mark of store.root does not vouch for it, so the \
                 agent serves nothing, and without a mark refuses uploads with 550; mount the file system at store.root, \
                 with domains as a folder in it"
            );
            checker.warn(span(field), "store.root", message);
        }
        Ok(_) => {}
    }
}
