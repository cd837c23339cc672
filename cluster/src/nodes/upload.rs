//! A file on its way to a node, in the steps of `agent.proto`: begun, complete and synced, committed.

use bytes::Bytes;
use portolan_proto::id::{NodeId, TransferId};
use portolan_proto::v1::{
    WriteBegin, WriteCommit, WriteFinish, WriteRequest, WriteResponse, WriteStep, write_request::Part,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::{CALL_MAX, COMMIT_MAX, Client, Error, Peer, Result, STALL_MAX, with_transfer};

/// Messages between the client's data connection and the node's; with chunks of 256 KiB, 2 MiB at most.
const QUEUED_MAX: usize = 8;

/// A file as the node committed it.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub size: u64,
    pub modified_ns: i64,
    /// CRC-32 (IEEE 802.3) of the whole file; where the caller may not read and the upload goes on from what was there, of
    /// the whole file or of what was sent, as the agent does it: not to be shown.
    pub crc32: u32,
}

/// An upload. Dropping it before [`Upload::commit`] aborts it: the node keeps what it had.
#[derive(Debug)]
pub struct Upload {
    peer: Peer,
    requests: mpsc::Sender<WriteRequest>,
    responses: Streaming<WriteResponse>,
    length: u64,
    crc32c: u32,
    /// Of the call, which lasts as long.
    _span: tracing::Span,
}

impl Upload {
    /// Asks the node whether the path and what is there allow it.
    pub(super) async fn begin(
        peer: Peer,
        mut client: Client,
        begin: WriteBegin,
        transfer: TransferId,
        span: tracing::Span,
    ) -> Result<Self> {
        let (requests, queue) = mpsc::channel(QUEUED_MAX);
        requests.try_send(request(Part::Begin(begin))).expect("an empty queue has room");
        let call = client.write(with_transfer(ReceiverStream::new(queue), transfer));
        let responses = match tokio::time::timeout(CALL_MAX, call.instrument(span.clone())).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(peer.failed(status)),
            Err(_) => return Err(peer.slow()),
        };
        let mut upload = Self { peer, requests, responses, length: 0, crc32c: 0, _span: span };
        match tokio::time::timeout(CALL_MAX, upload.step(WriteStep::Ready)).await {
            Ok(ready) => ready.map(|_| upload),
            Err(_) => Err(upload.peer.slow()),
        }
    }

    pub fn node(&self) -> &NodeId {
        &self.peer.node
    }

    /// Sends one chunk, of at most `CHUNK_BYTES_MAX` bytes. Fails as soon as the node has refused.
    pub async fn send(&mut self, chunk: Bytes) -> Result<()> {
        self.length += chunk.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &chunk);
        self.push(Part::Chunk(chunk)).await
    }

    async fn push(&mut self, part: Part) -> Result<()> {
        let pushed = tokio::time::timeout(STALL_MAX, async {
            tokio::select! {
                message = self.responses.message() => Err(early(&self.peer, message)),
                sent = self.requests.send(request(part)) => Ok(sent.is_ok()),
            }
        });
        match pushed.await {
            Ok(Ok(true)) => Ok(()),
            // The request is over and took the queue with it: the answer says why.
            Ok(Ok(false)) => match tokio::time::timeout(STALL_MAX, self.responses.message()).await {
                Ok(message) => Err(early(&self.peer, message)),
                Err(_) => Err(self.peer.slow()),
            },
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.peer.slow()),
        }
    }

    /// Says that everything was sent, and waits until the node has the content on its disk. The file is not changed
    /// before [`Upload::commit`].
    pub async fn finish(&mut self) -> Result<()> {
        let finish = WriteFinish { length: self.length, crc32c: self.crc32c };
        self.push(Part::Finish(finish)).await?;
        self.confirmed(WriteStep::Synced).await.map(drop)
    }

    /// Has the node put the content in its place, and waits until that is on its disk.
    pub async fn commit(mut self) -> Result<Committed> {
        self.push(Part::Commit(WriteCommit {})).await?;
        let WriteResponse { size, modified_ns, crc32, .. } = self.confirmed(WriteStep::Committed).await?;
        Ok(Committed { size, modified_ns, crc32 })
    }

    async fn confirmed(&mut self, step: WriteStep) -> Result<WriteResponse> {
        match tokio::time::timeout(COMMIT_MAX, self.step(step)).await {
            Ok(response) => response,
            Err(_) => Err(self.peer.slow()),
        }
    }

    /// The answer to a step.
    async fn step(&mut self, step: WriteStep) -> Result<WriteResponse> {
        match self.responses.message().await {
            Ok(Some(response)) if response.step() == step => Ok(response),
            Ok(_) => Err(self.peer.nonsense("an answer to another step of an upload")),
            Err(status) => Err(self.peer.failed(status)),
        }
    }
}

/// An answer that no step has asked for can only be a refusal.
fn early(peer: &Peer, message: std::result::Result<Option<WriteResponse>, Status>) -> Error {
    match message {
        Ok(_) => peer.nonsense("an answer before the end of an upload"),
        Err(status) => peer.failed(status),
    }
}

fn request(part: Part) -> WriteRequest {
    WriteRequest { part: Some(part) }
}
