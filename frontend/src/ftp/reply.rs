//! The reply for each failure: the last step of the error path.
//!
//! Codes follow RFC 959 section 4.2: 4yz invites the client to try again, 5yz does not.

use portolan_proto::v1::Reason;

use crate::{node_client, tree};

/// A reply to a client: a code and one plain sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub text: String,
}

/// What was being done, which decides what the client is told about its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    List,
    Read,
    Write,
    /// Make, remove, rename.
    Change,
    Look,
}

impl Action {
    fn outcome(self) -> &'static str {
        match self {
            Action::List => "nothing was listed",
            Action::Read => "the transfer is not complete",
            // A node that went silent after the last byte may have done it all the same.
            Action::Write => "the upload is not confirmed",
            Action::Change => "the change is not confirmed",
            Action::Look => "try again",
        }
    }
}

/// The reply for a failure of the tree. The sentence says what happened; where the client may come again it
/// also says what became of its request.
pub fn of(error: &tree::Error, action: Action) -> Reply {
    let code = code(error);
    let mut text = error.to_string();
    if code < 500 {
        text = format!("{text}; {}", action.outcome());
    }
    if let Some(first) = text.get(..1) {
        text = first.to_uppercase() + &text[1..];
    }
    text.push('.');
    Reply { code, text }
}

/// The code of a failure. Total: a new failure does not compile without a place here.
pub fn code(error: &tree::Error) -> u16 {
    match error {
        tree::Error::NotFound { .. }
        | tree::Error::AlreadyExists { .. }
        | tree::Error::IsADirectory { .. }
        | tree::Error::NotEmpty { .. }
        | tree::Error::NotGranted { .. }
        | tree::Error::Fixed { .. }
        | tree::Error::CrossesDomains { .. }
        | tree::Error::CrossesNodes { .. }
        | tree::Error::Unplaced { .. } => 550,
        tree::Error::BadName(_) => 553,
        tree::Error::Unheard { .. } => 450,
        tree::Error::Node(error) => node_code(error),
    }
}

fn node_code(error: &node_client::Error) -> u16 {
    match error {
        node_client::Error::Refused { reason, .. } => reason_code(*reason),
        node_client::Error::Away { .. } | node_client::Error::Slow { .. } => 450,
        node_client::Error::Nonsense { .. } => 451,
    }
}

fn reason_code(reason: Reason) -> u16 {
    match reason {
        Reason::NotFound
        | Reason::AlreadyExists
        | Reason::NotADirectory
        | Reason::IsADirectory
        | Reason::NotEmpty
        | Reason::NotAFile
        | Reason::OffsetBeyondEnd
        | Reason::CrossesFileSystems
        | Reason::PermissionDenied
        | Reason::NotGranted => 550,
        Reason::BadName => 553,
        Reason::NoSpace => 452,
        Reason::QuotaExceeded => 552,
        Reason::Busy | Reason::Draining => 450,
        Reason::BadRequest | Reason::DiskFault | Reason::Damaged | Reason::Unspecified => 451,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_one_plain_sentence_that_names_the_cause() {
        let node = "mail-2".parse().unwrap();
        let away = tree::Error::Node(node_client::Error::Away { node, source: None });
        let reply = of(&away, Action::List);
        assert_eq!((reply.code, &*reply.text), (450, "Node mail-2 does not answer; nothing was listed."));
        let missing = tree::Error::NotFound { path: "/domains/x".into() };
        assert_eq!(of(&missing, Action::Look).text, "/domains/x does not exist.");
    }
}
