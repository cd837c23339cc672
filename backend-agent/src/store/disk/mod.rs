//! What every store kind on a disk shares: paths that cannot leave the root, durable commits, sets of names.
//!
//! Who calls it: the store kinds.
//! What it calls: rustix, std::fs.
//! What it never does: follow a symbolic link below the root, or write to a file that is visible.

pub mod attributes;
pub mod cache;
pub mod change;
pub mod commit;
pub mod mark;
pub mod names;
pub mod path;
pub mod recover;
pub mod room;
