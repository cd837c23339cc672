//! Portolan's front end: one FTP endpoint over all nodes of a mail cluster.
//!
//! The way of the content, from the client's socket to a node; calls go down the numbers only:
//!
//! ```text
//! client ──> gate (1) ──> ftp (2) ──> tree (3) ──> router (4)
//!                          │           └────────> node_client (5) ── gRPC, mTLS ──> agent
//!                          └──> auth
//! ```
//!
//! Who calls it: `main.rs`, and `portolan demo`, which runs one beside its agents.
//! What it calls: the numbered modules.
//! What it never does: touch a mail store.

pub mod auth;
pub mod cli;
pub mod ftp;
pub mod gate;
pub mod node_client;
pub mod router;
pub mod tree;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portolan_config::checked::frontend::Frontend as Config;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use auth::Authenticator;
use ftp::Service;
use gate::Gate;
use node_client::{Health, NodeClient};
use router::Router;
use tree::Tree;

/// Before the first client is let in, the nodes get this long to be heard. Those that are not are away.
const FIRST_HEARING_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot serve FTP on {address}")]
    Ftp { address: SocketAddr, source: ftp::Error },
    #[error(transparent)]
    Node(#[from] node_client::SetupError),
}

/// A front end that is bound and ready to run.
pub struct Frontend {
    config: Config,
    gates: Vec<Gate>,
    nodes: Vec<Arc<NodeClient>>,
    router: Arc<Router>,
}

impl Frontend {
    /// Binds all listeners. Nodes are dialled when it runs.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let nodes = node_client::clients(&config)?;
        let names = config.nodes.iter().map(|node| node.name.clone()).collect();
        let router = Arc::new(Router::new(names, &config.map));
        let tree = Arc::new(Tree::new(Arc::clone(&router), nodes.clone()));
        let auth = Arc::new(Authenticator::new(&config.admins));
        let mut gates = Vec::new();
        for listener in &config.listeners {
            let address = listener.address;
            let service = Service::new(listener.clone(), Arc::clone(&tree), Arc::clone(&auth))
                .map_err(|source| Error::Ftp { address, source })?;
            gates.push(Gate::bind(service).await.map_err(|source| Error::Listen { address, source })?);
        }
        Ok(Self { config, gates, nodes, router })
    }

    /// The addresses that are bound, in the order of the configuration.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.gates.iter().map(Gate::local_addr).collect()
    }

    /// Serves until `shutdown`, then drains for the configured time. What is not done then is cut and commits
    /// nothing.
    pub async fn run(self, shutdown: CancellationToken) {
        // The watches outlive the gates: transfers that drain still need to know their nodes.
        let stop_watches = CancellationToken::new();
        let watches = TaskTracker::new();
        for node in &self.nodes {
            let (node, router, stop) = (Arc::clone(node), Arc::clone(&self.router), stop_watches.clone());
            watches.spawn(async move { node.watch(&router, stop).await });
        }
        tokio::select! {
            _ = tokio::time::timeout(FIRST_HEARING_MAX, self.hear_nodes()) => {}
            () = shutdown.cancelled() => {}
        }
        let mut gates = JoinSet::new();
        for gate in self.gates {
            tracing::info!(address = %gate.local_addr(), "front end serves");
            gates.spawn(gate.run(shutdown.clone()));
        }
        shutdown.cancelled().await;
        tracing::info!("front end drains");
        let drained = async { while gates.join_next().await.is_some() {} };
        if tokio::time::timeout(self.config.drain_timeout, drained).await.is_err() {
            tracing::warn!("transfers still in flight at the end of the drain are cut; they commit nothing");
            gates.shutdown().await;
        }
        stop_watches.cancel();
        watches.close();
        watches.wait().await;
        tracing::info!("front end stopped");
    }

    /// Waits until each node is up or known to be away.
    async fn hear_nodes(&self) {
        for node in &self.nodes {
            let mut health = node.health();
            // The sender lives as long as the node.
            health.wait_for(|health| *health != Health::Unheard).await.ok();
        }
    }
}
