//! The one place that knows which kinds of store there are.
//!
//! Who calls it: `Agent::bind`.
//! What it calls: the kinds.
//! What it never does: choose for itself; the configuration does.

use std::io;
use std::sync::Arc;

use portolan_config::checked::agent::Store as Config;

use super::Store;
use super::tree::{Options, TreeStore};

/// Why a store cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open the store at {place}")]
    Fault { place: String, source: io::Error },
    #[error(
        "the store at {place} lies on a read-only file system; store.read_only = true serves it for reading"
    )]
    ReadOnly { place: String },
    #[error("another process serves the store at {place}")]
    Taken { place: String },
}

/// Opens the store of a configuration for this process alone, after sweeping what a crash has left in it. Blocks.
pub fn open(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    match config {
        Config::Tree { root, rescan_interval, modes, links, free_min, access } => {
            let (rescan_interval, modes, links) = (*rescan_interval, *modes, *links);
            let options =
                Options { rescan_interval, modes, links, free_min: *free_min, access: access.clone() };
            let store = TreeStore::open_with(root, options).map_err(|source| {
                let place = root.display().to_string();
                match source.kind() {
                    io::ErrorKind::WouldBlock => OpenError::Taken { place },
                    io::ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly { place },
                    _ => OpenError::Fault { place, source },
                }
            })?;
            Ok(Arc::new(store))
        }
    }
}
