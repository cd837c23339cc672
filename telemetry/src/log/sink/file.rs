//! A file that is rotated by size and by time, and of which so many are kept.
//!
//! No line is lost by it: one that could not be written whole is taken back out and written again, and a file that
//! cannot be rotated is written on.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Local, Timelike as _};
use portolan_config::checked::log::{RotateEvery, Rotation};

use crate::log::queue::Sink;

/// After a rotation that failed the next attempt waits for this long.
const RETRY: Duration = Duration::from_secs(60);
/// Its owner writes it, its group reads it.
const MODE: u32 = 0o640;

/// See the module.
pub(in crate::log) struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
    /// No rotation before.
    not_before: Option<Instant>,
}

struct Open {
    file: File,
    length: u64,
    device: u64,
    inode: u64,
    /// When what is in it began to be written.
    period: Period,
}

/// The day, and the hour of it.
type Period = (chrono::NaiveDate, u32);

fn period(time: SystemTime) -> Period {
    let time = DateTime::<Local>::from(time);
    (time.date_naive(), time.hour())
}

impl RotatingFile {
    pub(in crate::log) fn new(path: PathBuf, rotation: Rotation) -> Self {
        Self { path, rotation, open: None, not_before: None }
    }

    /// The file, opened again where somebody has moved or removed it.
    fn opened(&mut self) -> io::Result<&mut Open> {
        let is_there = |open: &Open| {
            std::fs::metadata(&self.path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (open.device, open.inode))
        };
        if !self.open.as_ref().is_some_and(is_there) {
            self.open = None;
            let file = OpenOptions::new().append(true).create(true).mode(MODE).open(&self.path)?;
            let metadata = file.metadata()?;
            let began = if metadata.len() == 0 { SystemTime::now() } else { metadata.modified()? };
            self.open = Some(Open {
                length: metadata.len(),
                device: metadata.dev(),
                inode: metadata.ino(),
                period: period(began),
                file,
            });
        }
        Ok(self.open.as_mut().expect("it was opened just now"))
    }

    /// True when the file is to be rotated before so many bytes are added.
    fn is_due(&self, bytes: usize) -> bool {
        let Some(open) = &self.open else { return false };
        let now = period(SystemTime::now());
        let old = match self.rotation.every {
            RotateEvery::Never => false,
            RotateEvery::Day => now.0 != open.period.0,
            RotateEvery::Hour => now != open.period,
        };
        let full = self.rotation.bytes > 0 && open.length + bytes as u64 > self.rotation.bytes;
        open.length > 0 && (old || full) && self.not_before.is_none_or(|after| Instant::now() >= after)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Moves the files on: `log` to `log.1`, that one to `log.2`, the last one away.
    fn rotate(&mut self) -> io::Result<()> {
        if self.rotation.keep == 0 {
            std::fs::remove_file(&self.path)?;
            self.open = None;
            return Ok(());
        }
        for number in (1..=self.rotation.keep).rev() {
            let (from, to) = match number {
                1 => (self.path.clone(), self.numbered(1)),
                _ => (self.numbered(number - 1), self.numbered(number)),
            };
            match std::fs::rename(&from, &to) {
                Ok(()) => {}
                // Fewer are there than are kept.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number > 1 => {}
                Err(error) => return Err(error),
            }
        }
        self.open = None;
        Ok(())
    }

    /// Writes lines as a whole, or none of them.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let open = self.opened()?;
        if let Err(error) = open.file.write_all(lines) {
            // A half line would spoil the next one. Where even this fails, lines may be there twice.
            open.file.set_len(open.length).ok();
            return Err(error);
        }
        open.length += lines.len() as u64;
        Ok(())
    }
}

impl Sink<Vec<u8>> for RotatingFile {
    fn deliver(&mut self, items: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
        self.opened()?;
        while let Some(first) = items.front() {
            if self.is_due(first.len())
                && let Err(error) = self.rotate()
            {
                self.not_before = Some(Instant::now() + RETRY);
                let path = self.path.display();
                tracing::error!(%path, %error, "log file cannot be rotated; it is written on");
            }
            let length = self.opened()?.length;
            let room = match self.rotation.bytes {
                0 => u64::MAX,
                most => most.saturating_sub(length),
            };
            let mut lines = Vec::new();
            let mut count = 0;
            for line in items.iter() {
                if count > 0 && (lines.len() + line.len()) as u64 > room {
                    break;
                }
                lines.extend_from_slice(line);
                count += 1;
            }
            self.write(&lines)?;
            items.drain(..count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(bytes: u64, keep: u32) -> Rotation {
        Rotation { bytes, every: RotateEvery::Never, keep }
    }

    fn lines(numbers: std::ops::Range<usize>) -> VecDeque<Vec<u8>> {
        numbers.map(|number| format!("{number:09}\n").into_bytes()).collect()
    }

    #[test]
    fn rotation_loses_no_line_and_keeps_so_many_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = RotatingFile::new(path.clone(), rotation(100, 50));
        for start in (0..300).step_by(7) {
            file.deliver(&mut lines(start..start + 7)).unwrap();
        }
        let mut all = String::new();
        for number in (1..=50).rev() {
            all += &std::fs::read_to_string(file.numbered(number)).unwrap_or_default();
        }
        all += &std::fs::read_to_string(&path).unwrap();
        let expected: String = (0..301).map(|number| format!("{number:09}\n")).collect();
        assert_eq!(all, expected);
        let mut file = RotatingFile::new(path.clone(), rotation(20, 2));
        file.deliver(&mut lines(0..99)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), 20);
        assert_eq!(std::fs::read(file.numbered(1)).unwrap().len(), 20);
        assert!(std::fs::metadata(file.numbered(3)).is_ok(), "those of before are not ours to remove");
    }

    #[test]
    fn a_file_that_somebody_moves_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = RotatingFile::new(path.clone(), rotation(0, 5));
        file.deliver(&mut lines(0..1)).unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        file.deliver(&mut lines(1..2)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "000000001\n");
        assert_eq!(std::fs::read_to_string(folder.path().join("moved")).unwrap(), "000000000\n");
    }

    #[test]
    fn what_was_written_on_another_day_is_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "yesterday\n").unwrap();
        let yesterday = SystemTime::now() - Duration::from_secs(24 * 3_600);
        File::options().append(true).open(&path).unwrap().set_modified(yesterday).unwrap();
        let daily = Rotation { bytes: 0, every: RotateEvery::Day, keep: 3 };
        let mut file = RotatingFile::new(path.clone(), daily);
        file.deliver(&mut lines(0..1)).unwrap();
        assert_eq!(std::fs::read_to_string(file.numbered(1)).unwrap(), "yesterday\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "000000000\n");
    }

    #[test]
    fn a_full_disk_costs_no_line_and_leaves_no_half_one() {
        // Every write to it fails as on a full disk.
        let mut file = RotatingFile::new("/dev/full".into(), rotation(0, 5));
        let mut items = lines(0..3);
        let error = file.deliver(&mut items).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(items.len(), 3);
    }
}
