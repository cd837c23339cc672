//! The only writer: staging file, check, fsync, rename, fsync of the directory.
//!
//! Until the rename the previous file is what everybody sees; after the second fsync the new one survives a
//! power cut. A [`Staged`] that is dropped removes its staging file.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::path::{Owner, Root, modified_ns, version};
use super::{cache, recover};
use crate::store::error::Damage;
use crate::store::{Begin, Committed, Error, Finish, Result, StorePath, Upload, Version};

/// Permission bits of a file that did not exist before.
const FILE_MODE: Mode = Mode::from_raw_mode(0o660);

/// Bytes of a prefix that are read back at once for its checksum.
const PREFIX_CHUNK_BYTES: usize = 256 * 1024;

/// A file being written in the staging folder.
#[derive(Debug)]
pub struct Staged {
    target: StorePath,
    directory: OwnedFd,
    staging: OwnedFd,
    name: String,
    file: File,
    received: u64,
    /// Of what was received.
    crc32c: u32,
    /// Of the whole content.
    crc32: crc32fast::Hasher,
    modified_ns: Option<i64>,
    exclusive: bool,
    base: Base,
    renamed: bool,
}

/// What must be at the name at the commit.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// Whatever it is, the new content stands for itself.
    Anything,
    Nothing,
    /// The file that the first bytes were copied from.
    File(Version),
}

/// Held from the last look at what is replaced to its replacement.
static REPLACING: Mutex<()> = Mutex::new(());

impl Staged {
    /// Begins a new content of `target`. Bytes of the present file that it begins with are copied at once.
    pub fn begin(root: &Root, target: &StorePath, begin: Begin) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let at = |errno| Error::from_errno(target, errno);
        let (directory, last) = root.open_parent_for_create(target)?;
        let present = match rustix::fs::statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(at(errno)),
        };
        if begin.exclusive && present.is_some() {
            return Err(Error::AlreadyExists { path: target.to_string() });
        }
        if let Some(stat) = &present {
            refuse_special(target, stat)?;
        }
        let staging = recover::staging(root)?;
        // The rename would fail, but only after everything was sent.
        let device = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).map_err(at);
        if device(&directory)? != device(&staging)? {
            return Err(Error::CrossesFileSystems { path: target.to_string() });
        }
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&staging, &name, flags, Mode::from_raw_mode(0o600)).map_err(at)?;
        let mut staged = Self {
            target: target.clone(),
            directory,
            staging,
            name,
            file: File::from(fd),
            received: 0,
            crc32c: 0,
            crc32: crc32fast::Hasher::new(),
            modified_ns: begin.modified_ns,
            exclusive: begin.exclusive,
            base: if begin.exclusive || begin.append { Base::Nothing } else { Base::Anything },
            renamed: false,
        };
        staged.take_over(present.as_ref())?;
        if begin.offset > 0 {
            staged.copy_prefix(root, Some(begin.offset))?;
        } else if begin.append && present.is_some() {
            staged.copy_prefix(root, None)?;
        }
        Ok(staged)
    }

    /// Gives the new file the mode and owner of the present one, or those usual in its directory.
    fn take_over(&mut self, present: Option<&Stat>) -> Result<()> {
        let at = |errno| Error::from_errno(&self.target, errno);
        let mode = match present {
            Some(stat) => Mode::from_raw_mode(stat.st_mode & 0o7777),
            None => FILE_MODE,
        };
        let owner = match present {
            Some(stat) => Owner::from(stat),
            None => Owner::of(&self.directory).map_err(at)?,
        };
        if owner.must_be_given() {
            let (user, group) = owner.ids();
            rustix::fs::fchown(&self.file, user, group).map_err(at)?;
        }
        rustix::fs::fchmod(&self.file, mode).map_err(at)
    }

    /// Copies the first `offset` bytes of the present file, or all.
    fn copy_prefix(&mut self, root: &Root, offset: Option<u64>) -> Result<()> {
        let (present, stat) = root.open_file(&self.target)?;
        self.base = Base::File(version(&stat));
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let offset = offset.unwrap_or(size);
        let short = |size| Error::OffsetBeyondEnd { path: self.target.to_string(), size, offset };
        if offset > size {
            return Err(short(size));
        }
        // std::io::copy uses copy_file_range here: shared extents where the file system can.
        let copied = std::io::copy(&mut std::io::Read::take(&present, offset), &mut self.file)
            .map_err(|error| Error::from_io(&self.target, error))?;
        if copied < offset { Err(short(copied)) } else { self.sum_prefix(offset) }
    }

    /// Puts the new file in the place of what is there, if that may be there.
    fn replace(&self, last: &[u8]) -> Result<()> {
        let at = |errno| Error::from_errno(&self.target, errno);
        let changing = || Error::Changing { path: self.target.to_string() };
        let _replacing = REPLACING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Base::File(base) = self.base {
            match rustix::fs::statat(&self.directory, last, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(present) if version(&present) == base => {}
                Ok(_) | Err(Errno::NOENT) => return Err(changing()),
                Err(errno) => return Err(at(errno)),
            }
        }
        let flags = match self.base {
            Base::Nothing => RenameFlags::NOREPLACE,
            Base::Anything | Base::File(_) => RenameFlags::empty(),
        };
        rustix::fs::renameat_with(&self.staging, &self.name, &self.directory, last, flags)
            .map_err(|errno| if errno == Errno::EXIST && !self.exclusive { changing() } else { at(errno) })
    }

    /// Takes the prefix into the checksum of the whole, as it stands in the new file.
    fn sum_prefix(&mut self, length: u64) -> Result<()> {
        let mut buffer = vec![0; PREFIX_CHUNK_BYTES];
        let mut at = 0;
        while at < length {
            let wanted =
                usize::try_from(length - at).map_or(PREFIX_CHUNK_BYTES, |rest| rest.min(PREFIX_CHUNK_BYTES));
            let count = cache::read(&self.file, &mut buffer[..wanted], at).and_then(|count| match count {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => Ok(count),
            });
            let count = count.map_err(|error| Error::from_io(&self.target, error))?;
            self.crc32.update(&buffer[..count]);
            at += count as u64;
        }
        Ok(())
    }
}

impl Upload for Staged {
    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.file.write_all(chunk).map_err(|error| Error::from_io(&self.target, error))?;
        self.received += chunk.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, chunk);
        self.crc32.update(chunk);
        Ok(())
    }

    fn commit(mut self: Box<Self>, finish: Finish) -> Result<Committed> {
        let damaged = |what| Err(Error::Damaged { path: self.target.to_string(), what });
        if finish.length != self.received {
            return damaged(Damage::Length { announced: finish.length, received: self.received });
        }
        if finish.crc32c != self.crc32c {
            return damaged(Damage::Checksum);
        }
        let at = |errno| Error::from_errno(&self.target, errno);
        if let Some(modified_ns) = self.modified_ns {
            set_modified(&self.file, modified_ns).map_err(at)?;
        }
        rustix::fs::fsync(&self.file).map_err(at)?;
        let stat = rustix::fs::fstat(&self.file).map_err(at)?;
        let (_, last) = self.target.split_last().expect("the root is refused by open_parent");
        self.replace(last)?;
        self.renamed = true;
        rustix::fs::fsync(&self.directory).map_err(at)?;
        cache::drop_pages(&self.file);
        Ok(Committed {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: modified_ns(&stat),
            crc32: self.crc32.clone().finalize(),
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(errno) = rustix::fs::unlinkat(&self.staging, &self.name, AtFlags::empty())
        {
            tracing::warn!(file = self.name, %errno, "a staging file stays behind until the next start");
        }
    }
}

/// Only a file, or nothing, can be replaced by a file.
fn refuse_special(target: &StorePath, stat: &Stat) -> Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Error::IsADirectory { path: target.to_string() }),
        _ => Err(Error::NotAFile { path: target.to_string() }),
    }
}

/// Sets the modification time and leaves the time of access.
pub fn set_modified(fd: impl std::os::fd::AsFd, modified_ns: i64) -> rustix::io::Result<()> {
    let modified = Timespec {
        tv_sec: modified_ns.div_euclid(1_000_000_000),
        tv_nsec: modified_ns.rem_euclid(1_000_000_000),
    };
    let untouched = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    rustix::fs::futimens(fd, &Timestamps { last_access: untouched, last_modification: modified })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(content: &[u8]) -> Finish {
        Finish { length: content.len() as u64, crc32c: crc32c::crc32c(content) }
    }

    fn upload(root: &Root, target: &str, offset: u64, content: &[u8], finish: Finish) -> Result<Committed> {
        let target = StorePath::new(target.as_bytes()).unwrap();
        let begin = Begin { offset, modified_ns: Some(1_500_000_000), ..Begin::default() };
        let mut staged = Box::new(Staged::begin(root, &target, begin)?);
        staged.write(content)?;
        staged.commit(finish)
    }

    fn staging_is_empty(folder: &std::path::Path) -> bool {
        std::fs::read_dir(folder.join(".portolan/staging")).unwrap().next().is_none()
    }

    #[test]
    fn the_old_file_survives_every_refused_commit() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let _lock = recover::recover(&root).unwrap();
        upload(&root, "domains/a/f", 0, b"old", crc(b"old")).unwrap();
        let file = folder.path().join("domains/a/f");
        let wrong_length = Finish { length: 4, ..crc(b"new") };
        let wrong_checksum = Finish { crc32c: 1, ..crc(b"new") };
        for finish in [wrong_length, wrong_checksum] {
            assert!(matches!(upload(&root, "domains/a/f", 0, b"new", finish), Err(Error::Damaged { .. })));
        }
        let target = StorePath::new(b"domains/a/f").unwrap();
        let dropped = Staged::begin(&root, &target, Begin::default()).unwrap();
        drop(dropped);
        assert!(matches!(
            upload(&root, "domains/a/f", 4, b"new", crc(b"new")),
            Err(Error::OffsetBeyondEnd { size: 3, .. })
        ));
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        assert!(staging_is_empty(folder.path()));
    }

    #[test]
    fn a_commit_replaces_the_content_and_keeps_the_mode() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let _lock = recover::recover(&root).unwrap();
        upload(&root, "domains/a/f", 0, b"old", crc(b"old")).unwrap();
        let file = folder.path().join("domains/a/f");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o604)).unwrap();
        let committed = upload(&root, "domains/a/f", 3, b"+new", crc(b"+new")).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"old+new");
        assert_eq!((committed.size, committed.crc32), (7, crc32fast::hash(b"old+new")));
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o604);
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1, 500_000_000));
        assert!(staging_is_empty(folder.path()));
    }

    #[test]
    fn the_checksum_of_the_whole_includes_a_long_prefix() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let _lock = recover::recover(&root).unwrap();
        let old: Vec<u8> = (0..2 * PREFIX_CHUNK_BYTES + 5).map(|number| (number % 251) as u8).collect();
        let first = upload(&root, "domains/a/f", 0, &old, crc(&old)).unwrap();
        assert_eq!(first.crc32, crc32fast::hash(&old));
        let prefix = old.len() - 3;
        let second = upload(&root, "domains/a/f", prefix as u64, b"new end", crc(b"new end")).unwrap();
        let whole = [&old[..prefix], b"new end"].concat();
        assert_eq!(std::fs::read(folder.path().join("domains/a/f")).unwrap(), whole);
        assert_eq!(second.crc32, crc32fast::hash(&whole));
    }

    #[test]
    fn what_goes_on_from_a_file_that_was_replaced_meanwhile_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let _lock = recover::recover(&root).unwrap();
        let file = folder.path().join("domains/a/f");
        let target = StorePath::new(b"domains/a/f").unwrap();
        let append = Begin { append: true, ..Begin::default() };
        let appended = |content: &[u8]| {
            let mut staged = Box::new(Staged::begin(&root, &target, append)?);
            staged.write(content)?;
            staged.commit(crc(content))
        };
        appended(b"base").unwrap();
        for begin in [append, Begin { offset: 2, ..Begin::default() }] {
            let mut staged = Box::new(Staged::begin(&root, &target, begin).unwrap());
            staged.write(b"lost").unwrap();
            appended(b"+kept").unwrap();
            assert!(matches!(staged.commit(crc(b"lost")), Err(Error::Changing { .. })));
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"base+kept+kept");
        // Gone at the commit, or there only then.
        let mut staged = Box::new(Staged::begin(&root, &target, append).unwrap());
        staged.write(b"lost").unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(staged.commit(crc(b"lost")), Err(Error::Changing { .. })));
        let mut staged = Box::new(Staged::begin(&root, &target, append).unwrap());
        staged.write(b"lost").unwrap();
        appended(b"first").unwrap();
        assert!(matches!(staged.commit(crc(b"lost")), Err(Error::Changing { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"first");
        assert!(staging_is_empty(folder.path()));
    }

    #[test]
    fn an_exclusive_upload_replaces_nothing_at_its_beginning_and_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let _lock = recover::recover(&root).unwrap();
        let target = StorePath::new(b"domains/a/f").unwrap();
        let exclusive = Begin { exclusive: true, ..Begin::default() };
        let begin = || Staged::begin(&root, &target, exclusive).map(Box::new);
        let mut late = begin().unwrap();
        late.write(b"late").unwrap();
        let mut first = begin().unwrap();
        first.write(b"first").unwrap();
        first.commit(crc(b"first")).unwrap();
        assert!(matches!(begin(), Err(Error::AlreadyExists { .. })));
        assert!(matches!(late.commit(crc(b"late")), Err(Error::AlreadyExists { .. })));
        assert_eq!(std::fs::read(folder.path().join("domains/a/f")).unwrap(), b"first");
        assert!(staging_is_empty(folder.path()));
        std::fs::create_dir(folder.path().join("domains/a/d")).unwrap();
        let folder_there = Staged::begin(&root, &StorePath::new(b"domains/a/d").unwrap(), exclusive);
        assert!(matches!(folder_there, Err(Error::AlreadyExists { .. })));
    }

    #[test]
    fn a_directory_is_not_replaced_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let _lock = recover::recover(&root).unwrap();
        std::fs::create_dir_all(folder.path().join("domains/a/d")).unwrap();
        assert!(matches!(upload(&root, "domains/a/d", 0, b"x", crc(b"x")), Err(Error::IsADirectory { .. })));
    }
}
