//! Our admins, in the library's words.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use portolan_config::admins::NAME_BYTES_MAX;
use portolan_proto::id::SessionId;
use unftp_core::auth::{
    AuthenticationError, Authenticator, Credentials, Principal, UserDetail, UserDetailError,
    UserDetailProvider,
};

use crate::auth::{self, Login};
use crate::ftp::{ControlConnection, FAILED_LOGINS_MAX};

/// Checks names and passwords of one session.
#[derive(Debug)]
pub(super) struct PasswordCheck {
    auth: Arc<auth::Authenticator>,
    session: SessionId,
    control: Arc<ControlConnection>,
    failures: AtomicUsize,
    /// Held while a password is checked. The library checks pipelined ones side by side, so that one client
    /// could keep all others waiting.
    checking: tokio::sync::Mutex<()>,
}

impl PasswordCheck {
    pub(super) fn new(
        auth: Arc<auth::Authenticator>,
        session: SessionId,
        control: Arc<ControlConnection>,
    ) -> Self {
        Self {
            auth,
            session,
            control,
            failures: AtomicUsize::new(0),
            checking: tokio::sync::Mutex::default(),
        }
    }

    fn refuse(&self, name: &str, from: IpAddr, reason: &str) -> AuthenticationError {
        let failures = self.failures.fetch_add(1, Ordering::AcqRel) + 1;
        if failures <= FAILED_LOGINS_MAX {
            tracing::warn!(session = %self.session, name, %from, reason, "login refused");
        }
        if failures == FAILED_LOGINS_MAX {
            tracing::warn!(session = %self.session, %from, failures, "session closed: too many failed logins");
            self.control.close();
        }
        AuthenticationError::BadPassword
    }
}

#[async_trait]
impl Authenticator for PasswordCheck {
    async fn authenticate(
        &self,
        name: &str,
        credentials: &Credentials,
    ) -> Result<Principal, AuthenticationError> {
        let from = credentials.source_ip;
        if name.len() > NAME_BYTES_MAX {
            return Err(self.refuse("(more than 256 bytes)", from, "no admin has such a name"));
        }
        let Ok(_one_at_a_time) = self.checking.try_lock() else {
            return Err(self.refuse(name, from, "another password of this session is being checked"));
        };
        if self.failures.load(Ordering::Acquire) >= FAILED_LOGINS_MAX {
            return Err(AuthenticationError::BadPassword);
        }
        let password = credentials.password.as_deref().ok_or(AuthenticationError::BadPassword)?;
        match self.auth.login(name, password).await {
            Ok(admin) => {
                tracing::info!(session = %self.session, admin = admin.name, %from, "login");
                self.control.set_logged_in();
                Ok(Principal { username: admin.name.clone() })
            }
            Err(error) => Err(self.refuse(name, from, &portolan_agent::process::chain(&error))),
        }
    }
}

/// Gives the login of a name that was checked.
#[derive(Debug)]
pub(super) struct FtpUsers {
    auth: Arc<auth::Authenticator>,
    session: SessionId,
}

impl FtpUsers {
    pub(super) fn new(auth: Arc<auth::Authenticator>, session: SessionId) -> Self {
        Self { auth, session }
    }
}

#[async_trait]
impl UserDetailProvider for FtpUsers {
    type User = FtpUser;

    async fn provide_user_detail(&self, principal: &Principal) -> Result<FtpUser, UserDetailError> {
        let username = &principal.username;
        let admin = self.auth.known(username);
        let admin = admin.ok_or_else(|| UserDetailError::UserNotFound { username: username.clone() })?;
        Ok(FtpUser(Login { admin, session: self.session }))
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
