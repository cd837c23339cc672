//! A failed call: its [`Reason`], its sentence and where the path stands in that, to a `tonic::Status` and back.
//!
//! Who calls it: the agent's `service/status.rs` (to), `nodes` of portolan-cluster (from).
//! What it calls: tonic-types, for the standard google.rpc.ErrorInfo.
//! What it never does: choose an FTP reply; that is `ftp/src/reply.rs`.

use std::collections::HashMap;
use std::ops::Range;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::v1::Reason;

/// Domain of our ErrorInfo, so that a proxy's own details are not mistaken for ours.
pub const ERROR_DOMAIN: &str = "agent.portolan";

/// Bytes of a sentence on the wire at most. It goes twice, percent-encoded (three bytes for one) and in Base64, in HTTP/2
/// trailers of which a client takes 16 KiB; beyond them the failure of a call is one of the connection.
pub const SENTENCE_BYTES_MAX: usize = 2_048;
/// Stands for what is left out of a longer one.
const LEFT_OUT: &str = "...";

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
            Reason::Busy | Reason::Draining | Reason::StoreNotMarked => Code::Unavailable,
            Reason::DiskFault => Code::Internal,
            Reason::Damaged => Code::DataLoss,
            Reason::Unsupported => Code::Unimplemented,
        }
    }
}

/// Stands for the path in the sentence of [`status_at`].
pub const PATH: &str = "{path}";
/// Where the path stands in the sentence, in bytes: keys of the standard details.
const PATH_START: &str = "path_start";
const PATH_END: &str = "path_end";

/// A status for `reason` with one plain sentence about `path`, which stands where the sentence has [`PATH`]. The front end
/// learns where that is, because an admin may see a part of it only.
pub fn status_at(reason: Reason, sentence: &str, path: &str) -> Status {
    let Some((before, after)) = sentence.split_once(PATH) else { return status(reason, sentence) };
    let path = shortened(path.to_owned());
    let (start, end) = (before.len(), before.len() + path.len());
    let metadata =
        HashMap::from([(PATH_START.to_owned(), start.to_string()), (PATH_END.to_owned(), end.to_string())]);
    let details = ErrorDetails::with_error_info(reason.as_str_name(), ERROR_DOMAIN, metadata);
    Status::with_error_details(reason.code(), [before, &path, after].concat(), details)
}

/// Where the path stands in the sentence of a status; `None`: there is none.
pub fn path_of(status: &Status) -> Option<Range<usize>> {
    let info = status.get_details_error_info()?;
    let at = |key| info.metadata.get(key)?.parse::<usize>().ok();
    let place = at(PATH_START)?..at(PATH_END)?;
    status.message().get(place.clone()).map(|_| place)
}

/// A status for `reason` with one plain sentence.
pub fn status(reason: Reason, sentence: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason.as_str_name(), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(reason.code(), shortened(sentence.into()), details)
}

/// A sentence without its middle where it is too long: a path is at its beginning, what is wrong at its end, or the other
/// way round.
fn shortened(sentence: String) -> String {
    if sentence.len() <= SENTENCE_BYTES_MAX {
        return sentence;
    }
    let kept = (SENTENCE_BYTES_MAX - LEFT_OUT.len()) / 2;
    let start = (0..=kept).rev().find(|at| sentence.is_char_boundary(*at)).unwrap_or(0);
    let rest = sentence.len() - kept;
    let end = (rest..=sentence.len()).find(|at| sentence.is_char_boundary(*at)).unwrap_or(sentence.len());
    [&sentence[..start], LEFT_OUT, &sentence[end..]].concat()
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
        for number in 1..=20 {
            let reason = Reason::try_from(number).expect("reasons are numbered without gaps");
            let status = status(reason, "why");
            assert_eq!(reason_of(&status), Some(reason));
            assert_eq!(status.code(), reason.code());
            assert_eq!(status.message(), "why");
        }
        assert!(Reason::try_from(21).is_err(), "a new reason belongs into this test");
    }

    #[test]
    fn the_place_of_the_path_survives_the_wire() {
        for (sentence, path) in [
            ("{path} does not exist", "/a/\u{e9}"),
            ("the system refuses access to {path}", "/{path}/x"),
            ("{path} is full", &*format!("/{}", "\u{e9}".repeat(5_000))),
        ] {
            let status = status_at(Reason::NotFound, sentence, path);
            let at = path_of(&status).unwrap();
            let shown = &status.message()[at];
            assert!(shown == path || shown.contains(LEFT_OUT) && shown.starts_with('/'), "{shown}");
            assert_eq!(status.message(), sentence.replacen(PATH, shown, 1));
            assert_eq!(reason_of(&status), Some(Reason::NotFound));
        }
        assert_eq!(path_of(&status(Reason::Busy, "why")), None);
        assert_eq!(path_of(&status_at(Reason::Busy, "no path in it", "/a")), None);
    }

    #[test]
    fn a_long_sentence_loses_its_middle_and_no_character_is_cut() {
        for long in ["x".repeat(SENTENCE_BYTES_MAX + 1), "é".repeat(8_000), "受".repeat(8_000)] {
            let sentence = format!("/{long} does not exist");
            let shown = status(Reason::NotFound, sentence).message().to_owned();
            assert!(
                shown.len() <= SENTENCE_BYTES_MAX && shown.len() > SENTENCE_BYTES_MAX - 8,
                "{}",
                shown.len()
            );
            assert!(shown.starts_with('/') && shown.contains(LEFT_OUT) && shown.ends_with(" does not exist"));
        }
        let longest = "x".repeat(SENTENCE_BYTES_MAX);
        assert_eq!(status(Reason::NotFound, longest.clone()).message(), longest);
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(reason_of(&Status::unavailable("connection refused")), None);
    }
}
