//! Which nodes there are: those of the configuration, and those that discovery has found since the start.
//!
//! Who calls it: `running`, at the start, for a reload, for other certificates and after each discovery.
//! What it calls: `nodes` to make channels, `map` to report what each node is for.
//! What it never does: take out a node because DNS does not name it. A missing node is an error, never an absence.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::nodes::is_standby;
use portolan_config::units::HostPort;
use portolan_proto::id::NodeId;
use portolan_record::Log;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::map::{NodeFacts, Role, Router};
use crate::nodes::{self, NodeClient, Nodes, Prepared, SetupError};
use crate::record::keeper;

/// See the module.
pub struct Members {
    nodes: Arc<Nodes>,
    router: Arc<Router>,
    /// What discovery has found, each with its last address.
    found: Mutex<BTreeMap<NodeId, HostPort>>,
    /// The watches of the nodes, which outlive the gates.
    watches: TaskTracker,
    /// The file of the record, until it is written to.
    record: Mutex<Option<Log>>,
    stop: CancellationToken,
}

/// What has to change, made ready so that nothing can fail any more.
pub struct Change {
    /// All that are to be there; `None`: its channel stays, or discovery has not found it.
    wanted: Vec<(NodeId, Option<Prepared>)>,
    out: Vec<Arc<NodeClient>>,
}

impl Members {
    /// Nodes are watched when [`Members::watch`] is called.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let nodes = Arc::new(Nodes::default());
        let change = prepare(&nodes, config, &BTreeMap::new(), false)?;
        settle(&nodes, change);
        let router = Arc::new(Router::new(facts(&nodes, config), nodes_min(config), &config.map));
        let record = keeper::open(config.state_dir.as_deref(), &router);
        Ok(Self {
            nodes,
            router,
            record: Mutex::new(record),
            found: Mutex::default(),
            watches: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Begins to watch all nodes; those that come later are watched as they come.
    pub fn watch(&self) {
        self.spawn(keeper::settle(Arc::clone(&self.router)));
        if let Some(log) = self.record.lock().take() {
            self.spawn(keeper::write(log, Arc::clone(&self.router), self.router.record_changes()));
        }
        self.nodes.list().into_iter().for_each(|node| self.watch_one(node));
    }

    fn watch_one(&self, node: Arc<NodeClient>) {
        let (router, stop) = (Arc::clone(&self.router), self.stop.clone());
        let (kept, out) = (Arc::clone(&node), Arc::clone(&node));
        let keeping = keeper::keep_with(kept, Arc::clone(&router));
        self.spawn(async move {
            tokio::select! {
                () = keeping => {}
                () = out.until_out() => {}
            }
        });
        self.watches.spawn(async move { node.watch(&router, stop).await });
    }

    /// Runs something until the end.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.watches.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Ends the watches.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.watches.close();
        self.watches.wait().await;
    }

    /// Makes ready what a configuration asks for. `anew`: all channels, because the certificates are other ones.
    ///
    /// # Errors
    /// The certificates do not fit TLS.
    pub fn prepare(&self, config: &Config, anew: bool) -> Result<Change, SetupError> {
        let found = self.found.lock();
        prepare(&self.nodes, config, &found, anew)
    }

    /// Puts a change into force, and where it says so what the configuration says of nodes and map.
    pub fn apply(&self, change: Change, config: &Config, anew: bool) {
        let new = settle(&self.nodes, change);
        if anew || !new.is_empty() {
            self.router.replace(facts(&self.nodes, config), nodes_min(config), &config.map);
        }
        new.into_iter().for_each(|node| self.watch_one(node));
    }

    /// Takes in what discovery has found; true where it is dialled elsewhere, or not at all.
    pub fn take_in(&self, name: &NodeId, address: &HostPort) -> bool {
        self.found.lock().insert(name.clone(), address.clone());
        self.nodes.find(name).and_then(|node| node.address()).as_ref() != Some(address)
    }
}

fn prepare(
    nodes: &Nodes,
    config: &Config,
    found: &BTreeMap<NodeId, HostPort>,
    anew: bool,
) -> Result<Change, SetupError> {
    let written = config.nodes.iter().map(|node| (&node.name, node.address.as_ref()));
    let mut wanted: Vec<_> = written.map(|(name, address)| (name, address.or(found.get(name)))).collect();
    if config.discovery.is_some() {
        let others = found.iter().filter(|(name, _)| !config.nodes.iter().any(|node| node.name == **name));
        wanted.extend(others.map(|(name, address)| (name, Some(address))));
    }
    let out = nodes.list().into_iter().filter(|node| !wanted.iter().any(|(name, _)| *name == node.name()));
    let out = out.collect();
    let ready = wanted.into_iter().map(|(name, address)| {
        let dialled = nodes.find(name).and_then(|node| node.address());
        let prepared = match address {
            Some(address) if anew || dialled.as_ref() != Some(address) => {
                Some(nodes::prepare(name, address, &config.cluster)?)
            }
            _ => None,
        };
        Ok((name.clone(), prepared))
    });
    Ok(Change { wanted: ready.collect::<Result<_, _>>()?, out })
}

/// Nodes that were not there before.
fn settle(nodes: &Nodes, change: Change) -> Vec<Arc<NodeClient>> {
    for node in &change.out {
        node.take_out();
        tracing::info!(node = %node.name(), "node is taken out");
    }
    let mut new = Vec::new();
    for (name, prepared) in change.wanted {
        let node = nodes.find(&name).unwrap_or_else(|| {
            let node = nodes.add(name);
            new.push(Arc::clone(&node));
            node
        });
        if let Some(prepared) = prepared {
            node.dial(prepared);
        }
    }
    new
}

/// What each node is for, in the order of their places.
fn facts(nodes: &Nodes, config: &Config) -> Vec<NodeFacts> {
    let role = |node: &NodeClient| {
        if node.is_out() {
            return Role::Out;
        }
        if is_standby(&config.nodes, node.name()) {
            return Role::Standby;
        }
        let written = config.nodes.iter().find(|written| written.name == *node.name());
        let names = written.map(|node| &node.standby[..]).unwrap_or_default();
        let standbys = names.iter().filter_map(|name| nodes.find(name)).map(|node| node.index()).collect();
        Role::Primary { standbys, writes: written.is_some_and(|node| node.standby_writes) }
    };
    let mail_hosts = |node: &NodeClient| {
        let written = config.nodes.iter().find(|written| written.name == *node.name());
        written.map(|written| written.mail_hosts.clone()).unwrap_or_default()
    };
    // Found ones follow by name, so that all front ends agree on the order.
    let all = nodes.all();
    let mut found: Vec<&NodeId> = all.iter().map(|node| node.name()).collect();
    found.sort_unstable();
    let rank = |name: &NodeId| {
        let written = config.nodes.iter().position(|written| written.name == *name);
        written.unwrap_or_else(|| config.nodes.len() + found.partition_point(|other| *other < name))
    };
    let has_address =
        |name: &NodeId| config.nodes.iter().any(|written| written.name == *name && written.address.is_some());
    let facts = |node: &Arc<NodeClient>| NodeFacts {
        name: node.name().clone(),
        is_discovered: !has_address(node.name()),
        role: role(node),
        mail_hosts: mail_hosts(node),
        rank: rank(node.name()),
    };
    all.iter().map(facts).collect()
}

/// How many nodes there are at least.
fn nodes_min(config: &Config) -> usize {
    config.discovery.as_ref().map_or(0, |discovery| discovery.nodes_min)
}
