//! The one place that knows which kinds of store there are.
//!
//! Who calls it: `volume`.
//! What it calls: the kinds; `disk::mark` for those that lie in a folder.
//! What it never does: choose for itself; the configuration does. Whether a store may be served is for `volume` to say.

use std::io;
use std::path::Path;
use std::sync::Arc;

use portolan_config::checked::agent::Store as Config;

use super::Store;
use super::disk::mark::{self, LookError, RootIdentity, Seen};
use super::tree::{Options, TreeStore};

/// Why a store cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open the store at {place}")]
    Fault { place: String, source: io::Error },
    #[error("another process serves the store at {place}")]
    Taken { place: String },
}

/// Opens the store of a configuration for this process alone, after sweeping what a crash has left in it. Blocks.
pub fn open(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    open_at(config).map(|(store, _)| store)
}

/// As [`open`], with the folder that was opened.
pub fn open_at(config: &Config) -> Result<(Arc<dyn Store>, RootIdentity), OpenError> {
    match config {
        Config::Tree { root, rescan_interval, modes, links, free_min, access } => {
            let (rescan_interval, modes, links) = (*rescan_interval, *modes, *links);
            let options =
                Options { rescan_interval, modes, links, free_min: *free_min, access: access.clone() };
            let opened = TreeStore::open_with(root, options).and_then(|store| Ok((store.root()?, store)));
            let (at, store) = opened.map_err(|source| {
                let place = root.display().to_string();
                if source.kind() == io::ErrorKind::WouldBlock {
                    OpenError::Taken { place }
                } else {
                    OpenError::Fault { place, source }
                }
            })?;
            Ok((Arc::new(store), at))
        }
    }
}

/// Looks for the mark of the store, by its path. Blocks.
pub fn look(config: &Config) -> Result<Seen, LookError> {
    mark::look(root(config))
}

/// The folder that the store's path leads to now. Blocks.
pub fn root_now(config: &Config) -> io::Result<RootIdentity> {
    Ok(RootIdentity::at(root(config))?)
}

/// What the kind is called.
pub fn kind(config: &Config) -> &'static str {
    match config {
        Config::Tree { .. } => "tree",
    }
}

/// The folder that the store lies in.
pub fn root(config: &Config) -> &Path {
    match config {
        Config::Tree { root, .. } => root,
    }
}
