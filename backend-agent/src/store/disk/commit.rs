//! The only writer: nameless file, staging name, check, fsync, rename, fsync of the directory.
//!
//! Until the rename the previous file is what everybody sees; after the last fsync the new one survives a
//! power cut. A [`Staged`] that is dropped removes its staging file.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::change::sync_directory;
use super::path::{Parent, Root, modified_ns, version};
use super::room::Promise;
use super::{attributes, cache, recover};
use crate::store::error::Damage;
use crate::store::{Begin, Committed, Error, Finish, Result, StorePath, Upload, Version};

/// Bytes of the present file that are taken over in one step.
const PREFIX_PIECE_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of a prefix that are read back at once for its checksum.
const PREFIX_CHUNK_BYTES: usize = 256 * 1024;

/// A file being written in the staging folder.
#[derive(Debug)]
pub struct Staged {
    root: Arc<Root>,
    target: StorePath,
    parent: Parent,
    staging: OwnedFd,
    name: String,
    file: File,
    /// What is still to be taken over from the present file.
    prefix: Option<Prefix>,
    received: u64,
    /// Of what was received.
    crc32c: u32,
    /// Of the whole content.
    crc32: crc32fast::Hasher,
    modified_ns: Option<i64>,
    exclusive: bool,
    base: Base,
    /// The file whose attributes the new one has.
    resembles: Option<Version>,
    renamed: bool,
    promise: Promise,
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

/// The first bytes of the present file, which become those of the new one.
#[derive(Debug)]
struct Prefix {
    present: File,
    at: u64,
    end: u64,
}

impl Staged {
    /// Begins a new content of `target`, if the path and what is there allow it. Nothing that is visible changes.
    pub fn begin(root: &Arc<Root>, target: &StorePath, begin: Begin) -> Result<Self> {
        let at = |errno| Error::from_errno(target, errno);
        let (parent, last) = root.find_parent(target)?;
        let present = match &parent {
            Parent::There(directory) => present(directory, last).map_err(at)?,
            Parent::Missing { .. } => None,
        };
        if begin.exclusive && present.is_some() {
            return Err(Error::AlreadyExists { path: target.to_string() });
        }
        if let Some((_, stat)) = &present {
            refuse_special(target, stat)?;
        }
        // Where the folder itself is at fault, the upload is not.
        let staging = || {
            recover::staging(root).map_err(|mut error| {
                error.path_mut().into_iter().for_each(|path| *path = target.to_string());
                error
            })
        };
        let mut staging_fd = staging()?;
        // The rename would fail, but only after everything was sent.
        let device = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).map_err(at);
        let (Parent::There(place) | Parent::Missing { nearest: place }) = &parent;
        if device(place)? != device(&staging_fd)? {
            return Err(Error::CrossesFileSystems { path: target.to_string() });
        }
        let promise = Promise::begin(root.room(), &staging_fd).map_err(|error| no_room(target, error))?;
        let mut base = if begin.exclusive || begin.append { Base::Nothing } else { Base::Anything };
        let mut prefix = None;
        if begin.offset > 0 || begin.append && present.is_some() {
            let (file, stat) = root.open_file(target)?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let end = if begin.append { size } else { begin.offset };
            if end > size {
                return Err(Error::OffsetBeyondEnd { path: target.to_string(), size, offset: end });
            }
            base = Base::File(version(&stat));
            prefix = Some(Prefix { present: file, at: 0, end });
        }
        let (file, name) = match stage(root, &parent, &staging_fd) {
            // Removed since it was opened.
            Err(Errno::NOENT) => {
                staging_fd = staging()?;
                stage(root, &parent, &staging_fd)
            }
            staged => staged,
        }
        .map_err(|errno| match errno {
            Errno::NOENT => staging_is_gone(target),
            errno => at(errno),
        })?;
        Ok(Self {
            root: Arc::clone(root),
            target: target.clone(),
            parent,
            staging: staging_fd,
            name,
            file,
            prefix,
            received: 0,
            crc32c: 0,
            crc32: crc32fast::Hasher::new(),
            modified_ns: begin.modified_ns,
            exclusive: begin.exclusive,
            base,
            resembles: None,
            renamed: false,
            promise,
        })
    }

    fn last(&self) -> &[u8] {
        self.target.split_last().expect("the root has no parent, so it was refused").1
    }

    /// Gives the new file what the present one has beside its content; false where there is none, or the new file
    /// resembles it already.
    fn resemble_present(&mut self, directory: &OwnedFd) -> Result<bool> {
        let at = |errno| Error::from_errno(&self.target, errno);
        let Some((fd, stat)) = present(directory, self.last()).map_err(at)? else { return Ok(false) };
        refuse_special(&self.target, &stat)?;
        let present = Some(version(&stat));
        if self.resembles == present {
            return Ok(false);
        }
        attributes::take_over(&self.file, &fd, &stat).map_err(at)?;
        self.resembles = present;
        Ok(true)
    }

    /// Puts the new file in the place of what is there, if that may be there.
    fn replace(&self, directory: &OwnedFd) -> Result<()> {
        let at = |errno| Error::from_errno(&self.target, errno);
        let changing = || Error::Changing { path: self.target.to_string() };
        if let Base::File(base) = self.base {
            match rustix::fs::statat(directory, self.last(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(present) if version(&present) == base => {}
                Ok(_) | Err(Errno::NOENT) => return Err(changing()),
                Err(errno) => return Err(at(errno)),
            }
        }
        let renamed = match self.base {
            Base::Nothing => {
                let from = (&self.staging, self.name.as_bytes());
                self.root.abilities().rename_no_replace(from, (directory, self.last()))
            }
            Base::Anything | Base::File(_) => {
                rustix::fs::renameat(&self.staging, &self.name, directory, self.last())
            }
        };
        renamed.map_err(|errno| match errno {
            Errno::EXIST if !self.exclusive => changing(),
            Errno::NOENT if self.is_gone() => staging_is_gone(&self.target),
            errno => at(errno),
        })
    }

    /// Somebody has removed the file from the staging folder.
    fn is_gone(&self) -> bool {
        rustix::fs::statat(&self.staging, &self.name, AtFlags::SYMLINK_NOFOLLOW).err() == Some(Errno::NOENT)
    }

    /// Sees to it that so many bytes may be written.
    fn ask(&mut self, bytes: u64) -> Result<()> {
        self.promise.ask(self.root.room(), &self.staging, bytes).map_err(|error| no_room(&self.target, error))
    }

    /// Copies a piece of the present file and takes it into the checksum of the whole.
    fn copy_piece(&mut self, prefix: &mut Prefix) -> Result<()> {
        let piece = (prefix.end - prefix.at).min(PREFIX_PIECE_BYTES);
        self.ask(piece)?;
        // std::io::copy uses copy_file_range here: shared extents where the file system can.
        let copied = std::io::copy(&mut (&prefix.present).take(piece), &mut self.file)
            .map_err(|error| Error::from_io(&self.target, error))?;
        self.promise.written(self.root.room(), copied);
        let end = prefix.at + copied;
        if copied < piece {
            let path = self.target.to_string();
            return Err(Error::OffsetBeyondEnd { path, size: end, offset: prefix.end });
        }
        let mut buffer = vec![0; PREFIX_CHUNK_BYTES];
        while prefix.at < end {
            let wanted = usize::try_from(end - prefix.at)
                .map_or(PREFIX_CHUNK_BYTES, |rest| rest.min(PREFIX_CHUNK_BYTES));
            let count =
                cache::read(&self.file, &mut buffer[..wanted], prefix.at).and_then(|count| match count {
                    0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                    count => Ok(count),
                });
            let count = count.map_err(|error| Error::from_io(&self.target, error))?;
            self.crc32.update(&buffer[..count]);
            prefix.at += count as u64;
        }
        Ok(())
    }
}

impl Upload for Staged {
    fn prepare(&mut self) -> Result<bool> {
        let Some(mut prefix) = self.prefix.take() else { return Ok(false) };
        self.copy_piece(&mut prefix)?;
        if prefix.at < prefix.end {
            self.prefix = Some(prefix);
        }
        Ok(self.prefix.is_some())
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        debug_assert!(self.prefix.is_none(), "prepare() says false before anything is written");
        self.ask(chunk.len() as u64)?;
        self.file.write_all(chunk).map_err(|error| Error::from_io(&self.target, error))?;
        self.promise.written(self.root.room(), chunk.len() as u64);
        self.received += chunk.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, chunk);
        self.crc32.update(chunk);
        Ok(())
    }

    fn sync(&mut self, finish: Finish) -> Result<()> {
        let damaged = |what| Err(Error::Damaged { path: self.target.to_string(), what });
        if finish.length != self.received {
            return damaged(Damage::Length { announced: finish.length, received: self.received });
        }
        if finish.crc32c != self.crc32c {
            return damaged(Damage::Checksum);
        }
        if let Some(modified_ns) = self.modified_ns {
            set_modified(&self.file, modified_ns).map_err(|errno| Error::from_errno(&self.target, errno))?;
        }
        if let Parent::There(directory) = &self.parent {
            let directory = directory.try_clone().map_err(|error| Error::from_io(&self.target, error))?;
            self.resemble_present(&directory)?;
        }
        rustix::fs::fsync(&self.file).map_err(|errno| Error::from_errno(&self.target, errno))
    }

    fn commit(mut self: Box<Self>) -> Result<Committed> {
        let root = Arc::clone(&self.root);
        let target = self.target.clone();
        let at = |errno| Error::from_errno(&target, errno);
        let (directory, made) = {
            let _replacing = root.replacing();
            let (directory, made, is_new) = match &self.parent {
                Parent::There(directory) => {
                    let directory = directory.try_clone().map_err(|error| Error::from_io(&target, error))?;
                    (directory, None, false)
                }
                Parent::Missing { .. } => {
                    let (directory, _, made) = root.make_parent(&target)?;
                    attributes::inherit(&self.file, &directory, root.modes()).map_err(at)?;
                    (directory, Some(made), true)
                }
            };
            // Whose permissions were changed since the file was synced.
            if self.resemble_present(&directory)? || is_new {
                rustix::fs::fsync(&self.file).map_err(at)?;
            }
            self.replace(&directory)?;
            (directory, made)
        };
        self.renamed = true;
        if let Some(made) = made {
            made.keep();
        }
        sync_directory(&directory).map_err(at)?;
        let stat = rustix::fs::fstat(&self.file).map_err(at)?;
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
        self.promise.end(self.root.room());
        if !self.renamed
            && let Err(errno) = rustix::fs::unlinkat(&self.staging, &self.name, AtFlags::empty())
            && errno != Errno::NOENT
        {
            tracing::warn!(file = self.name, %errno, "a staging file stays behind until the next start");
        }
    }
}

/// A new file with a name in the staging folder: born in the folder that it belongs in, so that it has what this
/// passes on, and linked; where that cannot be, made in the staging folder and given the same.
fn stage(root: &Root, parent: &Parent, staging: &OwnedFd) -> rustix::io::Result<(File, String)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let directory = match parent {
        Parent::There(directory) => Some(directory),
        // It inherits when the levels are there.
        Parent::Missing { .. } => None,
    };
    if let Some(directory) = directory
        && let Some(file) = attributes::born(directory, root.modes())?
    {
        match attributes::link(&file, staging, &name) {
            Ok(()) => return Ok((file, name)),
            // Other project quotas of the two folders, no /proc.
            Err(
                Errno::XDEV
                | Errno::NOENT
                | Errno::PERM
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::MLINK
                | Errno::INVAL,
            ) => {}
            Err(errno) => return Err(errno),
        }
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::openat(staging, &name, flags, Mode::from_raw_mode(0o600))?);
    if let Some(directory) = directory
        && let Err(errno) = attributes::inherit(&file, directory, root.modes())
    {
        rustix::fs::unlinkat(staging, &name, AtFlags::empty())?;
        return Err(errno);
    }
    Ok((file, name))
}

fn staging_is_gone(target: &StorePath) -> Error {
    let source = std::io::Error::other("somebody has removed the staging folder, or the file in it");
    Error::DiskFault { path: target.to_string(), source }
}

/// Why the room of the store refuses an upload.
fn no_room(target: &StorePath, source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::StorageFull => Error::NoSpace { path: target.to_string(), source },
        _ => Error::from_io(target, source),
    }
}

/// What stands at a name, by a descriptor that opens nothing.
fn present(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<(OwnedFd, Stat)>> {
    match rustix::fs::openat(
        directory,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            Ok(Some((fd, stat)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
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
    rustix::fs::futimens(&fd, &modified(modified_ns))?;
    match with_access(&rustix::fs::fstat(&fd)?, modified_ns) {
        Some(both) => rustix::fs::futimens(&fd, &both),
        None => Ok(()),
    }
}

/// Both times, for file systems that pass over a change of one (bindfs); `None` where the time was set.
pub fn with_access(stat: &Stat, modified_ns: i64) -> Option<Timestamps> {
    let is_set = super::path::modified_ns(stat).abs_diff(modified_ns) < TIME_STEP_MAX.as_nanos() as u64;
    let last_access =
        Timespec { tv_sec: stat.st_atime, tv_nsec: i64::try_from(stat.st_atime_nsec).unwrap_or(0) };
    (!is_set).then(|| Timestamps { last_access, ..modified(modified_ns) })
}

/// How far a time that is kept may be from the one asked for: file systems of FAT count in two seconds.
pub const TIME_STEP_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// Times of which only that of modification is set.
pub fn modified(modified_ns: i64) -> Timestamps {
    let modified = Timespec {
        tv_sec: modified_ns.div_euclid(1_000_000_000),
        tv_nsec: modified_ns.rem_euclid(1_000_000_000),
    };
    let untouched = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access: untouched, last_modification: modified }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(content: &[u8]) -> Finish {
        Finish { length: content.len() as u64, crc32c: crc32c::crc32c(content) }
    }

    fn upload(
        root: &Arc<Root>,
        target: &str,
        offset: u64,
        content: &[u8],
        finish: Finish,
    ) -> Result<Committed> {
        let target = StorePath::new(target.as_bytes()).unwrap();
        let begin = Begin { offset, modified_ns: Some(1_500_000_000), ..Begin::default() };
        written(Staged::begin(root, &target, begin)?, content, finish)
    }

    /// The rest of an upload.
    fn written(mut staged: Staged, content: &[u8], finish: Finish) -> Result<Committed> {
        while staged.prepare()? {}
        staged.write(content)?;
        staged.sync(finish)?;
        Box::new(staged).commit()
    }

    fn root(folder: &tempfile::TempDir) -> Arc<Root> {
        Arc::new(Root::open(folder.path()).unwrap())
    }

    fn staging_is_empty(folder: &std::path::Path) -> bool {
        std::fs::read_dir(folder.join(".portolan/staging")).unwrap().next().is_none()
    }

    #[test]
    fn the_old_file_survives_every_refused_commit() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(&folder);
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
        let root = root(&folder);
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
        let root = root(&folder);
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
        let root = root(&folder);
        let _lock = recover::recover(&root).unwrap();
        let file = folder.path().join("domains/a/f");
        let target = StorePath::new(b"domains/a/f").unwrap();
        let append = Begin { append: true, ..Begin::default() };
        let appended =
            |content: &[u8]| written(Staged::begin(&root, &target, append)?, content, crc(content));
        appended(b"base").unwrap();
        for begin in [append, Begin { offset: 2, ..Begin::default() }] {
            let staged = Staged::begin(&root, &target, begin).unwrap();
            appended(b"+kept").unwrap();
            assert!(matches!(written(staged, b"lost", crc(b"lost")), Err(Error::Changing { .. })));
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"base+kept+kept");
        // Gone at the commit, or there only then.
        let staged = Staged::begin(&root, &target, append).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(written(staged, b"lost", crc(b"lost")), Err(Error::Changing { .. })));
        let staged = Staged::begin(&root, &target, append).unwrap();
        appended(b"first").unwrap();
        assert!(matches!(written(staged, b"lost", crc(b"lost")), Err(Error::Changing { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"first");
        assert!(staging_is_empty(folder.path()));
    }

    #[test]
    fn an_exclusive_upload_replaces_nothing_at_its_beginning_and_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(&folder);
        let _lock = recover::recover(&root).unwrap();
        let target = StorePath::new(b"domains/a/f").unwrap();
        let exclusive = Begin { exclusive: true, ..Begin::default() };
        let begin = || Staged::begin(&root, &target, exclusive);
        let late = begin().unwrap();
        written(begin().unwrap(), b"first", crc(b"first")).unwrap();
        assert!(matches!(begin(), Err(Error::AlreadyExists { .. })));
        assert!(matches!(written(late, b"late", crc(b"late")), Err(Error::AlreadyExists { .. })));
        assert_eq!(std::fs::read(folder.path().join("domains/a/f")).unwrap(), b"first");
        assert!(staging_is_empty(folder.path()));
        std::fs::create_dir(folder.path().join("domains/a/d")).unwrap();
        let folder_there = Staged::begin(&root, &StorePath::new(b"domains/a/d").unwrap(), exclusive);
        assert!(matches!(folder_there, Err(Error::AlreadyExists { .. })));
    }

    #[test]
    fn a_directory_is_not_replaced_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(&folder);
        let _lock = recover::recover(&root).unwrap();
        std::fs::create_dir_all(folder.path().join("domains/a/d")).unwrap();
        assert!(matches!(upload(&root, "domains/a/d", 0, b"x", crc(b"x")), Err(Error::IsADirectory { .. })));
    }
}
