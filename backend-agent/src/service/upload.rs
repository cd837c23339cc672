//! Write: content on its way in. Committed on Finish, and on nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::failure::status;
use portolan_proto::v1::{self, Reason, WriteBegin, write_request::Part};
use tonic::{Request, Response, Status, Streaming};

use super::caller::{Need, authorize};
use super::{AgentService, blocking};
use crate::store::{self, Begin, Committed, Finish, Store, StorePath, Upload};

/// Content gathered before it goes to the disk: a small mail is begun, written and committed in one visit to
/// a blocking thread.
const GATHERED_BYTES_MAX: usize = 1024 * 1024;

/// How long a front end may send nothing before its upload is given up: longer than its own limit for its
/// client. A front end sends full chunks, so a client below 400 bytes a second is given up here too.
const STALL_MAX: Duration = Duration::from_secs(660);

/// An upload between two visits to the disk.
struct Incoming {
    path: StorePath,
    begin: Begin,
    upload: Option<Box<dyn Upload>>,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
}

impl Incoming {
    /// Writes what was gathered, beginning the upload if that has not been done.
    fn flush(&mut self, store: &dyn Store) -> store::Result<&mut Box<dyn Upload>> {
        let upload = match self.upload.take() {
            Some(upload) => upload,
            None => store.write(&self.path, self.begin)?,
        };
        let upload = self.upload.insert(upload);
        for chunk in self.gathered.drain(..) {
            upload.write(&chunk)?;
        }
        self.gathered_bytes = 0;
        Ok(upload)
    }

    fn commit(mut self, store: &dyn Store, finish: Finish) -> store::Result<Committed> {
        self.flush(store)?;
        self.upload.expect("flush begins the upload").commit(finish)
    }
}

pub(super) async fn write(
    service: &AgentService,
    request: Request<Streaming<v1::WriteRequest>>,
) -> Result<Response<v1::WriteResponse>, Status> {
    let permission = service.policy.of(&request)?;
    let mut messages = request.into_inner();
    let _permit = service.admit()?;
    let bad = |what: &str| Err(status(Reason::BadRequest, what));
    let Part::Begin(begin) = next(service, &mut messages).await? else {
        return bad("an upload begins with Begin");
    };
    let WriteBegin { caller, path, offset, modified_ns, exclusive, append } = begin;
    if usize::from(exclusive) + usize::from(append) + usize::from(offset > 0) > 1 {
        return bad("an upload is exclusive, or appends, or begins at an offset");
    }
    let path = authorize(&permission, caller.as_ref(), &path, Need::Change)?;
    let touched = path.clone();
    let begin = Begin { offset, modified_ns, exclusive, append };
    let mut incoming = Incoming { path, begin, upload: None, gathered: Vec::new(), gathered_bytes: 0 };
    if exclusive || begin.goes_on() {
        // Whoever asks for a free name wants to know before the content is sent; and what the content goes on
        // from is what is there now.
        incoming = flushed(service, incoming).await?;
    }
    let finish = loop {
        match next(service, &mut messages).await? {
            Part::Begin(_) => return bad("an upload has one Begin"),
            Part::Chunk(chunk) if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX => {
                return bad("a chunk has 1 to 262144 bytes");
            }
            Part::Chunk(chunk) => {
                incoming.gathered_bytes += chunk.len();
                incoming.gathered.push(chunk);
                if incoming.gathered_bytes >= GATHERED_BYTES_MAX {
                    incoming = flushed(service, incoming).await?;
                }
            }
            Part::Finish(finish) => break Finish { length: finish.length, crc32c: finish.crc32c },
        }
    };
    let begun = Instant::now();
    let committed = service.on_store(move |store| incoming.commit(store, finish)).await?;
    service.metrics.committed(begun.elapsed(), finish.length);
    service.holdings.touched(&touched);
    let Committed { size, modified_ns, crc32 } = committed;
    Ok(Response::new(v1::WriteResponse { size, modified_ns, crc32 }))
}

async fn flushed(service: &AgentService, mut incoming: Incoming) -> Result<Incoming, Status> {
    let store = Arc::clone(&service.store);
    blocking(move || {
        incoming.flush(&*store)?;
        Ok(incoming)
    })
    .await
}

/// The next part. The end of the stream before Finish is an abort, like its failure and the end of a drain.
async fn next(service: &AgentService, messages: &mut Streaming<v1::WriteRequest>) -> Result<Part, Status> {
    let message = tokio::select! {
        message = tokio::time::timeout(STALL_MAX, messages.message()) => message,
        () = service.cut.cancelled() => {
            return Err(status(Reason::Draining, "the agent is stopping; nothing was changed"));
        }
    };
    let message =
        message.map_err(|_| Status::deadline_exceeded("the upload stalled; nothing was changed"))??;
    let message = message
        .ok_or_else(|| Status::cancelled("the upload ended before it was finished; nothing was changed"))?;
    message.part.ok_or_else(|| status(Reason::BadRequest, "a message of an upload is empty"))
}
