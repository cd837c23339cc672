//! Debian packages that run from a folder: fetched and unpacked, never installed, because they conflict.
//!
//! Who calls it: `Ground::new`.
//! What it calls: `apt-get download`, `dpkg -x`, `dpkg-deb -f`, `dpkg-query`.
//! What it never does: change what is installed. Only apt's own lists are updated when a download fails.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, interrupt};

/// Packages fetched at most, libraries included.
const PACKAGES_MAX: usize = 40;

pub(crate) struct Packages {
    root: PathBuf,
    versions: Vec<String>,
}

impl Packages {
    /// Fetches `names` and the libraries they need that are not installed.
    pub(crate) fn fetch(folder: &Path, names: &[&str]) -> Result<Self> {
        let root = folder.join("root");
        std::fs::create_dir_all(&root)?;
        let mut packages = Self { root, versions: Vec::new() };
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut queue: VecDeque<String> = wanted.iter().cloned().collect();
        let mut seen = wanted.clone();
        while let Some(name) = queue.pop_front() {
            interrupt::check()?;
            if seen.len() > PACKAGES_MAX {
                return Err(format!("{names:?} need more than {PACKAGES_MAX} packages").into());
            }
            let archive = download(folder, &name)?;
            said_by(Command::new("dpkg").arg("-x").arg(&archive).arg(&packages.root))?;
            let field = |field| said_by(Command::new("dpkg-deb").arg("-f").arg(&archive).arg(field));
            if wanted.contains(&name) {
                packages.versions.push(format!("{name} {}", field("Version")?.trim()));
            }
            for library in libraries(&field("Depends")?) {
                if seen.insert(library.clone()) && !installed(&library) {
                    queue.push_back(library);
                }
            }
        }
        Ok(packages)
    }

    /// A path in the unpacked tree.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A program of the unpacked tree, with the libraries of the tree.
    pub(crate) fn command(&self, path: &str) -> Command {
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let folders = [self.path(&format!("usr/lib/{triplet}")), self.path(&format!("lib/{triplet}"))];
        let mut command = Command::new(self.path(path));
        command.env("LD_LIBRARY_PATH", format!("{}:{}", folders[0].display(), folders[1].display()));
        command
    }

    pub(crate) fn versions(&self) -> &[String] {
        &self.versions
    }
}

fn download(folder: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder)?;
    let fetch = || said_by(Command::new("apt-get").args(["-q", "download", name]).current_dir(&folder));
    if fetch().is_err() {
        said_by(Command::new("apt-get").args(["-q", "update"]))?;
        fetch()?;
    }
    let entry = std::fs::read_dir(&folder)?.next().ok_or_else(|| format!("apt-get fetched no {name}"))?;
    Ok(entry?.path())
}

/// The libraries among the first alternatives of a Depends field.
fn libraries(depends: &str) -> Vec<String> {
    depends
        .split(',')
        .filter_map(|alternatives| alternatives.trim().split([' ', '|', ':']).next())
        .filter(|name| name.starts_with("lib"))
        .map(str::to_owned)
        .collect()
}

fn installed(name: &str) -> bool {
    said_by(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ", name]))
        .is_ok_and(|status| status.split_whitespace().any(|word| word == "installed"))
}

/// What a command prints; `Err` with its complaint when it fails.
pub(super) fn said_by(command: &mut Command) -> Result<String> {
    let output = command.output();
    let failed = |what: String| format!("{:?}: {what}", command.get_program());
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(format!("{}: {complaint}", output.status)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_are_followed() {
        let depends =
            "adduser, libc6 (>= 2.34), libpam0g:any (>= 0.99), debconf | debconf-2.0, liba | libb\n";
        assert_eq!(libraries(depends), ["libc6", "libpam0g", "liba"]);
        assert!(libraries("").is_empty());
    }
}
