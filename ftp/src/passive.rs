//! Ports for passive data connections.
//!
//! Round robin with SO_REUSEADDR, in an order drawn at the start: letting the system choose runs into
//! TIME_WAIT at a few hundred files a second, drawing each port runs into ports in use, and an order that
//! others know lets them wait where the next client will connect.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use portolan_config::units::PortRange;
use rand::seq::SliceRandom as _;
use tokio::net::{TcpListener, TcpSocket};

use portolan_net::socket::keep_alive;

/// Connections that may wait to be accepted: the client's, and those of strangers who are then sent away.
const BACKLOG: u32 = 16;

/// The same where many sessions share a port.
const SHARED_BACKLOG: u32 = 4_096;

#[derive(Debug)]
pub struct PassivePorts {
    order: Vec<u16>,
    next: AtomicUsize,
}

impl PassivePorts {
    pub fn new(range: PortRange) -> Self {
        let mut order: Vec<u16> = (range.first..=range.last).collect();
        order.shuffle(&mut rand::rng());
        Self { order, next: AtomicUsize::new(0) }
    }

    /// The ports once over, from the next one on.
    fn round(&self) -> impl Iterator<Item = u16> {
        (0..self.order.len())
            .map(|_| self.order[self.next.fetch_add(1, Ordering::Relaxed) % self.order.len()])
    }

    /// A socket bound to the next port that is free at `address`.
    ///
    /// # Errors
    /// `AddrInUse` when all ports of the range are taken.
    pub fn bind(&self, address: IpAddr) -> io::Result<TcpSocket> {
        first_free(self.round(), |port| bind(SocketAddr::new(address, port)))
    }

    /// A listener at the next port that is free at `address`: nobody else waits there.
    ///
    /// # Errors
    /// `AddrInUse` when all ports of the range are taken.
    pub fn listen(&self, address: IpAddr) -> io::Result<TcpListener> {
        // Two may bind a port at once; only one may listen.
        first_free(self.round(), |port| bind(SocketAddr::new(address, port))?.listen(BACKLOG))
    }
}

/// Listens at a port that many sessions share.
pub fn listen_shared(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address)?.listen(SHARED_BACKLOG)
}

fn first_free<T>(
    ports: impl Iterator<Item = u16>,
    mut take: impl FnMut(u16) -> io::Result<T>,
) -> io::Result<T> {
    for port in ports {
        match take(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            taken => return taken,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it: the last records of TLS must not wait for an acknowledgement.
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    socket.bind(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_port_is_given_once_while_somebody_waits_there() {
        // A range of the system's own choosing, so that nobody else uses it.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let first = free.local_addr().unwrap().port().min(u16::MAX - 4);
        drop(free);
        let ports = PassivePorts::new(PortRange { first, last: first + 4 });
        let address = "127.0.0.1".parse().unwrap();
        let mut taken = Vec::new();
        while let Ok(listener) = ports.listen(address) {
            let port = listener.local_addr().unwrap().port();
            assert!((first..=first + 4).contains(&port) && !taken.iter().any(|(other, _)| *other == port));
            taken.push((port, listener));
        }
        assert_eq!(ports.listen(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let (freed, _) = taken.pop().unwrap();
        assert_eq!(ports.listen(address).unwrap().local_addr().unwrap().port(), freed);
    }
}
