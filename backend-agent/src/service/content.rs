//! Read and Digest: content on its way out.
//!
//! Each chunk is one visit to a blocking thread, so a slow front end holds no thread, and the next chunk is
//! read while the one before is on its way.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::failure::status;
use portolan_proto::v1::{self, DigestAlgorithm, Reason, read_response::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::caller::{Need, authorize};
use super::{AgentService, RESPONSES_QUEUED_MAX, ResponseStream, blocking};
use crate::store::{self, Content, Error, StorePath};

/// A range of a file that is being read.
struct Range {
    content: Box<dyn Content>,
    path: StorePath,
    at: u64,
    end: u64,
}

impl Range {
    fn open(
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

    /// The next chunk; `None` at the end of the range. A file that ends before it has shrunk.
    fn next(&mut self) -> store::Result<Option<Bytes>> {
        let rest = self.end - self.at;
        if rest == 0 {
            return Ok(None);
        }
        let wanted = usize::try_from(rest).map_or(CHUNK_BYTES_MAX, |rest| rest.min(CHUNK_BYTES_MAX));
        let mut buffer = BytesMut::zeroed(wanted);
        let count = self.content.read_at(&mut buffer, self.at)?;
        if count == 0 {
            return Err(Error::Shrunk { path: self.path.to_string() });
        }
        buffer.truncate(count);
        self.at += count as u64;
        Ok(Some(buffer.freeze()))
    }

    fn is_done(&self) -> bool {
        self.at == self.end
    }
}

pub(super) async fn read(
    service: &AgentService,
    request: v1::ReadRequest,
) -> Result<Response<ResponseStream<v1::ReadResponse>>, Status> {
    let path = authorize(request.caller.as_ref(), &request.path, Need::Read)?;
    let permit = service.admit()?;
    let (offset, length) = (request.offset, request.length);
    // A small file is opened and read in one visit.
    let (mut range, mut chunk) = service
        .on_store(move |store| {
            let mut range = Range::open(store, path, offset, length)?;
            let first = range.next()?;
            Ok((range, first))
        })
        .await?;
    let header = v1::ReadHeader { size: range.content.size(), modified_ns: range.content.modified_ns() };
    let message = |part| Ok(v1::ReadResponse { part: Some(part) });
    if range.is_done() {
        let parts = [Some(Part::Header(header)), chunk.map(Part::Chunk)];
        let messages = parts.into_iter().flatten().map(message);
        return Ok(Response::new(Box::pin(tokio_stream::iter(messages))));
    }
    let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
    service.tasks.spawn(async move {
        let _permit = permit;
        if sender.send(message(Part::Header(header))).await.is_err() {
            return;
        }
        while let Some(ready) = chunk.take() {
            let next = blocking(move || {
                let next = range.next()?;
                Ok((range, next))
            });
            let (sent, next) = tokio::join!(sender.send(message(Part::Chunk(ready))), next);
            if sent.is_err() {
                return;
            }
            match next {
                Ok((rest, following)) => (range, chunk) = (rest, following),
                Err(status) => {
                    // The receiver may be gone, and then nobody waits for the error.
                    sender.send(Err(status)).await.ok();
                    return;
                }
            }
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

pub(super) async fn digest(
    service: &AgentService,
    request: v1::DigestRequest,
) -> Result<Response<v1::DigestResponse>, Status> {
    let path = authorize(request.caller.as_ref(), &request.path, Need::Read)?;
    let _permit = service.admit()?;
    let hash = match request.algorithm() {
        DigestAlgorithm::Unspecified => {
            return Err(status(Reason::BadRequest, "the digest's algorithm is not set or not known"));
        }
        DigestAlgorithm::Sha256 => hash::<sha2::Sha256>,
        DigestAlgorithm::Sha512 => hash::<sha2::Sha512>,
        DigestAlgorithm::Sha1 => hash::<sha1::Sha1>,
        DigestAlgorithm::Md5 => hash::<md5::Md5>,
        DigestAlgorithm::Crc32 => crc32,
    };
    let (offset, length) = (request.offset, request.length);
    let _turn = service.digests.acquire().await.expect("the semaphore is never closed");
    let store = Arc::clone(&service.store);
    let response = blocking(move || {
        let mut range = Range::open(&*store, path, offset, length)?;
        let digest = hash(&mut range)?;
        Ok(v1::DigestResponse {
            digest,
            length: range.at - offset,
            size: range.content.size(),
            modified_ns: range.content.modified_ns(),
        })
    });
    Ok(Response::new(response.await?))
}

fn hash<D: sha2::Digest>(range: &mut Range) -> store::Result<Bytes> {
    let mut digest = D::new();
    while let Some(chunk) = range.next()? {
        digest.update(&chunk);
    }
    Ok(Bytes::copy_from_slice(&digest.finalize()))
}

fn crc32(range: &mut Range) -> store::Result<Bytes> {
    let mut sum = crc32fast::Hasher::new();
    while let Some(chunk) = range.next()? {
        sum.update(&chunk);
    }
    Ok(Bytes::copy_from_slice(&sum.finalize().to_be_bytes()))
}
