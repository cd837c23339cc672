//! Our admins, in the library's words.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use portolan_proto::id::SessionId;
use unftp_core::auth::{
    AuthenticationError, Authenticator, Credentials, Principal, UserDetail, UserDetailError,
    UserDetailProvider,
};

use crate::auth::{self, Login};

/// Checks names and passwords.
#[derive(Debug)]
pub(super) struct PasswordCheck {
    auth: Arc<auth::Authenticator>,
    session: SessionId,
}

impl PasswordCheck {
    pub(super) fn new(auth: Arc<auth::Authenticator>, session: SessionId) -> Self {
        Self { auth, session }
    }
}

#[async_trait]
impl Authenticator for PasswordCheck {
    async fn authenticate(
        &self,
        name: &str,
        credentials: &Credentials,
    ) -> Result<Principal, AuthenticationError> {
        let password = credentials.password.as_deref().ok_or(AuthenticationError::BadPassword)?;
        match self.auth.login(name, password).await {
            Ok(admin) => {
                tracing::info!(session = %self.session, admin = admin.name, from = %credentials.source_ip, "login");
                Ok(Principal { username: admin.name.clone() })
            }
            Err(error) => {
                tracing::warn!(
                    session = %self.session,
                    name,
                    from = %credentials.source_ip,
                    reason = portolan_agent::process::chain(&error),
                    "login refused"
                );
                Err(AuthenticationError::BadPassword)
            }
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
