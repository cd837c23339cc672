//! Good passwords of a directory, for a moment: for clients that log in with 20 sessions at once.
//!
//! Kept as argon2id, as in the admins file, and forgotten at the first password that is another one, so that a changed
//! password is never refused and an old one not taken for longer than the cache lasts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::{PasswordVerifier as _, phc::PasswordHash};
use parking_lot::{Mutex, MutexGuard};

use super::Admin;
use super::local::hash_password;

/// Admins that are remembered at most.
const REMEMBERED_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct PasswordCache {
    lasts: Duration,
    good: Mutex<HashMap<String, Good>>,
}

#[derive(Clone)]
struct Good {
    hash: String,
    admin: Arc<Admin>,
    until: Instant,
}

impl std::fmt::Debug for Good {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Good").field("admin", &self.admin.name).finish_non_exhaustive()
    }
}

impl PasswordCache {
    /// Lasts for no time: it remembers nothing.
    pub(super) fn new(lasts: Duration) -> Self {
        Self { lasts, good: Mutex::default() }
    }

    pub(super) fn is_off(&self) -> bool {
        self.lasts.is_zero()
    }

    fn good(&self) -> MutexGuard<'_, HashMap<String, Good>> {
        self.good.lock()
    }

    /// Is there anything to compare with?
    pub(super) fn knows(&self, name: &str) -> bool {
        self.good().get(name).is_some_and(|good| good.until > Instant::now())
    }

    /// Blocks for the time of one hash.
    pub(super) fn check(&self, name: &str, password: &str) -> Option<Arc<Admin>> {
        let good = self.good().get(name).filter(|good| good.until > Instant::now())?.clone();
        let same = PasswordHash::new(&good.hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
        if !same {
            self.good().remove(name);
        }
        same.then_some(good.admin)
    }

    /// Blocks for the time of one hash.
    pub(super) fn remember(&self, name: &str, password: &str, admin: Arc<Admin>) {
        // Without a hash it is asked for again.
        let Ok(hash) = hash_password(password) else { return };
        let now = Instant::now();
        let mut good = self.good();
        if good.len() >= REMEMBERED_MAX {
            good.retain(|_, good| good.until > now);
        }
        if good.len() < REMEMBERED_MAX {
            good.insert(name.to_owned(), Good { hash, admin, until: now + self.lasts });
        }
    }

    pub(super) fn forget(&self, name: &str) {
        self.good().remove(name);
    }
}
