//! A few passive ports for many sessions: who comes to one is told by its address.
//!
//! Each port is listened to all the time. A place is a port and who will come to it; it belongs to one session at a time,
//! because a connection that came to the wrong session would be content under the wrong name. Of one client's sessions each
//! has a place from PASV until the connection has proved by TLS that it is that client's; without such a proof until its
//! transfer has ended. The others wait for their turn. TLS cannot tell a client's sessions apart: programs have one memory of
//! TLS sessions for several connections.
//!
//! Who calls it: PASV and EPSV, and `data` for the connection.
//! What it calls: `proxy`.
//! What it never does: guess.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use portolan_config::checked::listener::{ProxiedData, ProxyProtocol};
use portolan_config::units::PortRange;
use portolan_proto::id::SessionId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::data::linger;
use crate::ftp::{Origin, passive, proxy};

/// How long a session waits for a place.
const PLACE_MAX: Duration = Duration::from_secs(10);
/// How often those that wait look whether a place has become free by time alone.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A place that was left although nobody had come is not given to another session for this long: a late connection must
/// not come to it.
const LATE_MAX: Duration = Duration::from_secs(30);
/// A place is taken from who does nothing with it for this long, when others wait.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// Such places that one session may leave behind.
const LEFT_MAX: usize = 2;
/// Connections of load balancers that have not said yet for whom they are, at once; and how long one has for it.
const UNDECIDED_MAX: usize = 512;
const DECISION_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who will come to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Comer {
    /// A client by itself.
    Client(IpAddr),
    /// A client by a load balancer, which says so.
    Announced(IpAddr),
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
    undecided: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Places {
    /// Those that are not free.
    taken: HashMap<Place, Taken>,
    /// Who waits for a place, in the order in which they came. By our own address.
    queues: HashMap<(IpAddr, Comer), VecDeque<Queued>>,
    /// When places were left, in that order.
    left: VecDeque<(Instant, Place, u64)>,
    next_id: u64,
    /// Where the search for a port begins.
    next_port: usize,
}

#[derive(Debug)]
struct Taken {
    /// One stay of one session.
    id: u64,
    session: SessionId,
    since: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The session waits for its client.
    Waits(oneshot::Sender<TcpStream>),
    /// Somebody has come, and may not be the client yet.
    Served,
    /// The session has gone, and its client may still come.
    Left,
}

#[derive(Debug)]
struct Queued {
    guest: Guest,
    ports: Vec<SocketAddr>,
    give: oneshot::Sender<Slot>,
}

/// A session that wants a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest {
    pub(super) session: SessionId,
    /// By TLS: a connection that was given up does not pass for the next one.
    pub(super) is_protected: bool,
}

/// A session's place at a port. Free again, or left, when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    place: Place,
    id: u64,
    /// The client knows of it.
    is_told: bool,
    /// Who came was not the client, which may still come.
    is_mistaken: bool,
    come: oneshot::Receiver<TcpStream>,
    shared: Arc<Shared>,
}

impl SharedPorts {
    pub(crate) fn new(range: PortRange, proxy_protocol: &ProxyProtocol) -> Self {
        let shared = Shared {
            proxy_protocol: ArcSwap::from_pointee(proxy_protocol.clone()),
            places: Mutex::default(),
            undecided: Arc::new(Semaphore::new(UNDECIDED_MAX)),
        };
        Self {
            ports: (range.first..=range.last).collect(),
            shared: Arc::new(shared),
            bound: Mutex::default(),
        }
    }

    /// Takes over what a reload changes.
    pub(crate) fn update(&self, proxy_protocol: &ProxyProtocol) {
        self.shared.proxy_protocol.store(Arc::new(proxy_protocol.clone()));
    }

    /// A place for a session, which may have to wait for its turn.
    ///
    /// # Errors
    /// No port can be listened to, or none was free for this client in time.
    pub(super) async fn place(&self, origin: &Origin, guest: Guest) -> io::Result<Slot> {
        let client = origin.client.ip();
        let comer = match (origin.balancer, self.shared.proxy_protocol.load().data) {
            (None, _) | (Some(_), ProxiedData::Direct) => Comer::Client(client),
            (Some(_), ProxiedData::Header) => Comer::Announced(client),
            (Some(_), ProxiedData::Bare) => Comer::Balancer,
        };
        let ports = self.listen(origin.own)?;
        let queue = (origin.own, comer);
        let (give, mut given) = oneshot::channel();
        self.shared.changed(queue, |places| {
            places.queues.entry(queue).or_default().push_back(Queued { guest, ports, give });
        });
        let deadline = tokio::time::Instant::now() + PLACE_MAX;
        loop {
            let look_again = deadline.min(tokio::time::Instant::now() + LOOK_EVERY);
            match tokio::time::timeout_at(look_again, &mut given).await {
                Ok(slot) => {
                    let mut slot = slot.map_err(|_| io::ErrorKind::AddrInUse)?;
                    slot.is_told = true;
                    return Ok(slot);
                }
                Err(_) if tokio::time::Instant::now() >= deadline => {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                Err(_) => self.shared.changed(queue, |_| {}),
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

impl Places {
    /// Frees what was left long enough ago.
    fn expire(&mut self) {
        let is_late = |(since, ..): &mut (Instant, Place, u64)| since.elapsed() >= LATE_MAX;
        while let Some((_, place, id)) = self.left.pop_front_if(is_late) {
            if self.taken.get(&place).is_some_and(|taken| taken.id == id) {
                self.taken.remove(&place);
            }
        }
    }

    /// Takes places from those that do nothing with them; true where one is left.
    fn leave_unused(&mut self, ports: &[SocketAddr], comer: Comer) -> bool {
        let mut is_left = false;
        for port in ports {
            let Some(taken) = self.taken.get_mut(&(*port, comer)) else { continue };
            if matches!(taken.state, State::Waits(_)) && taken.since.elapsed() >= UNUSED_MAX {
                taken.state = State::Left;
                self.left.push_back((Instant::now(), (*port, comer), taken.id));
            }
            is_left |= matches!(taken.state, State::Left);
        }
        is_left
    }

    /// A port that this guest may have.
    fn find(&mut self, ports: &[SocketAddr], comer: Comer, guest: Guest) -> Option<SocketAddr> {
        let is_left = |port: &&SocketAddr| {
            let taken = self.taken.get(&(**port, comer));
            taken.is_some_and(|taken| taken.session == guest.session && matches!(taken.state, State::Left))
        };
        let mut left = ports.iter().filter(is_left);
        if let Some(own) = left.next() {
            if guest.is_protected {
                return Some(*own);
            }
            if 1 + left.count() >= LEFT_MAX {
                return None;
            }
        }
        let first = self.next_port;
        self.next_port = first.wrapping_add(1);
        let mut round = (0..ports.len()).map(|step| ports[(first % ports.len() + step) % ports.len()]);
        round.find(|port| !self.taken.contains_key(&(*port, comer)))
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and gives free places to those that wait for them.
    fn changed(self: &Arc<Self>, queue: (IpAddr, Comer), change: impl FnOnce(&mut Places)) {
        let mut places = self.places();
        change(&mut places);
        places.expire();
        let Some(mut waiting) = places.queues.remove(&queue) else { return };
        let mut without = VecDeque::new();
        let mut unwanted = Vec::new();
        while let Some(queued) = waiting.pop_front() {
            if queued.give.is_closed() {
                continue;
            }
            let comer = queue.1;
            let Some(port) = places.find(&queued.ports, comer, queued.guest) else {
                let is_left = places.leave_unused(&queued.ports, comer);
                without.push_back(queued);
                // Who comes later may have left one of these.
                if is_left {
                    continue;
                }
                break;
            };
            let id = places.next_id;
            places.next_id += 1;
            let (sender, come) = oneshot::channel();
            let place = (port, comer);
            let session = queued.guest.session;
            let taken = Taken { id, session, since: Instant::now(), state: State::Waits(sender) };
            places.taken.insert(place, taken);
            let slot = Slot { place, id, is_told: false, is_mistaken: false, come, shared: Arc::clone(self) };
            unwanted.extend(queued.give.send(slot).err());
        }
        without.append(&mut waiting);
        if !without.is_empty() {
            places.queues.insert(queue, without);
        }
        // Dropping a slot changes places.
        drop(places);
        drop(unwanted);
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
        match (is_balancer, proxy_protocol.data) {
            (false, _) | (true, ProxiedData::Direct) => self.deliver(stream, (own, Comer::Client(from))),
            (true, ProxiedData::Bare) => self.deliver(stream, (own, Comer::Balancer)),
            (true, ProxiedData::Header) => {
                let Ok(turn) = Arc::clone(&self.undecided).try_acquire_owned() else {
                    tracing::warn!(%from, "a data connection was closed: too many have not said whose they are");
                    return refuse(stream);
                };
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    let _turn = turn;
                    shared.find_out(stream, own, from).await;
                });
            }
        }
    }

    /// Asks a load balancer for whom it comes, and delivers the connection.
    async fn find_out(&self, mut stream: TcpStream, own: SocketAddr, from: IpAddr) {
        let read = tokio::time::timeout(DECISION_MAX, proxy::read(&mut stream)).await;
        match read.unwrap_or_else(|late| Err(io::Error::from(late).into())) {
            Ok(Some(ends)) => {
                self.deliver(stream, (own, Comer::Announced(ends.source.ip().to_canonical())));
            }
            // The balancer only looks whether somebody is here.
            Ok(None) => {}
            Err(error) => {
                let cause = portolan_agent::process::chain(&error);
                tracing::warn!(%from, cause, "a data connection came without a good PROXY header");
                refuse(stream);
            }
        }
    }

    /// Gives a connection to who waits for it. The place stays taken.
    fn deliver(&self, stream: TcpStream, place: Place) {
        let mut places = self.places();
        let taken = places.taken.get_mut(&place);
        let Some(state @ State::Waits(_)) = taken.map(|taken| &mut taken.state) else {
            drop(places);
            tracing::debug!(address = %place.0, comer = ?place.1, "a data connection that nobody waits for was closed");
            return refuse(stream);
        };
        let State::Waits(come) = std::mem::replace(state, State::Served) else { return };
        drop(places);
        // A session that has gone meanwhile wants it no more.
        if let Err(stream) = come.send(stream) {
            refuse(stream);
        }
    }
}

impl Slot {
    pub(super) fn port(&self) -> u16 {
        self.place.0.port()
    }

    /// The connection. Whoever has it keeps the slot until it is known to be the client's, or has ended.
    ///
    /// # Errors
    /// Nobody waits for it any more.
    pub(super) async fn connection(&mut self) -> io::Result<TcpStream> {
        (&mut self.come).await.map_err(|_| io::ErrorKind::NotConnected.into())
    }

    /// Who came did not prove to be the client.
    pub(super) fn was_mistaken(mut self) {
        self.is_mistaken = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (place, id, is_told, is_mistaken) = (self.place, self.id, self.is_told, self.is_mistaken);
        self.shared.changed((place.0.ip(), place.1), |places| {
            let taken = places.taken.get_mut(&place).filter(|taken| taken.id == id);
            let Some(taken) = taken else { return };
            // Left already, for others.
            if matches!(taken.state, State::Left) {
                return;
            }
            if is_told && (is_mistaken || matches!(taken.state, State::Waits(_))) {
                taken.state = State::Left;
                places.left.push_back((Instant::now(), place, id));
            } else {
                places.taken.remove(&place);
            }
        });
    }
}

/// Closes a connection so that its client sees at once that it is not served.
fn refuse(stream: TcpStream) {
    if let Err(error) = linger(&stream, Some(Duration::ZERO)) {
        tracing::debug!(%error, "a data connection was closed in order and not reset");
    }
}
