//! What every kind of store does, and how it fails: the contract between `service` and a store.
//!
//! Who calls it: `service`, `holdings` and `console`, always from a blocking task.
//! What it calls: nothing; the kinds implement it. `tests/tests/store_conformance.rs` runs every kind against it.
//! What it never does: name a file system. What a kind cannot do is [`Error::Unsupported`], never a silent success.
//!
//! # Terms that hold for every method
//!
//! *Levels.* The first levels of the tree are the cluster's (`portolan_proto::levels`): a change makes those that it
//! needs, and takes them back when it fails. Below them the store decides, and a level that is missing is
//! [`Error::NotFound`].
//!
//! *Callers.* A caller has checked path, grant and rights. A path is any [`StorePath`], the root too. Calls block, and come
//! from several threads at once; a caller holds no lock and needs none. Two changes of one name at once are done one after
//! the other, in either order.
//!
//! *Atomicity.* A change is done whole or not at all, and a reader sees the state before or after. An error means that
//! nothing was changed, but for one case: the change was done and could not be made durable, which is
//! [`Error::DiskFault`], [`Error::NoSpace`] or [`Error::QuotaExceeded`].
//!
//! *Durability.* A change that has returned without an error survives a power cut.
//!
//! *Errors.* Any method with a path may answer
//!
//! | error | when |
//! |---|---|
//! | [`Error::NotFound`] | nothing is at the path, or a level above it is missing |
//! | [`Error::NotADirectory`] | a level above it is no directory |
//! | [`Error::NotAFile`] | it lies behind a symbolic link or a special file |
//! | [`Error::PermissionDenied`] | the node's system refuses, or a change is of the root itself |
//! | [`Error::BadName`] | the store cannot have such a name there |
//! | [`Error::DiskFault`] | the disk, or what the store is kept in, failed |
//! | [`Error::Unsupported`] | the kind cannot do this at all, whatever is at the path |
//!
//! and any that stores something new also [`Error::NoSpace`] and [`Error::QuotaExceeded`]. What a method may answer
//! beyond these stands at the method; no other error comes from it. An error that stands for a fault of the node
//! (`DiskFault`) is never given for what a client asked for, and `NotFound` never for what could not be looked at: absence
//! must be certain, because a backup believes it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::Operation;
use super::{Error, Holdings, Result, StorePath};

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

/// What tells a file or directory from all others of its store while it exists, whatever its name. Only the store gives it
/// a meaning; on a file system it is device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    high: u64,
    low: u64,
}

impl Identity {
    pub fn from_halves(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// For the wire.
    pub fn halves(self) -> (u64, u64) {
        (self.high, self.low)
    }
}

/// What a listing or a stat says of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Last component, as bytes; empty for the root.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Bytes of content; 0 for what is not a file.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    /// Permission bits, 07777. A kind without permissions says which it acts by.
    pub unix_mode: u32,
    /// Equal for two names of one file. `None` where the store has no such thing. The wire takes a low half of 0 for none.
    pub identity: Option<Identity>,
    /// Of a symbolic link; empty where it could not be read, and for all else.
    pub target: Vec<u8>,
}

/// Room of the store, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub bytes_total: u64,
    pub bytes_free: u64,
}

/// How an upload begins. At most one of `offset`, `exclusive` and `append` is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begin {
    /// The new content is the first `offset` bytes of the present file, then what is written.
    pub offset: u64,
    /// Nanoseconds since 1970; `None`: now.
    pub modified_ns: Option<i64>,
    /// The name must be free when the upload begins and when it is committed.
    pub exclusive: bool,
    /// The new content is all of the present file (a missing one is empty), then what is written.
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

/// A directory as it was when its names were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Every directory has one: recursive listings know directories by it.
    pub identity: Identity,
    /// Its present name; empty for the root.
    pub name: Vec<u8>,
    /// As long as it is equal the directory has the same names, as far as the store can tell. On a file system it is the
    /// time of the last change. Only equality means anything to callers.
    pub state: i64,
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
    /// The directory that was at the path, and may have another name in the same parent by now. It is never looked for
    /// among domains, whose names are other grants.
    pub was: Option<Identity>,
}

/// A directory being listed. It may be dropped at any time, and keeps nothing then.
pub trait Listing: Send {
    /// The directory, which keeps its identity when it is renamed.
    fn directory(&self) -> Directory;

    /// The next entries, `entries_max` of them at most, and some 128 KiB of names. Empty at the end, and from then on. What
    /// is there from the opening to the end comes exactly once, under one of its names; what is made or removed meanwhile
    /// may come or not. One call is a bounded piece of work.
    ///
    /// # Errors
    /// Any of them means that the listing is not whole. [`Error::Changing`] where others change the directory faster than
    /// it is read, and in byte order also where a name has vanished meanwhile; [`Error::Stopped`] after `stop`;
    /// [`Error::PermissionDenied`] and [`Error::DiskFault`] of an entry. An entry that is gone is no error.
    fn next_batch(&mut self, entries_max: usize) -> Result<Vec<Entry>>;
}

/// Which state a file was in. Made and compared by the store alone: as long as two are equal, nobody has changed the file
/// in between, as far as the store can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    content: [u8; Version::CONTENT_BYTES],
    rest: [u8; Version::REST_BYTES],
}

impl Version {
    /// Room for what tells a content: an identity, a size and a time, or a digest.
    pub const CONTENT_BYTES: usize = 32;
    /// Room for what tells any other change.
    pub const REST_BYTES: usize = 8;

    /// `content` stays as long as the content is the same; `rest` changes with anything about the file.
    pub fn new(content: [u8; Self::CONTENT_BYTES], rest: [u8; Self::REST_BYTES]) -> Self {
        Self { content, rest }
    }

    /// Is it the same content, whatever else has changed about the file? A rename, a link or a change of its mode leaves
    /// the content as it is.
    pub fn is_content_of(&self, other: &Version) -> bool {
        self.content == other.content
    }
}

/// A file opened for reading: the content that was at the path then. What replaces or removes the file meanwhile does not
/// show in it; who writes into the very file is seen by [`Content::version_now`].
pub trait Content: Send {
    /// Size when it was opened.
    fn size(&self) -> u64;

    /// Nanoseconds since 1970, when it was opened.
    fn modified_ns(&self) -> i64;

    /// When it was opened, or settled.
    fn version(&self) -> Version;

    /// As the open file is by now.
    ///
    /// # Errors
    /// [`Error::DiskFault`] alone.
    fn version_now(&self) -> Result<Version>;

    /// Takes the version anew, so that it may stand for the content from now on: true where every later change of the
    /// content will show in the version, also one that comes in the same tick of a clock or through a memory map. False
    /// where that cannot be, or not yet; nothing may then be remembered by the version.
    fn settle(&mut self) -> bool;

    /// Fills `buffer` from `offset` on, as far as the file reaches; fewer bytes come at its end only, and 0 beyond it.
    ///
    /// # Errors
    /// [`Error::DiskFault`] alone. A file that has become shorter is no error here: the caller counts.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize>;
}

/// A file being written, not yet visible. Dropping it before its commit leaves no trace: the previous file stays, and
/// levels that were to be made are not there. The calls come in this order: `prepare` until it is false, `write` any number
/// of times, `sync` once, `commit` once. After an error it is dropped.
pub trait Upload: Send {
    /// Does a bounded piece of what comes before the first `write`: takes over what the new content begins with
    /// from the present one. True while there is more to do.
    ///
    /// # Errors
    /// [`Error::OffsetBeyondEnd`] where the present file has become shorter; [`Error::NoSpace`],
    /// [`Error::QuotaExceeded`], [`Error::DiskFault`].
    fn prepare(&mut self) -> Result<bool>;

    /// Appends a chunk.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::QuotaExceeded`], [`Error::DiskFault`].
    fn write(&mut self, chunk: &[u8]) -> Result<()>;

    /// Checks that all has come, and makes the content durable. What is missing then is its name.
    ///
    /// # Errors
    /// [`Error::Damaged`] where length or checksum disagree, and those of `write`. [`Error::NotAFile`] and
    /// [`Error::IsADirectory`] where something else has taken the name.
    fn sync(&mut self, finish: Finish) -> Result<()>;

    /// Puts the content in the place of the previous file in one step, makes the levels that it needs, and makes the name
    /// durable. The file takes over what the previous one had beside its content, such as permissions and owner. The last
    /// commit of several at one name stands.
    ///
    /// # Errors
    /// The previous file stays for ever. [`Error::AlreadyExists`] where an exclusive upload finds the name taken;
    /// [`Error::Changing`] where the file that the upload goes on from was replaced, changed or removed since it began, or
    /// has appeared; [`Error::IsADirectory`], [`Error::NotAFile`] where something else has taken the name;
    /// [`Error::NotFound`] where the folder was removed; [`Error::NoSpace`], [`Error::QuotaExceeded`], [`Error::DiskFault`].
    fn commit(self: Box<Self>) -> Result<Committed>;
}

/// A kind of store: what a node's part of the virtual tree is kept in. See the terms of this module; what a kind leaves
/// out of the changing methods it cannot do.
pub trait Store: Send + Sync + 'static {
    /// Name of the kind, for `Describe`: lower case, the same for the life of the store.
    fn kind(&self) -> &'static str;

    /// Room in all, and what of it may still be written. Asked at each Describe and scrape, so it must be cheap.
    ///
    /// # Errors
    /// [`Error::DiskFault`] alone, or [`Error::PermissionDenied`].
    fn usage(&self) -> Result<Usage>;

    /// All domains and objects of this store. `only` names domains that may have changed, and single objects as
    /// `<domain>/<object>`: a store that remembers its last answer may look at these alone. The memory is the store's own;
    /// unchanged domains should be shared with the last answer, because comparing shared ones costs nothing. What cannot be
    /// told is announced and not left out: an entry that is no directory is an object too.
    ///
    /// A store without any domain is empty, not an error. A domain that cannot be read is announced with the objects that
    /// were known of it, and named among the unreadable ones; it hides no other.
    ///
    /// # Errors
    /// [`Error::DiskFault`], [`Error::PermissionDenied`], [`Error::NotADirectory`], [`Error::NotAFile`]. The caller keeps
    /// the last answer then: a sick disk is no absence.
    fn holdings(&self, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings>;

    /// What front ends keep with this node, in the store's own place, which no path of the tree names. `None`: this kind has no
    /// such place. Called once for each opening.
    ///
    /// # Errors
    /// It cannot be written to; the store serves all the same.
    fn record(&self) -> std::io::Result<Option<portolan_record::Opened>> {
        Ok(None)
    }

    /// How often changes made by others than this agent are looked for. Above 0, the same for the life of the store.
    fn rescan_interval(&self) -> Duration;

    /// What is at the path. A symbolic link is itself, unless the store follows it.
    ///
    /// # Errors
    /// Only those of every method.
    fn stat(&self, path: &StorePath) -> Result<Entry>;

    /// Gathers the names of a directory, and gives its entries as [`Listing`] says. `stop` ends this, and the listing,
    /// soon: the work grows with the directory.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] for what is no directory, [`Error::NotAFile`] for a link to one. With `was`,
    /// [`Error::NotFound`] where that directory is neither at the path nor beside it. [`Error::Changing`] where the names
    /// never come to rest, [`Error::Stopped`] after `stop`.
    fn list(
        &self,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Box<dyn Listing>>;

    /// Opens a file. Nothing that has no content is opened, so that a pipe cannot block and a device is not touched.
    ///
    /// # Errors
    /// [`Error::IsADirectory`] for a directory, [`Error::NotAFile`] for a link or special file.
    fn read(&self, path: &StorePath) -> Result<Box<dyn Content>>;

    /// Begins a new content of a file, if the path and what is there allow it. Nothing that is visible changes before the
    /// commit, levels neither.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where `exclusive` and the name is taken by anything; [`Error::IsADirectory`],
    /// [`Error::NotAFile`] for what cannot be replaced; [`Error::OffsetBeyondEnd`] where the present file is shorter than
    /// `offset`; [`Error::NotFound`] where the file to go on from, or the folder, is missing;
    /// [`Error::CrossesFileSystems`] where no commit could be one step; [`Error::NoSpace`], [`Error::QuotaExceeded`].
    fn write(&self, path: &StorePath, begin: Begin) -> Result<Box<dyn Upload>> {
        let _ = begin;
        Err(unsupported(path, Operation::Write))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where the name is taken by anything; [`Error::NoSpace`], [`Error::QuotaExceeded`].
    fn make_directory(&self, path: &StorePath) -> Result<()> {
        Err(unsupported(path, Operation::MakeDirectory))
    }

    /// Removes the name of anything but a directory; of a link, the link. Who has the file open reads on.
    ///
    /// # Errors
    /// [`Error::IsADirectory`] for a directory; [`Error::NotAFile`] for a link that the store shows as a file.
    fn remove(&self, path: &StorePath) -> Result<()> {
        Err(unsupported(path, Operation::Remove))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] for anything else, [`Error::NotEmpty`] where it has entries.
    fn remove_directory(&self, path: &StorePath) -> Result<()> {
        Err(unsupported(path, Operation::RemoveDirectory))
    }

    /// Renames in one step. A file takes the place of a file, also of another name of its own, which leaves one name; nothing
    /// else takes the place of anything. A file that is renamed to the name that it has stays.
    ///
    /// # Errors
    /// [`Error::IsADirectory`], [`Error::NotAFile`] where a file would replace such a thing; [`Error::AlreadyExists`] where
    /// something else than a file would replace anything; [`Error::BadName`] for a directory into itself;
    /// [`Error::CrossesFileSystems`] where it would not be one step; [`Error::NoSpace`], [`Error::QuotaExceeded`]. The path
    /// in the error is the one that is wrong.
    fn rename(&self, from: &StorePath, to: &StorePath) -> Result<()> {
        let _ = to;
        Err(unsupported(from, Operation::Rename))
    }

    /// Sets the modification time of a file or directory, nanoseconds since 1970. Returns the time that is kept, less than 2 s
    /// from the one asked for.
    ///
    /// # Errors
    /// [`Error::NotAFile`] for anything else; [`Error::TimeNotKept`] where the store cannot hold the time, and then the old
    /// one stays.
    fn set_times(&self, path: &StorePath, modified_ns: i64) -> Result<i64> {
        let _ = modified_ns;
        Err(unsupported(path, Operation::SetTimes))
    }

    /// Sets the permission bits of a file or directory.
    ///
    /// # Errors
    /// [`Error::NotAFile`] for anything else.
    fn set_mode(&self, path: &StorePath, permissions: Permissions) -> Result<()> {
        let _ = permissions;
        Err(unsupported(path, Operation::SetMode))
    }
}

fn unsupported(path: &StorePath, operation: Operation) -> Error {
    Error::Unsupported { path: path.to_string(), operation }
}
