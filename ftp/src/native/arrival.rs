//! A data connection that was agreed on, from PASV until it stands: who comes, and the TLS around it.
//!
//! It goes on whenever it is polled: while the session waits for a command, so that a client may finish its handshake before
//! it sends the verb, and then as part of the transfer. A stranger is closed and the wait goes on; the reply at the deadline
//! names it. Where the transfer is refused before its 150, the connection is ended in order behind the reply.
//!
//! Who calls it: PASV and EPSV make it; `conversation` polls it; `data` opens it.
//! What it calls: `shared` for ports of many sessions, `tls` for the handshake and its proof.
//! What it never does: carry content.

use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use portolan_config::checked::listener::{ProxiedData, SessionReuse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::Stream;
use super::data::{Error, linger};
use super::shared::Slot;
use super::tls::{self, SessionTls};
use crate::Service;
use crate::bandwidth::Direction;
use portolan_net::Origin;
use portolan_net::proxy;

/// How long a client may take to connect after its transfer was answered with 150.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(30);
/// How long the wait goes on within that after a connection whose TLS did not prove that it is the client's: the client's own
/// connection is there by then, and one that never resumes is told so in time.
const UNPROVEN_MAX: Duration = Duration::from_secs(10);
/// How long a handshake that comes before its command waits for it.
const COMMAND_MAX: Duration = Duration::from_millis(50);
/// How long the connection of a refused transfer may still be on its way.
const LATE_MAX: Duration = Duration::from_secs(1);
/// How long its handshake and its end may take.
const PARTING_MAX: Duration = Duration::from_secs(5);
/// What a client may still send on it. It is read away: unread input would turn the end into a reset.
const PARTING_BYTES_MAX: usize = 1024 * 1024;

/// What client and server have agreed on for the next transfer.
#[derive(Debug, Default)]
pub(super) enum Setup {
    #[default]
    None,
    /// PASV, EPSV: the client connects.
    Passive(Box<Arrival>),
    /// PORT, EPRT: we connect there.
    Active(SocketAddr),
}

impl Setup {
    /// Goes on with what may come. Never ends; nothing is lost when this is dropped.
    pub(super) async fn go_on(&mut self, protected: bool) {
        if let Setup::Passive(arrival) = self {
            arrival.settle(protected).await;
        }
        pending().await
    }
}

/// Where the client comes to.
#[derive(Debug)]
pub(super) enum Door {
    /// A port of this session alone.
    Own(TcpListener),
    /// A place at a port of many sessions.
    Shared(Slot),
    /// Nobody is let in any more.
    Closed,
}

/// A connection that stands.
#[derive(Debug)]
pub(super) struct Come {
    pub(super) stream: Stream,
    /// Held where nothing has proved that this is the client: the client may still come.
    pub(super) slot: Option<Slot>,
}

/// A connection that is being judged; what it comes to, with the proof that it is the client's.
type Candidate = Mutex<Pin<Box<dyn Future<Output = Result<(Stream, bool), Error>> + Send>>>;

/// A data connection on its way.
pub(super) struct Arrival {
    door: Door,
    service: Arc<Service>,
    /// Where the control connection comes from: nobody else may be at the other end.
    origin: Origin,
    tls: Option<Arc<SessionTls>>,
    /// Known as soon as there is a command.
    direction: watch::Sender<Option<Direction>>,
    /// The one that has come last, and when.
    candidate: Option<(Candidate, Instant)>,
    outcome: Option<Result<Come, Error>>,
    strangers: usize,
    /// Why the last stranger was closed.
    refused: Option<Error>,
    /// When one of them came from the client's address.
    unproven: Option<Instant>,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival")
            .field("door", &self.door)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl Arrival {
    /// `tls` is that of the session, whether data connections are protected or not.
    pub(super) fn new(
        door: Door,
        service: &Arc<Service>,
        origin: Origin,
        tls: Option<&Arc<SessionTls>>,
    ) -> Box<Self> {
        Box::new(Self {
            door,
            service: Arc::clone(service),
            origin,
            tls: tls.cloned(),
            direction: watch::Sender::new(None),
            candidate: None,
            outcome: None,
            strangers: 0,
            refused: None,
            unproven: None,
        })
    }

    /// True when somebody is here.
    fn has_come(&self) -> bool {
        self.candidate.is_some() || self.outcome.is_some()
    }

    /// Goes on until it is known what comes of it. Nothing is lost when this is dropped.
    async fn settle(&mut self, protected: bool) {
        while self.outcome.is_none() {
            self.advance(protected).await;
        }
    }

    /// The connection, for a transfer that was answered with 150. `protected`: by the PROT of its command.
    ///
    /// # Errors
    /// None came in time, or what came is not the client's.
    pub(super) async fn open(mut self, protected: bool, direction: Direction) -> Result<Come, Error> {
        self.direction.send_replace(Some(direction));
        let begun = Instant::now();
        let handshake_max = self.service.listener.handshake_timeout;
        loop {
            match self.outcome.take() {
                None => {}
                Some(Err(error)) => return Err(error),
                Some(Ok(come)) => match (come, protected) {
                    (come @ Come { stream: Stream::Left(_), .. }, false)
                    | (come @ Come { stream: Stream::Right(_), .. }, true) => return Ok(come),
                    // PROT P has come since.
                    (Come { stream: Stream::Left(stream), slot }, true) => {
                        if let Some(slot) = slot {
                            self.door = Door::Shared(slot);
                        }
                        self.judge(stream, true);
                    }
                    (Come { stream: Stream::Right(_), .. }, false) => return Err(Error::Protected),
                },
            }
            match self.candidate {
                // Who is here has its own time, from the command on.
                Some((_, since)) => {
                    if timeout_at(since.max(begun) + handshake_max, self.advance(protected)).await.is_err() {
                        self.candidate = None;
                        self.refuse(Error::Tls(tls::Error::Slow(handshake_max)));
                    }
                }
                None => {
                    let mut deadline = begun + CONNECT_MAX;
                    if let Some(unproven) = self.unproven {
                        deadline = deadline.min(unproven.max(begun) + UNPROVEN_MAX);
                    }
                    if timeout_at(deadline, self.advance(protected)).await.is_err() {
                        return Err(self.refused.unwrap_or(Error::NotConnected));
                    }
                }
            }
        }
    }

    /// One step: takes a connection, or judges the one that is here.
    async fn advance(&mut self, protected: bool) {
        if let Some((candidate, _)) = &mut self.candidate {
            let judged = poll_fn(|context| candidate.get_mut().as_mut().poll(context)).await;
            self.candidate = None;
            match judged {
                Ok((stream, is_proven)) => {
                    let slot = match std::mem::replace(&mut self.door, Door::Closed) {
                        Door::Shared(slot) if !is_proven => Some(slot),
                        Door::Shared(_) | Door::Own(_) | Door::Closed => None,
                    };
                    self.outcome = Some(Ok(Come { stream, slot }));
                }
                Err(error) => self.refuse(error),
            }
            return;
        }
        let accepted = match &mut self.door {
            Door::Own(listener) => listener.accept().await.map(|(stream, from)| (stream, Some(from))),
            // Its address has been looked at.
            Door::Shared(slot) => slot.connection().await.map(|stream| (stream, None)),
            Door::Closed => Err(io::ErrorKind::NotConnected.into()),
        };
        match accepted {
            Ok((stream, from)) => {
                let from = from.map(|from| from.ip().to_canonical());
                match from.filter(|from| !self.may_come(*from)) {
                    Some(stranger) => self.refuse(Error::Stranger(stranger)),
                    None => self.judge(stream, protected),
                }
            }
            Err(error) => self.outcome = Some(Err(Error::Accept(error))),
        }
    }

    /// May the client, or the load balancer that it comes by, have this address?
    fn may_come(&self, from: IpAddr) -> bool {
        let proxy_protocol = &self.service.listener.proxy_protocol;
        match (self.origin.balancer, proxy_protocol.data) {
            (None, _) | (Some(_), ProxiedData::Direct) => from == self.origin.client.ip(),
            (Some(_), ProxiedData::Bare | ProxiedData::Header) => {
                proxy_protocol.trusted.iter().any(|balancer| balancer.contains(from))
            }
        }
    }

    /// Begins to judge a connection: the header of its load balancer, and its handshake when it has said something.
    fn judge(&mut self, stream: TcpStream, protected: bool) {
        let proxied = self.service.listener.proxy_protocol.data;
        let has_header = self.origin.balancer.is_some()
            && proxied == ProxiedData::Header
            && matches!(self.door, Door::Own(_));
        let client = self.origin.client.ip();
        let tls = self.tls.clone().filter(|_| protected);
        let reuse = self.service.listener.session_reuse;
        let mut direction = self.direction.subscribe();
        let judging = async move {
            let mut stream = stream;
            if has_header {
                is_announced(&mut stream, client).await?;
            }
            // Until its end is known to be in order, closing it is a reset.
            linger(&stream, Some(Duration::ZERO)).map_err(Error::Accept)?;
            let Some(tls) = tls else { return Ok((Stream::Left(stream), false)) };
            stream.readable().await.map_err(Error::Accept)?;
            // Most clients send the command at once, and the handshake differs by its direction.
            let direction = match timeout(COMMAND_MAX, direction.wait_for(Option::is_some)).await {
                Ok(known) => known.ok().and_then(|known| *known),
                Err(_) => None,
            };
            let (stream, is_proven) = tls.accept_data(stream, reuse, direction).await?;
            Ok((Stream::Right(Box::new(stream)), is_proven))
        };
        self.candidate = Some((Mutex::new(Box::pin(judging)), Instant::now()));
    }

    /// What came is not the client's, or failed. The wait goes on where the client may still come.
    fn refuse(&mut self, error: Error) {
        let reuse = self.service.listener.session_reuse;
        let is_strange = match &error {
            Error::Stranger(_) | Error::NoHeader => true,
            Error::Tls(tls::Error::Foreign) => true,
            Error::Tls(_) => reuse == SessionReuse::Require,
            Error::NotConnected | Error::Unreachable(_) | Error::Accept(_) | Error::Protected => false,
        };
        if !is_strange {
            self.outcome = Some(Err(error));
            return;
        }
        if matches!(error, Error::Tls(_)) {
            self.unproven.get_or_insert_with(Instant::now);
        }
        if let Door::Shared(slot) = &mut self.door {
            slot.wait_again();
        }
        self.strangers += 1;
        let (cause, strangers) = (portolan_telemetry::chain(&error), self.strangers);
        // Once is enough: strangers must not fill the log.
        if strangers == 1 {
            tracing::warn!(cause, "a data connection that is not the client's was closed");
        } else {
            tracing::debug!(cause, strangers, "a data connection that is not the client's was closed");
        }
        self.refused = Some(error);
    }

    /// Ends in order what has come: the client has its reply, and takes a reset for a failure of its own.
    async fn part(mut self: Box<Self>, protected: bool) {
        // The command has come. Nothing goes either way, so there is no ticket to leave unread.
        self.direction.send_replace(Some(Direction::FromClient));
        self.settle(protected).await;
        let Some(Ok(Come { mut stream, .. })) = self.outcome else { return };
        let tcp = match &stream {
            Stream::Left(stream) => stream,
            Stream::Right(stream) => stream.get_ref().0,
        };
        if linger(tcp, None).is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let (mut read, mut buffer) = (0, [0; 4096]);
        while read < PARTING_BYTES_MAX {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => read += count,
            }
        }
    }
}

/// Reads the header of a load balancer: does it speak for this client?
async fn is_announced(stream: &mut TcpStream, client: IpAddr) -> Result<(), Error> {
    match proxy::read(stream).await {
        Ok(Some(ends)) if ends.source.ip().to_canonical() == client => Ok(()),
        Ok(Some(ends)) => Err(Error::Stranger(ends.source.ip().to_canonical())),
        Ok(None) => Err(Error::NoHeader),
        Err(error) => {
            let cause = portolan_telemetry::chain(&error);
            tracing::warn!(cause, "a data connection came without a good PROXY header");
            Err(Error::NoHeader)
        }
    }
}

/// The data connection of a transfer that was refused, as far as nobody has come yet. It keeps its port for a moment, or until
/// the session needs another one.
#[derive(Debug)]
pub(super) struct Parting {
    arrival: Box<Arrival>,
    protected: bool,
    until: Instant,
}

impl Parting {
    /// `None`: there is none.
    pub(super) fn of(setup: Setup, protected: bool) -> Option<Self> {
        match setup {
            Setup::Passive(arrival) => Some(Self { arrival, protected, until: Instant::now() + LATE_MAX }),
            Setup::None | Setup::Active(_) => None,
        }
    }

    /// Waits until somebody is here, or it is too late; then the port is free for others. Nothing is lost when this is dropped.
    pub(super) async fn has_come(&mut self) -> bool {
        let Self { arrival, protected, until } = self;
        let coming = async {
            while !arrival.has_come() {
                arrival.advance(*protected).await;
            }
        };
        let has_come = timeout_at(*until, coming).await.is_ok();
        arrival.door = Door::Closed;
        has_come
    }

    /// Ends it in order, within a few seconds.
    pub(super) async fn finish(self) {
        let Self { arrival, protected, .. } = self;
        if timeout(PARTING_MAX, arrival.part(protected)).await.is_err() {
            tracing::debug!("the data connection of a refused transfer did not end in time");
        }
    }
}
