//! Rights: which domains an admin may back up, and which restore.

use std::collections::BTreeSet;

use portolan_config::admins::Domains;

/// A set of domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainSet {
    None,
    All,
    Named(BTreeSet<Vec<u8>>),
}

impl DomainSet {
    pub fn covers(&self, domain: &[u8]) -> bool {
        match self {
            DomainSet::None => false,
            DomainSet::All => true,
            DomainSet::Named(names) => names.contains(domain),
        }
    }

    /// The set of a line of the admins file, when the line gives the right at all.
    pub fn of(given: bool, domains: &Domains) -> Self {
        match (given, domains) {
            (false, _) => DomainSet::None,
            (true, Domains::All) => DomainSet::All,
            (true, Domains::Named(names)) => DomainSet::Named(names.clone()),
        }
    }
}

/// What an admin may do where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    /// List and read.
    pub backup: DomainSet,
    /// List, write, rename, remove.
    pub restore: DomainSet,
}

impl Grants {
    /// True when the domain may be seen at all; what may not be seen is not listed and does not exist.
    pub fn may_see(&self, domain: &[u8]) -> bool {
        self.backup.covers(domain) || self.restore.covers(domain)
    }
}
