//! Keeps the set of what this node holds up to date and tells its watchers.
//!
//! Who calls it: `lib.rs` runs it; `service` subscribes and reports changes made through it.
//! What it calls: `Store::holdings`.
//! What it never does: answer a question about a path; announcements may lag, calls ask the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::store::{Error, Holdings, Store, StorePath};

/// Depth of a path whose appearance or removal changes the holdings: a domain, an entry of its level, an
/// object in a container.
const HOLDING_DEPTHS: std::ops::RangeInclusive<usize> = 2..=4;

/// Changes made here are gathered this long before their domains are read again, so that a restore of a
/// thousand users costs a few readings and not a thousand.
const GATHER: Duration = Duration::from_millis(100);

pub struct HoldingsWatch {
    current: watch::Sender<Arc<Holdings>>,
    /// Domains to read again. Bounded by the number of domains.
    touched: Mutex<BTreeSet<Vec<u8>>>,
    wake: Notify,
    whole: Mutex<Whole>,
}

/// How the last reading of the whole store went.
#[derive(Debug, Clone)]
struct Whole {
    read_at: SystemTime,
    failure: Option<String>,
}

impl HoldingsWatch {
    /// Reads the store for the first time.
    pub async fn start(store: &Arc<dyn Store>) -> Result<Self, Error> {
        let first = read(store, Arc::default(), None).await?;
        Ok(Self {
            current: watch::Sender::new(Arc::new(first)),
            touched: Mutex::default(),
            wake: Notify::new(),
            whole: Mutex::new(Whole { read_at: SystemTime::now(), failure: None }),
        })
    }

    /// The current set, and each that follows.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Holdings>> {
        self.current.subscribe()
    }

    /// When the whole store was read last.
    pub fn read_at(&self) -> SystemTime {
        self.whole().read_at
    }

    /// Why the last reading of it failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.whole().failure.clone()
    }

    fn whole(&self) -> MutexGuard<'_, Whole> {
        self.whole.lock()
    }

    /// A name was made, removed or renamed through this agent.
    pub fn touched(&self, path: &StorePath) {
        if !HOLDING_DEPTHS.contains(&path.depth()) {
            return;
        }
        if let Some(domain) = path.components().nth(1) {
            self.touched.lock().insert(domain.to_vec());
            self.wake.notify_one();
        }
    }

    /// Reads again what was touched, and everything each rescan interval, until `stop`. A reading that fails
    /// leaves the set as it was: a sick disk is no absence.
    pub async fn run(&self, store: Arc<dyn Store>, stop: CancellationToken) {
        let mut rescan = tokio::time::interval(store.rescan_interval());
        rescan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        rescan.reset();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {
                    tokio::time::sleep(GATHER).await;
                    let touched =
                        std::mem::take(&mut *self.touched.lock());
                    if !touched.is_empty() {
                        self.read_again(&store, Some(touched)).await;
                    }
                }
                _ = rescan.tick() => self.read_again(&store, None).await,
            }
        }
    }

    async fn read_again(&self, store: &Arc<dyn Store>, only: Option<BTreeSet<Vec<u8>>>) {
        let before = self.current.borrow().clone();
        let whole = only.is_none();
        match read(store, before.clone(), only).await {
            Ok(next) => {
                if whole {
                    *self.whole() = Whole { read_at: SystemTime::now(), failure: None };
                }
                let changes = next.changes_since(&before).len();
                if changes > 0 {
                    tracing::info!(changes, domains = next.domains.len(), "holdings changed");
                }
                self.current.send_if_modified(|current| {
                    *current = Arc::new(next);
                    changes > 0
                });
            }
            Err(error) => {
                let cause = portolan_telemetry::chain(&error);
                tracing::error!(cause, "holdings could not be read; the last ones stand");
                self.whole().failure = Some(cause);
            }
        }
    }
}

async fn read(
    store: &Arc<dyn Store>,
    before: Arc<Holdings>,
    only: Option<BTreeSet<Vec<u8>>>,
) -> Result<Holdings, Error> {
    let store = Arc::clone(store);
    let reading = tokio::task::spawn_blocking(move || store.holdings(&before, only.as_ref()));
    reading.await.expect("a reading does not panic and is not aborted")
}
