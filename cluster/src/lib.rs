//! Acting on the cluster for an admin, by whatever protocol the admin came.
//!
//! ```text
//! auth: who is it, and what may that admin do?
//! tree (1) ──> map (2)     path -> node, from a snapshot
//!      └─────> nodes (3)   gRPC, mTLS ──> agent
//! ```
//!
//! Who calls it: the services (`ftp`), and the front end, which runs the watches and reloads it.
//! What it calls: tonic, ldap3, hickory-resolver; `path` and `ldap` lie below all of it.
//! What it never does: know FTP, or touch a file system.

#![forbid(unsafe_code)]

pub mod auth;
pub mod in_force;
pub mod ldap;
pub mod map;
pub mod nodes;
pub mod path;
pub mod record;
pub mod tree;
