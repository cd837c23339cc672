//! A store that fails when a test wants it to.
//!
//! Who calls it: the tests of the error path, and those of every kind of store.
//! What it calls: the store that it stands before.
//! What it never does: fail unasked.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portolan_agent::store::{
    Begin, Content, Directory, Entry, Error, Holdings, ListOptions, Listing, Permissions, Result, Store,
    StorePath, Upload, Usage, Version,
};
use tokio_util::sync::CancellationToken;

/// How the next calls end: `None` works, `Some` fails.
pub type Faults = Arc<Mutex<VecDeque<Option<Error>>>>;

/// A store whose next calls do as the test wants.
pub struct FaultStore {
    store: Arc<dyn Store>,
    faults: Faults,
}

impl FaultStore {
    /// Without faults it is as the store below it.
    pub fn over(store: Arc<dyn Store>) -> (Self, Faults) {
        let faults = Faults::default();
        (Self { store, faults: Arc::clone(&faults) }, faults)
    }

    fn next(&self) -> Result<()> {
        let next = self.faults.lock().expect("no panic").pop_front();
        next.flatten().map_or(Ok(()), Err)
    }
}

impl Store for FaultStore {
    fn kind(&self) -> &'static str {
        "fault"
    }
    fn usage(&self) -> Result<Usage> {
        self.store.usage()
    }
    fn holdings(&self, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings> {
        self.store.holdings(only)
    }
    fn rescan_interval(&self) -> Duration {
        self.store.rescan_interval()
    }
    fn stat(&self, path: &StorePath) -> Result<Entry> {
        self.next()?;
        self.store.stat(path)
    }
    fn list(
        &self,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Box<dyn Listing>> {
        self.next()?;
        let listing = self.store.list(path, options, stop)?;
        Ok(Box::new(FaultListing { listing, fault: self.next().err() }))
    }
    fn read(&self, path: &StorePath) -> Result<Box<dyn Content>> {
        self.next()?;
        let content = self.store.read(path)?;
        Ok(Box::new(FaultContent { content, fault: self.next().err() }))
    }
    fn write(&self, path: &StorePath, begin: Begin) -> Result<Box<dyn Upload>> {
        self.next()?;
        self.store.write(path, begin)
    }
    fn make_directory(&self, path: &StorePath) -> Result<()> {
        self.next()?;
        self.store.make_directory(path)
    }
    fn remove(&self, path: &StorePath) -> Result<()> {
        self.next()?;
        self.store.remove(path)
    }
    fn remove_directory(&self, path: &StorePath) -> Result<()> {
        self.next()?;
        self.store.remove_directory(path)
    }
    fn rename(&self, from: &StorePath, to: &StorePath) -> Result<()> {
        self.next()?;
        self.store.rename(from, to)
    }
    fn set_times(&self, path: &StorePath, modified_ns: i64) -> Result<i64> {
        self.next()?;
        self.store.set_times(path, modified_ns)
    }
    fn set_mode(&self, path: &StorePath, permissions: Permissions) -> Result<()> {
        self.next()?;
        self.store.set_mode(path, permissions)
    }
}

/// Gives one batch, then fails.
struct FaultListing {
    listing: Box<dyn Listing>,
    fault: Option<Error>,
}

impl Listing for FaultListing {
    fn directory(&self) -> Directory {
        self.listing.directory()
    }

    fn next_batch(&mut self, entries_max: usize) -> Result<Vec<Entry>> {
        let batch = self.listing.next_batch(entries_max)?;
        match self.fault.take() {
            Some(fault) if batch.is_empty() => Err(fault),
            fault => {
                self.fault = fault;
                Ok(batch)
            }
        }
    }
}

/// Gives one chunk, then fails.
struct FaultContent {
    content: Box<dyn Content>,
    fault: Option<Error>,
}

impl Content for FaultContent {
    fn size(&self) -> u64 {
        self.content.size()
    }
    fn modified_ns(&self) -> i64 {
        self.content.modified_ns()
    }
    fn version(&self) -> Version {
        self.content.version()
    }
    fn version_now(&self) -> Result<Version> {
        self.content.version_now()
    }
    fn settle(&mut self) -> bool {
        self.content.settle()
    }
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        match self.fault.take() {
            Some(fault) if offset > 0 => Err(fault),
            fault => {
                self.fault = fault;
                self.content.read_at(buffer, offset)
            }
        }
    }
}
