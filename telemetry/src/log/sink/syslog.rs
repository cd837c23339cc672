//! Syslog: messages of RFC 5424, to the local socket, or by UDP (RFC 5426), TCP (RFC 6587 section 3.4.1) or TLS
//! (RFC 5425).

use std::collections::VecDeque;
use std::io::{self, Read as _, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Local};
use portolan_config::checked::log::{Facility, SyslogHeader, SyslogServer, SyslogTls};
use portolan_config::units::HostPort;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::log::format::timestamp;
use crate::log::queue::Sink;
use crate::log::record::Record;

/// A server that takes nothing for this long is connected anew.
const STEP_MAX: Duration = Duration::from_secs(10);
/// How long the end of a connection by TLS is waited for.
const LAST_READ_MAX: Duration = Duration::from_secs(1);
/// What every receiver must take by UDP is 480 bytes, what it should take 2,048; by IP more than this never arrives.
const DATAGRAM_BYTES_MAX: usize = 60_000;

/// One message. The fields are in its text, where every receiver shows them.
pub(in crate::log) fn message(
    record: &Record,
    facility: Facility,
    header: SyslogHeader,
    program: &str,
    said: &str,
) -> String {
    static HOST: OnceLock<String> = OnceLock::new();
    let host = HOST.get_or_init(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let host = if host.is_empty() { "-" } else { host };
    let priority = facility.code() * 8 + record.severity as u8;
    let id = std::process::id();
    match header {
        SyslogHeader::Rfc5424 => {
            let time = timestamp(record.time);
            format!("<{priority}>1 {time} {host} {program} {id} - - {said}")
        }
        SyslogHeader::Traditional => {
            let time = DateTime::<Local>::from(record.time).format("%b %e %H:%M:%S");
            format!("<{priority}>{time} {program}[{id}]: {said}")
        }
    }
}

/// A connection to a server, made when it is needed.
pub(in crate::log) struct Syslog {
    server: SyslogServer,
    connection: Option<Connection>,
}

enum Connection {
    Datagrams(UnixDatagram),
    Local(UnixStream),
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Syslog {
    pub(in crate::log) fn new(server: SyslogServer) -> Self {
        Self { server, connection: None }
    }

    fn connect(&self) -> io::Result<Connection> {
        match &self.server {
            SyslogServer::Unix(path) => local(path),
            SyslogServer::Udp(server) => {
                let address = resolve(server)?;
                let own = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(own)?;
                socket.connect(address)?;
                Ok(Connection::Udp(socket))
            }
            SyslogServer::Tcp(server) => Ok(Connection::Tcp(tcp(server)?)),
            SyslogServer::Tls(tls) => {
                let name = tls.server.host.trim_matches(['[', ']']).to_owned();
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                let client = ClientConnection::new(client_config(tls)?, name).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(client, tcp(&tls.server)?);
                // The handshake, so that a server that is not trusted is told apart from one that is away.
                stream.flush()?;
                Ok(Connection::Tls(Box::new(stream)))
            }
        }
    }
}

/// Ends TLS in order (RFC 5425 section 4.4), and reads what the server has sent: with tickets unread the system would reset
/// the connection, and throw away what is on its way.
fn close(mut stream: StreamOwned<ClientConnection, TcpStream>) {
    stream.conn.send_close_notify();
    let closing = stream.flush().and_then(|()| stream.sock.shutdown(Shutdown::Write));
    if closing.and_then(|()| stream.sock.set_read_timeout(Some(LAST_READ_MAX))).is_err() {
        return;
    }
    let end = Instant::now() + LAST_READ_MAX;
    let mut buffer = [0; 4_096];
    while Instant::now() < end && stream.sock.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

/// The local socket: datagrams, or a stream where the receiver wants one.
fn local(path: &PathBuf) -> io::Result<Connection> {
    let socket = UnixDatagram::unbound()?;
    match socket.connect(path) {
        Ok(()) => {
            socket.set_write_timeout(Some(STEP_MAX))?;
            Ok(Connection::Datagrams(socket))
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()) => {
            let stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(STEP_MAX))?;
            Ok(Connection::Local(stream))
        }
        Err(error) => Err(error),
    }
}

fn resolve(server: &HostPort) -> io::Result<std::net::SocketAddr> {
    let mut addresses = server.to_string().to_socket_addrs()?;
    addresses.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

fn tcp(server: &HostPort) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&resolve(server)?, STEP_MAX)?;
    stream.set_write_timeout(Some(STEP_MAX))?;
    stream.set_read_timeout(Some(STEP_MAX))?;
    Ok(stream)
}

fn client_config(tls: &SyslogTls) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(ca) => {
            roots.add_parsable_certificates(ca.certificates.iter().cloned());
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?.with_root_certificates(roots);
    let config = match &tls.identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain.clone(), identity.key()).map_err(io::Error::other)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

impl Connection {
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Connection::Datagrams(socket) => match socket.send(message) {
                // Longer than the receiver's socket takes.
                Err(error) if is_too_long(&error) => socket.send(cut(message, 8_192)).map(drop),
                sent => sent.map(drop),
            },
            Connection::Udp(socket) => match socket.send(cut(message, DATAGRAM_BYTES_MAX)) {
                // Told of an earlier one: nobody listens there. This one may arrive.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    socket.send(cut(message, DATAGRAM_BYTES_MAX)).map(drop)
                }
                sent => sent.map(drop),
            },
            Connection::Local(stream) => {
                stream.write_all(message)?;
                // As syslog(3) ends a message on a stream.
                stream.write_all(b"\0")
            }
            Connection::Tcp(stream) => write_counted(stream, message),
            Connection::Tls(stream) => write_counted(stream, message),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Tls(stream) => stream.flush(),
            Connection::Datagrams(_) | Connection::Local(_) | Connection::Udp(_) | Connection::Tcp(_) => {
                Ok(())
            }
        }
    }

    /// True when the server has closed its end, which a stream tells only who asks.
    fn is_closed(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let stream = match self {
            Connection::Tcp(stream) => stream,
            Connection::Tls(stream) => &stream.sock,
            Connection::Datagrams(_) | Connection::Local(_) | Connection::Udp(_) => return false,
        };
        let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err()
            || polled[0].revents().intersects(gone)
    }
}

/// Octet counting: the length, a space, the message.
fn write_counted(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let mut frame = format!("{} ", message.len()).into_bytes();
    frame.extend_from_slice(message);
    stream.write_all(&frame)
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

fn cut(message: &[u8], most: usize) -> &[u8] {
    message.get(..most).unwrap_or(message)
}

impl Sink<Vec<u8>> for Syslog {
    fn deliver(&mut self, items: &mut VecDeque<Vec<u8>>, _: &mut u64) -> io::Result<()> {
        while let Some(message) = items.front() {
            if self.connection.as_ref().is_none_or(Connection::is_closed) {
                self.connection = Some(self.connect()?);
            }
            let connection = self.connection.as_mut().expect("it was made just now");
            if let Err(error) = connection.send(message).and_then(|()| connection.flush()) {
                self.connection = None;
                return Err(error);
            }
            items.pop_front();
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(Connection::Tls(stream)) = self.connection.take() {
            close(*stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::tests::record;

    #[test]
    fn a_message_is_of_rfc_5424() {
        let message =
            |header| message(&record("", &[]), Facility::Local3, header, "portolan-frontend", "hello a=b");
        let local = message(SyslogHeader::Traditional);
        assert!(local.starts_with("<158>") && local.contains(" portolan-frontend["), "{local}");
        let said = message(SyslogHeader::Rfc5424);
        let (head, rest) = said.split_once(' ').unwrap();
        assert_eq!(head, "<158>1", "local3 is 19, informational is 6");
        let words: Vec<&str> = rest.splitn(7, ' ').collect();
        let id = std::process::id().to_string();
        assert_eq!(words[0], "1970-01-01T00:00:00.000000Z");
        assert_eq!(words[2..], ["portolan-frontend", &id, "-", "-", "hello a=b"]);
    }

    #[test]
    fn a_local_receiver_may_come_later_and_be_of_either_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut syslog = Syslog::new(SyslogServer::Unix(path.clone()));
        let mut items: VecDeque<Vec<u8>> = [b"one".to_vec(), b"two".to_vec()].into();
        assert!(syslog.deliver(&mut items, &mut 0).is_err());
        assert_eq!(items.len(), 2);
        let receiver = UnixDatagram::bind(&path).unwrap();
        syslog.deliver(&mut items, &mut 0).unwrap();
        let mut buffer = [0; 16];
        for expected in [&b"one"[..], b"two"] {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
        std::fs::remove_file(&path).unwrap();
        drop(receiver);
        let receiver = std::os::unix::net::UnixListener::bind(&path).unwrap();
        items.push_back(b"three".to_vec());
        // The old receiver is gone: told once, then the new one is found.
        assert!(syslog.deliver(&mut items, &mut 0).is_err());
        syslog.deliver(&mut items, &mut 0).unwrap();
        let mut stream = receiver.accept().unwrap().0;
        let length = stream.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"three\0");
    }
}
