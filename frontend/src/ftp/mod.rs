//! The FTP protocol: control and data connections, commands, replies.
//!
//! Who calls it: `gate`, with each connection that it let in.
//! What it calls: `tree`, `auth`.
//! What it never does: know a node's address, or decide who may connect.

mod libunftp;
pub mod passive;
pub mod reply;
pub mod transfer;

use std::sync::Arc;

use portolan_config::checked::frontend::{Engine, Listener, Tls};
use portolan_proto::id::SessionId;
use rustls::server::ServerSessionMemoryCache;
use tokio::net::TcpStream;

use crate::auth::Authenticator;
use crate::tree::Tree;
use passive::PassivePorts;

/// TLS sessions remembered for resumption with TLS 1.2; TLS 1.3 uses tickets.
const TLS_SESSIONS_MAX: usize = 4_096;

/// What the sessions of one listener share.
pub struct Service {
    pub(crate) listener: Listener,
    pub(crate) tree: Arc<Tree>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) passive: Arc<PassivePorts>,
    /// `None`: this listener speaks plaintext only.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    threads: libunftp::Threads,
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
            Tls::Explicit { identity, .. } => {
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
        let threads = libunftp::Threads::start()?;
        Ok(Self { listener, tree, auth, passive, tls, threads })
    }

    /// Serves one control connection until it ends.
    pub async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        session: SessionId,
        control: Arc<ControlConnection>,
    ) {
        match self.listener.engine {
            Engine::Libunftp => libunftp::serve(&self, stream, session, control).await,
        }
    }
}

/// A second handle on a control connection, to see whether its client is still there and to close it.
#[derive(Debug)]
pub struct ControlConnection {
    socket: std::os::fd::OwnedFd,
    transfers: std::sync::atomic::AtomicUsize,
}

impl ControlConnection {
    pub fn new(stream: &TcpStream) -> std::io::Result<Self> {
        use std::os::fd::AsFd as _;
        let socket = stream.as_fd().try_clone_to_owned()?;
        Ok(Self { socket, transfers: std::sync::atomic::AtomicUsize::new(0) })
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

    /// Counts a transfer as long as the guard lives.
    pub fn begin_transfer(self: &Arc<Self>) -> TransferUnderWay {
        self.transfers.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        TransferUnderWay(Arc::clone(self))
    }

    pub fn is_idle(&self) -> bool {
        self.transfers.load(std::sync::atomic::Ordering::Acquire) == 0
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
        self.0.transfers.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
    }
}
