//! Entries by key, of which the newest counts, and the file that keeps them.
//!
//! Who calls it: portolan-cluster, which gives the entries their meaning; the agent, which keeps them for front ends.
//! What it calls: the file system, in the folder that it is given.
//! What it never does: know what a key means, or lose what it had for a file that is damaged at its end.
//!
//! The file: a heading of 8 bytes, then frames. A frame is the length of its content and the CRC-32C of it, 4 bytes
//! each, little-endian, then the content: time (8 bytes), removed (1), length of the key (2), key, value. A frame that is cut
//! or damaged ends the file; what stands before it counts.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Bytes of a key at most: three names and what joins them.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Bytes of a value at most.
pub const VALUE_BYTES_MAX: usize = 512;
/// Entries that one keeper takes at most; further ones are refused.
pub const ENTRIES_MAX: usize = 2_000_000;
/// How long what was removed is remembered, in nanoseconds: 30 days.
pub const REMOVED_KEPT_NS: i64 = 30 * 24 * 3_600 * 1_000_000_000;

const NAME: &str = "record";
const NEW_NAME: &str = "record.new";
const HEADING: &[u8; 8] = b"PTLNREC1";
const FRAME_HEAD: usize = 8;
const CONTENT_HEAD: usize = 11;
/// A file is written anew when so many frames are of no use, and more than those that are.
const USELESS_MIN: usize = 10_000;

/// What is known of a key. Of two the greater counts, which is the newer one: merging in any order, any number of times,
/// gives the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Nanoseconds since 1970.
    pub at_ns: i64,
    /// It may be forgotten after [`REMOVED_KEPT_NS`].
    pub removed: bool,
    pub value: Box<[u8]>,
}

impl Entry {
    /// True for what needs to be remembered no longer.
    pub fn is_over(&self, now_ns: i64) -> bool {
        self.removed && self.at_ns.saturating_add(REMOVED_KEPT_NS) < now_ns
    }
}

pub type Key = Box<[u8]>;
pub type Entries = BTreeMap<Key, Entry>;

/// The time that entries are written with.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// True for what a keeper takes.
pub fn is_sound(key: &[u8], entry: &Entry) -> bool {
    !key.is_empty() && key.len() <= KEY_BYTES_MAX && entry.value.len() <= VALUE_BYTES_MAX
}

/// Takes an entry in; true where it is newer than what was there.
pub fn merge(entries: &mut Entries, key: &[u8], entry: &Entry) -> bool {
    match entries.get_mut(key) {
        Some(present) if *present >= *entry => false,
        Some(present) => {
            *present = entry.clone();
            true
        }
        None => {
            entries.insert(key.into(), entry.clone());
            true
        }
    }
}

/// The file of a record, in a folder that is its owner's alone.
#[derive(Debug)]
pub struct Log {
    folder: OwnedFd,
    file: File,
    /// Frames in the file.
    frames: usize,
    /// An append failed: the file is written anew before the next one.
    is_torn: bool,
}

/// What a file held.
#[derive(Debug)]
pub struct Opened {
    pub log: Log,
    pub entries: Entries,
    /// Its end was damaged and is cut off.
    pub was_damaged: bool,
}

impl Log {
    /// Opens the file in a folder, or makes it. What is damaged at its end is cut off.
    ///
    /// # Errors
    /// The folder cannot be written to, or what is there is no file.
    pub fn open(folder: OwnedFd) -> io::Result<Opened> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&folder, NAME, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        let length = file.metadata()?.len();
        let mut entries = Entries::new();
        let (mut frames, mut good) = (0, 0);
        let mut reader = BufReader::new(&mut file);
        let mut heading = [0; HEADING.len()];
        if reader.read_exact(&mut heading).is_ok() && heading == *HEADING {
            good = HEADING.len() as u64;
            while let Some((key, entry, bytes)) = frame(&mut reader) {
                merge(&mut entries, &key, &entry);
                frames += 1;
                good += bytes;
            }
        }
        drop(reader);
        let was_damaged = good < length;
        let mut log = Self { folder, file, frames, is_torn: false };
        if good == 0 {
            // Nothing of it can be read: it begins anew.
            log.file.set_len(0)?;
            log.file.rewind()?;
            log.file.write_all(HEADING)?;
        } else {
            log.file.set_len(good)?;
            log.file.seek(SeekFrom::End(0))?;
        }
        log.file.sync_all()?;
        rustix::fs::fsync(&log.folder)?;
        Ok(Opened { log, entries, was_damaged })
    }

    /// Adds entries, and waits until they are on the disk.
    ///
    /// # Errors
    /// It is not known which of them are; the file is to be written anew ([`Log::needs_rewrite`]).
    pub fn append<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a Entry)>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut count = 0;
        for (key, entry) in entries {
            write_frame(&mut bytes, key, entry);
            count += 1;
        }
        self.is_torn = true;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.is_torn = false;
        self.frames += count;
        Ok(())
    }

    /// True where the file has more that is of no use than what counts, with so many entries, or ends badly.
    pub fn needs_rewrite(&self, entries: usize) -> bool {
        self.is_torn || self.frames > 2 * entries + USELESS_MIN
    }

    /// Writes the file anew with these entries, and puts it in the place of the old one, which stands until then.
    ///
    /// # Errors
    /// The old file stays.
    pub fn rewrite<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a Entry)>) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.folder, NEW_NAME, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.folder, NEW_NAME, flags, Mode::from_raw_mode(0o600))?;
        let mut writer = BufWriter::new(File::from(file));
        writer.write_all(HEADING)?;
        let (mut bytes, mut frames) = (Vec::new(), 0);
        for (key, entry) in entries {
            bytes.clear();
            write_frame(&mut bytes, key, entry);
            writer.write_all(&bytes)?;
            frames += 1;
        }
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.folder, NEW_NAME, &self.folder, NAME)?;
        rustix::fs::fsync(&self.folder)?;
        *self = Self { folder: self.folder.try_clone()?, file, frames, is_torn: false };
        Ok(())
    }
}

fn write_frame(bytes: &mut Vec<u8>, key: &[u8], entry: &Entry) {
    let begin = bytes.len();
    bytes.extend([0; FRAME_HEAD]);
    bytes.extend(entry.at_ns.to_le_bytes());
    bytes.push(u8::from(entry.removed));
    let key_bytes = u16::try_from(key.len()).expect("a key is of 1,024 bytes at most");
    bytes.extend(key_bytes.to_le_bytes());
    bytes.extend(key);
    bytes.extend(&*entry.value);
    let content = begin + FRAME_HEAD;
    let length = u32::try_from(bytes.len() - content).expect("a frame is small");
    let checksum = crc32c::crc32c(&bytes[content..]);
    bytes[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    bytes[begin + 4..content].copy_from_slice(&checksum.to_le_bytes());
}

/// The next frame, and its length in the file; `None` at the end, and where it is cut or damaged.
fn frame(reader: &mut impl io::Read) -> Option<(Key, Entry, u64)> {
    let mut head = [0; FRAME_HEAD];
    reader.read_exact(&mut head).ok()?;
    let [length, checksum] =
        [0, 4].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")));
    let length = usize::try_from(length).ok()?;
    if !(CONTENT_HEAD..=CONTENT_HEAD + KEY_BYTES_MAX + VALUE_BYTES_MAX).contains(&length) {
        return None;
    }
    let mut content = vec![0; length];
    reader.read_exact(&mut content).ok()?;
    if crc32c::crc32c(&content) != checksum {
        return None;
    }
    let at_ns = i64::from_le_bytes(content[..8].try_into().ok()?);
    let key_bytes = usize::from(u16::from_le_bytes(content[9..11].try_into().ok()?));
    let rest = &content[CONTENT_HEAD..];
    let (key, value) = rest.split_at_checked(key_bytes)?;
    let entry = Entry { at_ns, removed: content[8] != 0, value: value.into() };
    Some((key.into(), entry, (FRAME_HEAD + length) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at_ns: i64, value: &str) -> Entry {
        Entry { at_ns, removed: value.is_empty(), value: value.as_bytes().into() }
    }

    fn open(folder: &std::path::Path) -> Opened {
        Log::open(File::open(folder).unwrap().into()).unwrap()
    }

    #[test]
    fn merging_in_any_order_and_any_number_of_times_gives_the_same() {
        let all: Vec<(Key, Entry)> = (0..60_i64)
            .map(|n| {
                let key = format!("k{}", n % 7).into_bytes().into();
                (key, entry(n * 37 % 11, ["a", "b", ""][n as usize % 3]))
            })
            .collect();
        let merged = |order: &mut dyn Iterator<Item = &(Key, Entry)>| {
            let mut entries = Entries::new();
            for (key, entry) in order {
                merge(&mut entries, key, entry);
            }
            entries
        };
        let forth = merged(&mut all.iter());
        assert_eq!(forth, merged(&mut all.iter().rev()));
        assert_eq!(forth, merged(&mut all.iter().chain(all.iter().skip(20)).chain(&all)));
        let (one, two) = (merged(&mut all[..30].iter()), merged(&mut all[30..].iter()));
        let both: Vec<_> = two.into_iter().chain(one).collect();
        assert_eq!(forth, merged(&mut both.iter()));
    }

    #[test]
    fn what_was_appended_is_there_again_whatever_stands_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(NAME);
        let mut log = open(folder.path()).log;
        let (one, two) = (entry(1, "a"), entry(2, "b"));
        log.append([(&b"one"[..], &one), (b"two", &two)].into_iter()).unwrap();
        log.append([(&b"one"[..], &entry(3, ""))].into_iter()).unwrap();
        drop(log);
        let whole = std::fs::read(&file).unwrap();
        let Opened { entries, was_damaged, .. } = open(folder.path());
        assert!(!was_damaged);
        assert_eq!((entries.len(), &entries[&b"one"[..]]), (2, &entry(3, "")));
        // Cut anywhere in the last frame, the one before counts, and the file can be added to.
        for cut in [1, 5, 12, 21] {
            std::fs::write(&file, &whole[..whole.len() - cut]).unwrap();
            let Opened { mut log, entries, was_damaged } = open(folder.path());
            assert_eq!((was_damaged, &entries[&b"one"[..]]), (true, &one), "{cut}");
            log.append([(&b"three"[..], &one)].into_iter()).unwrap();
            assert!(open(folder.path()).entries.contains_key(&b"three"[..]));
        }
        for garbage in [&b"garbage"[..], b"", &[0xff; 4_096], &[0; 100]] {
            std::fs::write(&file, garbage).unwrap();
            let Opened { mut log, entries, was_damaged } = open(folder.path());
            assert_eq!((was_damaged, entries.len()), (!garbage.is_empty(), 0));
            log.append([(&b"new"[..], &one)].into_iter()).unwrap();
            assert_eq!(open(folder.path()).entries.len(), 1);
        }
        let mut damaged = whole.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        damaged.extend([0xaa; 50]);
        std::fs::write(&file, damaged).unwrap();
        assert!(open(folder.path()).was_damaged);
    }

    #[test]
    fn a_file_that_is_written_anew_has_each_entry_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path()).log;
        let mut entries = Entries::new();
        for n in 0..20 {
            merge(&mut entries, b"key", &entry(n, "x"));
            log.append(entries.iter().map(|(key, entry)| (&**key, entry))).unwrap();
        }
        let before = std::fs::metadata(folder.path().join(NAME)).unwrap().len();
        log.rewrite(entries.iter().map(|(key, entry)| (&**key, entry))).unwrap();
        assert!(std::fs::metadata(folder.path().join(NAME)).unwrap().len() < before / 10);
        log.append([(&b"more"[..], &entry(1, "y"))].into_iter()).unwrap();
        let opened = open(folder.path());
        assert_eq!((opened.entries.len(), opened.was_damaged), (2, false));
    }
}
