//! The agent's own folder in a store, `.portolan`, and what is put right in it at start.
//!
//! `.portolan/staging`, or a folder that the configuration names, holds uploads that are not complete. After a crash they are
//! worthless: the files they were to replace are untouched. A file that a rename has put aside there is not: it is swept only
//! where it has another name too. `.portolan/lock`, and a lock of the root itself, keep a second agent away from the same root.
//! `.portolan/record` is what front ends keep here.
//!
//! Who calls it: the store kinds at start; `commit`, `names` and renames for the staging folder.
//! What it calls: the system.
//! What it never does: touch anything of a store that is read-only, or a name in a foreign folder that is not an agent's.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::path::{Root, Staging};
use crate::store::{Error, Result, StorePath};

/// The agent's folder. It lies beside `domains`, so no path of the tree names it.
pub(super) const OWN_FOLDER: &[u8] = b".portolan";
const STAGING: &[u8] = b".portolan/staging";

/// How the names of files begin that a rename has put aside. They may be the only name of what somebody has stored.
pub const ASIDE: &str = "renamed-";

/// The agent's folder, opened beneath the root.
pub fn own_folder(root: &Root) -> Result<OwnedFd> {
    root.open_directory(&StorePath::new(OWN_FOLDER).expect("a constant"))
}

/// The staging folder. That in the root is opened beneath it, so that its owner cannot lead us elsewhere by a link, and made
/// again where somebody has removed it.
///
/// # Errors
/// [`Error::DiskFault`] where it is something else, cannot be opened, or is not there; [`Error::NoSpace`] and
/// [`Error::QuotaExceeded`] where it cannot be made again.
pub fn staging(root: &Root) -> Result<OwnedFd> {
    let own = StorePath::new(STAGING).expect("a constant");
    let fault = |shown: String, cause: io::Error| {
        let source =
            io::Error::new(cause.kind(), format!("the staging folder {shown} cannot be used: {cause}"));
        Error::DiskFault { path: own.to_string(), source }
    };
    match root.staging() {
        Staging::Own => match root.open_directory(&own) {
            Ok(fd) => Ok(fd),
            Err(Error::NotFound { .. }) => {
                let made = make_own(root).map_err(|cause| match Error::from_io(&own, cause) {
                    full @ (Error::NoSpace { .. } | Error::QuotaExceeded { .. }) => full,
                    other => fault(own.to_string(), io::Error::other(portolan_telemetry::chain(&other))),
                })?;
                tracing::warn!("the staging folder in .portolan was gone and is made again");
                Ok(made)
            }
            Err(error) => Err(fault(own.to_string(), io::Error::other(portolan_telemetry::chain(&error)))),
        },
        Staging::At(folder) | Staging::None(Some(folder)) => {
            open_folder(folder).map_err(|cause| fault(folder.display().to_string(), cause))
        }
        Staging::None(None) => Err(fault(own.to_string(), io::ErrorKind::ReadOnlyFilesystem.into())),
    }
}

fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, folder, flags, Mode::empty())?)
}

/// Makes the agent's folder and the staging folder in it, where they are missing; the latter.
fn make_own(root: &Root) -> io::Result<OwnedFd> {
    let made = |made: rustix::io::Result<()>| match made {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let mode = Mode::from_raw_mode(0o700);
    made(rustix::fs::mkdirat(root.as_fd(), OWN_FOLDER, mode))?;
    let own =
        root.open_directory(&StorePath::new(OWN_FOLDER).expect("a constant")).map_err(io::Error::other)?;
    made(rustix::fs::mkdirat(&own, "staging", mode))?;
    root.open_directory(&StorePath::new(STAGING).expect("a constant")).map_err(io::Error::other)
}

fn lock(folder: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(folder, "lock", flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(File::from(lock))
}

/// Takes the root itself for this process, as long as what is returned is kept: also of a store that is read-only, and
/// where somebody has removed the lock in it. `None` where the file system has no such lock.
///
/// # Errors
/// `WouldBlock` when another process has the root.
pub fn lock_root(root: &Root) -> io::Result<Option<OwnedFd>> {
    // Another opening of it, which the lock belongs to.
    let own = rustix::fs::openat(
        root.as_fd(),
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(own)),
        Err(errno @ Errno::WOULDBLOCK) => Err(errno.into()),
        Err(errno) => {
            tracing::debug!(%errno, "the root of the store cannot be locked");
            Ok(None)
        }
    }
}

/// Takes the root for this process, makes the folders and sweeps the staging folder. Returns the lock, which
/// holds as long as it is kept, and the number of files swept.
///
/// # Errors
/// `WouldBlock` when another process has the root, or the staging folder.
pub fn recover(root: &Root) -> io::Result<(File, usize)> {
    let own_staging = make_own(root)?;
    let own =
        root.open_directory(&StorePath::new(OWN_FOLDER).expect("a constant")).map_err(io::Error::other)?;
    let held = lock(&own)?;
    let mut swept = sweep(&own_staging, |_| true)?;
    let mut staging = own_staging;
    if let Staging::At(folder) = root.staging() {
        let elsewhere = open_folder(folder)?;
        refuse_elsewhere(&elsewhere, &own, folder)?;
        // It may hold what belongs to others.
        swept += sweep(&elsewhere, is_ours)?;
        staging = elsewhere;
    }
    root.abilities().find_out(&staging);
    Ok((held, swept))
}

/// The names that uploads have in the staging folder: `<process>-<number>`.
fn is_ours(name: &[u8]) -> bool {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut parts = name.splitn(2, |byte| *byte == b'-');
    parts.next().is_some_and(is_number) && parts.next().is_some_and(is_number)
}

/// Removes what uploads have left. Files that a rename has put aside stay where they have no other name.
fn sweep(staging: &OwnedFd, is_swept: impl Fn(&[u8]) -> bool) -> io::Result<usize> {
    let mut swept = 0;
    for entry in rustix::fs::Dir::read_from(staging)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_aside = name.to_bytes().starts_with(ASIDE.as_bytes());
        if is_aside && rustix::fs::statat(staging, name, AtFlags::SYMLINK_NOFOLLOW)?.st_nlink == 1 {
            tracing::warn!(
                file = %name.to_string_lossy(),
                "a rename was cut, and a file has no name but the one in the staging folder; move it to where it belongs"
            );
            continue;
        }
        if is_aside || is_swept(name.to_bytes()) {
            rustix::fs::unlinkat(staging, name, AtFlags::empty())?;
            swept += 1;
        }
    }
    super::change::sync_directory(staging)?;
    Ok(swept)
}

/// Uploads are renamed from the folder into the tree: tried once with a file of the agent's, since two mounts of one file
/// system look like one.
fn refuse_elsewhere(staging: &OwnedFd, own: &OwnedFd, folder: &Path) -> io::Result<()> {
    let name = format!("{}-probe", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let tried = rustix::fs::openat(staging, &name, flags, Mode::from_raw_mode(0o600))
        .and_then(|_| rustix::fs::renameat(staging, &name, own, &name));
    for place in [staging, own] {
        match rustix::fs::unlinkat(place, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::debug!(name, %errno, "a file of the look at the start stays"),
        }
    }
    match tried {
        // A full disk is no reason not to serve.
        Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(()),
        Err(errno) => {
            let shown = folder.display();
            let why = format!("files cannot be renamed from store.staging, {shown}, into the store: {errno}");
            Err(io::Error::new(io::Error::from(errno).kind(), why))
        }
    }
}

/// Is the root on a file system that is mounted read-only?
///
/// # Errors
/// The system does not say.
pub fn is_read_only(root: &Root) -> io::Result<bool> {
    Ok(rustix::fs::fstatvfs(root.as_fd())?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_folder_of_others_only_names_of_uploads_are_ours() {
        for (name, ours) in [
            ("1-1", true),
            ("4711-23", true),
            ("mail", false),
            ("1-", false),
            ("-1", false),
            ("1-1-1", false),
            ("1-x", false),
        ] {
            assert_eq!(is_ours(name.as_bytes()), ours, "{name}");
        }
    }

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
