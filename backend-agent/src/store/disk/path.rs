//! The resolution of paths beneath the root of a store.
//!
//! Every look-up goes through `openat2` with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: whatever symbolic links
//! stand in the tree, and however they change meanwhile, the kernel does not leave the root. With `links = "follow"` the last
//! name of a path may be a link when it is read; then the kernel does not leave the root either, and where the file lies is
//! asked of the open file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use portolan_config::checked::agent::{Links, Modes};
use portolan_proto::levels;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::attributes;
use super::change::Abilities;
use super::room::Room;
use crate::store::{Entry, Error, Identity, Kind, Result, StorePath, Version};

/// How often a look-up is repeated when the kernel says that a concurrent rename disturbed it.
const LOOKUP_TRIES_MAX: usize = 32;

/// How often the names of a parent are read for a directory that was renamed.
const SAME_TRIES_MAX: usize = 8;

/// The open root folder of a store.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    modes: Modes,
    links: Links,
    staging: Staging,
    room: Room,
    abilities: Abilities,
    replacing: Mutex<()>,
}

/// Where uploads are written until they are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Staging {
    /// In the agent's own folder below the root, which is made again where it is gone.
    Own,
    /// In a folder elsewhere on the same file system.
    At(PathBuf),
    /// Nowhere, because nothing may be changed. The folder, if there is one, takes what does not fit into memory.
    None(Option<PathBuf>),
}

/// The directory that holds a name which is to be made.
#[derive(Debug)]
pub enum Parent {
    There(OwnedFd),
    /// Levels are missing that the change makes; the nearest one above them.
    Missing {
        nearest: OwnedFd,
    },
}

/// Directories that a change has made on its way. Dropped, they are taken back.
#[derive(Debug, Default)]
#[must_use]
pub struct MadeLevels(Vec<(OwnedFd, Vec<u8>)>);

impl MadeLevels {
    /// The change has succeeded.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeLevels {
    fn drop(&mut self) {
        for (parent, name) in self.0.drain(..).rev() {
            attributes::remove_directory(&parent, &name);
        }
    }
}

impl Root {
    /// Opens the root itself; here, and only here, symbolic links are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            fd,
            modes: Modes::default(),
            links: Links::Show,
            staging: Staging::Own,
            room: Room::default(),
            abilities: Abilities::default(),
            replacing: Mutex::default(),
        })
    }

    /// Sets the modes of what is new where no folder decides.
    pub fn with_modes(self, modes: Modes) -> Self {
        Self { modes, ..self }
    }

    /// What links below the root are to be from now on.
    pub fn with_links(self, links: Links) -> Self {
        Self { links, ..self }
    }

    /// Where uploads are written from now on.
    pub fn with_staging(self, staging: Staging) -> Self {
        Self { staging, ..self }
    }

    /// What uploads leave to others from now on.
    pub fn with_room(self, room: Room) -> Self {
        Self { room, ..self }
    }

    pub fn staging(&self) -> &Staging {
        &self.staging
    }

    pub fn room(&self) -> &Room {
        &self.room
    }

    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// Held from the last look at a file to its replacement, and while its permissions are changed.
    pub fn replacing(&self) -> MutexGuard<'_, ()> {
        self.replacing.lock()
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens what stands at `path`.
    pub fn open_at(&self, path: &StorePath, flags: OFlags) -> Result<OwnedFd> {
        let name: &[u8] = if path.is_root() { b"." } else { path.as_bytes() };
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

    /// Opens the directory that was at `path`, also under the name that it has got in the same parent since; with that
    /// name. A domain is not looked for: another name of it is another one's grant.
    pub fn open_same_directory(&self, path: &StorePath, identity: Identity) -> Result<(OwnedFd, Vec<u8>)> {
        let at = |errno| Error::from_errno(path, errno);
        let gone = || Error::NotFound { path: path.to_string() };
        let is_same = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd).map_err(at)?;
            Ok::<_, Error>(identity_of(&stat) == identity)
        };
        let Some((parent, name)) = path.split_last() else { return Err(root_is_fixed(path)) };
        match self.open_directory(path) {
            Ok(fd) if is_same(&fd)? => return Ok((fd, name.to_vec())),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        if levels::domain_of(parent.as_bytes()).is_none() {
            return Err(gone());
        }
        let parent = self.open_directory(&parent).map_err(|error| match error {
            Error::NotFound { .. } => gone(),
            other => other,
        })?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (_, inode) = identity.halves();
        // A reading of the names may pass over one that is renamed meanwhile.
        for _ in 0..SAME_TRIES_MAX {
            let Some(name) = name_of(&parent, inode).map_err(at)? else { continue };
            match rustix::fs::openat2(&parent, &name[..], flags, Mode::empty(), resolve) {
                Ok(fd) if is_same(&fd)? => return Ok((fd, name)),
                Ok(_) => {}
                Err(errno) => {
                    let error = Error::from_errno(path, errno);
                    if !is_gone(&error) && errno != Errno::AGAIN && errno != Errno::INTR {
                        return Err(error);
                    }
                }
            }
        }
        Err(gone())
    }

    /// Opens a regular file for reading; anything else is refused before it is opened for real, so that a
    /// pipe cannot block and a device cannot be touched.
    pub fn open_file(&self, path: &StorePath) -> Result<(File, Stat)> {
        let at = |errno| Error::from_errno(path, errno);
        // To open a pipe is to read from it, for whoever writes to it.
        let seen = rustix::fs::fstat(self.open_at(path, OFlags::PATH)?).map_err(at)?;
        match FileType::from_raw_mode(seen.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Error::IsADirectory { path: path.to_string() }),
            _ => return Err(Error::NotAFile { path: path.to_string() }),
        }
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&fd).map_err(at)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((File::from(fd), stat)),
            // It took the place of the file in between.
            _ => Err(Error::NotAFile { path: path.to_string() }),
        }
    }

    /// As [`Root::open_file`], for clients: also a link that is followed.
    pub fn open_content(&self, path: &StorePath) -> Result<(File, Stat)> {
        let refused = match self.open_file(path) {
            Err(refused @ Error::NotAFile { .. }) if self.links == Links::Follow => refused,
            opened => return opened,
        };
        let Some((parent, name)) = path.split_last() else { return Err(refused) };
        let directory = self.open_directory(&parent)?;
        let target = target_of(&directory, name);
        let Some((found, stat)) = self.followed(&parent, &target) else { return Err(refused) };
        // The very file, whatever its names lead to by now.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(attributes::path_of(&found), flags, Mode::empty())
            .map_err(|errno| Error::from_errno(path, errno))?;
        Ok((File::from(fd), stat))
    }

    /// An entry of an open directory. A link has its target, or is what it points to where it is followed.
    pub fn entry_in(
        &self,
        parent: &StorePath,
        directory: &OwnedFd,
        name: &[u8],
    ) -> std::result::Result<Entry, Errno> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut found = entry(name.to_vec(), &stat);
        if found.kind != Kind::Symlink {
            return Ok(found);
        }
        found.target = target_of(directory, name);
        match self.followed(parent, &found.target) {
            Some((_, stat)) if self.links == Links::Follow => Ok(entry(found.name, &stat)),
            Some(_) | None => Ok(found),
        }
    }

    /// Refuses a change of a link that is shown as a file.
    pub fn refuse_followed(&self, path: &StorePath) -> Result<()> {
        // A path that leads nowhere is refused by what asks for it.
        if self.links == Links::Follow
            && let Ok((parent, name)) = self.open_parent(path)
        {
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink) {
                return Err(Error::NotAFile { path: path.to_string() });
            }
        }
        Ok(())
    }

    /// The file that a link in `parent` leads to, not opened: a regular file of the store, in the same domain or outside
    /// of all domains. Directories are never followed, so there are no loops, and no mail is met twice.
    fn followed(&self, parent: &StorePath, target: &[u8]) -> Option<(OwnedFd, Stat)> {
        if self.links == Links::Show || target.is_empty() || target.starts_with(b"/") {
            return None;
        }
        let path =
            if parent.is_root() { target.to_vec() } else { [parent.as_bytes(), b"/", target].concat() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let where_it_is = |fd: BorrowedFd<'_>| rustix::fs::readlink(attributes::path_of(fd), Vec::new()).ok();
        let (root, found) = (where_it_is(self.fd.as_fd())?, where_it_is(fd.as_fd())?);
        let found = found.to_bytes().strip_prefix(root.to_bytes())?;
        let found = found.strip_prefix(b"/").unwrap_or(found);
        let may_be_seen = match levels::domain_of(found) {
            Some(domain) => levels::domain_of(parent.as_bytes()) == Some(domain),
            // Not the agent's own folder either.
            None => !found.starts_with(b"."),
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        (may_be_seen && is_file).then_some((fd, stat))
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

    /// As [`Root::open_parent`], for a name that is to be made: those of the first three levels that are missing
    /// may be made by the change. Nothing is changed here.
    pub fn find_parent<'a>(&self, path: &'a StorePath) -> Result<(Parent, &'a [u8])> {
        let missing = match self.open_parent(path) {
            Ok((fd, name)) => return Ok((Parent::There(fd), name)),
            Err(missing @ Error::NotFound { .. }) => missing,
            Err(error) => return Err(error),
        };
        let (parent, name) = path.split_last().ok_or_else(|| root_is_fixed(path))?;
        if parent.depth() > levels::CLUSTER_LEVELS {
            return Err(missing);
        }
        let mut above = parent;
        loop {
            let Some((next, _)) = above.split_last() else { return Err(missing) };
            above = next;
            match self.open_directory(&above) {
                Ok(nearest) => return Ok((Parent::Missing { nearest }, name)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Root::open_parent`], after making those of the first three levels that are missing.
    pub fn make_parent<'a>(&self, path: &'a StorePath) -> Result<(OwnedFd, &'a [u8], MadeLevels)> {
        let mut made = MadeLevels::default();
        // Refused before anything is made.
        if let (Parent::There(fd), name) = self.find_parent(path)? {
            return Ok((fd, name, made));
        }
        for level in 1..path.depth().min(levels::CLUSTER_LEVELS + 1) {
            let ancestor = path.first_levels(level);
            let (parent, name) = self.open_parent(&ancestor)?;
            match attributes::make_directory(&parent, name, self.modes) {
                Ok(()) => made.0.push((parent, name.to_vec())),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::from_errno(&ancestor, errno)),
            }
        }
        let (fd, name) = self.open_parent(path)?;
        Ok((fd, name, made))
    }

    /// Makes one directory, and those of the first three levels above it that are missing; all of them, or none.
    pub fn make_directory(&self, path: &StorePath) -> Result<()> {
        let (parent, name, made) = self.make_parent(path)?;
        attributes::make_directory(&parent, name, self.modes)
            .map_err(|errno| Error::from_errno(path, errno))?;
        made.keep();
        Ok(())
    }

    /// What stands at `path`. A symbolic link stands for itself, unless it is followed.
    pub fn stat(&self, path: &StorePath) -> Result<Entry> {
        let Some((_, name)) = path.split_last() else {
            let stat = rustix::fs::fstat(&self.fd).map_err(|errno| Error::from_errno(path, errno))?;
            return Ok(entry(Vec::new(), &stat));
        };
        let (parent, _) = self.open_parent(path).map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound { path: path.to_string() },
            other => other,
        })?;
        let (directory, _) = path.split_last().ok_or_else(|| root_is_fixed(path))?;
        self.entry_in(&directory, &parent, name).map_err(|errno| Error::from_errno(path, errno))
    }
}

/// The target of a link; empty where there is none by now.
fn target_of(directory: &OwnedFd, name: &[u8]) -> Vec<u8> {
    rustix::fs::readlinkat(directory, name, Vec::new()).map(|target| target.into_bytes()).unwrap_or_default()
}

/// Something else stands where a directory was, or nothing.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. } | Error::NotADirectory { .. } | Error::NotAFile { .. })
}

/// The name of a directory in its parent, by its inode.
fn name_of(parent: &OwnedFd, inode: u64) -> rustix::io::Result<Option<Vec<u8>>> {
    for entry in Dir::read_from(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.ino() == inode && name != b"." && name != b".." {
            return Ok(Some(name.to_vec()));
        }
    }
    Ok(None)
}

pub(crate) fn root_is_fixed(path: &StorePath) -> Error {
    Error::PermissionDenied { path: path.to_string(), source: io::ErrorKind::PermissionDenied.into() }
}

/// An entry of what the system says.
pub fn entry(name: Vec<u8>, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Socket => Kind::Socket,
        FileType::Fifo => Kind::Pipe,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::Unknown => Kind::Other,
    };
    Entry {
        name,
        kind,
        size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        modified_ns: modified_ns(stat),
        unix_mode: stat.st_mode & 0o7777,
        // No file has inode 0: the file system has no inodes.
        identity: (stat.st_ino != 0).then(|| identity_of(stat)),
        target: Vec::new(),
    }
}

/// Modification time in nanoseconds since 1970, held at the ends of what 64 bits can say.
pub fn modified_ns(stat: &Stat) -> i64 {
    nanoseconds(stat.st_mtime, stat.st_mtime_nsec)
}

fn nanoseconds(seconds: i64, rest: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(rest).unwrap_or(0))
}

/// What a file or directory is known by, whatever its name.
pub fn identity_of(stat: &Stat) -> Identity {
    Identity::from_halves(stat.st_dev, stat.st_ino)
}

/// Time of change (ctime) in nanoseconds since 1970: of the content or of anything else about the file, as the system sets it.
pub fn changed_ns(stat: &Stat) -> i64 {
    nanoseconds(stat.st_ctime, stat.st_ctime_nsec)
}

/// The version of an open file. Its content is told by device, inode, size and the time of modification, which anybody
/// may set; the time of change, which the system sets, tells the rest.
pub fn version(stat: &Stat) -> Version {
    let parts = [
        stat.st_dev.to_le_bytes(),
        stat.st_ino.to_le_bytes(),
        stat.st_size.to_le_bytes(),
        modified_ns(stat).to_le_bytes(),
    ];
    let mut content = [0; Version::CONTENT_BYTES];
    for (place, part) in content.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&part);
    }
    Version::new(content, changed_ns(stat).to_le_bytes())
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
        let link = root.stat(&path("link")).unwrap();
        assert_eq!((link.kind, &link.target[..]), (Kind::Symlink, &b"inside/file"[..]));
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
        let file = |name| root.stat(&path(name)).unwrap().identity.unwrap();
        assert_eq!(file("one"), file("two"));
        assert_ne!(file("one"), file("other"));
    }

    #[test]
    fn only_the_first_three_levels_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let anna = path("domains/a/users/anna");
        assert!(matches!(root.find_parent(&anna), Ok((Parent::Missing { .. }, b"anna"))));
        assert!(!folder.path().join("domains").try_exists().unwrap());
        root.make_parent(&anna).unwrap().2.keep();
        assert!(folder.path().join("domains/a/users").is_dir());
        let deeper = path("domains/b/users/bob/folders");
        for refused in [root.find_parent(&deeper).map(drop), root.make_parent(&deeper).map(drop)] {
            assert!(matches!(refused, Err(Error::NotFound { .. })));
        }
        assert!(matches!(root.make_directory(&deeper), Err(Error::NotFound { .. })));
        assert!(!folder.path().join("domains/b").try_exists().unwrap());
    }

    #[test]
    fn levels_of_a_change_that_fails_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("domains")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let (_, _, made) = root.make_parent(&path("domains/a/users/anna")).unwrap();
        assert!(folder.path().join("domains/a/users").is_dir());
        drop(made);
        assert!(!folder.path().join("domains/a").try_exists().unwrap());
        let (_, _, made) = root.make_parent(&path("domains/a/users/anna")).unwrap();
        std::fs::write(folder.path().join("domains/a/domainRegistry.bin"), "of somebody else").unwrap();
        drop(made);
        assert!(folder.path().join("domains/a/domainRegistry.bin").is_file());
    }

    #[test]
    fn a_level_that_is_a_link_or_a_file_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("domains")).unwrap();
        std::fs::write(folder.path().join("domains/file"), "x").unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("domains/link")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        for bad in ["domains/file/users/anna", "domains/link/users/anna"] {
            let bad = path(bad);
            let refused = root.find_parent(&bad);
            assert!(
                matches!(refused, Err(Error::NotADirectory { .. } | Error::NotAFile { .. })),
                "{bad} {refused:?}"
            );
        }
    }

    #[test]
    fn a_pipe_is_refused_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        rustix::fs::mknodat(&root.fd, "pipe", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(matches!(root.open_file(&path("pipe")), Err(Error::NotAFile { .. })));
    }

    #[test]
    fn links_are_followed_to_files_of_the_same_domain_or_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for folder in ["domains/a/users/x", "domains/b", "shared", ".portolan"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["domains/a/mail", "domains/b/mail", "shared/mail", ".portolan/own"] {
            std::fs::write(at(file), file).unwrap();
        }
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let outside = outside.path().join("secret");
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        link("../../mail", "domains/a/users/x/own");
        link("own", "domains/a/users/x/chain");
        link("../../../../shared/mail", "domains/a/users/x/shared");
        let kept = [
            ("domain", "../../../b/mail"),
            ("agent", "../../../../.portolan/own"),
            ("folder", "../../users"),
            ("loop", "loop"),
            ("nothing", "missing"),
            ("away", "../../../../../../../../../../etc/passwd"),
            ("outside", outside.to_str().unwrap()),
            ("magic", "/proc/self/root/etc/passwd"),
        ];
        for (name, target) in kept {
            link(target, &format!("domains/a/users/x/{name}"));
        }
        let root = Root::open(folder.path()).unwrap().with_links(Links::Follow);
        let inside = |name: &str| path(&format!("domains/a/users/x/{name}"));
        for (name, size) in [("own", 14), ("chain", 14), ("shared", 11)] {
            let entry = root.stat(&inside(name)).unwrap();
            assert_eq!(
                (entry.kind, entry.size, &entry.name[..]),
                (Kind::File, size, name.as_bytes()),
                "{name}"
            );
            assert_eq!(root.open_content(&inside(name)).unwrap().1.st_size.unsigned_abs(), size);
            assert!(matches!(root.open_file(&inside(name)), Err(Error::NotAFile { .. })));
            assert!(matches!(root.refuse_followed(&inside(name)), Err(Error::NotAFile { .. })));
        }
        for (name, target) in kept {
            let entry = root.stat(&inside(name)).unwrap();
            assert_eq!((entry.kind, &entry.target[..]), (Kind::Symlink, target.as_bytes()), "{name}");
            assert!(matches!(root.open_content(&inside(name)), Err(Error::NotAFile { .. })), "{name}");
        }
        let below = path("domains/a/users/x/folder/x/own");
        assert!(matches!(
            root.open_content(&below),
            Err(Error::NotAFile { .. } | Error::NotADirectory { .. })
        ));
        let root = Root::open(folder.path()).unwrap();
        assert_eq!(root.stat(&inside("own")).unwrap().kind, Kind::Symlink);
        assert!(root.open_content(&inside("own")).is_err());
    }
}
