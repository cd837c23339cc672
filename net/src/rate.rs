//! A limit of bytes a second that several transfers share.
//!
//! Who calls it: the engines of the front end for bandwidth, an agent for what its store reads and writes.
//! What it calls: the runtime's clock.
//! What it never does: hold a lock while it waits, or let one transfer pass those that wait already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What goes at once is this part of a second's worth, so that many may share a limit and none waits long.
const PIECES_A_SECOND: u64 = 64;
const PIECE_BYTES_MIN: u64 = 1_024;
/// Time that was not used is made up for to this extent: the clock wakes up late.
const LATE_MAX: Duration = Duration::from_millis(20);

/// A limit that may change while it holds. 0 is no limit.
#[derive(Debug)]
pub struct RateLimit {
    /// Bytes a second.
    rate: Arc<AtomicU64>,
    /// When all that was let through so far is through.
    free_at: Mutex<Instant>,
}

impl RateLimit {
    /// Follows a rate in bytes a second, which others may change.
    pub fn new(rate: Arc<AtomicU64>) -> Self {
        Self { rate, free_at: Mutex::new(Instant::now()) }
    }

    /// Bytes a second; `None`: there is no limit.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Bytes to move at once; `None`: there is no limit.
    pub fn piece_bytes_max(&self) -> Option<u64> {
        self.rate().map(|rate| (rate / PIECES_A_SECOND).max(PIECE_BYTES_MIN))
    }

    /// Takes a turn for this many bytes, behind those that wait already; `None`: there is no limit.
    pub fn reserve(&self, bytes: usize, now: Instant) -> Option<Turn<'_>> {
        let rate = self.rate()?;
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut free_at = self.free_at.lock();
        let start = (*free_at).max(now.checked_sub(LATE_MAX).unwrap_or(now));
        *free_at = start + takes;
        Some(Turn { limit: self, takes, ends: *free_at, taken: false })
    }

    /// Waits for as long as this many bytes take.
    pub async fn take(&self, bytes: usize) {
        let now = Instant::now();
        let Some(mut turn) = self.reserve(bytes, now) else { return };
        if turn.ends > now {
            tokio::time::sleep_until(turn.ends).await;
        }
        turn.taken();
    }
}

/// A turn of one piece. Whoever gives up waiting gives its time back to the others.
#[derive(Debug)]
pub struct Turn<'a> {
    limit: &'a RateLimit,
    takes: Duration,
    ends: Instant,
    taken: bool,
}

impl Turn<'_> {
    /// When the piece is through.
    pub fn ends(&self) -> Instant {
        self.ends
    }

    /// The time has passed.
    pub fn taken(&mut self) {
        self.taken = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.taken {
            let mut free_at = self.limit.free_at.lock();
            *free_at = free_at.checked_sub(self.takes).unwrap_or(*free_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn transfers_share_a_limit_in_equal_parts() {
        let limit = Arc::new(RateLimit::new(Arc::new(AtomicU64::new(1_000_000))));
        assert_eq!(limit.piece_bytes_max(), Some(15_625));
        let started = Instant::now();
        let transfers: Vec<_> = (0..4)
            .map(|_| {
                let limit = Arc::clone(&limit);
                tokio::spawn(async move {
                    for _ in 0..16 {
                        limit.take(15_625).await;
                    }
                    started.elapsed().as_secs_f64()
                })
            })
            .collect();
        for transfer in transfers {
            let seconds = transfer.await.unwrap();
            assert!((0.9..1.1).contains(&seconds), "{seconds}");
        }
        limit.rate.store(0, Ordering::Relaxed);
        assert_eq!(limit.piece_bytes_max(), None);
        limit.take(usize::MAX).await;
        assert!(started.elapsed() < Duration::from_millis(1_100));
    }
}
