//! The mark of a store: the small text file that tells a mounted volume from the empty folder that it is mounted on.
//!
//! Who calls it: the agent, which reads and writes marks; the check of its configuration.
//! What it calls: `id`.
//! What it never does: I/O.

use std::fmt;
use std::str::FromStr;

use crate::id::{BadNodeId, NodeId};

/// Where the mark lies, relative to the root of a store.
pub const MARK_PATH: &str = ".portolan/mark";
/// A longer file is no mark.
pub const MARK_BYTES_MAX: usize = 4_096;
/// The version of the format that is written, and the only one that is read.
pub const MARK_VERSION: u32 = 1;

/// Tells one store from every other: 128 random bits, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreId(u128);

impl StoreId {
    pub fn from_bits(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a store's id: 32 characters of 0-9 and a-f")]
pub struct BadStoreId;

impl FromStr for StoreId {
    type Err = BadStoreId;

    fn from_str(text: &str) -> Result<Self, BadStoreId> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(BadStoreId);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| BadStoreId)
    }
}

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub id: StoreId,
    /// The node whose store it is.
    pub node: NodeId,
}

/// Why a file is no mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMark {
    #[error("it is longer than {MARK_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("it is of version {found}; this program reads version {MARK_VERSION}")]
    OtherVersion { found: String },
    #[error("line {line} is not of the form KEY = \"VALUE\"")]
    Line { line: usize },
    #[error("{key} is missing, or given twice")]
    Key { key: &'static str },
    #[error("id: {0}")]
    Id(#[from] BadStoreId),
    #[error("node: {0}")]
    Node(#[from] BadNodeId),
}

impl Mark {
    /// The file's content.
    pub fn to_text(&self) -> String {
        format!(
            "# The mark of this store, made by `portolan-agent mark`. An agent serves no store without it.\n\
             # Do not copy it to another volume.\nversion = {MARK_VERSION}\nid = \"{}\"\nnode = \"{}\"\n",
            self.id, self.node
        )
    }

    /// Reads the file's content. Unknown keys of this version are a fault: there are none.
    pub fn parse(content: &[u8]) -> Result<Self, BadMark> {
        if content.len() > MARK_BYTES_MAX {
            return Err(BadMark::TooLong);
        }
        let text = std::str::from_utf8(content).map_err(|_| BadMark::NotText)?;
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let [mut version, mut id, mut node] = [None, None, None];
        for (number, line) in lines {
            let bad = || BadMark::Line { line: number };
            let (key, value) = line.split_once('=').ok_or_else(bad)?;
            let (key, value) = (key.trim(), value.trim());
            let quoted = || value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(bad);
            let (place, name, value) = match key {
                "version" => (&mut version, "version", value),
                "id" => (&mut id, "id", quoted()?),
                "node" => (&mut node, "node", quoted()?),
                // Another version may have other keys, so that is what to report.
                _ if version.is_some_and(|found| !is_ours(found)) => continue,
                _ => return Err(bad()),
            };
            if place.replace(value).is_some() {
                return Err(BadMark::Key { key: name });
            }
        }
        let version = version.ok_or(BadMark::Key { key: "version" })?;
        if !is_ours(version) {
            return Err(BadMark::OtherVersion { found: version.chars().take(16).collect() });
        }
        let id = id.ok_or(BadMark::Key { key: "id" })?.parse()?;
        let node = node.ok_or(BadMark::Key { key: "node" })?.parse()?;
        Ok(Self { id, node })
    }
}

fn is_ours(version: &str) -> bool {
    version.parse() == Ok(MARK_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark { id: StoreId::from_bits(0x0123_4567_89ab), node: "mail-1".parse().unwrap() }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let text = mark().to_text();
        assert_eq!(Mark::parse(text.as_bytes()), Ok(mark()));
        assert!(text.contains(&format!("id = \"{}123456789ab\"", "0".repeat(21))), "{text}");
    }

    #[test]
    fn a_mark_that_was_cut_anywhere_is_none() {
        let text = mark().to_text();
        // Without its last line end it is whole.
        for length in 0..text.len() - 1 {
            Mark::parse(&text.as_bytes()[..length]).expect_err(&text[..length]);
        }
    }

    #[test]
    fn what_is_no_mark_says_why() {
        let text = mark().to_text();
        for (content, expected) in [
            (vec![0xff, 0xfe], BadMark::NotText),
            (vec![b'#'; MARK_BYTES_MAX + 1], BadMark::TooLong),
            (vec![0; 100], BadMark::Line { line: 1 }),
            (b"garbage".to_vec(), BadMark::Line { line: 1 }),
            (b"".to_vec(), BadMark::Key { key: "version" }),
            (
                text.replace("version = 1", "version = 2\nshape = round").into_bytes(),
                BadMark::OtherVersion { found: "2".to_owned() },
            ),
            (text.replace("version", "vision").into_bytes(), BadMark::Line { line: 3 }),
            ((text.clone() + "node = \"mail-2\"\n").into_bytes(), BadMark::Key { key: "node" }),
            (text.replace("mail-1", "MAIL").into_bytes(), BadMark::Node(BadNodeId)),
            (text.replace("\"0000", "\"g000").into_bytes(), BadMark::Id(BadStoreId)),
            (text.replace("\"0000", "\"+000").into_bytes(), BadMark::Id(BadStoreId)),
            (text.replace("\"0000", "\"000").into_bytes(), BadMark::Id(BadStoreId)),
        ] {
            assert_eq!(Mark::parse(&content), Err(expected), "{}", String::from_utf8_lossy(&content));
        }
    }
}
