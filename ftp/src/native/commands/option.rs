//! How the session is to behave: TYPE, MODE, STRU, OPTS, LANG; and what there is: FEAT, HELP.

use portolan_config::checked::listener::Ascii;

use super::digest::{ALGORITHMS, algorithm_name};
use crate::native::command::{number, words};
use crate::native::facts::Facts;
use crate::native::session::{DataType, Session, Step};
use crate::reply::Reply;
use crate::verb::Verb;

/// FEAT (RFC 2389): what works here, and nothing else.
pub(super) fn feat(session: &Session) -> Step {
    let digests = ALGORITHMS
        .iter()
        .map(|(algorithm, name)| format!("{name}{};", if *algorithm == session.digest { "*" } else { "" }));
    let digests: String = digests.collect();
    let mut lines = Vec::new();
    if session.tls.is_some() {
        lines.extend(["AUTH TLS".to_owned(), "PBSZ".to_owned(), "PROT".to_owned()]);
    }
    lines.extend(["AVBL", "CLNT", "CSID"].map(str::to_owned));
    if session.service.listener.active {
        lines.push("EPRT".to_owned());
    }
    lines.extend([
        "EPSV".to_owned(),
        format!("HASH {}", digests.trim_end_matches(';')),
        "HOST".to_owned(),
        "LANG EN*".to_owned(),
        "MDTM".to_owned(),
        "MFF Modify;UNIX.mode;".to_owned(),
        "MFMT".to_owned(),
        format!("MLST {}", session.facts.feature()),
    ]);
    if session.service.listener.mode_z {
        lines.push("MODE Z".to_owned());
    }
    lines.extend([
        "RANG STREAM".to_owned(),
        "REST STREAM".to_owned(),
        "SITE CHMOD;HELP;UTIME".to_owned(),
        "SIZE".to_owned(),
        "TVFS".to_owned(),
        "UTF8".to_owned(),
    ]);
    lines.extend(["XCRC", "XMD5", "XSHA1", "XSHA256", "XSHA512"].map(str::to_owned));
    let body = lines.into_iter().map(String::into_bytes).collect();
    Reply { body, ..Reply::new(211, "Features:") }.into()
}

pub(super) fn help(argument: &[u8]) -> Step {
    if !argument.is_empty() {
        return match Verb::of(argument) {
            Some(verb) => Reply::with(214, format!("{} is served.", verb.name())).into(),
            None => Reply::new(504, "There is no such command.").into(),
        };
    }
    let body = Verb::ALL.chunks(12).map(|row| {
        let names: Vec<&str> = row.iter().map(|verb| verb.name()).collect();
        names.join(" ").into_bytes()
    });
    Reply { body: body.collect(), ..Reply::new(214, "Portolan serves these commands:") }.into()
}

pub(super) fn opts(session: &mut Session, argument: &[u8]) -> Step {
    let words = words(argument);
    let upper: Vec<Vec<u8>> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&[u8]> = upper.iter().map(Vec::as_slice).collect();
    match &upper[..] {
        [b"UTF8" | b"UTF-8"] | [b"UTF8" | b"UTF-8", b"ON"] if session.client.translates_names() => {
            Reply::new(502, NOT_TRANSLATED).into()
        }
        // Names are bytes; what they mean is between those who write and read them.
        [b"UTF8" | b"UTF-8"] | [b"UTF8" | b"UTF-8", b"ON" | b"OFF" | b"NLST"] => {
            Reply::new(200, "OK; names are transferred as bytes.").into()
        }
        [b"MLST"] => {
            session.facts = Facts::parse("");
            Reply::new(200, "MLST OPTS").into()
        }
        [b"MLST", _] => {
            session.facts = Facts::parse(&String::from_utf8_lossy(words[1]));
            Reply::with(200, format!("MLST OPTS {}", session.facts.names())).into()
        }
        [b"HASH"] => Reply::new(200, algorithm_name(session.digest)).into(),
        [b"HASH", name] => match ALGORITHMS.iter().find(|(_, known)| known.as_bytes() == *name) {
            Some((algorithm, name)) => {
                session.digest = *algorithm;
                Reply::new(200, name).into()
            }
            None => Reply::new(501, "Syntax: OPTS HASH SHA-256, SHA-512, SHA-1, MD5 or CRC32.").into(),
        },
        [b"MODE", b"Z", ..] if !session.service.listener.mode_z => {
            Reply::new(504, "MODE Z is not served here.").into()
        }
        [b"MODE", b"Z", b"LEVEL", level] => match number(level).and_then(|level| u32::try_from(level).ok()) {
            Some(level @ 1..=9) => {
                session.modes.level = level;
                Reply::with(200, format!("MODE Z LEVEL {level}")).into()
            }
            _ => Reply::new(501, "Syntax: OPTS MODE Z LEVEL 1 to 9.").into(),
        },
        _ if session.service.listener.mode_z => {
            Reply::new(501, "Syntax: OPTS UTF8, MLST, HASH or MODE Z LEVEL.").into()
        }
        _ => Reply::new(501, "Syntax: OPTS UTF8, MLST or HASH.").into(),
    }
}

/// The reply where a client would take a yes for leave to translate names.
const NOT_TRANSLATED: &str = "Names are transferred as bytes.";

/// LANG (RFC 2640): there is English.
pub(super) fn lang(session: &Session, argument: &[u8]) -> Step {
    if session.client.translates_names() {
        return Reply::new(502, NOT_TRANSLATED).into();
    }
    let primary = argument.split(|byte| *byte == b'-').next().unwrap_or_default();
    if primary.is_empty() || primary.eq_ignore_ascii_case(b"EN") {
        return Reply::new(200, "OK.").into();
    }
    Reply::new(504, "Language not supported; use LANG EN.").into()
}

pub(super) fn data_type(session: &mut Session, argument: &[u8]) -> Step {
    let words: Vec<Vec<u8>> = words(argument).iter().map(|word| word.to_ascii_uppercase()).collect();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    session.modes.data_type = match &words[..] {
        [b"A"] | [b"A", b"N"] => DataType::Ascii,
        [b"I"] | [b"L", b"8"] => DataType::Image,
        _ => return Reply::new(504, "TYPE not supported; use I, A or L 8.").into(),
    };
    let text = match (session.modes.ascii(), session.service.listener.ascii) {
        (false, _) => "TYPE I: bytes are sent unchanged.",
        (true, Ascii::Refuse) => "TYPE A: listings only; files need TYPE I.",
        (true, Ascii::Verbatim) => "TYPE A: bytes are sent unchanged.",
        (true, Ascii::Convert) => "TYPE A: line ends are converted.",
    };
    Reply::new(200, text).into()
}

pub(super) fn mode(session: &mut Session, argument: &[u8]) -> Step {
    session.modes.deflate = match argument {
        b"S" | b"s" => false,
        b"Z" | b"z" if session.service.listener.mode_z => true,
        _ if session.service.listener.mode_z => {
            return Reply::new(504, "MODE not supported; use S or Z.").into();
        }
        _ => return Reply::new(504, "MODE not supported; use S.").into(),
    };
    Reply::new(200, if session.modes.deflate { "MODE Z: zlib." } else { "MODE S." }).into()
}

pub(super) fn structure(argument: &[u8]) -> Step {
    if argument.eq_ignore_ascii_case(b"F") {
        return Reply::new(200, "STRU F.").into();
    }
    Reply::new(504, "STRU not supported; use F.").into()
}
