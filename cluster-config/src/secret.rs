//! Values that are never printed, and the check of the files they come from.

use std::fmt;
use std::path::Path;

/// A secret. Printed as `***`, reached only through [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads a file that holds secrets. Refuses one that others may read or that its group may write
/// (allowed: 0600, 0400, 0640, 0440). The error is a sentence for a [`crate::Fault`].
pub fn read_secret_file(path: &Path) -> Result<Vec<u8>, String> {
    use std::os::unix::fs::MetadataExt as _;
    let describe = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mode = std::fs::metadata(path).map_err(describe)?.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(format!(
            "{} holds secrets but has mode {mode:04o}; allowed: 0600, 0400, 0640 or 0440",
            path.display()
        ));
    }
    std::fs::read(path).map_err(describe)
}
