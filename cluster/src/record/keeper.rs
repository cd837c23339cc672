//! Keeps the record: in a file of this front end, and with every agent, from which it also comes.
//!
//! Who calls it: `nodes::members`, once for the file and once for each node.
//! What it calls: portolan-record for the file, the node's channel, `map::Router`.
//! What it never does: make a session wait. An agent that is slow or away gets the record later.

use std::fs::DirBuilder;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portolan_proto::{RECORD_BATCH_BYTES_MAX, RECORD_BATCH_ENTRIES_MAX, v1};
use portolan_record::{Entries, Entry, Key, Log, Opened};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Code, Status};

use crate::map::{Changes, Router};
use crate::nodes::{Health, NodeClient};

/// How often time passes over the record.
const SETTLE_EVERY: Duration = Duration::from_secs(10);
/// An agent that fails is asked again after this long.
const RETRY: Duration = Duration::from_secs(5);
/// A call, or a message of the first set, that is not there by then fails.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Why the record is not kept with an agent.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the agent does not answer")]
    Call(#[from] Status),
    #[error("the agent did not answer in time")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("the agent ended the record")]
    Ended,
    #[error("changes came faster than the agent took them")]
    Behind,
    #[error("the node is away")]
    Away(#[from] crate::nodes::Error),
}

/// Opens the file below the front end's own folder and takes in what it holds. `None`: there is no folder, or it cannot be
/// used, and the record is in memory alone. Blocks.
pub fn open(folder: Option<&Path>, router: &Router) -> Option<Log> {
    let folder = folder?;
    let opened = DirBuilder::new().recursive(true).mode(0o700).create(folder).and_then(|()| {
        let folder = std::fs::File::open(folder)?;
        Log::open(folder.into())
    });
    match opened {
        Ok(Opened { log, entries, was_damaged }) => {
            if was_damaged {
                tracing::warn!(
                    folder = %folder.display(),
                    entries = entries.len(),
                    "the record in state_dir was damaged; what is missing of it comes from the agents"
                );
            }
            take_in(router, &entries);
            Some(log)
        }
        Err(error) => {
            let cause = portolan_telemetry::chain(&error);
            tracing::error!(folder = %folder.display(), cause, "state_dir cannot be used; the record is kept in memory and by the agents");
            None
        }
    }
}

fn take_in(router: &Router, entries: &Entries) {
    router.change_record(|record| {
        for (key, entry) in entries {
            record.merge(key, entry);
        }
        // It is in the file, and nobody else is there yet.
        record.take_fresh();
    });
}

/// Writes what changes into the file, for ever.
pub async fn write(mut log: Log, router: Arc<Router>, mut changes: Receiver<Changes>) {
    let mut failing = false;
    loop {
        let batch = match changes.recv().await {
            Ok(batch) => Some(batch),
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        let router = Arc::clone(&router);
        let writing = tokio::task::spawn_blocking(move || {
            let written = write_once(&mut log, &router, batch);
            (log, written)
        });
        let written;
        (log, written) = match writing.await {
            Ok(done) => done,
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        };
        match &written {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                let cause = portolan_telemetry::chain(error);
                tracing::error!(
                    cause,
                    "the record cannot be written into state_dir; it is in memory and with the agents"
                );
            }
            Err(_) => {}
        }
    }
}

fn write_once(log: &mut Log, router: &Router, batch: Option<Changes>) -> io::Result<()> {
    let count = router.with_record(|record| record.entries().len());
    match batch {
        Some(batch) if !log.needs_rewrite(count) => {
            log.append(batch.iter().map(|(key, entry)| (&**key, entry)))
        }
        _ => {
            let entries = router.with_record(|record| record.entries().clone());
            log.rewrite(entries.iter().map(|(key, entry)| (&**key, entry)))
        }
    }
}

/// Lets time pass, for ever.
pub async fn settle(router: Arc<Router>) {
    let mut every = tokio::time::interval(SETTLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.reset();
    loop {
        every.tick().await;
        router.settle_record();
    }
}

/// Keeps the record with the agent of a node, for ever.
pub async fn keep_with(node: Arc<NodeClient>, router: Arc<Router>) {
    let mut health = node.health();
    let mut is_told = false;
    loop {
        if health.wait_for(|health| *health == Health::Up).await.is_err() {
            return;
        }
        health.mark_unchanged();
        let ended = tokio::select! {
            ended = exchange(&node, &router) => ended,
            // The connection is another one by then.
            _ = health.changed() => continue,
        };
        let error = match ended {
            Err(Error::Call(status)) if status.code() == Code::Unimplemented => {
                tracing::info!(node = %node.name(), "the agent is older and keeps no record; it is left out");
                node.set_record_read();
                health.changed().await.ok();
                continue;
            }
            Err(error) => error,
            Ok(never) => match never {},
        };
        // What keeps the record from coming must not keep a front end from starting.
        node.set_record_read();
        if !matches!(error, Error::Behind | Error::Ended | Error::Away(_)) && !is_told {
            is_told = true;
            let cause = portolan_telemetry::chain(&error);
            tracing::warn!(node = %node.name(), cause, "the record cannot be kept with the agent; it is tried again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Brings the agent's record and ours to the same state, and keeps them so until something fails.
async fn exchange(node: &NodeClient, router: &Router) -> Result<std::convert::Infallible, Error> {
    let mut client = node.client()?;
    // Before the reading, so that nothing falls between the two.
    let mut changes = router.record_changes();
    let reading = client.read_record(v1::ReadRecordRequest {});
    let mut stream = tokio::time::timeout(ANSWER_MAX, reading).await??.into_inner();
    let mut last: Option<Key> = None;
    loop {
        let message = tokio::time::timeout(ANSWER_MAX, stream.message()).await??.ok_or(Error::Ended)?;
        let theirs: Entries = message.entries.iter().filter_map(of_wire).collect();
        merge(router, &theirs);
        let end = theirs.keys().next_back().cloned();
        let upto = if message.complete { None } else { end };
        if message.complete || upto.is_some() {
            push_missing(&mut client, router, &mut last, upto.as_deref(), &theirs).await?;
        }
        if message.complete {
            break;
        }
    }
    router.settle_record();
    node.set_record_read();
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = message?.ok_or(Error::Ended)?;
                merge(router, &message.entries.iter().filter_map(of_wire).collect());
            }
            changed = changes.recv() => match changed {
                Ok(batch) => push(&mut client, batch.iter().cloned().collect()).await?,
                Err(RecvError::Lagged(_) | RecvError::Closed) => return Err(Error::Behind),
            },
        }
    }
}

fn merge(router: &Router, theirs: &Entries) {
    let is_news = router.with_record(|record| {
        theirs.iter().any(|(key, entry)| record.entries().get(key).is_none_or(|own| own < entry))
    });
    if is_news {
        router.change_record(|record| {
            for (key, entry) in theirs {
                record.merge(key, entry);
            }
        });
    }
}

/// Sends what we have after `last` up to a key, or to the end, and the agent has not, or has older.
async fn push_missing(
    client: &mut crate::nodes::Client,
    router: &Router,
    last: &mut Option<Key>,
    upto: Option<&[u8]>,
    theirs: &Entries,
) -> Result<(), Error> {
    loop {
        let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let to = upto.map_or(Bound::Unbounded, Bound::Included);
        if upto.is_some_and(|upto| last.as_deref().is_some_and(|last| last >= upto)) {
            return Ok(());
        }
        let (page, missing): (Option<Key>, Vec<_>) = router.with_record(|record| {
            let range = record.entries().range::<[u8], _>((from, to)).take(RECORD_BATCH_ENTRIES_MAX);
            let mut end = None;
            let mut missing = Vec::new();
            for (key, entry) in range {
                end = Some(key.clone());
                if theirs.get(key).is_none_or(|their| their < entry) {
                    missing.push((key.clone(), entry.clone()));
                }
            }
            (end, missing)
        });
        push(client, missing).await?;
        match page {
            Some(end) => *last = Some(end),
            None => {
                if let Some(upto) = upto {
                    *last = Some(upto.into());
                }
                return Ok(());
            }
        }
    }
}

async fn push(client: &mut crate::nodes::Client, entries: Vec<(Key, Entry)>) -> Result<(), Error> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut waiting = entries.into_iter().peekable();
    while let Some((key, Entry { at_ns, removed, value })) = waiting.next() {
        bytes += key.len() + value.len();
        batch.push(v1::RecordEntry {
            key: key.into_vec().into(),
            at_ns,
            removed,
            value: value.into_vec().into(),
        });
        if waiting.peek().is_none()
            || batch.len() == RECORD_BATCH_ENTRIES_MAX
            || bytes > RECORD_BATCH_BYTES_MAX
        {
            let request = v1::MergeRecordRequest { entries: std::mem::take(&mut batch) };
            tokio::time::timeout(ANSWER_MAX, client.merge_record(request)).await??;
            bytes = 0;
        }
    }
    Ok(())
}

fn of_wire(entry: &v1::RecordEntry) -> Option<(Key, Entry)> {
    let v1::RecordEntry { key, at_ns, removed, value } = entry;
    let entry = Entry { at_ns: *at_ns, removed: *removed, value: value[..].into() };
    portolan_record::is_sound(key, &entry).then(|| (key[..].into(), entry))
}
