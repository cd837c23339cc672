//! What can go wrong in a store, in the store's own words.

use std::fmt;
use std::io;

use portolan_proto::id::NodeId;
use portolan_proto::path::PathFault;
use rustix::io::Errno;

use super::StorePath;

/// Every failure of a store. `path` is for people, relative to the root of the virtual tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} does not exist")]
    NotFound { path: String },
    #[error("{path} exists already")]
    AlreadyExists { path: String },
    #[error("{path} is not a directory")]
    NotADirectory { path: String },
    #[error("{path} is a directory")]
    IsADirectory { path: String },
    #[error("{path} is not empty")]
    NotEmpty { path: String },
    #[error("{path} is, or lies behind, a symbolic link or special file, which is never followed")]
    NotAFile { path: String },
    #[error("{path} ends at byte {size}, before the offset {offset}")]
    OffsetBeyondEnd { path: String, size: u64, offset: u64 },
    #[error("{path} lies on another file system than the store's root")]
    CrossesFileSystems { path: String },
    #[error("the node's system refuses access to {path}")]
    PermissionDenied { path: String, source: io::Error },
    #[error("the name is not allowed: {0}")]
    BadName(#[from] PathFault),
    #[error("the disk is full")]
    NoSpace { path: String, source: io::Error },
    #[error("a quota of the node is used up")]
    QuotaExceeded { path: String, source: io::Error },
    #[error("the disk of the node failed at {path}")]
    DiskFault { path: String, source: io::Error },
    #[error("{path} was not stored whole: {what}")]
    Damaged { path: String, what: Damage },
    #[error("the store of this node is read-only, so {path} stays as it is")]
    ReadOnly { path: String },
    #[error("{path} changes too fast to be read whole")]
    Changing { path: String },
    #[error("the request was cancelled, or the agent is stopping")]
    Stopped,
    #[error("{path} became shorter while it was read")]
    Shrunk { path: String },
    #[error("{path} was changed while it was read")]
    Rewritten { path: String },
    #[error("the disk of the node cannot hold this time for {path}")]
    TimeNotKept { path: String },
    #[error("the store of this node cannot {operation} at {path}")]
    Unsupported { path: String, operation: Operation },
    /// The store that the call began with is not served any more.
    #[error(transparent)]
    Unserved(#[from] Unserved),
}

/// What a kind of store may be unable to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Write,
    /// An upload that goes on from a byte of the present file.
    WriteAtOffset,
    /// An upload that goes on from the end of the present file.
    Append,
    MakeDirectory,
    Remove,
    RemoveDirectory,
    Rename,
    SetTimes,
    SetMode,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Write => "store a file",
            Operation::WriteAtOffset => "go on with a file",
            Operation::Append => "append to a file",
            Operation::MakeDirectory => "make a directory",
            Operation::Remove => "remove a file",
            Operation::RemoveDirectory => "remove a directory",
            Operation::Rename => "rename",
            Operation::SetTimes => "set a time",
            Operation::SetMode => "set permissions",
        })
    }
}

/// How content differs from what its sender announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("{announced} bytes were announced, {received} arrived")]
    Length { announced: u64, received: u64 },
    #[error("the checksum differs")]
    Checksum,
}

/// Why no store is served. The sentences are for clients; what an operator has to do stands in the log and in /readyz.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    #[error("the store of node {node} carries no mark; its volume may not be mounted")]
    NotMarked { node: NodeId },
    #[error("the mark of the store of node {node} cannot be read")]
    BadMark { node: NodeId },
    #[error("the store of node {node} is marked for node {marked}")]
    OtherNode { node: NodeId, marked: NodeId },
    #[error("another volume than before is mounted at the store of node {node}")]
    OtherVolume { node: NodeId },
    #[error("the domains of node {node} lie on another file system than the mark of its store")]
    DomainsElsewhere { node: NodeId },
    #[error("the store of node {node} cannot be opened")]
    NotOpened { node: NodeId },
}

impl Error {
    /// The path that it is about; `None`: it is about none.
    pub fn path_mut(&mut self) -> Option<&mut String> {
        match self {
            Error::NotFound { path }
            | Error::AlreadyExists { path }
            | Error::NotADirectory { path }
            | Error::IsADirectory { path }
            | Error::NotEmpty { path }
            | Error::NotAFile { path }
            | Error::OffsetBeyondEnd { path, .. }
            | Error::CrossesFileSystems { path }
            | Error::PermissionDenied { path, .. }
            | Error::NoSpace { path, .. }
            | Error::QuotaExceeded { path, .. }
            | Error::DiskFault { path, .. }
            | Error::Damaged { path, .. }
            | Error::ReadOnly { path }
            | Error::Changing { path }
            | Error::Shrunk { path }
            | Error::Rewritten { path }
            | Error::TimeNotKept { path }
            | Error::Unsupported { path, .. } => Some(path),
            Error::BadName(_) | Error::Stopped | Error::Unserved(_) => None,
        }
    }

    /// An error of a system call on `path`.
    pub fn from_io(path: &StorePath, source: io::Error) -> Self {
        let path = path.to_string();
        let Some(errno) = source.raw_os_error().map(Errno::from_raw_os_error) else {
            return Error::DiskFault { path, source };
        };
        match errno {
            Errno::NOENT => Error::NotFound { path },
            Errno::EXIST => Error::AlreadyExists { path },
            Errno::NOTDIR => Error::NotADirectory { path },
            Errno::ISDIR => Error::IsADirectory { path },
            Errno::NOTEMPTY => Error::NotEmpty { path },
            Errno::LOOP | Errno::NXIO => Error::NotAFile { path },
            Errno::XDEV => Error::CrossesFileSystems { path },
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Error::PermissionDenied { path, source },
            Errno::NAMETOOLONG => Error::BadName(PathFault::ComponentTooLong),
            // A directory renamed into itself, or a name that this file system cannot have.
            Errno::INVAL => Error::BadName(PathFault::Refused),
            Errno::NOSPC => Error::NoSpace { path, source },
            Errno::DQUOT | Errno::FBIG => Error::QuotaExceeded { path, source },
            _ => Error::DiskFault { path, source },
        }
    }

    pub fn from_errno(path: &StorePath, errno: Errno) -> Self {
        Self::from_io(path, errno.into())
    }
}
