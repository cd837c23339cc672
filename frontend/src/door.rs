//! FTP behind the gates.
//!
//! Who calls it: `gate`, with each connection; `running::gates` makes it.
//! What it calls: portolan-ftp; `sessions`, which keeps what it serves.
//! What it never does: decide who may connect.

use std::sync::Arc;

use portolan_cluster::auth::lockout::Lockout;
use portolan_config::checked::listener::Tls;
use portolan_ftp::{ControlConnection, Service};
use portolan_net::Origin;
use tokio::net::TcpStream;
use tracing::Instrument as _;

use crate::gate::flow::Admission;
use crate::gate::{Door, Refused, Serve};
use crate::sessions::Sessions;

/// Sessions come from the gate, for who follows them in its log.
const GATE: &str = "portolan_frontend::gate";

/// A listener's FTP service.
pub(crate) struct Ftp {
    pub(crate) service: Arc<Service>,
    name: Arc<str>,
    sessions: Arc<Sessions>,
}

impl Ftp {
    pub(crate) fn new(service: Service, sessions: Arc<Sessions>) -> Self {
        service.shared.metrics.listens(&service.listener.name, &Refused::REASONS);
        Self { name: service.listener.name.as_str().into(), service: Arc::new(service), sessions }
    }
}

impl Serve for Ftp {
    fn door(&self) -> Door<'_> {
        let listener = &self.service.listener;
        Door {
            name: &listener.name,
            limits: listener.limits,
            access: listener.access.as_ref(),
            trusted: &listener.proxy_protocol.trusted,
            header_timeout: listener.handshake_timeout,
        }
    }

    fn lockout(&self) -> &Lockout {
        &self.service.shared.desk.lockout
    }

    fn implicit_tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        match (&self.service.listener.tls, &self.service.tls) {
            (Tls::Implicit(_), Some(tls)) => Some(Arc::clone(&tls.config)),
            _ => None,
        }
    }

    /// RFC 959 section 5.4.
    fn refusal(&self, why: &Refused) -> String {
        format!("421 {why}\r\n")
    }

    fn health_greeting(&self) -> &'static [u8] {
        b"220 Portolan ready.\r\n"
    }

    fn count_refused(&self, why: &Refused) {
        self.service.shared.metrics.refused(&self.name, why.reason());
    }

    fn serve(self: Arc<Self>, stream: TcpStream, origin: Origin, admission: Admission) {
        let peer = origin.client;
        let metrics = Arc::clone(&self.service.shared.metrics);
        metrics.connected(&self.name);
        let control = match ControlConnection::new(&stream, origin, Arc::clone(&self.name), metrics) {
            Ok(control) => Arc::new(control),
            Err(error) => {
                tracing::debug!(%error, %peer, "connection was lost before it began");
                return;
            }
        };
        let (service, served) = (Arc::clone(&self.service), Arc::clone(&control));
        let serve = async move {
            tracing::debug!(target: GATE, "session begins");
            service.serve(stream, served).await;
            tracing::debug!(target: GATE, "session ends");
        };
        let span = control.span.clone();
        self.sessions.serve(control, admission, serve.instrument(span));
    }
}
