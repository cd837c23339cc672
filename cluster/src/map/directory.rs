//! The domain map as a directory has it: which node each domain and user lies on.
//!
//! Who calls it: `running`, at the start, by the interval of the configuration, and when the operator asks.
//! What it calls: `ldap` for the entries.
//! What it never does: hand out a part of a map. Where the directory fails, the last map stays.

use std::collections::{BTreeMap, BTreeSet};

use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::map::{LdapMap, MapSearch};
use portolan_config::checked::nodes::is_standby;
use portolan_proto::path;

use crate::ldap::{Entry, LdapClient, Search, SetupError};
use crate::map::{GivenMap, NodeIndex};
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
    Slow { directory: String, limit: std::time::Duration },
    /// An error of the directory's rights looks the same as a cluster without domains.
    #[error("directory {directory} names no {what}")]
    Empty { directory: String, what: &'static str },
}

/// A map that was read.
#[derive(Debug, Default)]
pub struct Read {
    pub map: GivenMap,
    /// Entries of domains, and of users.
    pub counts: [usize; 2],
    /// What directories call nodes that there are none of, names that cannot be paths, and users of two nodes.
    pub useless: BTreeSet<String>,
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
pub async fn read(
    config: &Config,
    settings: &LdapMap,
    nodes: &Nodes,
    before: [usize; 2],
) -> Result<Read, Error> {
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
pub fn shown(useless: &BTreeSet<String>) -> String {
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
