//! ReadRecord and MergeRecord: what front ends keep with this agent.

use std::sync::Arc;

use portolan_proto::RECORD_BATCH_ENTRIES_MAX;
use portolan_proto::failure::status;
use portolan_proto::v1::{self, Reason};
use portolan_record::{Entry, Key};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{AgentService, RESPONSES_QUEUED_MAX, ResponseStream};

/// All of it, then what becomes newer.
pub(super) fn read(
    service: &AgentService,
) -> Result<Response<ResponseStream<v1::ReadRecordResponse>>, Status> {
    let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
    let served = service.served()?;
    let (record, gone, draining) =
        (Arc::clone(served.record()), served.gone().clone(), service.draining.clone());
    // Before the reading, so that nothing falls between the two.
    let mut changes = record.subscribe();
    service.tasks.spawn(async move {
        let mut last: Option<Key> = None;
        loop {
            // A merge holds the record until it is on the disk, which may be slow.
            let (reading, after) = (Arc::clone(&record), last.take());
            let reading = tokio::task::spawn_blocking(move || reading.page(after.as_deref()));
            let Ok(page) = reading.await else { return };
            let complete = page.is_empty();
            last = page.last().map(|(key, _)| key.clone());
            if sender.send(Ok(message(&page, complete))).await.is_err() {
                return;
            }
            if complete {
                break;
            }
        }
        loop {
            let changed = tokio::select! {
                changed = changes.recv() => changed,
                () = sender.closed() => return,
                () = draining.cancelled() => return,
                // Another store may be served then, with another record.
                () = gone.cancelled() => return,
            };
            match changed {
                Ok(changed) => {
                    if sender.send(Ok(message(&changed, true))).await.is_err() {
                        return;
                    }
                }
                // The front end reads all of it again.
                Err(RecvError::Lagged(_) | RecvError::Closed) => return,
            }
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

fn message(entries: &[(Key, Entry)], complete: bool) -> v1::ReadRecordResponse {
    let entries = entries.iter().map(|(key, entry)| v1::RecordEntry {
        key: key.to_vec().into(),
        at_ns: entry.at_ns,
        removed: entry.removed,
        value: entry.value.to_vec().into(),
    });
    v1::ReadRecordResponse { entries: entries.collect(), complete }
}

pub(super) async fn merge(
    service: &AgentService,
    request: v1::MergeRecordRequest,
) -> Result<Response<v1::MergeRecordResponse>, Status> {
    let bad = |what: &str| Err(status(Reason::BadRequest, what));
    if request.entries.len() > RECORD_BATCH_ENTRIES_MAX {
        return bad("more than 1,000 entries of the record at once");
    }
    let entries = request.entries.into_iter().map(|entry| {
        let v1::RecordEntry { key, at_ns, removed, value } = entry;
        (Key::from(&key[..]), Entry { at_ns, removed, value: value[..].into() })
    });
    let entries: Vec<_> = entries.collect();
    if !entries.iter().all(|(key, entry)| portolan_record::is_sound(key, entry)) {
        return bad("an entry of the record without a key, or one that is too long");
    }
    let served = service.served()?;
    let merging = tokio::task::spawn_blocking(move || {
        served.check().map_err(super::status::of)?;
        let merged = served.record().merge(entries);
        merged.map_err(|full| status(Reason::NoSpace, full.to_string()))
    });
    match merging.await {
        Ok(merged) => merged.map(|()| Response::new(v1::MergeRecordResponse {})),
        Err(stopped) => Err(Status::internal(stopped.to_string())),
    }
}
