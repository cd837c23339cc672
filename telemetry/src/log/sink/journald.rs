//! The journal of systemd, by its native protocol (systemd: Native Journal Protocol).

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::log::queue::Sink;
use crate::log::record::Record;

/// A journal that takes nothing for this long is connected to anew.
const STEP_MAX: Duration = Duration::from_secs(10);
const SOCKET: &str = "/run/systemd/journal/socket";

/// An entry: each field of the record is one of it, so that `journalctl ADMIN=anna` finds them.
pub(in crate::log) fn entry(record: &Record, program: &str, said: &str) -> Vec<u8> {
    let mut entry = Vec::new();
    push(&mut entry, "MESSAGE", said);
    push(&mut entry, "PRIORITY", &(record.severity as u8).to_string());
    push(&mut entry, "SYSLOG_IDENTIFIER", program);
    push(&mut entry, "SYSLOG_PID", &std::process::id().to_string());
    push(&mut entry, "TARGET", &record.source);
    if let Some((trace, span)) = record.trace {
        push(&mut entry, "TRACE_ID", &trace.to_string());
        push(&mut entry, "SPAN_ID", &span.to_string());
    }
    for (name, value) in &record.fields {
        // Names are upper case; with the prefix none is taken for one of the journal's own.
        push(&mut entry, &format!("PORTOLAN_{}", name.to_uppercase().replace('.', "_")), &value.text());
    }
    entry
}

/// A value on one line is written as it is, another one with its length before it.
fn push(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// A connection to the journal, made when it is needed.
pub(in crate::log) struct Journald {
    socket: Option<UnixDatagram>,
}

impl Journald {
    pub(in crate::log) fn new() -> Self {
        Self { socket: None }
    }
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET)?;
    socket.set_write_timeout(Some(STEP_MAX))?;
    Ok(socket)
}

/// What is too long for a datagram goes as a sealed file of memory.
fn send(socket: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
    match socket.send(entry) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {}
        sent => return sent.map(drop),
    }
    let file = memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(entry)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(socket, &[], &mut control, SendFlags::empty())?;
    Ok(())
}

impl Sink<Vec<u8>> for Journald {
    fn deliver(&mut self, items: &mut VecDeque<Vec<u8>>, _: &mut u64) -> io::Result<()> {
        while let Some(entry) = items.front() {
            let socket = match &mut self.socket {
                Some(socket) => socket,
                none => none.insert(connect()?),
            };
            if let Err(error) = send(socket, entry) {
                self.socket = None;
                return Err(error);
            }
            items.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::tests::record;

    #[test]
    fn a_value_cannot_bring_a_field_of_its_own() {
        let entry = entry(&record("hello", &[("path", "a\nPRIORITY=0")]), "portolan-agent", "hello");
        let mut expected = b"PORTOLAN_PATH\n".to_vec();
        expected.extend(12_u64.to_le_bytes());
        expected.extend(b"a\nPRIORITY=0\n");
        assert!(entry.ends_with(&expected), "{entry:?}");
        assert!(entry.starts_with(b"MESSAGE=hello\nPRIORITY=6\nSYSLOG_IDENTIFIER=portolan-agent\n"));
    }
}
