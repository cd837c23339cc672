//! One info line for each transfer that ends, and the cause of each failure, once.

use std::time::{Duration, Instant};

use portolan_proto::id::TransferId;

use super::reply;
use crate::auth::Login;
use crate::tree::{self, VirtualPath};

/// A data connection on which nothing moves for this long is given up. The whole transfer has no limit.
pub const STALL_MAX: Duration = Duration::from_secs(300);

/// A transfer being told to the log.
#[derive(Debug)]
pub struct Transfer {
    pub id: TransferId,
    verb: &'static str,
    path: String,
    admin: String,
    session: String,
    started: Instant,
}

impl Transfer {
    /// `verb` is the FTP command.
    pub fn begin(login: &Login, verb: &'static str, path: &VirtualPath) -> Self {
        Self {
            id: TransferId::new(),
            verb,
            path: path.to_string(),
            admin: login.admin.name.clone(),
            session: login.session.to_string(),
            started: Instant::now(),
        }
    }

    /// The transfer is complete.
    pub fn complete(&self, bytes: u64) {
        let ms = self.started.elapsed().as_millis();
        let Self { id, verb, path, admin, session, .. } = self;
        tracing::info!(transfer = %id, verb, path, admin, session, bytes, ms, "transfer complete");
    }

    /// The client broke it off, or its data connection broke.
    pub fn broken_off(&self, bytes: u64, why: &dyn std::fmt::Display) {
        let ms = self.started.elapsed().as_millis();
        let Self { id, verb, path, admin, session, .. } = self;
        tracing::warn!(transfer = %id, verb, path, admin, session, bytes, ms, %why, "transfer broken off");
    }

    /// The tree failed.
    pub fn failed(&self, bytes: u64, error: &tree::Error) {
        let ms = self.started.elapsed().as_millis();
        let Self { id, verb, path, admin, session, .. } = self;
        let (code, error) = (reply::code(error), portolan_agent::process::chain(error));
        tracing::warn!(transfer = %id, verb, path, admin, session, bytes, ms, code, error, "transfer failed");
    }
}

/// Tells the log of a command other than a transfer that failed. What a client may simply not find, or may
/// not do, is its own business; what failed inside is told as a warning.
pub fn command_failed(login: &Login, verb: &'static str, path: &VirtualPath, error: &tree::Error) {
    let code = reply::code(error);
    let (admin, session) = (&login.admin.name, login.session);
    let error = portolan_agent::process::chain(error);
    if code < 500 || code == 552 {
        tracing::warn!(verb, %path, admin, %session, code, error, "command failed");
    } else {
        tracing::debug!(verb, %path, admin, %session, code, error, "command refused");
    }
}
