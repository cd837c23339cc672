//! Where lines end up. Each sink may wait as long as it must: it has a thread of its own.

pub(super) mod file;
pub(super) mod journald;
pub(super) mod otlp;
pub(super) mod syslog;

use std::collections::VecDeque;
use std::io::{self, Write as _};

use super::queue::Sink;

/// The standard error of the process.
pub(super) struct Stderr;

impl Sink<Vec<u8>> for Stderr {
    fn deliver(&mut self, items: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
        let mut stderr = io::stderr().lock();
        while let Some(line) = items.front() {
            match stderr.write_all(line) {
                Ok(()) => {}
                // Nobody reads it any more, and nobody will.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
            items.pop_front();
        }
        Ok(())
    }
}
