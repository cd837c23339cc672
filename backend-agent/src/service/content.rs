//! Read: content on its way out.
//!
//! Each chunk is one visit to a blocking thread, so a slow front end holds no thread, and the next chunk is
//! read while the one before is on its way.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::v1::{self, read_response::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::caller::Checked;
use super::share::Work;
use super::{AgentService, RESPONSES_QUEUED_MAX, ResponseStream};
use crate::store::{self, Content, Error, StorePath};

/// A range of a file that is being read.
pub(super) struct Range {
    pub(super) content: Box<dyn Content>,
    pub(super) path: StorePath,
    /// The next byte.
    pub(super) at: u64,
    pub(super) end: u64,
}

impl Range {
    pub(super) fn open(
        store: &dyn store::Store,
        path: StorePath,
        offset: u64,
        length: Option<u64>,
    ) -> store::Result<Self> {
        let content = store.read(&path)?;
        let size = content.size();
        if offset > size {
            return Err(Error::OffsetBeyondEnd { path: path.to_string(), size, offset });
        }
        let end = length.map_or(size, |length| size.min(offset.saturating_add(length)));
        Ok(Self { content, path, at: offset, end })
    }

    /// The next chunk, of `bytes_max` at most; `None` at the end of the range. A file that ends before it has shrunk. The
    /// chunk is of the file as it was opened: who writes to it meanwhile, or appends, ends the reading.
    fn next(&mut self, bytes_max: usize) -> store::Result<Option<Bytes>> {
        if self.is_done() {
            return Ok(None);
        }
        let mut buffer = BytesMut::zeroed(self.rest_bytes().min(bytes_max));
        let count = self.fill(&mut buffer)?;
        // Once it has been read: a change that comes after this look is not in it.
        if !self.content.version_now()?.is_content_of(&self.content.version()) {
            return Err(Error::Rewritten { path: self.path.to_string() });
        }
        buffer.truncate(count);
        Ok(Some(buffer.freeze()))
    }

    /// Fills the beginning of `buffer` and moves on; not to be called at the end. A file that ends before the
    /// range has shrunk.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> store::Result<usize> {
        let wanted = buffer.len().min(self.rest_bytes());
        let count = self.content.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 {
            return Err(Error::Shrunk { path: self.path.to_string() });
        }
        self.at += count as u64;
        Ok(count)
    }

    pub(super) fn rest_bytes(&self) -> usize {
        usize::try_from(self.end - self.at).unwrap_or(usize::MAX)
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == self.end
    }

    /// Is it the whole file, and nothing of it read?
    pub(super) fn is_whole(&self) -> bool {
        self.at == 0 && self.end == self.content.size()
    }
}

pub(super) async fn read(
    service: &AgentService,
    request: Request<v1::ReadRequest>,
) -> Result<Response<ResponseStream<v1::ReadResponse>>, Status> {
    let asked = service.checked(request)?;
    let call = service.stream(asked.whose(), service.admit()?)?;
    let Checked { request, path, .. } = asked;
    let (offset, length) = (request.offset, request.length);
    // Under a limit in small pieces, so that many share it evenly.
    let rates = Arc::clone(&service.rates);
    let piece = rates.read.piece_bytes_max().and_then(|piece| usize::try_from(piece).ok());
    let bytes_max = piece.map_or(CHUNK_BYTES_MAX, |piece| piece.min(CHUNK_BYTES_MAX));
    // A small file is opened and read in one visit.
    let (mut range, mut chunk) = call
        .on_store(Work::Short, move |store, _| {
            let mut range = Range::open(store, path, offset, length)?;
            let first = range.next(bytes_max)?;
            Ok((range, first))
        })
        .await?;
    let header = v1::ReadHeader { size: range.content.size(), modified_ns: range.content.modified_ns() };
    let message = |part| Ok(v1::ReadResponse { part: Some(part) });
    let first_bytes = chunk.as_ref().map_or(0, Bytes::len);
    service.metrics.read(first_bytes);
    rates.read.take(first_bytes).await;
    if range.is_done() {
        let parts = [Some(Part::Header(header)), chunk.map(Part::Chunk)];
        let messages = parts.into_iter().flatten().map(message);
        return Ok(Response::new(Box::pin(tokio_stream::iter(messages))));
    }
    let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
    let metrics = Arc::clone(&service.metrics);
    let sending = async move {
        if sender.send(message(Part::Header(header))).await.is_err() {
            return;
        }
        while let Some(ready) = chunk.take() {
            let next = call.run(Work::Short, move |_| {
                let next = range.next(bytes_max)?;
                Ok((range, next))
            });
            let next = async {
                let next = next.await;
                if let Ok((_, Some(chunk))) = &next {
                    rates.read.take(chunk.len()).await;
                }
                next
            };
            let (sent, next) = tokio::join!(sender.send(message(Part::Chunk(ready))), next);
            if sent.is_err() {
                return;
            }
            match next {
                Ok((rest, following)) => {
                    metrics.read(following.as_ref().map_or(0, Bytes::len));
                    (range, chunk) = (rest, following);
                }
                Err(status) => {
                    // The receiver may be gone, and then nobody waits for the error.
                    sender.send(Err(status)).await.ok();
                    return;
                }
            }
        }
    };
    service.tasks.spawn(sending.in_current_span());
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}
