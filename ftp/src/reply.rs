//! The reply for each failure: the last step of the error path.
//!
//! Codes follow RFC 959 section 4.2: 4yz invites the client to try again, 5yz does not.

use std::borrow::Cow;

use portolan_proto::v1::Reason;

use portolan_cluster::path::VirtualPath;
use portolan_cluster::{nodes, tree};

/// A reply to a client (RFC 959 section 4.2): a code and one plain sentence, with lines between where there is
/// more to say. Bytes, because names are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    /// The sentence; of a reply of several lines the first.
    pub text: Cow<'static, [u8]>,
    /// The lines between the first and the last.
    pub body: Vec<Vec<u8>>,
}

impl Reply {
    pub fn new(code: u16, text: &'static str) -> Self {
        Self { code, text: Cow::Borrowed(text.as_bytes()), body: Vec::new() }
    }

    pub fn with(code: u16, text: impl Into<Vec<u8>>) -> Self {
        Self { code, text: Cow::Owned(text.into()), body: Vec::new() }
    }

    /// Appends the reply as it goes over the wire. Nothing in it can end a line before its end.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let code = self.code.to_string();
        if self.body.is_empty() {
            encode_line(out, &[code.as_bytes(), b" ", &self.text]);
            return;
        }
        encode_line(out, &[code.as_bytes(), b"-", &self.text]);
        for line in &self.body {
            encode_line(out, &[b" ", line]);
        }
        encode_line(out, &[code.as_bytes(), b" End."]);
    }
}

fn encode_line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let bytes = parts.iter().copied().flatten();
    out.extend(bytes.map(|byte| if matches!(byte, b'\r' | b'\n' | 0) { b'?' } else { *byte }));
    out.extend_from_slice(b"\r\n");
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
/// also says what became of its request. `path` is what was asked for.
pub fn of(error: &tree::Error, action: Action, path: &VirtualPath) -> Reply {
    let code = code(error);
    let mut text = match error {
        // Agents do not know where the tree of an admin begins.
        tree::Error::Node(error) => error.sentence(path),
        error => error.to_string(),
    };
    if code < 500 {
        text = format!("{text}; {}", action.outcome());
    }
    if let Some(first) = text.get(..1) {
        text = first.to_uppercase() + &text[1..];
    }
    text.push('.');
    Reply::with(code, text)
}

/// The reply for a failure after a part of the answer has been sent, where RFC 959 section 5.4 has no 450.
pub fn broken(error: &tree::Error, action: Action, path: &VirtualPath) -> Reply {
    let reply = of(error, action, path);
    Reply { code: if reply.code == 450 { 426 } else { reply.code }, ..reply }
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
        | tree::Error::NotADirectory { .. }
        | tree::Error::OffsetBeyondEnd { .. }
        | tree::Error::NoDigest { .. }
        | tree::Error::CrossesDomains { .. }
        | tree::Error::CrossesNodes { .. }
        | tree::Error::Unplaced { .. } => 550,
        tree::Error::BadName(_) => 553,
        tree::Error::Unknown(_) => 450,
        tree::Error::Node(error) => node_code(error),
    }
}

fn node_code(error: &nodes::Error) -> u16 {
    match error {
        nodes::Error::Refused { reason, .. } => reason_code(*reason),
        nodes::Error::Away { .. } | nodes::Error::Slow { .. } => 450,
        nodes::Error::Nonsense { .. } => 451,
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
        Reason::Unsupported => 504,
        Reason::NoSpace => 452,
        Reason::QuotaExceeded => 552,
        Reason::Busy | Reason::Draining | Reason::StoreNotMarked => 450,
        Reason::BadRequest | Reason::DiskFault | Reason::Damaged | Reason::Unspecified => 451,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_one_plain_sentence_that_names_the_cause() {
        let node = "mail-2".parse().unwrap();
        let away = tree::Error::Node(nodes::Error::Away { node, source: None });
        let reply = of(&away, Action::List, &VirtualPath::default());
        let expected = &b"Node mail-2 does not answer; nothing was listed."[..];
        assert_eq!((reply.code, &*reply.text), (450, expected));
        let missing = tree::Error::NotFound { path: "/domains/x".into() };
        assert_eq!(&*of(&missing, Action::Look, &VirtualPath::default()).text, b"/domains/x does not exist.");
    }

    #[test]
    fn what_a_store_cannot_do_is_504_and_names_the_store() {
        let sentence = "the store of this node cannot set permissions at /domains/x".to_owned();
        let (node, reason) = ("mail-2".parse().unwrap(), Reason::Unsupported);
        let error =
            tree::Error::Node(nodes::Error::Refused { node, reason, sentence, path_at: None, source: None });
        let reply = of(&error, Action::Change, &VirtualPath::default());
        let expected = &b"The store of this node cannot set permissions at /domains/x."[..];
        assert_eq!((reply.code, &*reply.text), (504, expected));
    }

    #[test]
    fn no_text_ends_a_reply_before_its_end() {
        let mut out = Vec::new();
        Reply::with(550, "a\r\n226 b\0").encode(&mut out);
        let body = vec![b"226 done\n226 x".to_vec()];
        Reply { body, ..Reply::new(250, "Begin") }.encode(&mut out);
        assert_eq!(out, b"550 a??226 b?\r\n250-Begin\r\n 226 done?226 x\r\n250 End.\r\n");
    }
}
