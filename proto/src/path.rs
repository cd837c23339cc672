//! The rules for paths on the wire, checked by both sides.
//!
//! Who calls it: `tree::VirtualPath` on the front end, `store::StorePath` on the agent.
//! What it calls: nothing.
//! What it never does: touch a file system, or assume that a name is UTF-8.

/// Bytes of a whole path at most.
pub const PATH_BYTES_MAX: usize = 4_096;
/// Bytes of one component at most (NAME_MAX of the usual file systems).
pub const COMPONENT_BYTES_MAX: usize = 255;

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    #[error("the path is longer than 4096 bytes")]
    TooLong,
    #[error("a name in the path is longer than 255 bytes")]
    ComponentTooLong,
    #[error("the path has an empty, \".\" or \"..\" component")]
    NotPlain,
    #[error("a name holds a NUL byte or a slash")]
    ForbiddenByte,
    #[error("the node's file system cannot have this name there")]
    Refused,
}

/// Checks one name.
///
/// Only NUL and '/' cannot be in a name of a POSIX file system. Line breaks can, though no FTP client can ask
/// for such a name: listings show them as '?', so that the entry is seen and its download fails aloud.
pub fn check_component(name: &[u8]) -> Result<(), PathFault> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err(PathFault::NotPlain);
    }
    if name.len() > COMPONENT_BYTES_MAX {
        return Err(PathFault::ComponentTooLong);
    }
    if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(PathFault::ForbiddenByte);
    }
    Ok(())
}

/// Checks a path of the wire: relative, components joined by '/', empty for the root.
pub fn check(path: &[u8]) -> Result<(), PathFault> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(PathFault::TooLong);
    }
    path.split(|byte| *byte == b'/').try_for_each(check_component)
}

/// True for a character that is not seen and changes what is: of the general categories Cf (format, such as the overrides of
/// the writing direction), Zl and Zp (separators of lines and paragraphs), by Unicode 16.
pub fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// A path or name for people: as it is where it is printable UTF-8, escaped where it is not.
pub fn display(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_format(c) {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_tree_are_refused() {
        for bad in [
            &b"/domains"[..],
            b"domains/",
            b"..",
            b"domains/../etc",
            b"domains/./x",
            b"domains//x",
            b".",
            b"a/..",
        ] {
            assert_eq!(check(bad), Err(PathFault::NotPlain), "{}", display(bad));
        }
        for bad in [&b"a\0b"[..], b"a/b\0"] {
            assert_eq!(check(bad), Err(PathFault::ForbiddenByte), "{}", display(bad));
        }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let name = vec![b'n'; COMPONENT_BYTES_MAX];
        assert_eq!(check(&name), Ok(()));
        assert_eq!(check(&[&name[..], b"n"].concat()), Err(PathFault::ComponentTooLong));
        let deep = [&b"dd/"[..], &vec![&b"d"[..]; 2_047].join(&b'/')].concat();
        assert_eq!((deep.len(), check(&deep)), (PATH_BYTES_MAX, Ok(())));
        assert_eq!(check(&[&deep[..], b"d"].concat()), Err(PathFault::TooLong));
        let long = vec![&name[..]; 17].join(&b'/');
        assert_eq!(check(&long), Err(PathFault::TooLong));
    }

    #[test]
    fn names_are_bytes() {
        assert_eq!(check(b"domains/example.org/users/\xff\xfe"), Ok(()));
        assert_eq!(display(b"a\xffb\x01"), "a\\xffb\\u{1}");
        assert_eq!(
            display("a\u{202e}b\u{2028}\u{2029}\u{feff}c".as_bytes()),
            r"a\u{202e}b\u{2028}\u{2029}\u{feff}c"
        );
        assert_eq!(display("e\u{301}\u{a0}\u{3000}\u{1f600}".as_bytes()), "e\u{301}\u{a0}\u{3000}\u{1f600}");
    }
}
