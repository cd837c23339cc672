//! Rights: which domains an admin may back up, which write to, and where it may delete.

use std::fmt;

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

/// For people: `backup, restore of all domains`, or each right with its domains.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = Rights::default();
        let mut parts: Vec<(Rights, &DomainSet)> = Vec::new();
        for (right, set) in [
            (Rights { backup: true, ..none }, &self.backup),
            (Rights { write: true, ..none }, &self.write),
            (Rights { delete: true, ..none }, &self.delete),
        ] {
            match parts.iter_mut().find(|(_, same)| *same == set) {
                Some((rights, _)) => *rights = rights.and(right),
                None if set.is_empty() => {}
                None => parts.push((right, set)),
            }
        }
        let parts: Vec<String> = parts.iter().map(|(rights, set)| format!("{rights} of {set}")).collect();
        f.write_str(&parts.join("; "))?;
        if self.root.as_wire().is_empty() {
            return Ok(());
        }
        write!(f, "; the tree begins at {}", self.root.in_cluster())
    }
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
            let sets =
                [(backup, &mut grants.backup), (write, &mut grants.write), (delete, &mut grants.delete)];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_shown_in_words() {
        let all = DomainSet { all: true, ..DomainSet::default() };
        let some = DomainSet {
            names: [b"one.example".to_vec(), b"t\xffo".to_vec()].into(),
            patterns: vec!["*.org".to_owned()],
            ..DomainSet::default()
        };
        let mut grants = Grants { backup: all.clone(), write: all.clone(), delete: all, ..Grants::default() };
        assert_eq!(grants.to_string(), "backup, restore of all domains");
        grants.delete = DomainSet::default();
        assert_eq!(grants.to_string(), "backup, write of all domains");
        grants.write = some;
        grants.root = VirtualPath::root(b"domains/one.example");
        let shown = "backup of all domains; write of one.example, t?o, *.org; the tree begins at /domains/one.example";
        assert_eq!(grants.to_string().replace("\\xff", "?"), shown);
    }
}
