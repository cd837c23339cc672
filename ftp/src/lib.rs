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
use std::time::Duration;

use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::listener::{Engine, Listener};
use tokio::net::TcpStream;

use crate::metrics::Metrics;
use advertised::{AdvertisedNames, ListenerAddresses};
use bandwidth::{AdminThrottles, Pace, Rates, Throttle};
use passive::PassivePorts;
use portolan_cluster::auth::login::{Attempt, Denied, LoginDesk, LoginFailure};
use portolan_cluster::auth::{Admins, Login, Proof};
use portolan_cluster::tree::Tree;
use tls::ListenerTls;

pub use control::{ControlConnection, Ending};

/// What the services of all listeners share.
pub struct Shared {
    pub tree: Arc<Tree>,
    pub desk: LoginDesk,
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
            desk: LoginDesk::new(config, admins),
            advertised: AdvertisedNames::default(),
            metrics: Arc::default(),
            open_ports: native::OpenPorts::default(),
            admin_throttles: AdminThrottles::new(config.admin_bandwidth),
            library,
        }
    }

    /// Takes over what a reload changes.
    pub fn update(&self, config: &Config, admins: Admins) {
        self.desk.update(config, admins);
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

    /// Takes a name and its proof, which came over `control`, to the login desk, and waits as long as the desk states.
    pub async fn log_in(
        &self,
        control: &ControlConnection,
        name: &str,
        proof: Result<Proof<'_>, &'static str>,
    ) -> Result<Login, LoginFailure> {
        let (network, session, span) = (control.origin.network, control.id, &control.span);
        match self.shared.desk.log_in(Attempt { name, proof, network, session, span }).await {
            Ok(login) => {
                control.set_admin(Some(&login.admin.name));
                Ok(login)
            }
            Err(Denied { failure, pause }) => {
                if !pause.is_zero() {
                    wait(control, pause).await;
                }
                Err(failure)
            }
        }
    }
}

/// Before the reply to a login that failed; a drain does not wait for it.
async fn wait(control: &ControlConnection, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        _ = control.asked_to_end(Ending::Drain) => {}
    }
}
