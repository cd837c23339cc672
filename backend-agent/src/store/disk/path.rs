//! Paths of a store and their resolution beneath its root.
//!
//! Every look-up goes through `openat2` with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: whatever symbolic links
//! stand in the tree, and however they change meanwhile, the kernel does not leave the root.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use portolan_proto::path::{self, PathFault};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::store::{Entry, Error, Kind, Result, Version};

/// A path below the store's root: checked, relative, components joined by '/'; empty is the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Vec<u8>);

impl StorePath {
    pub fn new(path: &[u8]) -> std::result::Result<Self, PathFault> {
        path::check(path)?;
        Ok(Self(path.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// The path of the directory, and the last name; `None` for the root.
    pub fn split_last(&self) -> Option<(StorePath, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        let at = self.0.iter().rposition(|byte| *byte == b'/');
        let parent = StorePath(at.map_or_else(Vec::new, |at| self.0[..at].to_vec()));
        Some((parent, &self.0[at.map_or(0, |at| at + 1)..]))
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", path::display(&self.0))
    }
}

/// How often a look-up is repeated when the kernel says that a concurrent rename disturbed it.
const LOOKUP_TRIES_MAX: usize = 32;

/// Permission bits of folders that a store makes, before the umask.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o770);

/// Levels of a path that are made when missing: `domains/<domain>/<container>`.
const STRUCTURE_DEPTH: usize = 3;

/// The open root folder of a store.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens the root itself; here, and only here, symbolic links are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens what stands at `path`.
    pub fn open_at(&self, path: &StorePath, flags: OFlags) -> Result<OwnedFd> {
        let name: &[u8] = if path.0.is_empty() { b"." } else { &path.0 };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < LOOKUP_TRIES_MAX => tries += 1,
                Err(errno) => return Err(Error::from_errno(path, errno)),
                Ok(fd) => return Ok(fd),
            }
        }
    }

    /// Opens a directory for reading its entries.
    pub fn open_directory(&self, path: &StorePath) -> Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens a regular file for reading; anything else is refused before it is opened for real, so that a
    /// pipe cannot block and a device cannot be touched.
    pub fn open_file(&self, path: &StorePath) -> Result<(File, Stat)> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| Error::from_errno(path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((File::from(fd), stat)),
            FileType::Directory => Err(Error::IsADirectory { path: path.to_string() }),
            _ => Err(Error::NotAFile { path: path.to_string() }),
        }
    }

    /// The directory that holds `path`, and the last name. The root has neither.
    pub fn open_parent<'a>(&self, path: &'a StorePath) -> Result<(OwnedFd, &'a [u8])> {
        let (parent, name) = path.split_last().ok_or_else(|| root_is_fixed(path))?;
        // The error names what was asked for, not its parent: that is what the client knows.
        let fd = self.open_directory(&parent).map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound { path: parent.to_string() },
            other => other,
        })?;
        Ok((fd, name))
    }

    /// As [`Root::open_parent`], after making those of the first three levels that are missing.
    pub fn open_parent_for_create<'a>(&self, path: &'a StorePath) -> Result<(OwnedFd, &'a [u8])> {
        match self.open_parent(path) {
            Err(Error::NotFound { .. }) => {}
            done => return done,
        }
        let levels = path.depth().saturating_sub(1).min(STRUCTURE_DEPTH);
        let components: Vec<&[u8]> = path.components().collect();
        for level in 1..=levels {
            let ancestor = StorePath(components[..level].join(&b'/'));
            match self.make_directory(&ancestor) {
                Ok(()) | Err(Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.open_parent(path)
    }

    /// Makes one directory and syncs its parent.
    pub fn make_directory(&self, path: &StorePath) -> Result<()> {
        let (parent, name) = self.open_parent(path)?;
        let at = |errno| Error::from_errno(path, errno);
        rustix::fs::mkdirat(&parent, name, FOLDER_MODE).map_err(at)?;
        let owner = Owner::of(&parent).map_err(at)?;
        if owner.must_be_given() {
            let (user, group) = owner.ids();
            rustix::fs::chownat(&parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
        }
        rustix::fs::fsync(&parent).map_err(at)
    }

    /// What stands at `path`; a symbolic link is told as itself.
    pub fn stat(&self, path: &StorePath) -> Result<Entry> {
        let Some((_, name)) = path.split_last() else {
            let stat = rustix::fs::fstat(&self.fd).map_err(|errno| Error::from_errno(path, errno))?;
            return Ok(entry(Vec::new(), &stat));
        };
        let (parent, _) = self.open_parent(path).map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound { path: path.to_string() },
            other => other,
        })?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Error::from_errno(path, errno))?;
        Ok(entry(name.to_vec(), &stat))
    }
}

pub(crate) fn root_is_fixed(path: &StorePath) -> Error {
    Error::PermissionDenied { path: path.to_string(), source: io::ErrorKind::PermissionDenied.into() }
}

/// An entry of what the system says.
pub fn entry(name: Vec<u8>, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        _ => Kind::Other,
    };
    Entry {
        name,
        kind,
        size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        modified_ns: modified_ns(stat),
        unix_mode: stat.st_mode & 0o7777,
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

/// Modification time in nanoseconds since 1970, held at the ends of what 64 bits can say.
pub fn modified_ns(stat: &Stat) -> i64 {
    nanoseconds(stat.st_mtime, stat.st_mtime_nsec)
}

fn nanoseconds(seconds: i64, rest: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(rest).unwrap_or(0))
}

/// The version of an open file.
pub fn version(stat: &Stat) -> Version {
    Version {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified_ns: modified_ns(stat),
        changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// User and group that new entries of a directory get, so that an agent running as root does not leave files
/// that the mail server cannot read.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    pub fn of(fd: impl AsFd) -> std::result::Result<Self, Errno> {
        Ok(Self::from(&rustix::fs::fstat(fd)?))
    }

    /// Only root can give files away, and to itself it need not.
    pub fn must_be_given(self) -> bool {
        rustix::process::geteuid().is_root() && (self.user, self.group) != (0, 0)
    }

    pub fn ids(self) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
        (Some(rustix::fs::Uid::from_raw(self.user)), Some(rustix::fs::Gid::from_raw(self.group)))
    }
}

impl From<&Stat> for Owner {
    fn from(stat: &Stat) -> Self {
        Self { user: stat.st_uid, group: stat.st_gid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> StorePath {
        StorePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn no_symbolic_link_leads_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::fs::create_dir(folder.path().join("inside")).unwrap();
        std::fs::write(folder.path().join("inside/file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("out")).unwrap();
        std::os::unix::fs::symlink("inside", folder.path().join("in")).unwrap();
        std::os::unix::fs::symlink("inside/file", folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/proc/self/root", folder.path().join("magic")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        for bad in ["out/secret", "in/file", "link", "magic/etc/passwd"] {
            assert!(matches!(root.open_file(&path(bad)), Err(Error::NotAFile { .. })), "{bad}");
        }
        assert!(matches!(root.make_directory(&path("out/new")), Err(Error::NotAFile { .. })));
        assert!(matches!(
            root.open_directory(&path("out")),
            Err(Error::NotAFile { .. } | Error::NotADirectory { .. })
        ));
        assert_eq!(root.stat(&path("link")).unwrap().kind, Kind::Other);
        assert!(root.open_file(&path("inside/file")).is_ok());
    }

    #[test]
    fn two_names_of_one_file_are_told_as_one() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "other"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::hard_link(folder.path().join("one"), folder.path().join("two")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let file = |name| root.stat(&path(name)).map(|entry| (entry.device, entry.inode)).unwrap();
        assert_eq!(file("one"), file("two"));
        assert_ne!(file("one"), file("other"));
    }

    #[test]
    fn only_the_first_three_levels_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        assert!(root.open_parent_for_create(&path("domains/a/users/anna")).is_ok());
        assert!(folder.path().join("domains/a/users").is_dir());
        let deeper = path("domains/a/users/bob/folders");
        assert!(matches!(root.open_parent_for_create(&deeper), Err(Error::NotFound { .. })));
        assert!(!folder.path().join("domains/a/users/bob").try_exists().unwrap());
    }

    #[test]
    fn a_pipe_is_refused_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        rustix::fs::mknodat(&root.fd, "pipe", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(matches!(root.open_file(&path("pipe")), Err(Error::NotAFile { .. })));
    }
}
