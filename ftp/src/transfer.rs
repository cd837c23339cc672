//! What an admin does, told once: each transfer that ends and each change, to log, audit and metrics.
//!
//! Who calls it: the engines.
//! What it calls: `tracing`, with events of the class of the audit, of which the xferlog is made too; `metrics`.
//! What it never does: hold up a transfer.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use itertools::Itertools as _;
use portolan_proto::id::{NodeId, TransferId};
use portolan_telemetry::chain;
use portolan_telemetry::log::AUDIT;

use super::{ControlConnection, reply};
use crate::metrics::{Outcome, Way};
use crate::verb::Verb;
use portolan_cluster::auth::Login;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{self, Changed};

/// A data connection on which nothing moves for this long is given up. The whole transfer has no limit.
pub const STALL_MAX: Duration = Duration::from_secs(300);

/// The end of a data connection looks the same whether the client is done or dead: a client that gives up may
/// still end its TLS in order. When it is dead its control connection ends too, but perhaps a moment later. So such
/// an upload waits this long before it is kept.
pub const END_GRACE: Duration = Duration::from_millis(50);

/// A step on a data connection, which fails when the client lets it stall.
pub async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALL_MAX, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A transfer under way: how far it is, and how its end is told. One that is dropped before it ended was cut.
#[derive(Debug)]
pub struct Transfer {
    pub id: TransferId,
    /// The FTP command.
    pub verb: Verb,
    pub path: VirtualPath,
    control: Arc<ControlConnection>,
    /// Of the command.
    span: tracing::Span,
    admin: String,
    way: Way,
    /// The representation type of FTP: `A` or `I`.
    representation: &'static str,
    /// Who sends or receives it.
    node: OnceLock<NodeId>,
    started: Instant,
    bytes: AtomicU64,
    /// Entries of a listing that no client can fetch.
    special: AtomicU64,
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
    pub fn begin(
        control: &Arc<ControlConnection>,
        login: &Login,
        verb: Verb,
        path: &VirtualPath,
        ascii: bool,
    ) -> Self {
        let (id, span) = (TransferId::new(), tracing::Span::current());
        span.record("transfer", tracing::field::display(id));
        Self {
            id,
            verb,
            path: path.clone(),
            control: Arc::clone(control),
            span,
            admin: login.admin.name.clone(),
            way: verb.content().expect("a transfer is of a verb with content"),
            representation: if ascii { "A" } else { "I" },
            node: OnceLock::new(),
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            special: AtomicU64::new(0),
            committing: AtomicBool::new(false),
            end: AtomicU8::new(Stand::UnderWay as u8),
        }
    }

    /// Notes who sends or receives it.
    pub fn set_node(&self, node: Option<&NodeId>) {
        if let Some(node) = node {
            // Where it went on elsewhere, the first one stays.
            self.node.set(node.clone()).ok();
        }
    }

    /// Counts content that has moved.
    pub fn moved(&self, bytes: usize) {
        if self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) == 0 && bytes > 0 {
            self.control.metrics.first_byte(self.verb, self.elapsed());
        }
        self.control.metrics.moved(self.way, bytes);
    }

    /// Counts entries of a listing that no client can fetch: links, sockets, pipes, devices.
    pub fn met_special(&self, entries: usize) {
        if entries > 0 {
            self.special.fetch_add(entries as u64, Ordering::Relaxed);
            self.control.metrics.met_special(entries);
            self.control.tally.met_special(entries);
        }
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

    /// The transfer, or the listing, is complete. Of a backup there are as many listings as directories, so only those
    /// who look for them are told.
    pub fn complete(&self) {
        self.ended(Outcome::Complete, None, None);
    }

    /// The client broke it off, or its data connection broke.
    pub fn broken_off(&self, why: &dyn std::fmt::Display) {
        self.ended(Outcome::Aborted, None, Some(&why.to_string()));
    }

    /// The tree failed, or refused.
    pub fn failed(&self, error: &tree::Error) {
        self.set_node(error.node());
        let code = reply::code(error);
        self.ended(outcome(code), Some(code), Some(&chain(error)));
    }

    fn ended(&self, outcome: Outcome, code: Option<u16>, cause: Option<&str>) {
        let stand = if outcome == Outcome::Complete { Stand::Complete } else { Stand::Failed };
        self.end.store(stand as u8, Ordering::Release);
        let took = self.elapsed();
        self.control.metrics.transferred(self.verb, outcome, took);
        self.control.tally.add(self.way, outcome, self.bytes());
        let (bytes, ms) = (self.bytes(), took.as_millis());
        let Self { id, verb, admin, way, .. } = self;
        let path = self.path.in_cluster();
        let node = || self.node.get().map(tracing::field::display);
        self.span.record("admin", admin).record("path", &path).record("node", node()).record("bytes", bytes);
        self.span.record("outcome", outcome.word());
        if outcome == Outcome::Failed {
            self.span.record("otel.status_code", "ERROR");
        }
        let (direction, result) = (way.word(), outcome.word());
        let special = self.special.load(Ordering::Relaxed);
        if special > 0 {
            tracing::warn!(
                target: AUDIT,
                parent: &self.control.span,
                event = "special", transfer = %id, verb = verb.name(), path, admin, special,
                "a listing has entries that no client can fetch"
            );
        }
        let quiet = matches!((way, outcome), (Way::Listing, Outcome::Complete | Outcome::Refused));
        let message = match outcome {
            _ if quiet => {
                tracing::debug!(
                    parent: &self.control.span,
                    transfer = %id, verb = verb.name(), path, admin, bytes, ms, code, cause, result, "listing ended"
                );
                return;
            }
            Outcome::Complete => "transfer complete",
            Outcome::Aborted => "transfer broken off",
            Outcome::Failed => "transfer failed",
            Outcome::Refused => "transfer refused",
        };
        let representation = self.representation;
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    target: AUDIT,
                    parent: &self.control.span,
                    event = "transfer",
                    transfer = %id,
                    verb = verb.name(),
                    direction,
                    path,
                    admin,
                    node = node(),
                    bytes,
                    ms,
                    r#type = representation,
                    result,
                    code,
                    cause,
                    "{message}"
                )
            };
        }
        if outcome == Outcome::Complete { tell!(info) } else { tell!(warn) }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.stand() == Stand::UnderWay {
            self.broken_off(if self.is_committing() {
                &"the front end cut it while the node stored it, which may have been done"
            } else {
                &"the front end cut it"
            });
        }
    }
}

/// What a failure with this code is counted as.
fn outcome(code: u16) -> Outcome {
    if code < 500 || code == 552 { Outcome::Failed } else { Outcome::Refused }
}

/// A change that a node was asked for and has not answered yet. Dropped like this, nobody knows whether it was made.
pub struct Unanswered<'a> {
    pub control: &'a ControlConnection,
    pub login: &'a Login,
    pub verb: Verb,
    pub path: &'a VirtualPath,
    pub to: Option<&'a VirtualPath>,
}

impl Unanswered<'_> {
    pub fn is_answered(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Self { control, login, verb, path, to } = self;
        let (admin, path, to) = (&login.admin.name, path.in_cluster(), to.map(VirtualPath::in_cluster));
        tracing::warn!(
            target: AUDIT,
            parent: &control.span,
            event = "change", verb = verb.name(), path, to, admin, result = "unknown",
            cause = "the front end cut it before the node had answered", "command cut; it may have been done"
        );
    }
}

/// Tells of a command that has changed something.
pub fn changed(
    control: &ControlConnection,
    login: &Login,
    verb: Verb,
    path: &VirtualPath,
    to: Option<&VirtualPath>,
    made: &Changed,
) {
    control.metrics.changed(verb, Outcome::Complete);
    let (admin, path, to) = (&login.admin.name, path.in_cluster(), to.map(VirtualPath::in_cluster));
    let node = made.nodes.iter().join(",");
    let result = Outcome::Complete.word();
    tracing::info!(target: AUDIT, parent: &control.span, event = "change", verb = verb.name(), path, to, admin, node, result, "changed");
}

/// Tells of a command other than a transfer that failed. What a client may simply not find is its own business; what
/// it may not do, and what failed inside, is told.
pub fn command_failed(
    control: &ControlConnection,
    login: &Login,
    verb: Verb,
    (path, to): (&VirtualPath, Option<&VirtualPath>),
    error: &tree::Error,
) {
    let code = reply::code(error);
    let outcome = outcome(code);
    let changes = verb.changes();
    if changes {
        control.metrics.changed(verb, outcome);
    }
    let event = if changes { "change" } else { "command" };
    let (admin, path, to) = (&login.admin.name, path.in_cluster(), to.map(VirtualPath::in_cluster));
    let node = error.node().map(tracing::field::display);
    let (cause, result) = (chain(error), outcome.word());
    if outcome == Outcome::Failed {
        tracing::warn!(
            target: AUDIT,
            parent: &control.span,
            event, verb = verb.name(), path, to, admin, node, result, code, cause, "command failed"
        );
    } else if matches!(error, tree::Error::NotGranted { .. }) {
        tracing::info!(
            target: AUDIT,
            parent: &control.span,
            event, verb = verb.name(), path, to, admin, result, code, cause, "command refused"
        );
    } else {
        tracing::debug!(parent: &control.span, verb = verb.name(), path, admin, code, cause, "command refused");
    }
}
