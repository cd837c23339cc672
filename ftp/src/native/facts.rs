//! What is said of an entry: the facts of MLST and MLSD (RFC 3659 section 7), the lines of LIST, and times.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDate, Utc};

use super::command::number;
use portolan_cluster::auth::Login;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{self, Entry, Kind, Permissions, Tree};

/// The facts that a session wants to see (OPTS MLST). Type, size and so on are told in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    wanted: [bool; FACTS.len()],
}

const FACTS: [&str; 6] = ["type", "size", "modify", "perm", "unique", "UNIX.mode"];

impl Default for Facts {
    fn default() -> Self {
        Self { wanted: [true; FACTS.len()] }
    }
}

impl Facts {
    /// Those named in `type;size;`; unknown ones are passed over (RFC 3659 section 7.9).
    pub(super) fn parse(list: &str) -> Self {
        let named: Vec<&str> = list.split(';').collect();
        Self { wanted: FACTS.map(|fact| named.iter().any(|name| name.eq_ignore_ascii_case(fact))) }
    }

    /// As FEAT tells them: `type*;size*;...`, those in use with a star.
    pub(super) fn feature(self) -> String {
        let mark = |(fact, wanted): (&str, bool)| format!("{fact}{};", if wanted { "*" } else { "" });
        FACTS.into_iter().zip(self.wanted).map(mark).collect()
    }

    /// Those in use: `type;size;`.
    pub(super) fn names(self) -> String {
        let names = FACTS.into_iter().zip(self.wanted).filter(|(_, wanted)| *wanted);
        names.map(|(fact, _)| format!("{fact};")).collect()
    }

    /// Appends the facts of an entry and the space that its name follows.
    pub(super) fn write(self, out: &mut Vec<u8>, entry: &Entry, permissions: Permissions) {
        let mut text = String::with_capacity(128);
        for (fact, _) in FACTS.into_iter().zip(self.wanted).filter(|(_, wanted)| *wanted) {
            // A text takes whatever is written.
            write_fact(&mut text, fact, entry, permissions).ok();
        }
        out.extend_from_slice(text.as_bytes());
        out.push(b' ');
    }
}

fn write_fact(
    text: &mut String,
    fact: &str,
    entry: &Entry,
    permissions: Permissions,
) -> Result<(), std::fmt::Error> {
    match fact {
        "type" => write!(text, "type={};", type_of(entry.kind)),
        "size" if entry.kind == Kind::File => write!(text, "size={};", entry.size),
        "size" => Ok(()),
        "modify" => write!(text, "modify={};", timestamp(entry.modified)),
        "perm" => write!(text, "perm={};", perm(entry.kind, permissions)),
        "unique" => match entry.identity {
            Some(id) => write!(text, "unique={:x}.{:x}.{:x};", id.node, id.device, id.inode),
            None => Ok(()),
        },
        _ => write!(text, "UNIX.mode={:04o};", entry.unix_mode),
    }
}

/// The type fact (RFC 3659 section 7.5.1). Mirrors that know `OS.unix=symlink` make no file of a link, and without its
/// target no link; for what they do not know they ask, and are refused aloud.
fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "dir",
        Kind::Symlink => "OS.unix=symlink",
        Kind::Socket | Kind::Pipe | Kind::BlockDevice | Kind::CharacterDevice | Kind::Other => {
            "OS.unix=other"
        }
    }
}

/// The first letter of a line of LIST, as `ls` has it.
fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Socket => 's',
        // What is not known is nothing to fetch.
        Kind::Pipe | Kind::Other => 'p',
        Kind::BlockDevice => 'b',
        Kind::CharacterDevice => 'c',
    }
}

/// The perm fact (RFC 3659 section 7.5.5).
fn perm(kind: Kind, permissions: Permissions) -> String {
    let Permissions { read, change, purge, remove, rename } = permissions;
    let (is_directory, is_file) = (kind == Kind::Directory, kind == Kind::File);
    let letters = [
        ('a', is_file && change),
        ('c', is_directory && change),
        ('d', remove),
        ('e', is_directory),
        ('f', rename),
        ('l', is_directory),
        ('m', is_directory && change),
        ('p', is_directory && purge),
        ('r', is_file && read),
        ('w', is_file && change),
    ];
    letters.into_iter().filter(|(_, allowed)| *allowed).map(|(letter, _)| letter).collect()
}

/// Seconds in about half a year: older entries show their year in place of the time of day, as `ls` does.
const RECENT: Duration = Duration::from_secs(182 * 86_400);

/// Appends a line of LIST, without its end, as `ls -l` writes it and all clients read it.
pub(super) fn list_line(out: &mut Vec<u8>, entry: &Entry, name: &[u8], now: SystemTime) {
    let mut text = String::with_capacity(80);
    text.push(letter(entry.kind));
    for shift in [6, 3, 0] {
        let bits = entry.unix_mode >> shift;
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if bits & bit != 0 { letter } else { '-' });
        }
    }
    let modified = DateTime::<Utc>::from(entry.modified);
    let is_recent = now.duration_since(entry.modified).is_ok_and(|age| age < RECENT);
    let form = if is_recent { "%b %e %H:%M" } else { "%b %e  %Y" };
    write!(text, " 1 mail mail {:>12} {} ", entry.size, modified.format(form)).ok();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&on_one_line(name));
    if entry.kind == Kind::Symlink && !entry.target.is_empty() {
        out.extend_from_slice(b" -> ");
        out.extend_from_slice(&on_one_line(&entry.target));
    }
}

/// The name of an entry as a listing of its directory shows it. A line break, which no command can have, is shown as
/// `?`. Where that is the name of another entry, more of them follow: what is shown is never another file's name, and
/// so its download fails aloud.
pub(super) async fn shown<'a>(
    tree: &Tree,
    login: &Login,
    directory: &VirtualPath,
    name: &'a [u8],
) -> tree::Result<Cow<'a, [u8]>> {
    if !name.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return Ok(name.into());
    }
    let mut shown = on_one_line(name);
    // It ends at the latest where the name is too long to be one.
    while let Ok(path) = VirtualPath::resolve(directory, &shown) {
        match tree.stat(login, &path).await {
            Ok(_) => shown.push(b'?'),
            Err(error) if error.is_not_found() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(shown.into())
}

/// A text that fits a line.
pub(super) fn on_one_line(name: &[u8]) -> Vec<u8> {
    name.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b'?' } else { *byte }).collect()
}

/// A time as MDTM and the modify fact tell it (RFC 3659 section 2.3), in whole seconds of UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%Y%m%d%H%M%S").to_string()
}

/// The same of nanoseconds since 1970.
pub(super) fn timestamp_of(nanoseconds: i64) -> String {
    DateTime::<Utc>::from_timestamp_nanos(nanoseconds).format("%Y%m%d%H%M%S").to_string()
}

/// Nanoseconds since 1970 of `YYYYMMDDHHMMSS[.fraction]`; `None` for what is no time, or none that can be
/// kept.
pub(super) fn parse_timestamp(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let nanoseconds = match fraction {
        None => 0,
        Some(digits) if (1..=9).contains(&digits.len()) => {
            let shift = 9 - u32::try_from(digits.len()).ok()?;
            u32::try_from(number(digits)?).ok()? * 10_u32.pow(shift)
        }
        Some(_) => return None,
    };
    let seconds = parse_seconds(whole)?;
    seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(nanoseconds))
}

/// Seconds since 1970 of `YYYYMMDDhhmm[ss]`.
pub(super) fn parse_seconds(text: &[u8]) -> Option<i64> {
    let field = |range: std::ops::Range<usize>| u32::try_from(number(text.get(range)?)?).ok();
    let seconds = match text.len() {
        12 => 0,
        14 => field(12..14)?,
        _ => return None,
    };
    // A leap second (60) is the second after it.
    let (seconds, leap) = if seconds == 60 { (59, 1) } else { (seconds, 0) };
    let date = NaiveDate::from_ymd_opt(i32::try_from(field(0..4)?).ok()?, field(4..6)?, field(6..8)?)?;
    let time = date.and_hms_opt(field(8..10)?, field(10..12)?, seconds)?;
    Some(time.and_utc().timestamp() + leap)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn entry(kind: Kind) -> Entry {
        let modified = UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        let (name, target) = (b"a b".to_vec(), b"else\nwhere".to_vec());
        Entry { name, kind, size: 5, modified, unix_mode: 0o640, identity: None, target }
    }

    #[test]
    fn times_are_checked() {
        for bad in [
            &b""[..],
            b"2020010100000",
            b"20200101000000.",
            b"20200101000000.1234567890",
            b"20201301000000",
            b"20200230000000",
            b"20200101240000",
            b"-0200101000000",
            b"2020010100000x",
            b"99990101000000",
        ] {
            assert_eq!(parse_timestamp(bad), None, "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(parse_timestamp(b"20200913122640"), Some(1_600_000_000_000_000_000));
        assert_eq!(parse_timestamp(b"20200913122640.5"), Some(1_600_000_000_500_000_000));
        assert_eq!(parse_timestamp(b"19691231235959"), Some(-1_000_000_000));
        assert_eq!(parse_timestamp(b"20161231235960"), Some(1_483_228_800_000_000_000));
        assert_eq!(parse_seconds(b"202009131226"), Some(1_599_999_960));
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(1_600_000_000)), "20200913122640");
    }

    #[test]
    fn facts_are_written_as_wanted() {
        let all = Permissions { read: true, change: true, purge: true, remove: true, rename: true };
        let mut out = Vec::new();
        Facts::default().write(&mut out, &entry(Kind::File), all);
        assert_eq!(out, b"type=file;size=5;modify=20200913122640;perm=adfrw;UNIX.mode=0640; ");
        out.clear();
        let some = Facts::parse("Size;TYPE;nonsense");
        some.write(&mut out, &entry(Kind::Directory), all);
        assert_eq!(out, b"type=dir; ");
        for (kind, expected) in [
            (Kind::Symlink, "type=OS.unix=symlink; "),
            (Kind::Socket, "type=OS.unix=other; "),
            (Kind::Other, "type=OS.unix=other; "),
        ] {
            out.clear();
            some.write(&mut out, &entry(kind), all);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
        assert_eq!(some.feature(), "type*;size*;modify;perm;unique;UNIX.mode;");
        assert_eq!(some.names(), "type;size;");
    }

    #[test]
    fn a_line_of_list_reads_like_ls() {
        let mut out = Vec::new();
        let now = UNIX_EPOCH + Duration::from_secs(1_600_000_060);
        list_line(&mut out, &entry(Kind::File), b"a\nb", now);
        assert_eq!(out, b"-rw-r----- 1 mail mail            5 Sep 13 12:26 a?b");
        out.clear();
        list_line(&mut out, &entry(Kind::Symlink), b"a", now);
        assert_eq!(out, b"lrw-r----- 1 mail mail            5 Sep 13 12:26 a -> else?where");
        for (kind, letter) in [
            (Kind::Socket, b's'),
            (Kind::Pipe, b'p'),
            (Kind::BlockDevice, b'b'),
            (Kind::CharacterDevice, b'c'),
            (Kind::Other, b'p'),
        ] {
            out.clear();
            list_line(&mut out, &entry(kind), b"a", now);
            assert!(out[0] == letter && out.ends_with(b" a"));
        }
        out.clear();
        list_line(&mut out, &entry(Kind::Directory), b"d", now + 2 * RECENT);
        assert_eq!(out, b"drw-r----- 1 mail mail            5 Sep 13  2020 d");
    }
}
