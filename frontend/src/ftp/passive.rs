//! Ports for passive data connections.
//!
//! A random start, then round robin with SO_REUSEADDR: letting the system choose runs into TIME_WAIT at a few
//! hundred files a second, and drawing at random hits ports in use.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use portolan_config::units::PortRange;
use tokio::net::TcpSocket;

use super::keep_alive;

#[derive(Debug)]
pub struct PassivePorts {
    range: PortRange,
    next: AtomicU32,
}

impl PassivePorts {
    pub fn new(range: PortRange) -> Self {
        Self { range, next: AtomicU32::new(rand::random()) }
    }

    /// A socket bound to the next port that is free at `address`.
    ///
    /// # Errors
    /// `AddrInUse` when all ports of the range are taken.
    pub fn bind(&self, address: IpAddr) -> io::Result<TcpSocket> {
        let count = self.range.count();
        for _ in 0..count {
            let step = self.next.fetch_add(1, Ordering::Relaxed) % count;
            let port = self.range.first + u16::try_from(step).expect("a range has at most 65536 ports");
            let socket = match address {
                IpAddr::V4(_) => TcpSocket::new_v4()?,
                IpAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            // Accepted sockets inherit it: the last records of TLS must not wait for an acknowledgement.
            socket.set_nodelay(true)?;
            keep_alive(&socket)?;
            match socket.bind(SocketAddr::new(address, port)) {
                Ok(()) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}
