//! Who an admin is, and what that admin may do.
//!
//! Who calls it: the services, at the login desk; `tree` (grants).
//! What it calls: argon2, in blocking tasks; `ldap`; `portolan_config` for the admins file.
//! What it never does: log a credential, or say which of name and password was wrong.

mod cache;
mod directory;
mod fold;
pub mod grants;
pub mod local;
pub mod lockout;
pub mod login;
pub mod steps;

use std::sync::Arc;

use arc_swap::ArcSwap;
use portolan_config::checked::directory::GrantRule;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_proto::id::SessionId;
use portolan_proto::levels::domain_of;
use portolan_proto::v1;
use tokio::sync::Semaphore;

use crate::ldap;
use cache::PasswordCache;
use directory::{AdminDirectory, Failure};
pub use grants::{DomainSet, Grants};
use local::LocalDirectory;
use steps::{Step, Steps};

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
        let rights = self.admin.grants.rights(domain);
        v1::Caller {
            admin: self.admin.name.clone(),
            session_id: self.session.to_string(),
            grant: Some(v1::Grant {
                backup: rights.backup,
                restore: rights.write,
                domain: Some(domain.to_vec().into()),
                delete: Some(rights.delete),
            }),
        }
    }
}

/// How an admin proves who it is.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    Password(&'a str),
    /// The names in a certificate that was verified.
    Certificate(&'a [String]),
    Both {
        password: &'a str,
        certificate: &'a [String],
    },
}

impl Proof<'_> {
    /// For the log.
    pub fn kind(self) -> &'static str {
        match self {
            Proof::Password(_) => "password",
            Proof::Certificate(_) => "certificate",
            Proof::Both { .. } => "password and certificate",
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
    RefusedBy {
        directory: String,
        reason: String,
        /// The name of the account that it was about, where there is one.
        account: Option<String>,
    },
    /// Proved who it is, and may not come in all the same; which it may be told.
    #[error("directory {directory}: {reason}")]
    Barred { directory: String, reason: &'static str, account: Option<String> },
    #[error("the certificate names {named:?}, not {admin:?}")]
    OtherCertificate { admin: String, named: Vec<String> },
    /// Nobody can say. Not a failed login.
    #[error("directory {directory} cannot be asked: {cause}")]
    Away { directory: String, cause: String },
    #[error("the password could not be checked")]
    Broken(#[source] tokio::task::JoinError),
}

impl Error {
    /// The account that a refused login was about, by the name that its directory has.
    pub fn account(&self) -> Option<&str> {
        match self {
            Error::RefusedBy { account, .. } | Error::Barred { account, .. } => account.as_deref(),
            Error::OtherCertificate { admin, .. } => Some(admin),
            Error::Refused | Error::Away { .. } | Error::Broken(_) => None,
        }
    }
}

/// Who may log in, by a configuration: ready to be asked.
#[derive(Debug)]
pub struct Admins {
    local: Arc<LocalDirectory>,
    ldap: Vec<(AdminDirectory, Arc<PasswordCache>)>,
    grants: Vec<GrantRule>,
    /// Names of directories, [`LOCAL`] for the admins file.
    order: Vec<String>,
}

impl Admins {
    /// Blocks for the time of one hash.
    pub fn new(config: &Config) -> Result<Self, ldap::SetupError> {
        let attributes: Vec<String> =
            config.grants.iter().filter_map(|grant| grant.domains.attribute.clone()).collect();
        let ldap = config.directories.iter().map(|directory| {
            let cache = Arc::new(PasswordCache::new(directory.cache));
            Ok((AdminDirectory::new(directory, &attributes)?, cache))
        });
        Ok(Self {
            local: Arc::new(LocalDirectory::new(&config.admins)),
            ldap: ldap.collect::<Result<_, _>>()?,
            grants: config.grants.clone(),
            order: config.order.clone(),
        })
    }

    fn directory(&self, name: &str) -> Option<&(AdminDirectory, Arc<PasswordCache>)> {
        self.ldap.iter().find(|(directory, _)| directory.name() == name)
    }

    /// Explains a login step by step, or, without a password, what a name is looked up as; whether it is accepted.
    pub async fn explain(&self, name: &str, password: Option<&str>, steps: Steps<'_>) -> bool {
        let checks = &Semaphore::new(1);
        let decided = Decision { admins: self, checks, name, password, steps }.decide().await;
        match &decided {
            Ok(admin) if password.is_none() => steps.show(&Step::Known(admin)),
            Ok(admin) => steps.show(&Step::Accepted(admin)),
            Err(error) => steps.show(&Step::Refused(error)),
        }
        decided.is_ok()
    }
}

/// What is to be decided, and by whom.
struct Decision<'a> {
    admins: &'a Admins,
    checks: &'a Semaphore,
    name: &'a str,
    /// `None`: the name is only looked up.
    password: Option<&'a str>,
    steps: Steps<'a>,
}

impl Decision<'_> {
    /// Decides over a login, or, without a password, looks the name up. The first directory that knows the name decides;
    /// one that is away does, too, because nobody knows what it would say, except that the admins file is always asked.
    async fn decide(&self) -> Result<Arc<Admin>, Error> {
        let mut away = None;
        for place in &self.admins.order {
            match self.admins.directory(place) {
                None => {
                    self.steps.show(&Step::AdminsFile);
                    if self.admins.local.admin(self.name).is_some() {
                        return self.check_local().await;
                    }
                    self.steps.show(&Step::NotInAdminsFile);
                }
                Some(_) if away.is_some() => self.steps.show(&Step::DirectorySkipped(place)),
                Some(directory) => {
                    self.steps.show(&Step::Directory(place));
                    match self.ask_or_remember(directory).await {
                        Ok(admin) => return Ok(admin),
                        Err(Failure::Unknown) => {}
                        Err(Failure::Refused { reason, entry: account }) => {
                            return Err(Error::RefusedBy { directory: place.clone(), reason, account });
                        }
                        Err(Failure::Barred { reason, entry: account }) => {
                            return Err(Error::Barred { directory: place.clone(), reason, account });
                        }
                        Err(Failure::Away(cause)) => {
                            away = Some(Error::Away { directory: place.clone(), cause });
                        }
                    }
                }
            }
        }
        match away {
            Some(away) => Err(away),
            // Takes as long as for a name that is there.
            None => self.check_local().await,
        }
    }

    /// Asks one directory, or what is remembered of it.
    async fn ask_or_remember(
        &self,
        (directory, cache): &(AdminDirectory, Arc<PasswordCache>),
    ) -> Result<Arc<Admin>, Failure> {
        let Some(password) = self.password.filter(|_| !cache.is_off()) else {
            return self.ask(directory).await.map(Arc::new);
        };
        if cache.knows(self.name) {
            let (name, password) = (self.name.to_owned(), password.to_owned());
            let checked = hashed(self.checks, cache, move |cache| cache.check(&name, &password)).await;
            if let Some(admin) = checked {
                self.steps.show(&Step::PasswordRemembered);
                return Ok(admin);
            }
        }
        let asked = self.ask(directory).await.map(Arc::new);
        match &asked {
            Ok(admin) => {
                let (name, password, admin) = (self.name.to_owned(), password.to_owned(), Arc::clone(admin));
                hashed(self.checks, cache, move |cache| {
                    cache.remember(&name, &password, admin);
                    None
                })
                .await;
            }
            Err(Failure::Refused { .. } | Failure::Barred { .. } | Failure::Unknown) => {
                cache.forget(self.name);
            }
            Err(Failure::Away(_)) => {}
        }
        asked
    }

    /// Asks one directory, and applies the grants.
    async fn ask(&self, directory: &AdminDirectory) -> Result<Admin, Failure> {
        let found = directory.look_up(self.name, self.password, self.steps).await?;
        let note = |rule: &GrantRule| self.steps.show(&Step::Granted(rule));
        let grants = Grants::of(&self.admins.grants, directory.name(), &found, note);
        let grants = grants.ok_or_else(|| {
            self.steps.show(&Step::NothingGranted(&found.name));
            let reason = "no right to any domain is granted to you";
            Failure::Barred { reason, entry: Some(found.name.clone()) }
        })?;
        Ok(Admin { name: found.name, grants })
    }

    /// Checks a password of the admins file.
    async fn check_local(&self) -> Result<Arc<Admin>, Error> {
        let local = &self.admins.local;
        let Some(password) = self.password else { return local.admin(self.name).ok_or(Error::Refused) };
        let _turn = self.checks.acquire().await.expect("the semaphore is never closed");
        let (local, name, password) = (Arc::clone(local), self.name.to_owned(), password.to_owned());
        let checked = tokio::task::spawn_blocking(move || local.check(&name, &password));
        checked.await.map_err(Error::Broken)?.ok_or(Error::Refused)
    }
}

/// Hashes a password in its turn, where it may block.
async fn hashed(
    checks: &Semaphore,
    cache: &Arc<PasswordCache>,
    work: impl FnOnce(&PasswordCache) -> Option<Arc<Admin>> + Send + 'static,
) -> Option<Arc<Admin>> {
    let _turn = checks.acquire().await.expect("the semaphore is never closed");
    let cache = Arc::clone(cache);
    // A hash that did not come about is one that does not fit.
    tokio::task::spawn_blocking(move || work(&cache)).await.ok().flatten()
}

/// Where admins are looked up.
#[derive(Debug)]
pub struct Authenticator {
    admins: ArcSwap<Admins>,
    checks: Semaphore,
}

impl Authenticator {
    pub fn new(admins: Admins) -> Self {
        Self { admins: ArcSwap::from_pointee(admins), checks: Semaphore::new(CHECKS_AT_ONCE) }
    }

    /// Takes other admins. Those who are logged in stay so.
    pub fn replace_admins(&self, mut admins: Admins) {
        let old = self.admins.load();
        for (directory, _) in &mut admins.ldap {
            if let Some((before, _)) = old.directory(directory.name()) {
                directory.count_on(before);
            }
        }
        self.admins.store(Arc::new(admins));
    }

    /// Asks all directories whether they are there.
    pub async fn probe(&self) {
        let admins = self.admins.load_full();
        futures_util::future::join_all(admins.ldap.iter().map(|(directory, _)| directory.client().probe()))
            .await;
    }

    /// How the directories fare.
    pub fn directories_asked(&self) -> Vec<(String, Arc<ldap::Asked>)> {
        let admins = self.admins.load();
        admins.ldap.iter().map(|(directory, _)| (directory.name().to_owned(), directory.asked())).collect()
    }

    /// The directories with their servers, and which of these did not answer when they were asked last.
    pub fn directories(&self) -> Vec<(String, Vec<(String, bool)>)> {
        let admins = self.admins.load();
        let servers = |directory: &AdminDirectory| {
            directory.client().servers().map(|(uri, away)| (uri.to_owned(), away)).collect()
        };
        admins.ldap.iter().map(|(directory, _)| (directory.name().to_owned(), servers(directory))).collect()
    }

    /// Checks a name and its proof.
    pub async fn login(&self, name: &str, proof: Proof<'_>) -> Result<Arc<Admin>, Error> {
        let (password, certificate) = match proof {
            Proof::Password(password) => (Some(password), None),
            Proof::Certificate(named) => (None, Some(named)),
            Proof::Both { password, certificate } => (Some(password), Some(certificate)),
        };
        let admins = self.admins.load_full();
        let (checks, steps) = (&self.checks, Steps::unseen());
        let admin = Decision { admins: &admins, checks, name, password, steps }.decide().await?;
        // By the name that the directory has, because what was typed may lead to somebody else's.
        match certificate {
            Some(named) if !named.contains(&admin.name) => {
                Err(Error::OtherCertificate { admin: admin.name.clone(), named: named.to_vec() })
            }
            _ => Ok(admin),
        }
    }
}
