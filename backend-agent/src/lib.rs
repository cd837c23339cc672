//! Portolan's agent: serves one mail node's part of the virtual tree over gRPC.
//!
//! The way of the content, from the network to the disk:
//!
//! ```text
//! front end ── gRPC, mTLS ──> service/ (check, grant) ──> volume (mark) ──> store/ (tree) ──> store/disk/ (openat2, commit)
//! ```
//!
//! Who calls it: `main.rs`, and `portolan demo`, which runs several in one process.
//! What it calls: `service`, `volume`, `store`; tonic for the server.
//! What it never does: know of FTP, admins' passwords or other nodes.

#![forbid(unsafe_code)]

mod console;
pub mod holdings;
pub mod metrics;
mod record;
pub mod service;
pub mod store;
mod tls;
pub mod volume;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use portolan_config::checked::agent::{Agent as Config, Security};
use portolan_proto::v1::agent_server::AgentServer;
use portolan_proto::{
    HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES_MAX, HTTP2_STREAM_WINDOW_BYTES, MESSAGE_BYTES_MAX,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use portolan_telemetry::{Telemetry, http};
use service::AgentService;
use store::Store;
use tls::Tls;
use volume::Volume;

/// A connection whose peer does not answer a ping is closed after interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that one front end may have open at once on one connection.
const HTTP2_STREAMS_MAX: u32 = 2_048;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Volume(#[from] volume::Error),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the certificates cannot be used")]
    Tls(#[from] tls::Error),
    #[error("cannot serve gRPC")]
    Serve(#[source] tonic::transport::Error),
}

/// An agent that is bound and has read its holdings, ready to run.
pub struct Agent {
    config: Config,
    listener: TcpListener,
    address: SocketAddr,
    volume: Arc<Volume>,
    /// `None`: in plaintext.
    tls: Option<Arc<Tls>>,
    http: Option<http::Server>,
    telemetry: Option<Arc<Telemetry>>,
}

impl Agent {
    /// Opens the store where it is marked, sweeps its staging folder and binds the port.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let volume = Volume::open(&config).await?;
        Self::bind_volume(config, volume).await
    }

    /// As [`Agent::bind`], over a store that is open already and needs no mark.
    pub async fn bind_store(config: Config, store: Arc<dyn Store>) -> Result<Self, Error> {
        let volume = Volume::over(config.node.clone(), store).await.map_err(volume::Error::Scan)?;
        Self::bind_volume(config, volume).await
    }

    async fn bind_volume(config: Config, volume: Volume) -> Result<Self, Error> {
        let tls = match &config.security {
            Security::Plain => None,
            Security::Mutual { identity, client_ca } => {
                Some(Arc::new(Tls::new(identity.clone(), client_ca.clone())?))
            }
        };
        let listen = |source| Error::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let http = match config.http {
            None => None,
            Some(address) => {
                let bound = http::Server::bind(address).await;
                Some(bound.map_err(|source| Error::Listen { address, source })?)
            }
        };
        let volume = Arc::new(volume);
        Ok(Self { config, listener, address, volume, tls, http, telemetry: None })
    }

    /// Shows how the log of the process fares among its metrics.
    pub fn with_telemetry(self, telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry: Some(telemetry), ..self }
    }

    /// The address that is bound, with the port the system chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets calls in flight finish for the configured drain timeout. What is
    /// not finished then is cut and commits nothing.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        let service = AgentService::new(
            Arc::clone(&self.volume),
            self.config.allow.clone(),
            tasks.clone(),
            shutdown.clone(),
            cut.clone(),
        )
        .with_limits(self.config.limits);
        let metrics = service.metrics();
        let last = TaskTracker::new();
        let stop_last = CancellationToken::new();
        if let Some(http) = self.http {
            let console = console::Console {
                tls: self.tls.clone(),
                volume: Arc::clone(&self.volume),
                service: service.clone(),
                metrics: Arc::clone(&metrics),
                draining: shutdown.clone(),
            };
            last.spawn(console.run(http, self.telemetry, stop_last.clone()));
        }
        let service = AgentServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (health, health_service) = tonic_health::server::health_reporter();
        show_health(&health, self.volume.served().is_ok()).await;
        let server = Server::builder()
            .max_frame_size(HTTP2_FRAME_BYTES_MAX)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            // Clients of a front end may abort as many transfers at once as there are.
            .http2_max_pending_accept_reset_streams(Some(HTTP2_STREAMS_MAX as usize))
            .http2_max_local_error_reset_streams(None)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        let count = move |inner| metrics::Counted { inner, metrics: Arc::clone(&metrics) };
        let mut server = server.trace_fn(service::call_span).layer(tower::layer::layer_fn(count));
        tasks.spawn({
            let (volume, tasks, stop) = (Arc::clone(&self.volume), tasks.clone(), shutdown.clone());
            async move { volume.run(&tasks, stop).await }
        });
        tracing::info!(node = %self.config.node, address = %self.address, "agent serves");
        let stopping = shutdown.clone();
        let stopped = async move { stopping.cancelled().await };
        let server = server.add_service(health_service).add_service(service);
        let (tls, listener) = (self.tls.clone(), self.listener);
        let serve = async move {
            match tls {
                Some(tls) => server.serve_with_incoming_shutdown(tls.incoming(listener), stopped).await,
                None => {
                    tracing::warn!(
                        "gRPC is in plaintext: anyone who reaches the port can read and write all mail"
                    );
                    let incoming = tls::connections(listener).map(|(stream, _)| Ok::<_, Infallible>(stream));
                    server.serve_with_incoming_shutdown(incoming, stopped).await
                }
            }
        };
        let _renewing =
            self.tls.map(|tls| AbortOnDropHandle::new(tokio::spawn(async move { tls.renew().await })));
        let deadline = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = follow(&self.volume, &health) => {}
            }
            tracing::info!("agent drains");
            show_health(&health, false).await;
            tokio::time::sleep(self.config.drain_timeout).await;
        };
        let served = tokio::select! {
            served = serve => served.map_err(Error::Serve),
            () = deadline => {
                tracing::warn!("calls still in flight at the end of the drain are cut; they commit nothing");
                Ok(())
            }
        };
        // Not awaited: what a disk that does not answer holds must not keep the program from ending.
        cut.cancel();
        tasks.close();
        stop_last.cancel();
        last.close();
        last.wait().await;
        tracing::info!("agent stopped");
        served
    }
}

/// Shows whether a store is served, for ever.
async fn follow(volume: &Volume, health: &HealthReporter) {
    loop {
        let served = volume.served().ok();
        show_health(health, served.is_some()).await;
        volume.changed(served.as_ref()).await;
    }
}

async fn show_health(health: &HealthReporter, serves: bool) {
    if serves {
        health.set_serving::<AgentServer<AgentService>>().await;
    } else {
        health.set_not_serving::<AgentServer<AgentService>>().await;
    }
}
