//! Who an admin is, and what that admin may do.
//!
//! Who calls it: the FTP engines (login), `tree` (grants).
//! What it calls: argon2, in blocking tasks; `portolan_config` for the admins file.
//! What it never does: log a credential, or say which of name and password was wrong.

pub mod grants;
pub(crate) mod local;
pub mod lockout;

use std::sync::Arc;

use arc_swap::ArcSwap;
use portolan_config::admins::AdminsFile;
use portolan_proto::id::SessionId;
use portolan_proto::path::domain_of;
use portolan_proto::v1;

pub use grants::{DomainSet, Grants};
use local::LocalDirectory;

/// Password checks at once: each costs 19 MiB and some 20 ms of a core, so a burst of logins must queue.
const CHECKS_AT_ONCE: usize = 2;

/// An admin who has proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    pub name: String,
    pub grants: Grants,
}

/// An admin in a session: for whom the tree is asked.
#[derive(Debug, Clone)]
pub struct Login {
    pub admin: Arc<Admin>,
    pub session: SessionId,
}

impl Login {
    /// How this login is told to an agent: the rights it has at `path`, a path of the wire.
    pub fn caller(&self, path: &[u8]) -> v1::Caller {
        let domain = domain_of(path).unwrap_or_default();
        let grants = &self.admin.grants;
        v1::Caller {
            admin: self.admin.name.clone(),
            session_id: self.session.to_string(),
            grant: Some(v1::Grant {
                backup: grants.backup.covers(domain),
                restore: grants.restore.covers(domain),
                domain: Some(domain.to_vec().into()),
            }),
        }
    }
}

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong name, wrong password, or no right at all: one answer for all, so that names cannot be probed.
    #[error("the name or the password is wrong")]
    Refused,
    #[error("the password could not be checked")]
    Broken(#[source] tokio::task::JoinError),
}

/// One of the password checks at once.
#[derive(Debug)]
pub struct Turn<'a>(#[allow(dead_code)] tokio::sync::SemaphorePermit<'a>);

/// The admins of a configuration, ready to be looked up.
#[derive(Debug)]
pub struct Admins {
    local: Arc<LocalDirectory>,
}

impl Admins {
    /// Blocks for the time of one hash.
    pub fn new(file: &AdminsFile) -> Self {
        Self { local: Arc::new(LocalDirectory::new(file)) }
    }
}

/// Where admins are looked up.
#[derive(Debug)]
pub struct Authenticator {
    local: ArcSwap<LocalDirectory>,
    checks: tokio::sync::Semaphore,
}

impl Authenticator {
    pub fn new(admins: Admins) -> Self {
        Self { local: ArcSwap::new(admins.local), checks: tokio::sync::Semaphore::new(CHECKS_AT_ONCE) }
    }

    /// Takes other admins. Those who are logged in stay so.
    pub fn replace_admins(&self, admins: Admins) {
        self.local.store(admins.local);
    }

    /// Waits for a turn to check a password.
    pub async fn turn(&self) -> Turn<'_> {
        Turn(self.checks.acquire().await.expect("the semaphore is never closed"))
    }

    /// Checks a name and a password.
    pub async fn login(&self, _turn: &Turn<'_>, name: &str, password: &str) -> Result<Arc<Admin>, Error> {
        let (local, name, password) = (self.local.load_full(), name.to_owned(), password.to_owned());
        let checked = tokio::task::spawn_blocking(move || local.check(&name, &password));
        checked.await.map_err(Error::Broken)?.ok_or(Error::Refused)
    }

    /// The admin of a name that [`Authenticator::login`] has accepted before.
    pub fn known(&self, name: &str) -> Option<Arc<Admin>> {
        self.local.load().admin(name)
    }
}
