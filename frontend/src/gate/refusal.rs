//! Refusals: a client that is not let in is sent the reason, in one line.
//!
//! However many come at once, a refusal costs one write, or, where a listener speaks TLS from the first byte on, one
//! of a limited number of handshakes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portolan_config::checked::access::Scope;
use portolan_telemetry::log::AUDIT;
use rustix::net::{SendFlags, Shutdown, shutdown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::flow::Refusal;
use super::{Bystanders, Serve};

/// How long a refused client may take for its TLS handshake and its refusal.
const TLS_REFUSAL_MAX: Duration = Duration::from_secs(5);
/// Refusals inside TLS at once; who comes while there are more is closed without a word.
const TLS_REFUSALS_MAX: usize = 64;
/// A refused connection is kept so long for the client to read why: closing it while something that the client sent
/// is unread would take the reason back.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// Connections kept so at once. Of the others, those that have sent something may lose the reason.
const LINGERING_MAX: usize = 1_024;
/// Bytes that such a client may send meanwhile.
const LINGER_BYTES_MAX: u64 = 16 * 1024;
/// Lines of the log about refusals of one listener within a second; the others are counted, and told as one.
const LOG_LINES_MAX: u32 = 10;
const LOG_PERIOD: Duration = Duration::from_secs(1);

/// Why a connection is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("Connections from your address are not accepted here.")]
    Denied { scope: Scope, rule: Option<String> },
    #[error("Too many logins from your address have failed; come again after {until}.")]
    Banned { until: String },
    #[error("{0}")]
    Full(Refusal),
}

impl Refused {
    pub const REASONS: [&str; 3] = ["access", "banned", "limit"];

    /// For metrics and audit: one of [`Refused::REASONS`].
    pub fn reason(&self) -> &'static str {
        let [access, banned, limit] = Self::REASONS;
        match self {
            Refused::Denied { .. } => access,
            Refused::Banned { .. } => banned,
            Refused::Full(_) => limit,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Full(refusal)
    }
}

/// Waits for the other end to close its connection, for a while.
pub(super) async fn read_away(stream: TcpStream) {
    let mut rest = stream.take(LINGER_BYTES_MAX);
    let mut nowhere = tokio::io::sink();
    let read_away = tokio::io::copy(&mut rest, &mut nowhere);
    // What it sends, and whether it closes in time, does not matter.
    drop(tokio::time::timeout(LINGER_MAX, read_away).await);
}

/// Refuses the connections of one listener.
pub(super) struct Refuser {
    listener: Arc<str>,
    bystanders: Bystanders,
    tls: Arc<Semaphore>,
    lingering: Arc<Semaphore>,
    lines: Arc<Mutex<Lines>>,
}

/// How many lines the log has had this second.
#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    left_out: u32,
}

impl Refuser {
    pub(super) fn new(bystanders: Bystanders, listener: Arc<str>) -> Self {
        Self {
            listener,
            bystanders,
            tls: Arc::new(Semaphore::new(TLS_REFUSALS_MAX)),
            lingering: Arc::new(Semaphore::new(LINGERING_MAX)),
            lines: Arc::new(Mutex::new(Lines { since: Instant::now(), written: 0, left_out: 0 })),
        }
    }

    /// Tells the client why, and closes its connection.
    pub(super) fn refuse(&self, service: &impl Serve, stream: TcpStream, from: SocketAddr, why: Refused) {
        self.log(service, from, &why);
        let text = service.refusal(&why);
        if let Some(config) = service.implicit_tls() {
            let Ok(turn) = Arc::clone(&self.tls).try_acquire_owned() else { return };
            self.bystanders.spawn(async move {
                let _turn = turn;
                let told = tokio::time::timeout(TLS_REFUSAL_MAX, async {
                    let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
                    stream.write_all(text.as_bytes()).await?;
                    stream.shutdown().await
                });
                if !matches!(told.await, Ok(Ok(()))) {
                    tracing::debug!(%from, "a refused client did not wait for the reason");
                }
            });
            return;
        }
        // A line always fits into the buffer of a new connection.
        let told = rustix::net::send(&stream, text.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if told.is_err() || shutdown(&stream, Shutdown::Write).is_err() {
            return;
        }
        let Ok(turn) = Arc::clone(&self.lingering).try_acquire_owned() else { return };
        self.bystanders.spawn(async move {
            let _turn = turn;
            read_away(stream).await;
        });
    }

    /// Counts a line, and tells of those that may not be written when the second is over.
    fn may_write(&self) -> bool {
        let mut lines = self.lines.lock();
        if lines.left_out == 0 && lines.since.elapsed() >= LOG_PERIOD {
            (lines.since, lines.written) = (Instant::now(), 0);
        }
        if lines.written < LOG_LINES_MAX {
            lines.written += 1;
            return true;
        }
        lines.left_out += 1;
        if lines.left_out == 1 {
            let (listener, lines) = (Arc::clone(&self.listener), Arc::clone(&self.lines));
            self.bystanders.spawn(async move {
                tokio::time::sleep(LOG_PERIOD).await;
                let mut lines = lines.lock();
                let left_out = lines.left_out;
                *lines = Lines { since: Instant::now(), written: 0, left_out: 0 };
                tracing::warn!(target: AUDIT, event = "connection_refused", %listener, left_out, "more connections were refused");
            });
        }
        false
    }

    fn log(&self, service: &impl Serve, from: SocketAddr, why: &Refused) {
        service.count_refused(why);
        if !self.may_write() {
            return;
        }
        let (listener, client, event) =
            (&*self.listener, tracing::field::display(from), "connection_refused");
        let reason = why.reason();
        match why {
            Refused::Denied { scope, rule } => {
                let rule = rule.as_deref().unwrap_or("(none allows it)");
                tracing::warn!(target: AUDIT, event, listener, client, reason, %scope, rule, "connection refused: access rules");
            }
            Refused::Banned { until } => {
                tracing::warn!(target: AUDIT, event, listener, client, reason, until, "connection refused: its address is banned");
            }
            Refused::Full(refusal) => {
                let (place, limit, value) = (&refusal.place, refusal.limit.key(), refusal.value);
                tracing::warn!(target: AUDIT, event, listener, client, reason, %place, limit, value, "connection refused: too many");
            }
        }
    }
}
