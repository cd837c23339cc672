//! Volumes under agents: mounted, unmounted and covered by others while the agents run.
//!
//! Who calls it: the tests of marks and of volumes. It takes root.
//! What it calls: mount and umount.
//! What it never does: leave a mount behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::succeed;

/// Mounts by the arguments of mount(8).
pub fn mount(arguments: &[&str], at: &Path) {
    succeed(Command::new("mount").args(arguments).arg(at));
}

/// Also under who uses it.
pub fn unmount(at: &Path) {
    succeed(Command::new("umount").arg("--lazy").arg(at));
}

/// Volumes of nodes, each a tmpfs of its own that stays when it is unmounted from its node. Unmounted when dropped.
pub struct Volumes {
    folder: PathBuf,
    /// What is mounted, in that order.
    pub mounted: Vec<PathBuf>,
}

impl Volumes {
    /// `folder` has the roots, as [`crate::Cluster`] names them.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), mounted: Vec::new() }
    }

    /// Where the store of a node is.
    pub fn root(&self, number: usize) -> PathBuf {
        self.folder.join(format!("node-{number}"))
    }

    /// Where a volume stays, mounted on a node or not.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.folder.join(format!("volume-{name}"))
    }

    pub fn make(&mut self, name: &str) {
        let at = self.volume(name);
        fs::create_dir_all(&at).expect("our folders and mounts");
        mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], &at);
        self.mounted.push(at);
    }

    /// Mounts a volume on the root of a node.
    pub fn mount(&mut self, name: &str, number: usize) {
        let (volume, root) = (self.volume(name), self.root(number));
        mount(&["--bind", volume.to_str().expect("our folders and mounts")], &root);
        self.mounted.push(root);
    }

    pub fn make_read_only(&self, number: usize) {
        mount(&["-o", "remount,bind,ro"], &self.root(number));
    }

    pub fn unmount(&mut self, number: usize) {
        let root = self.root(number);
        unmount(&root);
        let last = self.mounted.iter().rposition(|mounted| *mounted == root).expect("our folders and mounts");
        self.mounted.remove(last);
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for at in self.mounted.drain(..).rev() {
            Command::new("umount").arg("--lazy").arg(at).status().ok();
        }
    }
}
