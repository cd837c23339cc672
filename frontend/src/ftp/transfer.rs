//! One info line for each transfer that ends, and the cause of each failure, once.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portolan_proto::id::TransferId;

use super::reply;
use crate::auth::Login;
use crate::tree::{self, VirtualPath};

/// A data connection on which nothing moves for this long is given up. The whole transfer has no limit.
const STALL_MAX: Duration = Duration::from_secs(300);

/// A step on a data connection, which fails when the client lets it stall.
pub(super) async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALL_MAX, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A transfer under way: how far it is, and how its end is told to the log.
#[derive(Debug)]
pub struct Transfer {
    pub id: TransferId,
    /// The FTP command.
    pub verb: &'static str,
    pub path: VirtualPath,
    admin: String,
    session: String,
    started: Instant,
    bytes: AtomicU64,
    /// All was received and the node has been told to keep it: nothing can call it back.
    committing: AtomicBool,
    end: AtomicU8,
}

/// How a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stand {
    UnderWay,
    Complete,
    Failed,
}

impl Transfer {
    pub fn begin(login: &Login, verb: &'static str, path: &VirtualPath) -> Self {
        Self {
            id: TransferId::new(),
            verb,
            path: path.clone(),
            admin: login.admin.name.clone(),
            session: login.session.to_string(),
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            committing: AtomicBool::new(false),
            end: AtomicU8::new(Stand::UnderWay as u8),
        }
    }

    /// Counts content that has moved.
    pub fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Content that has moved so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn set_committing(&self) {
        self.committing.store(true, Ordering::Release);
    }

    pub fn is_committing(&self) -> bool {
        self.committing.load(Ordering::Acquire)
    }

    pub fn stand(&self) -> Stand {
        match self.end.load(Ordering::Acquire) {
            end if end == Stand::Complete as u8 => Stand::Complete,
            end if end == Stand::Failed as u8 => Stand::Failed,
            _ => Stand::UnderWay,
        }
    }

    fn ended(&self, stand: Stand) {
        self.end.store(stand as u8, Ordering::Release);
    }

    /// The transfer is complete.
    pub fn complete(&self) {
        self.ended(Stand::Complete);
        let (bytes, ms) = (self.bytes(), self.elapsed().as_millis());
        let Self { id, verb, path, admin, session, .. } = self;
        tracing::info!(transfer = %id, verb, ?path, admin, session, bytes, ms, "transfer complete");
    }

    /// A listing is complete: of a backup there are as many as directories, so only those who look for them
    /// are told.
    pub fn listed(&self) {
        self.ended(Stand::Complete);
        let (bytes, ms) = (self.bytes(), self.elapsed().as_millis());
        let Self { id, verb, path, admin, session, .. } = self;
        tracing::debug!(transfer = %id, verb, ?path, admin, session, bytes, ms, "listing complete");
    }

    /// The client broke it off, or its data connection broke.
    pub fn broken_off(&self, why: &dyn std::fmt::Display) {
        self.ended(Stand::Failed);
        let (bytes, ms) = (self.bytes(), self.elapsed().as_millis());
        let Self { id, verb, path, admin, session, .. } = self;
        tracing::warn!(transfer = %id, verb, ?path, admin, session, bytes, ms, %why, "transfer broken off");
    }

    /// The tree failed.
    pub fn failed(&self, error: &tree::Error) {
        self.ended(Stand::Failed);
        let (bytes, ms) = (self.bytes(), self.elapsed().as_millis());
        let Self { id, verb, path, admin, session, .. } = self;
        let (code, error) = (reply::code(error), portolan_agent::process::chain(error));
        tracing::warn!(transfer = %id, verb, ?path, admin, session, bytes, ms, code, error, "transfer failed");
    }
}

/// Tells the log of a command other than a transfer that failed. What a client may simply not find, or may
/// not do, is its own business; what failed inside is told as a warning.
pub fn command_failed(login: &Login, verb: &'static str, path: &VirtualPath, error: &tree::Error) {
    let code = reply::code(error);
    let (admin, session) = (&login.admin.name, login.session);
    let error = portolan_agent::process::chain(error);
    if code < 500 || code == 552 {
        tracing::warn!(verb, ?path, admin, %session, code, error, "command failed");
    } else {
        tracing::debug!(verb, ?path, admin, %session, code, error, "command refused");
    }
}
