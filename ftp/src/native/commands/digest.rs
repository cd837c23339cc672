//! Digests of what lies on the nodes: RANG, HASH (draft-bryan-ftpext-hash, draft-bryan-ftp-range) and the
//! older XCRC, XMD5, XSHA1, XSHA256, XSHA512.

use std::sync::Arc;

use portolan_proto::v1::{DigestAlgorithm, DigestResponse};

use super::{login, named, path};
use crate::native::command::{number, words};
use crate::native::facts::on_one_line;
use crate::native::session::{Session, Step};
use crate::native::work::Progress;
use crate::reply::{self, Action, Reply};
use crate::transfer::command_failed;
use crate::verb::Verb;
use portolan_cluster::path::VirtualPath;

/// The algorithms by their names in FEAT.
pub(super) const ALGORITHMS: [(DigestAlgorithm, &str); 5] = [
    (DigestAlgorithm::Sha256, "SHA-256"),
    (DigestAlgorithm::Sha512, "SHA-512"),
    (DigestAlgorithm::Sha1, "SHA-1"),
    (DigestAlgorithm::Md5, "MD5"),
    (DigestAlgorithm::Crc32, "CRC32"),
];

pub(super) fn algorithm_name(algorithm: DigestAlgorithm) -> &'static str {
    let known = ALGORITHMS.iter().find(|(known, _)| *known == algorithm);
    known.map_or("none", |(_, name)| name)
}

/// RANG: the first and the last byte of the next HASH or RETR; `1 0` lifts it.
pub(super) fn rang(session: &mut Session, argument: &[u8]) -> Step {
    let numbers: Vec<Option<u64>> = words(argument).into_iter().map(number).collect();
    match &numbers[..] {
        [Some(1), Some(0)] => {
            (session.next.range, session.next.restart) = (None, None);
            Reply::new(350, "Range cleared.").into()
        }
        [Some(first), Some(last)] if first <= last => {
            session.next.range = Some((*first, *last));
            session.next.restart = None;
            Reply::with(350, format!("The next HASH or RETR is of bytes {first} to {last}.")).into()
        }
        _ => Reply::new(501, "Syntax: RANG first last, bytes from 0; RANG 1 0 clears the range.").into(),
    }
}

/// The offset and length of a range.
pub(super) fn span(range: Option<(u64, u64)>) -> (u64, Option<u64>) {
    range.map_or((0, None), |(first, last)| (first, Some((last - first).saturating_add(1))))
}

pub(super) async fn hash(session: &mut Session, argument: &[u8]) -> Step {
    let (name, path) = match named(session, Verb::HASH, argument).await {
        Ok(named) => named,
        Err(reply) => return reply.into(),
    };
    let algorithm = session.digest;
    let (offset, length) = span(session.next.range.take());
    let shown = on_one_line(&name);
    work(session, Verb::HASH, path, algorithm, offset, length, move |digest| {
        let last = (offset + digest.length).saturating_sub(1).max(offset);
        let text = format!("{} {offset}-{last} {} ", algorithm_name(algorithm), hex(&digest.digest));
        Reply::with(213, [text.as_bytes(), &shown].concat())
    })
}

/// XCRC and its kin: a name, perhaps in quotation marks and then perhaps with the first byte and the one
/// after the last.
pub(super) async fn x(
    session: &mut Session,
    verb: Verb,
    algorithm: DigestAlgorithm,
    argument: &[u8],
) -> Step {
    let Some((name, range)) = parse_x(argument) else {
        return Reply::with(501, format!("Syntax: {} name, {0} \"name\" first end.", verb.name())).into();
    };
    let path = match path(session, verb, name).await {
        Ok(path) => path,
        Err(reply) => return reply.into(),
    };
    let (offset, length) = range;
    work(session, verb, path, algorithm, offset, length, |digest| Reply::with(250, hex(&digest.digest)))
}

type Range = (u64, Option<u64>);

fn parse_x(argument: &[u8]) -> Option<(&[u8], Range)> {
    let Some(quoted) = argument.strip_prefix(b"\"") else { return Some((argument, (0, None))) };
    let end = quoted.iter().position(|byte| *byte == b'"')?;
    let (name, rest) = (&quoted[..end], &quoted[end + 1..]);
    let numbers: Option<Vec<u64>> = words(rest).into_iter().map(number).collect();
    match numbers?[..] {
        [] => Some((name, (0, None))),
        [first] => Some((name, (first, None))),
        [first, end] if first <= end => Some((name, (first, Some(end - first)))),
        _ => None,
    }
}

/// A digest takes as long as reading the file: it is computed beside the control loop.
fn work(
    session: &Session,
    verb: Verb,
    path: VirtualPath,
    algorithm: DigestAlgorithm,
    offset: u64,
    length: Option<u64>,
    tell: impl FnOnce(DigestResponse) -> Reply + Send + 'static,
) -> Step {
    let (tree, login) = (Arc::clone(&session.service.shared.tree), login(session));
    let control = Arc::clone(&session.control);
    let work = async move {
        Progress::Done(match tree.digest(&login, &path, algorithm, offset, length).await {
            Ok(digest) => tell(digest),
            Err(error) => {
                command_failed(&control, &login, verb, (&path, None), &error);
                reply::of(&error, Action::Look, &path)
            }
        })
    };
    Step::Work(Box::pin(work), None)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_counted_right() {
        assert_eq!(span(None), (0, None));
        assert_eq!(span(Some((0, 0))), (0, Some(1)));
        assert_eq!(span(Some((0, u64::MAX))), (0, Some(u64::MAX)));
        assert_eq!(parse_x(b"a b 1 2"), Some((&b"a b 1 2"[..], (0, None))));
        assert_eq!(parse_x(b"\"a b\" 1 2"), Some((&b"a b"[..], (1, Some(1)))));
        assert_eq!(parse_x(b"\"a\""), Some((&b"a"[..], (0, None))));
        for bad in [&b"\"a"[..], b"\"a\" 2 1", b"\"a\" x", b"\"a\" 1 2 3"] {
            assert_eq!(parse_x(bad), None);
        }
    }
}
