//! The `libunftp` engine: the library's FTP, over our tree and admins.
//!
//! Who calls it: `portolan_ftp::Service`, for listeners that choose it; the front end makes it.
//! What it calls: libunftp, with the adapters of this folder.
//! What it never does: more than adapt. The limits of the library are stated by `tests/tests/libunftp_limits.rs`.

#![forbid(unsafe_code)]

mod accounts;
mod storage;
mod threads;

use std::net::IpAddr;
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
    let served = match (builder(service, library, &control, &life).build(), stream.into_std()) {
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
                // The library gives no way to say why.
                () = may_end(&control, &life) => Ok(()),
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
        .binder(PassiveBinder { ports: Arc::clone(&service.passive) });
    // Otherwise the library takes its own address, or refuses PASV.
    if let Advertised::Address(address) = service.advertised.address(&control.origin) {
        builder = builder.passive_host(PassiveHost::Ip(address));
    }
    if let (Some(tls), Some(settings)) = (&service.tls, service.listener.tls.settings()) {
        let required = |required| if required { FtpsRequired::All } else { FtpsRequired::None };
        builder = builder
            .ftps_manual::<PathBuf>(Arc::clone(&tls.config))
            .ftps_required(required(settings.login_required), required(settings.data_required));
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
