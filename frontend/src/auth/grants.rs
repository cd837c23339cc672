//! Rights: which domains an admin may back up, and which restore.

use std::collections::BTreeSet;

use portolan_config::admins::Domains;
use portolan_config::checked::directory::{GrantRule, Grantee};

use super::ldap::Found;

/// A set of domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainSet {
    all: bool,
    names: BTreeSet<Vec<u8>>,
    /// Wildcards, such as `*.example.org`.
    patterns: Vec<String>,
}

impl DomainSet {
    pub fn covers(&self, domain: &[u8]) -> bool {
        self.all
            || self.names.contains(domain)
            || self.patterns.iter().any(|pattern| fast_glob::glob_match(pattern, domain))
    }

    /// The set of a line of the admins file, when the line gives the right at all.
    pub fn of(given: bool, domains: &Domains) -> Self {
        match (given, domains) {
            (false, _) => Self::default(),
            (true, Domains::All) => Self { all: true, ..Self::default() },
            (true, Domains::Named(names)) => Self { names: names.clone(), ..Self::default() },
        }
    }

    fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty() && self.patterns.is_empty()
    }

    fn extend(&mut self, other: &Self) {
        self.all |= other.all;
        self.names.extend(other.names.iter().cloned());
        self.patterns.extend(other.patterns.iter().cloned());
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

    /// What the grants of the configuration give to somebody of a directory; `None`: nothing. `note` is told each grant
    /// that counts.
    pub(super) fn of(
        rules: &[GrantRule],
        directory: &str,
        found: &Found,
        note: impl Fn(&GrantRule),
    ) -> Option<Self> {
        let mut grants = Self { backup: DomainSet::default(), restore: DomainSet::default() };
        for rule in rules {
            let meant = match &rule.who {
                Grantee::Group(group) => found.is_member(group),
                Grantee::User(user) => *user == found.name,
            };
            if !meant || rule.directory.as_ref().is_some_and(|name| name != directory) {
                continue;
            }
            note(rule);
            let named = rule.domains.attribute.iter().flat_map(|attribute| found.values(attribute));
            let mut domains = DomainSet {
                all: rule.domains.all,
                names: rule.domains.names.clone(),
                patterns: rule.domains.patterns.clone(),
            };
            domains.names.extend(named.map(|name| name.as_bytes().to_vec()));
            for (given, set) in [(rule.backup, &mut grants.backup), (rule.restore, &mut grants.restore)] {
                if given {
                    set.extend(&domains);
                }
            }
        }
        (!grants.backup.is_empty() || !grants.restore.is_empty()).then_some(grants)
    }
}
