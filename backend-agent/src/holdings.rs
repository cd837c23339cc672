//! Keeps the set of what this node holds up to date and tells its watchers.
//!
//! Who calls it: `volume` runs it, one for each store that is opened; `service` subscribes and reports changes made through it.
//! What it calls: `Store::holdings`; the `Anchor` of the store, before each announcement.
//! What it never does: answer a question about a path; announcements may lag, calls ask the store. Nor announce what was read
//! from a root that is not the marked one by its path.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use portolan_proto::levels::{HOLDINGS_DEPTHS, is_container};
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::store::{self, Holdings, Store, StorePath};
use crate::volume::Anchor;

/// Changes made here are gathered this long before their domains are read again, so that a restore of a
/// thousand users costs a few readings and not a thousand.
const GATHER: Duration = Duration::from_millis(100);

/// Objects that are gathered before their whole domains are read instead.
const TOUCHED_MAX: usize = 8_192;

/// Why a reading of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the reading of the store did not end in order")]
    Broken(#[source] JoinError),
}

#[derive(Debug)]
pub struct HoldingsWatch {
    anchor: Anchor,
    current: watch::Sender<Arc<Holdings>>,
    /// Domains to read again, and objects to look at as `<domain>/<object>`: [`TOUCHED_MAX`] and the number of domains at
    /// most.
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
    pub async fn start(store: &Arc<dyn Store>, anchor: Anchor) -> Result<Self, Error> {
        let first = read(store, &anchor, None).await?;
        log_unreadable(&Holdings::default(), &first);
        Ok(Self {
            anchor,
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
        if !HOLDINGS_DEPTHS.contains(&path.depth()) {
            return;
        }
        let components: Vec<&[u8]> = path.components().skip(1).collect();
        let Some(domain) = components.first() else { return };
        let named = match &components[1..] {
            // What a container had comes and goes with it.
            [] => domain.to_vec(),
            [container] if is_container(container) => domain.to_vec(),
            [_] => components.join(&b'/'),
            [container, _] if is_container(container) => components.join(&b'/'),
            _ => return,
        };
        {
            let mut touched = self.touched.lock();
            if touched.len() >= TOUCHED_MAX {
                let domain_of = |named: Vec<u8>| named.split(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
                *touched = std::mem::take(&mut *touched).into_iter().filter_map(domain_of).collect();
            }
            touched.insert(named);
        }
        self.wake.notify_one();
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
        match read(store, &self.anchor, only).await {
            Ok(next) => {
                if whole {
                    *self.whole() = Whole { read_at: SystemTime::now(), failure: None };
                }
                log_unreadable(&before, &next);
                let changes = next.changes_since(&before).len();
                if changes > 0 {
                    tracing::info!(changes, domains = next.domains.len(), "holdings changed");
                }
                self.current.send_if_modified(|current| {
                    *current = Arc::new(next);
                    changes > 0
                });
            }
            // That is for the look to log, which it has asked for.
            Err(Error::Store(store::Error::Unserved(_))) => {}
            Err(error) => {
                let cause = portolan_telemetry::chain(&error);
                tracing::error!(cause, "holdings could not be read; the last ones stand");
                self.whole().failure = Some(cause);
            }
        }
    }
}

/// Logs which domains cannot be read any more, and which can again.
fn log_unreadable(before: &Holdings, now: &Holdings) {
    for (domain, cause) in &now.unreadable {
        if before.unreadable.get(domain) != Some(cause) {
            let domain = portolan_proto::path::display(domain);
            tracing::error!(
                domain,
                cause,
                "a domain cannot be read; it is announced as it was known, the others go on"
            );
        }
    }
    for domain in before.unreadable.keys().filter(|domain| !now.unreadable.contains_key(*domain)) {
        let domain = portolan_proto::path::display(domain);
        tracing::info!(domain, "a domain can be read again, or is gone");
    }
}

async fn read(
    store: &Arc<dyn Store>,
    anchor: &Anchor,
    only: Option<BTreeSet<Vec<u8>>>,
) -> Result<Holdings, Error> {
    let (store, anchor) = (Arc::clone(store), anchor.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let found = store.holdings(only.as_ref())?;
        anchor.verify()?;
        Ok::<_, store::Error>(found)
    });
    // A store that panics has failed like any other: the watch goes on, and reads again.
    Ok(reading.await.map_err(Error::Broken)??)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::{Content, Entry, ListOptions, Listing, Usage};

    /// Holds one domain, and panics when it is asked to.
    #[derive(Default)]
    struct Panicking {
        panics: AtomicBool,
        /// The domain has another object.
        changed: AtomicBool,
    }

    impl Store for Panicking {
        fn kind(&self) -> &'static str {
            "panicking"
        }
        fn usage(&self) -> store::Result<Usage> {
            unreachable!("the watch asks for holdings alone")
        }
        fn holdings(&self, _only: Option<&BTreeSet<Vec<u8>>>) -> store::Result<Holdings> {
            assert!(!self.panics.load(Ordering::Relaxed), "as the test wants");
            let mut objects = vec![b"users/anna".to_vec()];
            if self.changed.load(Ordering::Relaxed) {
                objects.push(b"users/bob".to_vec());
            }
            let objects = Arc::new(objects.into_iter().collect());
            Ok(Holdings { domains: [(b"a".to_vec(), objects)].into(), ..Holdings::default() })
        }
        fn rescan_interval(&self) -> Duration {
            Duration::from_millis(20)
        }
        fn stat(&self, _path: &StorePath) -> store::Result<Entry> {
            unreachable!("the watch asks for holdings alone")
        }
        fn list(
            &self,
            _path: &StorePath,
            _options: ListOptions,
            _stop: &CancellationToken,
        ) -> store::Result<Box<dyn Listing>> {
            unreachable!("the watch asks for holdings alone")
        }
        fn read(&self, _path: &StorePath) -> store::Result<Box<dyn Content>> {
            unreachable!("the watch asks for holdings alone")
        }
    }

    async fn eventually(what: &str, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect(what);
    }

    #[tokio::test]
    async fn a_store_that_panics_is_read_again_and_its_last_set_stands() {
        let panicking = Arc::new(Panicking::default());
        let store: Arc<dyn Store> = panicking.clone();
        let watch = Arc::new(HoldingsWatch::start(&store, Anchor::none()).await.unwrap());
        let current = watch.subscribe();
        let objects = || current.borrow().domains[&b"a"[..]].len();
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (watch, stop) = (Arc::clone(&watch), stop.clone());
            async move { watch.run(store, stop).await }
        });
        panicking.panics.store(true, Ordering::Relaxed);
        eventually("the failure is known", || watch.failure().is_some()).await;
        assert_eq!(objects(), 1);
        panicking.changed.store(true, Ordering::Relaxed);
        panicking.panics.store(false, Ordering::Relaxed);
        eventually("it is read again", || watch.failure().is_none() && objects() == 2).await;
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn an_agent_does_not_start_over_a_store_that_panics() {
        let store: Arc<dyn Store> = Arc::new(Panicking { panics: true.into(), changed: false.into() });
        assert!(matches!(HoldingsWatch::start(&store, Anchor::none()).await.err(), Some(Error::Broken(_))));
    }
}
