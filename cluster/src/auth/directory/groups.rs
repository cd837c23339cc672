//! The groups of an admin, with those that they are members of.

use std::collections::BTreeSet;

use ldap3::Ldap;
use portolan_config::checked::directory::DirectoryKind;

use super::login::Lookup;
use crate::ldap::{Entry, Trouble};
use portolan_config::dn::Dn;

/// Groups of groups of groups are followed to this depth, and so many groups at most.
const NESTING_MAX: usize = 10;
pub(super) const GROUPS_MAX: usize = 1_000;
/// Groups that one question asks about.
const GROUPS_ASKED_MAX: usize = 50;

impl Lookup<'_> {
    /// The groups of an admin, with those that they are members of.
    pub(super) async fn groups(&self, ldap: &mut Ldap, entry: &Entry) -> Result<BTreeSet<Dn>, Trouble> {
        match self.client().directory.kind {
            DirectoryKind::OpenLdap => self.groups_step_by_step(ldap, entry).await,
            DirectoryKind::ActiveDirectory => self.groups_in_chain(ldap, entry).await,
        }
    }

    /// Group entries with `member`, `uniqueMember` or `memberUid`; then the groups of those groups, and so on.
    async fn groups_step_by_step(&self, ldap: &mut Ldap, entry: &Entry) -> Result<BTreeSet<Dn>, Trouble> {
        let groups = &self.client().directory.groups;
        let mut found: BTreeSet<Dn> = BTreeSet::new();
        let uid = entry.values("uid").next().map(|uid| format!("(memberUid={})", ldap3::ldap_escape(uid)));
        let mut members = vec![entry.dn.clone()];
        let depth = if groups.nested { NESTING_MAX } else { 1 };
        for level in 0..depth {
            let mut next = Vec::new();
            for some in members.chunks(GROUPS_ASKED_MAX) {
                let mut parts: String = some
                    .iter()
                    .map(|dn| {
                        let dn = ldap3::ldap_escape(dn.as_str());
                        format!("(member={dn})(uniqueMember={dn})")
                    })
                    .collect();
                if level == 0 {
                    parts += uid.as_deref().unwrap_or_default();
                }
                let filter = format!("(|{parts})");
                let (entries, _) = self
                    .client()
                    .search(ldap, &groups.base, groups.scope, &filter, &no_attributes(), GROUPS_MAX)
                    .await?;
                for group in entries {
                    if found.len() < GROUPS_MAX && add(&mut found, &group.dn) {
                        next.push(group.dn);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            members = next;
        }
        Ok(found)
    }
}

/// Adds a group, unless it is there already or its DN cannot be read; whether it is new.
pub(super) fn add(groups: &mut BTreeSet<Dn>, dn: &str) -> bool {
    match Dn::parse(dn) {
        Ok(dn) => groups.insert(dn),
        Err(error) => {
            tracing::warn!(dn, %error, "a group is left out");
            false
        }
    }
}

/// Asks for no attribute at all (RFC 4511 section 4.5.1.8).
pub(super) fn no_attributes() -> Vec<String> {
    vec!["1.1".to_owned()]
}
