//! The stores: what a node's part of the virtual tree is kept in.
//!
//! Who calls it: `service`, always from a blocking task.
//! What it calls: the file system; this folder is the only place that touches it.
//! What it never does: know of gRPC, of sessions or of grants.

pub mod disk;
pub mod error;
pub mod holdings;
pub mod tree;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use disk::path::StorePath;
pub use error::Error;
pub use holdings::Holdings;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    // What has no content is listed, so that nothing is skipped silently; it is never opened.
    Symlink,
    Socket,
    Pipe,
    BlockDevice,
    CharacterDevice,
    /// What the system has no name for.
    Other,
}

/// What a listing or a stat says of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Last component, as bytes.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Bytes of content; 0 for what is not a file.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    /// Permission bits, 07777.
    pub unix_mode: u32,
    /// The file system and the inode: equal for two names of one file.
    pub device: u64,
    pub inode: u64,
    /// Of a symbolic link; empty where it could not be read, and for all else.
    pub target: Vec<u8>,
}

/// Room on the store's file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub bytes_total: u64,
    pub bytes_free: u64,
}

/// How an upload begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begin {
    /// The new content is the first `offset` bytes of the present file, then what is written.
    pub offset: u64,
    /// Nanoseconds since 1970; `None`: now.
    pub modified_ns: Option<i64>,
    /// The name must be free when the upload begins and when it is committed.
    pub exclusive: bool,
    /// The new content is all of the present file, then what is written.
    pub append: bool,
}

impl Begin {
    /// Part of the new content is that of the present file.
    pub fn goes_on(&self) -> bool {
        self.append || self.offset > 0
    }
}

/// Permission bits that anybody may set: none that lend a program another user's rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions(u32);

impl Permissions {
    /// `None` for what goes past 0777.
    pub fn new(bits: u32) -> Option<Self> {
        (bits <= 0o777).then_some(Self(bits))
    }

    pub fn bits(self) -> u32 {
        self.0
    }
}

/// What the sender says it sent, checked before a commit.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    /// Bytes in all chunks.
    pub length: u64,
    /// CRC-32C of all chunks.
    pub crc32c: u32,
}

/// A file as committed.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub size: u64,
    pub modified_ns: i64,
    /// CRC-32 (IEEE) of the whole content.
    pub crc32: u32,
}

/// What tells a directory from all others while it exists, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryId {
    pub device: u64,
    pub inode: u64,
}

/// A directory as it was when its names were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    pub id: DirectoryId,
    /// Its present name; empty for the root.
    pub name: Vec<u8>,
    /// Nanoseconds since 1970, as the system sets it.
    pub changed_ns: i64,
}

/// Which entries a listing has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    All,
    Directories,
}

/// How a directory is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListOptions {
    /// In byte order of the names.
    pub sorted: bool,
    pub wanted: Wanted,
    /// The directory that was at the path, and may have another name by now.
    pub was: Option<DirectoryId>,
}

/// A directory being listed. Each call does a bounded piece of work.
pub trait Listing: Send {
    /// The directory, which keeps its identity when it is renamed.
    fn directory(&self) -> Directory;
    /// The next entries, `entries_max` of them at most; empty at the end. An error means that the listing is
    /// not whole. What is there from the opening to the end is told, under one of its names.
    fn next_batch(&mut self, entries_max: usize) -> Result<Vec<Entry>>;
}

/// Which content a file has: as long as two are equal, nobody has written in between, as far as time stamps
/// can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Nanoseconds since 1970: the content, as anybody may set it.
    pub modified_ns: i64,
    /// Nanoseconds since 1970: the content or anything else about the file, as the system sets it.
    pub changed_ns: i64,
}

impl Version {
    /// Is it the same content, whatever else has changed about the file? A rename, a link or a change of its mode sets
    /// `changed_ns` too.
    pub fn is_content_of(&self, other: &Version) -> bool {
        let content = |version: &Version| (version.device, version.inode, version.size, version.modified_ns);
        content(self) == content(other)
    }
}

/// A file opened for reading.
pub trait Content: Send {
    /// Size when it was opened.
    fn size(&self) -> u64;
    /// Nanoseconds since 1970, when it was opened.
    fn modified_ns(&self) -> i64;
    /// When it was opened.
    fn version(&self) -> Version;
    /// As the open file is by now.
    fn version_now(&self) -> Result<Version>;
    /// Makes sure that what is written from now on shows in time stamps, also through memory maps, and takes the version
    /// anew. False where that cannot be.
    fn settle(&mut self) -> bool;
    /// Fills `buffer` from `offset` on, as far as the file reaches; 0 at its end.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize>;
}

/// A file being written, not yet visible. Dropping it leaves no trace.
pub trait Upload: Send {
    /// Does a bounded piece of what comes before the first `write`: takes over what the new content begins with
    /// from the present one. True while there is more to do.
    fn prepare(&mut self) -> Result<bool>;
    fn write(&mut self, chunk: &[u8]) -> Result<()>;
    /// Checks that all has come, and puts it on the disk. What is missing then is its name.
    fn sync(&mut self, finish: Finish) -> Result<()>;
    /// Puts it in the place of the previous file, which stays until then, and for ever when this fails.
    fn commit(self: Box<Self>) -> Result<Committed>;
}

/// A kind of store. All calls block.
pub trait Store: Send + Sync + 'static {
    /// Name of the kind, for `Describe`.
    fn kind(&self) -> &'static str;
    fn usage(&self) -> Result<Usage>;
    /// Domains and objects on this node; `previous` saves work where nothing changed. With `only`, the domains
    /// it names are looked at and the others are taken from `previous`.
    fn holdings(&self, previous: &Holdings, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings>;
    /// How often changes made by others than this agent are looked for.
    fn rescan_interval(&self) -> Duration;
    fn stat(&self, path: &StorePath) -> Result<Entry>;
    /// Gathers the names of a directory. `stop` ends this, and the listing, with [`Error::Stopped`].
    fn list(
        &self,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Box<dyn Listing>>;
    fn read(&self, path: &StorePath) -> Result<Box<dyn Content>>;
    fn write(&self, path: &StorePath, begin: Begin) -> Result<Box<dyn Upload>>;
    fn make_directory(&self, path: &StorePath) -> Result<()>;
    fn remove(&self, path: &StorePath) -> Result<()>;
    fn remove_directory(&self, path: &StorePath) -> Result<()>;
    /// A file takes the place of a file; nothing else takes the place of anything.
    fn rename(&self, from: &StorePath, to: &StorePath) -> Result<()>;
    /// Of a file or directory. The time that is kept, which may be coarser than the one asked for.
    fn set_times(&self, path: &StorePath, modified_ns: i64) -> Result<i64>;
    /// Of a file or directory.
    fn set_mode(&self, path: &StorePath, permissions: Permissions) -> Result<()>;
}
