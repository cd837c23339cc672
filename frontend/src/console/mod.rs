//! Metrics and health by HTTP, for whoever watches the front end.
//!
//! Who calls it: `Frontend`.
//! What it calls: `running`, and what it shows; the HTTP server of portolan-telemetry.
//! What it never does: change anything, or show a name that a client has made up.

mod state;

use std::net::SocketAddr;
use std::sync::Arc;

use portolan_telemetry::http::{self, Answers, Readiness};
use portolan_telemetry::metrics;
use tokio_util::sync::CancellationToken;

use crate::running::Running;
use crate::{Error, Phase};
use portolan_cluster::nodes::Health;

/// The server, bound.
pub(crate) struct Server(http::Server);

impl Server {
    /// Binds the address, where one is configured.
    pub(crate) async fn bind(address: Option<SocketAddr>) -> Result<Option<Self>, Error> {
        let Some(address) = address else { return Ok(None) };
        let server = http::Server::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        Ok(Some(Self(server)))
    }

    /// Answers until `stop`.
    pub(crate) async fn run(self, running: Arc<Running>, stop: CancellationToken) {
        let mut registry = metrics::registry("portolan-frontend", running.telemetry());
        running.metrics().register(&mut registry);
        running.desk().register(&mut registry);
        registry.register_collector(Box::new(state::State(Arc::clone(&running))));
        let answers = Answers {
            metrics: Box::new(move || metrics::encode(&registry)),
            readiness: Box::new(move || readiness(&running)),
        };
        self.0.run(answers, stop).await;
    }
}

/// Is the front end of use? One node or one directory that is away is a warning: to send clients away for it would
/// make an outage of a part one of the whole.
fn readiness(running: &Running) -> Readiness {
    let mut readiness = Readiness::default();
    match running.phase() {
        Phase::Serving | Phase::Reloading => {}
        phase @ (Phase::Starting | Phase::Draining | Phase::Stopped) => {
            readiness.reasons.push(format!("the front end is {}", phase.name()));
        }
    }
    let nodes = running.nodes();
    let mut up = 0;
    for node in &nodes {
        match &*node.health().borrow() {
            Health::Up => up += 1,
            Health::Away(cause) => {
                readiness.warnings.push(format!("node {} is away: {cause}", node.name()));
            }
            Health::Unheard => readiness.warnings.push(format!("node {} is not heard yet", node.name())),
        }
    }
    if up == 0 {
        readiness.reasons.push("no node is up".to_owned());
    }
    if let Some(discovery) = &running.config().discovery
        && nodes.len() < discovery.nodes_min
    {
        let (found, least) = (nodes.len(), discovery.nodes_min);
        readiness.reasons.push(format!("{found} of at least {least} nodes are found"));
    }
    readiness.warnings.extend(running.telemetry().into_iter().flat_map(|telemetry| telemetry.warnings()));
    let directories = running.auth().directories();
    let mut away = 0;
    for (name, servers) in &directories {
        let silent: Vec<&str> =
            servers.iter().filter(|(_, away)| *away).map(|(server, _)| &**server).collect();
        if silent.len() == servers.len() {
            away += 1;
        }
        if !silent.is_empty() {
            readiness.warnings.push(format!("directory {name}: {} does not answer", silent.join(", ")));
        }
    }
    // The admins file, where there is one, always answers.
    if !directories.is_empty() && away == directories.len() && running.config().admins.admins.is_empty() {
        readiness.reasons.push("no directory of admins answers, so nobody can log in".to_owned());
    }
    if let Some(failure) = running.ldap_map().and_then(|map| map.failure) {
        readiness.warnings.push(format!("the map of the directory cannot be read: {failure}"));
    }
    if let Some(refused) = running.refused_reload() {
        let first = refused.cause.lines().next().unwrap_or_default().to_owned();
        readiness.warnings.push(format!("the last reload was refused: {first}"));
    }
    readiness
}
