//! The agent's own folder in a store, `.portolan`, and what is put right in it at start.
//!
//! `.portolan/staging` holds uploads that are not complete. After a crash they are worthless: the files they
//! were to replace are untouched. A file that a rename has put aside there is not: it is swept only where it has
//! another name too. `.portolan/record` is what front ends keep here. `.portolan/lock` keeps a second agent away from the same root.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::path::Root;
use crate::store::{Result, StorePath};

/// The agent's folder. It lies beside `domains`, so no path of the tree names it.
const OWN_FOLDER: &[u8] = b".portolan";
const STAGING: &[u8] = b".portolan/staging";

/// How the names of files begin that a rename has put aside. They may be the only name of what somebody has stored.
pub const ASIDE: &str = "renamed-";

/// The staging folder, opened beneath the root: who owns the root cannot lead us elsewhere by a link.
pub fn staging(root: &Root) -> Result<OwnedFd> {
    root.open_directory(&StorePath::new(STAGING).expect("a constant"))
}

/// The agent's folder, opened beneath the root.
pub fn own_folder(root: &Root) -> Result<OwnedFd> {
    root.open_directory(&StorePath::new(OWN_FOLDER).expect("a constant"))
}

/// Takes the root for this process, makes the folders and sweeps the staging folder. Returns the lock, which
/// holds as long as it is kept, and the number of files swept.
///
/// # Errors
/// `WouldBlock` when another process has the root.
pub fn recover(root: &Root) -> io::Result<(File, usize)> {
    let made = |made: std::result::Result<(), Errno>| match made {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let mode = Mode::from_raw_mode(0o700);
    made(rustix::fs::mkdirat(root.as_fd(), OWN_FOLDER, mode))?;
    let own =
        root.open_directory(&StorePath::new(OWN_FOLDER).expect("a constant")).map_err(io::Error::other)?;
    made(rustix::fs::mkdirat(&own, "staging", mode))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(&own, "lock", flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let staging = staging(root).map_err(io::Error::other)?;
    let mut swept = 0;
    for entry in rustix::fs::Dir::read_from(&staging)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            if name.to_bytes().starts_with(ASIDE.as_bytes())
                && rustix::fs::statat(&staging, name, AtFlags::SYMLINK_NOFOLLOW)?.st_nlink == 1
            {
                tracing::warn!(
                    file = %name.to_string_lossy(),
                    "a rename was cut, and a file has no name but the one in .portolan/staging; move it to where it belongs"
                );
                continue;
            }
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

    #[test]
    fn a_file_that_a_rename_has_put_aside_is_swept_only_where_it_has_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        drop(recover(&root).unwrap());
        let [only, second] =
            ["renamed-1-1", "renamed-1-2"].map(|name| folder.path().join(".portolan/staging").join(name));
        std::fs::write(&only, "the only copy").unwrap();
        std::fs::write(&second, "has another name").unwrap();
        std::fs::hard_link(&second, folder.path().join("other")).unwrap();
        assert_eq!(recover(&root).unwrap().1, 1);
        assert_eq!(std::fs::read(&only).unwrap(), b"the only copy");
        assert!(!second.try_exists().unwrap());
    }

    #[test]
    fn a_link_in_place_of_the_own_folder_sweeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let victim = tempfile::tempdir().unwrap();
        std::fs::create_dir(victim.path().join("staging")).unwrap();
        std::fs::write(victim.path().join("staging/file"), "x").unwrap();
        std::os::unix::fs::symlink(victim.path(), folder.path().join(".portolan")).unwrap();
        recover(&Root::open(folder.path()).unwrap()).unwrap_err();
        assert!(victim.path().join("staging/file").is_file());
        assert!(!victim.path().join("lock").try_exists().unwrap());
    }
}
