//! The steps of a login, for an operator who asks why it is accepted or refused.
//!
//! Who calls it: `auth` and `auth::directory`, as they go; `portolan auth test` prints them.
//! What it calls: nothing.
//! What it never does: hold a password.

use std::fmt;

use portolan_config::checked::directory::GrantRule;

use super::{Admin, Error};

/// One step, displayed as a line.
#[derive(Debug)]
pub enum Step<'a> {
    AdminsFile,
    /// The admins file has nobody of that name.
    NotInAdminsFile,
    Directory(&'a str),
    /// An earlier directory was away.
    DirectorySkipped(&'a str),
    PasswordRemembered,
    Connected {
        uri: &'a str,
    },
    ServerFailed {
        uri: &'a str,
        cause: &'a str,
    },
    Bound {
        name: &'a str,
    },
    BindRefused {
        name: &'a str,
        reason: &'a str,
    },
    Searched {
        filter: &'a str,
        base: &'a str,
        found: Entries<'a>,
    },
    Referral {
        url: &'a str,
        followed: bool,
    },
    /// The entry of the admin does not do, for this reason.
    EntryRefused(&'a str),
    /// A group, by its DN.
    MemberOf(&'a str),
    Granted(&'a GrantRule),
    NothingGranted(&'a str),
    Accepted(&'a Admin),
    /// The name is known, and no password was given to be tried.
    Known(&'a Admin),
    Refused(&'a Error),
}

/// What a search for an admin has found.
#[derive(Debug)]
pub enum Entries<'a> {
    None,
    /// The one, by its DN.
    One(&'a str),
    Several,
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AdminsFile => f.write_str("the admins file:"),
            Step::NotInAdminsFile => f.write_str("there is nobody of that name"),
            Step::Directory(name) => write!(f, "directory {name}:"),
            Step::DirectorySkipped(name) => write!(f, "directory {name}: not asked"),
            Step::PasswordRemembered => f.write_str("the password is that of a moment ago"),
            Step::Connected { uri } => write!(f, "{uri}: connected"),
            Step::ServerFailed { uri, cause } => write!(f, "{uri}: {cause}"),
            Step::Bound { name } => write!(f, "bind as {name:?}: accepted"),
            Step::BindRefused { name, reason } => write!(f, "bind as {name:?}: refused: {reason}"),
            Step::Searched { filter, base, found } => {
                let found = match found {
                    Entries::None => "no entry",
                    Entries::One(dn) => dn,
                    Entries::Several => "more than one entry",
                };
                write!(f, "{filter} below {base:?}: {found}")
            }
            Step::Referral { url, followed: true } => write!(f, "referred to {url}: followed"),
            Step::Referral { url, followed: false } => write!(f, "referred to {url}: not followed"),
            Step::EntryRefused(reason) => f.write_str(reason),
            Step::MemberOf(group) => write!(f, "member of {group}"),
            Step::Granted(rule) => write!(f, "granted to {rule}"),
            Step::NothingGranted(name) => write!(f, "no grant is for {name}"),
            Step::Accepted(admin) => write!(f, "accepted as {}: {}", admin.name, admin.grants),
            Step::Known(admin) => {
                write!(f, "with the right password accepted as {}: {}", admin.name, admin.grants)
            }
            Step::Refused(error) => write!(f, "refused: {error}"),
        }
    }
}

/// Where the steps of a login go.
#[derive(Clone, Copy)]
pub struct Steps<'a>(Option<&'a (dyn Fn(&Step<'_>) + Sync)>);

impl<'a> Steps<'a> {
    pub fn to(show: &'a (dyn Fn(&Step<'_>) + Sync)) -> Self {
        Self(Some(show))
    }

    pub(super) fn unseen() -> Self {
        Self(None)
    }

    pub(super) fn show(self, step: &Step<'_>) {
        if let Some(show) = self.0 {
            show(step);
        }
    }
}
