//! Portolan's front end: one FTP endpoint over all nodes of a mail cluster.
//!
//! ```text
//! client ──> gate ──> portolan-ftp ──> portolan-cluster ── gRPC, mTLS ──> agent
//!             └── running: gates, reload, certificates, view <── operator (control socket), console (HTTP)
//! ```
//!
//! Who calls it: `main.rs`, and `portolan demo`, which runs one beside its agents.
//! What it calls: portolan-ftp, portolan-cluster.
//! What it never does: touch a mail store.

#![forbid(unsafe_code)]

mod console;
mod door;
pub mod gate;
pub mod operator;
pub mod running;
mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portolan_config::checked::frontend::Frontend as Config;
use portolan_process::{DrainLimit, Signals};
use portolan_telemetry::Telemetry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use portolan_cluster::nodes;
use running::{Bound, Running};

/// Before the first client is let in, the nodes get this long to be heard. Those that are not are away.
const FIRST_HEARING_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot serve FTP on {address}")]
    Ftp { address: SocketAddr, source: portolan_ftp::Error },
    #[error(transparent)]
    Node(#[from] nodes::SetupError),
    #[error(transparent)]
    Directory(#[from] portolan_cluster::ldap::SetupError),
    #[error(transparent)]
    Operator(#[from] operator::Error),
}

/// What the process around a front end has for it.
pub struct Host {
    /// Sockets that the process was given. Those that no listener wants are closed.
    pub sockets: Vec<std::net::TcpListener>,
    /// The log, which a reload changes; `None`: it is not the front end's.
    pub telemetry: Option<Arc<Telemetry>>,
    /// The time limit of a drain, which a reload changes.
    pub drain_limit: DrainLimit,
    /// Called with each phase as it begins.
    pub on_phase: fn(Phase),
}

impl Default for Host {
    fn default() -> Self {
        Self { sockets: Vec::new(), telemetry: None, drain_limit: DrainLimit::default(), on_phase: |_| {} }
    }
}

/// Where a front end is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bound, and hearing its nodes.
    Starting,
    Serving,
    /// Serving, and reading its configuration again.
    Reloading,
    /// No new sessions; transfers finish.
    Draining,
    Stopped,
}

/// A front end that is bound and ready to run.
pub struct Frontend {
    running: Arc<Running>,
    listeners: Vec<Bound>,
    operator: Option<operator::Server>,
    console: Option<console::Server>,
}

impl Frontend {
    /// Binds all listeners. Nodes are dialled when it runs.
    pub async fn bind(config: Config, host: Host) -> Result<Self, Error> {
        let Host { mut sockets, telemetry, drain_limit, on_phase } = host;
        let operator = operator::Server::bind(&config.control)?;
        let console = console::Server::bind(config.http).await?;
        let running = Arc::new(Running::new(config, telemetry, drain_limit, on_phase)?);
        let config = running.config();
        let bound = config.listeners.iter().map(|listener| running.gates().bind(listener, &mut sockets));
        let listeners = bound.collect::<Result<_, _>>()?;
        for socket in &sockets {
            let address = socket.local_addr().ok();
            tracing::warn!(
                ?address,
                "a socket from the service manager fits the address of no listener; it is closed"
            );
        }
        Ok(Self { running, listeners, operator, console })
    }

    /// The addresses that are bound, in the order of the configuration.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|bound| bound.address).collect()
    }

    /// Serves until it is told to drain, then drains for the configured time. What is not done then is cut and
    /// commits nothing.
    pub async fn run(self, signals: Signals) {
        let Self { running, listeners, operator, console } = self;
        running.enter(Phase::Starting);
        // The watches, the control socket and the console outlive the gates: transfers that drain still need to know their
        // nodes, and the operator wants to see them.
        let stop_last = CancellationToken::new();
        let last = TaskTracker::new();
        running.members().watch();
        if let Some(operator) = operator {
            last.spawn(operator.run(Arc::clone(&running), stop_last.clone()));
        }
        if let Some(console) = console {
            last.spawn(console.run(Arc::clone(&running), stop_last.clone()));
        }
        tokio::select! {
            _ = tokio::time::timeout(FIRST_HEARING_MAX, running.hear()) => {}
            () = signals.drain.cancelled() => {}
        }
        for bound in listeners {
            running.gates().open(bound, running.config().ipv6_prefix);
        }
        running.enter(Phase::Serving);
        let chores = TaskTracker::new();
        chores.spawn(reload_when_asked(Arc::clone(&running), signals.reload, signals.drain.clone()));
        let (around, drain) = (Arc::clone(&running), signals.drain.clone());
        chores.spawn(async move { around.look_around(drain).await });
        signals.drain.cancelled().await;

        running.enter(Phase::Draining);
        tracing::info!("front end drains");
        running.gates().close_all().await;
        chores.close();
        chores.wait().await;
        let drain_timeout = running.config().drain_timeout;
        let deadline = async {
            tokio::select! {
                () = tokio::time::sleep(drain_timeout) => {}
                () = signals.cut.cancelled() => {}
            }
        };
        let sessions::Drained { finished, failed, cut } = running.sessions().drain(deadline).await;
        if cut > 0 {
            tracing::warn!(
                finished,
                failed,
                cut,
                "front end drained; transfers that were cut commit nothing"
            );
        } else {
            tracing::info!(finished, failed, cut, "front end drained");
        }
        stop_last.cancel();
        last.close();
        last.wait().await;
        running.members().stop().await;
        running.enter(Phase::Stopped);
        tracing::info!("front end stopped");
    }
}

/// Reloads, one after the other; however often it is asked for meanwhile, once more is enough. Ends with the drain,
/// also in the middle of waiting: what a reload changes it changes at once.
async fn reload_when_asked(running: Arc<Running>, mut asked: mpsc::Receiver<()>, drain: CancellationToken) {
    let reloading = async {
        while asked.recv().await.is_some() {
            // Its outcome is in the log.
            running.reload().await.ok();
        }
        // Nobody can ask any more.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drain.cancelled() => {}
        () = reloading => {}
    }
}
