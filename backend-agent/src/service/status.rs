//! A store's error, as the gRPC status that the front end gets.
//!
//! Second step of the error path: `store::Error` -> here -> `nodes::Error` -> `ftp/src/reply.rs`.

use std::error::Error as _;

use portolan_proto::failure;
use portolan_proto::v1::Reason;
use tonic::Status;

use crate::store::Error;

/// Why a call failed, in the words of the contract. Total: a new error of the store does not compile
/// without a place here.
pub fn reason(error: &Error) -> Reason {
    match error {
        Error::NotFound { .. } => Reason::NotFound,
        Error::AlreadyExists { .. } => Reason::AlreadyExists,
        Error::NotADirectory { .. } => Reason::NotADirectory,
        Error::IsADirectory { .. } => Reason::IsADirectory,
        Error::NotEmpty { .. } => Reason::NotEmpty,
        Error::NotAFile { .. } => Reason::NotAFile,
        Error::OffsetBeyondEnd { .. } => Reason::OffsetBeyondEnd,
        Error::CrossesFileSystems { .. } => Reason::CrossesFileSystems,
        Error::PermissionDenied { .. } | Error::TimeNotKept { .. } | Error::ReadOnly { .. } => {
            Reason::PermissionDenied
        }
        Error::BadName(_) => Reason::BadName,
        Error::NoSpace { .. } => Reason::NoSpace,
        Error::QuotaExceeded { .. } => Reason::QuotaExceeded,
        Error::DiskFault { .. } => Reason::DiskFault,
        Error::Changing { .. } => Reason::Busy,
        Error::Stopped => Reason::Draining,
        Error::Unsupported { .. } => Reason::Unsupported,
        Error::Unserved(_) => Reason::StoreNotMarked,
        Error::Damaged { .. } | Error::Shrunk { .. } | Error::Rewritten { .. } => Reason::Damaged,
    }
}

/// The status of an error. What a person at the node must act on is logged here, once, with its cause.
pub fn of(mut error: Error) -> Status {
    let cause = error.source().map(tracing::field::display);
    match &error {
        Error::DiskFault { .. } => tracing::error!(%error, cause, "store failed"),
        Error::NoSpace { .. }
        | Error::QuotaExceeded { .. }
        | Error::PermissionDenied { .. }
        | Error::Damaged { .. }
        | Error::Shrunk { .. }
        | Error::Rewritten { .. }
        | Error::TimeNotKept { .. }
        | Error::Changing { .. }
        | Error::CrossesFileSystems { .. }
        | Error::NotAFile { .. } => tracing::warn!(%error, cause, "call refused"),
        Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::NotADirectory { .. }
        | Error::IsADirectory { .. }
        | Error::NotEmpty { .. }
        | Error::OffsetBeyondEnd { .. }
        | Error::Stopped
        | Error::Unsupported { .. }
        | Error::Unserved(_)
        | Error::ReadOnly { .. }
        | Error::BadName(_) => tracing::debug!(%error, "call refused"),
    }
    let reason = reason(&error);
    match error.path_mut().map(|path| std::mem::replace(path, failure::PATH.to_owned())) {
        Some(path) => failure::status_at(reason, &error.to_string(), &path),
        None => failure::status(reason, error.to_string()),
    }
}
