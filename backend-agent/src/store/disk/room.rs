//! Room on the disk that uploads leave to others, `store.free_min`.
//!
//! Who calls it: `commit`, before an upload begins and before it writes; the store kinds for how much may still be written.
//! What it calls: fstatvfs(2).
//! What it never does: let uploads under way together pass the limit: what each may write next is promised to it first.

use std::io;
use std::os::fd::AsFd;

use parking_lot::Mutex;
use portolan_config::units::FreeMin;
use rustix::fs::StatVfs;

/// What an upload is promised first, and each time twice as much, up to the most: a mail asks once, a large file seldom.
const PROMISE_BYTES_MIN: u64 = 64 * 1024;
const PROMISE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// With a limit, one in so many inodes is left to others as well.
const INODES_LEFT_OF: u64 = 100;

/// The limit of a store, and what of it is promised.
#[derive(Debug, Default)]
pub struct Room {
    free_min: FreeMin,
    /// Bytes that uploads under way may still write.
    promised: Mutex<u64>,
}

impl Room {
    pub fn new(free_min: FreeMin) -> Self {
        Self { free_min, promised: Mutex::default() }
    }

    /// Bytes that may still be written.
    pub fn free(&self, disk: &StatVfs) -> u64 {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        free.saturating_sub(self.free_min.of(total(disk)))
    }

    /// Promises this many bytes more; 0 asks whether there is room at all.
    ///
    /// # Errors
    /// `StorageFull` where the limit would be passed; those of fstatvfs(2).
    fn promise(&self, place: impl AsFd, bytes: u64) -> io::Result<()> {
        if self.free_min == FreeMin::NONE {
            return Ok(());
        }
        let mut promised = self.promised.lock();
        let disk = rustix::fs::fstatvfs(place)?;
        let left = self.free_min.of(total(&disk));
        if left == 0 {
            return Ok(());
        }
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let full = |what: &str| Err(io::Error::new(io::ErrorKind::StorageFull, what.to_owned()));
        if free < left.saturating_add(*promised).saturating_add(bytes) {
            return full("less than store.free_min would be left");
        }
        // Some file systems make inodes as they are needed, and count none.
        if disk.f_files > 0 && disk.f_favail < disk.f_files / INODES_LEFT_OF {
            return full("less than one in 100 inodes is left");
        }
        *promised += bytes;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut promised = self.promised.lock();
        *promised = promised.saturating_sub(bytes);
    }
}

fn total(disk: &StatVfs) -> u64 {
    disk.f_blocks.saturating_mul(disk.f_frsize)
}

/// What one upload may write.
#[derive(Debug)]
pub struct Promise {
    left: u64,
    next: u64,
}

impl Promise {
    /// For an upload that begins.
    ///
    /// # Errors
    /// `StorageFull` where there is no room even for a small one.
    pub fn begin(room: &Room, place: impl AsFd) -> io::Result<Self> {
        room.promise(place, 0)?;
        Ok(Self { left: 0, next: PROMISE_BYTES_MIN })
    }

    /// Sees to it that this many bytes may be written.
    ///
    /// # Errors
    /// `StorageFull`
    pub fn ask(&mut self, room: &Room, place: impl AsFd, bytes: u64) -> io::Result<()> {
        let Some(missing) = bytes.checked_sub(self.left).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        let more = missing.max(self.next);
        // Near the limit only what is needed.
        let more = match room.promise(&place, more) {
            Ok(()) => more,
            Err(_) if more > missing => {
                room.promise(&place, missing)?;
                missing
            }
            Err(error) => return Err(error),
        };
        self.left += more;
        self.next = (self.next * 2).min(PROMISE_BYTES_MAX);
        Ok(())
    }

    /// So many bytes were written: the disk counts them from now on.
    pub fn written(&mut self, room: &Room, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        room.give_back(bytes);
    }

    /// The upload has ended. Nothing more is written.
    pub fn end(&mut self, room: &Room) {
        room.give_back(std::mem::take(&mut self.left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_together_do_not_pass_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let place = std::fs::File::open(folder.path()).unwrap();
        let disk = rustix::fs::fstatvfs(&place).unwrap();
        let free = disk.f_bavail * disk.f_frsize;
        // Others write to this disk too.
        let slack = 512 << 20;
        let text = format!("{}B", (free - slack).min(1 << 40));
        let room = Room::new(text.parse().unwrap());
        let mut promises: Vec<Promise> = (0..4).map(|_| Promise::begin(&room, &place).unwrap()).collect();
        let may = room.free(&rustix::fs::fstatvfs(&place).unwrap());
        for promise in &mut promises[..3] {
            promise.ask(&room, &place, may / 4).unwrap();
        }
        let refused = promises[3].ask(&room, &place, may / 2).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        for promise in &mut promises {
            promise.end(&room);
        }
        assert_eq!(*room.promised.lock(), 0);
        promises[3].ask(&room, &place, may / 2).unwrap();
        promises[3].written(&room, may / 2);
        assert_eq!(*room.promised.lock(), 0);
        let none = Room::new(FreeMin::NONE);
        assert!(Promise::begin(&none, &place).unwrap().ask(&none, &place, u64::MAX / 2).is_ok());
    }
}
