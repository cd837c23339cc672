//! The configuration in force, and the right to change it.
//!
//! Who calls it: whatever does something by the configuration that a reload may change meanwhile: `nodes::discovery`,
//! `map::directory`, the front end's `running`.
//! What it calls: nothing.
//! What it never does: read a file.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use portolan_config::checked::frontend::Frontend as Config;

/// See the module.
#[derive(Debug)]
pub struct InForce {
    config: ArcSwap<Config>,
    read: Mutex<SystemTime>,
    changing: tokio::sync::Mutex<()>,
}

impl InForce {
    pub fn new(config: Config) -> Self {
        Self {
            config: ArcSwap::from_pointee(config),
            read: Mutex::new(SystemTime::now()),
            changing: tokio::sync::Mutex::default(),
        }
    }

    pub fn load(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// When it was read.
    pub fn read_at(&self) -> SystemTime {
        *self.read.lock()
    }

    /// Waits until nobody else changes the configuration, or the nodes by it; nobody does as long as the guard lives.
    pub async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Puts a configuration into force that was read just now.
    pub fn replace(&self, config: Config) {
        self.config.store(Arc::new(config));
        *self.read.lock() = SystemTime::now();
    }

    /// Puts the same configuration into force with what its certificate files hold now.
    pub fn renew(&self, config: Config) {
        self.config.store(Arc::new(config));
    }
}
