//! A failed call: its [`Reason`] and sentence, to a `tonic::Status` and back.
//!
//! Who calls it: the agent's `service/status.rs` (to), the front end's `node_client` (from).
//! What it calls: tonic-types, for the standard google.rpc.ErrorInfo.
//! What it never does: choose an FTP reply; that is `ftp/reply.rs`.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::v1::Reason;

/// Domain of our ErrorInfo, so that a proxy's own details are not mistaken for ours.
pub const ERROR_DOMAIN: &str = "agent.portolan";

impl Reason {
    /// The gRPC code that goes with a reason.
    pub fn code(self) -> Code {
        match self {
            Reason::Unspecified => Code::Unknown,
            Reason::NotFound => Code::NotFound,
            Reason::AlreadyExists => Code::AlreadyExists,
            Reason::NotADirectory
            | Reason::IsADirectory
            | Reason::NotEmpty
            | Reason::NotAFile
            | Reason::OffsetBeyondEnd
            | Reason::CrossesFileSystems => Code::FailedPrecondition,
            Reason::PermissionDenied | Reason::NotGranted => Code::PermissionDenied,
            Reason::BadName | Reason::BadRequest => Code::InvalidArgument,
            Reason::NoSpace | Reason::QuotaExceeded => Code::ResourceExhausted,
            Reason::Busy | Reason::Draining => Code::Unavailable,
            Reason::DiskFault => Code::Internal,
            Reason::Damaged => Code::DataLoss,
            Reason::Unsupported => Code::Unimplemented,
        }
    }
}

/// A status for `reason` with one plain sentence.
pub fn status(reason: Reason, sentence: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason.as_str_name(), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(reason.code(), sentence, details)
}

/// The reason a status carries; `None` when it was not made by [`status`]: the transport failed, or the peer
/// is newer than we are.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain != ERROR_DOMAIN {
        return None;
    }
    Reason::from_str_name(&info.reason).filter(|reason| *reason != Reason::Unspecified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for number in 1..=19 {
            let reason = Reason::try_from(number).expect("reasons are numbered without gaps");
            let status = status(reason, "why");
            assert_eq!(reason_of(&status), Some(reason));
            assert_eq!(status.code(), reason.code());
            assert_eq!(status.message(), "why");
        }
        assert!(Reason::try_from(20).is_err(), "a new reason belongs into this test");
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(reason_of(&Status::unavailable("connection refused")), None);
    }
}
