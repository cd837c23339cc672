//! The `libunftp` engine: the library's FTP, over our tree and admins.
//!
//! Who calls it: `ftp::Service::serve`.
//! What it calls: libunftp, with the adapters of this folder.
//! What it never does: more than adapt. The limits of the library are stated by `tests/tests/libunftp_limits.rs`.

mod accounts;
mod storage;
mod threads;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use libunftp::ServerBuilder;
use libunftp::options::{Binder, FtpsRequired, PassiveHost};
use portolan_config::checked::frontend::Tls;
use portolan_proto::id::SessionId;
use tokio::net::{TcpSocket, TcpStream};

use super::passive::PassivePorts;
use super::{ControlConnection, LOGIN_MAX, Service};
use accounts::{FtpUser, FtpUsers, PasswordCheck};
use storage::TreeStorage;
pub(super) use threads::Threads;

/// The service's greeting (RFC 959 section 5.4, 220).
const GREETING: &str = "Portolan ready.";

pub(super) async fn serve(
    service: &Service,
    threads: &Threads,
    stream: TcpStream,
    session: SessionId,
    control: Arc<ControlConnection>,
) {
    let served = match (builder(service, session, &control).build(), stream.into_std()) {
        (Ok(server), Ok(stream)) => {
            let serving = threads.next().spawn(async move {
                // Registers the socket with the runtime of the thread.
                let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
                server.service(stream).await.map_err(|error| error.to_string())
            });
            tokio::select! {
                served = serving => served.unwrap_or_else(|stopped| Err(stopped.to_string())),
                () = too_late_to_log_in(&control) => Err(format!("no login within {LOGIN_MAX:?}")),
            }
        }
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    if let Err(error) = served {
        tracing::warn!(%session, error, "session ended by a failure of the engine");
    }
    // Our second handle keeps the socket open; the client must see that the session is over.
    control.close();
}

/// Ends when a session has not logged in by the deadline; otherwise never. The library itself waits for ever
/// for a TLS handshake.
async fn too_late_to_log_in(control: &ControlConnection) {
    tokio::time::sleep(LOGIN_MAX).await;
    if control.is_logged_in() {
        std::future::pending::<()>().await;
    }
}

fn builder(
    service: &Service,
    session: SessionId,
    control: &Arc<ControlConnection>,
) -> ServerBuilder<TreeStorage, FtpUser> {
    let storage = TreeStorage::new(Arc::clone(&service.tree), Arc::clone(control));
    let check = Arc::new(PasswordCheck::new(Arc::clone(&service.auth), session, Arc::clone(control)));
    let users = Arc::new(FtpUsers::new(Arc::clone(&service.auth), session));
    let ports = service.listener.passive_ports;
    let mut builder = ServerBuilder::with_user_detail_provider(Box::new(move || storage.clone()), users)
        .authenticator(check)
        .greeting(GREETING)
        .idle_session_timeout(service.listener.idle_timeout.as_secs())
        .passive_ports(ports.first..=ports.last)
        .binder(PassiveBinder { ports: Arc::clone(&service.passive) });
    if let Some(address) = service.listener.passive_address {
        builder = builder.passive_host(PassiveHost::Ip(address));
    }
    if let Some(tls) = &service.tls {
        builder = builder.ftps_manual::<PathBuf>(Arc::clone(tls));
        if let Tls::Explicit { required: true, .. } = service.listener.tls {
            builder = builder.ftps_required(FtpsRequired::All, FtpsRequired::All);
        }
    }
    builder
}

/// Our ports for the library's passive connections.
#[derive(Debug)]
struct PassiveBinder {
    ports: Arc<PassivePorts>,
}

#[async_trait::async_trait]
impl Binder for PassiveBinder {
    async fn bind(&mut self, address: IpAddr, _range: RangeInclusive<u16>) -> std::io::Result<TcpSocket> {
        self.ports.bind(address)
    }
}
