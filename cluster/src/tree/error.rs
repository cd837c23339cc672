//! Why the tree could not do what it was asked.

use portolan_proto::id::NodeId;
use portolan_proto::path::PathFault;
use portolan_proto::v1::Reason;

use super::VirtualPath;
use crate::{map, nodes};

/// Paths are for people. The sentences go to the client: one, plain, without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none, or this admin may not know of it.
    #[error("{path} does not exist")]
    NotFound { path: String },
    #[error("{path} exists already")]
    AlreadyExists { path: String },
    #[error("{path} is a directory")]
    IsADirectory { path: String },
    #[error("{path} is not a directory")]
    NotADirectory { path: String },
    #[error("{path} is shorter than the offset")]
    OffsetBeyondEnd { path: String },
    #[error("{path} is not empty")]
    NotEmpty { path: String },
    #[error("you lack the right to {right} at {path}")]
    NotGranted { path: String, right: &'static str },
    #[error("{path} is a fixed level of the tree")]
    Fixed { path: String },
    #[error("{path} is generated, and there is no digest of it")]
    NoDigest { path: String },
    #[error("the name is not allowed: {0}")]
    BadName(#[from] PathFault),
    #[error("{from} cannot be renamed to {to}: a rename stays within one domain")]
    CrossesDomains { from: String, to: String },
    #[error("a rename cannot move data from node {from} to node {to}")]
    CrossesNodes { from: NodeId, to: NodeId },
    #[error("{path} has no place: the domain map does not say on which node it belongs")]
    Unplaced { path: String },
    /// What there is cannot be told, because a source of the map is not known.
    #[error(transparent)]
    Unknown(map::Error),
    #[error(transparent)]
    Node(nodes::Error),
}

impl Error {
    /// There is nothing at the path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. }) || self.reason() == Some(Reason::NotFound)
    }

    /// The directory that was at the path is there no more.
    pub fn is_gone(&self) -> bool {
        self.is_not_found() || self.is_not_a_directory() || self.is_not_a_file()
    }

    /// A symbolic link or special file is at the path, or on the way to it.
    pub fn is_not_a_file(&self) -> bool {
        self.reason() == Some(Reason::NotAFile)
    }

    /// What was to be listed is there, and is no directory.
    pub fn is_not_a_directory(&self) -> bool {
        matches!(self, Error::NotADirectory { .. }) || self.reason() == Some(Reason::NotADirectory)
    }

    /// The node that failed or refused, when it was one.
    pub fn node(&self) -> Option<&NodeId> {
        self.of_node().map(nodes::Error::node)
    }

    /// The error of the node, when it was one that failed or refused.
    fn of_node(&self) -> Option<&nodes::Error> {
        match self {
            Error::Node(error) => Some(error),
            Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::IsADirectory { .. }
            | Error::NotADirectory { .. }
            | Error::OffsetBeyondEnd { .. }
            | Error::NotEmpty { .. }
            | Error::NotGranted { .. }
            | Error::Fixed { .. }
            | Error::NoDigest { .. }
            | Error::BadName(_)
            | Error::CrossesDomains { .. }
            | Error::CrossesNodes { .. }
            | Error::Unplaced { .. }
            | Error::Unknown(_) => None,
        }
    }

    /// The agent's reason, when it was an agent that refused.
    fn reason(&self) -> Option<Reason> {
        self.of_node().and_then(nodes::Error::reason)
    }

    pub(super) fn from_route(path: &VirtualPath, error: map::Error) -> Self {
        match error {
            map::Error::UnknownDomain => Error::NotFound { path: path.to_string() },
            error @ (map::Error::Unheard { .. }
            | map::Error::TooFew { .. }
            | map::Error::Unread { .. }
            | map::Error::Unresolved { .. }
            | map::Error::InDoubt { .. }
            | map::Error::Unsettled { .. }) => Error::Unknown(error),
            map::Error::Unplaced => Error::Unplaced { path: path.to_string() },
        }
    }
}
