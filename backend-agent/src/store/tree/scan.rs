//! Finding out which domains and objects lie in the folder.
//!
//! A domain whose folders have not changed since the last scan costs a few `stat` calls and shares its set
//! with the scan before: the [`Memo`] of the store, which its callers know nothing of. An object that is named costs a look
//! at its name alone. A domain that cannot be read is announced with what was known of it, and the others go on.

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
    /// Why it could not be read. Its objects are those of before then.
    failure: Option<Errno>,
}

/// A folder's inode and time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed_ns: i128,
}

/// What is looked at of one domain.
enum Look<'a> {
    All,
    /// These objects, by their paths below the domain.
    At(Vec<&'a [u8]>),
}

/// Scans the store, or where the others are known only what `only` names: domains, and objects as `<domain>/<object>`. The
/// memo is changed by a scan that succeeds.
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
    let (mut domains, looks) = match only {
        None => {
            let names = entries(&domains_fd).map_err(at)?.into_iter();
            (BTreeMap::new(), names.map(|(name, _)| (name, Look::All)).collect())
        }
        Some(only) => (memo.domains.clone(), by_domain(only)),
    };
    for (name, look) in looks {
        let before = memo.domains.get(&name);
        let found = match (before, look) {
            (Some(before), Look::At(objects)) if before.failure.is_none() => {
                look_at(&domains_fd, &name, before, &objects)
            }
            (_, Look::At(_) | Look::All) => scan_domain(&domains_fd, &name, before),
        };
        match found {
            Ok(found) => domains.insert(name, found),
            Err(Errno::NOENT) => domains.remove(&name),
            // A symbolic link or a stray file. It is announced all the same, so that a backup that meets it
            // fails aloud instead of passing over what may be a whole domain.
            Err(Errno::NOTDIR | Errno::LOOP) => domains.insert(name, Scanned::default()),
            // The process is at its own limits, and knows nothing of any domain.
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(at(errno)),
            Err(errno) => {
                let objects = before.map(|before| Arc::clone(&before.objects)).unwrap_or_default();
                domains.insert(name, Scanned { objects, stamps: Vec::new(), failure: Some(errno) })
            }
        };
    }
    let announced = domains.iter().map(|(name, found)| (name.clone(), Arc::clone(&found.objects))).collect();
    let failures =
        domains.iter().filter_map(|(name, found)| Some((name.clone(), found.failure?.to_string())));
    let unreadable = failures.collect();
    *memo = Memo { domains, is_whole: true };
    Ok(Holdings { domains: announced, unreadable })
}

/// What was named, domain by domain.
fn by_domain(only: &BTreeSet<Vec<u8>>) -> Vec<(Vec<u8>, Look<'_>)> {
    let mut looks: BTreeMap<&[u8], Look<'_>> = BTreeMap::new();
    for named in only {
        let Some(slash) = named.iter().position(|byte| *byte == b'/') else {
            looks.insert(named, Look::All);
            continue;
        };
        let (domain, object) = (&named[..slash], &named[slash + 1..]);
        match looks.entry(domain).or_insert_with(|| Look::At(Vec::new())) {
            Look::All => {}
            Look::At(objects) => objects.push(object),
        }
    }
    looks.into_iter().map(|(domain, look)| (domain.to_vec(), look)).collect()
}

/// A domain as it was before, but for these objects. The stamps stay those of the last reading, so the next scan of the
/// whole store reads the domain again.
fn look_at(
    domains: &OwnedFd,
    name: &[u8],
    before: &Scanned,
    objects: &[&[u8]],
) -> rustix::io::Result<Scanned> {
    let domain = open_directory(domains, name)?;
    let mut found = before.clone();
    for object in objects {
        let is_there = is_object(&domain, object)?;
        if found.objects.contains(object) != is_there {
            Arc::make_mut(&mut found.objects).set(object, is_there);
        }
    }
    Ok(found)
}

/// Is there an object of this path below the domain?
fn is_object(domain: &OwnedFd, object: &[u8]) -> rustix::io::Result<bool> {
    let there = |stat: rustix::io::Result<Stat>| match stat {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    };
    let Some(slash) = object.iter().position(|byte| *byte == b'/') else {
        return there(rustix::fs::statat(domain, object, AtFlags::SYMLINK_NOFOLLOW));
    };
    let (container, name) = (&object[..slash], &object[slash + 1..]);
    if !is_container(container) {
        return Ok(false);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(domain, container, flags, Mode::empty()) {
        Ok(container) => there(rustix::fs::statat(&container, name, AtFlags::SYMLINK_NOFOLLOW)),
        // Where a container should be there is something else, which is an object itself.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(errno) => Err(errno),
    }
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
    let mut objects = Vec::new();
    for (entry, is_directory) in entries(&domain)? {
        if !(is_directory && is_container(&entry)) {
            objects.push(entry);
            continue;
        }
        let container = match open_directory(&domain, &entry) {
            Ok(container) => container,
            // Removed meanwhile; the next scan sees it.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        for (object, _) in entries(&container)? {
            objects.push([&entry[..], b"/", &object].concat());
        }
    }
    // A change between the stamps and the reading shows in the stamps of the next scan.
    let objects = match before {
        None => Arc::new(objects.into_iter().collect()),
        Some(before) => {
            let found = Objects::from_before(objects, &before.objects);
            if found == *before.objects { Arc::clone(&before.objects) } else { Arc::new(found) }
        }
    };
    Ok(Scanned { objects, stamps, failure: None })
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
