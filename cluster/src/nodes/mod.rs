//! The channel to each node: calls with deadlines, content streams, health.
//!
//! Who calls it: `tree`. `Frontend` runs the watch of each node.
//! What it calls: tonic; `map`, to report what a node announces.
//! What it never does: decide which node to ask. It is the only place that dials one.

mod content;
pub mod discovery;
pub mod error;
mod identify;
pub mod members;
mod upload;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use portolan_config::checked::frontend::Security;
use portolan_config::units::HostPort;
use portolan_proto::id::{NodeId, TransferId};
use portolan_proto::v1::agent_client::AgentClient;
use portolan_proto::v1::{self, Reason};
use portolan_proto::{
    HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES_MAX, HTTP2_STREAM_WINDOW_BYTES, MESSAGE_BYTES_MAX,
    TRANSFER_ID_KEY,
};
use portolan_telemetry::metrics::SECONDS;
use portolan_telemetry::trace::TRACE;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, watch as state_channel};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tracing::{Instrument as _, Span};

pub use content::Content;
pub use error::Error;
pub use identify::identify;
pub use upload::{Committed, Upload};

use crate::map::NodeIndex;

/// A connection that is not made by then fails.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A call with one answer fails after this long.
const CALL_MAX: Duration = Duration::from_secs(20);
/// A node that leaves so many calls in a row without an answer is away, though its connection stands.
const UNANSWERED_MAX: u32 = 3;
/// A stream that brings nothing, or takes nothing, for this long fails.
const STALL_MAX: Duration = Duration::from_secs(60);
/// A commit waits for the disk's fsync, which may take long on a busy one.
const COMMIT_MAX: Duration = Duration::from_secs(300);
/// The digest of a large file.
const DIGEST_MAX: Duration = Duration::from_secs(3_600);
/// A connection on which pings are not answered is given up after interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

pub type Result<T> = std::result::Result<T, Error>;

/// What is known of a node's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not heard since the start.
    Unheard,
    Up,
    /// Away, and why.
    Away(String),
}

/// How an upload relates to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// It is the whole new content.
    Replacing,
    /// It follows the first bytes, this many, of the present content.
    At(u64),
    /// It follows all of the present content.
    End,
    /// Nothing may be there.
    New,
}

/// How a directory is listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListOptions {
    /// In byte order of the names.
    pub sorted: bool,
    pub directories_only: bool,
    /// The directory that was at the path, and may have another name by now.
    pub was: Option<v1::DirectoryId>,
}

/// All nodes since the start. A place, once given, stays its node's; a node that is taken out keeps it, and a node that comes
/// back under its name gets another one.
#[derive(Debug, Default)]
pub struct Nodes {
    all: ArcSwap<Vec<Arc<NodeClient>>>,
}

/// One node: its name, its channel and its health.
#[derive(Debug)]
pub struct NodeClient {
    name: NodeId,
    index: NodeIndex,
    channel: ArcSwapOption<NodeChannel>,
    /// Wakes the watch when the channel is another one.
    replaced: Notify,
    health: state_channel::Sender<Health>,
    /// Calls in a row that were not answered in time.
    unanswered: AtomicU32,
    /// Wakes the watch when these are too many.
    suspected: Notify,
    /// Ends the watch: the node is taken out.
    out: CancellationToken,
    /// It was told that standbys are read in its place.
    stood_in: AtomicBool,
    calls: Arc<Calls>,
    /// The record that the agent keeps was read, or cannot be.
    record_read: state_channel::Sender<bool>,
}

/// How the calls to a node fare.
#[derive(Debug)]
pub struct Calls {
    pub seconds: Histogram,
    /// Not answered, or not in time.
    pub unanswered: AtomicU64,
    /// Answered by a fault of the node: disk, room, damage.
    pub failed: AtomicU64,
}

impl Calls {
    fn new() -> Self {
        let (unanswered, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { seconds: Histogram::new(SECONDS), unanswered, failed }
    }

    /// Counts a call that has ended with an error, also one after its first answer.
    fn count(&self, error: &Error) {
        match error {
            Error::Away { .. } | Error::Slow { .. } => &self.unanswered,
            Error::Nonsense { .. } => &self.failed,
            Error::Refused { reason: Reason::DiskFault | Reason::Damaged | Reason::NoSpace, .. } => {
                &self.failed
            }
            Error::Refused { .. } => return,
        }
        .fetch_add(1, Ordering::Relaxed);
    }
}

/// A node as a call sees it that goes on after its first answer: its errors are made here, and counted.
#[derive(Debug, Clone)]
struct Peer {
    node: NodeId,
    calls: Arc<Calls>,
}

impl Peer {
    fn failed(&self, status: Status) -> Error {
        self.counted(Error::from_status(&self.node, status))
    }

    fn slow(&self) -> Error {
        self.counted(Error::Slow { node: self.node.clone() })
    }

    fn nonsense(&self, what: &'static str) -> Error {
        self.counted(Error::Nonsense { node: self.node.clone(), what })
    }

    fn counted(&self, error: Error) -> Error {
        self.calls.count(&error);
        error
    }
}

/// The client of an agent, which tells it the trace that a call belongs to.
pub(crate) type Client = AgentClient<InterceptedService<Channel, Traced>>;
pub(crate) type Traced = fn(Request<()>) -> std::result::Result<Request<()>, Status>;

fn traced(mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
    portolan_telemetry::trace::inject(request.metadata_mut());
    Ok(request)
}

#[derive(Debug)]
struct NodeChannel {
    address: HostPort,
    client: Client,
    health: HealthClient<Channel>,
}

/// A channel that nobody uses yet.
#[derive(Debug)]
pub struct Prepared(NodeChannel);

/// The channel could not be set up: the certificates do not fit TLS.
#[derive(Debug, thiserror::Error)]
#[error("the connection to node {node} cannot be set up")]
pub struct SetupError {
    node: NodeId,
    source: tonic::transport::Error,
}

impl Nodes {
    pub fn get(&self, index: NodeIndex) -> Arc<NodeClient> {
        Arc::clone(&self.all.load()[index.0])
    }

    /// In the order of their places, also those that are taken out.
    pub fn all(&self) -> Arc<Vec<Arc<NodeClient>>> {
        self.all.load_full()
    }

    /// Those that are not taken out.
    pub fn list(&self) -> Vec<Arc<NodeClient>> {
        self.all.load().iter().filter(|node| !node.is_out()).cloned().collect()
    }

    pub fn find(&self, name: &NodeId) -> Option<Arc<NodeClient>> {
        self.list().into_iter().find(|node| node.name == *name)
    }

    /// Adds a node that nobody dials yet. One caller at a time.
    pub fn add(&self, name: NodeId) -> Arc<NodeClient> {
        let mut all = Vec::clone(&self.all.load());
        let node = Arc::new(NodeClient::new(NodeIndex(all.len()), name));
        all.push(Arc::clone(&node));
        self.all.store(Arc::new(all));
        node
    }
}

impl NodeClient {
    fn new(index: NodeIndex, name: NodeId) -> Self {
        Self {
            name,
            index,
            channel: ArcSwapOption::empty(),
            replaced: Notify::new(),
            health: state_channel::Sender::new(Health::Unheard),
            unanswered: AtomicU32::new(0),
            suspected: Notify::new(),
            out: CancellationToken::new(),
            stood_in: AtomicBool::new(false),
            calls: Arc::new(Calls::new()),
            record_read: state_channel::Sender::new(false),
        }
    }

    pub fn name(&self) -> &NodeId {
        &self.name
    }

    pub fn index(&self) -> NodeIndex {
        self.index
    }

    /// `None`: discovery has not found it.
    pub fn address(&self) -> Option<HostPort> {
        self.channel.load().as_ref().map(|channel| channel.address.clone())
    }

    /// Takes another channel. Calls under way go on over the one that they have.
    pub fn dial(&self, prepared: Prepared) {
        let old = self.address();
        if old.is_some_and(|old| old != prepared.0.address) {
            // Who is there has to say first that it is this node.
            self.health.send_replace(Health::Away("it is dialled at another address".to_owned()));
        }
        self.channel.store(Some(Arc::new(prepared.0)));
        self.replaced.notify_one();
    }

    /// Takes the node out for good: it is not watched any more.
    pub fn take_out(&self) {
        self.out.cancel();
        // What is under way has its own hold of the channel.
        self.channel.store(None);
    }

    pub(crate) async fn until_out(&self) {
        self.out.cancelled().await;
    }

    pub fn is_out(&self) -> bool {
        self.out.is_cancelled()
    }

    /// Nothing can be asked of it now.
    pub fn is_away(&self) -> bool {
        self.ready().is_err()
    }

    /// Notes that a standby has answered in its place; true the first time in each absence.
    pub fn note_stand_in(&self) -> bool {
        !self.stood_in.swap(true, Ordering::Relaxed)
    }

    /// The node's health, and its changes.
    pub fn health(&self) -> state_channel::Receiver<Health> {
        self.health.subscribe()
    }

    /// Fails at once while the node is known to be away, so that nobody waits for a connection that the
    /// watch is trying to make anyway.
    fn ready(&self) -> Result<Client> {
        let away = matches!(&*self.health.borrow(), Health::Away(_));
        match &*self.channel.load() {
            Some(channel) if !away => Ok(channel.client.clone()),
            _ => Err(Error::Away { node: self.name.clone(), source: None }),
        }
    }

    /// For the record, whose calls are not of a session.
    ///
    /// # Errors
    /// The node is away.
    pub(crate) fn client(&self) -> Result<Client> {
        self.ready()
    }

    pub(crate) fn set_record_read(&self) {
        self.record_read.send_replace(true);
    }

    /// Waits until the record that the agent keeps was read, or cannot be.
    pub async fn until_record_read(&self) {
        // The sender lives as long as the node.
        self.record_read.subscribe().wait_for(|read| *read).await.ok();
    }

    /// The span of a call, which the context that goes with it is of.
    fn span(&self, method: &'static str) -> Span {
        tracing::info_span!(
            target: TRACE,
            "call",
            otel.name = method,
            otel.kind = "client",
            rpc.system = "grpc",
            node = %self.name,
        )
    }

    /// How its calls fare.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    fn peer(&self) -> Peer {
        Peer { node: self.name.clone(), calls: Arc::clone(&self.calls) }
    }

    /// One call with one answer.
    async fn call<T>(
        &self,
        span: &Span,
        call: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let answered = match tokio::time::timeout(CALL_MAX, call.instrument(span.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.peer().failed(status)),
            Err(_) => Err(self.peer().slow()),
        };
        self.calls.seconds.observe(begun.elapsed().as_secs_f64());
        match answered {
            Err(Error::Slow { .. }) => {
                if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED_MAX {
                    self.suspected.notify_one();
                }
            }
            _ => self.unanswered.store(0, Ordering::Relaxed),
        }
        answered
    }

    pub async fn stat(&self, caller: v1::Caller, path: &[u8]) -> Result<v1::Entry> {
        let mut client = self.ready()?;
        let request = v1::StatRequest { caller: Some(caller), path: path.to_vec().into() };
        let response = self.call(&self.span("Stat"), client.stat(request)).await?;
        response.entry.ok_or_else(|| self.peer().nonsense("a stat without an entry"))
    }

    /// The batches of a directory.
    pub async fn list(&self, caller: v1::Caller, path: &[u8], options: ListOptions) -> Result<Batches> {
        let mut client = self.ready()?;
        let path = path.to_vec().into();
        let ListOptions { sorted, directories_only, was } = options;
        let request = v1::ListRequest { caller: Some(caller), path, sorted, directories_only, was };
        let mut stream = self.call(&self.span("List"), client.list(request)).await?;
        let peer = self.peer();
        let mut first = next_message(&peer, &mut stream).await?;
        let directory = first.as_mut().and_then(|message| message.directory.take());
        Ok(Batches { peer, stream, first, directory, whole: false })
    }

    /// The content of a file from `offset` on: `length` bytes, or all.
    pub async fn read(
        &self,
        caller: v1::Caller,
        path: &[u8],
        offset: u64,
        length: Option<u64>,
        transfer: TransferId,
    ) -> Result<Content> {
        let mut client = self.ready()?;
        let request = v1::ReadRequest { caller: Some(caller), path: path.to_vec().into(), offset, length };
        let span = self.span("Read");
        let stream = self.call(&span, client.read(with_transfer(request, transfer))).await?;
        Content::begin(self.peer(), stream, offset, length, span).await
    }

    /// Begins an upload, which the node has not refused then.
    pub async fn write(
        &self,
        caller: v1::Caller,
        path: &[u8],
        begins: Begins,
        transfer: TransferId,
    ) -> Result<Upload> {
        let client = self.ready()?;
        let (offset, exclusive, append) = match begins {
            Begins::Replacing => (0, false, false),
            Begins::At(offset) => (offset, false, false),
            Begins::End => (0, false, true),
            Begins::New => (0, true, false),
        };
        let path = path.to_vec().into();
        let begin =
            v1::WriteBegin { caller: Some(caller), path, offset, modified_ns: None, exclusive, append };
        Upload::begin(self.peer(), client, begin, transfer, self.span("Write")).await
    }

    pub async fn make_directory(&self, caller: v1::Caller, path: &[u8]) -> Result<()> {
        let mut client = self.ready()?;
        let request = v1::MakeDirectoryRequest { caller: Some(caller), path: path.to_vec().into() };
        self.call(&self.span("MakeDirectory"), client.make_directory(request)).await.map(drop)
    }

    pub async fn remove(&self, caller: v1::Caller, path: &[u8]) -> Result<()> {
        let mut client = self.ready()?;
        let request = v1::RemoveRequest { caller: Some(caller), path: path.to_vec().into() };
        self.call(&self.span("Remove"), client.remove(request)).await.map(drop)
    }

    pub async fn remove_directory(&self, caller: v1::Caller, path: &[u8]) -> Result<()> {
        let mut client = self.ready()?;
        let request = v1::RemoveDirectoryRequest { caller: Some(caller), path: path.to_vec().into() };
        self.call(&self.span("RemoveDirectory"), client.remove_directory(request)).await.map(drop)
    }

    pub async fn rename(&self, caller: v1::Caller, from: &[u8], to: &[u8]) -> Result<()> {
        let mut client = self.ready()?;
        let request =
            v1::RenameRequest { caller: Some(caller), from: from.to_vec().into(), to: to.to_vec().into() };
        self.call(&self.span("Rename"), client.rename(request)).await.map(drop)
    }

    /// The time that the node keeps.
    pub async fn set_times(&self, caller: v1::Caller, path: &[u8], modified_ns: i64) -> Result<i64> {
        let mut client = self.ready()?;
        let request = v1::SetTimesRequest { caller: Some(caller), path: path.to_vec().into(), modified_ns };
        let kept = self.call(&self.span("SetTimes"), client.set_times(request)).await?.modified_ns;
        Ok(kept.unwrap_or(modified_ns))
    }

    pub async fn set_mode(&self, caller: v1::Caller, path: &[u8], unix_mode: u32) -> Result<()> {
        let mut client = self.ready()?;
        let request = v1::SetModeRequest { caller: Some(caller), path: path.to_vec().into(), unix_mode };
        self.call(&self.span("SetMode"), client.set_mode(request)).await.map(drop)
    }

    /// A digest of `length` bytes of a file from `offset` on, or of all. It takes as long as reading them;
    /// the connection's own pings tell whether the node is still there.
    pub async fn digest(
        &self,
        caller: v1::Caller,
        path: &[u8],
        algorithm: v1::DigestAlgorithm,
        offset: u64,
        length: Option<u64>,
    ) -> Result<v1::DigestResponse> {
        let mut client = self.ready()?;
        let (caller, path) = (Some(caller), path.to_vec().into());
        let request = v1::DigestRequest { caller, path, algorithm: algorithm.into(), offset, length };
        match tokio::time::timeout(DIGEST_MAX, client.digest(request).instrument(self.span("Digest"))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.peer().failed(status)),
            Err(_) => Err(self.peer().slow()),
        }
    }

    /// Bytes that may still be written.
    pub async fn bytes_free(&self) -> Result<u64> {
        let mut client = self.ready()?;
        Ok(self.call(&self.span("Describe"), client.describe(v1::DescribeRequest {})).await?.bytes_free)
    }
}

/// Makes a channel to a node, which connects when it is first used.
///
/// # Errors
/// The certificates do not fit TLS.
pub fn prepare(
    name: &NodeId,
    address: &HostPort,
    security: &Security,
) -> std::result::Result<Prepared, SetupError> {
    let channel = connect(name, address, security)?;
    let client = AgentClient::with_interceptor(channel.clone(), traced as Traced)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(Prepared(NodeChannel { address: address.clone(), client, health: HealthClient::new(channel) }))
}

fn connect(
    name: &NodeId,
    address: &HostPort,
    security: &Security,
) -> std::result::Result<Channel, SetupError> {
    let setup = |source| SetupError { node: name.clone(), source };
    let scheme = match security {
        Security::Mutual { .. } => "https",
        Security::Plain => "http",
    };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(setup)?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .max_frame_size(HTTP2_FRAME_BYTES_MAX)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        // Each download that a client aborts resets a stream. The library takes more than 1,024 of them, over the
        // life of a connection, for an attack by the node, and closes the connection with all transfers on it.
        .http2_max_local_error_reset_streams(None);
    if let Security::Mutual { identity, ca } = security {
        // The certificate must carry the node's name, whatever address it is reached at.
        let tls = ClientTlsConfig::new()
            .domain_name(name.as_str())
            .ca_certificate(Certificate::from_pem(&ca.pem))
            .identity(Identity::from_pem(&identity.chain_pem, identity.key_pem.expose()));
        endpoint = endpoint.tls_config(tls).map_err(setup)?;
    }
    Ok(endpoint.connect_lazy())
}

fn with_transfer<T>(message: T, transfer: TransferId) -> Request<T> {
    let mut request = Request::new(message);
    let id = transfer.to_string().parse().expect("an id is ASCII");
    request.metadata_mut().insert(TRANSFER_ID_KEY, id);
    request
}

/// The batches of a listing.
#[derive(Debug)]
pub struct Batches {
    peer: Peer,
    stream: Streaming<v1::ListResponse>,
    /// The first message, until it is taken.
    first: Option<v1::ListResponse>,
    directory: Option<v1::ListedDirectory>,
    /// The agent has said that nothing more comes.
    whole: bool,
}

impl Batches {
    /// The directory that is listed; `None`: the agent does not say.
    pub fn directory(&self) -> Option<&v1::ListedDirectory> {
        self.directory.as_ref()
    }

    /// The next entries; `None` when the listing is whole, which only the agent's own word tells.
    pub async fn next(&mut self) -> Result<Option<Vec<v1::Entry>>> {
        while !self.whole {
            let next = match self.first.take() {
                Some(first) => Some(first),
                None => next_message(&self.peer, &mut self.stream).await?,
            };
            let Some(batch) = next else {
                return Err(self.peer.nonsense("a listing that ends without its last message"));
            };
            self.whole = batch.last;
            if !batch.entries.is_empty() {
                return Ok(Some(batch.entries));
            }
        }
        Ok(None)
    }
}

/// The next message of a stream, within the stall limit.
async fn next_message<T>(peer: &Peer, stream: &mut Streaming<T>) -> Result<Option<T>> {
    match tokio::time::timeout(STALL_MAX, stream.message()).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(status)) => Err(peer.failed(status)),
        Err(_) => Err(peer.slow()),
    }
}
