//! What is Active Directory's own: groups of groups in one question, and the states of accounts.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use ldap3::Ldap;

use super::groups::{GROUPS_MAX, add, no_attributes};
use super::login::Lookup;
use crate::ldap::{Entry, Trouble};
use portolan_config::dn::Dn;

/// Active Directory's rule for members of members.
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

/// Flags that Active Directory computes for an account, such as whether it is locked.
const COMPUTED_CONTROL: &str = "msDS-User-Account-Control-Computed";

/// What is asked for with an admin's entry elsewhere: OpenLDAP's password policy, 389 Directory Server, eDirectory.
pub(super) const OTHER_ATTRIBUTES: [&str; 6] = [
    "uid",
    "pwdAccountLockedTime",
    "nsAccountLock",
    "accountUnlockTime",
    "loginDisabled",
    "lockedByIntruder",
];

/// What is asked for with an admin's entry.
pub(super) const ATTRIBUTES: [&str; 5] =
    ["primaryGroupID", "objectSid", "userAccountControl", COMPUTED_CONTROL, "accountExpires"];

impl Lookup<'_> {
    /// Active Directory finds members of members itself; the primary group is not among `member`.
    pub(super) async fn groups_in_chain(
        &self,
        ldap: &mut Ldap,
        entry: &Entry,
    ) -> Result<BTreeSet<Dn>, Trouble> {
        let groups = &self.client().directory.groups;
        let mut members = vec![entry.dn.clone()];
        let mut found = BTreeSet::new();
        if let (Some(sid), Some(primary)) = (entry.bytes("objectSid"), entry.values("primaryGroupID").next())
            && let (Some(domain), Ok(relative)) = (sid.len().checked_sub(4), primary.parse::<u32>())
        {
            // A group's SID is that of its domain with its own number at the end.
            let sid = [&sid[..domain], &relative.to_le_bytes()].concat();
            let escaped: String = sid.iter().map(|byte| format!("\\{byte:02x}")).collect();
            let filter = format!("(objectSid={escaped})");
            let (primary, _) =
                self.client().search(ldap, &groups.base, groups.scope, &filter, &no_attributes(), 1).await?;
            for group in primary {
                add(&mut found, &group.dn);
                members.push(group.dn);
            }
        }
        let rule = if groups.nested { format!(":{IN_CHAIN}:") } else { String::new() };
        let parts: String =
            members.iter().map(|dn| format!("(member{rule}={})", ldap3::ldap_escape(dn.as_str()))).collect();
        let filter = format!("(|{parts})");
        let (entries, _) = self
            .client()
            .search(ldap, &groups.base, groups.scope, &filter, &no_attributes(), GROUPS_MAX)
            .await?;
        for group in &entries {
            add(&mut found, &group.dn);
        }
        Ok(found)
    }
}

/// What an entry says against its account, for where no bind asks the directory.
pub(super) fn state_of(entry: &Entry) -> Option<&'static str> {
    let number = |attribute| entry.values(attribute).next().and_then(|text| text.parse::<i64>().ok());
    let flag = |attribute, flag| number(attribute).is_some_and(|flags| flags & flag != 0);
    // 100 ns since 1601; 0 and the greatest number are never.
    let expires = number("accountExpires").filter(|ticks| !matches!(*ticks, 0 | i64::MAX));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
    let is_true = |attribute| entry.values(attribute).any(|value| value.eq_ignore_ascii_case("TRUE"));
    // Generalized time in UTC, and so in order; the beginning of 1970 is until an administrator unlocks it.
    let unlocks = entry.values("accountUnlockTime").next();
    let is_locked =
        unlocks.is_some_and(|time| time.starts_with("19700101") || time > &*generalized_time(now));
    if flag("userAccountControl", 0x2) || is_true("nsAccountLock") || is_true("loginDisabled") {
        Some("the account is disabled")
    } else if flag(COMPUTED_CONTROL, 0x10)
        || is_locked
        || is_true("lockedByIntruder")
        || entry.values("pwdAccountLockedTime").next().is_some()
    {
        Some("the account is locked")
    } else if expires.is_some_and(|ticks| ticks / 10_000_000 - 11_644_473_600 < now) {
        Some("the account has expired")
    } else {
        None
    }
}

/// Seconds since 1970 as a generalized time (RFC 4517 section 3.3.13): `20200913122640Z`.
fn generalized_time(seconds: i64) -> String {
    let time = UNIX_EPOCH + std::time::Duration::from_secs(seconds.cast_unsigned());
    humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':', 'T'], "")
}

/// Why Active Directory refuses an account, which it says in the text of code 49; and whether it says so only to who
/// knows the password.
pub(super) fn account_state(text: &str) -> Option<(&'static str, bool)> {
    let code = text.split("data ").nth(1)?.split([',', ' ', '\0']).next()?;
    match code {
        "525" => Some(("there is nobody of that name", false)),
        "52e" => Some(("the password is wrong", false)),
        "530" => Some(("the account may not log in at this hour", true)),
        "531" => Some(("the account may not log in from here", true)),
        "532" => Some(("the password has expired", true)),
        "533" => Some(("the account is disabled", true)),
        "701" => Some(("the account has expired", true)),
        "773" => Some(("the password must be changed first", true)),
        "775" => Some(("the account is locked", false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_directories_are_compared_as_text() {
        assert_eq!(generalized_time(1_600_000_000), "20200913122640Z");
    }

    #[test]
    fn states_of_accounts_are_read_from_the_text() {
        let text = "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 533, v1db1";
        assert_eq!(account_state(text), Some(("the account is disabled", true)));
        assert_eq!(account_state("invalid credentials"), None);
    }
}
