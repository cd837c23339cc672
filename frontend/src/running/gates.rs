//! The gates of a front end: one for each listener, opened, changed and closed by the configuration.
//!
//! Who calls it: `running`; `running::reload` and `running::certificates` change them.
//! What it calls: `gate`, portolan-ftp.
//! What it never does: end a session: those of a gate that is closed go on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::listener::Listener;
use portolan_ftp::{Service, Shared};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::door::Ftp;
use crate::gate::flow::Usage;
use crate::gate::{self, Commons};
use crate::sessions::Sessions;

/// A listener that is open.
pub(crate) type Gate = gate::Gate<Ftp>;

/// See the module.
pub(crate) struct Gates {
    shared: Arc<Shared>,
    commons: Arc<Commons>,
    sessions: Arc<Sessions>,
    /// By the listener's name; `None`: the gates are closed for good.
    open: Mutex<Option<BTreeMap<String, OpenGate>>>,
    /// Where the gates run.
    accepting: TaskTracker,
}

/// A listener that is bound, and lets nobody in yet.
pub(crate) struct Bound {
    pub(crate) address: SocketAddr,
    socket: TcpListener,
    service: Ftp,
}

struct OpenGate {
    gate: Arc<Gate>,
    stop: CancellationToken,
    /// Ends when the socket is closed.
    accepts: JoinHandle<()>,
}

impl Gates {
    pub(super) fn new(config: &Config, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            commons: Arc::new(Commons::new(config)),
            sessions: Arc::default(),
            open: Mutex::new(Some(BTreeMap::new())),
            accepting: TaskTracker::new(),
        }
    }

    pub(super) fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Those that are open, by the name of their listener.
    pub(crate) fn list(&self) -> Vec<Arc<Gate>> {
        let open = self.open.lock();
        open.iter().flat_map(BTreeMap::values).map(|open| Arc::clone(&open.gate)).collect()
    }

    /// How full all limits are.
    pub(crate) fn usages(&self) -> Vec<Usage> {
        let now = Instant::now();
        let mut usages = self.commons.usages(now);
        usages.extend(self.list().iter().map(|gate| gate.usage(now)));
        usages
    }

    /// Takes over what a reload changes for all of them.
    pub(super) fn set_limits(&self, config: &Config) {
        self.commons.update(config);
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

    pub(super) fn make_service(&self, listener: &Listener, previous: Option<&Ftp>) -> Result<Ftp, Error> {
        let address: SocketAddr = listener.address;
        Service::new(listener.clone(), Arc::clone(&self.shared), previous.map(|previous| &*previous.service))
            .map(|service| Ftp::new(service, Arc::clone(&self.sessions)))
            .map_err(|source| Error::Ftp { address, source })
    }

    /// Lets clients in.
    pub(crate) fn open(&self, bound: Bound, ipv6_prefix: u8) {
        let Bound { address, socket, service } = bound;
        let gate = Arc::new(Gate::new(service, address, Arc::clone(&self.commons), ipv6_prefix));
        // A drain has begun: nobody is let in any more.
        let mut open = self.open.lock();
        let Some(open) = open.as_mut() else { return };
        tracing::info!(%address, "front end serves");
        let stop = CancellationToken::new();
        let accepts = self.accepting.spawn(Arc::clone(&gate).run(socket, stop.clone()));
        open.insert(gate.name().to_owned(), OpenGate { gate, stop, accepts });
    }

    /// Lets nobody in any more.
    pub(crate) async fn close_all(&self) {
        for open in self.open.lock().take().unwrap_or_default().values() {
            open.stop.cancel();
        }
        self.accepting.close();
        self.accepting.wait().await;
        self.commons.stop().await;
    }

    /// Puts another service behind a gate, for connections to come. Bandwidth limits hold for all.
    pub(super) fn update(&self, gate: &Gate, service: Ftp, ipv6_prefix: u8) {
        service.service.apply_bandwidth();
        gate.update(service, ipv6_prefix);
    }

    /// Lets nobody in any more at listeners that the configuration does not have, and waits until their addresses are free.
    pub(super) async fn close_removed(&self, config: &Config) {
        let is_removed =
            |name: &String, _: &mut OpenGate| !config.listeners.iter().any(|listener| listener.name == *name);
        let removed: Vec<OpenGate> = match self.open.lock().as_mut() {
            Some(open) => open.extract_if(.., is_removed).map(|(_, open)| open).collect(),
            None => Vec::new(),
        };
        for OpenGate { stop, accepts, .. } in removed {
            stop.cancel();
            accepts.await.ok();
        }
    }
}
