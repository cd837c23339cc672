//! Rights: which domains an admin may back up, which write to, and where it may delete.

use portolan_config::admins::Domains;
use portolan_config::checked::directory::{GrantRule, GrantedDomains, Grantee};

use portolan_proto::rights::{Need, Rights};

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
    /// List, write, replace, rename.
    pub write: DomainSet,
    /// List, remove.
    pub delete: DomainSet,
    /// Where the admin's tree begins.
    pub root: VirtualPath,
}

impl Grants {
    /// True when the domain may be seen at all; what may not be seen is not listed and does not exist.
    pub fn may_see(&self, domain: &[u8]) -> bool {
        Need::Look.is_met_by(self.rights(domain))
    }

    /// The rights to one domain.
    pub fn rights(&self, domain: &[u8]) -> Rights {
        Rights {
            backup: self.backup.covers(domain),
            write: self.write.covers(domain),
            delete: self.delete.covers(domain),
        }
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
            let Rights { backup, write, delete } = rule.rights;
            let sets = [(backup, &mut grants.backup), (write, &mut grants.write), (delete, &mut grants.delete)];
            for (given, set) in sets {
                if given {
                    set.extend(&domains);
                }
            }
        }
        let sets = [&grants.backup, &grants.write, &grants.delete];
        sets.iter().any(|set| !set.is_empty()).then_some(grants)
    }
}
