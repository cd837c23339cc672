//! A file on its way to a node.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use portolan_proto::id::{NodeId, TransferId};
use portolan_proto::v1::{WriteBegin, WriteFinish, WriteRequest, WriteResponse, write_request::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use tracing::Instrument as _;

use super::{COMMIT_MAX, Client, Error, Result, STALL_MAX, with_transfer};

/// Messages between the client's data connection and the node's; with chunks of 256 KiB, 2 MiB at most.
const QUEUED_MAX: usize = 8;

/// A file as the node committed it.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub size: u64,
    pub modified_ns: i64,
    /// CRC-32 (IEEE 802.3) of the whole file.
    pub crc32: u32,
}

type Answer = Pin<Box<dyn Future<Output = std::result::Result<Response<WriteResponse>, Status>> + Send>>;

/// An upload. Dropping it before [`Upload::finish`] aborts it: the node keeps what it had.
pub struct Upload {
    node: NodeId,
    sender: mpsc::Sender<WriteRequest>,
    answer: Answer,
    length: u64,
    crc32c: u32,
}

impl Upload {
    pub(super) fn begin(
        node: NodeId,
        mut client: Client,
        begin: WriteBegin,
        transfer: TransferId,
        span: tracing::Span,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        sender.try_send(request(Part::Begin(begin))).expect("an empty queue has room");
        let stream = with_transfer(ReceiverStream::new(receiver), transfer);
        let answer = Box::pin(async move { client.write(stream).await }.instrument(span));
        Self { node, sender, answer, length: 0, crc32c: 0 }
    }

    pub fn node(&self) -> &NodeId {
        &self.node
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
                // The answer is polled along, which also drives the request.
                answer = &mut self.answer => Err(early(&self.node, answer)),
                sent = self.sender.send(request(part)) => Ok(sent.is_ok()),
            }
        });
        match pushed.await {
            Ok(Ok(true)) => Ok(()),
            // The request is over and took the queue with it: the answer says why.
            Ok(Ok(false)) => Err(self.refusal().await),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Slow { node: self.node.clone() }),
        }
    }

    async fn refusal(&mut self) -> Error {
        match tokio::time::timeout(STALL_MAX, &mut self.answer).await {
            Ok(answer) => early(&self.node, answer),
            Err(_) => Error::Slow { node: self.node.clone() },
        }
    }

    /// Says that everything was sent, and waits until the node has it on its disk.
    pub async fn finish(mut self) -> Result<Committed> {
        let finish = WriteFinish { length: self.length, crc32c: self.crc32c };
        self.push(Part::Finish(finish)).await?;
        let Self { node, sender, answer, .. } = self;
        drop(sender);
        match tokio::time::timeout(COMMIT_MAX, answer).await {
            Ok(Ok(response)) => {
                let WriteResponse { size, modified_ns, crc32 } = response.into_inner();
                Ok(Committed { size, modified_ns, crc32 })
            }
            Ok(Err(status)) => Err(Error::from_status(&node, status)),
            Err(_) => Err(Error::Slow { node }),
        }
    }
}

/// An answer before the upload was finished can only be a refusal.
fn early(node: &NodeId, answer: std::result::Result<Response<WriteResponse>, Status>) -> Error {
    match answer {
        Ok(_) => Error::Nonsense { node: node.clone(), what: "an answer before the end of an upload" },
        Err(status) => Error::from_status(node, status),
    }
}

fn request(part: Part) -> WriteRequest {
    WriteRequest { part: Some(part) }
}
