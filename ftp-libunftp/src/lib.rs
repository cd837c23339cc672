//! The `libunftp` engine: the library's FTP, over our tree and admins.
//!
//! Who calls it: `portolan_ftp::Service`, for listeners that choose it; the front end makes it.
//! What it calls: libunftp, with the adapters of this folder.
//! What it never does: more than adapt. The limits of the library are stated by `tests/tests/libunftp_limits.rs`.

#![forbid(unsafe_code)]

mod accounts;
mod filter;
mod storage;
mod threads;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use libunftp::ServerBuilder;
use libunftp::options::{Binder, FtpsRequired, PassiveHost};
use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use accounts::{FtpUser, FtpUsers, PasswordCheck, SessionLogin};
use portolan_config::checked::listener::Listener;
use portolan_ftp::advertised::Advertised;
use portolan_ftp::passive::PassivePorts;
use portolan_ftp::{ControlConnection, Ending, Service};
use storage::TreeStorage;
use threads::Threads;

/// What the sessions of one listener share for the library.
pub struct Library {
    threads: Arc<Threads>,
    greeting: &'static str,
}

impl Library {
    /// `previous` is that of the same listener before a reload.
    fn new(banner: &[String], previous: Option<&Self>) -> std::io::Result<Self> {
        let text = banner.join(" ");
        let threads = match previous {
            Some(previous) => Arc::clone(&previous.threads),
            None => Arc::new(Threads::start()?),
        };
        // The library wants one that lives for ever: another banner costs its few bytes.
        let greeting = match previous.filter(|previous| previous.greeting == text) {
            Some(previous) => previous.greeting,
            None => Box::leak(text.into_boxed_str()),
        };
        Ok(Self { threads, greeting })
    }
}

/// The library's engine for a listener.
///
/// # Errors
/// The system has no thread left.
pub fn library(listener: &Listener) -> std::io::Result<Arc<dyn portolan_ftp::Library>> {
    Ok(Arc::new(Library::new(&listener.banner, None)?))
}

impl portolan_ftp::Library for Library {
    fn renewed(&self, listener: &Listener) -> std::io::Result<Arc<dyn portolan_ftp::Library>> {
        Ok(Arc::new(Self::new(&listener.banner, Some(self))?))
    }

    fn serve(
        &self,
        service: Arc<Service>,
        stream: TcpStream,
        control: Arc<ControlConnection>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let library = Self { threads: Arc::clone(&self.threads), greeting: self.greeting };
        Box::pin(async move { serve(&service, &library, stream, control).await })
    }
}

/// A session whose transfer has just ended gets this long to be told so: the library does not show when its reply is
/// out.
const REPLY_GRACE: Duration = Duration::from_millis(500);

/// What must be known of a session because the library runs its transfers in tasks of their own.
#[derive(Debug, Default)]
struct Life {
    /// The session is over; what is still done for it must end.
    over: CancellationToken,
    transfer_ended: Mutex<Option<Instant>>,
}

/// Notes the end of a transfer, however it ends.
struct NoteEnd<'a>(&'a Life);

impl Drop for NoteEnd<'_> {
    fn drop(&mut self) {
        *self.0.transfer_ended.lock() = Some(Instant::now());
    }
}

async fn serve(
    service: &Arc<Service>,
    library: &Library,
    stream: TcpStream,
    control: Arc<ControlConnection>,
) {
    // However this ends, transfers end with it: the library runs them in tasks of their own.
    let life = Arc::new(Life::default());
    let _over = life.over.clone().drop_guard();
    let session = control.id;
    let login_timeout = service.listener.login_timeout;
    // The library has the other end of a pair, and the session ends with either.
    let address = filter::address();
    let (ours, theirs) = match filter::pair(address).await {
        Ok(pair) => pair,
        Err(error) => {
            tracing::warn!(%session, %error, "session ended: no connection to the engine");
            return control.close();
        }
    };
    let mut relay = AbortOnDropHandle::new(tokio::spawn(filter::relay(stream, ours)));
    let served = match (builder(service, library, &control, &life, address).build(), theirs.into_std()) {
        (Ok(server), Ok(stream)) => {
            let serving = library.threads.next().spawn(async move {
                // Registers the socket with the runtime of the thread.
                let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
                server.service(stream).await.map_err(|error| error.to_string())
            });
            tokio::select! {
                served = serving => served.unwrap_or_else(|stopped| Err(stopped.to_string())),
                () = too_late_to_log_in(&control, login_timeout) => {
                    Err(format!("no login within {login_timeout:?}"))
                }
                // The library gives no way to say why. A transfer that is kicked ends at once.
                () = may_end(&control, &life) => {
                    relay.abort();
                    life.over.cancel();
                    Ok(())
                }
                relayed = &mut relay => relayed.map_err(|stopped| stopped.to_string()).and_then(|relayed| {
                    relayed.map_err(|error| portolan_telemetry::chain(&error))
                }),
            }
        }
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    if let Err(error) = served {
        tracing::warn!(%session, error, "session ended by a failure of the engine");
    }
    // The last reply may be on its way.
    if !relay.is_finished() {
        tokio::time::timeout(REPLY_GRACE, relay).await.ok();
    }
    // Our second handle keeps the socket open; the client must see that the session is over.
    control.close();
    // The session has its place for as long as it does something.
    life.over.cancel();
    control.idle().await;
}

/// Waits until a session is asked to end and may: at once where the operator says so, otherwise when nothing is under
/// way and the reply to its last transfer is out.
async fn may_end(control: &ControlConnection, life: &Life) {
    control.asked_to_end(Ending::Drain).await;
    let quiet = async {
        loop {
            control.idle().await;
            let ended = *life.transfer_ended.lock();
            match ended.map(|ended| ended + REPLY_GRACE).filter(|quiet| *quiet > Instant::now()) {
                Some(quiet) => tokio::time::sleep_until(quiet).await,
                None => return,
            }
        }
    };
    tokio::select! {
        () = quiet => {}
        _ = control.asked_to_end(Ending::Kick) => {}
    }
}

/// Ends when a session has not logged in by the deadline; otherwise never. The library itself waits for ever
/// for a TLS handshake.
async fn too_late_to_log_in(control: &ControlConnection, login_timeout: Duration) {
    tokio::time::sleep(login_timeout).await;
    if control.is_logged_in() {
        std::future::pending::<()>().await;
    }
}

fn builder(
    service: &Arc<Service>,
    library: &Library,
    control: &Arc<ControlConnection>,
    life: &Arc<Life>,
    address: Ipv4Addr,
) -> ServerBuilder<TreeStorage, FtpUser> {
    let storage = TreeStorage::new(Arc::clone(service), Arc::clone(control), Arc::clone(life));
    let login = SessionLogin::default();
    let check =
        Arc::new(PasswordCheck::new(Arc::clone(service), Arc::clone(control), SessionLogin::clone(&login)));
    let users = Arc::new(FtpUsers::new(login));
    let ports = service.listener.passive_ports;
    let mut builder = ServerBuilder::with_user_detail_provider(Box::new(move || storage.clone()), users)
        .authenticator(check)
        .greeting(library.greeting)
        .idle_session_timeout(service.listener.idle_timeout.as_secs())
        .passive_ports(ports.first..=ports.last)
        .binder(PassiveBinder {
            ports: Arc::clone(&service.passive),
            own: control.origin.own,
            client: control.origin.balancer.unwrap_or(control.origin.client.ip()),
            address,
            life: Arc::clone(life),
        });
    // Otherwise the library takes the address of its connection, which is the filter's. Clients take 0.0.0.0 for the address
    // of their control connection.
    let passive_host = match (service.advertised.address(&control.origin), control.origin.own) {
        (Advertised::Address(address), _) => address,
        (Advertised::Ipv6 | Advertised::Unresolved, IpAddr::V4(own)) => own,
        (Advertised::Ipv6 | Advertised::Unresolved, IpAddr::V6(_)) => Ipv4Addr::UNSPECIFIED,
    };
    builder = builder.passive_host(PassiveHost::Ip(passive_host));
    if let (Some(tls), Some(settings)) = (&service.tls, service.listener.tls.settings()) {
        let required = |required| if required { FtpsRequired::All } else { FtpsRequired::None };
        builder = builder
            .ftps_manual::<PathBuf>(Arc::clone(&tls.config))
            .ftps_required(required(settings.login_required), required(settings.data_required));
    }
    builder
}

/// Our ports for the library's passive connections, which the filter relays.
#[derive(Debug)]
struct PassiveBinder {
    ports: Arc<PassivePorts>,
    /// Our address that the client has come to.
    own: IpAddr,
    /// The address that its data connections come from.
    client: IpAddr,
    /// Where the library waits.
    address: Ipv4Addr,
    life: Arc<Life>,
}

#[async_trait::async_trait]
impl Binder for PassiveBinder {
    async fn bind(&mut self, _address: IpAddr, _range: RangeInclusive<u16>) -> std::io::Result<TcpSocket> {
        let listener = self.ports.listen(self.own)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.address, listener.local_addr()?.port()).into())?;
        let (over, client, address) = (self.life.over.clone(), self.client, self.address);
        // Not awaited: it ends with its deadline, its data connection or the session.
        tokio::spawn(over.run_until_cancelled_owned(filter::relay_data(listener, client, address)));
        Ok(socket)
    }
}
