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
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use portolan_config::checked::listener::{ProxiedData, ProxyProtocol, ports_meet};
use portolan_config::units::PortRange;
use portolan_proto::id::SessionId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::data::linger;
use crate::passive;
use portolan_net::Origin;
use portolan_net::proxy;

/// How long a session waits for a place.
const PLACE_MAX: Duration = Duration::from_secs(10);
/// How often those that wait look whether a place has become free by time alone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A place that was left although nobody had come is not given to another session for this long: a late connection must
/// not come to it.
const LATE_MAX: Duration = Duration::from_secs(30);
/// Such places that one session may leave behind.
const LEFT_MAX: usize = 2;
/// Connections of load balancers that have not said yet for whom they are, at once; and how long one has for it.
const UNDECIDED_MAX: usize = 512;
const DECISION_MAX: Duration = Duration::from_secs(10);
/// Places below which nobody looks for those that are over.
const SWEEP_MIN: usize = 1_024;
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

/// The shared passive ports that are open: sessions of a listener that is gone, or was made anew, still have theirs.
#[derive(Debug, Default)]
pub(crate) struct OpenPorts(Mutex<Vec<Weak<SharedPorts>>>);

impl OpenPorts {
    /// Those of a listener at this address; `None`: others have some of them.
    pub(crate) fn of(
        &self,
        address: IpAddr,
        range: PortRange,
        proxy_protocol: &ProxyProtocol,
    ) -> Option<Arc<SharedPorts>> {
        let mut open = self.0.lock();
        open.retain(|ports| ports.strong_count() > 0);
        let meet = |other: &Arc<SharedPorts>| ports_meet((address, range), (other.address, other.range));
        match open.iter().filter_map(Weak::upgrade).find(meet) {
            Some(same) if (same.address, same.range) == (address, range) => {
                same.shared.proxy_protocol.store(Arc::new(proxy_protocol.clone()));
                Some(same)
            }
            Some(_) => None,
            None => {
                let new = Arc::new(SharedPorts::new(address, range, proxy_protocol));
                open.push(Arc::downgrade(&new));
                Some(new)
            }
        }
    }
}

/// The passive ports of one listener. They live on when it is made anew.
#[derive(Debug)]
pub(crate) struct SharedPorts {
    address: IpAddr,
    range: PortRange,
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
    /// When there are so many, those that are left long enough ago are looked for.
    sweep_at: usize,
    next_id: u64,
    /// Where the search for a port begins.
    next_port: usize,
}

#[derive(Debug)]
struct Taken {
    /// One stay of one session.
    id: u64,
    session: SessionId,
    state: State,
    /// Until then a connection may come that was meant for who has left the place.
    rests_until: Option<Instant>,
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
    come: oneshot::Receiver<TcpStream>,
    shared: Arc<Shared>,
}

impl SharedPorts {
    fn new(address: IpAddr, range: PortRange, proxy_protocol: &ProxyProtocol) -> Self {
        let shared = Shared {
            proxy_protocol: ArcSwap::from_pointee(proxy_protocol.clone()),
            places: Mutex::default(),
            undecided: Arc::new(Semaphore::new(UNDECIDED_MAX)),
        };
        Self { address, range, shared: Arc::new(shared), bound: Mutex::default() }
    }

    /// A place for a session, which may have to wait for its turn.
    ///
    /// # Errors
    /// No port can be listened to, or none was free for this client in time.
    pub(super) async fn place(
        &self,
        origin: &Origin,
        guest: Guest,
        is_gone: impl Fn() -> bool,
    ) -> io::Result<Slot> {
        let client = origin.client.ip();
        let comer = match (origin.balancer, self.shared.proxy_protocol.load().data) {
            (None, _) | (Some(_), ProxiedData::Direct) => Comer::Client(client),
            (Some(_), ProxiedData::Header) => Comer::Announced(client),
            (Some(_), ProxiedData::Bare) => Comer::Balancer,
        };
        let ports = self.listen(origin.own)?;
        let queue = (origin.own, comer);
        let (give, mut given) = oneshot::channel();
        let mut own = None;
        self.shared.changed(queue, |places| {
            // By TLS a connection that was given up does not pass for the next one.
            let left = places.left_by(&ports, comer, guest.session).next().filter(|_| guest.is_protected);
            match left {
                Some(port) => own = Some(places.take(&self.shared, (port, comer), guest.session)),
                None => places.queues.entry(queue).or_default().push_back(Queued { guest, ports, give }),
            }
        });
        let deadline = tokio::time::Instant::now() + PLACE_MAX;
        let mut slot = loop {
            if let Some(own) = own {
                break own;
            }
            let look_again = deadline.min(tokio::time::Instant::now() + LOOK_EVERY);
            match tokio::time::timeout_at(look_again, &mut given).await {
                Ok(slot) => break slot.map_err(|_| io::ErrorKind::AddrInUse)?,
                Err(_) if tokio::time::Instant::now() >= deadline => {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                Err(_) => self.shared.changed(queue, |_| {}),
            }
        };
        // Nobody is told of it who has hung up meanwhile, and nobody will come.
        if is_gone() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        slot.is_told = true;
        Ok(slot)
    }

    /// Listens to all ports at one of our addresses, as far as nobody else does.
    fn listen(&self, own: IpAddr) -> io::Result<Vec<SocketAddr>> {
        let mut bound = self.bound.lock();
        let ports = bound.entry(own).or_default();
        let mut failure = None;
        if ports.len() < self.range.count() as usize {
            for number in self.range.first..=self.range.last {
                if ports.iter().any(|port| port.number == number) {
                    continue;
                }
                match passive::listen_shared(SocketAddr::new(own, number)) {
                    Ok(listener) => {
                        let accepting =
                            Arc::clone(&self.shared).accept(listener, SocketAddr::new(own, number));
                        let accepting = AbortOnDropHandle::new(tokio::spawn(accepting));
                        ports.push(Port { number, _accepting: accepting });
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
    /// Frees what was left long enough ago, at these ports.
    fn expire(&mut self, ports: &[SocketAddr], comer: Comer) {
        let now = Instant::now();
        for port in ports {
            if self.taken.get(&(*port, comer)).is_some_and(|taken| taken.is_over(now)) {
                self.taken.remove(&(*port, comer));
            }
        }
        // Those of clients that do not come again.
        if self.taken.len() >= self.sweep_at {
            self.taken.retain(|_, taken| !taken.is_over(now));
            self.queues.retain(|_, queue| queue.iter().any(|queued| !queued.give.is_closed()));
            self.sweep_at = SWEEP_MIN.max(self.taken.len() * 2);
        }
    }

    /// A port that nobody has.
    fn free(&mut self, ports: &[SocketAddr], comer: Comer) -> Option<SocketAddr> {
        let first = self.next_port;
        self.next_port = first.wrapping_add(1);
        let mut round = (0..ports.len()).map(|step| ports[(first % ports.len() + step) % ports.len()]);
        round.find(|port| !self.taken.contains_key(&(*port, comer)))
    }

    /// Ports that a session has left.
    fn left_by(
        &self,
        ports: &[SocketAddr],
        comer: Comer,
        session: SessionId,
    ) -> impl Iterator<Item = SocketAddr> {
        ports.iter().copied().filter(move |port| {
            let taken = self.taken.get(&(*port, comer));
            taken.is_some_and(|taken| taken.session == session && matches!(taken.state, State::Left))
        })
    }

    /// Makes a place a session's.
    fn take(&mut self, shared: &Arc<Shared>, place: Place, session: SessionId) -> Slot {
        let id = self.next_id;
        self.next_id += 1;
        let (sender, come) = oneshot::channel();
        // Who has left it itself may still get what was meant for then.
        let rests_until = self.taken.get(&place).and_then(|taken| taken.rests_until);
        self.taken.insert(place, Taken { id, session, state: State::Waits(sender), rests_until });
        Slot { place, id, is_told: false, come, shared: Arc::clone(shared) }
    }
}

impl Taken {
    fn is_over(&self, now: Instant) -> bool {
        matches!(self.state, State::Left) && self.rests_until.is_none_or(|until| until <= now)
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock()
    }

    /// Changes something, and gives free places to those that wait for them, in their order.
    fn changed(self: &Arc<Self>, queue: (IpAddr, Comer), change: impl FnOnce(&mut Places)) {
        let comer = queue.1;
        let mut places = self.places();
        change(&mut places);
        let Some(mut waiting) = places.queues.remove(&queue) else { return };
        // Those that have left too many places have to wait until they rest no more.
        let mut barred = VecDeque::new();
        let mut unwanted = Vec::new();
        while let Some(queued) = waiting.pop_front() {
            if queued.give.is_closed() {
                continue;
            }
            let Guest { session, is_protected } = queued.guest;
            places.expire(&queued.ports, comer);
            let Some(port) = places.free(&queued.ports, comer) else {
                waiting.push_front(queued);
                break;
            };
            if !is_protected && places.left_by(&queued.ports, comer, session).count() >= LEFT_MAX {
                barred.push_back(queued);
                continue;
            }
            let slot = places.take(self, (port, comer), session);
            unwanted.extend(queued.give.send(slot).err());
        }
        barred.append(&mut waiting);
        if !barred.is_empty() {
            places.queues.insert(queue, barred);
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
                    tracing::warn!(%from, "data connection closed: too many unidentified data connections");
                    return refuse(stream);
                };
                let shared = Arc::clone(self);
                // Not awaited: it ends with the time limit of its header, and there are few at once.
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
                let cause = portolan_telemetry::chain(&error);
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
            tracing::debug!(address = %place.0, comer = ?place.1, "unexpected data connection closed");
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

    /// Who came was not the client, which may still come.
    pub(super) fn wait_again(&mut self) {
        let mut places = self.shared.places();
        let taken = places.taken.get_mut(&self.place).filter(|taken| taken.id == self.id);
        if let Some(taken) = taken {
            let (sender, come) = oneshot::channel();
            taken.state = State::Waits(sender);
            self.come = come;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (place, id, is_told) = (self.place, self.id, self.is_told);
        self.shared.changed((place.0.ip(), place.1), |places| {
            let taken = places.taken.get_mut(&place).filter(|taken| taken.id == id);
            let Some(taken) = taken else { return };
            let now = Instant::now();
            if is_told && matches!(taken.state, State::Waits(_)) {
                taken.rests_until = Some(now + LATE_MAX);
            }
            taken.state = State::Left;
            if taken.is_over(now) {
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
