//! What the gate and the services share of the network below them.
//!
//! Who calls it: `cluster` (lockout), `ftp`, the front end's gate.
//! What it calls: rustix, ppp, tokio.
//! What it never does: know a protocol above TCP other than PROXY, or who may connect.

#![forbid(unsafe_code)]

pub mod network;
pub mod origin;
pub mod proxy;
pub mod rate;
pub mod socket;
pub mod window;

pub use origin::Origin;
