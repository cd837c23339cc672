//! The FTP protocol: control and data connections, commands, replies.
//!
//! Who calls it: `gate`, with each connection that it let in.
//! What it calls: `tree`, `auth`.
//! What it never does: know a node's address, or decide who may connect.

mod libunftp;
mod native;
pub mod passive;
pub mod reply;
pub mod transfer;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portolan_config::checked::frontend::{Engine, Listener, Tls};
use portolan_proto::id::SessionId;
use rustls::server::ServerSessionMemoryCache;
use tokio::net::TcpStream;

use crate::auth::Authenticator;
use crate::tree::Tree;
use passive::PassivePorts;

/// TLS sessions remembered for resumption with TLS 1.2; TLS 1.3 uses tickets.
const TLS_SESSIONS_MAX: usize = 4_096;

/// From the greeting to the login, TLS included.
const LOGIN_MAX: Duration = Duration::from_secs(60);
/// Failed logins of one session at most; then it is closed.
const FAILED_LOGINS_MAX: usize = 5;

/// What the sessions of one listener share.
pub struct Service {
    pub(crate) listener: Listener,
    pub(crate) tree: Arc<Tree>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) passive: Arc<PassivePorts>,
    /// `None`: this listener speaks plaintext only.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// What the native engine remembers of the TLS sessions of this listener.
    tls_sessions: Option<Arc<native::TlsService>>,
    /// `None`: another engine.
    threads: Option<libunftp::Threads>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the certificate cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("threads for sessions cannot be started")]
    Threads(#[from] std::io::Error),
}

impl Service {
    pub fn new(listener: Listener, tree: Arc<Tree>, auth: Arc<Authenticator>) -> Result<Self, Error> {
        let tls = match &listener.tls {
            Tls::Off => None,
            Tls::Explicit { identity, .. } | Tls::Implicit { identity, .. } => {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let mut config = rustls::ServerConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_no_client_auth()
                    .with_single_cert(identity.chain.clone(), identity.key())?;
                config.session_storage = ServerSessionMemoryCache::new(TLS_SESSIONS_MAX);
                config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
                Some(Arc::new(config))
            }
        };
        let passive = Arc::new(PassivePorts::new(listener.passive_ports));
        let tls_sessions = tls.as_ref().map(|tls| Arc::new(native::TlsService::new(tls)));
        let threads = match listener.engine {
            Engine::Native => None,
            Engine::Libunftp => Some(libunftp::Threads::start()?),
        };
        Ok(Self { listener, tree, auth, passive, tls, tls_sessions, threads })
    }

    /// Serves one control connection until it ends.
    pub async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        session: SessionId,
        control: Arc<ControlConnection>,
    ) {
        match &self.threads {
            None => native::serve(self, stream, session, control).await,
            Some(threads) => libunftp::serve(&self, threads, stream, session, control).await,
        }
    }
}

/// A second handle on a control connection, to see whether its client is still there and to close it.
#[derive(Debug)]
pub struct ControlConnection {
    socket: OwnedFd,
    opened: Instant,
    transfers: AtomicUsize,
    /// When the last transfer ended, in milliseconds after `opened`.
    last_transfer_ms: AtomicU64,
    logged_in: AtomicBool,
}

/// A client that is gone without a word is noticed after idle + count * interval; meanwhile its session takes
/// up a place.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// Lets the kernel find out that the other end of a connection is gone. On a listening socket it holds for the
/// connections accepted from it.
pub(crate) fn keep_alive(socket: impl AsFd) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    Ok(sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?)
}

impl ControlConnection {
    /// Prepares a new connection and takes a handle on it.
    pub fn new(stream: &TcpStream) -> std::io::Result<Self> {
        // Nagle's algorithm and delayed acknowledgements cost 40 ms for each reply after a transfer.
        stream.set_nodelay(true)?;
        keep_alive(stream)?;
        Ok(Self {
            socket: stream.as_fd().try_clone_to_owned()?,
            opened: Instant::now(),
            transfers: AtomicUsize::new(0),
            last_transfer_ms: AtomicU64::new(0),
            logged_in: AtomicBool::new(false),
        })
    }

    /// True when the client has closed its end or reset the connection, even while unread commands wait.
    /// A control connection that closes unexpectedly is an abort (RFC 959 section 3.2).
    pub fn is_closed_by_client(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        // A poll that fails says nothing good about the connection.
        poll(&mut polled, Some(&now)).is_err() || polled[0].revents().intersects(gone)
    }

    /// True when bytes have come that nobody has read.
    pub fn has_unread(&self) -> bool {
        // A socket that cannot be asked is one that is closed, which is looked at elsewhere.
        rustix::io::ioctl_fionread(&self.socket).is_ok_and(|bytes| bytes > 0)
    }

    /// Counts a transfer as long as the guard lives.
    pub fn begin_transfer(self: &Arc<Self>) -> TransferUnderWay {
        self.transfers.fetch_add(1, Ordering::AcqRel);
        TransferUnderWay(Arc::clone(self))
    }

    /// True when no transfer is under way, nor has been for `quiet`: the reply to the last one is out.
    pub fn is_idle_for(&self, quiet: Duration) -> bool {
        let ended = Duration::from_millis(self.last_transfer_ms.load(Ordering::Acquire));
        let none = self.transfers.load(Ordering::Acquire) == 0;
        none && (ended.is_zero() || self.opened.elapsed().saturating_sub(ended) >= quiet)
    }

    /// An admin has logged in (libunftp; the native engine keeps its own deadline).
    pub fn set_logged_in(&self) {
        self.logged_in.store(true, Ordering::Release);
    }

    pub fn is_logged_in(&self) -> bool {
        self.logged_in.load(Ordering::Acquire)
    }

    /// Ends the connection: what was written is still delivered.
    pub fn close(&self) {
        match rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both) {
            // The client was faster.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => {}
            Err(errno) => tracing::debug!(%errno, "control connection was not closed in order"),
        }
    }
}

/// See [`ControlConnection::begin_transfer`].
#[derive(Debug)]
pub struct TransferUnderWay(Arc<ControlConnection>);

impl Drop for TransferUnderWay {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_transfer_ms.store(now.max(1), Ordering::Release);
        self.0.transfers.fetch_sub(1, Ordering::AcqRel);
    }
}
