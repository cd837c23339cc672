//! Metrics and health by HTTP, for whoever watches the front end.
//!
//! Who calls it: `Frontend`.
//! What it calls: `running::view`; the HTTP server of portolan-telemetry.
//! What it never does: change anything, or show a name that a client has made up.

mod state;

use std::net::SocketAddr;
use std::sync::Arc;

use portolan_telemetry::http::{self, Answers, Limits};
use portolan_telemetry::metrics;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::running::Running;

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
            readiness: Box::new(move || running.view().readiness()),
        };
        self.0.run(http::routes(answers), Limits::PROBES, stop).await;
    }
}
