//! The tonic service: checks each request and its grant, runs the store in blocking tasks, tells failures.
//!
//! Who calls it: the gRPC server in `lib.rs`, for front ends.
//! What it calls: `volume`, for the store that is served; `holdings`.
//! What it never does: open a file itself, or block a worker thread.

mod caller;
mod content;
mod digest;
mod policy;
mod record;
mod share;
pub mod status;
mod upload;

use std::pin::Pin;
use std::sync::Arc;

use portolan_config::checked::agent::{AllowRule, Limits};
use portolan_net::rate::RateLimit;
use portolan_proto::rights::OnPath;
use portolan_proto::v1::agent_server::Agent;
use portolan_proto::v1::{self, Reason};
use portolan_proto::{HOLDINGS_BATCH_CHANGES_MAX, LIST_BATCH_ENTRIES_MAX, TRANSFER_ID_KEY};
use portolan_telemetry::trace::{self, TRACE};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::metrics::Metrics;
use crate::store::{
    self, Directory, Entry, Holdings, Identity, Kind, ListOptions, Permissions, Store, StorePath, Unserved,
    Wanted,
};
use crate::volume::{Served, Volume};
use caller::Checked;
use digest::Digests;
use policy::Policy;
use share::{Call, Shares, Work};

/// Reads, writes, listings and digests under way at once; the next one is told to come again (BUSY).
pub const STREAMS_MAX: usize = 1_024;

/// Messages of a response stream that may wait for the network.
const RESPONSES_QUEUED_MAX: usize = 4;

/// The service of one agent. Cheap to clone.
#[derive(Clone)]
pub struct AgentService {
    volume: Arc<Volume>,
    policy: Arc<Policy>,
    streams: Arc<Semaphore>,
    shares: Arc<Shares>,
    digests: Arc<Digests>,
    metrics: Arc<Metrics>,
    rates: Arc<Rates>,
    tasks: TaskTracker,
    draining: CancellationToken,
    cut: CancellationToken,
}

/// How fast content is read and written, for all front ends together.
#[derive(Debug)]
struct Rates {
    read: RateLimit,
    write: RateLimit,
}

impl Rates {
    fn new(limits: Limits) -> Self {
        let limit = |rate: u64| RateLimit::new(Arc::new(rate.into()));
        Self { read: limit(limits.read.0), write: limit(limits.write.0) }
    }
}

type ResponseStream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

impl AgentService {
    /// `draining` refuses new streams; `cut` ends those under way, so that they commit nothing.
    pub fn new(
        volume: Arc<Volume>,
        allow: Option<Vec<AllowRule>>,
        tasks: TaskTracker,
        draining: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let shares = Arc::new(Shares::new());
        let digests = Arc::new(Digests::new());
        let policy = Arc::new(Policy::new(allow));
        let (metrics, rates) = (Arc::default(), Arc::new(Rates::new(Limits::default())));
        Self { volume, policy, streams, shares, digests, metrics, rates, tasks, draining, cut }
    }

    /// The same within these limits.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { rates: Arc::new(Rates::new(limits)), ..self }
    }

    pub(crate) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Streams that are under way.
    pub(crate) fn streams(&self) -> usize {
        STREAMS_MAX - self.streams.available_permits()
    }

    /// A place among the streams of this agent.
    fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        if self.draining.is_cancelled() {
            return Err(portolan_proto::failure::status(Reason::Draining, "the agent is stopping"));
        }
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            portolan_proto::failure::status(Reason::Busy, format!("{STREAMS_MAX} transfers are under way"))
        })
    }

    /// A request, after what its front end and its caller may do was checked.
    fn checked<R: OnPath>(&self, request: Request<R>) -> Result<Checked<R>, Status> {
        Checked::new(self.policy.of(&request)?, request.into_inner())
    }

    /// What is served.
    fn served(&self) -> Result<Arc<Served>, Status> {
        self.volume.served().map_err(|report| unserved(report.why.clone()))
    }

    /// A read, write, listing or digest with its place, within its admin's share.
    fn stream(&self, whose: (&str, &str), place: OwnedSemaphorePermit) -> Result<Call, Status> {
        self.shares.admit(&self.served()?, whose, Some(place), &self.cut)
    }

    /// A call with one answer, within its admin's share.
    fn call(&self, whose: (&str, &str)) -> Result<Call, Status> {
        self.shares.admit(&self.served()?, whose, None, &self.cut)
    }

    /// A change of a name: done on the store, then told to the holdings, whoever still waits for it.
    async fn change(
        &self,
        call: &Call,
        path: StorePath,
        work: impl FnOnce(&dyn Store, &StorePath) -> store::Result<()> + Send + 'static,
    ) -> Result<(), Status> {
        let holdings = Arc::clone(call.served().holdings());
        call.on_store(Work::Short, move |store, _| {
            work(store, &path)?;
            holdings.touched(&path);
            Ok(())
        })
        .await
    }
}

fn unserved(why: Unserved) -> Status {
    status::of(why.into())
}

/// The span of a call, which goes on from the trace of the front end. Watches and health checks last, or come, too long
/// and too often to be one.
pub fn call_span(request: &http::Request<()>) -> tracing::Span {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    if matches!(method, "WatchHoldings" | "ReadRecord" | "MergeRecord" | "Watch" | "Check") {
        return tracing::Span::none();
    }
    let transfer = request.headers().get(TRANSFER_ID_KEY).and_then(|id| id.to_str().ok());
    let span = tracing::info_span!(
        target: TRACE,
        parent: None,
        "call",
        otel.name = method,
        otel.kind = "server",
        rpc.system = "grpc",
        transfer,
    );
    trace::continue_from(&span, request.headers());
    span
}

fn wire_entry(entry: Entry) -> v1::Entry {
    let kind = match entry.kind {
        Kind::File => v1::EntryKind::File,
        Kind::Directory => v1::EntryKind::Directory,
        Kind::Symlink => v1::EntryKind::Symlink,
        Kind::Socket => v1::EntryKind::Socket,
        Kind::Pipe => v1::EntryKind::Pipe,
        Kind::BlockDevice => v1::EntryKind::BlockDevice,
        Kind::CharacterDevice => v1::EntryKind::CharacterDevice,
        Kind::Other => v1::EntryKind::Other,
    };
    let (device, inode) = entry.identity.map(Identity::halves).unwrap_or_default();
    v1::Entry {
        name: entry.name.into(),
        kind: kind.into(),
        size: entry.size,
        modified_ns: entry.modified_ns,
        unix_mode: entry.unix_mode,
        device,
        inode,
        target: entry.target.into(),
    }
}

fn wire_directory(directory: Directory) -> v1::ListedDirectory {
    let Directory { identity, name, state } = directory;
    let (device, inode) = identity.halves();
    v1::ListedDirectory { device, inode, changed_ns: state, name: name.into() }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let permission = self.policy.of(&request)?;
        let mut response = v1::DescribeResponse {
            node: self.volume.node().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: self.volume.kind().to_owned(),
            ..v1::DescribeResponse::default()
        };
        // A front end learns who is there, whether or not a store is served.
        if self.volume.served().is_ok() {
            let call = self.call((permission.frontend(), ""))?;
            let usage = call.on_store(Work::Short, |store, _| store.usage()).await?;
            response.bytes_total = usage.bytes_total;
            response.bytes_free = usage.bytes_free;
            response.store_id = call.served().id().map(|id| id.to_string()).unwrap_or_default();
        }
        Ok(Response::new(response))
    }

    type WatchHoldingsStream = ResponseStream<v1::WatchHoldingsResponse>;

    async fn watch_holdings(
        &self,
        request: Request<v1::WatchHoldingsRequest>,
    ) -> Result<Response<Self::WatchHoldingsStream>, Status> {
        self.policy.of(&request)?;
        let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
        let served = self.served()?;
        let looking = Arc::clone(&served);
        share::blocking(move || looking.verify()).await?;
        let node = self.volume.node().clone();
        let mut current = served.holdings().subscribe();
        let draining = self.draining.clone();
        self.tasks.spawn(async move {
            let mut sent = Holdings::default();
            loop {
                let next = current.borrow_and_update().clone();
                let changes = next.changes_since(&sent);
                sent = Holdings::clone(&next);
                let mut batches = changes.chunks(HOLDINGS_BATCH_CHANGES_MAX).peekable();
                loop {
                    let batch = batches.next().unwrap_or_default();
                    let complete = batches.peek().is_none();
                    let changes = batch.iter().map(wire_change).collect();
                    let message = v1::WatchHoldingsResponse { changes, complete };
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                    if complete {
                        break;
                    }
                }
                tokio::select! {
                    biased;
                    () = served.gone().cancelled() => {
                        // The front end may be gone too.
                        sender.send(Err(unserved(served.why(&node)))).await.ok();
                        return;
                    }
                    changed = current.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = draining.cancelled() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        let asked = self.checked(request)?;
        let call = self.call(asked.whose())?;
        let entry = call.on_store(Work::Short, move |store, _| store.stat(&asked.path)).await?;
        Ok(Response::new(v1::StatResponse { entry: Some(wire_entry(entry)) }))
    }

    type ListStream = ResponseStream<v1::ListResponse>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let asked = self.checked(request)?;
        let call = self.stream(asked.whose(), self.admit()?)?;
        let Checked { request, path, .. } = asked;
        let options = ListOptions {
            sorted: request.sorted,
            wanted: if request.directories_only { Wanted::Directories } else { Wanted::All },
            was: request.was.map(|was| Identity::from_halves(was.device, was.inode)),
        };
        let opening = move |store: &dyn Store, stop: &CancellationToken| store.list(&path, options, stop);
        let mut listing = call.on_store(Work::Long, opening).await?;
        let mut directory = Some(wire_directory(listing.directory()));
        let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
        let sending = async move {
            loop {
                let step = call.run(Work::Short, move |_| {
                    let batch = listing.next_batch(LIST_BATCH_ENTRIES_MAX)?;
                    Ok((listing, batch))
                });
                let step = tokio::select! {
                    step = step => step,
                    // Nobody waits for the rest: dropping the call stops what is under way.
                    () = sender.closed() => return,
                };
                let batch = match step {
                    Ok((rest, batch)) => {
                        listing = rest;
                        batch
                    }
                    Err(status) => {
                        // The receiver may be gone, and then nobody waits for the error.
                        sender.send(Err(status)).await.ok();
                        return;
                    }
                };
                let last = batch.is_empty();
                let entries = batch.into_iter().map(wire_entry).collect();
                if sender
                    .send(Ok(v1::ListResponse { entries, last, directory: directory.take() }))
                    .await
                    .is_err()
                    || last
                {
                    return;
                }
            }
        };
        self.tasks.spawn(sending.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ReadStream = ResponseStream<v1::ReadResponse>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        content::read(self, request).await
    }

    type WriteStream = ResponseStream<v1::WriteResponse>;

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        upload::write(self, request).await
    }

    async fn make_directory(
        &self,
        request: Request<v1::MakeDirectoryRequest>,
    ) -> Result<Response<v1::MakeDirectoryResponse>, Status> {
        let asked = self.checked(request)?;
        let call = self.call(asked.whose())?;
        self.change(&call, asked.path, |store, path| store.make_directory(path)).await?;
        Ok(Response::new(v1::MakeDirectoryResponse {}))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        let asked = self.checked(request)?;
        let call = self.call(asked.whose())?;
        self.change(&call, asked.path, |store, path| store.remove(path)).await?;
        Ok(Response::new(v1::RemoveResponse {}))
    }

    async fn remove_directory(
        &self,
        request: Request<v1::RemoveDirectoryRequest>,
    ) -> Result<Response<v1::RemoveDirectoryResponse>, Status> {
        let asked = self.checked(request)?;
        let call = self.call(asked.whose())?;
        self.change(&call, asked.path, |store, path| store.remove_directory(path)).await?;
        Ok(Response::new(v1::RemoveDirectoryResponse {}))
    }

    async fn rename(
        &self,
        request: Request<v1::RenameRequest>,
    ) -> Result<Response<v1::RenameResponse>, Status> {
        let asked = self.checked(request)?;
        let to = asked.also(&asked.request.to)?;
        let call = self.call(asked.whose())?;
        let holdings = Arc::clone(call.served().holdings());
        let renaming = move |store: &dyn Store, from: &StorePath| {
            store.rename(from, &to)?;
            holdings.touched(&to);
            Ok(())
        };
        self.change(&call, asked.path, renaming).await?;
        Ok(Response::new(v1::RenameResponse {}))
    }

    async fn set_times(
        &self,
        request: Request<v1::SetTimesRequest>,
    ) -> Result<Response<v1::SetTimesResponse>, Status> {
        let asked = self.checked(request)?;
        let call = self.call(asked.whose())?;
        let Checked { request: v1::SetTimesRequest { modified_ns, .. }, path, .. } = asked;
        let kept = call.on_store(Work::Short, move |store, _| store.set_times(&path, modified_ns)).await?;
        Ok(Response::new(v1::SetTimesResponse { modified_ns: Some(kept) }))
    }

    async fn set_mode(
        &self,
        request: Request<v1::SetModeRequest>,
    ) -> Result<Response<v1::SetModeResponse>, Status> {
        let asked = self.checked(request)?;
        let permissions = Permissions::new(asked.request.unix_mode).ok_or_else(|| {
            portolan_proto::failure::status(Reason::BadRequest, "permission bits are 0777 at most")
        })?;
        let call = self.call(asked.whose())?;
        call.on_store(Work::Short, move |store, _| store.set_mode(&asked.path, permissions)).await?;
        Ok(Response::new(v1::SetModeResponse {}))
    }

    async fn digest(
        &self,
        request: Request<v1::DigestRequest>,
    ) -> Result<Response<v1::DigestResponse>, Status> {
        digest::digest(self, request).await
    }

    type ReadRecordStream = ResponseStream<v1::ReadRecordResponse>;

    async fn read_record(
        &self,
        request: Request<v1::ReadRecordRequest>,
    ) -> Result<Response<Self::ReadRecordStream>, Status> {
        self.policy.of(&request)?;
        record::read(self)
    }

    async fn merge_record(
        &self,
        request: Request<v1::MergeRecordRequest>,
    ) -> Result<Response<v1::MergeRecordResponse>, Status> {
        self.policy.of(&request)?;
        record::merge(self, request.into_inner()).await
    }
}

fn wire_change(change: &store::holdings::Change) -> v1::HoldingChange {
    v1::HoldingChange {
        domain: change.domain.clone().into(),
        object: change.object.clone().map(Into::into),
        removed: change.removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use portolan_config::checked::agent::{Links, Modes};
    use portolan_proto::failure::reason_of;

    use super::*;
    use crate::store::tree::TreeStore;

    async fn service(folder: &std::path::Path) -> AgentService {
        let store: Arc<dyn Store> = Arc::new(
            TreeStore::open(folder, Duration::from_secs(3_600), Modes::default(), Links::Show).unwrap(),
        );
        let volume = Arc::new(Volume::over("mail-1".parse().unwrap(), store).await.unwrap());
        let (draining, cut) = (CancellationToken::new(), CancellationToken::new());
        AgentService::new(volume, None, TaskTracker::new(), draining, cut)
    }

    fn caller(backup: bool, restore: bool) -> Option<v1::Caller> {
        let grant = Some(v1::Grant { backup, restore, domain: None, delete: None });
        Some(v1::Caller { admin: "anna".into(), session_id: "s1".into(), grant })
    }

    const FILE: &str = "domains/a/users/file";

    /// A store with one file in it.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("domains/a/users")).unwrap();
        std::fs::write(folder.path().join(FILE), "abc").unwrap();
        folder
    }

    #[tokio::test]
    async fn permissions_are_set_within_the_grant_and_up_to_0777() {
        let folder = folder();
        let service = service(folder.path()).await;
        let set = async |caller, unix_mode| {
            let request = v1::SetModeRequest { caller, path: FILE.as_bytes().into(), unix_mode };
            let done = service.set_mode(Request::new(request)).await;
            done.map(drop).map_err(|status| reason_of(&status).unwrap())
        };
        assert_eq!(set(caller(true, false), 0o600).await, Err(Reason::NotGranted));
        for bits in [0o1000, 0o4755, u32::MAX] {
            assert_eq!(set(caller(true, true), bits).await, Err(Reason::BadRequest), "{bits:o}");
        }
        assert_eq!(set(caller(false, true), 0o604).await, Ok(()));
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o604);
    }

    #[tokio::test]
    async fn a_digest_follows_the_content_of_the_file() {
        let folder = folder();
        let service = service(folder.path()).await;
        let digest = async |algorithm: v1::DigestAlgorithm, offset, length| {
            let (caller, path) = (caller(true, false), FILE.as_bytes().into());
            let algorithm = algorithm.into();
            let request = v1::DigestRequest { caller, path, algorithm, offset, length };
            let done = service.digest(Request::new(request)).await;
            done.map(Response::into_inner).map_err(|status| reason_of(&status).unwrap())
        };
        let crc = v1::DigestAlgorithm::Crc32;
        assert_eq!(digest(v1::DigestAlgorithm::Unspecified, 0, None).await, Err(Reason::BadRequest));
        assert_eq!(digest(crc, 4, None).await, Err(Reason::OffsetBeyondEnd));
        for (content, offset, length, covered) in [
            ("abc", 0, None, "abc"),
            ("abcd", 0, None, "abcd"),
            ("abcd", 1, Some(2), "bc"),
            ("", 0, None, ""),
        ] {
            std::fs::write(folder.path().join(FILE), content).unwrap();
            for _ in 0..2 {
                let answer = digest(crc, offset, length).await.unwrap();
                assert_eq!(answer.digest, crc32fast::hash(covered.as_bytes()).to_be_bytes()[..], "{covered}");
                assert_eq!((answer.length, answer.size), (covered.len() as u64, content.len() as u64));
            }
        }
    }

    #[tokio::test]
    async fn a_digest_of_a_file_at_rest_is_remembered() {
        let folder = folder();
        let service = service(folder.path()).await;
        let request = || {
            let (caller, path) = (caller(true, false), FILE.as_bytes().into());
            let algorithm = v1::DigestAlgorithm::Sha256.into();
            Request::new(v1::DigestRequest { caller, path, algorithm, offset: 0, length: None })
        };
        let store = service.volume.served().unwrap().store().unwrap();
        let version = store.read(&StorePath::new(FILE.as_bytes()).unwrap()).unwrap().version();
        let told = bytes::Bytes::from_static(b"remembered");
        service.digests.remember((version, v1::DigestAlgorithm::Sha256), told.clone());
        let answer = service.digest(request()).await.unwrap().into_inner();
        assert_eq!((answer.digest, answer.length), (told, 3));
        std::fs::write(folder.path().join(FILE), "abcd").unwrap();
        let answer = service.digest(request()).await.unwrap().into_inner();
        assert_eq!((answer.digest.len(), answer.length), (32, 4));
    }
}
