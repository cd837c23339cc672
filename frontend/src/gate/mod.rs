//! The gate: accepts connections, counts them, refuses what is too much, closes them when draining.
//!
//! Who calls it: `Frontend::run`, once for each listener.
//! What it calls: `ftp::Service`, with each connection that it lets in.
//! What it never does: parse FTP.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portolan_proto::id::SessionId;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::ftp::{ControlConnection, Service};

/// Pause after a failed accept: without it, running out of descriptors would spin a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a refused client may take to read its refusal.
const REFUSAL_MAX: Duration = Duration::from_secs(5);
/// How often a drain looks for sessions that have become idle.
const DRAIN_STEP: Duration = Duration::from_millis(50);
/// A session whose transfer has just ended gets this long to be told so.
const REPLY_GRACE: Duration = Duration::from_millis(500);

/// One listener with its sessions.
pub struct Gate {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    places: Arc<Semaphore>,
    sessions: Sessions,
    /// Aborted when the gate is dropped: nothing outlives a drain.
    tasks: JoinSet<()>,
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
            tasks: JoinSet::new(),
        })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets connections in until `shutdown`, then drains: idle sessions are closed at once, the others when
    /// their transfer is done. Returns when all are gone; the caller sets the deadline, and dropping the gate
    /// then cuts what is left.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.let_in(stream, peer),
                    Err(error) => {
                        tracing::warn!(%error, listener = %self.address, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a session did not end in order");
                    }
                }
                () = shutdown.cancelled() => break,
            }
        }
        let Self { listener, mut tasks, sessions, .. } = self;
        drop(listener);
        let close_idle = async {
            loop {
                for control in lock(&sessions).values().filter(|control| control.is_idle_for(REPLY_GRACE)) {
                    control.close();
                }
                tokio::time::sleep(DRAIN_STEP).await;
            }
        };
        tokio::select! {
            () = async { while tasks.join_next().await.is_some() {} } => {}
            () = close_idle => {}
        }
    }

    fn let_in(&mut self, stream: TcpStream, peer: SocketAddr) {
        let id = SessionId::new();
        let control = match ControlConnection::new(&stream) {
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
        lock(&self.sessions).insert(id, Arc::clone(&control));
        let present = Present { id, sessions: Arc::clone(&self.sessions), _place: place };
        let service = Arc::clone(&self.service);
        let serve = async move {
            let _present = present;
            tracing::debug!("session begins");
            service.serve(stream, id, control).await;
            tracing::debug!("session ends");
        };
        self.tasks.spawn(serve.instrument(tracing::info_span!("connection", session = %id, %peer)));
    }
}

type Sessions = Arc<Mutex<HashMap<SessionId, Arc<ControlConnection>>>>;

fn lock(sessions: &Sessions) -> MutexGuard<'_, HashMap<SessionId, Arc<ControlConnection>>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session that is in: its place and its entry, given back however it ends.
struct Present {
    id: SessionId,
    sessions: Sessions,
    _place: OwnedSemaphorePermit,
}

impl Drop for Present {
    fn drop(&mut self) {
        if let Some(control) = lock(&self.sessions).remove(&self.id) {
            control.close();
        }
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
