//! Our admins, in the library's words.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use portolan_config::admins::NAME_BYTES_MAX;
use unftp_core::auth::{
    AuthenticationError, Authenticator, Credentials, Principal, UserDetail, UserDetailError,
    UserDetailProvider,
};

use portolan_cluster::auth::login::LoginFailure;
use portolan_cluster::auth::{Login, Proof};
use portolan_ftp::{ControlConnection, Service};

/// Who has logged in; the library asks for it by name.
pub(super) type SessionLogin = Arc<Mutex<Option<Login>>>;

/// Checks names and passwords of one session.
pub(super) struct PasswordCheck {
    service: Arc<Service>,
    control: Arc<ControlConnection>,
    login: SessionLogin,
    failures: AtomicU32,
    /// Held while a password is checked. The library checks pipelined ones side by side, so that one client
    /// could keep all others waiting.
    checking: tokio::sync::Mutex<()>,
}

impl PasswordCheck {
    pub(super) fn new(service: Arc<Service>, control: Arc<ControlConnection>, login: SessionLogin) -> Self {
        Self { service, control, login, failures: AtomicU32::new(0), checking: tokio::sync::Mutex::default() }
    }

    fn is_at_limit(&self, failures: u32) -> bool {
        let limit = self.service.listener.errors.failed_logins_max;
        limit > 0 && failures >= limit
    }
}

impl fmt::Debug for PasswordCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordCheck").field("control", &self.control).finish_non_exhaustive()
    }
}

#[async_trait]
impl Authenticator for PasswordCheck {
    async fn authenticate(
        &self,
        name: &str,
        credentials: &Credentials,
    ) -> Result<Principal, AuthenticationError> {
        let Ok(_one_at_a_time) = self.checking.try_lock() else {
            return Err(AuthenticationError::BadPassword);
        };
        if self.is_at_limit(self.failures.load(Ordering::Acquire)) {
            return Err(AuthenticationError::BadPassword);
        }
        let (name, password) = match credentials.password.as_deref() {
            _ if name.len() > NAME_BYTES_MAX => ("(more than 256 bytes)", Err("no admin has such a name")),
            None | Some("") => (name, Err("an empty password")),
            Some(password) => (name, Ok(Proof::Password(password))),
        };
        match self.service.log_in(&self.control, name, password).await {
            Ok(login) => {
                let username = login.admin.name.clone();
                *self.login.lock() = Some(login);
                Ok(Principal { username })
            }
            // The library has no reply for it but 530.
            Err(LoginFailure::Undecided) => Err(AuthenticationError::BadPassword),
            Err(LoginFailure::Banned(_)) => {
                self.control.close();
                Err(AuthenticationError::BadPassword)
            }
            Err(LoginFailure::Wrong | LoginFailure::Barred(_)) => {
                let failures = self.failures.fetch_add(1, Ordering::AcqRel) + 1;
                if self.is_at_limit(failures) {
                    let (session, from) = (self.control.id, self.control.origin.client);
                    tracing::warn!(%session, %from, failures, "session closed: too many failed logins");
                    let control = Arc::clone(&self.control);
                    // The library's 530 goes out first. Meanwhile no further password is looked at.
                    tokio::spawn(async move {
                        tokio::time::sleep(crate::REPLY_GRACE).await;
                        control.close();
                    });
                }
                Err(AuthenticationError::BadPassword)
            }
        }
    }
}

/// Gives the login of a name that was checked.
pub(super) struct FtpUsers {
    login: SessionLogin,
}

impl FtpUsers {
    pub(super) fn new(login: SessionLogin) -> Self {
        Self { login }
    }
}

impl fmt::Debug for FtpUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FtpUsers").finish_non_exhaustive()
    }
}

#[async_trait]
impl UserDetailProvider for FtpUsers {
    type User = FtpUser;

    async fn provide_user_detail(&self, principal: &Principal) -> Result<FtpUser, UserDetailError> {
        let username = &principal.username;
        let login = self.login.lock().clone();
        let login = login.filter(|login| login.admin.name == *username);
        login.map(FtpUser).ok_or_else(|| UserDetailError::UserNotFound { username: username.clone() })
    }
}

#[derive(Debug)]
pub(super) struct FtpUser(pub(super) Login);

impl fmt::Display for FtpUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.admin.name)
    }
}

impl UserDetail for FtpUser {}
