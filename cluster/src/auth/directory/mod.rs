//! A directory that admins are looked up in: finds an admin, checks the password by a bind, and finds the groups.
//!
//! Who calls it: `auth::Authenticator`.
//! What it calls: `ldap`, for the servers.
//! What it never does: bind with an empty password (RFC 4513 section 5.1.2 makes that anonymous), follow a
//! referral unasked, or take a directory that does not answer for one that says no.

mod active_directory;
mod groups;
mod login;
mod result;

use std::collections::BTreeSet;
use std::sync::Arc;

use portolan_config::checked::directory::{Directory, DirectoryKind};
use tokio::sync::Semaphore;

use super::steps::Steps;
use crate::ldap::{Asked, Entry, LdapClient, SetupError};
use login::Lookup;
use portolan_config::dn::Dn;

/// Logins at once; each has a connection of its own.
const LOGINS_AT_ONCE: usize = 32;

/// Why a directory has not admitted somebody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::auth) enum Failure {
    #[error("there is nobody of that name")]
    Unknown,
    #[error("{reason}")]
    Refused {
        reason: String,
        /// What the directory calls whom it was about, where an entry was found.
        entry: Option<String>,
    },
    /// The password was right, so the client may be told.
    #[error("{reason}")]
    Barred { reason: &'static str, entry: Option<String> },
    /// Nobody knows: none of its servers has answered.
    #[error("{0}")]
    Away(String),
}

/// Who has proved to be who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::auth) struct Found {
    /// As the directory has it, however it was typed.
    pub(super) name: String,
    pub(super) groups: BTreeSet<Dn>,
    entry: Entry,
}

impl Found {
    /// The values of an attribute of its entry.
    pub(super) fn values(&self, attribute: &str) -> impl Iterator<Item = &str> {
        self.entry.values(attribute)
    }

    /// Is it a member of this group, named by its DN or by the value of the DN's first part?
    pub(super) fn is_member(&self, group: &str) -> bool {
        if group.contains('=') {
            return Dn::parse(group).is_ok_and(|group| self.groups.contains(&group));
        }
        self.groups.iter().any(|dn| dn.is_named(group))
    }
}

/// A directory of admins.
#[derive(Debug)]
pub(super) struct AdminDirectory {
    client: LdapClient,
    /// The attribute of a grant that names domains is asked for with the entry.
    attributes: Vec<String>,
    turns: Semaphore,
}

impl AdminDirectory {
    pub(super) fn new(directory: &Directory, domain_attributes: &[String]) -> Result<Self, SetupError> {
        let mut attributes = vec![directory.user.name_attribute.clone()];
        if directory.kind == DirectoryKind::ActiveDirectory {
            attributes.extend(active_directory::ATTRIBUTES.map(str::to_owned));
        } else {
            attributes.extend(active_directory::OTHER_ATTRIBUTES.map(str::to_owned));
        }
        attributes.extend(domain_attributes.iter().cloned());
        Ok(Self { client: LdapClient::new(directory)?, attributes, turns: Semaphore::new(LOGINS_AT_ONCE) })
    }

    pub(super) fn client(&self) -> &LdapClient {
        &self.client
    }

    pub(super) fn name(&self) -> &str {
        self.client.name()
    }

    /// Goes on counting where the directory of the same name before a reload has left off.
    pub(super) fn count_on(&mut self, before: &Self) {
        self.client.count_on(&before.client);
    }

    pub(super) fn asked(&self) -> Arc<Asked> {
        self.client.asked()
    }

    /// Checks a name and a password. `None` in place of the password: only looks, as far as that is possible.
    pub(super) async fn look_up(
        &self,
        typed: &str,
        password: Option<&str>,
        steps: Steps<'_>,
    ) -> Result<Found, Failure> {
        // An empty password would be an anonymous bind, which every directory grants.
        if password == Some("") || typed.contains('\0') {
            let reason = "an empty password, or a name with NUL".to_owned();
            return Err(Failure::Refused { reason, entry: None });
        }
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        Lookup { directory: self, typed, password, steps }.run().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member_of(dn: &str) -> Found {
        let entry = Entry::default();
        Found { name: "anna".into(), groups: BTreeSet::from([Dn::parse(dn).unwrap()]), entry }
    }

    #[test]
    fn groups_are_known_by_dn_and_by_name() {
        let found = member_of("CN=Backup Admins, OU=Groups,DC=example,DC=org");
        for group in ["cn=backup admins,ou=groups,dc=example,dc=org", "Backup Admins", "backup admins"] {
            assert!(found.is_member(group), "{group}");
        }
        for group in
            ["cn=backup admins", "backup", "groups", "", "cn=backup admins,ou=groups,dc=example,dc=net"]
        {
            assert!(!found.is_member(group), "{group}");
        }
    }

    #[test]
    fn a_comma_within_a_name_does_not_part_it() {
        let found = member_of("CN=Smith\\, Anna,OU=Groups,DC=example,DC=org");
        for group in [
            "Smith, Anna",
            "cn=smith\\, anna,ou=groups,dc=example,dc=org",
            "cn=smith\\2c anna,ou=groups,dc=example,dc=org",
        ] {
            assert!(found.is_member(group), "{group}");
        }
        for group in ["Smith", "Smith\\", "cn=smith\\,anna,ou=groups,dc=example,dc=org"] {
            assert!(!found.is_member(group), "{group}");
        }
    }
}
