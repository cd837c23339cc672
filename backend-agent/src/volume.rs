//! Which store is served, if any: the one at the configured path while it carries the node's mark.
//!
//! An agent cannot tell an empty node from the empty folder that a node's volume is to be mounted on; the mark can. It is
//! looked for by path, again and again, because an open folder stays that of its volume also where that was unmounted
//! lazily or covered by another one. Each visit to the store compares what the path leads to, each announcement reads the
//! mark again before it leaves, and every [`LOOK_EVERY`] a look decides what is served: a volume that is mounted later is
//! served without a restart, and what was begun on one that went away changes nothing any more.
//!
//! The mark is the agent's business and not part of `trait Store`: a store answers for what is in it, and cannot say that
//! it is the wrong one. So the suite of conformance needs no marks, and a kind of store has none of this to repeat.
//!
//! Who calls it: `lib.rs` opens and runs it; `service` and `console` ask it for the store that is served.
//! What it calls: `store::look`, `store::open_at`; `holdings`, of which each store that is opened has its own.
//! What it never does: write to a store that is not marked, not even the agent's own folder.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use portolan_config::checked::agent::{Agent as AgentConfig, MarkRule, Store as Config};
use portolan_proto::id::NodeId;
use portolan_proto::mark::{MARK_PATH, StoreId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::holdings::{self, HoldingsWatch};
use crate::record::RecordKeeper;
use crate::store::disk::mark::{Found, LookError, RootIdentity};
use crate::store::{self, OpenError, Store, Unserved};

/// How often the mark is looked for.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why the first store cannot be served, where that is not for want of its mark.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read what the store holds")]
    Scan(#[from] holdings::Error),
}

/// Why nothing is served, for clients and for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub why: Unserved,
    /// With the place, and what to do.
    pub detail: String,
}

#[derive(Debug, Clone)]
enum State {
    Served(Arc<Served>),
    Unserved(Arc<Report>),
}

/// See the module.
#[derive(Debug)]
pub struct Volume {
    node: NodeId,
    /// `None`: a store was handed in open, and nothing is looked for.
    place: Option<Arc<Place>>,
    state: watch::Sender<State>,
}

/// Where the store is to be, and what shows that it is there.
#[derive(Debug)]
struct Place {
    node: NodeId,
    config: Config,
    rule: MarkRule,
    /// Without marks, the root that was there first: only who starts the agent can say that it is the right one.
    first: OnceLock<RootIdentity>,
    /// Somebody has seen another root than the one that is served.
    suspected: Notify,
}

/// What a path leads to: the folder, and the id in its mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    root: RootIdentity,
    id: Option<StoreId>,
}

/// A store that is open, and what shows that its path still leads to it.
#[derive(Debug)]
pub struct Served {
    kind: &'static str,
    anchor: Anchor,
    /// `None` once it is served no more. The last visit to it lets it go, and with it its lock.
    store: RwLock<Option<Opened>>,
    holdings: Arc<HoldingsWatch>,
    record: Arc<RecordKeeper>,
    /// Cancelled when it is served no more.
    gone: CancellationToken,
    why: OnceLock<Unserved>,
}

struct Opened(Arc<dyn Store>);

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.kind())
    }
}

/// Ties an open store to its path. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Anchor(Option<(Arc<Place>, Sight)>);

impl Anchor {
    /// Of a store that was handed in open.
    pub fn none() -> Self {
        Self(None)
    }

    /// Does the path still lead to the folder that was opened? One system call.
    fn compare(&self) -> Result<(), Unserved> {
        let Some((place, sight)) = &self.0 else { return Ok(()) };
        if store::root_now(&place.config).is_ok_and(|root| root == sight.root) {
            return Ok(());
        }
        // What is there now is for the next look to say, which begins at once.
        place.suspected.notify_one();
        Err(match place.rule {
            MarkRule::Of(_) => Unserved::NotMarked { node: place.node.clone() },
            MarkRule::Unchecked => Unserved::OtherVolume { node: place.node.clone() },
        })
    }

    /// Is it the marked store still? Reads the mark.
    pub fn verify(&self) -> Result<(), Unserved> {
        let Some((place, sight)) = &self.0 else { return Ok(()) };
        let found = place.look().map_err(|report| report.why).and_then(|found| {
            let other = || Unserved::OtherVolume { node: place.node.clone() };
            (found == *sight).then_some(()).ok_or_else(other)
        });
        found.inspect_err(|_| place.suspected.notify_one())
    }
}

impl Place {
    fn root(&self) -> PathBuf {
        store::root(&self.config).to_owned()
    }

    /// What the path leads to, when that may be served.
    fn look(&self) -> Result<Sight, Report> {
        let node = || self.node.clone();
        let root = self.root();
        let shown = root.display();
        let of = match &self.rule {
            MarkRule::Of(of) => of,
            MarkRule::Unchecked => {
                let found = store::root_now(&self.config).map_err(|error| Report {
                    why: Unserved::NotOpened { node: node() },
                    detail: format!("{shown} cannot be opened: {error}"),
                })?;
                return match self.first.get_or_init(|| found) {
                    first if *first != found => Err(Report {
                        why: Unserved::OtherVolume { node: node() },
                        detail: format!(
                            "{shown} is another volume than at the start, and store.mark = \"none\" lets nothing tell \
                             whether it is the right one; a restart takes what is there"
                        ),
                    }),
                    _ => Ok(Sight { root: found, id: None }),
                };
            }
        };
        let (why, detail) = match store::look(&self.config) {
            Ok(seen) if seen.mark.node == *of => {
                return Ok(Sight { root: seen.root, id: Some(seen.mark.id) });
            }
            Ok(seen) => (
                Unserved::OtherNode { node: node(), marked: seen.mark.node.clone() },
                format!(
                    "{shown} is marked for node {}, not {of}; is the right volume mounted? A standby names the node whose \
                     store it has as store.mark_of",
                    seen.mark.node
                ),
            ),
            Err(LookError::None { found }) => {
                let holds = match found {
                    Found::Nothing => "is empty and carries no mark",
                    Found::NoDomains => {
                        "carries no mark and holds no domains (expected: domains/<domain>/... in store.root)"
                    }
                    Found::Domains => "carries no mark",
                };
                let detail = format!(
                    "{shown} {holds}; see that its volume is mounted, then run once: portolan-agent mark {shown} --node {of}"
                );
                (Unserved::NotMarked { node: node() }, detail)
            }
            Err(LookError::DomainsElsewhere) => (
                Unserved::DomainsElsewhere { node: node() },
                format!(
                    "{shown}/domains lies on another file system than the mark of {shown}; mount that one at store.root, \
                     with domains as a folder in it"
                ),
            ),
            Err(LookError::Root(error)) => {
                (Unserved::NotOpened { node: node() }, format!("{shown} cannot be opened: {error}"))
            }
            Err(error) => (
                Unserved::BadMark { node: node() },
                format!("the mark {shown}/{MARK_PATH}: {}", portolan_telemetry::chain(&error)),
            ),
        };
        Err(Report { why, detail })
    }
}

impl Served {
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The id in its mark.
    pub fn id(&self) -> Option<StoreId> {
        self.anchor.0.as_ref().and_then(|(_, sight)| sight.id)
    }

    pub fn holdings(&self) -> &Arc<HoldingsWatch> {
        &self.holdings
    }

    pub(crate) fn record(&self) -> &Arc<RecordKeeper> {
        &self.record
    }

    /// Cancelled when it is served no more.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Why it is served no more.
    pub fn why(&self, node: &NodeId) -> Unserved {
        self.why.get().cloned().unwrap_or_else(|| Unserved::NotMarked { node: node.clone() })
    }

    /// Whether a visit to what the store has opened may go on. Blocks for one system call.
    pub fn check(&self) -> store::Result<()> {
        if let Some(why) = self.why.get() {
            return Err(why.clone().into());
        }
        Ok(self.anchor.compare()?)
    }

    /// Whether the mark is still there, before all that the store holds is announced. Blocks.
    pub fn verify(&self) -> store::Result<()> {
        self.check()?;
        Ok(self.anchor.verify()?)
    }

    /// The store, for one visit after [`Served::check`].
    pub fn store(&self) -> store::Result<Arc<dyn Store>> {
        match &*self.store.read() {
            Some(Opened(store)) => Ok(Arc::clone(store)),
            None => {
                let why = self.why.get().cloned();
                Err(why.expect("it is set before the store is let go").into())
            }
        }
    }

    /// Ends the serving: no visit begins any more.
    fn end(&self, why: Unserved) {
        self.why.set(why).ok();
        self.gone.cancel();
        drop(self.store.write().take());
        // A disk that went away may hold what is written to it for long.
        let record = Arc::clone(&self.record);
        tokio::task::spawn_blocking(move || record.close());
    }

    async fn open(store: Arc<dyn Store>, anchor: Anchor) -> Result<Arc<Self>, holdings::Error> {
        let holdings = Arc::new(HoldingsWatch::start(&store, anchor.clone()).await?);
        if holdings.subscribe().borrow().domains.is_empty() {
            tracing::warn!("the store holds no domain; expected: domains/<domain>/... in store.root");
        }
        let opening = Arc::clone(&store);
        let record = Arc::new(blocking(move || RecordKeeper::open(&*opening)).await);
        Ok(Arc::new(Self {
            kind: store.kind(),
            anchor,
            record,
            store: RwLock::new(Some(Opened(store))),
            holdings,
            gone: CancellationToken::new(),
            why: OnceLock::new(),
        }))
    }
}

impl Volume {
    /// Opens the store of a configuration where it may be served. One that may not is no error.
    pub async fn open(config: &AgentConfig) -> Result<Self, Error> {
        let place = Arc::new(Place {
            node: config.node.clone(),
            config: config.store.clone(),
            rule: config.mark.clone(),
            first: OnceLock::new(),
            suspected: Notify::new(),
        });
        if place.rule == MarkRule::Unchecked {
            tracing::warn!(
                root = %place.root().display(),
                "store.mark = \"none\": an unmounted volume is served as a node without domains"
            );
        }
        let looking = Arc::clone(&place);
        let state = match blocking(move || looking.look()).await {
            Ok(sight) => match open(&place, sight).await {
                Ok(served) => Ok(served),
                // It went away meanwhile.
                Err(Error::Scan(holdings::Error::Store(store::Error::Unserved(why)))) => {
                    let detail = why.to_string();
                    Err(Report { why, detail })
                }
                Err(error) => return Err(error),
            },
            Err(report) => Err(report),
        };
        let state = match state {
            Ok(served) => State::Served(served),
            Err(report) => {
                log_unserved(&report);
                State::Unserved(Arc::new(report))
            }
        };
        Ok(Self { node: config.node.clone(), place: Some(place), state: watch::Sender::new(state) })
    }

    /// Over a store that is open already, whatever mark it carries.
    pub async fn over(node: NodeId, store: Arc<dyn Store>) -> Result<Self, holdings::Error> {
        let served = Served::open(store, Anchor::none()).await?;
        Ok(Self { node, place: None, state: watch::Sender::new(State::Served(served)) })
    }

    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// What is served now.
    pub fn served(&self) -> Result<Arc<Served>, Arc<Report>> {
        match &*self.state.borrow() {
            State::Served(served) => Ok(Arc::clone(served)),
            State::Unserved(report) => Err(Arc::clone(report)),
        }
    }

    /// Waits until something else is served than `before`: another store, or none.
    pub async fn changed(&self, before: Option<&Arc<Served>>) {
        let is_other = |state: &State| match (state, before) {
            (State::Served(now), Some(before)) => !Arc::ptr_eq(now, before),
            (State::Unserved(_), None) => false,
            _ => true,
        };
        self.state.subscribe().wait_for(is_other).await.ok();
    }

    /// The kind of the store, also of one that is not served.
    pub fn kind(&self) -> &'static str {
        match (self.served(), &self.place) {
            (Ok(served), _) => served.kind(),
            (Err(_), Some(place)) => store::kind(&place.config),
            (Err(_), None) => "",
        }
    }

    /// Looks again and again, and keeps the holdings of what is served, until `stop`.
    pub async fn run(&self, tasks: &TaskTracker, stop: CancellationToken) {
        if let Ok(served) = self.served() {
            watch_holdings(tasks, &served, &stop);
        }
        let Some(place) = &self.place else { return };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = place.suspected.notified() => {}
            }
            if let Some(served) = self.look(place).await {
                watch_holdings(tasks, &served, &stop);
            }
        }
    }

    /// One look; a store that it has opened.
    async fn look(&self, place: &Arc<Place>) -> Option<Arc<Served>> {
        let before = self.served();
        let opened =
            before.as_ref().ok().and_then(|served| served.anchor.0.as_ref()).map(|(_, sight)| *sight);
        let looking = Arc::clone(place);
        // A disk that does not answer holds this one thread; what is served stays until the look ends.
        let sight = match blocking(move || looking.look()).await {
            Ok(sight) if Some(sight) == opened => return None,
            Ok(sight) => sight,
            Err(report) => {
                self.end(report);
                return None;
            }
        };
        if let Ok(served) = before {
            let why = Unserved::OtherVolume { node: self.node.clone() };
            tracing::warn!(root = %place.root().display(), "another volume carries the mark; it is opened");
            served.end(why.clone());
            let detail = format!("another volume is mounted at {} and is opened", place.root().display());
            self.state.send_replace(State::Unserved(Arc::new(Report { why, detail })));
        }
        match open(place, sight).await {
            Ok(served) => {
                tracing::info!(root = %place.root().display(), "the store is served");
                self.state.send_replace(State::Served(Arc::clone(&served)));
                Some(served)
            }
            Err(error) => {
                let cause = portolan_telemetry::chain(&error);
                self.end(Report { why: Unserved::NotOpened { node: self.node.clone() }, detail: cause });
                None
            }
        }
    }

    /// Serves nothing. Logged once for each reason.
    fn end(&self, report: Report) {
        match self.served() {
            Ok(served) => served.end(report.why.clone()),
            Err(before) if *before == report => return,
            Err(_) => {}
        }
        log_unserved(&report);
        self.state.send_replace(State::Unserved(Arc::new(report)));
    }
}

fn log_unserved(report: &Report) {
    tracing::error!(cause = report.detail, "the store is not served; the agent looks for it again and again");
}

fn watch_holdings(tasks: &TaskTracker, served: &Arc<Served>, stop: &CancellationToken) {
    let Ok(store) = served.store() else { return };
    let (holdings, gone, stop) = (Arc::clone(&served.holdings), served.gone.clone(), stop.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = gone.cancelled() => {}
            () = holdings.run(store, stop) => {}
        }
    });
}

/// Opens what a look has found, and sees that it is that.
async fn open(place: &Arc<Place>, sight: Sight) -> Result<Arc<Served>, Error> {
    let opening = Arc::clone(place);
    let (store, root) = blocking(move || store::open_at(&opening.config)).await?;
    if root != sight.root {
        let error = Unserved::OtherVolume { node: place.node.clone() };
        return Err(holdings::Error::from(store::Error::from(error)).into());
    }
    Ok(Served::open(store, Anchor(Some((Arc::clone(place), sight)))).await?)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("a look does not panic")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::store::disk::mark;
    use crate::store::{Begin, StorePath};

    use super::*;

    /// A marked store with one domain. It is moved away by renaming its folder, as a volume is by unmounting.
    struct Site {
        folder: tempfile::TempDir,
        volume: Volume,
    }

    impl Site {
        async fn start(keys: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("store");
            std::fs::create_dir_all(root.join("domains/a.example/users")).unwrap();
            mark::write(&root, &"mail-1".parse().unwrap(), false).unwrap();
            let config = config(folder.path(), keys);
            Self { folder, volume: Volume::open(&config).await.unwrap() }
        }

        fn root(&self) -> PathBuf {
            self.folder.path().join("store")
        }

        fn elsewhere(&self) -> PathBuf {
            self.folder.path().join("elsewhere")
        }

        /// One look; why nothing is served.
        async fn look(&self) -> Option<Unserved> {
            self.volume.look(self.volume.place.as_ref().unwrap()).await;
            self.volume.served().err().map(|report| report.why.clone())
        }
    }

    fn config(folder: &Path, keys: &str) -> AgentConfig {
        let file = folder.join("agent.toml");
        let text = format!(
            "version = 1\nnode = \"mail-1\"\n[listen]\naddress = \"127.0.0.1:0\"\n[store]\nroot = \"store\"\n{keys}"
        );
        std::fs::write(&file, text).unwrap();
        AgentConfig::load(&file).unwrap()
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn a_store_that_goes_away_is_let_go_with_its_lock_and_taken_again() {
        let site = Site::start("").await;
        let served = site.volume.served().unwrap();
        let path = StorePath::new(b"domains/a.example/users/mail").unwrap();
        let upload = served.store().unwrap().write(&path, Begin::default()).unwrap();
        std::fs::rename(site.root(), site.elsewhere()).unwrap();
        std::fs::create_dir(site.root()).unwrap();
        let not_marked = Unserved::NotMarked { node: node("mail-1") };
        let refused = |done: store::Result<()>| matches!(done, Err(store::Error::Unserved(_)));
        assert!(refused(served.check()), "before any look");
        let store = served.store().unwrap();
        let announced = HoldingsWatch::start(&store, served.anchor.clone()).await;
        assert!(
            matches!(announced, Err(holdings::Error::Store(store::Error::Unserved(_)))),
            "nothing of it is announced, though the open folder has it all"
        );
        drop(store);
        assert_eq!(site.look().await, Some(not_marked.clone()));
        assert!(served.gone().is_cancelled() && refused(served.store().map(drop)));
        assert!(!site.root().join(".portolan").try_exists().unwrap(), "nothing is made there");
        // Another agent may have the store, though an upload to it is open here.
        let other = Config::Tree {
            root: site.elsewhere(),
            rescan_interval: Duration::from_secs(3_600),
            modes: portolan_config::checked::agent::Modes::default(),
            links: portolan_config::checked::agent::Links::Show,
            free_min: portolan_config::units::FreeMin::NONE,
            access: portolan_config::checked::agent::Access::default(),
        };
        drop(store::open(&other).unwrap());
        std::fs::remove_dir(site.root()).unwrap();
        std::fs::rename(site.elsewhere(), site.root()).unwrap();
        assert!(refused(served.check()), "what was begun before stays refused");
        assert_eq!(site.look().await, None);
        let again = site.volume.served().unwrap();
        assert_eq!((again.id(), again.check().is_ok()), (served.id(), true));
        assert!(matches!(store::open(&other_root(&other, &site.root())), Err(OpenError::Taken { .. })));
        drop(upload);
    }

    fn other_root(config: &Config, root: &Path) -> Config {
        let mut config = config.clone();
        let Config::Tree { root: place, .. } = &mut config;
        *place = root.to_owned();
        config
    }

    #[tokio::test]
    async fn the_mark_of_another_node_counts_where_the_configuration_says_so() {
        let site = Site::start("mark_of = \"mail-2\"\n").await;
        let other = Unserved::OtherNode { node: node("mail-1"), marked: node("mail-1") };
        assert_eq!(site.look().await, Some(other));
        std::fs::remove_file(site.root().join(MARK_PATH)).unwrap();
        mark::write(&site.root(), &node("mail-2"), false).unwrap();
        assert_eq!(site.look().await, None);
    }

    #[tokio::test]
    async fn without_marks_another_root_is_not_taken_until_a_restart() {
        let site = Site::start("mark = \"none\"\n").await;
        std::fs::rename(site.root(), site.elsewhere()).unwrap();
        std::fs::create_dir(site.root()).unwrap();
        let other = Unserved::OtherVolume { node: node("mail-1") };
        for _ in 0..2 {
            assert_eq!(site.look().await, Some(other.clone()));
        }
        std::fs::remove_dir(site.root()).unwrap();
        std::fs::rename(site.elsewhere(), site.root()).unwrap();
        assert_eq!(site.look().await, None);
    }
}
