//! A file that is rotated by size and by time, and of which so many are kept.
//!
//! No line is lost by it: one that could not be written whole is taken back out and written again, and a file that
//! cannot be rotated is written on. What is no file, such as /dev/stdout, is written to and not rotated.

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
    /// Where it lies, links followed.
    real: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
    /// No rotation before.
    not_before: Option<Instant>,
}

struct Open {
    file: File,
    length: u64,
    is_regular: bool,
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
        Self { real: path.clone(), path, rotation, open: None, not_before: None }
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
            self.real = std::fs::canonicalize(&self.path)?;
            let began = if metadata.len() == 0 { SystemTime::now() } else { metadata.modified()? };
            self.open = Some(Open {
                length: metadata.len(),
                is_regular: metadata.is_file(),
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
        open.is_regular
            && open.length > 0
            && (old || full)
            && self.not_before.is_none_or(|after| Instant::now() >= after)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.real.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Moves the files on: `log` to `log.1`, that one to `log.2`, the last one away.
    fn rotate(&mut self) -> io::Result<()> {
        if self.rotation.keep == 0 {
            std::fs::remove_file(&self.real)?;
            self.open = None;
            return Ok(());
        }
        // First what may fail; one that is there is of a rotation that did not get further.
        let next = self.numbered(0);
        if std::fs::symlink_metadata(&next).is_err() {
            std::fs::rename(&self.real, &next)?;
            self.open = None;
        }
        for number in (1..=self.rotation.keep).rev() {
            match std::fs::rename(self.numbered(number - 1), self.numbered(number)) {
                Ok(()) => {}
                // Fewer are there than are kept.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes lines as a whole, or none of them.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let open = self.opened()?;
        // Somebody else may have emptied it.
        open.length = open.file.metadata()?.len();
        if let Err(error) = open.file.write_all(lines) {
            // A half line would spoil the next one. Where even this fails, lines may be there twice.
            if open.is_regular && open.file.metadata()?.len() > open.length {
                open.file.set_len(open.length).ok();
            }
            return Err(error);
        }
        open.length += lines.len() as u64;
        Ok(())
    }
}

impl Sink<Vec<u8>> for RotatingFile {
    fn deliver(&mut self, items: &mut VecDeque<Vec<u8>>, _: &mut u64) -> io::Result<()> {
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
            file.deliver(&mut lines(start..start + 7), &mut 0).unwrap();
        }
        let mut all = String::new();
        for number in (1..=50).rev() {
            all += &std::fs::read_to_string(file.numbered(number)).unwrap_or_default();
        }
        all += &std::fs::read_to_string(&path).unwrap();
        let expected: String = (0..301).map(|number| format!("{number:09}\n")).collect();
        assert_eq!(all, expected);
        let mut file = RotatingFile::new(path.clone(), rotation(20, 2));
        file.deliver(&mut lines(0..99), &mut 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), 20);
        assert_eq!(std::fs::read(file.numbered(1)).unwrap().len(), 20);
        assert!(std::fs::metadata(file.numbered(3)).is_ok(), "those of before are not ours to remove");
    }

    #[test]
    fn a_file_that_somebody_moves_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = RotatingFile::new(path.clone(), rotation(0, 5));
        file.deliver(&mut lines(0..1), &mut 0).unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        file.deliver(&mut lines(1..2), &mut 0).unwrap();
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
        file.deliver(&mut lines(0..1), &mut 0).unwrap();
        assert_eq!(std::fs::read_to_string(file.numbered(1)).unwrap(), "yesterday\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "000000000\n");
    }

    #[test]
    fn a_full_disk_costs_no_line_and_leaves_no_half_one() {
        // Every write to it fails as on a full disk.
        let mut file = RotatingFile::new("/dev/full".into(), rotation(0, 5));
        let mut items = lines(0..3);
        let error = file.deliver(&mut items, &mut 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(items.len(), 3);
    }

    #[test]
    fn what_is_no_file_or_a_link_stays_what_it_is_and_a_rotation_that_fails_eats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::os::unix::fs::symlink("data/real", &path).unwrap();
        std::fs::write(folder.path().join("data/real"), "").unwrap();
        let mut file = RotatingFile::new(path.clone(), rotation(20, 3));
        file.deliver(&mut lines(0..5), &mut 0).unwrap();
        assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(std::fs::read(folder.path().join("data/real.2")).unwrap().len(), 20);

        let mut null = RotatingFile::new("/dev/null".into(), rotation(20, 3));
        null.deliver(&mut lines(0..5), &mut 0).unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());

        // A folder that is in the way of the first step.
        let path = folder.path().join("stuck");
        for number in 1..=3 {
            std::fs::write(folder.path().join(format!("stuck.{number}")), number.to_string()).unwrap();
        }
        let mut file = RotatingFile::new(path.clone(), rotation(20, 3));
        file.deliver(&mut lines(0..2), &mut 0).unwrap();
        std::fs::remove_file(folder.path().join("stuck.3")).unwrap();
        std::fs::create_dir(folder.path().join("stuck.3")).unwrap();
        std::fs::write(folder.path().join("stuck.3/x"), "").unwrap();
        file.deliver(&mut lines(2..6), &mut 0).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((&read("stuck.1")[..], &read("stuck.2")[..]), ("1", "2"));
        assert_eq!(
            read("stuck.0") + &read("stuck"),
            (0..6).map(|number| format!("{number:09}\n")).collect::<String>()
        );
    }

    #[test]
    fn a_file_that_somebody_empties_is_not_filled_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = RotatingFile::new(path.clone(), rotation(0, 3));
        file.deliver(&mut lines(0..5), &mut 0).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        file.deliver(&mut lines(5..6), &mut 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "000000005\n");
        assert_eq!(file.open.as_ref().unwrap().length, 10);
    }
}
