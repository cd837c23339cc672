//! Rights: which domains an admin may back up, and which restore.

use portolan_config::admins::Domains;
use portolan_config::checked::directory::{GrantRule, GrantedDomains, Grantee};

use super::directory::Found;
use crate::path::VirtualPath;

/// A set of domains.
pub type DomainSet = GrantedDomains;

/// The set of a line of the admins file, when the line gives the right at all.
pub(super) fn set_of_line(given: bool, domains: &Domains) -> DomainSet {
    match (given, domains) {
        (false, _) => DomainSet::default(),
        (true, Domains::All) => DomainSet { all: true, ..DomainSet::default() },
        (true, Domains::Named(names)) => DomainSet { names: names.clone(), ..DomainSet::default() },
    }
}

/// What an admin may do where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// List and read.
    pub backup: DomainSet,
    /// List, write, rename, remove.
    pub restore: DomainSet,
    /// Where the admin's tree begins.
    pub root: VirtualPath,
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
        let mut grants = Self::default();
        for rule in rules {
            let meant = match &rule.who {
                Grantee::Group(group) => found.is_member(group),
                Grantee::User(user) => *user == found.name,
            };
            if !meant || rule.directory.as_ref().is_some_and(|name| name != directory) {
                continue;
            }
            note(rule);
            // Of several, the first that sets one decides.
            if let Some(root) = &rule.root
                && grants.root.as_wire().is_empty()
            {
                grants.root = VirtualPath::root(root);
            }
            let named = rule.domains.attribute.iter().flat_map(|attribute| found.values(attribute));
            let mut domains = DomainSet { attribute: None, ..rule.domains.clone() };
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
