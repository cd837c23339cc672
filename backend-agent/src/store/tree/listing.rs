//! A directory being listed while others rename in it.
//!
//! A mail server renames files all the time (flags, `new/` to `cur/`), and readdir(3) may pass over an entry
//! that is renamed meanwhile. So the names are read until the directory did not change during the reading, and
//! names that are gone when their turn comes make the directory be read again for those that took their place.
//! What is there all the time is listed, under one of its names.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Dir, FileType, Stat};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::store::disk::names::{Gathering, Names, Walk};
use crate::store::disk::path::{Root, changed_ns, identity_of};
use crate::store::{Directory, Entry, Error, Kind, ListOptions, Listing, Result, StorePath, Wanted};

/// Readings of the names at most; a directory that changed during each of them is told to be busy.
const READINGS_MAX: usize = 200;
/// Pause between two readings, growing with their number.
const READING_PAUSE: Duration = Duration::from_micros(500);
/// How coarse the time stamps of file systems may be. A younger change could hide a later one.
const STAMP_TICK: Duration = Duration::from_millis(10);
/// How often names that took the place of others are looked for.
const ROUNDS_MAX: usize = 16;

pub(super) struct TreeListing {
    root: Arc<Root>,
    path: StorePath,
    fd: OwnedFd,
    /// Must the entries come in byte order?
    sorted: bool,
    wanted: Wanted,
    directory: Directory,
    /// The names of all readings, save those that were missed in an earlier round.
    seen: Names,
    /// Names still to be told.
    pending: Walk,
    /// Names that were gone when their turn came.
    missed: Gathering,
    rounds: usize,
    stop: CancellationToken,
}

impl TreeListing {
    pub(super) fn open(
        root: &Arc<Root>,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let ListOptions { sorted, wanted, was } = options;
        let (fd, name) = match was {
            Some(identity) => root.open_same_directory(path, identity)?,
            None => {
                let name = path.split_last().map(|(_, name)| name.to_vec()).unwrap_or_default();
                (root.open_directory(path)?, name)
            }
        };
        let (seen, at_rest) = settled_names(root, &fd, path, wanted, stop)?;
        let directory = Directory { identity: identity_of(&at_rest), name, state: changed_ns(&at_rest) };
        let pending = seen.except(&Names::empty()).map_err(|error| failed(path, stop, error))?;
        let missed = Gathering::new(root).until(stop);
        let (root, path, stop) = (Arc::clone(root), path.clone(), stop.clone());
        Ok(Self { root, path, fd, sorted, wanted, directory, seen, pending, missed, rounds: 0, stop })
    }

    /// Looks for names that took the place of missed ones.
    fn look_again(&mut self) -> Result<()> {
        self.rounds += 1;
        // In byte order a late name could not be put where it belongs.
        if self.sorted || self.rounds > ROUNDS_MAX {
            return Err(Error::Changing { path: self.path.to_string() });
        }
        let (present, _) = settled_names(&self.root, &self.fd, &self.path, self.wanted, &self.stop)?;
        let missed = std::mem::replace(&mut self.missed, Gathering::new(&self.root).until(&self.stop));
        self.turn_to(&present, missed).map_err(|error| failed(&self.path, &self.stop, error))
    }

    /// Makes pending what was not told yet. A missed name was not: a file may have got it back.
    fn turn_to(&mut self, present: &Names, missed: Gathering) -> io::Result<()> {
        let mut told = Gathering::new(&self.root).until(&self.stop);
        told.push_all(self.seen.except(&missed.finish()?)?)?;
        let told = told.finish()?;
        let mut seen = Gathering::new(&self.root).until(&self.stop);
        seen.push_all(told.except(&Names::empty())?)?;
        self.pending = present.except(&told)?;
        seen.push_all(present.except(&told)?)?;
        self.seen = seen.finish()?;
        Ok(())
    }
}

impl Listing for TreeListing {
    fn directory(&self) -> Directory {
        self.directory.clone()
    }

    fn next_batch(&mut self, entries_max: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut name_bytes = 0;
        while entries.len() < entries_max && name_bytes < portolan_proto::LIST_BATCH_NAME_BYTES_MAX {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let advanced = self.pending.advance();
            if !advanced.map_err(|error| failed(&self.path, &self.stop, error))? {
                if self.missed.is_empty() {
                    break;
                }
                self.look_again()?;
                continue;
            }
            let name = self.pending.name();
            match self.root.entry_in(&self.path, &self.fd, name) {
                Ok(entry) => {
                    if self.wanted == Wanted::All || entry.kind == Kind::Directory {
                        name_bytes += name.len() + entry.target.len();
                        entries.push(entry);
                    }
                }
                // Removed, or there under another name.
                Err(Errno::NOENT) => {
                    self.missed.push(name).map_err(|error| failed(&self.path, &self.stop, error))?;
                }
                Err(errno) => return Err(Error::from_errno(&self.path, errno)),
            }
        }
        Ok(entries)
    }
}

/// What failed, unless it was told to stop.
fn failed(path: &StorePath, stop: &CancellationToken, error: io::Error) -> Error {
    if stop.is_cancelled() { Error::Stopped } else { Error::from_io(path, error) }
}

/// The names of a directory as they were at one moment, and what it was then.
fn settled_names(
    root: &Arc<Root>,
    fd: &OwnedFd,
    path: &StorePath,
    wanted: Wanted,
    stop: &CancellationToken,
) -> Result<(Names, Stat)> {
    let at_io = |error| failed(path, stop, error);
    let at = |errno| Error::from_errno(path, errno);
    let changed = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec);
    for reading in 0..READINGS_MAX {
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = rustix::fs::fstat(fd).map_err(at)?;
        let names = names(root, fd, wanted, stop).map_err(at_io)?;
        let after = rustix::fs::fstat(fd).map_err(at)?;
        let seconds = u64::try_from(after.st_ctime).unwrap_or(0);
        let last = Duration::new(seconds, u32::try_from(after.st_ctime_nsec).unwrap_or(0));
        // A directory that never comes to rest for a tick is taken as soon as its stamps agree.
        let at_rest = last + STAMP_TICK < started || reading > READINGS_MAX / 4;
        if changed(&before) == changed(&after) && at_rest {
            return Ok((names.finish().map_err(at_io)?, after));
        }
        std::thread::sleep(READING_PAUSE * u32::try_from(reading.min(20)).unwrap_or(20));
    }
    Err(Error::Changing { path: path.to_string() })
}

fn names(root: &Arc<Root>, fd: &OwnedFd, wanted: Wanted, stop: &CancellationToken) -> io::Result<Gathering> {
    let mut names = Gathering::new(root).until(stop);
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // Some file systems do not tell the type here.
        let may_be_wanted =
            wanted == Wanted::All || matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if may_be_wanted && name != b"." && name != b".." {
            names.push(name)?;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const ANY: ListOptions = ListOptions { sorted: false, wanted: Wanted::All, was: None };
    const SORTED: ListOptions = ListOptions { sorted: true, ..ANY };

    fn open(root: &Arc<Root>, path: &[u8], options: ListOptions) -> TreeListing {
        try_open(root, &StorePath::new(path).unwrap(), options).unwrap()
    }

    fn try_open(root: &Arc<Root>, path: &StorePath, options: ListOptions) -> Result<TreeListing> {
        TreeListing::open(root, path, options, &CancellationToken::new())
    }

    #[test]
    fn what_is_renamed_meanwhile_is_listed_under_one_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..1_000 {
            std::fs::write(folder.path().join(format!("{number}:2,")), "").unwrap();
        }
        let root = Arc::new(Root::open(folder.path()).unwrap());
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
                let mut listing = open(&root, b"", ANY);
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

    /// All that the listing still has to tell.
    fn rest(listing: &mut TreeListing) -> Result<Vec<String>> {
        let mut names = Vec::new();
        loop {
            let batch = listing.next_batch(7)?;
            if batch.is_empty() {
                return Ok(names);
            }
            names.extend(batch.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
        }
    }

    #[test]
    fn a_name_that_was_missed_and_came_back_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let (back, away) = (folder.path().join("b"), folder.path().join("e"));
        let mut listing = open(&root, b"", ANY);
        std::fs::rename(&back, &away).unwrap();
        std::fs::rename(folder.path().join("c"), folder.path().join("f")).unwrap();
        let first = listing.next_batch(3).unwrap();
        std::fs::rename(&away, &back).unwrap();
        assert_eq!(first.len(), 3, "a, d and what took the place of one of the others");
        let told: Vec<String> =
            first.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
        assert_eq!([told, rest(&mut listing).unwrap()].concat(), ["a", "d", "e", "f"]);

        let mut listing = open(&root, b"", ANY);
        std::fs::rename(&back, &away).unwrap();
        let told = listing.next_batch(2).unwrap();
        assert_eq!((&told[0].name[..], &told[1].name[..]), (&b"a"[..], &b"d"[..]));
        std::fs::rename(&away, &back).unwrap();
        let mut told = rest(&mut listing).unwrap();
        told.sort();
        assert_eq!(told, ["b", "f"]);
    }

    #[test]
    fn directories_alone_are_listed_where_they_alone_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(format!("{name}.eml")), "").unwrap();
        }
        std::os::unix::fs::symlink("a", folder.path().join("link")).unwrap();
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let path = StorePath::new(b"").unwrap();
        let directories = ListOptions { wanted: Wanted::Directories, ..SORTED };
        let mut listing = try_open(&root, &path, directories).unwrap();
        assert_eq!(rest(&mut listing).unwrap(), ["a", "b"]);
        let before = listing.directory();
        let again = |options| try_open(&root, &path, options).unwrap().directory();
        assert_eq!(again(ANY), before);
        std::fs::remove_dir(folder.path().join("b")).unwrap();
        let after = again(directories);
        assert_eq!(after.identity, before.identity);
        assert!(after.state > before.state);
    }

    #[test]
    fn a_directory_is_found_under_the_name_that_it_has_got() {
        let folder = tempfile::tempdir().unwrap();
        let domain = folder.path().join("domains/a");
        for name in ["one", "other"] {
            std::fs::create_dir_all(domain.join(name)).unwrap();
            std::fs::write(domain.join(name).join(format!("{name}.eml")), "").unwrap();
        }
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let path = StorePath::new(b"domains/a/one").unwrap();
        let id = try_open(&root, &path, ANY).unwrap().directory().identity;
        let was = ListOptions { was: Some(id), ..ANY };
        let found = || {
            let mut listing = try_open(&root, &path, was)?;
            Ok::<_, Error>((listing.directory().name, rest(&mut listing)?))
        };
        let expected = |name: &str| (name.as_bytes().to_vec(), vec!["one.eml".to_owned()]);
        assert_eq!(found().unwrap(), expected("one"));
        std::fs::rename(domain.join("one"), domain.join("two")).unwrap();
        assert_eq!(found().unwrap(), expected("two"));
        std::fs::rename(domain.join("other"), domain.join("one")).unwrap();
        assert_eq!(found().unwrap(), expected("two"));
        std::fs::remove_dir_all(domain.join("two")).unwrap();
        assert!(matches!(found(), Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_domain_is_not_looked_for_under_the_name_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let domains = folder.path().join("domains");
        std::fs::create_dir_all(domains.join("a")).unwrap();
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let path = StorePath::new(b"domains/a").unwrap();
        let id = try_open(&root, &path, ANY).unwrap().directory().identity;
        std::fs::rename(domains.join("a"), domains.join("b")).unwrap();
        let found = try_open(&root, &path, ListOptions { was: Some(id), ..ANY });
        assert!(matches!(found, Err(Error::NotFound { .. })));
    }

    #[test]
    fn in_byte_order_a_vanished_name_is_told_as_busy() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..20 {
            std::fs::write(folder.path().join(format!("{number:02}")), "").unwrap();
        }
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let mut listing = open(&root, b"", SORTED);
        let in_order: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
        assert_eq!(rest(&mut listing).unwrap(), in_order);
        let mut listing = open(&root, b"", SORTED);
        std::fs::remove_file(folder.path().join("07")).unwrap();
        assert!(matches!(rest(&mut listing), Err(Error::Changing { .. })));
    }

    #[test]
    fn a_folder_past_the_memory_limit_is_listed_whole_while_others_rename_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let name = |number: usize, flags: &str| format!("{number}-{}:2,{flags}", "x".repeat(150));
        let inside = folder.path().join("domains");
        std::fs::create_dir(&inside).unwrap();
        for number in 0..8_000 {
            std::fs::write(inside.join(name(number, "")), "").unwrap();
        }
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let (_lock, _) = crate::store::disk::recover::recover(&root).unwrap();
        let mut listing = open(&root, b"domains", ANY);
        let mut found: BTreeSet<String> =
            listing.next_batch(10).unwrap().into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect();
        for number in 0..8_000 {
            let flags = if number % 3 == 0 { "S" } else { "RS" };
            std::fs::rename(inside.join(name(number, "")), inside.join(name(number, flags))).unwrap();
        }
        found.extend(rest(&mut listing).unwrap());
        let files: BTreeSet<&str> = found.iter().map(|name| name.split('-').next().unwrap()).collect();
        assert_eq!(files.len(), 8_000);
    }

    #[test]
    fn a_listing_that_nobody_waits_for_reads_no_further() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..3_000 {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let (path, stop) = (StorePath::new(b"").unwrap(), CancellationToken::new());
        let mut begun = TreeListing::open(&root, &path, ANY, &stop).unwrap();
        assert_eq!(begun.next_batch(10).unwrap().len(), 10);
        stop.cancel();
        assert!(matches!(begun.next_batch(10), Err(Error::Stopped)));
        assert!(matches!(TreeListing::open(&root, &path, ANY, &stop).map(drop), Err(Error::Stopped)));
    }
}
