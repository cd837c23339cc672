//! The kinds of store that the suite of conformance runs over, and what it needs of each.
//!
//! Who calls it: `tests/store_conformance.rs`.
//! What it calls: the kinds, by the contract alone; and what lies below them, as a mail server would.
//! What it never does: pass over what a kind cannot do. That is an assertion that the kind says so.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use portolan_agent::store::{
    Begin, Committed, Content, Entry, Error, Finish, Holdings, ListOptions, Listing, Operation, Result,
    Store, StorePath, Upload, Usage, Wanted,
};
use portolan_config::checked::agent::{Access, Links, Modes, Store as Config};
use portolan_config::units::FreeMin;
use rustix::fs::{CWD, FileType, Mode};
use tokio_util::sync::CancellationToken;

use crate::fault_store::FaultStore;

/// Every kind of store. A new one is a line here.
pub const KINDS: &[Kind] = &[
    Kind { name: "tree", open: tree, put: put_into_tree, cannot: &[] },
    Kind { name: "tree with a store of faults before it", open: faulty, put: put_into_tree, cannot: &[] },
    Kind { name: "read-only", open: read_only, put: put_into_tree, cannot: &EVERY_CHANGE },
];

const EVERY_CHANGE: [Operation; 9] = [
    Operation::Write,
    Operation::WriteAtOffset,
    Operation::Append,
    Operation::MakeDirectory,
    Operation::Remove,
    Operation::RemoveDirectory,
    Operation::Rename,
    Operation::SetTimes,
    Operation::SetMode,
];

/// The time of all that is put into a store, in nanoseconds since 1970.
pub const PUT_NS: i64 = 1_600_000_000_000_000_000;

/// Listings as most callers want them.
pub const ANY: ListOptions = ListOptions { sorted: false, wanted: Wanted::All, was: None };
pub const SORTED: ListOptions = ListOptions { sorted: true, ..ANY };

/// A kind of store, as the suite sees it.
pub struct Kind {
    pub name: &'static str,
    /// Opens one that is kept in this folder.
    pub open: fn(&Path) -> Arc<dyn Store>,
    /// Does something to the store below it, as others than the agent do; false where the kind has no such thing.
    pub put: fn(&Path, &[u8], Item<'_>) -> bool,
    pub cannot: &'static [Operation],
}

/// What others than the agent do at a path. The levels above it are made.
#[derive(Debug, Clone, Copy)]
pub enum Item<'a> {
    /// A new file of the time [`PUT_NS`], in place of what is there.
    File(&'a [u8]),
    /// The same file with another content, and the time now.
    Overwritten(&'a [u8]),
    Directory,
    /// A symbolic link.
    Link(&'a [u8]),
    Pipe,
    /// Another name of the file at this path.
    SecondName(&'a [u8]),
    /// What is at this path, renamed.
    MovedFrom(&'a [u8]),
    /// A file is removed.
    Gone,
}

fn tree(folder: &Path) -> Arc<dyn Store> {
    let config = Config::Tree {
        root: folder.to_owned(),
        rescan_interval: Duration::from_secs(3_600),
        modes: Modes::default(),
        links: Links::Show,
        free_min: FreeMin::NONE,
        access: Access::default(),
    };
    portolan_agent::store::open(&config).expect("a new store")
}

fn faulty(folder: &Path) -> Arc<dyn Store> {
    Arc::new(FaultStore::over(tree(folder)).0)
}

fn read_only(folder: &Path) -> Arc<dyn Store> {
    Arc::new(ReadOnly(tree(folder)))
}

/// A kind that has what the contract asks of every kind, and no more.
struct ReadOnly(Arc<dyn Store>);

impl Store for ReadOnly {
    fn kind(&self) -> &'static str {
        "read-only"
    }
    fn usage(&self) -> Result<Usage> {
        self.0.usage()
    }
    fn holdings(&self, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings> {
        self.0.holdings(only)
    }
    fn rescan_interval(&self) -> Duration {
        self.0.rescan_interval()
    }
    fn stat(&self, path: &StorePath) -> Result<Entry> {
        self.0.stat(path)
    }
    fn list(
        &self,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Box<dyn Listing>> {
        self.0.list(path, options, stop)
    }
    fn read(&self, path: &StorePath) -> Result<Box<dyn Content>> {
        self.0.read(path)
    }
}

fn put_into_tree(root: &Path, path: &[u8], item: Item<'_>) -> bool {
    let at = |path: &[u8]| root.join(OsStr::from_bytes(path));
    let full: PathBuf = at(path);
    fs::create_dir_all(full.parent().expect("a path below the root")).expect("our folder");
    match item {
        Item::File(content) => {
            let new = at(b".new");
            fs::write(&new, content).expect("our file");
            let file = fs::File::options().write(true).open(&new).expect("our file");
            file.set_modified(UNIX_EPOCH + Duration::from_nanos(PUT_NS.unsigned_abs())).expect("our file");
            fs::rename(&new, &full).expect("our file");
        }
        Item::Overwritten(content) => fs::write(&full, content).expect("our file"),
        Item::Directory => fs::create_dir_all(&full).expect("our folder"),
        Item::Link(target) => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), &full).expect("our link");
        }
        Item::Pipe => {
            rustix::fs::mknodat(CWD, &full, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("our pipe");
        }
        Item::SecondName(of) => fs::hard_link(at(of), &full).expect("our file"),
        Item::MovedFrom(from) => fs::rename(at(from), &full).expect("ours"),
        Item::Gone => fs::remove_file(&full).expect("our file"),
    }
    true
}

/// A new store of one kind.
pub struct Site {
    pub store: Arc<dyn Store>,
    kind: &'static Kind,
    folder: tempfile::TempDir,
}

/// Runs a check over a new store of every kind.
pub fn each(check: impl Fn(&Site)) {
    assert!(!KINDS.is_empty());
    for kind in KINDS {
        // Shown when the check fails.
        println!("kind of store: {}", kind.name);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = (kind.open)(folder.path());
        check(&Site { store, kind, folder });
    }
}

pub fn path(path: impl AsRef<[u8]>) -> StorePath {
    StorePath::new(path.as_ref()).expect("a path of the test")
}

impl Site {
    /// Does something to the store from below.
    pub fn put(&self, path: impl AsRef<[u8]>, item: Item<'_>) {
        assert!(self.try_put(path, item), "every kind has this: {item:?}");
    }

    /// The same for what a kind may not have.
    pub fn try_put(&self, path: impl AsRef<[u8]>, item: Item<'_>) -> bool {
        (self.kind.put)(self.folder.path(), path.as_ref(), item)
    }

    /// The outcome of what a kind may not be able to do: `None` where it cannot, and says so.
    pub fn able<T>(&self, operation: Operation, outcome: Result<T>) -> Option<Result<T>> {
        if !self.kind.cannot.contains(&operation) {
            return Some(outcome);
        }
        match outcome {
            Err(Error::Unsupported { .. }) => None,
            Err(other) => panic!("{operation:?} is not UNSUPPORTED but {other:?}"),
            Ok(_) => panic!("{operation:?} is not UNSUPPORTED but done"),
        }
    }

    /// An upload that waits for its commit. `None` where the kind cannot, and says so.
    pub fn staged(&self, at: &str, begin: Begin, content: &[u8]) -> Option<Result<Box<dyn Upload>>> {
        let operation = match begin {
            Begin { append: true, .. } => Operation::Append,
            Begin { offset: 1.., .. } => Operation::WriteAtOffset,
            Begin { .. } => Operation::Write,
        };
        let upload = self.able(operation, self.store.write(&path(at), begin))?;
        Some(upload.and_then(|mut upload| {
            while upload.prepare()? {}
            for chunk in content.chunks(2) {
                upload.write(chunk)?;
            }
            upload.sync(finish(content))?;
            Ok(upload)
        }))
    }

    /// A whole upload.
    pub fn upload(&self, at: &str, begin: Begin, content: &[u8]) -> Option<Result<Committed>> {
        Some(self.staged(at, begin, content)?.and_then(|upload| upload.commit()))
    }

    /// All of a file.
    pub fn content(&self, at: impl AsRef<[u8]>) -> Vec<u8> {
        let mut content = self.store.read(&path(at)).expect("a file");
        whole(&mut *content)
    }

    /// The entries of a directory.
    pub fn entries(&self, at: impl AsRef<[u8]>, options: ListOptions) -> Result<Vec<Entry>> {
        rest(&mut *self.store.list(&path(at), options, &CancellationToken::new())?, 100)
    }

    /// The names in a directory, in byte order.
    pub fn names(&self, at: impl AsRef<[u8]>) -> Vec<String> {
        let entries = self.entries(at, SORTED).expect("a directory");
        entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
    }
}

pub fn finish(content: &[u8]) -> Finish {
    Finish { length: content.len() as u64, crc32c: crc32c::crc32c(content) }
}

/// All of an open file.
pub fn whole(content: &mut dyn Content) -> Vec<u8> {
    let (mut read, mut buffer) = (Vec::new(), [0; 7]);
    loop {
        let count = content.read_at(&mut buffer, read.len() as u64).expect("a disk that works");
        if count == 0 {
            return read;
        }
        read.extend_from_slice(&buffer[..count]);
    }
}

/// What a listing still has to give, in batches of `entries_max`.
pub fn rest(listing: &mut dyn Listing, entries_max: usize) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    loop {
        let batch = listing.next_batch(entries_max)?;
        if batch.is_empty() {
            assert!(listing.next_batch(entries_max)?.is_empty(), "the end stays the end");
            return Ok(entries);
        }
        assert!(batch.len() <= entries_max);
        entries.extend(batch);
    }
}
