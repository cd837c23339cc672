//! Why a node did not do what it was asked.
//!
//! Third step of the error path: `store::Error` -> gRPC status -> here -> `ftp/reply.rs`.

use portolan_proto::failure::reason_of;
use portolan_proto::id::NodeId;
use portolan_proto::v1::Reason;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent answered, and refused.
    #[error("{sentence}")]
    Refused {
        node: NodeId,
        reason: Reason,
        /// One plain sentence of the agent's, without a full stop.
        sentence: String,
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
            let sentence = status.message().to_owned();
            return Error::Refused { node, reason, sentence, source: None };
        }
        match status.code() {
            Code::DeadlineExceeded => Error::Slow { node },
            // What the transport says when a connection is refused, reset or ends in mid-stream.
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted => {
                Error::Away { node, source: Some(Box::new(status)) }
            }
            // Codes that our agents always give a reason with.
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => {
                let sentence = format!("node {node} refused the call");
                Error::Refused { node, reason: Reason::Unspecified, sentence, source: Some(Box::new(status)) }
            }
        }
    }

    /// It is the node that failed and not the request, so that who has the same data may be asked.
    pub fn is_of_the_node(&self) -> bool {
        match self {
            Error::Away { .. } | Error::Slow { .. } => true,
            Error::Refused { reason, .. } => matches!(reason, Reason::Draining | Reason::DiskFault),
            Error::Nonsense { .. } => false,
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
