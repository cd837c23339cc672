//! A control connection as others than its session see it: whose it is, what it does, how it is ended.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use portolan_proto::id::SessionId;
use portolan_telemetry::log::{AUDIT, CONNECTION};
use portolan_telemetry::trace::TRACE;
use tokio::net::TcpStream;
use tokio::sync::watch;

use portolan_net::Origin;
use portolan_net::socket::keep_alive;

use super::reply::Reply;
use super::transfer::Transfer;
use crate::metrics::{Metrics, Outcome, Way};
use crate::verb::Verb;

/// Why a session is to end although its client has not asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It is not to end.
    No,
    /// The front end stops: as soon as nothing is under way.
    Drain,
    /// The operator says so: at once.
    Kick,
}

impl Ending {
    pub fn reply(self) -> Reply {
        match self {
            Ending::No | Ending::Drain => Reply::new(421, "The service stops; closing the connection."),
            Ending::Kick => Reply::new(421, "Session closed by the operator."),
        }
    }
}

/// A second handle on a control connection: to see whether its client is still there, to show what it does,
/// and to end it.
#[derive(Debug)]
pub struct ControlConnection {
    pub id: SessionId,
    pub origin: Origin,
    /// The name of its listener.
    pub listener: Arc<str>,
    pub since: SystemTime,
    /// All that is logged for it belongs to this span.
    pub span: tracing::Span,
    pub metrics: Arc<Metrics>,
    pub tally: Tally,
    socket: OwnedFd,
    opened: Instant,
    /// How many things that take their time are under way.
    transfers: watch::Sender<usize>,
    logged_in: AtomicBool,
    shown: Mutex<Shown>,
    ending: watch::Sender<Ending>,
}

/// What a session has done, all in all.
#[derive(Debug, Default)]
pub struct Tally {
    /// By [`Way`].
    complete: [AtomicU64; 3],
    /// The same.
    bytes: [AtomicU64; 3],
    /// Of every kind, and not complete for any reason.
    failed: AtomicU64,
    /// Entries of listings that no client can fetch.
    special: AtomicU64,
}

impl Tally {
    pub fn add(&self, way: Way, outcome: Outcome, bytes: u64) {
        self.bytes[way as usize].fetch_add(bytes, Ordering::Relaxed);
        let count = if outcome == Outcome::Complete { &self.complete[way as usize] } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn met_special(&self, entries: usize) {
        self.special.fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// What follows is another's.
    fn reset(&self) {
        let counts = self.complete.iter().chain(&self.bytes).chain([&self.failed, &self.special]);
        counts.for_each(|count| count.store(0, Ordering::Relaxed));
    }
}

/// What the operator is shown of a session.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// Who has logged in.
    pub admin: Option<String>,
    /// What is being transferred.
    pub transfer: Option<Arc<Transfer>>,
}

impl ControlConnection {
    /// Prepares a new connection and takes a handle on it.
    pub fn new(
        stream: &TcpStream,
        origin: Origin,
        listener: Arc<str>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        // Nagle's algorithm and delayed acknowledgements cost 40 ms for each reply after a transfer.
        stream.set_nodelay(true)?;
        keep_alive(stream)?;
        let id = SessionId::new();
        let span = tracing::info_span!(
            target: CONNECTION,
            "connection",
            session = %id,
            client = %origin.client,
            listener = &*listener,
        );
        Ok(Self {
            id,
            origin,
            listener,
            span,
            metrics,
            tally: Tally::default(),
            since: SystemTime::now(),
            socket: stream.as_fd().try_clone_to_owned()?,
            opened: Instant::now(),
            transfers: watch::Sender::new(0),
            logged_in: AtomicBool::new(false),
            shown: Mutex::default(),
            ending: watch::Sender::new(Ending::No),
        })
    }

    /// The span of a command, which is a trace of its own, linked to that of the connection.
    pub fn command_span(&self, verb: Verb) -> tracing::Span {
        use tracing::field::Empty;
        let span = tracing::info_span!(
            target: TRACE,
            parent: None,
            "command",
            otel.name = verb.name(),
            otel.kind = "server",
            otel.status_code = Empty,
            session = %self.id,
            transfer = Empty,
            admin = Empty,
            path = Empty,
            node = Empty,
            bytes = Empty,
            outcome = Empty,
            reply = Empty,
        );
        portolan_telemetry::trace::link(&span, &self.span);
        span
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

    fn shown_mut(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock()
    }

    pub fn shown(&self) -> Shown {
        self.shown_mut().clone()
    }

    /// Counts something that takes its time, as long as the guard lives, and shows it where it is a transfer.
    pub fn begin_transfer(self: &Arc<Self>, transfer: Option<Arc<Transfer>>) -> TransferUnderWay {
        self.shown_mut().transfer = transfer;
        self.transfers.send_modify(|transfers| *transfers += 1);
        TransferUnderWay(Arc::clone(self))
    }

    /// Something that takes its time is under way.
    pub fn is_busy(&self) -> bool {
        *self.transfers.borrow() > 0
    }

    /// Waits until nothing that takes its time is under way.
    pub async fn idle(&self) {
        // The sender is part of this.
        self.transfers.subscribe().wait_for(|transfers| *transfers == 0).await.ok();
    }

    /// Sees each time that something that takes its time begins or ends.
    pub fn watch_transfers(&self) -> watch::Receiver<usize> {
        self.transfers.subscribe()
    }

    /// Tells of the session, which is over: an operator sees at a glance whether all of a backup went well.
    pub fn tell_end(&self) {
        // Whoever has not logged in has done nothing; and it is told once.
        let Some(admin) = self.shown_mut().admin.take() else { return };
        let [downloads, uploads, listings] =
            self.tally.complete.each_ref().map(|count| count.load(Ordering::Relaxed));
        let [down_bytes, up_bytes, _] =
            self.tally.bytes.each_ref().map(|count| count.load(Ordering::Relaxed));
        let failed = self.tally.failed.load(Ordering::Relaxed);
        let special = self.tally.special.load(Ordering::Relaxed);
        let seconds = self.opened.elapsed().as_secs();
        tracing::info!(
            target: AUDIT,
            parent: &self.span,
            event = "session", admin, downloads, down_bytes, uploads, up_bytes, listings, failed, special, seconds, "session ended"
        );
    }

    /// Who has logged in; `None`: nobody any more.
    pub fn set_admin(&self, admin: Option<&str>) {
        if admin.is_none() {
            self.tell_end();
            self.tally.reset();
        }
        self.logged_in.store(admin.is_some(), Ordering::Release);
        self.shown_mut().admin = admin.map(str::to_owned);
    }

    pub fn is_logged_in(&self) -> bool {
        self.logged_in.load(Ordering::Acquire)
    }

    /// Asks the session to end. A stronger reason takes the place of a weaker one.
    pub fn ask_to_end(&self, ending: Ending) {
        self.ending.send_if_modified(|present| {
            let stronger = ending > *present;
            *present = ending.max(*present);
            stronger
        });
    }

    /// Is the session asked to end?
    pub fn is_asked_to_end(&self) -> Ending {
        *self.ending.borrow()
    }

    /// Waits until the session is asked to end, for a reason at least as strong.
    pub async fn asked_to_end(&self, at_least: Ending) -> Ending {
        let mut asked = self.ending.subscribe();
        // The sender is part of this.
        asked.wait_for(|ending| *ending >= at_least).await.map_or(Ending::No, |ending| *ending)
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
        self.0.shown_mut().transfer = None;
        self.0.transfers.send_modify(|transfers| *transfers -= 1);
    }
}

/// After the last transfer, which has its share in it.
impl Drop for ControlConnection {
    fn drop(&mut self) {
        self.tell_end();
    }
}
