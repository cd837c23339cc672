//! Keeps for front ends what they remember of the cluster. It means nothing to the agent.
//!
//! Who calls it: `volume`, which opens one with each store; `service`.
//! What it calls: portolan-record; the file is in the store's own place.
//! What it never does: fail a call on content because the record cannot be kept.

use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use portolan_proto::{RECORD_BATCH_BYTES_MAX, RECORD_BATCH_ENTRIES_MAX};
use portolan_record::{ENTRIES_MAX, Entries, Entry, Key, Log, Opened, now_ns};
use tokio::sync::broadcast;

use crate::store::Store;

/// Merges that wait for a front end at most; one that is further behind reads all of it again.
const CHANGES_QUEUED_MAX: usize = 64;

/// Entries that became newer at once.
pub(crate) type Changes = Arc<Vec<(Key, Entry)>>;

/// The record is full.
#[derive(Debug, thiserror::Error)]
#[error("the record holds {ENTRIES_MAX} entries and takes no more")]
pub(crate) struct Full;

/// See the module.
#[derive(Debug)]
pub(crate) struct RecordKeeper {
    state: Mutex<State>,
    changes: broadcast::Sender<Changes>,
}

#[derive(Debug)]
struct State {
    entries: Entries,
    /// `None`: it is in memory alone.
    log: Option<Log>,
    is_failing: bool,
}

impl RecordKeeper {
    /// Opens what the store has of it. Blocks.
    pub(crate) fn open(store: &dyn Store) -> Self {
        let mut state = State { entries: Entries::new(), log: None, is_failing: false };
        match store.record() {
            Ok(Some(Opened { log, entries, was_damaged })) => {
                if was_damaged {
                    tracing::warn!(
                        entries = entries.len(),
                        "the record was damaged; front ends bring what is missing of it"
                    );
                }
                state = State { entries, log: Some(log), is_failing: false };
            }
            Ok(None) => {}
            Err(error) => {
                let cause = portolan_telemetry::chain(&error);
                tracing::warn!(
                    cause,
                    "the store cannot keep the record of the front ends; it is in memory alone"
                );
            }
        }
        Self { state: Mutex::new(state), changes: broadcast::Sender::new(CHANGES_QUEUED_MAX) }
    }

    /// Lets the file go, with the volume that it lies on. Blocks while something is written to it.
    pub(crate) fn close(&self) {
        self.state.lock().log = None;
    }

    /// What becomes newer from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Changes> {
        self.changes.subscribe()
    }

    /// Takes entries in, and waits until they are on the disk. Blocks.
    ///
    /// # Errors
    /// Nothing was taken.
    pub(crate) fn merge(&self, theirs: Vec<(Key, Entry)>) -> Result<(), Full> {
        let mut state = self.state.lock();
        let unknown = theirs.iter().filter(|(key, _)| !state.entries.contains_key(key)).count();
        if state.entries.len() + unknown > ENTRIES_MAX {
            return Err(Full);
        }
        let State { entries, log, is_failing } = &mut *state;
        let newer: Vec<_> =
            theirs.into_iter().filter(|(key, entry)| portolan_record::merge(entries, key, entry)).collect();
        if newer.is_empty() {
            return Ok(());
        }
        if let Some(log) = log {
            let written = if log.needs_rewrite(entries.len()) {
                let now = now_ns();
                entries.retain(|_, entry| !entry.is_over(now));
                log.rewrite(entries.iter().map(|(key, entry)| (&**key, entry)))
            } else {
                log.append(newer.iter().map(|(key, entry)| (&**key, entry)))
            };
            match written {
                Ok(()) => *is_failing = false,
                Err(error) if !*is_failing => {
                    *is_failing = true;
                    let cause = portolan_telemetry::chain(&error);
                    tracing::warn!(cause, "the record cannot be written; it is in memory alone");
                }
                Err(_) => {}
            }
        }
        // Nobody may be listening.
        self.changes.send(Arc::new(newer)).ok();
        Ok(())
    }

    /// The next entries after a key, as many as a message takes. Blocks while something is written.
    pub(crate) fn page(&self, after: Option<&[u8]>) -> Vec<(Key, Entry)> {
        let state = self.state.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        let next = state.entries.range::<[u8], _>((from, Bound::Unbounded)).take(RECORD_BATCH_ENTRIES_MAX);
        let next = next.take_while(|(key, entry)| {
            let fits = bytes <= RECORD_BATCH_BYTES_MAX;
            bytes += key.len() + entry.value.len();
            fits
        });
        next.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }
}
