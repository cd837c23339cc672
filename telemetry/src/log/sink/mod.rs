//! Where lines end up. Each sink may wait as long as it must: it has a thread of its own.

pub(super) mod file;
pub(super) mod journald;
pub(super) mod otlp;
pub(super) mod syslog;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::queue::Sink;

/// The standard error of the process.
pub(super) struct Stderr;

impl Sink<Vec<u8>> for Stderr {
    fn deliver(&mut self, items: &mut VecDeque<Vec<u8>>, _: &mut u64) -> io::Result<()> {
        // Without the lock of the standard library: whoever else writes there must not wait with us.
        let stderr = io::stderr();
        while let Some(line) = items.front() {
            match write_all(stderr.as_fd(), line) {
                Ok(()) => {}
                // Nobody reads it any more, and nobody will.
                Err(rustix::io::Errno::PIPE) => {}
                Err(errno) => return Err(errno.into()),
            }
            items.pop_front();
        }
        Ok(())
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            // Somebody has made it non-blocking, for all that have it.
            Err(rustix::io::Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(file, PollFlags::OUT)], None).ok();
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The log goes there, and its lines have a form.
static IS_TARGET: AtomicBool = AtomicBool::new(false);

pub(super) fn stderr_is_target(is_target: bool) {
    IS_TARGET.store(is_target, Ordering::Relaxed);
}

/// True where a line to stderr is taken at once.
pub(crate) fn stderr_takes() -> bool {
    let stderr = io::stderr();
    let mut asked = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// What no log target can be told, on stderr, unless that is one, or nobody reads it.
pub(super) fn say(line: &str) {
    if !IS_TARGET.load(Ordering::Relaxed) && stderr_takes() {
        write_all(io::stderr().as_fd(), line.as_bytes()).ok();
    }
}
