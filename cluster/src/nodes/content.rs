//! A file on its way from a node.

use bytes::Bytes;
use portolan_proto::v1::ReadResponse;
use portolan_proto::v1::read_response::Part;
use tonic::Streaming;

use super::{Peer, Result, next_message};

/// The content of a file. Its end is only told when every byte that the header promised has come.
#[derive(Debug)]
pub struct Content {
    peer: Peer,
    stream: Streaming<ReadResponse>,
    size: u64,
    modified_ns: i64,
    /// Bytes still to come.
    missing: u64,
    /// Of the call, which lasts as long.
    _span: tracing::Span,
}

impl Content {
    pub(super) async fn begin(
        peer: Peer,
        mut stream: Streaming<ReadResponse>,
        offset: u64,
        length: Option<u64>,
        span: tracing::Span,
    ) -> Result<Self> {
        let first = next_message(&peer, &mut stream).await?.and_then(|message| message.part);
        let Some(Part::Header(header)) = first else {
            return Err(peer.nonsense("a file without a header"));
        };
        let rest = header.size.saturating_sub(offset);
        let missing = length.map_or(rest, |length| rest.min(length));
        Ok(Self { peer, stream, size: header.size, modified_ns: header.modified_ns, missing, _span: span })
    }

    /// Size of the whole file when the node opened it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes still to come.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Nanoseconds since 1970, when the node opened it.
    pub fn modified_ns(&self) -> i64 {
        self.modified_ns
    }

    /// The next bytes; `None` when all have come. A view of the receive buffer, not a copy.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let message = next_message(&self.peer, &mut self.stream).await?;
        let nonsense = |what| Err(self.peer.nonsense(what));
        let chunk = match message.map(|message| message.part) {
            None if self.missing == 0 => return Ok(None),
            None => return nonsense("a file shorter than its header says"),
            Some(Some(Part::Chunk(chunk))) => chunk,
            Some(_) => return nonsense("a second header"),
        };
        match self.missing.checked_sub(chunk.len() as u64) {
            Some(missing) => self.missing = missing,
            None => return nonsense("a file longer than its header says"),
        }
        Ok(Some(chunk))
    }
}
