//! The agent's own folder in a store, `.portolan`, and what is put right in it at start.
//!
//! `.portolan/staging` holds uploads that are not complete. After a crash they are worthless: the files they
//! were to replace are untouched. `.portolan/lock` keeps a second agent away from the same root.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::path::Root;

/// Name of the agent's folder in the root. It lies beside `domains`, so no path of the tree names it.
pub const OWN_FOLDER: &str = ".portolan";
const STAGING: &str = ".portolan/staging";

/// The staging folder.
pub fn staging(root: &Root) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(root.as_fd(), STAGING, flags, Mode::empty())
}

/// Takes the root for this process, makes the folders and sweeps the staging folder. Returns the lock, which
/// holds as long as it is kept, and the number of files swept.
///
/// # Errors
/// `WouldBlock` when another process has the root.
pub fn recover(root: &Root) -> io::Result<(File, usize)> {
    for folder in [OWN_FOLDER, STAGING] {
        match rustix::fs::mkdirat(root.as_fd(), folder, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(root.as_fd(), ".portolan/lock", flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let staging = staging(root)?;
    let mut swept = 0;
    for entry in rustix::fs::Dir::read_from(&staging)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            rustix::fs::unlinkat(&staging, name, AtFlags::empty())?;
            swept += 1;
        }
    }
    rustix::fs::fsync(&staging)?;
    Ok((File::from(lock), swept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_is_swept_and_the_root_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let (lock, swept) = recover(&root).unwrap();
        assert_eq!(swept, 0);
        let stale = folder.path().join(".portolan/staging/1-1");
        std::fs::write(&stale, "half").unwrap();
        assert_eq!(recover(&root).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        assert_eq!(recover(&root).unwrap().1, 1);
        assert!(!stale.try_exists().unwrap());
    }
}
