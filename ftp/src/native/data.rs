//! Data connections: how one is opened, what goes over it, and how it ends (RFC 959 section 3.2, RFC 4217 section 9).
//! How one comes about after PASV is for `arrival`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use portolan_config::checked::listener::{CloseNotify, SessionReuse};
use portolan_proto::CHUNK_BYTES_MAX;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::Stream;
use super::arrival::Setup;
use super::deflate::{Deflate, Inflate};
use super::shared::Slot;
use super::socket::unacknowledged;
use super::tls::{self, SessionTls};
use crate::bandwidth::{Direction, Pace};
use crate::reply::Reply;
use crate::transfer::{STALL_MAX, in_time};
use portolan_net::Origin;
use portolan_net::proxy;
use portolan_net::socket::keep_alive;

/// How long we may take to connect to the client.
const CONNECT_MAX: Duration = super::arrival::CONNECT_MAX;

/// How long content of an upload is gathered before it goes on.
const GATHER_MAX: Duration = Duration::from_secs(10);

/// What a client may send on the data connection of a download, where nothing is expected. It is read away: closing a socket
/// with unread input is a reset, which destroys what the client has not read yet.
const STRAY_BYTES_MAX: usize = 1024 * 1024;

/// The end of the stream, as [`unacknowledged`] counts it. It carries no content, and Linux takes 40 ms to acknowledge it
/// where the client waits for the reply before it closes its own side.
const END_BYTES: usize = 1;

/// Pauses between two looks at what is not acknowledged yet: an eighth of the time waited so far, within these.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Everything needed to open a data connection, taken from the session at the start of a transfer.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) setup: Setup,
    /// Where the control connection comes from: nobody else may be at the other end.
    pub(super) origin: Origin,
    pub(super) pace: Pace,
    pub(super) tls: Option<(Arc<SessionTls>, SessionReuse)>,
    pub(super) close_notify: CloseNotify,
    /// The level of MODE Z.
    pub(super) compression: Option<u32>,
    /// A load balancer's header would be taken for content.
    pub(super) may_have_header: bool,
}

/// Why there is no data connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the client did not connect within {CONNECT_MAX:?}")]
    NotConnected,
    #[error("a data connection came from {0}, which is not the client's address")]
    Stranger(IpAddr),
    #[error("a data connection came without the client's address in a PROXY header")]
    NoHeader,
    #[error("the data connection began with TLS before PROT C")]
    Protected,
    #[error("the client's data port cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("the data connection could not be accepted")]
    Accept(#[source] io::Error),
    #[error("the data connection has no TLS")]
    Tls(#[from] tls::Error),
}

impl Error {
    /// 425 for what may work next time, 522 (RFC 4217 section 12.7) for what will not without TLS resumption.
    pub(super) fn reply(&self) -> Reply {
        match self {
            Error::NotConnected => Reply::new(425, "The data connection was not opened in time."),
            Error::Stranger(from) => Reply::with(
                425,
                format!(
                    "The data connection was not opened in time; one from {from} is not yours and was closed."
                ),
            ),
            Error::NoHeader => Reply::new(
                425,
                "The data connection was not opened in time; one without your address in its PROXY header was closed.",
            ),
            Error::Protected => {
                Reply::new(425, "The data connection began with TLS before PROT C; open another one.")
            }
            Error::Unreachable(_) => Reply::new(425, "Your data port cannot be reached."),
            Error::Accept(_) => Reply::new(425, "The data connection could not be opened; try again."),
            Error::Tls(tls::Error::Handshake(_) | tls::Error::Expired) => {
                Reply::new(425, "The TLS handshake of the data connection failed.")
            }
            Error::Tls(tls::Error::Slow(_)) => {
                Reply::new(425, "The TLS handshake of the data connection took too long.")
            }
            Error::Tls(tls::Error::Foreign) => {
                Reply::new(522, "The data connection resumed a TLS session that is not this client's.")
            }
            Error::Tls(tls::Error::NotResumed) => Reply::new(
                522,
                "The data connection must resume the TLS session of the control connection (session_reuse).",
            ),
        }
    }
}

impl Plan {
    /// Opens the connection, after the 150.
    pub(super) async fn open(mut self, direction: Direction) -> Result<Connection, Error> {
        let (stream, slot) = match std::mem::take(&mut self.setup) {
            // A transfer is refused before it comes here without a setup.
            Setup::None => return Err(Error::NotConnected),
            Setup::Passive(arrival) => {
                let come = arrival.open(self.tls.is_some(), direction).await?;
                (come.stream, come.slot)
            }
            Setup::Active(address) => {
                let connecting = tokio::time::timeout(CONNECT_MAX, self.connect(address)).await;
                let stream = connecting.map_err(|_| Error::NotConnected)?.map_err(Error::Unreachable)?;
                // Until its end is known to be in order, closing it is a reset.
                linger(&stream, Some(Duration::ZERO)).map_err(Error::Accept)?;
                (self.protect(stream, direction).await?, None)
            }
        };
        let compression = self.compression.map(Deflate::new);
        let Self { close_notify, pace, may_have_header, .. } = self;
        Ok(Connection {
            stream,
            close_notify,
            compression,
            inflate: None,
            pace,
            direction,
            may_have_header,
            _slot: slot,
        })
    }

    async fn protect(&self, stream: TcpStream, direction: Direction) -> Result<Stream, Error> {
        let Some((tls, reuse)) = &self.tls else { return Ok(Stream::Left(stream)) };
        let (stream, _) = tls.accept_data(stream, *reuse, Some(direction)).await?;
        Ok(Stream::Right(Box::new(stream)))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_nodelay(true)?;
        keep_alive(&socket)?;
        // Behind an address family's border the system chooses where we come from.
        if self.origin.own.is_ipv4() == address.is_ipv4() {
            socket.bind(SocketAddr::new(self.origin.own, 0))?;
        }
        socket.connect(address).await
    }
}

/// An open data connection. Dropped before its end, it is reset, so that the client does not take what it got
/// for the whole.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    close_notify: CloseNotify,
    compression: Option<Deflate>,
    inflate: Option<Inflate>,
    pace: Pace,
    direction: Direction,
    /// Nothing has been read yet, and a PROXY header would be a mistake of the balancer's configuration.
    may_have_header: bool,
    /// Held where nothing has proved that this is the client: the client may still come.
    _slot: Option<Slot>,
}

impl Connection {
    /// Content that goes at once within the limits of bandwidth.
    pub(super) fn piece_bytes_max(&self) -> usize {
        self.pace.piece_bytes_max(self.direction)
    }

    /// Sends lines of a listing, to be read before more comes.
    pub(super) async fn send_lines(&mut self, lines: Bytes) -> io::Result<()> {
        match &mut self.compression {
            None => self.write(&lines).await,
            Some(deflate) => {
                let packed = deflate.pack_whole(lines).await;
                self.write(&packed).await
            }
        }
    }

    /// Sends content.
    pub(super) async fn send(&mut self, content: Bytes) -> io::Result<()> {
        match &mut self.compression {
            None => self.write(&content).await,
            Some(deflate) => {
                let packed = deflate.pack(content).await;
                self.write(&packed).await
            }
        }
    }

    /// Writes all, as fast as it may go and as long as something moves.
    async fn write(&mut self, mut content: &[u8]) -> io::Result<()> {
        while !content.is_empty() {
            let piece = content.len().min(self.piece_bytes_max());
            let (now, rest) = content.split_at(piece);
            self.pace.take(self.direction, now.len()).await;
            write(&mut self.stream, now).await?;
            content = rest;
        }
        Ok(())
    }

    /// Ends what was sent in order, and waits until the client's system has acknowledged all of it.
    ///
    /// # Errors
    /// The connection broke, or nothing more is acknowledged: the client may not have all.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        if let Some(deflate) = &mut self.compression {
            let rest = deflate.finish().await;
            self.write(&rest).await?;
        }
        let mut end_bytes = 0;
        let ended = match self.end(&mut end_bytes).await {
            Ok(()) => self.acknowledged().await,
            Err(error) => Err(error),
        };
        match ended {
            // A client that has all may be gone before the end comes. It need not want all that its system has, either: some
            // close in the middle of a file, as rclone does to seek.
            Err(error) if is_reset(&error) && unacknowledged(self.tcp())? <= end_bytes => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.linger(None),
        }
    }

    /// Sends close_notify and the end of the stream. `end_bytes` counts what is sent behind the content, as [`unacknowledged`]
    /// counts it.
    async fn end(&mut self, end_bytes: &mut usize) -> io::Result<()> {
        let tcp = match &mut self.stream {
            Stream::Left(tcp) => tcp,
            Stream::Right(tls) => {
                // Apart from the end of the stream, because the library does not return how long it is.
                let (tcp, session) = tls.get_mut();
                let mut notify = Vec::new();
                session.send_close_notify();
                while session.wants_write() {
                    session.write_tls(&mut notify)?;
                }
                in_time(tcp.write_all(&notify)).await?;
                *end_bytes += notify.len();
                tcp
            }
        };
        in_time(tcp.shutdown()).await?;
        *end_bytes += END_BYTES;
        Ok(())
    }

    /// Waits until all that was sent is acknowledged, and reads away what the client has sent. That the client has closed its
    /// side proves nothing: it may have closed the other one too.
    async fn acknowledged(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let mut moved = (begun, usize::MAX);
        let (mut stray, mut buffer) = (0, [0; 4096]);
        // TLS of the client ends with its close_notify; what follows is no record.
        let mut reading = true;
        loop {
            // A reset, also one that came when all was acknowledged.
            if let Some(error) = self.tcp().take_error()? {
                return Err(error);
            }
            let waiting = peek(self.tcp())?;
            let rest = unacknowledged(self.tcp())?;
            if !waiting && rest <= END_BYTES {
                return Ok(());
            }
            if rest < moved.1 {
                moved = (Instant::now(), rest);
            } else if moved.0.elapsed() > STALL_MAX {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let read = if reading {
                let pause = (begun.elapsed() / 8).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX);
                match tokio::time::timeout(pause, self.stream.read(&mut buffer)).await {
                    Err(_) => continue,
                    Ok(Ok(count)) => count,
                    // TLS that ends without close_notify: the client's own matter.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                    Ok(Err(error)) => return Err(error),
                }
            } else if waiting {
                receive_now(self.tcp(), &mut buffer)?
            } else {
                tokio::time::sleep((begun.elapsed() / 8).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX)).await;
                continue;
            };
            reading &= read > 0;
            stray += read;
            if stray > STRAY_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the client sends where it should receive",
                ));
            }
        }
    }

    /// The next content of an upload: a full chunk, or what is left; empty at its end. `moved` counts it as it
    /// comes.
    ///
    /// # Errors
    /// The connection broke, or ended in a way that does not tell its end from a cut.
    pub(super) async fn receive(&mut self, moved: impl Fn(usize)) -> io::Result<Bytes> {
        if self.compression.is_some() {
            let content = self.receive_packed().await?;
            moved(content.len());
            return Ok(content);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES_MAX);
        let begun = Instant::now();
        // The node is not kept waiting by a client, or a limit, that is slow.
        while chunk.len() < CHUNK_BYTES_MAX && (chunk.is_empty() || begun.elapsed() < GATHER_MAX) {
            match self.read(&mut chunk).await? {
                0 => break,
                count => moved(count),
            }
            if self.may_have_header {
                refuse_header(&chunk)?;
            }
        }
        self.may_have_header = false;
        Ok(chunk.freeze())
    }

    async fn receive_packed(&mut self) -> io::Result<Bytes> {
        let mut inflate = self.inflate.take().unwrap_or_default();
        let content = loop {
            if let Some(content) = inflate.next().await? {
                break content;
            }
            let mut packed = BytesMut::with_capacity(CHUNK_BYTES_MAX);
            if self.read(&mut packed).await? == 0 {
                break inflate.finish()?;
            }
            inflate.feed(packed.freeze());
        };
        self.inflate = Some(inflate);
        Ok(content)
    }

    /// Reads once, up to a full chunk; 0 at the end.
    async fn read(&mut self, chunk: &mut BytesMut) -> io::Result<usize> {
        let piece = self.piece_bytes_max();
        let mut limited = chunk.limit(piece.min(CHUNK_BYTES_MAX - chunk.len()));
        match in_time(self.stream.read_buf(&mut limited)).await {
            Ok(count) => {
                self.pace.take(self.direction, count).await;
                Ok(count)
            }
            // How the library tells an end without close_notify.
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof
                    && self.close_notify == CloseNotify::Optional =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// True where the end of an upload was marked by who made its content. The close_notify of TLS is none: clients
    /// send it when they give up, too.
    pub(super) fn marks_its_end(&self) -> bool {
        self.compression.is_some()
    }

    /// Ends an upload in order, after its last byte was read.
    pub(super) async fn acknowledge_end(mut self) {
        // The client has sent all; that it may be gone already changes nothing. What it sent behind the end of TLS is read
        // away, so that it does not find a reset in place of ours.
        let mut buffer = [0; 4096];
        let behind = receive_now(self.tcp(), &mut buffer).is_ok_and(|count| count > 0);
        if behind {
            tracing::debug!("the client sent more behind the end of its content");
        }
        if in_time(self.stream.shutdown()).await.and_then(|()| self.linger(None)).is_err() {
            tracing::debug!("the client did not wait for the end of its data connection");
        }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Left(stream) => stream,
            Stream::Right(stream) => stream.get_ref().0,
        }
    }

    fn linger(&self, time: Option<Duration>) -> io::Result<()> {
        linger(self.tcp(), time)
    }
}

/// The peer has closed its socket without reading on.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// True where the client has sent something that was not read.
fn peek(stream: &TcpStream) -> io::Result<bool> {
    match rustix::net::recv(stream, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((count, _)) => Ok(count > 0),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads what is there; 0 where that is nothing.
fn receive_now(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match rustix::net::recv(stream, buffer, RecvFlags::DONTWAIT) {
        Ok((count, _)) => Ok(count),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// Refuses content that begins with a PROXY header: it would be stored as a part of the file.
fn refuse_header(content: &[u8]) -> io::Result<()> {
    if proxy::looks_like_header(content) {
        let message = "the load balancer sends a PROXY header: proxy_protocol.data must be \"header\"";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(())
}

pub(super) fn linger(stream: &TcpStream, time: Option<Duration>) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(stream, time)?)
}

/// Writes all, as long as something moves.
async fn write(stream: &mut Stream, mut content: &[u8]) -> io::Result<()> {
    // A fresh socket is not known to be writable before the runtime has looked; a small file fits anyway.
    if let Stream::Left(plain) = stream {
        match rustix::net::send(&*plain, content, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => content = &content[sent..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    while !content.is_empty() {
        let sent = in_time(stream.write(content)).await?;
        content = &content[sent..];
    }
    in_time(stream.flush()).await
}
