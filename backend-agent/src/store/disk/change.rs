//! Changes of names that not every file system can do in the same way: a rename that replaces nothing, a sync of a folder.
//!
//! Who calls it: `commit` for uploads that replace nothing, the store kinds for renames, `recover` for the look at the start.
//! What it calls: the system.
//! What it never does: replace or lose what stands at a name, whatever the file system can do.
//!
//! NFS, SMB, FAT, ZFS before 2.2 and most of FUSE do not know RENAME_NOREPLACE. There a file is linked to its new name, which
//! fails where the name is taken, and then loses the old one. Without links too, and for directories, the new name is claimed
//! by an empty file or directory, which also fails where the name is taken, and the rename replaces that.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// What the file system of a store can do, as a look at the start has shown.
#[derive(Debug, Default)]
pub struct Abilities {
    /// Empty where it could not be found out.
    no_replace: OnceLock<bool>,
}

impl Abilities {
    /// A rename that replaces nothing may take several steps.
    pub fn needs_steps(&self) -> bool {
        self.no_replace.get() != Some(&true)
    }

    /// Tries what is needed in an open folder that nobody else writes to, and logs what is missing.
    pub fn find_out(&self, staging: &OwnedFd) {
        let names = ["probe-1", "probe-2", "probe-3"].map(|name| format!("{}-{name}", std::process::id()));
        let [first, second, third] = names.each_ref();
        let found = make_file(staging, first.as_bytes()).and_then(|_| {
            let flag = match rename_flagged(staging, first.as_bytes(), staging, second.as_bytes()) {
                Ok(()) => true,
                Err(errno) if is_missing(errno) => false,
                Err(errno) => return Err(errno),
            };
            let from = if flag { second } else { first };
            let links = rustix::fs::linkat(staging, from, staging, third, AtFlags::empty()).is_ok();
            Ok((flag, links))
        });
        for name in names {
            match rustix::fs::unlinkat(staging, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => tracing::debug!(name, %errno, "a file of the look at the start stays"),
            }
        }
        match found {
            Ok((flag, links)) => {
                self.no_replace.set(flag).ok();
                if !flag {
                    tracing::warn!(
                        links,
                        "the store's file system cannot rename without replacing; such renames take two steps"
                    );
                }
            }
            // A full disk, for one. Each rename finds out for itself.
            Err(errno) => tracing::debug!(%errno, "what the store's file system can do is not known"),
        }
    }

    /// Renames, where nothing stands at the new name. Whoever calls it keeps other changes of this process away from both
    /// names while [`Abilities::needs_steps`].
    ///
    /// # Errors
    /// EXIST where anything stands there; those of rename(2).
    pub fn rename_no_replace(
        &self,
        (from_parent, from): (&OwnedFd, &[u8]),
        (to_parent, to): (&OwnedFd, &[u8]),
    ) -> rustix::io::Result<()> {
        if self.no_replace.get() != Some(&false) {
            match rename_flagged(from_parent, from, to_parent, to) {
                // EINVAL has other reasons too, such as a directory into itself.
                Err(errno) if is_missing(errno) && self.needs_steps() => {}
                done => return done,
            }
        }
        let source = stat(from_parent, from)?;
        if FileType::from_raw_mode(source.st_mode) == FileType::Directory {
            return by_claim_of_directory((from_parent, from), (to_parent, to));
        }
        match rustix::fs::linkat(from_parent, from, to_parent, to, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::MLINK | Errno::INVAL) => {
                return by_claim_of_file((from_parent, from), (to_parent, to));
            }
            Err(errno) => return Err(errno),
        }
        // What others have put at the old name meanwhile is theirs.
        if is_same(Ok(source), stat(from_parent, from))
            && let Err(errno) = rustix::fs::unlinkat(from_parent, from, AtFlags::empty())
            && errno != Errno::NOENT
        {
            // It keeps the old name then, and that one only.
            rustix::fs::unlinkat(to_parent, to, AtFlags::empty())?;
            return Err(errno);
        }
        Ok(())
    }
}

fn is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

fn rename_flagged(
    from_parent: &OwnedFd,
    from: &[u8],
    to_parent: &OwnedFd,
    to: &[u8],
) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(from_parent, from, to_parent, to, RenameFlags::NOREPLACE)
}

fn by_claim_of_directory(
    (from_parent, from): (&OwnedFd, &[u8]),
    (to_parent, to): (&OwnedFd, &[u8]),
) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(to_parent, to, Mode::from_raw_mode(0o700))?;
    // rename(2) replaces a directory that is empty, and no other.
    rustix::fs::renameat(from_parent, from, to_parent, to).inspect_err(|_| {
        if let Err(errno) = rustix::fs::unlinkat(to_parent, to, AtFlags::REMOVEDIR) {
            tracing::warn!(%errno, "an empty directory of a rename that failed stays behind");
        }
    })
}

fn by_claim_of_file(
    (from_parent, from): (&OwnedFd, &[u8]),
    (to_parent, to): (&OwnedFd, &[u8]),
) -> rustix::io::Result<()> {
    let claim = rustix::fs::fstat(make_file(to_parent, to)?);
    rustix::fs::renameat(from_parent, from, to_parent, to).inspect_err(|_| {
        let still_empty = stat(to_parent, to).is_ok_and(|stat| stat.st_size == 0);
        if still_empty
            && is_same(claim, stat(to_parent, to))
            && let Err(errno) = rustix::fs::unlinkat(to_parent, to, AtFlags::empty())
        {
            tracing::warn!(%errno, "an empty file of a rename that failed stays behind");
        }
    })
}

/// A new empty file at a name that is free.
fn make_file(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
}

fn stat(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn is_same(one: rustix::io::Result<Stat>, other: rustix::io::Result<Stat>) -> bool {
    matches!((one, other), (Ok(one), Ok(other)) if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Makes the names in a directory durable. A file system that cannot sync a directory is synced as a whole.
pub fn sync_directory(directory: &OwnedFd) -> rustix::io::Result<()> {
    match rustix::fs::fsync(directory) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rustix::fs::syncfs(directory),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(fs::File::open(folder.path()).unwrap());
        (folder, fd)
    }

    /// As where the flag is missing.
    fn without_flag() -> Abilities {
        Abilities { no_replace: OnceLock::from(false) }
    }

    #[test]
    fn a_look_at_the_start_leaves_nothing() {
        let (folder, fd) = folder();
        let abilities = Abilities::default();
        assert!(abilities.needs_steps());
        abilities.find_out(&fd);
        assert!(!abilities.needs_steps());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_replaced_in_steps_either() {
        let (folder, fd) = folder();
        let at = |name: &str| folder.path().join(name);
        let rename = |from: &str, to: &str| {
            without_flag().rename_no_replace((&fd, from.as_bytes()), (&fd, to.as_bytes()))
        };
        fs::write(at("file"), "mail").unwrap();
        fs::write(at("taken"), "other").unwrap();
        fs::create_dir_all(at("directory/below")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        for from in ["file", "directory", "link"] {
            for to in ["taken", "empty"] {
                assert_eq!(rename(from, to), Err(Errno::EXIST), "{from} {to}");
            }
            assert_eq!(rename(from, from), Err(Errno::EXIST), "{from}");
        }
        assert_eq!(rename("nothing", "free"), Err(Errno::NOENT));
        assert_eq!(rename("directory", "directory/below/inside"), Err(Errno::INVAL));
        assert!(!is_there(&at("directory/below/inside")));
        assert_eq!(fs::read_to_string(at("taken")).unwrap(), "other");
        for (from, to) in [("file", "file-2"), ("directory", "directory-2"), ("link", "link-2")] {
            assert_eq!(rename(from, to), Ok(()), "{from}");
            assert!(!is_there(&at(from)) && is_there(&at(to)), "{from}");
        }
        assert_eq!(fs::read_to_string(at("file-2")).unwrap(), "mail");
        assert!(at("directory-2/below").is_dir());
        // Without links too.
        let claim = |from: &str, to: &str| by_claim_of_file((&fd, from.as_bytes()), (&fd, to.as_bytes()));
        assert_eq!(claim("file-2", "taken"), Err(Errno::EXIST));
        assert_eq!(claim("nothing", "free"), Err(Errno::NOENT));
        assert!(!is_there(&at("free")));
        assert_eq!(claim("file-2", "file-3"), Ok(()));
        assert_eq!(fs::read_to_string(at("file-3")).unwrap(), "mail");
        assert!(!is_there(&at("file-2")));
    }

    fn is_there(path: &std::path::Path) -> bool {
        path.symlink_metadata().is_ok()
    }
}
