//! The stores: what a node's part of the virtual tree is kept in.
//!
//! Who calls it: `service`, always from a blocking task.
//! What it calls: the file system; this folder is the only place that touches it.
//! What it never does: know of gRPC, of sessions or of grants.

pub mod contract;
pub mod disk;
pub mod error;
pub mod holdings;
mod open;
mod path;
pub mod tree;

pub use contract::{
    Begin, Committed, Content, Directory, Entry, Finish, Identity, Kind, ListOptions, Listing, Permissions,
    Store, Upload, Usage, Version, Wanted,
};
pub use error::{Error, Operation, Unserved};
pub use holdings::Holdings;
pub use open::{OpenError, kind, look, open, open_at, root, root_now};
pub use path::StorePath;

pub type Result<T> = std::result::Result<T, Error>;
