//! What a file has beside its content: mode, owner, access control list, extended attributes.
//!
//! Who calls it: `commit` for uploads, `path` for directories.
//! What it calls: the system; `/proc/self/fd` for descriptors that name a file without opening it.
//! What it never does: give more rights than the file that is replaced had, or than the folder passes on.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use portolan_config::checked::agent::Modes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::change::sync_directory;

/// The list that a folder passes on to what is made in it, acl(5).
const DEFAULT_ACL: &str = "system.posix_acl_default";
const ACCESS_ACL: &str = "system.posix_acl_access";

/// Attributes of the content and not of the file: the kernel drops or computes them.
const OF_THE_CONTENT: [&[u8]; 3] = [b"security.capability", b"security.ima", b"security.evm"];

/// Bytes of one extended attribute, and of all their names, at most (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// A path that leads to what a descriptor refers to, also one of O_PATH.
pub fn path_of(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The access control list that a folder passes on.
fn default_acl(directory: impl AsFd) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    match rustix::fs::fgetxattr(directory, DEFAULT_ACL, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value).filter(|value| !value.is_empty()))
        }
        // The file system has no such lists.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A file without a name, as `directory` has its new files. `None`: the file system cannot do this.
pub fn born(directory: &OwnedFd, modes: Modes) -> rustix::io::Result<Option<File>> {
    let has_acl = default_acl(directory)?.is_some();
    // A list decides alone; the kernel takes away from it what the mode does not allow.
    let mode = Mode::from_raw_mode(if has_acl { 0o666 } else { modes.file });
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, ".", flags, mode) {
        Ok(fd) => File::from(fd),
        // Kernels and file systems without O_TMPFILE.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    give_owner(&file, &rustix::fs::fstat(directory)?)?;
    if !has_acl {
        // Whatever the umask of the process.
        rustix::fs::fchmod(&file, mode)?;
    }
    Ok(Some(file))
}

/// Gives a file that was made elsewhere what it would have had if it were made in `directory`.
pub fn inherit(file: &File, directory: &OwnedFd, modes: Modes) -> rustix::io::Result<()> {
    if let Some(born) = born(directory, modes)? {
        return take_over(file, &born, &rustix::fs::fstat(&born)?);
    }
    let parent = rustix::fs::fstat(directory)?;
    give_owner(file, &parent)?;
    if parent.st_mode & Mode::SGID.bits() != 0 {
        give_group(file, parent.st_gid)?;
    }
    match default_acl(directory)? {
        Some(list) => {
            rustix::fs::fsetxattr(file, ACCESS_ACL, &list, XattrFlags::empty())?;
            let mode = rustix::fs::fstat(file)?.st_mode & 0o666;
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
        }
        None => rustix::fs::fchmod(file, Mode::from_raw_mode(modes.file)),
    }
}

/// Gives `file` what `from` has, of which `stat` was taken. `from` may be a descriptor of O_PATH.
pub fn take_over(file: &File, from: impl AsFd, stat: &Stat) -> rustix::io::Result<()> {
    let from = path_of(from);
    let kept_group = if rustix::process::geteuid().is_root() {
        let (user, group) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(file, Some(user), Some(group))?;
        true
    } else {
        give_group(file, stat.st_gid)?
    };
    let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match rustix::fs::listxattr(&from, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let names = || list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    if !names().any(|name| name == ACCESS_ACL.as_bytes()) {
        // One that the folder has passed on.
        match rustix::fs::fremovexattr(file, ACCESS_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    for name in names().filter(|name| !OF_THE_CONTENT.contains(name)) {
        let copied = match rustix::fs::getxattr(&from, name, &mut value[..]) {
            Ok(length) => rustix::fs::fsetxattr(file, name, &value[..length], XattrFlags::empty()),
            // Removed meanwhile.
            Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(errno),
        };
        match copied {
            Ok(()) => {}
            // Labels of the system, which this process may not set: the file has those of its folder.
            Err(errno @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP)) if is_of_the_system(name) => {
                let name = portolan_proto::path::display(name);
                tracing::debug!(name, %errno, "an attribute of a replaced file is not kept");
            }
            Err(errno) => return Err(errno),
        }
    }
    let mut mode = stat.st_mode & 0o7777;
    if !kept_group {
        // The group is another one, and may do no more than everybody.
        mode = mode & !0o2070 | (mode & 0o007) << 3;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
}

fn is_of_the_system(name: &[u8]) -> bool {
    let is_acl = name == ACCESS_ACL.as_bytes();
    !is_acl && [&b"security."[..], b"trusted.", b"system."].iter().any(|space| name.starts_with(space))
}

/// An agent that runs as root does not leave files that the mail server cannot read: it gives what is new to the
/// owner of the folder.
fn give_owner(file: impl AsFd, parent: &Stat) -> rustix::io::Result<()> {
    if !rustix::process::geteuid().is_root() || (parent.st_uid, parent.st_gid) == (0, 0) {
        return Ok(());
    }
    let (user, group) = (rustix::fs::Uid::from_raw(parent.st_uid), rustix::fs::Gid::from_raw(parent.st_gid));
    rustix::fs::fchown(file, Some(user), Some(group))
}

/// Gives a file to a group; false where this process may not.
fn give_group(file: &File, group: u32) -> rustix::io::Result<bool> {
    if rustix::fs::fstat(file)?.st_gid == group {
        return Ok(true);
    }
    match rustix::fs::fchown(file, None, Some(rustix::fs::Gid::from_raw(group))) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes a directory, as `parent` has its new directories.
pub fn make_directory(parent: &OwnedFd, name: &[u8], modes: Modes) -> rustix::io::Result<()> {
    let has_acl = default_acl(parent)?.is_some();
    let mode = if has_acl { 0o777 } else { modes.directory };
    if let Err(errno) = rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        if errno == Errno::EXIST {
            // It may not be synced, and what is stored in it from now on must not be lost with it.
            sync_directory(parent)?;
        }
        return Err(errno);
    }
    let dress = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        give_owner(&made, &rustix::fs::fstat(parent)?)?;
        if !has_acl {
            // What the parent passes on by setgid stays.
            let passed_on = rustix::fs::fstat(&made)?.st_mode & Mode::SGID.bits();
            rustix::fs::fchmod(&made, Mode::from_raw_mode(mode | passed_on))?;
        }
        sync_directory(&made)?;
        sync_directory(parent)
    };
    dress().inspect_err(|_| remove_directory(parent, name))
}

/// Takes back a directory that was made a moment ago.
pub fn remove_directory(parent: &OwnedFd, name: &[u8]) {
    if let Err(errno) = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
        && !matches!(errno, Errno::NOENT | Errno::NOTEMPTY)
    {
        let name = portolan_proto::path::display(name);
        tracing::warn!(name, %errno, "a directory that was made for a change that failed stays behind");
    }
}

/// Sets the permission bits of what `fd` refers to, which may be a descriptor of O_PATH. A directory keeps what it
/// passes on (setgid) and who may remove from it (sticky).
pub fn set_permissions(fd: &OwnedFd, stat: &Stat, permissions: u32) -> rustix::io::Result<()> {
    let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
    let kept = if is_directory { stat.st_mode & (Mode::SGID | Mode::SVTX).bits() } else { 0 };
    rustix::fs::chmodat(CWD, path_of(fd), Mode::from_raw_mode(permissions | kept), AtFlags::empty())
}

/// Links a nameless file to a name.
pub fn link(file: &File, directory: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    rustix::fs::linkat(CWD, path_of(file), directory, name, AtFlags::SYMLINK_FOLLOW)
}
