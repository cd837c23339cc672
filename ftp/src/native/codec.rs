//! The control connection's bytes, as lines and replies.
//!
//! Lines end in CR LF or LF; Telnet commands (RFC 854) in front of them are taken out. A line has a limit: what is
//! longer is read away in bounded memory.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use portolan_telemetry::log::PROTOCOL;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Stream;
use crate::reply::Reply;
use portolan_net::proxy;

/// Bytes of a line at most, its end included.
pub(super) const LINE_BYTES_MAX: usize = 4_096;
/// A line that does not end after this many bytes ends its session.
const LINE_DISCARDED_BYTES_MAX: usize = 1024 * 1024;
/// A client that does not take a reply for this long is given up.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// The same for the end of a connection that it has ended itself.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What came over the control connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Command(Vec<u8>),
    /// A line above the limit; it was read away.
    TooLong,
    /// A line so long that nobody means it.
    Endless,
    /// No line, but the beginning of a TLS handshake (RFC 8446 section 5.1).
    Tls,
    /// No line, but a PROXY header.
    Proxy,
    /// The client has closed its end.
    Closed,
}

impl Line {
    /// Bytes that it takes to remember it.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Line::Command(line) => line.len(),
            Line::TooLong | Line::Endless | Line::Tls | Line::Proxy | Line::Closed => 0,
        }
    }
}

/// The control connection of one session.
#[derive(Debug)]
pub(super) struct ControlIo {
    stream: Stream,
    buffer: BytesMut,
    /// Bytes of the present line that were read away.
    discarded: usize,
    out: Vec<u8>,
}

impl ControlIo {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, buffer: BytesMut::new(), discarded: 0, out: Vec::new() }
    }

    /// Gives the stream back, for TLS to be put around it.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// The next line. Nothing is lost when this is cancelled.
    pub(super) async fn next_line(&mut self) -> io::Result<Line> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(line);
            }
            if self.read_at_once()? {
                continue;
            }
            self.buffer.reserve(LINE_BYTES_MAX);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(Line::Closed);
            }
        }
    }

    /// Reads what has come already. A read ends before an urgent byte, such as the last one of an ABOR that was
    /// sent so (RFC 959 section 4.1.3). The runtime takes that short read for a sign that no more is there, and
    /// would wait for what comes after; so the socket itself is asked before each wait.
    fn read_at_once(&mut self) -> io::Result<bool> {
        let Stream::Left(plain) = &self.stream else { return Ok(false) };
        let mut bytes = [0; LINE_BYTES_MAX];
        match rustix::net::recv(plain, &mut bytes, RecvFlags::DONTWAIT) {
            // The end is told by the wait.
            Ok((_, 0)) | Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Ok((_, count)) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn take_line(&mut self) -> Option<Line> {
        if self.discarded == 0 && self.buffer.starts_with(b"\x16\x03") {
            self.buffer.clear();
            return Some(Line::Tls);
        }
        if self.discarded == 0 && proxy::looks_like_header(&self.buffer) {
            self.buffer.clear();
            return Some(Line::Proxy);
        }
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.buffer.len(), |end| end + 1);
        if self.discarded > 0 || length > LINE_BYTES_MAX {
            self.discarded += length;
            self.buffer.advance(length);
            if self.discarded > LINE_DISCARDED_BYTES_MAX {
                return Some(Line::Endless);
            }
            end?;
            self.discarded = 0;
            return Some(Line::TooLong);
        }
        let line = self.buffer.split_to(end? + 1);
        let line = without_telnet(&line[..line.len() - 1]).to_vec();
        // The room of a line that is done is not kept while the session idles.
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Some(Line::Command(line))
    }

    /// What the client has sent beyond the last line.
    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer
    }

    /// Adds a reply to what goes out with the next [`ControlIo::flush`].
    pub(super) fn queue(&mut self, reply: &Reply) {
        reply.encode(&mut self.out);
        tracing::debug!(
            target: PROTOCOL,
            reply = reply.code,
            text = %portolan_proto::path::display(&reply.text),
            lines = reply.body.len(),
            "reply sent"
        );
    }

    /// Sends what is queued, in one write.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let sent = tokio::time::timeout(WRITE_MAX, async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        });
        sent.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        self.out = Vec::new();
        Ok(())
    }

    pub(super) async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        self.queue(reply);
        self.flush().await
    }

    /// Ends the connection in order: over TLS with the closing alert.
    pub(super) async fn shutdown(&mut self) {
        self.end(WRITE_MAX).await;
    }

    /// The same after the client's own end, which it may wait for (RFC 8446 section 6.1), and may not.
    pub(super) async fn answer_end(&mut self) {
        self.end(ANSWER_MAX).await;
    }

    async fn end(&mut self, deadline: Duration) {
        if !matches!(tokio::time::timeout(deadline, self.stream.shutdown()).await, Ok(Ok(()))) {
            tracing::debug!("the client did not wait for the end of its control connection");
        }
    }
}

/// A line without its CR and without the Telnet commands before its verb, where those stand that come with an
/// ABOR (RFC 959 section 4.1.3). Some clients send them without the byte 255 before each, or that byte alone. No verb begins
/// with one of them. Behind it a byte 255 is part of a name.
fn without_telnet(line: &[u8]) -> &[u8] {
    const IAC: u8 = 255;
    let mut rest = line.strip_suffix(b"\r").unwrap_or(line);
    // WILL, WONT, DO, DONT and their option; then the commands of two bytes, and either byte alone.
    while let [IAC, 251..=254, _, after @ ..] | [IAC, 240..=254, after @ ..] | [240..=IAC, after @ ..] = rest
    {
        rest = after;
    }
    rest
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (ControlIo, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (ControlIo::new(Stream::Left(server)), client)
    }

    fn command(line: &[u8]) -> Line {
        Line::Command(line.to_vec())
    }

    #[test]
    fn telnet_commands_are_taken_out_and_names_stay_bytes() {
        for (line, plain) in [
            (&b"NOOP\r"[..], &b"NOOP"[..]),
            (b"\xff\xf4\xff\xf2ABOR\r", b"ABOR"),
            (b"\xff\xfb\x01\xff\xfe\x03NOOP", b"NOOP"),
            (b"\xf4\xf2ABOR\r", b"ABOR"),
            (b"\xf4\xffABOR\r", b"ABOR"),
            (b"\xff\xf4\xf2ABOR\r", b"ABOR"),
            (b"\xf2ABOR\r", b"ABOR"),
            (b"STOR \xff\xf2.eml", b"STOR \xff\xf2.eml"),
            (b"RETR a\xff\xffb", b"RETR a\xff\xffb"),
            (b"RETR \xffa\xff", b"RETR \xffa\xff"),
            (b"", b""),
        ] {
            assert_eq!(without_telnet(line), plain);
        }
    }

    #[tokio::test]
    async fn pipelined_commands_come_one_by_one() {
        let (mut io, mut client) = pair().await;
        client.write_all(b"NOOP\r\nPWD\nQU").await.unwrap();
        assert_eq!(io.next_line().await.unwrap(), command(b"NOOP"));
        assert_eq!(io.next_line().await.unwrap(), command(b"PWD"));
        client.write_all(b"IT\r\n").await.unwrap();
        drop(client);
        assert_eq!(io.next_line().await.unwrap(), command(b"QUIT"));
        assert_eq!(io.next_line().await.unwrap(), Line::Closed);
    }

    #[tokio::test]
    async fn a_line_with_an_urgent_byte_is_read_whole() {
        let (mut io, client) = pair().await;
        let Stream::Left(server) = &io.stream else { unreachable!("pair() is without TLS") };
        rustix::net::sockopt::set_socket_oobinline(server, true).unwrap();
        // Where the line comes while it is waited for, the wait must not go on behind the urgent byte.
        let (line, ()) = tokio::join!(io.next_line(), async {
            tokio::task::yield_now().await;
            rustix::net::send(&client, b"ABOR\r\n", rustix::net::SendFlags::OOB).unwrap();
        });
        assert_eq!(line.unwrap(), command(b"ABOR"));
    }

    #[tokio::test]
    async fn a_line_above_the_limit_is_read_away_and_the_next_one_counts() {
        let (mut io, mut client) = pair().await;
        let longest = [&vec![b'x'; LINE_BYTES_MAX - 1][..], b"\n"].concat();
        let too_long = [b"x", &longest[..]].concat();
        let writer = tokio::spawn(async move {
            client.write_all(&longest).await.unwrap();
            client.write_all(&too_long).await.unwrap();
            client.write_all(&[b'y'; 500_000]).await.unwrap();
            client.write_all(b"\nNOOP\n").await.unwrap();
            client.write_all(&vec![b'z'; 2 * LINE_DISCARDED_BYTES_MAX]).await.ok();
        });
        assert!(matches!(io.next_line().await.unwrap(), Line::Command(_)));
        assert_eq!(io.next_line().await.unwrap(), Line::TooLong);
        assert_eq!(io.next_line().await.unwrap(), Line::TooLong);
        assert_eq!(io.next_line().await.unwrap(), command(b"NOOP"));
        assert_eq!(io.next_line().await.unwrap(), Line::Endless);
        assert!(io.buffer.capacity() <= 4 * LINE_BYTES_MAX, "{}", io.buffer.capacity());
        drop(io);
        writer.await.unwrap();
    }
}
