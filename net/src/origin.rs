//! Where a connection comes from.
//!
//! Who calls it: the gate makes it; services ask it.
//! What it calls: nothing.
//! What it never does: look anything up.

use std::net::{IpAddr, SocketAddr};

/// Where a connection comes from. Addresses are IPv4 where they can be, however a socket tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The client's own address, also behind a load balancer.
    pub client: SocketAddr,
    /// How the client counts for limits and bans: its address, or the network of it.
    pub network: IpAddr,
    /// The address that the client connected to: the load balancer's, where there is one.
    pub contacted: IpAddr,
    /// Our own address, where passive data connections are awaited.
    pub own: IpAddr,
    /// The load balancer's address; `None`: the client came by itself.
    pub balancer: Option<IpAddr>,
}
