//! How much of the agent one admin may take, and work that blocks: who it is for, and when it stops.
//!
//! Work on a blocking thread goes on after its call was dropped. So what limits a call is held by the work itself until it
//! has ended, and the work gets a token that is cancelled when nobody waits for it any more. A share belongs to one admin
//! by one front end; past it that admin waits or is refused (BUSY), and nobody else notices.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use portolan_proto::failure::status;
use portolan_proto::v1::Reason;
use portolan_telemetry::trace::TRACE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::store::{self, Error, Store};
use crate::volume::Served;

/// Reads, writes, listings and digests of one admin under way at once; one of its sessions has one of them, or a few where a
/// listing is one of several nodes. A quarter of what the agent takes in all.
const ADMIN_STREAMS_MAX: usize = 256;
/// Calls with one answer (stat, rename and so on) of one admin, under way or waiting.
const ADMIN_CALLS_MAX: usize = 256;
/// Blocking threads that work for one admin at once; the runtime has 512. Further work of the admin waits.
const ADMIN_THREADS_MAX: usize = 32;
/// Of those, the ones whose work grows with what is in the store, such as gathering the names of a folder.
const ADMIN_LONG_MAX: usize = 8;
/// The same of all admins together: the other threads are left to short work, whoever it is for.
const LONG_MAX: usize = 64;
/// Digests of one admin that are computed at once, of the few of the agent.
const ADMIN_DIGESTS_MAX: usize = 2;
/// How long a call waits for its turn before it is refused. A front end waits for 20 s, and takes a node that leaves calls
/// unanswered for one that is away.
const TURN_MAX: Duration = Duration::from_secs(10);
/// How much lower than others' the priority of a thread is whose work grows with the store (nice, 0 to 19): short work goes
/// before it on a node with few cores, and it still gets a third of what an ordinary process gets.
const LONG_NICE: i32 = 5;
/// Shares that are remembered before those that nobody holds are looked for.
const CLEANED_FROM: usize = 64;

/// How much work a visit to a blocking thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// A few system calls, or one chunk.
    Short,
    /// As much as the store holds at the path.
    Long,
}

/// The shares of all admins.
#[derive(Debug)]
pub(super) struct Shares {
    known: Mutex<Known>,
    long: Arc<Semaphore>,
}

#[derive(Debug)]
struct Known {
    /// By the names of front end and admin.
    shares: HashMap<(String, String), Weak<Share>>,
    cleaned_from: usize,
}

/// What one admin may take.
#[derive(Debug)]
struct Share {
    streams: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    long: Arc<Semaphore>,
    digests: Arc<Semaphore>,
    /// Of all admins.
    long_in_all: Arc<Semaphore>,
}

/// Held by a call and by each piece of its work.
#[derive(Debug)]
struct Held {
    share: Arc<Share>,
    _own: OwnedSemaphorePermit,
    /// Of a stream: its place among those of the agent.
    _stream: Option<OwnedSemaphorePermit>,
}

/// A call that is let in. Dropping it stops its work.
pub(super) struct Call {
    served: Arc<Served>,
    held: Arc<Held>,
    is_stream: bool,
    stop: CancellationToken,
    _dropped: DropGuard,
}

impl Shares {
    pub(super) fn new() -> Self {
        let known = Known { shares: HashMap::new(), cleaned_from: CLEANED_FROM };
        Self { known: Mutex::new(known), long: Arc::new(Semaphore::new(LONG_MAX)) }
    }

    fn of(&self, frontend: &str, admin: &str) -> Arc<Share> {
        let who = (frontend.to_owned(), admin.to_owned());
        let mut known = self.known.lock();
        if let Some(share) = known.shares.get(&who).and_then(Weak::upgrade) {
            return share;
        }
        if known.shares.len() >= known.cleaned_from {
            known.shares.retain(|_, share| share.strong_count() > 0);
            known.cleaned_from = CLEANED_FROM.max(2 * known.shares.len());
        }
        let places = |count| Arc::new(Semaphore::new(count));
        let share = Arc::new(Share {
            streams: places(ADMIN_STREAMS_MAX),
            calls: places(ADMIN_CALLS_MAX),
            threads: places(ADMIN_THREADS_MAX),
            long: places(ADMIN_LONG_MAX),
            digests: places(ADMIN_DIGESTS_MAX),
            long_in_all: Arc::clone(&self.long),
        });
        known.shares.insert(who, Arc::downgrade(&share));
        share
    }

    /// Lets a call of an admin in. `stream` is its place among the streams of the agent; `None` for a call with one answer.
    /// Its work stops with `cut` too.
    ///
    /// # Errors
    /// The admin's share is used up.
    pub(super) fn admit(
        &self,
        served: &Arc<Served>,
        (frontend, admin): (&str, &str),
        stream: Option<OwnedSemaphorePermit>,
        cut: &CancellationToken,
    ) -> Result<Call, Status> {
        let share = self.of(frontend, admin);
        let (places, count, what) = match stream {
            Some(_) => (&share.streams, ADMIN_STREAMS_MAX, "transfers of this admin are under way"),
            None => (&share.calls, ADMIN_CALLS_MAX, "calls of this admin wait"),
        };
        let own = Arc::clone(places).try_acquire_owned().map_err(|_| {
            tracing::warn!(
                frontend,
                admin,
                count,
                "call refused: the admin's share of this agent is used up"
            );
            status(Reason::Busy, format!("{count} {what} on this node"))
        })?;
        let is_stream = stream.is_some();
        let held = Arc::new(Held { share, _own: own, _stream: stream });
        let stop = cut.child_token();
        let dropped = stop.clone().drop_guard();
        Ok(Call { served: Arc::clone(served), held, is_stream, stop, _dropped: dropped })
    }
}

impl Call {
    /// Cancelled when the call is dropped, or cut at the end of a drain.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `work` on a thread that may block, when it is this admin's turn. It should look at its token at each step whose
    /// number a client or a folder chooses.
    ///
    /// # Errors
    /// Those of the work; BUSY where the turn did not come.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        size: Work,
        work: impl FnOnce(&CancellationToken) -> store::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let share = &self.held.share;
        let turn = async {
            let long = match size {
                Work::Short => None,
                Work::Long => Some((place(&share.long).await, place(&share.long_in_all).await)),
            };
            (long, place(&share.threads).await)
        };
        // A stream that is under way waits as long as its front end does.
        let turn = if self.is_stream && size == Work::Short {
            turn.await
        } else {
            tokio::time::timeout(TURN_MAX, turn)
                .await
                .map_err(|_| status(Reason::Busy, "too much of this admin's work waits on this node"))?
        };
        let work = self.held_until_done(turn, work);
        match size {
            Work::Short => blocking(work).await,
            Work::Long => blocking_long(work).await,
        }
    }

    /// The same at once, for work that has a turn of its own kind, which is held until the work has ended.
    pub(super) async fn run_now<T: Send + 'static>(
        &self,
        turn: impl Send + 'static,
        work: impl FnOnce(&CancellationToken) -> store::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        blocking(self.held_until_done(turn, work)).await
    }

    /// The work, which holds the call's places and its turn until it has ended.
    fn held_until_done<T>(
        &self,
        turn: impl Send + 'static,
        work: impl FnOnce(&CancellationToken) -> store::Result<T> + Send + 'static,
    ) -> impl FnOnce() -> store::Result<T> + Send + 'static {
        let (held, stop) = (Arc::clone(&self.held), self.stop.clone());
        let served = Arc::clone(&self.served);
        move || {
            let _held = (held, turn);
            if stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            // Also what is open already: nothing is committed to a volume that is not at its place any more.
            served.check()?;
            work(&stop)
        }
    }

    /// A turn to compute a digest: among the admin's own, then among those of all.
    pub(super) async fn digest_turn(&self, in_all: &Arc<Semaphore>) -> impl Send + 'static + use<> {
        (place(&self.held.share.digests).await, place(in_all).await)
    }

    /// [`Call::run`] on the store.
    pub(super) async fn on_store<T: Send + 'static>(
        &self,
        size: Work,
        work: impl FnOnce(&dyn Store, &CancellationToken) -> store::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let served = Arc::clone(&self.served);
        self.run(size, move |stop| work(&*served.store()?, stop)).await
    }

    /// The store that the call is of.
    pub(super) fn served(&self) -> &Arc<Served> {
        &self.served
    }
}

async fn place(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(places).acquire_owned().await.expect("never closed")
}

/// Runs `work` on a thread that may block and turns its failure into a status.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> store::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let span = tracing::info_span!(target: TRACE, "disk");
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done.map_err(super::status::of),
        Err(stopped) => Err(broken(&stopped)),
    }
}

/// The status of work that did not end in order.
fn broken(error: &dyn std::error::Error) -> Status {
    tracing::error!(%error, "a store task did not end in order");
    status(Reason::DiskFault, "the agent failed inside")
}

/// [`blocking`] on a thread of its own with a lower priority, which an unprivileged thread could not get back.
async fn blocking_long<T: Send + 'static>(
    work: impl FnOnce() -> store::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let span = tracing::info_span!(target: TRACE, "disk");
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("store-long".to_owned()).spawn(move || {
        // Of this thread alone, on Linux. Where it is not allowed, the work is done all the same.
        rustix::process::setpriority_process(None, LONG_NICE).ok();
        sender.send(span.in_scope(work)).ok();
    });
    thread.map_err(|error| broken(&error))?;
    match receiver.await {
        Ok(done) => done.map_err(super::status::of),
        Err(panicked) => Err(broken(&panicked)),
    }
}

#[cfg(test)]
mod tests {
    use portolan_proto::failure::reason_of;

    use portolan_config::checked::agent::{Links, Modes};

    use super::*;
    use crate::store::tree::TreeStore;
    use crate::volume::Volume;

    struct Site {
        served: Arc<Served>,
        shares: Shares,
        streams: Arc<Semaphore>,
        cut: CancellationToken,
        _folder: tempfile::TempDir,
    }

    impl Site {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> = Arc::new(
                TreeStore::open(folder.path(), Duration::from_secs(3_600), Modes::default(), Links::Show)
                    .unwrap(),
            );
            let (streams, cut) = (Arc::new(Semaphore::new(1_024)), CancellationToken::new());
            let served = Volume::over("mail-1".parse().unwrap(), store).await.unwrap().served().unwrap();
            Self { served, shares: Shares::new(), streams, cut, _folder: folder }
        }

        fn stream(&self, frontend: &str, admin: &str) -> Result<Call, Option<Reason>> {
            let place = Arc::clone(&self.streams).try_acquire_owned().unwrap();
            let admitted = self.shares.admit(&self.served, (frontend, admin), Some(place), &self.cut);
            admitted.map_err(|status| reason_of(&status))
        }
    }

    #[tokio::test]
    async fn one_admin_uses_up_its_own_share_and_no_other() {
        let site = Site::new().await;
        let mut held: Vec<Call> =
            (0..ADMIN_STREAMS_MAX).map(|_| site.stream("front-1", "anna").ok().unwrap()).collect();
        assert_eq!(site.stream("front-1", "anna").err(), Some(Some(Reason::Busy)));
        assert!(site.stream("front-1", "bob").is_ok());
        assert!(site.stream("front-2", "anna").is_ok());
        let unary = site.shares.admit(&site.served, ("front-1", "anna"), None, &site.cut);
        assert!(unary.is_ok(), "a stat is no stream");
        held.pop();
        assert!(site.stream("front-1", "anna").is_ok());
        assert_eq!(site.streams.available_permits(), 1_024 - held.len());
    }

    #[tokio::test]
    async fn work_keeps_the_places_of_a_call_that_was_dropped_and_learns_of_it() {
        let site = Site::new().await;
        let call = site.stream("front-1", "anna").ok().unwrap();
        let (started, has_started) = std::sync::mpsc::sync_channel(1);
        let (seen, was_seen) = std::sync::mpsc::sync_channel(1);
        let (go_on, may_go_on) = std::sync::mpsc::sync_channel::<()>(1);
        let working = call.run(Work::Long, move |stop| {
            started.send(()).unwrap();
            while !stop.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
            seen.send(()).unwrap();
            may_go_on.recv().ok();
            Ok(())
        });
        tokio::select! {
            _ = working => panic!("it waits"),
            () = async { while has_started.try_recv().is_err() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
        }
        drop(call);
        tokio::task::spawn_blocking(move || was_seen.recv().unwrap()).await.unwrap();
        assert_eq!(site.streams.available_permits(), 1_023, "the work goes on");
        go_on.send(()).unwrap();
        let freed = async {
            while site.streams.available_permits() < 1_024 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), freed).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn long_work_leaves_threads_to_short_work_and_is_refused_after_a_while() {
        let site = Site::new().await;
        let call = site.stream("front-1", "anna").ok().unwrap();
        let turns: Vec<_> = (0..ADMIN_LONG_MAX)
            .map(|_| Arc::clone(&call.held.share.long).try_acquire_owned().unwrap())
            .collect();
        let refused = call.run(Work::Long, |_| Ok(())).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::Busy));
        assert!(call.run(Work::Short, |_| Ok(())).await.is_ok());
        drop(turns);
        assert!(call.run(Work::Long, |_| Ok(())).await.is_ok());
        site.cut.cancel();
        let stopped = call.run(Work::Short, |_| Ok(())).await.unwrap_err();
        assert_eq!(reason_of(&stopped), Some(Reason::Draining));
    }

    #[tokio::test]
    async fn shares_that_nobody_holds_are_forgotten() {
        let site = Site::new().await;
        for number in 0..10 * CLEANED_FROM {
            drop(site.stream("front-1", &number.to_string()));
        }
        assert!(site.shares.known.lock().shares.len() <= CLEANED_FROM);
    }
}
