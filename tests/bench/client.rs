//! The load: a minimal blocking FTP client that costs less than any server it measures.
//!
//! Who calls it: `measure` for transfers, `servers` to see whether a server answers.
//! What it calls: the kernel. Downloads are dropped there (MSG_TRUNC), uploads are sent from there (sendfile).
//! What it never does: repeat a transfer, wait without a deadline, or take anything but 226 for a complete transfer.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::RecvFlags;

use crate::{Result, interrupt};

/// Longest wait for any single step of a socket.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Longest line of a reply.
const LINE_BYTES_MAX: u64 = 4_096;
/// Lines of a reply at most.
const REPLY_LINES_MAX: usize = 100;
/// Tries of one PASV. ProFTPD draws passive ports at random, and two sessions that draw the same one between
/// bind and listen get 425; any client would ask again, and so does this one, counting.
const PASV_TRIES_MAX: u32 = 3;
/// Bytes dropped, read or sent by one system call at most.
const STEP_BYTES_MAX: usize = 4 << 20;

/// Where and as whom to log in.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) address: SocketAddr,
    pub(crate) user: &'static str,
    pub(crate) password: &'static str,
}

/// A control connection that is logged in and in binary mode.
pub(crate) struct Session {
    control: BufReader<TcpStream>,
    buffer: Vec<u8>,
    /// Times that PASV was answered with 425.
    pub(crate) pasv_refused: usize,
}

/// What becomes of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Dropped in the kernel.
    Drop,
    /// Read and summed.
    Checksum,
}

struct Reply {
    code: u16,
    text: String,
}

impl Session {
    pub(crate) fn open(login: &Login) -> Result<Self> {
        let stream = connect(login.address)?;
        stream.set_nodelay(true)?;
        let mut session =
            Self { control: BufReader::new(stream), buffer: vec![0; STEP_BYTES_MAX], pasv_refused: 0 };
        session.expect("the greeting", &[220])?;
        if session.ask(&format!("USER {}", login.user), &[230, 331])?.code == 331 {
            session.ask(&format!("PASS {}", login.password), &[230])?;
        }
        session.ask("TYPE I", &[200])?;
        Ok(session)
    }

    /// Ends the session politely; servers then have nothing to clear away during the next measurement.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.ask("QUIT", &[221])?;
        Ok(())
    }

    /// Downloads a file of `bytes` bytes; its CRC-32C, or 0 where it is dropped.
    pub(crate) fn retr(&mut self, path: &str, bytes: u64, sink: Sink) -> Result<u32> {
        interrupt::check()?;
        let data = self.pasv()?;
        let command = format!("RETR {path}");
        self.ask(&command, &[125, 150])?;
        let (mut received, mut checksum) = (0, 0);
        loop {
            let flags = if sink == Sink::Drop { RecvFlags::TRUNC } else { RecvFlags::empty() };
            let (_, count) = rustix::net::recv(&data, &mut self.buffer[..], flags)
                .map_err(|errno| format!("{command}: data connection: {errno}"))?;
            if count == 0 {
                break;
            }
            received += count as u64;
            if sink == Sink::Checksum {
                checksum = crc32c::crc32c_append(checksum, &self.buffer[..count]);
            }
        }
        drop(data);
        self.expect(&command, &[226])?;
        if received != bytes {
            return Err(format!("{command}: {received} bytes came, the file has {bytes}").into());
        }
        Ok(checksum)
    }

    /// Uploads `file`, which has `bytes` bytes.
    pub(crate) fn stor(&mut self, path: &str, file: &File, bytes: u64) -> Result<()> {
        interrupt::check()?;
        let data = self.pasv()?;
        let command = format!("STOR {path}");
        self.ask(&command, &[125, 150])?;
        let mut offset = 0;
        while offset < bytes {
            let step = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(STEP_BYTES_MAX);
            let sent = rustix::fs::sendfile(&data, file, Some(&mut offset), step)
                .map_err(|errno| format!("{command}: data connection: {errno}"))?;
            if sent == 0 {
                return Err(
                    format!("{command}: the file to send ended after {offset} of {bytes} bytes").into()
                );
            }
        }
        data.shutdown(Shutdown::Write)?;
        self.expect(&command, &[226])?;
        Ok(())
    }

    fn pasv(&mut self) -> Result<TcpStream> {
        let mut reply = self.ask("PASV", &[227, 425])?;
        for _ in 1..PASV_TRIES_MAX {
            if reply.code == 227 {
                break;
            }
            self.pasv_refused += 1;
            reply = self.ask("PASV", &[227, 425])?;
        }
        let address = passive_address(&reply.text)
            .ok_or_else(|| format!("PASV: no address in the answer {:?}", reply.text))?;
        connect(address)
    }

    fn ask(&mut self, command: &str, wanted: &[u16]) -> Result<Reply> {
        // One write for the line: two would meet Nagle's algorithm at whoever has it on.
        self.control.get_ref().write_all(format!("{command}\r\n").as_bytes())?;
        let what = if command.starts_with("PASS") { "PASS" } else { command };
        self.expect(what, wanted)
    }

    fn expect(&mut self, what: &str, wanted: &[u16]) -> Result<Reply> {
        let reply = self.reply().map_err(|error| format!("{what}: control connection: {error}"))?;
        if wanted.contains(&reply.code) {
            return Ok(reply);
        }
        Err(format!("{what}: answered {:?}, wanted {wanted:?}", reply.text).into())
    }

    /// A reply of one or more lines (RFC 959 section 4.2); its last line.
    fn reply(&mut self) -> Result<Reply> {
        let mut first = None;
        for _ in 0..REPLY_LINES_MAX {
            let mut line = Vec::new();
            self.control.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Err("closed, or a line without end".into());
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let code = text.get(..3).and_then(|digits| digits.parse::<u16>().ok());
            let more = text.as_bytes().get(3) == Some(&b'-');
            match (first, code) {
                (None, None) => return Err(format!("no reply: {text:?}").into()),
                (None, Some(code)) if more => first = Some(code),
                (None, Some(code)) => return Ok(Reply { code, text }),
                (Some(first), Some(code)) if first == code && !more => return Ok(Reply { code, text }),
                (Some(_), _) => {}
            }
        }
        Err("a reply without end".into())
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, STEP_MAX)
        .map_err(|error| format!("cannot connect to {address}: {error}"))?;
    stream.set_read_timeout(Some(STEP_MAX))?;
    stream.set_write_timeout(Some(STEP_MAX))?;
    Ok(stream)
}

/// The address in `227 ... h1,h2,h3,h4,p1,p2 ...` (RFC 959 section 4.1.2; parentheses are custom, not rule).
fn passive_address(text: &str) -> Option<SocketAddr> {
    let list =
        text.get(4..)?.split(|c: char| !(c.is_ascii_digit() || c == ',')).find(|part| part.contains(','))?;
    let numbers: Vec<u8> = list.split(',').map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
    let [a, b, c, d, high, low] = numbers[..] else { return None };
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passive_addresses() {
        for bad in ["", "227", "227 no", "227 (1,2,3,4,5)", "227 (1,2,3,4,5,256)", "227 (1,2,3,4,5,6,7)"] {
            assert!(passive_address(bad).is_none(), "{bad}");
        }
        for good in ["227 Entering Passive Mode (127,0,0,1,78,32).", "227 =127,0,0,1,78,32"] {
            assert_eq!(passive_address(good).unwrap().to_string(), "127.0.0.1:20000", "{good}");
        }
    }
}
