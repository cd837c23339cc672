//! What is known of one entry, and changes of it: SIZE to SITE (RFC 3659, draft-somers-ftp-mfxx,
//! draft-peterson-streamlined-ftp-command-extensions for AVBL).

use std::time::SystemTime;

use portolan_config::checked::listener::Ascii;

use super::{asked, asked_to_change, login, path};
use crate::native::command::words;
use crate::native::facts::{
    list_line, on_one_line, parse_seconds, parse_timestamp, shown, timestamp, timestamp_of,
};
use crate::native::listing::{self, Asked, ENTRY_STEPS, Source, Turn};
use crate::native::session::{Session, Step};
use crate::reply::{Action, Reply};
use crate::transfer::changed;
use crate::verb::Verb;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{Changed, Entry, Kind, Tree};

/// Entries that STAT shows of a directory at most: its reply is one piece.
const STAT_ENTRIES_MAX: usize = 1_000;

/// The path of an argument and what stands there.
async fn entry(session: &Session, verb: Verb, argument: &[u8]) -> Result<(VirtualPath, Entry), Reply> {
    let path = path(session, verb, argument).await?;
    let login = login(session);
    let stat = session.service.shared.tree.stat(&login, &path);
    let entry = asked(session, verb, &path, Action::Look, stat).await?;
    Ok((path, entry))
}

pub(super) async fn size(session: &Session, argument: &[u8]) -> Step {
    if session.modes.ascii() && session.service.listener.ascii == Ascii::Convert {
        return Reply::new(550, "The size after conversion is not known; use TYPE I.").into();
    }
    match entry(session, Verb::SIZE, argument).await {
        Ok((_, Entry { kind: Kind::File, size, .. })) => Reply::with(213, size.to_string()).into(),
        Ok((path, _)) => Reply::with(550, format!("{path} is not a file.")).into(),
        Err(reply) => reply.into(),
    }
}

pub(super) async fn mdtm(session: &Session, argument: &[u8]) -> Step {
    match entry(session, Verb::MDTM, argument).await {
        Ok((_, entry)) => Reply::with(213, timestamp(entry.modified)).into(),
        Err(reply) => reply.into(),
    }
}

pub(super) async fn mlst(session: &Session, argument: &[u8]) -> Step {
    match entry(session, Verb::MLST, argument).await {
        Ok((path, entry)) => {
            let mut line = Vec::new();
            let login = login(session);
            session.facts.write(&mut line, &entry, Tree::permissions(&login, &path));
            line.extend(path.to_bytes());
            Reply { body: vec![line], ..Reply::with(250, format!("Facts of {path}:")) }.into()
        }
        Err(reply) => reply.into(),
    }
}

/// STAT with a name: as LIST, in the reply.
pub(super) async fn stat(session: &Session, asked: Asked) -> Step {
    if asked.recursive {
        return Reply::new(504, "STAT lists one directory; use LIST -R.").into();
    }
    match stat_lines(session, &asked).await {
        Ok((code, path, body)) if body.is_empty() => {
            Reply::with(code, format!("There is nothing to show of {path}.")).into()
        }
        Ok((code, path, body)) => Reply { body, ..Reply::with(code, format!("Status of {path}:")) }.into(),
        Err(reply) => reply.into(),
    }
}

async fn stat_lines(session: &Session, wanted: &Asked) -> Result<(u16, VirtualPath, Vec<Vec<u8>>), Reply> {
    let path = path(session, Verb::STAT, &wanted.path).await?;
    let now = SystemTime::now();
    let line = |entry: &Entry, name: &[u8]| {
        let mut line = Vec::new();
        list_line(&mut line, entry, name, now);
        line
    };
    let login = login(session);
    let tree = &session.service.shared.tree;
    let finding = async {
        match listing::find(tree, &login, &path, wanted.itself).await {
            // A link is shown as what it is.
            Err(error) if error.is_not_a_file() => listing::find(tree, &login, &path, true).await,
            found => found,
        }
    };
    let (source, directory) = asked(session, Verb::STAT, &path, Action::List, finding).await?;
    let (mut listing, mut pattern) = match source {
        Source::Single(entry) => {
            let code = if entry.kind == Kind::Directory { 212 } else { 213 };
            return Ok((code, path, vec![line(&entry, &entry.name)]));
        }
        Source::Directory(listing) => (listing, None),
        Source::Matching(listing, pattern) => (listing, Some(pattern)),
    };
    let mut turn = Turn::default();
    let mut lines = Vec::new();
    while let Some(batch) = asked(session, Verb::STAT, &path, Action::List, listing.next_batch()).await? {
        for entry in batch {
            turn.take(ENTRY_STEPS).await;
            if let Some(pattern) = &mut pattern {
                let fits = pattern.fits(&entry.name);
                turn.take(pattern.take_work()).await;
                if !fits {
                    continue;
                }
            }
            let name = shown(tree, &login, &directory, &entry.name);
            let name = asked(session, Verb::STAT, &path, Action::List, name).await?;
            lines.push(line(&entry, &name));
        }
        if lines.len() > STAT_ENTRIES_MAX {
            let text = format!("{path} has more than {STAT_ENTRIES_MAX} entries; use MLSD or LIST.");
            return Err(Reply::with(504, text));
        }
    }
    Ok((212, path, lines))
}

pub(super) async fn avbl(session: &Session, argument: &[u8]) -> Step {
    let path = match path(session, Verb::AVBL, argument).await {
        Ok(path) => path,
        Err(reply) => return reply.into(),
    };
    let login = login(session);
    let free = session.service.shared.tree.bytes_free(&login, &path);
    match asked(session, Verb::AVBL, &path, Action::Look, free).await {
        Ok(bytes) => Reply::with(213, bytes.to_string()).into(),
        Err(reply) => reply.into(),
    }
}

/// What may be set of an entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Nanoseconds since 1970.
    modified_ns: Option<i64>,
    unix_mode: Option<u32>,
}

/// What was changed, and the time that is kept where it is another than was asked for.
async fn change(
    session: &Session,
    verb: Verb,
    name: &[u8],
    changes: &Changes,
) -> Result<(VirtualPath, Option<String>), Reply> {
    let path = path(session, verb, name).await?;
    let login = login(session);
    let tree = &session.service.shared.tree;
    // A drain waits for its reply.
    let _under_way = session.control.begin_transfer(None);
    let mut made = Changed::default();
    if let Some(unix_mode) = changes.unix_mode {
        let setting = tree.set_mode(&login, &path, unix_mode);
        made = asked_to_change(session, &login, verb, (&path, None), setting).await?;
    }
    let mut kept = None;
    if let Some(modified_ns) = changes.modified_ns {
        let setting = tree.set_times(&login, &path, modified_ns);
        let (set, kept_ns) = asked_to_change(session, &login, verb, (&path, None), setting).await?;
        made = set;
        kept = (kept_ns != modified_ns).then(|| timestamp_of(kept_ns));
    }
    changed(&session.control, &login, verb, &path, None, &made);
    Ok((path, kept))
}

/// A word, and all that follows the space after it.
fn word_and_rest(argument: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = argument.iter().position(|byte| *byte == b' ')?;
    let (word, rest) = (&argument[..at], &argument[at + 1..]);
    (!rest.is_empty()).then_some((word, rest))
}

pub(super) async fn mfmt(session: &Session, argument: &[u8]) -> Step {
    let parsed = word_and_rest(argument).and_then(|(time, name)| Some((parse_timestamp(time)?, time, name)));
    let Some((modified_ns, time, name)) = parsed else {
        return Reply::new(501, "Syntax: MFMT YYYYMMDDHHMMSS name (UTC).").into();
    };
    let changes = Changes { modified_ns: Some(modified_ns), unix_mode: None };
    match change(session, Verb::MFMT, name, &changes).await {
        Ok((path, kept)) => {
            let time = kept.as_deref().map_or(time, str::as_bytes);
            Reply::with(213, [b"Modify=", time, b"; ", &on_one_line(&path.to_bytes())].concat()).into()
        }
        Err(reply) => reply.into(),
    }
}

pub(super) async fn mff(session: &Session, argument: &[u8]) -> Step {
    let (facts, name) = word_and_rest(argument).unwrap_or_default();
    let changes = match parse_facts(facts) {
        Ok(changes) => changes,
        // What other servers can set is no mistake of the client.
        Err(FactFault::Unknown) => return Reply::new(504, "Only Modify and UNIX.mode can be set.").into(),
        Err(FactFault::Syntax) => {
            return Reply::new(501, "Syntax: MFF Modify=YYYYMMDDHHMMSS;UNIX.mode=0nnn; name.").into();
        }
    };
    match change(session, Verb::MFF, name, &changes).await {
        Ok((path, kept)) => {
            let facts = kept.map_or_else(|| facts.to_vec(), |kept| with_time(facts, &kept));
            Reply::with(213, [&facts, &b" "[..], &on_one_line(&path.to_bytes())].concat()).into()
        }
        Err(reply) => reply.into(),
    }
}

/// Why a list of facts cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FactFault {
    Syntax,
    /// There is one that cannot be set.
    Unknown,
}

/// `Modify=...;UNIX.mode=...;`, the last `;` missing with ncftp.
fn parse_facts(facts: &[u8]) -> Result<Changes, FactFault> {
    let mut changes = Changes::default();
    for fact in facts.strip_suffix(b";").unwrap_or(facts).split(|byte| *byte == b';') {
        let at = fact.iter().position(|byte| *byte == b'=').ok_or(FactFault::Syntax)?;
        let (name, value) = (fact[..at].to_ascii_lowercase(), &fact[at + 1..]);
        match &name[..] {
            b"modify" => changes.modified_ns = Some(parse_timestamp(value).ok_or(FactFault::Syntax)?),
            b"unix.mode" => changes.unix_mode = Some(parse_mode(value).ok_or(FactFault::Syntax)?),
            _ => return Err(FactFault::Unknown),
        }
    }
    Ok(changes)
}

/// Facts as they were set, with the time that is kept.
fn with_time(facts: &[u8], kept: &str) -> Vec<u8> {
    let is_time = |fact: &[u8]| fact.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"modify="));
    let set = facts
        .split(|byte| *byte == b';')
        .map(|fact| if is_time(fact) { [&fact[..7], kept.as_bytes()].concat() } else { fact.to_vec() });
    set.collect::<Vec<_>>().join(&b';')
}

/// Octal permission bits up to 0777: what gives a program another user's rights is nobody's to set here.
fn parse_mode(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 5)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777)
}

pub(super) async fn site(session: &Session, argument: &[u8]) -> Step {
    let (verb, rest) = match word_and_rest(argument) {
        Some((verb, rest)) => (verb.to_ascii_uppercase(), rest),
        None => (argument.trim_ascii().to_ascii_uppercase(), &[][..]),
    };
    match &verb[..] {
        b"HELP" => {
            let lines = ["CHMOD mode name", "HELP", "UTIME YYYYMMDDhhmm[ss] name", UTIME_LONG];
            let body = lines.map(|line| line.as_bytes().to_vec()).to_vec();
            Reply { body, ..Reply::new(214, "SITE commands:") }.into()
        }
        b"CHMOD" => chmod(session, rest).await,
        b"UTIME" => utime(session, rest).await,
        _ => Reply::new(504, "SITE command not supported; use CHMOD, HELP or UTIME.").into(),
    }
}

const UTIME_LONG: &str = "UTIME name atime mtime ctime UTC, each time as YYYYMMDDhhmmss";

async fn chmod(session: &Session, argument: &[u8]) -> Step {
    let parsed = word_and_rest(argument).and_then(|(mode, name)| Some((parse_mode(mode)?, name)));
    let Some((unix_mode, name)) = parsed else {
        return Reply::new(501, "Syntax: SITE CHMOD mode name (mode 0 to 777, octal).").into();
    };
    let changes = Changes { modified_ns: None, unix_mode: Some(unix_mode) };
    site_done(change(session, Verb::SITE, name, &changes).await)
}

async fn utime(session: &Session, argument: &[u8]) -> Step {
    let Some((seconds, name)) = parse_utime(argument) else {
        return Reply::with(501, format!("Syntax: SITE UTIME YYYYMMDDhhmm[ss] name, SITE {UTIME_LONG}."))
            .into();
    };
    let Some(modified_ns) = seconds.checked_mul(1_000_000_000) else {
        return Reply::new(501, "The time is outside the supported range.").into();
    };
    let changes = Changes { modified_ns: Some(modified_ns), unix_mode: None };
    site_done(change(session, Verb::SITE, name, &changes).await)
}

/// Both forms: the time first, or the name first with three times and the word UTC. The seconds since 1970
/// and the name.
fn parse_utime(argument: &[u8]) -> Option<(i64, &[u8])> {
    let words = words(argument);
    if let [.., atime, mtime, ctime, zone] = &words[..]
        && zone.eq_ignore_ascii_case(b"UTC")
        && [atime, mtime, ctime].iter().all(|time| parse_seconds(time).is_some())
    {
        let times = [atime.len(), mtime.len(), ctime.len(), zone.len()];
        // The name is what is left of the times and the spaces before them.
        let tail = times.iter().sum::<usize>() + times.len();
        let name = argument.get(..argument.len().checked_sub(tail)?)?;
        return (!name.is_empty()).then_some((parse_seconds(mtime)?, name));
    }
    let (time, name) = word_and_rest(argument)?;
    Some((parse_seconds(time)?, name))
}

fn site_done(done: Result<(VirtualPath, Option<String>), Reply>) -> Step {
    match done {
        Ok((path, None)) => Reply::with(200, format!("{path} was changed.")).into(),
        Ok((path, Some(kept))) => {
            Reply::with(200, format!("{path} was changed; the time that is kept is {kept}.")).into()
        }
        Err(reply) => reply.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_utime() {
        let noon = parse_seconds(b"20200913122640").unwrap();
        assert_eq!(parse_utime(b"20200913122640 a b"), Some((noon, &b"a b"[..])));
        assert_eq!(parse_utime(b"202009131226 a"), Some((noon - 40, &b"a"[..])));
        let long = b"a  b 20210101000000 20200913122640 20210101000000 UTC";
        assert_eq!(parse_utime(long), Some((noon, &b"a  b"[..])));
        for bad in [&b""[..], b"20200913122640", b"20200913122640 ", b"x a", b"20201313122640 a"] {
            assert_eq!(parse_utime(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn facts_to_set_are_checked() {
        assert_eq!(
            parse_facts(b"Modify=19700101000001;unix.MODE=0640;"),
            Ok(Changes { modified_ns: Some(1_000_000_000), unix_mode: Some(0o640) })
        );
        assert_eq!(parse_facts(b"UNIX.mode=0640").unwrap().unix_mode, Some(0o640));
        for bad in [&b""[..], b"modify", b"modify=1;", b";", b"UNIX.mode=4755;", b"modify=19700101000001;;"] {
            assert_eq!(parse_facts(bad), Err(FactFault::Syntax), "{}", String::from_utf8_lossy(bad));
        }
        for unknown in [&b"create=19700101000001;"[..], b"Modify=19700101000001;Create=19700101000001"] {
            assert_eq!(parse_facts(unknown), Err(FactFault::Unknown));
        }
        assert_eq!(parse_mode(b"+644"), None);
        assert_eq!(
            with_time(b"modify=20200101000001;UNIX.mode=0640;", "20200101000000"),
            *b"modify=20200101000000;UNIX.mode=0640;"
        );
        assert_eq!(with_time(b"UNIX.mode=0640", "20200101000000"), *b"UNIX.mode=0640");
    }
}
