//! Who an admin is, and what that admin may do.
//!
//! Who calls it: the FTP engines (login), `tree` (grants).
//! What it calls: argon2, in blocking tasks; ldap3; `portolan_config` for the admins file.
//! What it never does: log a credential, or say which of name and password was wrong.

pub mod grants;
pub mod ldap;
pub(crate) mod local;
pub mod lockout;

use std::sync::Arc;

use arc_swap::ArcSwap;
use portolan_config::checked::directory::GrantRule;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_proto::id::SessionId;
use portolan_proto::path::domain_of;
use portolan_proto::v1;

pub use grants::{DomainSet, Grants};
use ldap::{Failure, LdapDirectory};
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
    #[error("directory {directory}: {reason}")]
    RefusedBy { directory: String, reason: String },
    /// Nobody can say. Not a failed login.
    #[error("directory {directory} cannot be asked: {cause}")]
    Away { directory: String, cause: String },
    #[error("the password could not be checked")]
    Broken(#[source] tokio::task::JoinError),
}

/// Who may log in, by a configuration: ready to be asked.
#[derive(Debug)]
pub struct Admins {
    local: Arc<LocalDirectory>,
    ldap: Vec<LdapDirectory>,
    grants: Vec<GrantRule>,
    /// Names of directories, [`LOCAL`] for the admins file.
    order: Vec<String>,
}

impl Admins {
    /// Blocks for the time of one hash.
    pub fn new(config: &Config) -> Result<Self, ldap::SetupError> {
        let attributes: Vec<String> =
            config.grants.iter().filter_map(|grant| grant.domains.attribute.clone()).collect();
        let ldap = config.directories.iter().map(|directory| LdapDirectory::new(directory, &attributes));
        Ok(Self {
            local: Arc::new(LocalDirectory::new(&config.admins)),
            ldap: ldap.collect::<Result<_, _>>()?,
            grants: config.grants.clone(),
            order: config.order.clone(),
        })
    }

    fn directory(&self, name: &str) -> Option<&LdapDirectory> {
        self.ldap.iter().find(|directory| directory.name() == name)
    }

    /// Asks one directory, and applies the grants.
    async fn ask(
        &self,
        directory: &LdapDirectory,
        name: &str,
        password: Option<&str>,
        trace: ldap::Trace<'_>,
    ) -> Result<Admin, Failure> {
        let found = directory.look_up(name, password, trace).await?;
        let note = |rule: &GrantRule| trace(format!("granted: {rule:?}"));
        let grants = Grants::of(&self.grants, directory.name(), &found, note);
        let grants = grants.ok_or_else(|| {
            Failure::Refused(format!("no grant is for {} of {}", found.name, directory.name()))
        })?;
        Ok(Admin { name: found.name, grants })
    }

    /// Explains how a name would be looked up, step by step.
    pub async fn explain(&self, name: &str, password: Option<&str>, trace: ldap::Trace<'_>) -> bool {
        for place in &self.order {
            trace(format!("directory {place}:"));
            let Some(directory) = self.directory(place) else {
                match self.local.admin(name) {
                    None => trace("there is nobody of that name".to_owned()),
                    Some(admin) => {
                        let right =
                            password.is_none_or(|password| self.local.check(name, password).is_some());
                        trace(format!("{}: {:?}", admin.name, admin.grants));
                        trace(if right { "accepted" } else { "refused: the password is wrong" }.to_owned());
                        return right;
                    }
                }
                continue;
            };
            match self.ask(directory, name, password, trace).await {
                Ok(admin) => {
                    trace(format!("accepted as {}: {:?}", admin.name, admin.grants));
                    return true;
                }
                Err(Failure::Unknown) => {}
                Err(failure @ (Failure::Refused(_) | Failure::Away(_))) => {
                    trace(format!("refused: {failure}"));
                    return false;
                }
            }
        }
        false
    }
}

/// Where admins are looked up.
#[derive(Debug)]
pub struct Authenticator {
    admins: ArcSwap<Admins>,
    checks: tokio::sync::Semaphore,
}

impl Authenticator {
    pub fn new(admins: Admins) -> Self {
        Self { admins: ArcSwap::from_pointee(admins), checks: tokio::sync::Semaphore::new(CHECKS_AT_ONCE) }
    }

    /// Takes other admins. Those who are logged in stay so.
    pub fn replace_admins(&self, admins: Admins) {
        self.admins.store(Arc::new(admins));
    }

    /// The directories with their servers, and which of these did not answer when they were asked last.
    pub fn directories(&self) -> Vec<(String, Vec<(String, bool)>)> {
        let admins = self.admins.load();
        let servers = |directory: &LdapDirectory| {
            directory.servers().map(|(uri, away)| (uri.to_owned(), away)).collect()
        };
        admins.ldap.iter().map(|directory| (directory.name().to_owned(), servers(directory))).collect()
    }

    /// Checks a name and a password. The first directory that knows the name decides; one that is away does, too,
    /// because nobody knows what it would say, except that the admins file is always asked.
    pub async fn login(&self, name: &str, password: &str) -> Result<Arc<Admin>, Error> {
        let admins = self.admins.load_full();
        let mut away = None;
        for place in &admins.order {
            match admins.directory(place) {
                None if admins.local.admin(name).is_some() => {
                    return self.check(&admins, name, password).await;
                }
                None => {}
                Some(_) if away.is_some() => {}
                Some(directory) => match admins.ask(directory, name, Some(password), &|_| {}).await {
                    Ok(admin) => return Ok(Arc::new(admin)),
                    Err(Failure::Unknown) => {}
                    Err(Failure::Refused(reason)) => {
                        return Err(Error::RefusedBy { directory: place.clone(), reason });
                    }
                    Err(Failure::Away(cause)) => away = Some(Error::Away { directory: place.clone(), cause }),
                },
            }
        }
        if let Some(away) = away {
            return Err(away);
        }
        // Takes as long as for a name that is there.
        self.check(&admins, name, password).await
    }

    /// Checks a password of the admins file.
    async fn check(&self, admins: &Admins, name: &str, password: &str) -> Result<Arc<Admin>, Error> {
        let _turn = self.checks.acquire().await.expect("the semaphore is never closed");
        let (local, name, password) = (Arc::clone(&admins.local), name.to_owned(), password.to_owned());
        let checked = tokio::task::spawn_blocking(move || local.check(&name, &password));
        checked.await.map_err(Error::Broken)?.ok_or(Error::Refused)
    }
}
