//! The proof: every file of the nodes is in the backup, byte for byte and with its time, and
//! nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::Error;

/// What was compared.
pub(super) struct Checked {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

/// What a file is known by.
#[derive(Debug, PartialEq, Eq)]
struct Print {
    sha256: [u8; 32],
    bytes: u64,
    modified: u64,
}

/// The files and directories of some trees.
#[derive(Default)]
struct Contents {
    files: BTreeMap<PathBuf, Print>,
    directories: BTreeSet<PathBuf>,
}

/// Compares the trees of all nodes below `nodes` with `backup`.
pub(super) fn same(nodes: &Path, backup: &Path) -> Result<Checked, Error> {
    let mut expected = Contents::default();
    for node in fs::read_dir(nodes)? {
        let node = node?.path();
        // `domains` only: the agent's own folder lies beside it.
        expected.directories.insert(PathBuf::from("domains"));
        expected.read(&node, &node.join("domains"))?;
    }
    // `cluster` is generated, and on no node.
    let mut found = Contents::default();
    found.directories.insert(PathBuf::from("domains"));
    found.read(backup, &backup.join("domains"))?;
    if let Some(path) = expected.directories.symmetric_difference(&found.directories).next() {
        return Err(format!("the directory {} is only on one side", path.display()).into());
    }
    for (path, print) in &expected.files {
        match found.files.remove(path) {
            None => return Err(format!("{} is not in the backup", path.display()).into()),
            Some(other) if other != *print => {
                let path = path.display();
                return Err(format!("{path} differs: {other:?} in the backup, {print:?} on its node").into());
            }
            Some(_) => {}
        }
    }
    if let Some(path) = found.files.keys().next() {
        return Err(format!("{} is in the backup but on no node", path.display()).into());
    }
    let bytes = expected.files.values().map(|print| print.bytes).sum();
    Ok(Checked { files: expected.files.len(), bytes })
}

impl Contents {
    /// Adds what lies below `folder`, by its path from `base`.
    fn read(&mut self, base: &Path, folder: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            let name = path.strip_prefix(base)?.to_owned();
            if entry.file_type()?.is_dir() {
                self.directories.insert(name);
                self.read(base, &path)?;
                continue;
            }
            let metadata = entry.metadata()?;
            // To the second, which is what MLSD tells.
            let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
            let print = Print { sha256: sha256(&path)?, bytes: metadata.len(), modified };
            if self.files.insert(name.clone(), print).is_some() {
                return Err(format!("{} lies on two nodes", name.display()).into());
            }
        }
        Ok(())
    }
}

fn sha256(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}
