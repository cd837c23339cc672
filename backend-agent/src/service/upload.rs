//! Write: content on its way in. It gets its name on Commit, and on nothing else.
//!
//! A front end sends Commit after it has looked at its client once more, while the content was synced: the end of
//! the content does not tell whether the client meant it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::failure::status;
use portolan_proto::v1::{self, Reason, WriteBegin, WriteResponse, WriteStep, write_request::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::caller::Checked;
use super::share::{Call, Work};
use super::{AgentService, RESPONSES_QUEUED_MAX, ResponseStream};
use crate::store::{self, Begin, Committed, Finish, StorePath, Upload};

/// Content gathered before it goes to the disk: a small mail is written and synced in one visit to a blocking
/// thread.
const GATHERED_BYTES_MAX: usize = 1024 * 1024;

/// How long a front end may send nothing before its upload is given up: longer than its own limit for its
/// client. A front end sends full chunks, so a client below 400 bytes a second is given up here too.
const STALL_MAX: Duration = Duration::from_secs(660);

type Responses = mpsc::Sender<Result<WriteResponse, Status>>;

/// An upload between two visits to the disk.
struct Incoming {
    upload: Box<dyn Upload>,
    /// What the new content begins with has been taken over.
    prepared: bool,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    /// CRC-32 of what was sent alone, where the caller may not know that of the whole file: from two of those, a caller who
    /// may write only could work out what the file begins with.
    sent_crc32: Option<crc32fast::Hasher>,
}

impl Incoming {
    fn flush(&mut self) -> store::Result<()> {
        for chunk in self.gathered.drain(..) {
            self.upload.write(&chunk)?;
            if let Some(crc32) = &mut self.sent_crc32 {
                crc32.update(&chunk);
            }
        }
        self.gathered_bytes = 0;
        Ok(())
    }
}

pub(super) async fn write(
    service: &AgentService,
    request: Request<Streaming<v1::WriteRequest>>,
) -> Result<Response<ResponseStream<WriteResponse>>, Status> {
    let permission = service.policy.of(&request)?;
    let mut messages = request.into_inner();
    let place = service.admit()?;
    let bad = |what: &str| Err(status(Reason::BadRequest, what));
    let Part::Begin(begin) = next(service, &mut messages).await? else {
        return bad("an upload begins with Begin");
    };
    let WriteBegin { offset, modified_ns, exclusive, append, .. } = begin;
    if usize::from(exclusive) + usize::from(append) + usize::from(offset > 0) > 1 {
        return bad("an upload is exclusive, or appends, or begins at an offset");
    }
    let asked = Checked::new(permission, begin)?;
    let call = service.stream(asked.whose(), place)?;
    let may_read = asked.may_read();
    let path = asked.path;
    let begin = Begin { offset, modified_ns, exclusive, append };
    let target = path.clone();
    let upload = call.on_store(Work::Short, move |store, _| store.write(&target, begin)).await?;
    let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
    let goes_on = begin.goes_on();
    let incoming = Incoming {
        upload,
        prepared: !goes_on,
        gathered: Vec::new(),
        gathered_bytes: 0,
        sent_crc32: (goes_on && !may_read).then(crc32fast::Hasher::new),
    };
    let service_here = service.clone();
    let receiving = async move {
        let received = receive(&service_here, &call, path, incoming, &mut messages, &sender).await;
        if let Err(status) = received {
            // The front end may be gone, and then nobody waits for the error.
            sender.send(Err(status)).await.ok();
        }
    };
    service.tasks.spawn(receiving.in_current_span());
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

/// Takes the content, and gives it its name when the front end says so.
async fn receive(
    service: &AgentService,
    call: &Call,
    path: StorePath,
    mut incoming: Incoming,
    messages: &mut Streaming<v1::WriteRequest>,
    responses: &Responses,
) -> Result<(), Status> {
    let bad = |what: &str| Err(status(Reason::BadRequest, what));
    answer(responses, WriteStep::Ready, None).await?;
    while !incoming.prepared {
        let preparing = on_disk(call, Work::Long, incoming, |incoming| {
            incoming.prepared = !incoming.upload.prepare()?;
            Ok(())
        });
        (incoming, ()) = tokio::select! {
            prepared = preparing => prepared?,
            // Nobody waits for it any more.
            () = responses.closed() => return Err(gone()),
        };
    }
    let finish = loop {
        match next(service, messages).await? {
            Part::Begin(_) => return bad("an upload has one Begin"),
            Part::Commit(_) => return bad("Commit comes after Finish"),
            Part::Chunk(chunk) if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX => {
                return bad("a chunk has 1 to 262144 bytes");
            }
            Part::Chunk(chunk) => {
                // The next message waits too, and with it the front end.
                service.rates.write.take(chunk.len()).await;
                incoming.gathered_bytes += chunk.len();
                incoming.gathered.push(chunk);
                if incoming.gathered_bytes >= GATHERED_BYTES_MAX {
                    (incoming, ()) = on_disk(call, Work::Short, incoming, Incoming::flush).await?;
                }
            }
            Part::Finish(finish) => break Finish { length: finish.length, crc32c: finish.crc32c },
        }
    };
    let begun = Instant::now();
    (incoming, ()) = on_disk(call, Work::Short, incoming, move |incoming| {
        incoming.flush()?;
        incoming.upload.sync(finish)
    })
    .await?;
    let synced = begun.elapsed();
    answer(responses, WriteStep::Synced, None).await?;
    let Part::Commit(_) = next(service, messages).await? else {
        return bad("after Finish there is only Commit");
    };
    let begun = Instant::now();
    let Incoming { upload, sent_crc32, .. } = incoming;
    let mut committed = call.run(Work::Short, move |_| upload.commit()).await?;
    if let Some(crc32) = sent_crc32 {
        committed.crc32 = crc32.finalize();
    }
    service.metrics.committed(synced + begun.elapsed(), finish.length);
    call.served().holdings().touched(&path);
    answer(responses, WriteStep::Committed, Some(committed)).await
}

/// Runs a step of an upload where it may block.
async fn on_disk<T: Send + 'static>(
    call: &Call,
    size: Work,
    mut incoming: Incoming,
    step: impl FnOnce(&mut Incoming) -> store::Result<T> + Send + 'static,
) -> Result<(Incoming, T), Status> {
    call.run(size, move |_| {
        let done = step(&mut incoming)?;
        Ok((incoming, done))
    })
    .await
}

fn gone() -> Status {
    Status::cancelled("the upload ended before it was finished; nothing was changed")
}

async fn answer(responses: &Responses, step: WriteStep, committed: Option<Committed>) -> Result<(), Status> {
    let response = match committed {
        None => WriteResponse { step: step.into(), ..WriteResponse::default() },
        Some(Committed { size, modified_ns, crc32 }) => {
            WriteResponse { size, modified_ns, crc32, step: step.into() }
        }
    };
    responses.send(Ok(response)).await.map_err(|_| gone())
}

/// The next part. The end of the stream before Commit is an abort, like its failure and the end of a drain.
async fn next(service: &AgentService, messages: &mut Streaming<v1::WriteRequest>) -> Result<Part, Status> {
    let message = tokio::select! {
        message = tokio::time::timeout(STALL_MAX, messages.message()) => message,
        () = service.cut.cancelled() => {
            return Err(status(Reason::Draining, "the agent is stopping; nothing was changed"));
        }
    };
    let message =
        message.map_err(|_| Status::deadline_exceeded("the upload stalled; nothing was changed"))??;
    let message = message.ok_or_else(gone)?;
    message.part.ok_or_else(|| status(Reason::BadRequest, "a message of an upload is empty"))
}
