//! The domain map as a directory has it: which node each domain and user lies on.
//!
//! Who calls it: the front end, at the start and when the operator asks; then it reads by the interval of the configuration.
//! What it calls: `ldap` for the entries, `map` with what it read.
//! What it never does: hand out a part of a map. Where the directory fails, the last map stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::map::{LdapMap, MapSearch};
use portolan_config::checked::nodes::is_standby;
use portolan_proto::path;
use portolan_telemetry::chain;
use tokio::sync::Notify;

use crate::in_force::InForce;
use crate::ldap::{Entry, LdapClient, Search, SetupError};
use crate::map::{GivenMap, NodeIndex, Router};
use crate::nodes::Nodes;

/// Entries that are of no use are shown to this number, and remembered to that one.
const SHOWN_MAX: usize = 5;
const USELESS_MAX: usize = 1_000;

/// Why there is no new map.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("directory {directory} does not answer: {cause}")]
    Away { directory: String, cause: String },
    #[error("directory {directory} did not tell the whole map in {limit:?}")]
    Slow { directory: String, limit: Duration },
    /// An error of the directory's rights looks the same as a cluster without domains.
    #[error("directory {directory} names no {what}")]
    Empty { directory: String, what: &'static str },
}

/// A map that a directory has not told yet is asked for again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// What is known of the map of the directory.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// When it was read last.
    pub read: Option<SystemTime>,
    pub domains: usize,
    /// Entries of domains, and of users.
    entries: [usize; 2],
    /// Why the last reading failed.
    pub failure: Option<String>,
    /// What was of no use in it.
    useless: BTreeSet<String>,
    tried: Option<Instant>,
}

/// The map of the directory that the configuration in force names, if it names one.
pub struct DirectoryMap {
    in_force: Arc<InForce>,
    nodes: Arc<Nodes>,
    router: Arc<Router>,
    known: Mutex<Known>,
    /// One reading at a time.
    reading: tokio::sync::Mutex<()>,
    wanted: Notify,
}

impl DirectoryMap {
    pub fn new(in_force: Arc<InForce>, nodes: Arc<Nodes>, router: Arc<Router>) -> Self {
        Self {
            in_force,
            nodes,
            router,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// What is known of it; `None`: no directory is a source of the map.
    pub fn known(&self) -> Option<Known> {
        self.in_force.load().map.ldap.as_ref().map(|_| self.known.lock().clone())
    }

    /// What was known is of another directory.
    pub fn forget(&self) {
        *self.known.lock() = Known::default();
    }

    /// It is to be read at once.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Reads it when it is time to, for ever.
    pub async fn run(&self) {
        loop {
            self.until_due().await;
            // Its outcome is in the log.
            self.refresh().await.ok();
        }
    }

    async fn until_due(&self) {
        let (config, known) = (self.in_force.load(), self.known.lock().clone());
        let wait = match (&config.map.ldap, known.tried) {
            (None, _) => return self.wanted.notified().await,
            (Some(_), None) => Duration::ZERO,
            // Until it has told the map once, domains are missing.
            (Some(_), Some(tried)) if known.read.is_none() => RETRY.saturating_sub(tried.elapsed()),
            (Some(ldap), Some(tried)) => ldap.refresh.saturating_sub(tried.elapsed()),
        };
        tokio::select! {
            () = self.wanted.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Reads it, where a directory is a source of the map. How many domains it has.
    ///
    /// # Errors
    /// The last map stays.
    pub async fn refresh(&self) -> Result<Option<usize>, Error> {
        let _one_at_a_time = self.reading.lock().await;
        let config = self.in_force.load();
        let Some(settings) = &config.map.ldap else { return Ok(None) };
        let Known { domains: before, entries, .. } = self.known.lock().clone();
        let begun = Instant::now();
        let read = read(&config, settings, &self.nodes, entries).await;
        let mut known = self.known.lock();
        let present = self.in_force.load();
        if !Arc::ptr_eq(&config, &present) {
            // It was read for what is in force no more.
            self.want();
        }
        known.tried = Some(Instant::now());
        match read {
            Ok(_) if present.map.ldap != config.map.ldap => Ok(Some(known.domains)),
            Ok(Read { map, counts, useless }) => {
                let ms = begun.elapsed().as_millis();
                if !useless.is_empty() && useless != known.useless {
                    let what = shown(&useless);
                    tracing::warn!(
                        directory = settings.directory,
                        what,
                        "words of the directory mean no node, domain or user; what lies there answers 450"
                    );
                }
                if known.read.is_none() || known.failure.is_some() || map.len() != before {
                    tracing::info!(
                        directory = settings.directory,
                        domains = map.len(),
                        ms,
                        "the map of the directory is read"
                    );
                }
                *known = Known {
                    read: Some(SystemTime::now()),
                    domains: map.len(),
                    entries: counts,
                    failure: None,
                    useless,
                    tried: known.tried,
                };
                self.router.replace_ldap(map);
                Ok(Some(known.domains))
            }
            Err(error) => {
                let cause = chain(&error);
                if known.failure.as_ref() != Some(&cause) {
                    tracing::error!(cause, "the map of the directory cannot be read; the last one stays");
                }
                known.failure = Some(cause);
                Err(error)
            }
        }
    }
}

/// A map that was read.
#[derive(Debug, Default)]
struct Read {
    map: GivenMap,
    /// Entries of domains, and of users.
    counts: [usize; 2],
    /// What directories call nodes that there are none of, names that cannot be paths, and users of two nodes.
    useless: BTreeSet<String>,
}

impl Read {
    fn add_useless(&mut self, what: String) {
        if self.useless.len() < USELESS_MAX {
            self.useless.insert(what);
        }
    }

    /// Domains and addresses are compared without regard to case; on the disks they are in lower case.
    fn add_domain(&mut self, name: &str, at: &[Result<NodeIndex, &str>]) -> bool {
        let name = name.to_lowercase().into_bytes();
        let good = path::check_component(&name).is_ok();
        for node in at.iter().filter(|_| good) {
            match node {
                Ok(node) => self.map.add_node(&name, *node),
                Err(word) => self.map.add_unresolved(&name, word),
            }
        }
        good
    }

    /// A user lies on one node: the first that is named.
    fn add_user(&mut self, address: &str, at: &[Result<NodeIndex, &str>]) -> bool {
        let address = address.to_lowercase();
        let Some((user, domain)) = address.rsplit_once('@') else { return false };
        if [user, domain].iter().any(|part| path::check_component(part.as_bytes()).is_err()) {
            return false;
        }
        let object = format!("users/{user}").into_bytes();
        match at.first() {
            Some(Ok(node)) => {
                let other = self.map.object(domain.as_bytes(), &object).filter(|other| other != node);
                self.map.add_object(domain.as_bytes(), &object, *node);
                if other.is_some() {
                    // Both nodes are asked, and nobody guesses.
                    self.map.forget_object(domain.as_bytes(), &object);
                    self.add_useless(format!("{address:?}, which has two entries with different nodes"));
                }
            }
            Some(Err(word)) => self.map.add_unresolved(domain.as_bytes(), word),
            None => {}
        }
        true
    }
}

/// Reads the map. `before`: how many entries it had last time.
async fn read(config: &Config, settings: &LdapMap, nodes: &Nodes, before: [usize; 2]) -> Result<Read, Error> {
    let name = settings.directory.clone();
    let directory = config.directories.iter().find(|directory| directory.name == name);
    let directory = directory.expect("the configuration was checked: the map names a directory");
    let directory = LdapClient::new(directory)?;
    let hosts = hosts(config, nodes);
    let search = |search: &MapSearch| Search {
        base: search.base.clone(),
        filter: search.filter.clone(),
        attributes: vec![search.attribute.clone(), settings.node_attribute.clone()],
    };
    // Domains first: their order of nodes says which is the home node.
    let searches = [search(&settings.domains), search(&settings.users)];
    let take = |read: &mut Read, which: usize, entry: &Entry| {
        read.counts[which] += 1;
        let attribute = if which == 0 { &settings.domains.attribute } else { &settings.users.attribute };
        let words = entry.values(&settings.node_attribute);
        let at: Vec<_> = words.map(|word| hosts.get(&word.to_lowercase()).copied().ok_or(word)).collect();
        for word in at.iter().filter_map(|node| node.err()) {
            read.add_useless(format!("{} {word:?}", settings.node_attribute));
        }
        for name in entry.values(attribute) {
            let added = if which == 0 { read.add_domain(name, &at) } else { read.add_user(name, &at) };
            if !added {
                read.add_useless(format!("{attribute} {name:?}"));
            }
        }
    };
    let reading = directory.read_all(&searches, take);
    let read = match tokio::time::timeout(settings.timeout, reading).await {
        Ok(read) => read.map_err(|cause| Error::Away { directory: name.clone(), cause })?,
        Err(_) => return Err(Error::Slow { directory: name, limit: settings.timeout }),
    };
    if read.map.is_empty() {
        return Err(Error::Empty { directory: name, what: "domain" });
    }
    for (which, what) in ["domain's entry", "user"].into_iter().enumerate() {
        if before[which] > 0 && read.counts[which] == 0 {
            return Err(Error::Empty { directory: name, what });
        }
    }
    Ok(read)
}

/// What is useless, for the log.
fn shown(useless: &BTreeSet<String>) -> String {
    let first = useless.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
    match useless.len().saturating_sub(SHOWN_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Each word that means a node, in lower case; what is written counts before a name. Standbys hold nothing of their own.
fn hosts(config: &Config, nodes: &Nodes) -> BTreeMap<String, NodeIndex> {
    let holding = nodes.list().into_iter().filter(|node| !is_standby(&config.nodes, node.name()));
    let holding: Vec<_> = holding.collect();
    let mut hosts: BTreeMap<_, _> =
        holding.iter().map(|node| (node.name().as_str().to_lowercase(), node.index())).collect();
    for node in &holding {
        let written = config.nodes.iter().find(|written| written.name == *node.name());
        for host in written.into_iter().flat_map(|node| &node.mail_hosts) {
            hosts.insert(host.to_lowercase(), node.index());
        }
    }
    hosts
}
