//! Options of sockets.
//!
//! Who calls it: the gate and the services, for what they listen on and accept.
//! What it calls: rustix.
//! What it never does: read or write.

use std::os::fd::AsFd;
use std::time::Duration;

/// A client that is gone without a word is noticed after idle + count * interval; meanwhile its session takes
/// up a place.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// Lets the kernel find out that the other end of a connection is gone. On a listening socket it holds for the
/// connections accepted from it.
pub fn keep_alive(socket: impl AsFd) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    Ok(sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?)
}
