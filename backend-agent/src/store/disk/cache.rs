//! Leaving the page cache to the mail server.
//!
//! A backup reads everything once; what it brings into the cache pushes out what the mail server works with.
//! So a file that was not cached before is dropped from the cache after it was read. A file that was cached
//! stays: somebody uses it.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

/// How a file's pages were found when its first bytes were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Cached,
    /// Not in the cache: what is there afterwards is there because of us.
    Cold,
}

/// Reads the first bytes at `offset` and says whether they came from the cache (RWF_NOWAIT, preadv2(2)).
/// File systems that cannot tell are treated as cached.
pub fn read_first(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<(usize, Found)> {
    let mut slices = [IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(count) => Ok((count, Found::Cached)),
        Err(Errno::AGAIN) => Ok((read(file, buffer, offset)?, Found::Cold)),
        Err(_) => Ok((read(file, buffer, offset)?, Found::Cached)),
    }
}

/// Reads at `offset` until the buffer is full or the file ends.
pub fn read(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::os::unix::fs::FileExt as _;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Drops a file's clean pages. Advice only: a file system that does not know it changes nothing.
pub fn drop_pages(file: impl AsFd) {
    if let Err(errno) = rustix::fs::fadvise(file, 0, None, Advice::DontNeed) {
        tracing::debug!(%errno, "the file system ignores caching advice");
    }
}
