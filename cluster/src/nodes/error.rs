//! Why a node did not do what it was asked.
//!
//! Third step of the error path: `store::Error` -> gRPC status -> here -> `ftp/reply.rs`.

use std::ops::Range;

use portolan_proto::failure::{path_of, reason_of};
use portolan_proto::id::NodeId;
use portolan_proto::v1::Reason;
use tonic::{Code, Status};

use crate::path::VirtualPath;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent answered, and refused.
    #[error("{sentence}")]
    Refused {
        node: NodeId,
        reason: Reason,
        /// One plain sentence of the agent's, without a full stop.
        sentence: String,
        /// Where the path stands in it.
        path_at: Option<Range<usize>>,
        #[source]
        source: Option<Box<Status>>,
    },
    /// There is no connection to the agent, or it broke.
    #[error("node {node} does not answer")]
    Away {
        node: NodeId,
        #[source]
        source: Option<Box<Status>>,
    },
    /// The agent is there but did not answer in time.
    #[error("node {node} is too slow")]
    Slow { node: NodeId },
    /// The agent broke the contract.
    #[error("node {node} sent an answer that makes no sense: {what}")]
    Nonsense { node: NodeId, what: &'static str },
}

impl Error {
    pub fn from_status(node: &NodeId, status: Status) -> Self {
        let node = node.clone();
        if let Some(reason) = reason_of(&status) {
            let (sentence, path_at) = (status.message().to_owned(), path_of(&status));
            return Error::Refused { node, reason, sentence, path_at, source: None };
        }
        match status.code() {
            Code::DeadlineExceeded => Error::Slow { node },
            // What the transport says when a connection is refused, reset or ends in mid-stream.
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted => {
                Error::Away { node, source: Some(Box::new(status)) }
            }
            // A kind of store that cannot do something says so with a reason: this agent has no such call.
            Code::Unimplemented => Error::Refused {
                sentence: format!("the agent of node {node} is of an older version, which cannot do this"),
                node,
                reason: Reason::Unsupported,
                path_at: None,
                source: Some(Box::new(status)),
            },
            // Codes that our agents always give a reason with.
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::DataLoss
            | Code::Unauthenticated => {
                let sentence = format!("node {node} refused the call");
                Error::Refused {
                    node,
                    reason: Reason::Unspecified,
                    sentence,
                    path_at: None,
                    source: Some(Box::new(status)),
                }
            }
        }
    }

    /// It is the node that failed and not the request, so that who has the same data may be asked.
    pub fn is_of_the_node(&self) -> bool {
        match self {
            Error::Away { .. } | Error::Slow { .. } => true,
            Error::Refused { reason, .. } => {
                matches!(reason, Reason::Draining | Reason::DiskFault | Reason::StoreNotMarked)
            }
            Error::Nonsense { .. } => false,
        }
    }

    /// What happened, as the client of `asked` may read it.
    pub fn sentence(&self, asked: &VirtualPath) -> String {
        match self {
            Error::Refused { sentence, path_at: Some(at), .. } => {
                let (before, rest) = sentence.split_at(at.start);
                let (path, after) = rest.split_at(at.end - at.start);
                [before, &*asked.below_root(path), after].concat()
            }
            Error::Refused { path_at: None, .. }
            | Error::Away { .. }
            | Error::Slow { .. }
            | Error::Nonsense { .. } => self.to_string(),
        }
    }

    pub fn node(&self) -> &NodeId {
        match self {
            Error::Refused { node, .. }
            | Error::Away { node, .. }
            | Error::Slow { node }
            | Error::Nonsense { node, .. } => node,
        }
    }

    /// The agent's reason, when it gave one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Error::Refused { reason, .. } => Some(*reason),
            Error::Away { .. } | Error::Slow { .. } | Error::Nonsense { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_an_older_agent_does_not_know_is_refused_and_the_node_is_not_away() {
        let node: NodeId = "mail-2".parse().unwrap();
        let error = Error::from_status(&node, Status::unimplemented(""));
        assert_eq!(error.reason(), Some(Reason::Unsupported));
        assert!(!error.is_of_the_node());
        assert!(error.to_string().contains("mail-2 is of an older version"), "{error}");
        // What a kind of store cannot do stays the agent's own sentence.
        let told = portolan_proto::failure::status(Reason::Unsupported, "this store cannot rename");
        assert_eq!(Error::from_status(&node, told).to_string(), "this store cannot rename");
    }
}
