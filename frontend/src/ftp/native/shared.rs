//! A few passive ports for many sessions: who comes to one is told apart by its address, and where clients share an
//! address by the TLS session that it resumes.
//!
//! Each port is listened to all the time, and each session that waits has a place: a port and the address that will
//! come to it. Two sessions have the same place only if TLS tells them apart for sure, because a connection that came
//! to the wrong session would be content under the wrong name. What cannot be told apart is closed.
//!
//! Who calls it: PASV and EPSV, and `data` for the connection.
//! What it calls: `tls`, for whose session a client resumes; `proxy`.
//! What it never does: guess.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use portolan_config::checked::listener::{ProxiedData, ProxyProtocol};
use portolan_config::units::PortRange;
use rustix::net::RecvFlags;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::data::linger;
use super::tls::SessionTls;
use crate::ftp::{Origin, passive, proxy};

/// How long a session waits for a place.
const PLACE_MAX: Duration = Duration::from_secs(5);
/// A place that was left although nobody came is not given away for this long: a late connection must not come to
/// another session.
const LATE_MAX: Duration = Duration::from_secs(30);
/// Connections that have not said yet whose they are, at once; and how long one has for it.
const UNDECIDED_MAX: usize = 512;
const DECISION_MAX: Duration = Duration::from_secs(30);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A ClientHello is looked at up to this size. Those of clients have some hundred bytes.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// How often it is looked whether more of it has come.
const HELLO_STEP: Duration = Duration::from_millis(2);

/// Who will come to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Comer {
    Client(IpAddr),
    /// A load balancer, which does not say for whom.
    Balancer,
}

type Place = (SocketAddr, Comer);

/// The passive ports of one listener. They live on when it is made anew.
#[derive(Debug)]
pub(crate) struct SharedPorts {
    ports: Vec<u16>,
    shared: Arc<Shared>,
    /// By our own address; the sockets are closed with this.
    bound: Mutex<HashMap<IpAddr, Vec<Port>>>,
}

#[derive(Debug)]
struct Port {
    number: u16,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    proxy_protocol: ArcSwap<ProxyProtocol>,
    places: Mutex<Places>,
    /// A place has become free.
    freed: Notify,
    undecided: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Places {
    waiting: HashMap<Place, Vec<Waiter>>,
    /// When places were left although nobody had come.
    left: HashMap<Place, Instant>,
    next_id: u64,
    /// Where the search for a port begins.
    next_port: usize,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    /// `None`: TLS does not tell for sure which connection is its.
    tls: Option<Arc<SessionTls>>,
    /// Another session has, or had, the same place: nothing but TLS tells who comes.
    is_shared: bool,
    come: oneshot::Sender<TcpStream>,
}

/// A session's place at a port. Left when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    place: Place,
    id: u64,
    come: oneshot::Receiver<TcpStream>,
    shared: Arc<Shared>,
}

impl SharedPorts {
    pub(crate) fn new(range: PortRange, proxy_protocol: &ProxyProtocol) -> Self {
        let shared = Shared {
            proxy_protocol: ArcSwap::from_pointee(proxy_protocol.clone()),
            places: Mutex::default(),
            freed: Notify::new(),
            undecided: Arc::new(Semaphore::new(UNDECIDED_MAX)),
        };
        Self {
            ports: (range.first..=range.last).collect(),
            shared: Arc::new(shared),
            bound: Mutex::default(),
        }
    }

    pub(crate) fn is_of(&self, range: PortRange) -> bool {
        self.ports.first() == Some(&range.first) && self.ports.last() == Some(&range.last)
    }

    /// Takes over what a reload changes.
    pub(crate) fn update(&self, proxy_protocol: &ProxyProtocol) {
        self.shared.proxy_protocol.store(Arc::new(proxy_protocol.clone()));
    }

    /// A place for a session, which may have to wait for one. `tls` is given where the client surely resumes the TLS
    /// session of its control connection.
    ///
    /// # Errors
    /// No port can be listened to, or none was free for this client in time.
    pub(super) async fn place(&self, origin: &Origin, tls: Option<&Arc<SessionTls>>) -> io::Result<Slot> {
        let comer = match (origin.balancer, self.shared.proxy_protocol.load().data) {
            (Some(_), ProxiedData::Bare) => Comer::Balancer,
            (None, _) | (Some(_), ProxiedData::Direct | ProxiedData::Header) => {
                Comer::Client(origin.client.ip())
            }
        };
        let ports = self.listen(origin.own)?;
        let deadline = tokio::time::Instant::now() + PLACE_MAX;
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            // Before it is looked, so that nothing is missed.
            freed.as_mut().enable();
            if let Some(slot) = Shared::take(&self.shared, &ports, comer, tls) {
                return Ok(slot);
            }
            // What was left long enough ago is free without anybody saying so.
            let look_again = deadline.min(tokio::time::Instant::now() + Duration::from_millis(250));
            if tokio::time::timeout_at(look_again, freed).await.is_err()
                && tokio::time::Instant::now() >= deadline
            {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
    }

    /// Listens to all ports at one of our addresses, as far as nobody else does.
    fn listen(&self, own: IpAddr) -> io::Result<Vec<SocketAddr>> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = bound.entry(own).or_default();
        let mut failure = None;
        if ports.len() < self.ports.len() {
            for number in &self.ports {
                if ports.iter().any(|port| port.number == *number) {
                    continue;
                }
                match passive::listen_shared(SocketAddr::new(own, *number)) {
                    Ok(listener) => {
                        let accepting =
                            Arc::clone(&self.shared).accept(listener, SocketAddr::new(own, *number));
                        let accepting = AbortOnDropHandle::new(tokio::spawn(accepting));
                        ports.push(Port { number: *number, _accepting: accepting });
                    }
                    Err(error) => failure = Some(error),
                }
            }
        }
        match failure {
            Some(error) if ports.is_empty() => Err(error),
            _ => Ok(ports.iter().map(|port| SocketAddr::new(own, port.number)).collect()),
        }
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place that is free, or one that TLS can share.
    fn take(
        self: &Arc<Self>,
        ports: &[SocketAddr],
        comer: Comer,
        tls: Option<&Arc<SessionTls>>,
    ) -> Option<Slot> {
        let mut places = self.places();
        let now = Instant::now();
        places.left.retain(|_, left| now.duration_since(*left) < LATE_MAX);
        let first = places.next_port;
        places.next_port = first.wrapping_add(1);
        let round =
            || (0..ports.len()).map(|step| (ports[(first % ports.len() + step) % ports.len()], comer));
        let waiters = |place: &Place| places.waiting.get(place).map(Vec::as_slice).unwrap_or_default();
        let was_left = |place: &Place| places.left.contains_key(place);
        let free = |place: &Place| waiters(place).is_empty() && !was_left(place);
        let shareable = |place: &Place| {
            let differs =
                |other: &Waiter, own| other.tls.as_ref().is_some_and(|other| other.differs_from(own));
            !was_left(place) && tls.is_some_and(|own| waiters(place).iter().all(|other| differs(other, own)))
        };
        let place = round().find(free).or_else(|| {
            // The one with the fewest.
            round().filter(shareable).min_by_key(|place| waiters(place).len())
        })?;
        let id = places.next_id;
        places.next_id += 1;
        let (sender, come) = oneshot::channel();
        let waiters = places.waiting.entry(place).or_default();
        let is_shared = !waiters.is_empty();
        waiters.iter_mut().for_each(|other| other.is_shared = true);
        waiters.push(Waiter { id, tls: tls.cloned(), is_shared, come: sender });
        Some(Slot { place, id, come, shared: Arc::clone(self) })
    }

    /// Takes connections to one port.
    async fn accept(self: Arc<Self>, listener: TcpListener, own: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.arrived(stream, own, from.ip().to_canonical()),
                Err(error) => {
                    tracing::warn!(%error, address = %own, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn arrived(self: &Arc<Self>, stream: TcpStream, own: SocketAddr, from: IpAddr) {
        let proxy_protocol = self.proxy_protocol.load_full();
        let is_balancer = proxy_protocol.trusted.iter().any(|balancer| balancer.contains(from));
        let known = match (is_balancer, proxy_protocol.data) {
            (true, ProxiedData::Header) => None,
            (true, ProxiedData::Bare) => Some(Comer::Balancer),
            (false, _) | (true, ProxiedData::Direct) => Some(Comer::Client(from)),
        };
        let stream = match known {
            Some(comer) => match self.deliver(stream, (own, comer), None) {
                Ok(()) => return,
                Err(undecided) => undecided,
            },
            None => stream,
        };
        let Ok(turn) = Arc::clone(&self.undecided).try_acquire_owned() else {
            tracing::warn!(%from, "a data connection was closed: too many have not said whose they are");
            return refuse(stream);
        };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = turn;
            // What has not been said by then will not be.
            drop(tokio::time::timeout(DECISION_MAX, shared.find_out(stream, own, from, known)).await);
        });
    }

    /// Asks a connection whose it is, and delivers it.
    async fn find_out(&self, mut stream: TcpStream, own: SocketAddr, from: IpAddr, known: Option<Comer>) {
        let comer = match known {
            Some(comer) => comer,
            None => match proxy::read(&mut stream).await {
                Ok(Some(ends)) => Comer::Client(ends.source.ip().to_canonical()),
                // The balancer only looks whether somebody is here.
                Ok(None) => return,
                Err(error) => {
                    let cause = portolan_agent::process::chain(&error);
                    tracing::warn!(%from, cause, "a data connection came without a good PROXY header");
                    return refuse(stream);
                }
            },
        };
        let stream = match self.deliver(stream, (own, comer), None) {
            Ok(()) => return,
            Err(stream) => stream,
        };
        match hello(&stream).await {
            Ok(hello) => {
                if let Err(stream) = self.deliver(stream, (own, comer), Some(&hello)) {
                    tracing::warn!(%from, "a data connection was closed: it does not tell whose it is");
                    refuse(stream);
                }
            }
            Err(error) => {
                tracing::warn!(%from, %error, "a data connection was closed: it does not tell whose it is");
                refuse(stream);
            }
        }
    }

    /// Gives a connection to who waits for it; `hello` is what it has begun its TLS with. Back if that takes more to
    /// tell.
    fn deliver(&self, stream: TcpStream, place: Place, hello: Option<&[u8]>) -> Result<(), TcpStream> {
        let waiter = {
            let mut places = self.places();
            let Some(waiters) = places.waiting.get_mut(&place) else {
                tracing::debug!(address = %place.0, comer = ?place.1, "a data connection that nobody waits for was closed");
                refuse(stream);
                return Ok(());
            };
            let index = match (waiters.as_slice(), hello) {
                ([only], None) if !only.is_shared => Some(0),
                (_, None) => None,
                // Also where only one is left: it may be another's connection.
                (several, Some(hello)) => several
                    .iter()
                    .position(|waiter| waiter.tls.as_ref().is_some_and(|tls| tls.is_offered_in(hello))),
            };
            let Some(index) = index else { return Err(stream) };
            let waiter = waiters.swap_remove(index);
            if waiters.is_empty() {
                places.waiting.remove(&place);
            }
            waiter
        };
        self.freed.notify_waiters();
        // A session that has gone meanwhile wants it no more.
        if let Err(stream) = waiter.come.send(stream) {
            refuse(stream);
        }
        Ok(())
    }
}

impl Slot {
    pub(super) fn port(&self) -> u16 {
        self.place.0.port()
    }

    /// The connection.
    ///
    /// # Errors
    /// Nobody waits for it any more.
    pub(super) async fn connection(&mut self) -> io::Result<TcpStream> {
        (&mut self.come).await.map_err(|_| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut places = self.shared.places();
        let Some(waiters) = places.waiting.get_mut(&self.place) else { return };
        let Some(index) = waiters.iter().position(|waiter| waiter.id == self.id) else { return };
        waiters.swap_remove(index);
        if waiters.is_empty() {
            places.waiting.remove(&self.place);
        }
        places.left.insert(self.place, Instant::now());
        drop(places);
        self.shared.freed.notify_waiters();
    }
}

/// Closes a connection so that its client sees at once that it is not served.
fn refuse(stream: TcpStream) {
    if let Err(error) = linger(&stream, Some(Duration::ZERO)) {
        tracing::debug!(%error, "a data connection was closed in order and not reset");
    }
}

/// Waits for a whole ClientHello, which stays to be read.
async fn hello(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; HELLO_BYTES_MAX];
    loop {
        stream.readable().await?;
        let count = match rustix::net::recv(stream, &mut buffer[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if SessionTls::is_whole_hello(&buffer[..count])? {
            buffer.truncate(count);
            return Ok(buffer);
        }
        if count == HELLO_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // What has come stays readable, so nothing wakes us.
        tokio::time::sleep(HELLO_STEP).await;
    }
}
