//! The gate: accepts connections, counts them, refuses what is too much, closes them when draining.
//!
//! Who calls it: `Frontend::run`, once for each listener.
//! What it calls: `ftp::Service`, with each connection that it lets in.
//! What it never does: parse FTP.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use portolan_proto::id::SessionId;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::ftp::{ControlConnection, Service};

/// Pause after a failed accept: without it, running out of descriptors would spin a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a refused client may take to read its refusal.
const REFUSAL_MAX: Duration = Duration::from_secs(5);
/// How often a drain looks for sessions that have become idle.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// One listener with its sessions.
pub struct Gate {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    places: Arc<Semaphore>,
    sessions: Arc<Mutex<HashMap<SessionId, Arc<ControlConnection>>>>,
    tasks: TaskTracker,
}

impl Gate {
    pub async fn bind(service: Service) -> io::Result<Self> {
        let listener = TcpListener::bind(service.listener.address).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            places: Arc::new(Semaphore::new(service.listener.sessions_max)),
            service: Arc::new(service),
            sessions: Arc::default(),
            tasks: TaskTracker::new(),
        })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets connections in until `shutdown`, then drains: idle sessions are closed at once, the others when
    /// their transfer is done. Returns when all are gone; the caller sets the deadline.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.let_in(stream, peer),
                    Err(error) => {
                        tracing::warn!(%error, listener = %self.address, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = shutdown.cancelled() => break,
            }
        }
        drop(self.listener);
        self.tasks.close();
        let close_idle = async {
            loop {
                for control in self.sessions.lock().unwrap_or_else(PoisonError::into_inner).values() {
                    if control.is_idle() {
                        control.close();
                    }
                }
                tokio::time::sleep(DRAIN_STEP).await;
            }
        };
        tokio::select! {
            () = self.tasks.wait() => {}
            () = close_idle => {}
        }
    }

    fn let_in(&self, stream: TcpStream, peer: SocketAddr) {
        let session = SessionId::new();
        let span = tracing::info_span!("connection", %session, %peer);
        // Nagle's algorithm and delayed acknowledgements cost 40 ms for each reply after a transfer.
        let prepared = stream.set_nodelay(true).and_then(|()| ControlConnection::new(&stream));
        let control = match prepared {
            Ok(control) => Arc::new(control),
            Err(error) => {
                tracing::warn!(%error, %peer, "connection was lost before it began");
                return;
            }
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let limit = self.service.listener.sessions_max;
            tracing::warn!(%peer, limit, "connection refused: too many sessions");
            self.tasks.spawn(refuse(stream, limit));
            return;
        };
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session, Arc::clone(&control));
        let (service, sessions) = (Arc::clone(&self.service), Arc::clone(&self.sessions));
        let serve = async move {
            let _place = place;
            tracing::debug!("session begins");
            service.serve(stream, session, control).await;
            sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
            tracing::debug!("session ends");
        };
        self.tasks.spawn(serve.instrument(span));
    }
}

/// Tells a client why it is not served (RFC 959 section 5.4: 421 may answer any command or the connection).
async fn refuse(mut stream: TcpStream, limit: usize) {
    let text = format!("421 All {limit} sessions of this listener are in use; try again later.\r\n");
    let told = tokio::time::timeout(REFUSAL_MAX, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    });
    if !matches!(told.await, Ok(Ok(()))) {
        tracing::debug!("a refused client did not wait for the reason");
    }
}
