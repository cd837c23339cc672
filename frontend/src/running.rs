//! A running front end: what its parts share, and how a reload changes them.
//!
//! A reload reads the whole configuration and makes everything that can fail before it changes anything: a new
//! configuration is in force as a whole or not at all. No session and no transfer ends by it.
//!
//! Who calls it: `Frontend`, `control`.
//! What it calls: the numbered modules.
//! What it never does: drop a session, or take a half of a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use portolan_config::Faults;
use portolan_config::checked::frontend::{Frontend as Config, Security};
use portolan_config::checked::listener::{ClientCertificate, Listener, TlsSettings};
use portolan_process::DrainLimit;
use portolan_telemetry::Telemetry;
use portolan_telemetry::chain;
use portolan_telemetry::log::AUDIT;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::flow::Usage;
use crate::gate::sessions::Sessions;
use crate::gate::{self, Commons, Gate};
use crate::{Error, Phase};
use portolan_cluster::auth::lockout::Lockout;
use portolan_cluster::auth::login::LoginDesk;
use portolan_cluster::auth::{Admins, Authenticator};
use portolan_cluster::map::Router;
use portolan_cluster::map::directory as ldap_map;
use portolan_cluster::nodes::NodeClient;
use portolan_cluster::nodes::discovery;
use portolan_cluster::nodes::members::Members;
use portolan_cluster::tree::Tree;
use portolan_ftp::metrics::{Metrics, Outcome};
use portolan_ftp::{Service, Shared};

/// A map that a directory has not told yet is asked for again after this long.
const LDAP_RETRY: Duration = Duration::from_secs(5);

/// Why a reload was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("{0}")]
    Faults(Faults),
    #[error("{keys}: changed, which takes a restart; change it back to reload the rest")]
    NeedsRestart { keys: String },
    #[error(transparent)]
    Setup(#[from] Error),
    #[error("the front end is {}, not serving", .0.name())]
    NotServing(Phase),
    #[error("the log cannot be changed")]
    Log(#[source] std::io::Error),
    #[error("the configuration could not be read")]
    Broken(#[from] tokio::task::JoinError),
}

/// A reload that was refused.
#[derive(Debug, Clone)]
pub struct RefusedReload {
    pub at: SystemTime,
    pub cause: String,
}

/// See the module.
pub struct Running {
    started: SystemTime,
    config: ArcSwap<Config>,
    config_read: Mutex<SystemTime>,
    /// With the time of its beginning.
    phase: Mutex<(Phase, SystemTime)>,
    refused_reload: Mutex<Option<RefusedReload>>,
    drain_limit: DrainLimit,
    tell: fn(Phase),
    shared: Arc<Shared>,
    commons: Arc<Commons>,
    members: Members,
    /// By the listener's name; `None`: the gates are closed for good.
    open: Mutex<Option<BTreeMap<String, OpenGate>>>,
    /// Where the gates run.
    accepting: TaskTracker,
    telemetry: Option<Arc<Telemetry>>,
    ldap_map: Mutex<LdapMapState>,
    /// One reading at a time.
    mapping: tokio::sync::Mutex<()>,
    /// The map of the directory is to be read at once.
    map_wanted: Notify,
    /// Nodes are to be looked for at once.
    discovery_wanted: Notify,
    discovery_told: tokio::sync::Mutex<discovery::Told>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    /// The fault of certificate files that was told last: once is enough.
    told: Mutex<String>,
}

/// What is known of the map of the directory.
#[derive(Debug, Clone, Default)]
pub struct LdapMapState {
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

/// A listener that is bound, and lets nobody in yet.
pub(crate) struct Bound {
    pub(crate) address: SocketAddr,
    socket: TcpListener,
    service: Service,
}

struct OpenGate {
    gate: Arc<Gate>,
    stop: CancellationToken,
    /// Ends when the socket is closed.
    accepts: JoinHandle<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Running {
    pub(crate) fn new(
        config: Config,
        telemetry: Option<Arc<Telemetry>>,
        drain_limit: DrainLimit,
        tell: fn(Phase),
    ) -> Result<Self, Error> {
        let members = Members::new(&config)?;
        let tree = Arc::new(Tree::new(Arc::clone(members.router()), Arc::clone(members.nodes())));
        drain_limit.set(config.drain_timeout);
        Ok(Self {
            started: SystemTime::now(),
            drain_limit,
            shared: Arc::new(Shared::new(
                &config,
                tree,
                Admins::new(&config)?,
                portolan_ftp_libunftp::library,
            )),
            commons: Arc::new(Commons::new(&config)),
            config: ArcSwap::from_pointee(config),
            config_read: Mutex::new(SystemTime::now()),
            phase: Mutex::new((Phase::Starting, SystemTime::now())),
            refused_reload: Mutex::default(),
            tell,
            members,
            open: Mutex::new(Some(BTreeMap::new())),
            accepting: TaskTracker::new(),
            telemetry,
            ldap_map: Mutex::default(),
            mapping: tokio::sync::Mutex::default(),
            map_wanted: Notify::new(),
            discovery_wanted: Notify::new(),
            discovery_told: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            told: Mutex::default(),
        })
    }

    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// When the configuration in force was read.
    pub fn config_read(&self) -> SystemTime {
        *lock(&self.config_read)
    }

    pub fn phase(&self) -> Phase {
        lock(&self.phase).0
    }

    pub fn phase_since(&self) -> SystemTime {
        lock(&self.phase).1
    }

    /// The last reload, if it was refused.
    pub fn refused_reload(&self) -> Option<RefusedReload> {
        lock(&self.refused_reload).clone()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        *lock(&self.phase) = (phase, SystemTime::now());
        (self.tell)(phase);
    }

    /// The same, unless it is in another phase than it was thought to be in.
    fn enter_from(&self, from: Phase, to: Phase) -> Result<(), ReloadError> {
        let mut phase = lock(&self.phase);
        if phase.0 != from {
            return Err(ReloadError::NotServing(phase.0));
        }
        // A reload is an episode of serving, which began before.
        phase.0 = to;
        (self.tell)(to);
        Ok(())
    }

    pub(crate) fn telemetry(&self) -> Option<Arc<Telemetry>> {
        self.telemetry.clone()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Those that are not taken out.
    pub(crate) fn nodes(&self) -> Vec<Arc<NodeClient>> {
        self.members.nodes().list()
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn router(&self) -> &Router {
        self.members.router()
    }

    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.commons.sessions
    }

    pub fn desk(&self) -> &LoginDesk {
        &self.shared.desk
    }

    pub fn auth(&self) -> &Authenticator {
        &self.shared.desk.authenticator
    }

    pub fn lockout(&self) -> &Lockout {
        &self.shared.desk.lockout
    }

    /// The gates that are open, by the name of their listener.
    pub fn gates(&self) -> Vec<Arc<Gate>> {
        let open = lock(&self.open);
        open.iter().flat_map(BTreeMap::values).map(|open| Arc::clone(&open.gate)).collect()
    }

    /// How full all limits are.
    pub fn usages(&self) -> Vec<Usage> {
        let now = Instant::now();
        let mut usages = self.commons.usages(now);
        usages.extend(self.gates().iter().map(|gate| gate.usage(now)));
        usages
    }

    /// Waits until nodes are to be looked for.
    pub(crate) async fn discovery_is_due(&self) {
        let Some(interval) = self.config.load().discovery.as_ref().map(|discovery| discovery.interval) else {
            return self.discovery_wanted.notified().await;
        };
        tokio::select! {
            () = self.discovery_wanted.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }

    /// Looks for nodes in DNS, where that is configured, and dials those that have come or moved.
    pub(crate) async fn discover(&self) {
        let config = self.config();
        let Some(discovery) = &config.discovery else { return };
        let mut told = self.discovery_told.lock().await;
        if !discovery::look(&config, discovery, &self.members, &mut told).await {
            return;
        }
        let _one_at_a_time = self.changing.lock().await;
        let config = self.config();
        match self.members.prepare(&config, false) {
            Ok(change) => self.members.apply(change, &config, false),
            Err(error) => tracing::error!(cause = chain(&error), "a node that was found cannot be dialled"),
        }
        self.map_wanted.notify_one();
    }

    /// What is known of the map of the directory; `None`: no directory is a source of the map.
    pub fn ldap_map(&self) -> Option<LdapMapState> {
        self.config.load().map.ldap.as_ref().map(|_| lock(&self.ldap_map).clone())
    }

    /// Waits until the map of the directory is to be read.
    pub(crate) async fn map_is_due(&self) {
        let (config, state) = (self.config(), lock(&self.ldap_map).clone());
        let wait = match (&config.map.ldap, state.tried) {
            (None, _) => return self.map_wanted.notified().await,
            (Some(_), None) => Duration::ZERO,
            // Until it has told the map once, domains are missing.
            (Some(_), Some(tried)) if state.read.is_none() => LDAP_RETRY.saturating_sub(tried.elapsed()),
            (Some(ldap), Some(tried)) => ldap.refresh.saturating_sub(tried.elapsed()),
        };
        tokio::select! {
            () = self.map_wanted.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Reads the map of the directory, where one is a source. How many domains it has.
    ///
    /// # Errors
    /// The last map stays.
    pub(crate) async fn refresh_map(&self) -> Result<Option<usize>, ldap_map::Error> {
        let _one_at_a_time = self.mapping.lock().await;
        let config = self.config();
        let Some(settings) = &config.map.ldap else { return Ok(None) };
        let LdapMapState { domains: before, entries, .. } = lock(&self.ldap_map).clone();
        let begun = Instant::now();
        let read = ldap_map::read(&config, settings, self.members.nodes(), entries).await;
        if !Arc::ptr_eq(&config, &self.config()) {
            // It was read for what is in force no more.
            self.map_wanted.notify_one();
        }
        let mut state = lock(&self.ldap_map);
        state.tried = Some(Instant::now());
        match read {
            Ok(ldap_map::Read { map, useless, .. }) if self.config().map.ldap != config.map.ldap => {
                drop((map, useless));
                Ok(Some(state.domains))
            }
            Ok(ldap_map::Read { map, counts, useless }) => {
                let ms = begun.elapsed().as_millis();
                if !useless.is_empty() && useless != state.useless {
                    let what = ldap_map::shown(&useless);
                    tracing::warn!(
                        directory = settings.directory,
                        what,
                        "words of the directory mean no node, domain or user; what lies there answers 450"
                    );
                }
                if state.read.is_none() || state.failure.is_some() || map.len() != before {
                    tracing::info!(
                        directory = settings.directory,
                        domains = map.len(),
                        ms,
                        "the map of the directory is read"
                    );
                }
                *state = LdapMapState {
                    read: Some(SystemTime::now()),
                    domains: map.len(),
                    entries: counts,
                    failure: None,
                    useless,
                    tried: state.tried,
                };
                self.router().replace_ldap(map);
                Ok(Some(state.domains))
            }
            Err(error) => {
                let cause = chain(&error);
                if state.failure.as_ref() != Some(&cause) {
                    tracing::error!(cause, "the map of the directory cannot be read; the last one stays");
                }
                state.failure = Some(cause);
                Err(error)
            }
        }
    }

    /// Resolves the names of passive addresses.
    pub(crate) async fn refresh_names(&self) {
        self.shared.advertised.refresh().await;
    }

    /// Binds a listener, or takes the socket that the process was given for its address.
    pub(crate) fn bind(
        &self,
        listener: &Listener,
        given: &mut Vec<std::net::TcpListener>,
    ) -> Result<Bound, Error> {
        let address = listener.address;
        let service = self.make_service(listener, None)?;
        let failed = |source| Error::Listen { address, source };
        let place = given.iter().position(|given| given.local_addr().is_ok_and(|local| local == address));
        let socket = match place {
            Some(place) => {
                let given = given.swap_remove(place);
                given.set_nonblocking(true).and_then(|()| TcpListener::from_std(given)).map_err(failed)?
            }
            None => gate::listen(address).map_err(failed)?,
        };
        let address = socket.local_addr().map_err(failed)?;
        Ok(Bound { address, socket, service })
    }

    fn make_service(&self, listener: &Listener, previous: Option<&Service>) -> Result<Service, Error> {
        let address: SocketAddr = listener.address;
        Service::new(listener.clone(), Arc::clone(&self.shared), previous)
            .map_err(|source| Error::Ftp { address, source })
    }

    /// Lets clients in, by the rules of the configuration in force.
    pub(crate) fn open(&self, bound: Bound) {
        let Bound { address, socket, service } = bound;
        let ipv6_prefix = self.config.load().ipv6_prefix;
        let gate = Arc::new(Gate::new(service, address, Arc::clone(&self.commons), ipv6_prefix));
        // A drain has begun: nobody is let in any more.
        let mut open = lock(&self.open);
        let Some(open) = open.as_mut() else { return };
        tracing::info!(%address, "front end serves");
        let stop = CancellationToken::new();
        let accepts = self.accepting.spawn(Arc::clone(&gate).run(socket, stop.clone()));
        open.insert(gate.name().to_owned(), OpenGate { gate, stop, accepts });
    }

    /// Lets nobody in any more.
    pub(crate) async fn close_all(&self) {
        for open in lock(&self.open).take().unwrap_or_default().values() {
            open.stop.cancel();
        }
        self.accepting.close();
        self.accepting.wait().await;
    }

    /// Reads the configuration again and puts it into force. What has changed, one sentence each.
    ///
    /// # Errors
    /// Nothing has changed.
    pub async fn reload(&self) -> Result<Vec<String>, ReloadError> {
        let reloaded = {
            let _one_at_a_time = self.changing.lock().await;
            self.enter_from(Phase::Serving, Phase::Reloading)?;
            let reloaded = self.reload_once().await;
            // A drain may have begun meanwhile.
            self.enter_from(Phase::Reloading, Phase::Serving).ok();
            reloaded
        };
        self.refresh_names().await;
        match &reloaded {
            Ok(changes) => {
                *lock(&self.refused_reload) = None;
                self.shared.metrics.reloaded(Outcome::Complete);
                tracing::info!(target: AUDIT, event = "reload", result = "complete", ?changes, "configuration reloaded");
            }
            Err(error) => {
                let cause = chain(error);
                let refused = RefusedReload { at: SystemTime::now(), cause: cause.clone() };
                *lock(&self.refused_reload) = Some(refused);
                self.shared.metrics.reloaded(Outcome::Refused);
                tracing::error!(
                    target: AUDIT,
                    event = "reload",
                    result = "refused",
                    cause,
                    "the new configuration is refused; the old one stays in force"
                );
            }
        }
        reloaded
    }

    async fn reload_once(&self) -> Result<Vec<String>, ReloadError> {
        let old = self.config();
        let file = old.file.clone();
        let load = move || {
            let config = portolan_config::Frontend::load(&file).map_err(ReloadError::Faults)?;
            let admins = Admins::new(&config).map_err(Error::from)?;
            Ok::<_, ReloadError>((config, admins))
        };
        let (new, admins) = tokio::task::spawn_blocking(load).await??;
        let keys = needs_restart(&old, &new);
        if !keys.is_empty() {
            return Err(ReloadError::NeedsRestart { keys: keys.join(", ") });
        }
        // All that can fail.
        let mut updated = Vec::new();
        let mut added = Vec::new();
        let open: BTreeMap<String, Arc<Gate>> =
            self.gates().into_iter().map(|gate| (gate.name().to_owned(), gate)).collect();
        for listener in &new.listeners {
            match open.get(&listener.name) {
                Some(gate) => {
                    updated.push((Arc::clone(gate), self.make_service(listener, Some(&gate.service()))?));
                }
                None => added.push(self.bind(listener, &mut Vec::new())?),
            }
        }
        let members = self.members.prepare(&new, old.cluster != new.cluster).map_err(Error::from)?;
        let mut changes = changes(&old, &new);
        // The last that can fail.
        changes.extend(self.set_log(&old, &new)?);
        let routes_anew = old.map != new.map || old.nodes != new.nodes || old.discovery != new.discovery;
        self.members.apply(members, &new, routes_anew);
        if old.map.ldap.as_ref().map(|ldap| &ldap.directory)
            != new.map.ldap.as_ref().map(|ldap| &ldap.directory)
        {
            *lock(&self.ldap_map) = LdapMapState::default();
        }
        self.shared.update(&new, admins);
        self.commons.update(&new);
        for (gate, service) in updated {
            gate.update(service, new.ipv6_prefix);
        }
        let is_removed =
            |name: &String, _: &mut OpenGate| !new.listeners.iter().any(|listener| listener.name == *name);
        let removed: Vec<OpenGate> = match lock(&self.open).as_mut() {
            Some(open) => open.extract_if(.., is_removed).map(|(_, open)| open).collect(),
            None => Vec::new(),
        };
        for OpenGate { stop, accepts, .. } in removed {
            stop.cancel();
            // The operator is told when nobody is let in any more and the address is free.
            accepts.await.ok();
        }
        self.drain_limit.set(new.drain_timeout);
        self.config.store(Arc::new(new));
        *lock(&self.config_read) = SystemTime::now();
        // Who wakes up by these reads the configuration: it has to be the new one.
        self.map_wanted.notify_one();
        self.discovery_wanted.notify_one();
        for bound in added {
            self.open(bound);
        }
        Ok(changes)
    }

    /// Takes other log targets; what to tell the operator.
    fn set_log(&self, old: &Config, new: &Config) -> Result<Option<String>, ReloadError> {
        let Some(telemetry) = self.telemetry.as_ref().filter(|_| old.log != new.log) else { return Ok(None) };
        telemetry.set_log(&new.log).map_err(ReloadError::Log)?;
        let overridden =
            if telemetry.is_overridden() { ", but for levels, which PORTOLAN_LOG overrides" } else { "" };
        Ok(Some(format!("the log is changed{overridden}")))
    }

    /// Reads the certificate files again and takes those that have changed. Files that do not fit together may be in the
    /// middle of being replaced: the old ones stay meanwhile.
    pub(crate) async fn renew_certificates(&self) {
        let _one_at_a_time = self.changing.lock().await;
        if self.phase() != Phase::Serving {
            return;
        }
        let old = self.config();
        let reading = Arc::clone(&old);
        let read = tokio::task::spawn_blocking(move || with_certificates_of_now(&reading)).await;
        let fault = match read.map_err(|error| error.to_string()).and_then(|read| read) {
            Ok(None) => String::new(),
            Ok(Some(new)) => {
                self.take_certificates(&old, new).err().map(|error| chain(&error)).unwrap_or_default()
            }
            Err(fault) => fault,
        };
        let mut told = lock(&self.told);
        if !fault.is_empty() && *told != fault {
            tracing::warn!(fault, "certificate files have changed and cannot be used; the old ones stay");
        }
        *told = fault;
    }

    fn take_certificates(&self, old: &Config, new: Config) -> Result<(), Error> {
        let mut updated = Vec::new();
        for gate in self.gates() {
            let named = |listener: &&Listener| listener.name == gate.name();
            let (Some(before), Some(after)) =
                (old.listeners.iter().find(named), new.listeners.iter().find(named))
            else {
                continue;
            };
            if before != after {
                let service = self.make_service(after, Some(&gate.service()))?;
                updated.push((gate, service));
            }
        }
        if old.cluster != new.cluster {
            let change = self.members.prepare(&new, true)?;
            self.members.apply(change, &new, false);
            tracing::info!("the certificates of the cluster are renewed");
        }
        for (gate, service) in updated {
            tracing::info!(listener = gate.name(), "the certificates of a listener are renewed");
            gate.update(service, new.ipv6_prefix);
        }
        self.config.store(Arc::new(new));
        Ok(())
    }
}

/// What differs, for the operator.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    for listener in &new.listeners {
        match old.listeners.iter().find(|other| other.name == listener.name) {
            None => changes.push(format!("listener {} is added", listener.name)),
            Some(other) if other != listener => {
                changes.push(format!("listener {} is changed", listener.name));
            }
            Some(_) => {}
        }
    }
    for listener in &old.listeners {
        if !new.listeners.iter().any(|other| other.name == listener.name) {
            changes.push(format!("listener {} is removed; its sessions go on", listener.name));
        }
    }
    for (differs, what) in [
        (old.global_limits != new.global_limits, "the global limits are changed"),
        (old.ipv6_prefix != new.ipv6_prefix, "the prefix that IPv6 clients count by is changed"),
        (old.ftp_limits != new.ftp_limits, "the limits of FTP are changed"),
        (old.bans != new.bans, "the rules of bans are changed"),
        (old.admin_bandwidth != new.admin_bandwidth, "the bandwidth of admins is changed"),
        (old.admins != new.admins, "the admins are changed; who is logged in stays so"),
        (
            old.directories != new.directories || old.order != new.order,
            "the directories of admins are changed",
        ),
        (old.grants != new.grants, "the grants are changed; who is logged in keeps those of the login"),
        (old.nodes != new.nodes, "the nodes are changed"),
        (old.discovery != new.discovery, "the discovery of nodes is changed"),
        (old.map != new.map, "the map is changed"),
        (old.cluster != new.cluster, "the certificates of the cluster are changed"),
        (old.drain_timeout != new.drain_timeout, "the drain timeout is changed"),
    ] {
        if differs {
            changes.push(what.to_owned());
        }
    }
    changes
}

/// Keys that differ and hold for the life of a process.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let kind = |security: &Security| matches!(security, Security::Plain);
    // Sessions of before would keep the ports from those that come.
    let shares_otherwise = new.listeners.iter().any(|listener| {
        let before = old.listeners.iter().find(|other| other.name == listener.name);
        match before {
            Some(before) if before.passive_ports_shared == listener.passive_ports_shared => {
                listener.passive_ports_shared && before.passive_ports != listener.passive_ports
            }
            _ => old.listeners.iter().any(|other| other.competes_with(listener)),
        }
    });
    [
        (kind(&old.cluster) != kind(&new.cluster), "cluster"),
        (shares_otherwise, "passive ports that are shared"),
        (old.threads != new.threads, "threads"),
        (old.control != new.control, "control"),
        (old.tracing != new.tracing, "tracing"),
        (old.http != new.http, "http"),
    ]
    .into_iter()
    .filter_map(|(differs, key)| differs.then_some(key))
    .collect()
}

/// The same configuration with what its certificate files hold now; `None`: they have not changed.
fn with_certificates_of_now(old: &Config) -> Result<Option<Config>, String> {
    let mut new = old.clone();
    for settings in new.listeners.iter_mut().filter_map(|listener| listener.tls.settings_mut()) {
        let TlsSettings { identities, client, .. } = settings;
        for identity in identities {
            *identity = identity.reread()?;
        }
        match client {
            ClientCertificate::Off => {}
            ClientCertificate::Optional(anchors) | ClientCertificate::Required(anchors) => {
                *anchors = anchors.reread()?;
            }
        }
    }
    if let Security::Mutual { identity, ca } = &mut new.cluster {
        *identity = identity.reread()?;
        *ca = ca.reread()?;
    }
    let same = new.cluster == old.cluster && new.listeners == old.listeners;
    Ok((!same).then_some(new))
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
