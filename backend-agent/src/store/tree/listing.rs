//! A directory being listed while others rename in it.
//!
//! A mail server renames files all the time (flags, `new/` to `cur/`), and readdir(3) may pass over an entry
//! that is renamed meanwhile. So the names are read until the directory did not change during the reading, and
//! names that are gone when their turn comes make the directory be read again for those that took their place.
//! What is there all the time is listed, under one of its names.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use crate::store::disk::path::{Root, entry};
use crate::store::{Entry, Error, Listing, Result, StorePath};

/// Readings of the names at most; a directory that changed during each of them is told to be busy.
const READINGS_MAX: usize = 200;
/// Pause between two readings, growing with their number.
const READING_PAUSE: Duration = Duration::from_micros(500);
/// How coarse the time stamps of file systems may be. A younger change could hide a later one.
const STAMP_TICK: Duration = Duration::from_millis(10);
/// How often names that took the place of others are looked for.
const ROUNDS_MAX: usize = 16;

pub(super) struct TreeListing {
    path: StorePath,
    fd: OwnedFd,
    /// Must the entries come in byte order?
    sorted: bool,
    /// All names seen so far, in byte order.
    seen: Vec<Vec<u8>>,
    /// Names still to be told, the next one last.
    pending: Vec<Vec<u8>>,
    /// A name was gone when its turn came.
    missed: bool,
    rounds: usize,
}

impl TreeListing {
    pub(super) fn open(root: &Root, path: &StorePath, sorted: bool) -> Result<Self> {
        let fd = root.open_directory(path)?;
        let seen = settled_names(&fd, path)?;
        let pending = seen.iter().rev().cloned().collect();
        Ok(Self { path: path.clone(), fd, sorted, seen, pending, missed: false, rounds: 0 })
    }

    /// Looks for names that took the place of missed ones.
    fn look_again(&mut self) -> Result<()> {
        self.missed = false;
        self.rounds += 1;
        // In byte order a late name could not be put where it belongs.
        if self.sorted || self.rounds > ROUNDS_MAX {
            return Err(Error::Changing { path: self.path.to_string() });
        }
        let mut new = settled_names(&self.fd, &self.path)?;
        new.retain(|name| self.seen.binary_search(name).is_err());
        self.seen.extend(new.iter().cloned());
        self.seen.sort_unstable();
        self.pending = new;
        Ok(())
    }
}

impl Listing for TreeListing {
    fn next_batch(&mut self, entries_max: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut name_bytes = 0;
        while entries.len() < entries_max && name_bytes < portolan_proto::LIST_BATCH_NAME_BYTES_MAX {
            let Some(name) = self.pending.pop() else {
                if !self.missed {
                    break;
                }
                self.look_again()?;
                continue;
            };
            match rustix::fs::statat(&self.fd, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    name_bytes += name.len();
                    entries.push(entry(name, &stat));
                }
                // Removed, or there under another name.
                Err(Errno::NOENT) => self.missed = true,
                Err(errno) => return Err(Error::from_errno(&self.path, errno)),
            }
        }
        Ok(entries)
    }
}

/// The names of a directory as they were at one moment, in byte order.
fn settled_names(fd: &OwnedFd, path: &StorePath) -> Result<Vec<Vec<u8>>> {
    let at = |errno| Error::from_errno(path, errno);
    let changed = || {
        let stat = rustix::fs::fstat(fd)?;
        Ok((stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec))
    };
    for reading in 0..READINGS_MAX {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = changed().map_err(at)?;
        let names = names(fd).map_err(at)?;
        let after = changed().map_err(at)?;
        let last = Duration::new(u64::try_from(after.0).unwrap_or(0), u32::try_from(after.1).unwrap_or(0));
        // A directory that never comes to rest for a tick is taken as soon as its stamps agree.
        let at_rest = last + STAMP_TICK < started || reading > READINGS_MAX / 4;
        if before == after && at_rest {
            return Ok(names);
        }
        std::thread::sleep(READING_PAUSE * u32::try_from(reading.min(20)).unwrap_or(20));
    }
    Err(Error::Changing { path: path.to_string() })
}

fn names(fd: &OwnedFd) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_is_renamed_meanwhile_is_listed_under_one_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..1_000 {
            std::fs::write(folder.path().join(format!("{number}:2,")), "").unwrap();
        }
        let root = Root::open(folder.path()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0..1_000).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let plain = folder.path().join(format!("{number}:2,"));
                    let flagged = folder.path().join(format!("{number}:2,S"));
                    std::fs::rename(&plain, &flagged).unwrap();
                    std::fs::rename(&flagged, &plain).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            for _ in 0..10 {
                let mut listing = TreeListing::open(&root, &StorePath::new(b"").unwrap(), false).unwrap();
                let mut found = BTreeSet::new();
                loop {
                    let batch = listing.next_batch(100).unwrap();
                    if batch.is_empty() {
                        break;
                    }
                    for entry in batch {
                        found.insert(entry.name.split(|byte| *byte == b':').next().unwrap().to_vec());
                    }
                }
                assert_eq!(found.len(), 1_000);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
