//! Configuration of front ends and agents: TOML files in, checked structs out, or every fault at once.
//!
//! Who calls it: the programs' `main.rs` and `portolan check`.
//! What it calls: the file system, to read the files that a configuration names.
//! What it never does: any other I/O, stop at the first fault, or print a secret.
//!
//! A file is read in two steps: `raw` has the shape of the file and tolerates everything but broken TOML;
//! [`checked`] turns it into structs that cannot be wrong and collects the faults on the way.

#![forbid(unsafe_code)]

pub mod admins;
pub mod certificate;
pub mod checked;
pub mod dn;
pub mod error;
mod known;
mod raw;
pub mod secret;
pub mod units;

pub use checked::{agent::Agent, frontend::Frontend};
pub use error::{Fault, Faults};

/// Which program a file configures. A file with a key `node` or a table `store` is an agent's.
#[derive(Debug)]
pub enum Config {
    Agent(Box<Agent>),
    Frontend(Box<Frontend>),
}

/// Keys of the top level that only an agent's file has.
const AGENT_KEYS: &[&str] = &["node", "store"];
/// Those that only a front end's has.
const FRONTEND_KEYS: &[&str] = &["listeners", "nodes", "admins", "cluster", "directories", "discovery"];

impl Config {
    /// Loads `path` as what it looks like.
    pub fn load(path: &std::path::Path) -> Result<Self, Faults> {
        Self::check(path).0
    }

    /// The same, with warnings: what the program starts with all the same, such as a certificate that soon expires. Each
    /// has its place, sorted by line.
    pub fn check(path: &std::path::Path) -> (Result<Self, Faults>, Vec<Fault>) {
        let document = match raw::Document::read(path) {
            Ok(document) => document,
            Err(faults) => return (Err(faults), Vec::new()),
        };
        let mut warnings = Vec::new();
        let config = if AGENT_KEYS.iter().any(|key| document.has_key(key)) {
            checked::agent::check(document, &mut warnings).map(|agent| Config::Agent(Box::new(agent)))
        } else {
            checked::frontend::check(document, &mut warnings)
                .map(|frontend| Config::Frontend(Box::new(frontend)))
        };
        warnings.sort_by_key(|warning| warning.line);
        (config, warnings)
    }
}
