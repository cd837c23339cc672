//! The FTP protocol: control and data connections, commands, replies.
//!
//! Who calls it: `gate`, with each connection that it let in.
//! What it calls: `tree`, `auth`.
//! What it never does: know a node's address, or decide who may connect.

pub mod advertised;
pub mod bandwidth;
pub mod control;
pub mod metrics;
mod native;
pub mod passive;
pub mod reply;
pub mod tls;
pub mod transfer;
pub mod verb;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::listener::{Engine, Listener};
use portolan_telemetry::log::AUDIT;
use tokio::net::TcpStream;

use crate::metrics::{LoginOutcome, Metrics};
use advertised::{AdvertisedNames, ListenerAddresses};
use bandwidth::{AdminThrottles, Pace, Rates, Throttle};
use passive::PassivePorts;
use portolan_cluster::auth;
use portolan_cluster::auth::lockout::{Ban, Lockout};
use portolan_cluster::auth::{Admin, Admins, Authenticator, Proof};
use portolan_cluster::tree::Tree;
use tls::ListenerTls;

pub use control::{ControlConnection, Ending};

/// Before the reply that nobody could decide over a login.
const UNDECIDED_PAUSE: Duration = Duration::from_secs(1);

/// What the services of all listeners share.
pub struct Shared {
    pub tree: Arc<Tree>,
    pub auth: Authenticator,
    pub lockout: Lockout,
    pub advertised: AdvertisedNames,
    pub metrics: Arc<Metrics>,
    open_ports: native::OpenPorts,
    admin_throttles: AdminThrottles,
    library: MakeLibrary,
}

/// An engine that is not ours, for listeners that choose it.
pub trait Library: Send + Sync {
    /// The same for the listener after a reload.
    ///
    /// # Errors
    /// The system has no thread left.
    fn renewed(&self, listener: &Listener) -> std::io::Result<Arc<dyn Library>>;
    /// Serves one control connection until it ends.
    fn serve(
        &self,
        service: Arc<Service>,
        stream: TcpStream,
        control: Arc<ControlConnection>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Makes the library's engine for a listener.
pub type MakeLibrary = fn(&Listener) -> std::io::Result<Arc<dyn Library>>;

impl Shared {
    pub fn new(config: &Config, tree: Arc<Tree>, admins: Admins, library: MakeLibrary) -> Self {
        Self {
            tree,
            auth: Authenticator::new(admins),
            lockout: Lockout::new(config.bans, config.ipv6_prefix),
            advertised: AdvertisedNames::default(),
            metrics: Arc::default(),
            open_ports: native::OpenPorts::default(),
            admin_throttles: AdminThrottles::new(config.admin_bandwidth),
            library,
        }
    }

    /// Takes over what a reload changes.
    pub fn update(&self, config: &Config, admins: Admins) {
        self.auth.replace_admins(admins);
        self.lockout.set_rules(config.bans, config.ipv6_prefix);
        self.admin_throttles.set(config.admin_bandwidth);
    }
}

/// What the sessions of one listener share. A reload makes a new one; sessions keep theirs.
pub struct Service {
    pub listener: Listener,
    pub shared: Arc<Shared>,
    pub passive: Arc<PassivePorts>,
    /// `None`: each session that waits has a port of its own.
    pub(crate) shared_ports: Option<Arc<native::SharedPorts>>,
    pub advertised: ListenerAddresses,
    /// `None`: this listener speaks plaintext only.
    pub tls: Option<ListenerTls>,
    /// What the native engine remembers of the TLS sessions of this listener.
    tls_sessions: Option<Arc<native::TlsService>>,
    /// `None`: the native engine.
    library: Option<Arc<dyn Library>>,
    limits: Arc<Bandwidths>,
}

/// The bandwidth limits of a listener, which live on when it is made anew.
struct Bandwidths {
    listener: Rates,
    listener_throttle: Arc<Throttle>,
    session: Rates,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("sessions of an earlier configuration still have some of the shared passive ports {0}-{1}")]
    PortsTaken(u16, u16),
    #[error("threads for sessions cannot be started")]
    Threads(#[from] std::io::Error),
}

/// What a failed login comes to.
pub enum LoginFailure {
    /// The name or the password is wrong, or both.
    Wrong,
    /// It was not even tried.
    Banned(Ban),
    /// It is known who it is, and why that admin may not come in.
    Barred(&'static str),
    /// The directory that would know does not answer.
    Undecided,
}

impl Service {
    /// `previous` is the service of this listener before a reload.
    pub fn new(listener: Listener, shared: Arc<Shared>, previous: Option<&Self>) -> Result<Self, Error> {
        let settings = listener.tls.settings();
        let previous_tls = previous.and_then(|previous| previous.tls.as_ref());
        let tls = settings.map(|settings| ListenerTls::new(settings, previous_tls)).transpose()?;
        let passive = match previous.filter(|other| other.listener.passive_ports == listener.passive_ports) {
            Some(previous) => Arc::clone(&previous.passive),
            None => Arc::new(PassivePorts::new(listener.passive_ports)),
        };
        let shared_ports = if listener.passive_ports_shared {
            let (address, range) = (listener.address.ip(), listener.passive_ports);
            let ports = shared.open_ports.of(address, range, &listener.proxy_protocol);
            Some(ports.ok_or(Error::PortsTaken(range.first, range.last))?)
        } else {
            None
        };
        let kept = previous.and_then(|previous| previous.tls_sessions.as_deref());
        let tls_sessions = tls.as_ref().map(|tls| Arc::new(native::TlsService::new(tls, kept)));
        let library = match (listener.engine, previous.and_then(|previous| previous.library.as_ref())) {
            (Engine::Native, _) => None,
            (Engine::Libunftp, Some(previous)) => Some(previous.renewed(&listener)?),
            (Engine::Libunftp, None) => Some((shared.library)(&listener)?),
        };
        let advertised = ListenerAddresses::new(&listener, &shared.advertised);
        let limits = match previous {
            Some(previous) => Arc::clone(&previous.limits),
            None => {
                let rates = Rates::new(listener.bandwidth);
                let listener_throttle = rates.throttle();
                let session = Rates::new(listener.session_bandwidth);
                Arc::new(Bandwidths { listener: rates, listener_throttle, session })
            }
        };
        Ok(Self { listener, shared, passive, shared_ports, advertised, tls, tls_sessions, library, limits })
    }

    /// Puts the bandwidth limits of this service into force, also for sessions of the one before.
    pub fn apply_bandwidth(&self) {
        self.limits.listener.set(self.listener.bandwidth);
        self.limits.session.set(self.listener.session_bandwidth);
    }

    /// Serves one control connection until it ends.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, control: Arc<ControlConnection>) {
        match &self.library {
            None => native::serve(self, stream, control).await,
            Some(library) => library.serve(Arc::clone(&self), stream, control).await,
        }
    }

    /// What a session's data may take before anybody has logged in; see [`Service::pace_of`].
    pub fn session_throttle(&self) -> Arc<Throttle> {
        self.limits.session.throttle()
    }

    /// The bandwidth limits of an admin's session.
    pub fn pace_of(&self, session: &Arc<Throttle>, admin: &str) -> Pace {
        let admin = self.shared.admin_throttles.of(admin);
        Pace::new(vec![Arc::clone(session), admin, Arc::clone(&self.limits.listener_throttle)])
    }

    /// Checks a name and its proof, which came over `control`, and counts failures. A failed one takes the longer the
    /// more there were before.
    pub async fn log_in(
        &self,
        control: &ControlConnection,
        name: &str,
        proof: Result<Proof<'_>, &'static str>,
    ) -> Result<Arc<Admin>, LoginFailure> {
        let network = control.origin.network;
        let begun = Instant::now();
        let tell = |outcome| self.shared.metrics.login(outcome, begun.elapsed());
        let lockout = &self.shared.lockout;
        // Directories do not tell cases apart, so a guess in another case is one more at the same name.
        let counted = &*name.to_lowercase();
        let allowed = || match lockout.banned(network, counted, Instant::now()) {
            None => Ok(()),
            Some(ban) => {
                tell(LoginOutcome::Banned);
                let result = LoginOutcome::Banned.word();
                tracing::warn!(
                    target: AUDIT,
                    parent: &control.span,
                    event = "login", result, name, banned = %ban.who, "login refused: banned"
                );
                Err(LoginFailure::Banned(ban))
            }
        };
        allowed()?;
        let (reason, failure) = match proof {
            Ok(proof) => {
                let checked = self.shared.auth.login(name, proof).await;
                // Of many guesses at once, those whose check was under way when the ban came are not decided.
                allowed()?;
                match checked {
                    Ok(admin) => {
                        tell(LoginOutcome::Accepted);
                        let (admin_name, by) = (&admin.name, proof.kind());
                        let result = LoginOutcome::Accepted.word();
                        tracing::info!(
                            target: AUDIT,
                            parent: &control.span,
                            event = "login", result, admin = admin_name, by, "login"
                        );
                        lockout.succeeded(network, counted);
                        control.set_admin(Some(&admin.name));
                        return Ok(admin);
                    }
                    Err(error @ auth::Error::Away { .. }) => {
                        tell(LoginOutcome::Undecided);
                        let cause = portolan_telemetry::chain(&error);
                        let result = LoginOutcome::Undecided.word();
                        tracing::error!(
                            target: AUDIT,
                            parent: &control.span,
                            event = "login", result, name, cause, "login not decided"
                        );
                        // No guess, so it does not count; but who tries again at once must not keep the directory busy.
                        pause(control, UNDECIDED_PAUSE).await;
                        return Err(LoginFailure::Undecided);
                    }
                    Err(error @ auth::Error::Barred { reason, .. }) => {
                        (portolan_telemetry::chain(&error), LoginFailure::Barred(reason))
                    }
                    Err(error) => (portolan_telemetry::chain(&error), LoginFailure::Wrong),
                }
            }
            Err(reason) => (reason.to_owned(), LoginFailure::Wrong),
        };
        let (delay, bans) = lockout.failed(network, counted, Instant::now());
        let outcome = match failure {
            LoginFailure::Barred(_) => LoginOutcome::Barred,
            LoginFailure::Wrong | LoginFailure::Banned(_) | LoginFailure::Undecided => LoginOutcome::Wrong,
        };
        tell(outcome);
        let result = outcome.word();
        tracing::warn!(
            target: AUDIT,
            parent: &control.span,
            event = "login", result, name, cause = reason, "login refused"
        );
        for ban in bans {
            let until = humantime::format_rfc3339_seconds(ban.until);
            tracing::warn!(
                target: AUDIT,
                parent: &control.span,
                event = "ban", banned = %ban.who, failures = ban.failures, %until, "banned: too many failed logins"
            );
        }
        pause(control, delay).await;
        Err(failure)
    }
}

/// Before the reply to a login that failed; a drain does not wait for it.
async fn pause(control: &ControlConnection, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        _ = control.asked_to_end(Ending::Drain) => {}
    }
}
