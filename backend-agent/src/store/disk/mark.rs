//! The mark below a store's root, `.portolan/mark`: looked at by path, written durably.
//!
//! Who calls it: `store::open`, for kinds that lie in a folder; the command `portolan-agent mark`.
//! What it calls: the file system.
//! What it never does: follow a link below the root, change a mark, or look through a root that was opened before: an open
//! folder stays that of its volume when this is unmounted (`umount -l`) or covered by another one.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use portolan_proto::id::NodeId;
use portolan_proto::mark::{BadMark, MARK_BYTES_MAX, Mark, StoreId};
use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::path::Root;
use super::recover::OWN_FOLDER;
use crate::store::{Error, StorePath};

/// Relative to the own folder.
const MARK: &str = "mark";
const WRITTEN: &str = "mark.new";
/// What a new file system has in its root.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Which folder a path leads to now: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootIdentity(u64, u64);

impl RootIdentity {
    fn of(stat: &Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }

    /// Of a root that is open.
    pub fn of_open(root: &Root) -> rustix::io::Result<Self> {
        rustix::fs::fstat(root.as_fd()).map(|stat| Self::of(&stat))
    }

    /// Of the folder that a path leads to.
    pub fn at(root: &Path) -> rustix::io::Result<Self> {
        rustix::fs::stat(root).map(|stat| Self::of(&stat))
    }
}

/// What a folder without a mark holds, which tells what may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing but what a new file system has.
    Nothing,
    /// Folders, and no `domains` among them.
    NoDomains,
    Domains,
}

/// What a look by path has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub root: RootIdentity,
    pub mark: Mark,
}

/// Why a look by path has found no mark.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("there is none")]
    None { found: Found },
    #[error("it is no mark")]
    Bad(#[from] BadMark),
    #[error("it is not a regular file in a folder of the root")]
    NotAFile,
    #[error("the root cannot be opened")]
    Root(#[source] io::Error),
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    #[error("domains lies on another file system than the mark")]
    DomainsElsewhere,
}

/// Looks for the mark of the store at `root`, opened anew.
pub fn look(root: &Path) -> Result<Seen, LookError> {
    let root = Root::open(root).map_err(LookError::Root)?;
    let identity = RootIdentity::of_open(&root).map_err(|errno| LookError::Root(errno.into()))?;
    let mark = read(&root)?;
    if is_domains_elsewhere(&root, identity) {
        return Err(LookError::DomainsElsewhere);
    }
    Ok(Seen { root: identity, mark })
}

/// A mark says nothing of a volume that is mounted below it.
fn is_domains_elsewhere(root: &Root, identity: RootIdentity) -> bool {
    let domains = rustix::fs::statat(root.as_fd(), "domains", AtFlags::SYMLINK_NOFOLLOW);
    domains.is_ok_and(|stat| stat.st_dev != identity.0)
}

fn read(root: &Root) -> Result<Mark, LookError> {
    let path = StorePath::new(portolan_proto::mark::MARK_PATH.as_bytes()).expect("a constant");
    let file = match root.open_file(&path) {
        Ok((file, _)) => file,
        Err(Error::NotFound { .. }) => return Err(LookError::None { found: holds(root)? }),
        Err(Error::NotAFile { .. } | Error::NotADirectory { .. } | Error::IsADirectory { .. }) => {
            return Err(LookError::NotAFile);
        }
        Err(Error::PermissionDenied { source, .. } | Error::DiskFault { source, .. }) => {
            return Err(LookError::Unreadable(source));
        }
        Err(other) => return Err(LookError::Unreadable(io::Error::other(other))),
    };
    let mut content = Vec::new();
    let most = MARK_BYTES_MAX as u64 + 1;
    file.take(most).read_to_end(&mut content).map_err(LookError::Unreadable)?;
    Ok(Mark::parse(&content)?)
}

fn holds(root: &Root) -> Result<Found, LookError> {
    let unreadable = |errno: Errno| LookError::Root(errno.into());
    let mut found = Found::Nothing;
    for entry in Dir::read_from(root.as_fd()).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        match entry.file_name().to_bytes() {
            b"domains" => return Ok(Found::Domains),
            name if name.starts_with(b".") || name == LOST_AND_FOUND => {}
            _ => found = Found::NoDomains,
        }
    }
    Ok(found)
}

/// What [`write()`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    New(StoreId),
    /// The store was marked for this node already, and nothing was changed.
    Already(StoreId),
}

/// Why a store was not marked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(
        "it is empty and on the same file system as the folder that it lies in, so its volume may not be mounted; where an empty store is meant, say --empty"
    )]
    MayBeUnmounted,
    #[error(
        "domains in it lies on another file system; a mark holds for its own, so mount that one at the store's root, with domains as a folder in it"
    )]
    DomainsElsewhere,
    #[error(
        "it is marked for node {node} already; where that is wrong, remove {file} by hand and run this again"
    )]
    OtherNode { node: NodeId, file: String },
    #[error(
        "what stands at {file} is no mark; look at it, and where it is of no use remove it by hand and run this again"
    )]
    Bad { file: String, source: LookError },
    #[error("it cannot be opened")]
    Root(#[source] io::Error),
    #[error("the mark cannot be written")]
    Write(#[source] io::Error),
}

/// Marks the store at `root` for a node. An empty root is marked where it is a mount point, or where `may_be_empty`.
pub fn write(root: &Path, node: &NodeId, may_be_empty: bool) -> Result<Written, WriteError> {
    let file = || root.join(portolan_proto::mark::MARK_PATH).display().to_string();
    let opened = Root::open(root).map_err(WriteError::Root)?;
    let identity = RootIdentity::of_open(&opened).map_err(|errno| WriteError::Root(errno.into()))?;
    if is_domains_elsewhere(&opened, identity) {
        return Err(WriteError::DomainsElsewhere);
    }
    match read(&opened) {
        Ok(mark) if mark.node == *node => return Ok(Written::Already(mark.id)),
        Ok(mark) => return Err(WriteError::OtherNode { node: mark.node, file: file() }),
        Err(LookError::None { found: Found::Nothing }) if !may_be_empty && !is_mount_point(&opened)? => {
            return Err(WriteError::MayBeUnmounted);
        }
        Err(LookError::None { .. }) => {}
        Err(LookError::Root(source)) => return Err(WriteError::Root(source)),
        Err(source) => return Err(WriteError::Bad { file: file(), source }),
    }
    let id = StoreId::from_bits(rand::random());
    let mark = Mark { id, node: node.clone() };
    put(&opened, &mark).map_err(WriteError::Write)?;
    Ok(Written::New(id))
}

/// Does the root lie on another file system than the folder around it?
fn is_mount_point(root: &Root) -> Result<bool, WriteError> {
    let at = |errno: Errno| WriteError::Root(errno.into());
    let own = rustix::fs::fstat(root.as_fd()).map_err(at)?;
    let around = rustix::fs::statat(root.as_fd(), "..", AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
    Ok(own.st_dev != around.st_dev)
}

/// Writes a mark where none is: temporary file, fsync, rename, fsync of the folders. Root's files are given to
/// whom the root of the store belongs to, whom the agent runs as.
fn put(root: &Root, mark: &Mark) -> io::Result<()> {
    let owner = rustix::fs::fstat(root.as_fd())?;
    let own = own_folder(root, &owner)?;
    match rustix::fs::unlinkat(&own, WRITTEN, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o644);
    let mut file = File::from(rustix::fs::openat(&own, WRITTEN, flags, mode)?);
    rustix::fs::fchmod(&file, mode)?;
    give(&file, &owner)?;
    file.write_all(mark.to_text().as_bytes())?;
    file.sync_all()?;
    // A mark that came meanwhile stays.
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(&own, WRITTEN, &own, MARK, flags) {
        // The file system cannot promise that.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&own, WRITTEN, &own, MARK)?,
        done => done?,
    }
    rustix::fs::fsync(&own)?;
    rustix::fs::fsync(root.as_fd())?;
    Ok(())
}

fn own_folder(root: &Root, owner: &Stat) -> io::Result<OwnedFd> {
    let is_new = match rustix::fs::mkdirat(root.as_fd(), OWN_FOLDER, Mode::from_raw_mode(0o700)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno.into()),
    };
    let path = StorePath::new(OWN_FOLDER).expect("a constant");
    let own = root.open_directory(&path).map_err(io::Error::other)?;
    if is_new {
        give(&own, owner)?;
    }
    Ok(own)
}

/// Only root can give files away, and only root has to.
fn give(file: impl AsFd, owner: &Stat) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        rustix::fs::fchown(file, Some(user), Some(group))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn an_empty_folder_is_marked_only_where_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lost+found")).unwrap();
        std::fs::create_dir(folder.path().join(".hidden")).unwrap();
        let refused = write(folder.path(), &node("mail-1"), false);
        assert!(matches!(refused, Err(WriteError::MayBeUnmounted)), "{refused:?}");
        assert!(matches!(look(folder.path()), Err(LookError::None { found: Found::Nothing })));
        assert!(!folder.path().join(".portolan").try_exists().unwrap(), "nothing was changed");
        let Ok(Written::New(id)) = write(folder.path(), &node("mail-1"), true) else { panic!("marked") };
        assert_eq!(write(folder.path(), &node("mail-1"), false).unwrap(), Written::Already(id));
        let seen = look(folder.path()).unwrap();
        assert_eq!(seen.mark, Mark { id, node: node("mail-1") });
        assert_eq!(seen.root, RootIdentity::at(folder.path()).unwrap());
    }

    #[test]
    fn a_folder_that_holds_something_is_marked() {
        for name in ["domains", "other"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join(name)).unwrap();
            let found = if name == "domains" { Found::Domains } else { Found::NoDomains };
            match look(folder.path()) {
                Err(LookError::None { found: seen }) => assert_eq!(seen, found),
                other => panic!("{other:?}"),
            }
            assert!(matches!(write(folder.path(), &node("mail-1"), false), Ok(Written::New(_))));
        }
    }

    #[test]
    fn two_stores_have_two_ids_and_no_mark_is_replaced() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [Ok(Written::New(first)), Ok(Written::New(second))] =
            [&one, &two].map(|folder| write(folder.path(), &node("mail-1"), true))
        else {
            panic!("marked")
        };
        assert_ne!(first, second);
        let refused = write(one.path(), &node("mail-2"), true).unwrap_err();
        let WriteError::OtherNode { node: other, file } = &refused else { panic!("{refused}") };
        assert_eq!(
            (other, file),
            (&node("mail-1"), &one.path().join(".portolan/mark").display().to_string())
        );
        assert_eq!(look(one.path()).unwrap().mark.id, first);
    }

    #[test]
    fn what_is_no_mark_is_neither_believed_nor_replaced() {
        let good = Mark { id: StoreId::from_bits(7), node: node("mail-1") }.to_text();
        for content in ["", "garbage", &good[..good.len() - 2], &good.replace("version = 1", "version = 9")] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join(".portolan")).unwrap();
            let file = folder.path().join(".portolan/mark");
            std::fs::write(&file, content).unwrap();
            assert!(matches!(look(folder.path()), Err(LookError::Bad(_))), "{content}");
            assert!(matches!(write(folder.path(), &node("mail-1"), true), Err(WriteError::Bad { .. })));
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
        }
    }

    #[test]
    fn a_link_is_no_mark() {
        let elsewhere = tempfile::tempdir().unwrap();
        write(elsewhere.path(), &node("mail-1"), true).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join(".portolan");
        std::os::unix::fs::symlink(elsewhere.path().join(".portolan"), &own).unwrap();
        assert!(matches!(look(folder.path()), Err(LookError::NotAFile)));
        std::fs::remove_file(&own).unwrap();
        std::fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join(".portolan/mark"), own.join("mark")).unwrap();
        assert!(matches!(look(folder.path()), Err(LookError::NotAFile)));
    }

    #[test]
    fn what_a_cut_writing_has_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".portolan")).unwrap();
        std::fs::write(folder.path().join(".portolan/mark.new"), "hal").unwrap();
        assert!(matches!(look(folder.path()), Err(LookError::None { .. })));
        assert!(matches!(write(folder.path(), &node("mail-1"), true), Ok(Written::New(_))));
        assert!(!folder.path().join(".portolan/mark.new").try_exists().unwrap());
    }
}
