//! Finding out which domains and objects lie in the folder.
//!
//! A domain whose folders have not changed since the last scan costs a few `stat` calls and shares its set
//! with the scan before: the [`Memo`] of the store, which its callers know nothing of.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portolan_proto::levels::{CONTAINERS, DOMAINS, is_container};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::store::disk::path::Root;
use crate::store::holdings::{Holdings, Objects};
use crate::store::{Error, Result, StorePath};

/// A folder changed more recently than this is read again next time: its time stamp may not show a change
/// that follows in the same tick of the clock.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// What the last scan has found.
#[derive(Debug, Default)]
pub(super) struct Memo {
    domains: BTreeMap<Vec<u8>, Scanned>,
    /// There was a scan.
    is_whole: bool,
}

/// One domain as it was found.
#[derive(Debug, Clone, Default)]
struct Scanned {
    objects: Arc<Objects>,
    /// State of the folders that were read, which tells whether they must be read again.
    stamps: Vec<Stamp>,
}

/// A folder's inode and time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed_ns: i128,
}

/// Scans the store, or the domains of `only` where the others are known. The memo is changed by a scan that succeeds.
pub(super) fn scan(root: &Root, memo: &mut Memo, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings> {
    let path = StorePath::new(DOMAINS).expect("a constant");
    let at = |errno| Error::from_errno(&path, errno);
    let domains_fd = match root.open_directory(&path) {
        Ok(fd) => fd,
        Err(Error::NotFound { .. }) => {
            *memo = Memo::default();
            return Ok(Holdings::default());
        }
        Err(error) => return Err(error),
    };
    // Without a whole scan before, there is nothing that the others could be taken from.
    let only = only.filter(|_| memo.is_whole);
    let (mut domains, names) = match only {
        None => {
            (BTreeMap::new(), entries(&domains_fd).map_err(at)?.into_iter().map(|(name, _)| name).collect())
        }
        Some(only) => (memo.domains.clone(), only.iter().cloned().collect::<Vec<_>>()),
    };
    for name in names {
        let before = memo.domains.get(&name);
        match scan_domain(&domains_fd, &name, before) {
            Ok(found) => domains.insert(name, found),
            Err(Errno::NOENT) => domains.remove(&name),
            // A symbolic link or a stray file. It is announced all the same, so that a backup that meets it
            // fails aloud instead of passing over what may be a whole domain.
            Err(Errno::NOTDIR | Errno::LOOP) => domains.insert(name, Scanned::default()),
            Err(errno) => return Err(at(errno)),
        };
    }
    let announced = domains.iter().map(|(name, found)| (name.clone(), Arc::clone(&found.objects))).collect();
    *memo = Memo { domains, is_whole: true };
    Ok(Holdings { domains: announced })
}

fn scan_domain(domains: &OwnedFd, name: &[u8], before: Option<&Scanned>) -> rustix::io::Result<Scanned> {
    // NOENT from here, and only from here, means that the domain is gone.
    let domain = open_directory(domains, name)?;
    let mut stamps = vec![stamp(&rustix::fs::fstat(&domain)?)];
    for container in CONTAINERS {
        match rustix::fs::statat(&domain, container, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stamps.push(stamp(&stat)),
            Err(Errno::NOENT) => stamps.push(Stamp { inode: 0, changed_ns: 0 }),
            Err(errno) => return Err(errno),
        }
    }
    let settled = stamps.iter().all(is_settled);
    if let Some(before) = before.filter(|before| settled && before.stamps == stamps) {
        return Ok(before.clone());
    }
    let mut objects = BTreeSet::new();
    for (entry, is_directory) in entries(&domain)? {
        if !(is_directory && is_container(&entry)) {
            objects.insert(entry);
            continue;
        }
        let container = match open_directory(&domain, &entry) {
            Ok(container) => container,
            // Removed meanwhile; the next scan sees it.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        for (object, _) in entries(&container)? {
            objects.insert([&entry[..], b"/", &object].concat());
        }
    }
    // A change between the stamps and the reading shows in the stamps of the next scan.
    let objects = match before {
        Some(before) if *before.objects == objects => Arc::clone(&before.objects),
        _ => Arc::new(objects),
    };
    Ok(Scanned { objects, stamps })
}

fn open_directory(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn stamp(stat: &Stat) -> Stamp {
    let nanoseconds = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
    Stamp { inode: stat.st_ino, changed_ns: nanoseconds }
}

fn is_settled(stamp: &Stamp) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let edge = now.saturating_sub(SETTLED_AFTER).as_nanos();
    i128::try_from(edge).is_ok_and(|edge| stamp.changed_ns < edge)
}

/// Names of a directory, and which of them are directories.
fn entries(fd: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, bool)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(fd.as_fd())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            known => known,
        };
        found.push((name.to_vec(), kind == FileType::Directory));
    }
    Ok(found)
}
