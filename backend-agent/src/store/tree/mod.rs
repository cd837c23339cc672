//! The `tree` store: the virtual tree 1:1 in a folder of the node, `<root>/domains/<domain>/...`.
//!
//! Who calls it: `service`, through the trait.
//! What it calls: `store::disk`.
//! What it never does: interpret what a file holds.

mod listing;
mod scan;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use portolan_config::checked::agent::{Access, Links, Modes};
use portolan_config::units::FreeMin;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::disk::attributes;
use super::disk::cache::{self, Found};
use super::disk::change::sync_directory;
use super::disk::commit::{Staged, TIME_STEP_MAX, modified, with_access};
use super::disk::mark::RootIdentity;
use super::disk::path::{self, Root, Staging, root_is_fixed, version};
use super::disk::recover;
use super::disk::room::Room;
use super::{
    Begin, Content, Entry, Error, Holdings, ListOptions, Listing, Permissions, Result, Store, StorePath,
    Upload, Usage, Version,
};
use listing::TreeListing;

#[derive(Debug)]
pub struct TreeStore {
    root: Arc<Root>,
    rescan_interval: Duration,
    memo: Mutex<scan::Memo>,
    /// Nothing is changed, not even in the agent's own folder.
    read_only: bool,
    /// Held as long as the store lives: one agent per root.
    _locks: (Option<File>, Option<OwnedFd>),
}

/// How a store is served.
#[derive(Debug, Clone)]
pub struct Options {
    pub rescan_interval: Duration,
    pub modes: Modes,
    pub links: Links,
    /// Room that uploads leave to others.
    pub free_min: FreeMin,
    pub access: Access,
}

impl TreeStore {
    /// Opens the store at `root` to read and write, without a limit of its room.
    pub fn open(root: &Path, rescan_interval: Duration, modes: Modes, links: Links) -> std::io::Result<Self> {
        let (free_min, access) = (FreeMin::NONE, Access::default());
        Self::open_with(root, Options { rescan_interval, modes, links, free_min, access })
    }

    /// Opens the store at `root`, sweeping what a crash left in its staging folder if it may.
    pub fn open_with(root: &Path, options: Options) -> std::io::Result<Self> {
        let Options { rescan_interval, modes, links, free_min, access } = options;
        let root = Root::open(root)?.with_modes(modes).with_links(links);
        let (staging, read_only) = match access {
            Access::Write { .. } if recover::is_read_only(&root)? => {
                tracing::warn!("the store lies on a read-only file system; it is served for reading alone");
                (Staging::None(None), true)
            }
            Access::Write { staging } => (staging.map_or(Staging::Own, Staging::At), false),
            Access::Read { state_dir } => (Staging::None(state_dir), true),
        };
        let root = Arc::new(root.with_staging(staging).with_room(Room::new(free_min)));
        let whole = recover::lock_root(&root)?;
        let mut lock = None;
        if !read_only {
            let (held, swept) = recover::recover(&root)?;
            lock = Some(held);
            if swept > 0 {
                tracing::warn!(
                    files = swept,
                    "uploads that a crash cut off were swept; their targets are unchanged"
                );
            }
        }
        Ok(Self { root, rescan_interval, memo: Mutex::default(), read_only, _locks: (lock, whole) })
    }

    /// Every change begins with this.
    fn changeable(&self, path: &StorePath) -> Result<()> {
        if self.read_only { Err(Error::ReadOnly { path: path.to_string() }) } else { Ok(()) }
    }

    /// Renames where nothing stands at the new name. Where that takes several steps, no upload comes between them.
    fn rename_no_replace(&self, from: (&OwnedFd, &[u8]), to: (&OwnedFd, &[u8])) -> rustix::io::Result<()> {
        let abilities = self.root.abilities();
        let _replacing = abilities.needs_steps().then(|| self.root.replacing());
        abilities.rename_no_replace(from, to)
    }

    /// Which folder the store was opened at.
    pub fn root(&self) -> rustix::io::Result<RootIdentity> {
        RootIdentity::of_open(&self.root)
    }

    fn unlink(&self, path: &StorePath, flags: AtFlags) -> Result<()> {
        let at = |errno| Error::from_errno(path, errno);
        let (parent, name) = self.root.open_parent(path)?;
        rustix::fs::unlinkat(&parent, name, flags).map_err(at)?;
        sync_directory(&parent).map_err(at)
    }

    /// Syncs what is known of an entry. Where it may not be opened, that is the whole file system.
    fn sync(&self, path: &StorePath) -> Result<()> {
        let at = |errno| Error::from_errno(path, errno);
        match self.root.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(fd) => rustix::fs::fsync(&fd).map_err(at),
            Err(Error::PermissionDenied { .. }) => {
                let (parent, _) = self.root.open_parent(path)?;
                rustix::fs::syncfs(&parent).map_err(at)
            }
            Err(error) => Err(error),
        }
    }

    /// Renames between two names of one file, for which rename(2) does nothing. The old name goes aside in one step, and is
    /// dropped when the new one is seen to be of the same file still.
    fn rename_to_itself(
        &self,
        (from, from_parent): (&StorePath, &OwnedFd),
        (to, to_parent): (&StorePath, &OwnedFd),
    ) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let at_from = |errno| Error::from_errno(from, errno);
        let at_to = |errno| Error::from_errno(to, errno);
        let ((_, from_name), (_, to_name)) = (last(from), last(to));
        let parents = (rustix::fs::fstat(from_parent), rustix::fs::fstat(to_parent));
        if let (Ok(one), Ok(other)) = &parents
            && is_same(one, other)
            && from_name == to_name
        {
            return Ok(());
        }
        let staging = recover::staging(&self.root).map_err(|mut error| {
            error.path_mut().into_iter().for_each(|path| *path = from.to_string());
            error
        })?;
        // A file that a cut rename has left there keeps its name.
        let aside = loop {
            let aside =
                format!("{}{}-{}", recover::ASIDE, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            match self.rename_no_replace((from_parent, from_name), (&staging, aside.as_bytes())) {
                Ok(()) => break aside,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(at_from(errno)),
            }
        };
        let still = entry_stat(&staging, aside.as_bytes())
            .and_then(|moved| Ok(is_same(&moved, &entry_stat(to_parent, to_name)?)))
            .unwrap_or(false);
        let done = if still {
            rustix::fs::unlinkat(&staging, &aside, AtFlags::empty())
        } else {
            // Others were faster with either name; so this is a rename like any other.
            rustix::fs::renameat(&staging, &aside, to_parent, to_name)
        };
        if let Err(errno) = done {
            self.rename_no_replace((&staging, aside.as_bytes()), (from_parent, from_name))
                .map_err(at_from)?;
            return Err(at_to(errno));
        }
        sync_directory(to_parent).map_err(at_to)?;
        sync_directory(from_parent).map_err(at_from)
    }
}

/// An entry itself, never what a link points to.
fn entry_stat(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn last(path: &StorePath) -> (StorePath, &[u8]) {
    path.split_last().expect("the root is refused by open_parent")
}

/// Sets the modification time of what was opened with O_PATH, and leaves the time of access.
fn set_modified_of_entry(fd: &OwnedFd, modified_ns: i64) -> rustix::io::Result<()> {
    rustix::fs::utimensat(fd, "", &modified(modified_ns), AtFlags::EMPTY_PATH)?;
    match with_access(&rustix::fs::fstat(fd)?, modified_ns) {
        Some(both) => rustix::fs::utimensat(fd, "", &both, AtFlags::EMPTY_PATH),
        None => Ok(()),
    }
}

impl Store for TreeStore {
    fn kind(&self) -> &'static str {
        "tree"
    }

    fn usage(&self) -> Result<Usage> {
        let root = StorePath::new(b"").expect("the root is a path");
        let stat =
            rustix::fs::fstatvfs(self.root.as_fd()).map_err(|errno| Error::from_errno(&root, errno))?;
        Ok(Usage {
            bytes_total: stat.f_blocks.saturating_mul(stat.f_frsize),
            bytes_free: if self.read_only { 0 } else { self.root.room().free(&stat) },
        })
    }

    fn holdings(&self, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings> {
        // A scan that panicked has left the memo as it was.
        let mut memo = self.memo.lock();
        scan::scan(&self.root, &mut memo, only)
    }

    fn record(&self) -> std::io::Result<Option<portolan_record::Opened>> {
        if self.read_only {
            return Ok(None);
        }
        let folder = recover::own_folder(&self.root).map_err(std::io::Error::other)?;
        portolan_record::Log::open(folder).map(Some)
    }

    fn rescan_interval(&self) -> Duration {
        self.rescan_interval
    }

    fn stat(&self, path: &StorePath) -> Result<Entry> {
        self.root.stat(path)
    }

    fn list(
        &self,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Box<dyn Listing>> {
        Ok(Box::new(TreeListing::open(&self.root, path, options, stop)?))
    }

    fn read(&self, path: &StorePath) -> Result<Box<dyn Content>> {
        let before = SystemTime::now();
        let (file, stat) = self.root.open_content(path)?;
        Ok(Box::new(TreeContent { path: path.clone(), file, before, stat, found: None }))
    }

    fn write(&self, path: &StorePath, begin: Begin) -> Result<Box<dyn Upload>> {
        self.changeable(path)?;
        Ok(Box::new(Staged::begin(&self.root, path, begin)?))
    }

    fn make_directory(&self, path: &StorePath) -> Result<()> {
        self.changeable(path)?;
        self.root.make_directory(path)
    }

    fn remove(&self, path: &StorePath) -> Result<()> {
        self.changeable(path)?;
        self.root.refuse_followed(path)?;
        // unlink(2) on a directory is EISDIR on Linux and EPERM by POSIX.
        self.unlink(path, AtFlags::empty())
    }

    fn remove_directory(&self, path: &StorePath) -> Result<()> {
        self.changeable(path)?;
        self.unlink(path, AtFlags::REMOVEDIR)
    }

    fn rename(&self, from: &StorePath, to: &StorePath) -> Result<()> {
        self.changeable(from)?;
        let at_from = |errno| Error::from_errno(from, errno);
        let at_to = |errno| Error::from_errno(to, errno);
        let (from_parent, from_name) = self.root.open_parent(from)?;
        let source = entry_stat(&from_parent, from_name).map_err(at_from)?;
        self.root.refuse_followed(from)?;
        self.root.refuse_followed(to)?;
        let (to_parent, to_name, made) = self.root.make_parent(to)?;
        let is_file = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file(&source) {
            // A directory replaces nothing, not even an empty one; nor does a link or a pipe. NOREPLACE makes that one step.
            self.rename_no_replace((&from_parent, from_name), (&to_parent, to_name)).map_err(at_to)?;
        } else {
            match entry_stat(&to_parent, to_name) {
                Ok(target) => match FileType::from_raw_mode(target.st_mode) {
                    FileType::RegularFile if is_same(&source, &target) && source.st_nlink > 1 => {
                        return self.rename_to_itself((from, &from_parent), (to, &to_parent));
                    }
                    FileType::RegularFile => {}
                    FileType::Directory => return Err(Error::IsADirectory { path: to.to_string() }),
                    _ => return Err(Error::NotAFile { path: to.to_string() }),
                },
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(at_to(errno)),
            }
            rustix::fs::renameat(&from_parent, from_name, &to_parent, to_name).map_err(at_to)?;
        }
        made.keep();
        sync_directory(&to_parent).map_err(at_to)?;
        sync_directory(&from_parent).map_err(at_from)
    }

    fn set_times(&self, path: &StorePath, modified_ns: i64) -> Result<i64> {
        self.changeable(path)?;
        if path.split_last().is_none() {
            return Err(root_is_fixed(path));
        }
        let at = |errno| Error::from_errno(path, errno);
        // Times are the owner's to set, who may not be allowed to read.
        let fd = self.root.open_at(path, OFlags::PATH)?;
        let before = rustix::fs::fstat(&fd).map_err(at)?;
        match FileType::from_raw_mode(before.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            _ => return Err(Error::NotAFile { path: path.to_string() }),
        }
        set_modified_of_entry(&fd, modified_ns).map_err(at)?;
        let kept = path::modified_ns(&rustix::fs::fstat(&fd).map_err(at)?);
        let is_kept = kept.abs_diff(modified_ns) < TIME_STEP_MAX.as_nanos() as u64;
        if !is_kept {
            set_modified_of_entry(&fd, path::modified_ns(&before)).map_err(at)?;
        }
        self.sync(path)?;
        if is_kept { Ok(kept) } else { Err(Error::TimeNotKept { path: path.to_string() }) }
    }

    fn set_mode(&self, path: &StorePath, permissions: Permissions) -> Result<()> {
        self.changeable(path)?;
        if path.split_last().is_none() {
            return Err(root_is_fixed(path));
        }
        let at = |errno| Error::from_errno(path, errno);
        // A file that nobody may read has permissions all the same.
        let named = self.root.open_at(path, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&named).map_err(at)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            _ => return Err(Error::NotAFile { path: path.to_string() }),
        }
        // Opened before, because the new permissions may forbid it.
        let readable = self.root.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
        {
            // An upload that replaces the file takes over these permissions, or those before.
            let _replacing = self.root.replacing();
            attributes::set_permissions(&named, &stat, permissions.bits()).map_err(at)?;
        }
        match readable {
            Ok(fd) => rustix::fs::fsync(&fd).map_err(at),
            Err(_) => self.sync(path),
        }
    }
}

/// A file that was written to or changed more recently is not at rest: its time stamps may not show a change that follows in
/// the same tick of the file system's clock.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

struct TreeContent {
    path: StorePath,
    file: File,
    /// Before it was opened.
    before: SystemTime,
    /// When it was opened, or settled.
    stat: Stat,
    /// How the first read found the cache.
    found: Option<Found>,
}

impl Content for TreeContent {
    fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    fn modified_ns(&self) -> i64 {
        path::modified_ns(&self.stat)
    }

    fn version(&self) -> Version {
        version(&self.stat)
    }

    fn version_now(&self) -> Result<Version> {
        let stat = rustix::fs::fstat(&self.file).map_err(|errno| Error::from_errno(&self.path, errno))?;
        Ok(version(&stat))
    }

    fn settle(&mut self) -> bool {
        // A page that is dirty through a memory map takes more writes without a time stamp until it has been written back.
        let synced = rustix::fs::fdatasync(&self.file).and_then(|()| rustix::fs::fstat(&self.file));
        match synced {
            Ok(stat) => {
                self.stat = stat;
                is_at_rest(path::modified_ns(&stat), path::changed_ns(&stat), self.before)
            }
            Err(errno) => {
                tracing::debug!(path = %self.path, %errno, "writes by others cannot be synced");
                false
            }
        }
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let at = |error| Error::from_io(&self.path, error);
        if self.found.is_some() {
            return cache::read(&self.file, buffer, offset).map_err(at);
        }
        let (count, found) = cache::read_first(&self.file, buffer, offset).map_err(at)?;
        self.found = Some(found);
        if count == buffer.len() {
            return Ok(count);
        }
        // Only a part was in the cache; the rest is read in the ordinary way.
        let rest = cache::read(&self.file, &mut buffer[count..], offset + count as u64).map_err(at)?;
        Ok(count + rest)
    }
}

/// Was a file with these times at rest before it was opened?
fn is_at_rest(modified_ns: i64, changed_ns: i64, before: SystemTime) -> bool {
    let before = before.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let last = modified_ns.max(changed_ns);
    i128::from(last) + SETTLED_AFTER.as_nanos() as i128 <= before as i128
}

impl Drop for TreeContent {
    fn drop(&mut self) {
        if self.found == Some(Found::Cold) {
            cache::drop_pages(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn permissions_are_set_on_files_and_directories_and_through_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = TreeStore::open(folder.path(), Duration::from_secs(3_600), Modes::default(), Links::Show)
            .unwrap();
        let domain = folder.path().join("domains/a");
        std::fs::create_dir_all(domain.join("folder")).unwrap();
        std::fs::write(domain.join("file"), "x").unwrap();
        std::fs::set_permissions(domain.join("file"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        std::os::unix::fs::symlink("file", domain.join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            domain.join("pipe"),
            FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let set = |name: &str, bits| {
            let path = StorePath::new(format!("domains/a/{name}").as_bytes()).unwrap();
            store.set_mode(&path, Permissions::new(bits).unwrap())
        };
        for bad in ["link", "pipe"] {
            assert!(matches!(set(bad, 0o640), Err(Error::NotAFile { .. })), "{bad}");
        }
        assert!(matches!(set("nothing", 0o640), Err(Error::NotFound { .. })));
        let root = StorePath::new(b"").unwrap();
        assert!(matches!(
            store.set_mode(&root, Permissions::new(0).unwrap()),
            Err(Error::PermissionDenied { .. })
        ));
        for (name, bits) in [("file", 0o640), ("folder", 0o750)] {
            set(name, bits).unwrap();
            let mode = std::fs::metadata(domain.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, bits, "{name}");
        }
    }

    #[test]
    fn only_a_file_at_rest_is_known_by_its_version() {
        let before = SystemTime::now();
        let now = before.duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let second = 1_000_000_000;
        for (modified_ns, changed_ns, at_rest) in [
            (0, 0, true),
            (now - 3 * second, now - 3 * second, true),
            (now - second, now - 3 * second, false),
            (now - 3 * second, now - second, false),
            (0, now + 60 * second, false),
            (i64::MIN, i64::MIN, true),
            (i64::MAX, 0, false),
        ] {
            assert_eq!(is_at_rest(modified_ns, changed_ns, before), at_rest, "{modified_ns} {changed_ns}");
        }
    }

    #[test]
    fn permissions_lend_nobody_the_rights_of_others() {
        for bad in [0o1000, 0o2755, 0o4755, u32::MAX] {
            assert_eq!(Permissions::new(bad), None, "{bad:o}");
        }
        assert_eq!(Permissions::new(0o777).map(Permissions::bits), Some(0o777));
    }
}
