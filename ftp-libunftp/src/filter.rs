//! A relay between a client and the library that keeps plaintext out of TLS.
//!
//! The library takes what a client has sent behind AUTH in plaintext for commands of the protected session. So nothing goes on
//! to it behind an AUTH until it has answered, and what came by then ends the session in place of the 234. Lines are bounded,
//! as the library does not do. Behind the 234 bytes go both ways as they are.
//!
//! The library takes a TCP connection and nothing else, so this one is over loopback. It also looks whether data connections
//! come from where the control connection does; so they are relayed too, after the same look at the client's own address.
//!
//! Who calls it: `serve`, with each connection; the library, for passive ports.
//! What it calls: the passive ports of the listener.
//! What it never does: understand a command other than AUTH; end in order what was cut.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Bytes of a line at most, its end included.
const LINE_BYTES_MAX: usize = 4_096;
/// A line that does not end after this many bytes ends its session.
const LINE_DISCARDED_BYTES_MAX: usize = 1024 * 1024;
const READ_BYTES: usize = 4_096;
/// Content that a data connection holds each way.
const DATA_BYTES: usize = 64 * 1024;

const TOO_LONG: &[u8] = b"500 The line is longer than 4096 bytes.\r\n";
const ENDLESS: &[u8] = b"421 Line too long; closing the connection.\r\n";
const BEHIND_AUTH: &[u8] =
    b"421 Data received between AUTH and the TLS handshake; closing the connection.\r\n";

/// How long what a client still sends is read away after its session was refused.
const REST_MAX: Duration = Duration::from_millis(500);
/// How long the library waits for a data connection.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// An address of loopback for one session, drawn at random: the library takes data connections from it alone.
pub(super) fn address() -> Ipv4Addr {
    // 127.128.0.0/9; nobody serves there.
    let [a, b, c, _] = rand::random::<u32>().to_be_bytes();
    Ipv4Addr::new(127, 128 | a, b, c)
}

/// Two ends of one connection over loopback.
pub(super) async fn pair(address: Ipv4Addr) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from((address, 0))).await?;
    let (connected, accepted) = tokio::join!(connect(address, listener.local_addr()?), listener.accept());
    let (ours, (theirs, from)) = (connected?, accepted?);
    if from != ours.local_addr()? {
        return Err(io::Error::other("another program of this machine came in between"));
    }
    theirs.set_nodelay(true)?;
    Ok((ours, theirs))
}

async fn connect(own: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((own, 0)))?;
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

/// Relays one data connection: `listener` is at the client's side, and the library waits at the same port of `address`. Who
/// does not come from `client` is closed, and the wait goes on.
pub(super) async fn relay_data(listener: TcpListener, client: IpAddr, address: Ipv4Addr) {
    let relaying = async {
        let port = listener.local_addr()?.port();
        let coming = async {
            loop {
                let (stream, from) = listener.accept().await?;
                if from.ip().to_canonical() == client {
                    return Ok::<_, io::Error>(stream);
                }
                tracing::warn!(from = %from.ip(), "a data connection that is not the client's was closed");
            }
        };
        let mut client = tokio::time::timeout(CONNECT_MAX, coming).await??;
        drop(listener);
        let mut library = connect(address, SocketAddr::from((address, port))).await?;
        // Whatever ends this before both have ended in order is a reset for both: a part is never taken for all.
        for stream in [&client, &library] {
            sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
        }
        let (mut from_client, mut to_client) = client.split();
        let (mut from_library, mut to_library) = library.split();
        tokio::try_join!(
            one_way(&mut from_client, &mut to_library),
            one_way(&mut from_library, &mut to_client)
        )?;
        for stream in [&client, &library] {
            sockopt::set_socket_linger(stream, None)?;
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = relaying.await {
        tracing::debug!(%error, "a data connection did not end in order");
    }
}

async fn one_way(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> io::Result<()> {
    let mut buffer = vec![0; DATA_BYTES];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            count => to.write_all(&buffer[..count]).await?,
        }
    }
}

/// Why a relay ended before its connections did.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the control connection broke")]
    Broken(#[from] io::Error),
    #[error("commands were sent after AUTH and before TLS")]
    BehindAuth,
    #[error("a line without an end")]
    Endless,
}

/// Relays until both ends have ended.
pub(super) async fn relay(mut client: TcpStream, mut library: TcpStream) -> Result<(), Error> {
    match in_plaintext(&mut client, &mut library).await {
        Ok(Goes::OnWithTls) => {
            copy_bidirectional(&mut client, &mut library).await?;
            Ok(())
        }
        Ok(Goes::NoFurther) => Ok(()),
        Err(error) => {
            let said = match error {
                Error::Broken(_) => &[][..],
                Error::BehindAuth => BEHIND_AUTH,
                Error::Endless => ENDLESS,
            };
            client.write_all(said).await?;
            client.shutdown().await?;
            // What stays unread would reset the connection, and the reply with it.
            let rest = async {
                let mut rest = vec![0; DATA_BYTES];
                while let Ok(1..) = client.read(&mut rest).await {}
            };
            if let Error::BehindAuth = error {
                tokio::time::timeout(REST_MAX, rest).await.ok();
            }
            Err(error)
        }
    }
}

enum Goes {
    OnWithTls,
    NoFurther,
}

async fn in_plaintext(client: &mut TcpStream, library: &mut TcpStream) -> Result<Goes, Error> {
    let (mut lines, mut replies) = (Lines::default(), Replies::default());
    let (mut from_client, mut from_library) = ([0; READ_BYTES], [0; READ_BYTES]);
    let (mut client_ended, mut library_ended) = (false, false);
    while !library_ended {
        // What is behind an AUTH waits for its reply, and the client with it.
        while !lines.waits {
            match lines.next()? {
                Next::Line(line) => library.write_all(&line).await?,
                Next::TooLong => client.write_all(TOO_LONG).await?,
                Next::None => break,
            }
        }
        tokio::select! {
            read = client.read(&mut from_client), if !client_ended && !lines.waits => match read? {
                0 => {
                    client_ended = true;
                    library.shutdown().await?;
                }
                count => lines.buffer.extend_from_slice(&from_client[..count]),
            },
            read = library.read(&mut from_library) => {
                let count = read?;
                library_ended = count == 0;
                for byte in &from_library[..count] {
                    let Some(reply) = replies.add(*byte) else { continue };
                    if reply.code == *b"234" {
                        // The client sends nothing before it has this reply, unless it is not the client.
                        let is_first = lines.ends_in_auth && lines.buffer.is_empty();
                        if !is_first || has_unread(client)? {
                            return Err(Error::BehindAuth);
                        }
                        client.write_all(&reply.text).await?;
                        return Ok(Goes::OnWithTls);
                    }
                    lines.waits &= !reply.is_last;
                    client.write_all(&reply.text).await?;
                }
                // What has no end yet is none of the library's replies.
                if replies.line.len() > LINE_BYTES_MAX {
                    client.write_all(&std::mem::take(&mut replies.line)).await?;
                }
            }
        }
    }
    client.shutdown().await?;
    Ok(Goes::NoFurther)
}

fn has_unread(client: &TcpStream) -> io::Result<bool> {
    use rustix::net::{RecvFlags, recv};
    match recv(client, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((count, _)) => Ok(count > 0),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What a client has sent, line by line.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    /// Bytes of the present line that were read away.
    discarded: usize,
    /// AUTH has gone on, and no reply has come since.
    waits: bool,
    /// The line that has gone on last is an AUTH.
    ends_in_auth: bool,
}

enum Next {
    Line(Vec<u8>),
    TooLong,
    None,
}

impl Lines {
    fn next(&mut self) -> Result<Next, Error> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.buffer.len(), |end| end + 1);
        if self.discarded > 0 || length > LINE_BYTES_MAX {
            self.discarded += length;
            self.buffer.drain(..length);
            if self.discarded > LINE_DISCARDED_BYTES_MAX {
                return Err(Error::Endless);
            }
            if end.is_none() {
                return Ok(Next::None);
            }
            self.discarded = 0;
            return Ok(Next::TooLong);
        }
        if end.is_none() {
            return Ok(Next::None);
        }
        let line: Vec<u8> = self.buffer.drain(..length).collect();
        self.ends_in_auth = is_auth(&line);
        self.waits = self.ends_in_auth;
        Ok(Next::Line(line))
    }
}

/// True also for what only looks like it: that costs a moment.
fn is_auth(line: &[u8]) -> bool {
    let begins = line.iter().position(u8::is_ascii_alphabetic).unwrap_or(line.len());
    line[begins..].get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH"))
}

/// What the library answers, line by line.
#[derive(Debug, Default)]
struct Replies {
    line: Vec<u8>,
    /// The code of a reply whose last line has not come.
    open: Option<[u8; 3]>,
}

struct ReplyLine {
    text: Vec<u8>,
    /// Of the reply that it ends or begins; zeros within one.
    code: [u8; 3],
    /// It ends a reply that is not preliminary.
    is_last: bool,
}

impl Replies {
    fn add(&mut self, byte: u8) -> Option<ReplyLine> {
        self.line.push(byte);
        if byte != b'\n' {
            return None;
        }
        let text = std::mem::take(&mut self.line);
        let code = text.first_chunk::<3>().copied().filter(|code| code.iter().all(u8::is_ascii_digit));
        let goes_on = text.get(3) == Some(&b'-');
        let (code, ends) = match (self.open, code) {
            (Some(open), Some(code)) if code == open && !goes_on => (code, true),
            (Some(_), _) => ([0; 3], false),
            (None, Some(code)) if goes_on => {
                self.open = Some(code);
                (code, false)
            }
            (None, Some(code)) => (code, true),
            (None, None) => ([0; 3], false),
        };
        if ends {
            self.open = None;
        }
        Some(ReplyLine { text, code, is_last: ends && code[0] != b'1' })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_behind_an_auth_wait_and_long_ones_are_dropped() {
        let mut lines = Lines { buffer: b"NOOP\r\nauth tls\r\nUSER x\r\n".to_vec(), ..Lines::default() };
        for (expected, waits) in [(&b"NOOP\r\n"[..], false), (b"auth tls\r\n", true)] {
            let Ok(Next::Line(line)) = lines.next() else { panic!("a line") };
            assert_eq!((&line[..], lines.waits), (expected, waits));
        }
        assert_eq!(lines.buffer, b"USER x\r\n");
        let long = [&vec![b'x'; LINE_BYTES_MAX][..], b"\r\nNOOP\r\n"].concat();
        let mut lines = Lines { buffer: long, ..Lines::default() };
        assert!(matches!(lines.next(), Ok(Next::TooLong)));
        assert!(matches!(lines.next(), Ok(Next::Line(line)) if line == b"NOOP\r\n"));
        let mut lines = Lines { buffer: vec![b'x'; LINE_DISCARDED_BYTES_MAX + 1], ..Lines::default() };
        assert!(matches!(lines.next(), Err(Error::Endless)));
        for auth in [&b"AUTH TLS\r\n"[..], b" auth tls\n", b"\xff\xf4AUTH\tTLS\r\n"] {
            assert!(is_auth(auth), "{}", auth.escape_ascii());
        }
    }

    #[test]
    fn replies_are_told_apart() {
        let mut replies = Replies::default();
        let text = b"211-Status\r\n234 no reply\r\n211 end\r\n150 Begins\r\n234 Go\r\n";
        let ends: Vec<_> = text.iter().filter_map(|byte| replies.add(*byte)).collect();
        let found: Vec<_> = ends.iter().map(|line| (line.code, line.is_last)).collect();
        assert_eq!(
            found,
            [(*b"211", false), ([0; 3], false), (*b"211", true), (*b"150", false), (*b"234", true)]
        );
    }
}
