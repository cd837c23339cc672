//! Disks of a chosen size, which no other load delays.
//!
//! Who calls it: the files of `tests/`.
//! What it calls: mount and umount, as root.
//! What it never does: stay mounted behind its test.

use std::path::PathBuf;
use std::process::Command;

use crate::client::succeed;

/// A file system in memory. Unmounted when dropped.
pub struct MemoryDisk(PathBuf);

impl MemoryDisk {
    /// Mounts one of `size`, as mount(8) writes it, over a folder.
    pub fn mount(folder: PathBuf, size: &str) -> Self {
        let options = format!("size={size}");
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder));
        Self(folder)
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
