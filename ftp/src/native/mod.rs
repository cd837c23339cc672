//! The `native` engine: FTP as Portolan promises it (RFC 959, 1123, 2228, 2389, 2428, 2640, 3659, 4217, 7151).
//!
//! A line comes in by `codec`, is taken apart by `command`, and goes by `conversation` to its handler in
//! `commands/`, which reads and changes the `session`: `conversation` -> `commands` -> `session`.
//! What takes its time (`work`, `listing`, digests) runs beside the control loop, which so goes on answering; its
//! content goes through `data`.
//!
//! Who calls it: `ftp::Service::serve`.
//! What it calls: `tree`, `auth`.
//! What it never does: commit an upload of which it is not certain that it is whole.

mod arrival;
mod client;
mod codec;
mod command;
mod commands;
mod conversation;
mod data;
mod deflate;
mod facts;
mod listing;
mod pattern;
mod session;
mod shared;
mod socket;
mod tls;
mod work;

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

pub(super) use conversation::serve;
pub(super) use shared::{OpenPorts, SharedPorts};
pub(super) use tls::TlsService;

/// A control or data connection, in plaintext or with TLS.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;
