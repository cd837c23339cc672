//! A running front end: what its parts share.
//!
//! ```text
//! gates          who is let in where
//! reload         another configuration, as a whole or not at all
//! certificates   the same configuration, renewed files
//! view           what the operator, Prometheus and Kubernetes are shown
//! ```
//!
//! Nodes, their discovery and the map of the directory keep their own state and their own time
//! (`portolan_cluster`); this only runs them.
//!
//! Who calls it: `Frontend`, `operator`, `console`.
//! What it calls: `gate`, portolan-ftp, portolan-cluster.
//! What it never does: drop a session, or take a half of a configuration.

mod certificates;
mod gates;
mod reload;
pub mod view;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use portolan_cluster::auth::lockout::Lockout;
use portolan_cluster::auth::login::LoginDesk;
use portolan_cluster::auth::{Admins, Authenticator};
use portolan_cluster::in_force::InForce;
use portolan_cluster::map::Router;
use portolan_cluster::map::directory::DirectoryMap;
use portolan_cluster::nodes::Health;
use portolan_cluster::nodes::discovery::Discovery;
use portolan_cluster::nodes::members::Members;
use portolan_cluster::tree::Tree;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_ftp::Shared;
use portolan_ftp::metrics::Metrics;
use portolan_process::DrainLimit;
use portolan_telemetry::Telemetry;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::sessions::Sessions;
use crate::{Error, Phase};
pub(crate) use gates::Bound;
use gates::Gates;
pub use reload::{RefusedReload, ReloadError};

/// How often what the nodes hold is compared with the map, where either has changed. It takes as long as the map is large.
const CONFLICTS_EVERY: Duration = Duration::from_secs(5);
/// How often certificate files are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);
/// How often directories are asked whether they are there.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How often the names of passive addresses are resolved again.
const NAMES_EVERY: Duration = Duration::from_secs(30);

/// See the module.
pub struct Running {
    started: SystemTime,
    in_force: Arc<InForce>,
    /// With the time of its beginning.
    phase: Mutex<(Phase, SystemTime)>,
    refused_reload: Mutex<Option<RefusedReload>>,
    drain_limit: DrainLimit,
    on_phase: fn(Phase),
    shared: Arc<Shared>,
    gates: Gates,
    members: Arc<Members>,
    discovery: Discovery,
    directory_map: DirectoryMap,
    telemetry: Option<Arc<Telemetry>>,
    /// The fault of certificate files that was logged last: once is enough.
    logged: Mutex<String>,
}

impl Running {
    pub(crate) fn new(
        config: Config,
        telemetry: Option<Arc<Telemetry>>,
        drain_limit: DrainLimit,
        on_phase: fn(Phase),
    ) -> Result<Self, Error> {
        let members = Arc::new(Members::new(&config)?);
        let tree = Arc::new(Tree::new(Arc::clone(members.router()), Arc::clone(members.nodes())));
        drain_limit.set(config.drain_timeout);
        let admins = Admins::new(&config)?;
        let shared = Arc::new(Shared::new(&config, tree, admins, portolan_ftp_libunftp::library));
        let gates = Gates::new(&config, Arc::clone(&shared));
        let in_force = Arc::new(InForce::new(config));
        let (nodes, router) = (Arc::clone(members.nodes()), Arc::clone(members.router()));
        Ok(Self {
            started: SystemTime::now(),
            phase: Mutex::new((Phase::Starting, SystemTime::now())),
            refused_reload: Mutex::default(),
            drain_limit,
            on_phase,
            shared,
            gates,
            discovery: Discovery::new(Arc::clone(&in_force), Arc::clone(&members)),
            directory_map: DirectoryMap::new(Arc::clone(&in_force), nodes, router),
            members,
            in_force,
            telemetry,
            logged: Mutex::default(),
        })
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.in_force.load()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.lock().0
    }

    pub(crate) fn enter(&self, phase: Phase) {
        *self.phase.lock() = (phase, SystemTime::now());
        (self.on_phase)(phase);
    }

    /// The same, unless it is in another phase than it was thought to be in.
    fn enter_from(&self, from: Phase, to: Phase) -> Result<(), ReloadError> {
        let mut phase = self.phase.lock();
        if phase.0 != from {
            return Err(ReloadError::NotServing(phase.0));
        }
        // A reload is an episode of serving, which began before.
        phase.0 = to;
        (self.on_phase)(to);
        Ok(())
    }

    pub(crate) fn telemetry(&self) -> Option<Arc<Telemetry>> {
        self.telemetry.clone()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn gates(&self) -> &Gates {
        &self.gates
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn router(&self) -> &Router {
        self.members.router()
    }

    pub(crate) fn directory_map(&self) -> &DirectoryMap {
        &self.directory_map
    }

    pub(crate) fn sessions(&self) -> &Arc<Sessions> {
        self.gates.sessions()
    }

    pub(crate) fn desk(&self) -> &LoginDesk {
        &self.shared.desk
    }

    pub(crate) fn auth(&self) -> &Authenticator {
        &self.shared.desk.authenticator
    }

    pub(crate) fn lockout(&self) -> &Lockout {
        &self.shared.desk.lockout
    }

    /// Looks for nodes, resolves names and reads the map, and waits until each node is up or known to be away.
    pub(crate) async fn hear(&self) {
        self.discovery.look().await;
        let nodes = async {
            for node in self.members.nodes().list() {
                let mut health = node.health();
                // The sender lives as long as the node.
                let is_up = matches!(
                    health.wait_for(|health| *health != Health::Unheard).await.as_deref(),
                    Ok(Health::Up)
                );
                if is_up {
                    tokio::select! {
                        () = node.until_record_read() => {}
                        _ = health.changed() => {}
                    }
                }
            }
        };
        // Its outcome is in the log.
        let map = async { self.directory_map.refresh().await.ok() };
        tokio::join!(self.refresh_names(), nodes, map);
    }

    /// Resolves the names of passive addresses.
    async fn refresh_names(&self) {
        self.shared.advertised.refresh().await;
    }

    /// Looks for nodes, at certificate files, resolves names and reads the map of the directory, until the drain.
    pub(crate) async fn look_around(&self, drain: CancellationToken) {
        let every = |period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (mut certificates, mut names) = (every(CERTIFICATES_EVERY), every(NAMES_EVERY));
        let (mut probes, mut conflicts) = (every(PROBE_EVERY), every(CONFLICTS_EVERY));
        let probing = async {
            loop {
                probes.tick().await;
                self.shared.desk.authenticator.probe().await;
            }
        };
        let comparing = async {
            let mut seen = None;
            // At the start nothing has been announced yet.
            conflicts.reset();
            loop {
                conflicts.tick().await;
                let map = self.router().snapshot();
                if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &map)) {
                    continue;
                }
                let router = Arc::clone(self.members.router());
                match tokio::task::spawn_blocking(move || router.look_for_conflicts()).await {
                    Ok(()) => seen = Some(map),
                    Err(error) => {
                        tracing::error!(%error, "what nodes hold could not be compared with the map");
                    }
                }
            }
        };
        let renewing = async {
            loop {
                certificates.tick().await;
                self.renew_certificates().await;
            }
        };
        let resolving = async {
            loop {
                names.tick().await;
                self.refresh_names().await;
            }
        };
        tokio::select! {
            () = drain.cancelled() => {}
            () = self.discovery.run(|| self.directory_map.want()) => {}
            () = self.directory_map.run() => {}
            () = comparing => {}
            () = renewing => {}
            () = probing => {}
            () = resolving => {}
        }
    }
}

impl Phase {
    /// Its word, as the operator is shown it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Reloading => "reloading",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        }
    }
}
