//! Bandwidth limits: how fast content may cross data connections, of a session, an admin, a listener.
//!
//! Who calls it: the engines, before each piece that they send and after each that they receive.
//! What it calls: the limits of `portolan_net::rate`.
//! What it never does: hold a lock while it waits, or let one wait for another's data.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use portolan_config::checked::access::Bandwidth;
use portolan_config::units::Rate;
use portolan_net::rate::{RateLimit, Turn};
use portolan_proto::CHUNK_BYTES_MAX;
use tokio::time::Instant;

/// Which way content goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToClient,
    FromClient,
}

/// A limit each way, that may change while it holds. 0 is no limit.
#[derive(Debug, Default)]
pub struct Rates {
    down: Arc<AtomicU64>,
    up: Arc<AtomicU64>,
}

impl Rates {
    pub fn new(bandwidth: Bandwidth) -> Self {
        let rates = Self::default();
        rates.set(bandwidth);
        rates
    }

    /// Holds at once, also for transfers under way.
    pub fn set(&self, Bandwidth { down: Rate(down), up: Rate(up) }: Bandwidth) {
        self.down.store(down, Ordering::Relaxed);
        self.up.store(up, Ordering::Relaxed);
    }

    /// One that this limit holds for.
    pub fn throttle(&self) -> Arc<Throttle> {
        let way = |rate: &Arc<AtomicU64>| RateLimit::new(Arc::clone(rate));
        Arc::new(Throttle { down: way(&self.down), up: way(&self.up) })
    }
}

/// What shares one limit: a session, all of an admin, all of a listener.
#[derive(Debug)]
pub struct Throttle {
    down: RateLimit,
    up: RateLimit,
}

/// All limits of one session.
#[derive(Debug, Clone)]
pub struct Pace {
    throttles: Vec<Arc<Throttle>>,
}

impl Pace {
    pub fn new(throttles: Vec<Arc<Throttle>>) -> Self {
        Self { throttles }
    }

    fn ways(&self, direction: Direction) -> impl Iterator<Item = &RateLimit> {
        self.throttles.iter().map(move |throttle| match direction {
            Direction::ToClient => &throttle.down,
            Direction::FromClient => &throttle.up,
        })
    }

    /// Bytes to move at once, at most.
    pub fn piece_bytes_max(&self, direction: Direction) -> usize {
        let piece = self.ways(direction).filter_map(RateLimit::piece_bytes_max).min();
        let piece = piece.map(|piece| usize::try_from(piece).unwrap_or(usize::MAX));
        piece.map_or(CHUNK_BYTES_MAX, |piece| piece.min(CHUNK_BYTES_MAX))
    }

    /// Waits for as long as this many bytes take.
    pub async fn take(&self, direction: Direction, bytes: usize) {
        let now = Instant::now();
        let mut turns: Vec<Turn<'_>> =
            self.ways(direction).filter_map(|way| way.reserve(bytes, now)).collect();
        if let Some(ends) = turns.iter().map(Turn::ends).max()
            && ends > now
        {
            tokio::time::sleep_until(ends).await;
        }
        for turn in &mut turns {
            turn.taken();
        }
    }
}

/// The throttles of the admins who have sessions.
#[derive(Debug)]
pub struct AdminThrottles {
    rates: Rates,
    by_name: Mutex<HashMap<String, Weak<Throttle>>>,
}

impl AdminThrottles {
    pub fn new(bandwidth: Bandwidth) -> Self {
        Self { rates: Rates::new(bandwidth), by_name: Mutex::default() }
    }

    pub fn set(&self, bandwidth: Bandwidth) {
        self.rates.set(bandwidth);
    }

    /// The one that all sessions of an admin share.
    pub fn of(&self, admin: &str) -> Arc<Throttle> {
        let mut by_name = self.by_name.lock();
        if let Some(shared) = by_name.get(admin).and_then(Weak::upgrade) {
            return shared;
        }
        // There are as many as admins at most.
        by_name.retain(|_, throttle| throttle.strong_count() > 0);
        let throttle = self.rates.throttle();
        by_name.insert(admin.to_owned(), Arc::downgrade(&throttle));
        throttle
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rates(down: u64) -> Rates {
        Rates::new(Bandwidth { down: Rate(down), up: Rate(0) })
    }

    #[tokio::test(start_paused = true)]
    async fn content_goes_no_faster_than_the_narrowest_limit() {
        let (session, listener) = (rates(1_000_000), rates(100_000));
        let pace = Pace::new(vec![session.throttle(), listener.throttle()]);
        let piece = pace.piece_bytes_max(Direction::ToClient);
        assert_eq!(piece, 1_562);
        let started = Instant::now();
        let mut moved = 0;
        while moved < 500_000 {
            pace.take(Direction::ToClient, piece).await;
            moved += piece;
        }
        let seconds = started.elapsed().as_secs_f64();
        assert!((4.8..5.2).contains(&seconds), "{seconds}");
        // The other way is free, and so is this one when the limits are gone.
        let started = Instant::now();
        pace.take(Direction::FromClient, 1 << 30).await;
        listener.set(Bandwidth::default());
        session.set(Bandwidth::default());
        pace.take(Direction::ToClient, 1 << 30).await;
        assert_eq!(pace.piece_bytes_max(Direction::ToClient), CHUNK_BYTES_MAX);
        assert!(started.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_delays_nobody() {
        let pace = Pace::new(vec![rates(100_000).throttle()]);
        for _ in 0..1_000 {
            let turn = pace.take(Direction::ToClient, 10_000);
            assert!(tokio::time::timeout(Duration::from_millis(1), turn).await.is_err());
        }
        let started = Instant::now();
        pace.take(Direction::ToClient, 10_000).await;
        assert!(started.elapsed() < Duration::from_millis(150), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_of_an_admin_share_its_limit() {
        let admins = AdminThrottles::new(Bandwidth { down: Rate(100_000), up: Rate(0) });
        let started = Instant::now();
        let session = |name: &str| {
            let pace = Pace::new(vec![admins.of(name)]);
            tokio::spawn(async move {
                for _ in 0..100 {
                    pace.take(Direction::ToClient, 1_000).await;
                }
                started.elapsed().as_secs_f64()
            })
        };
        let sessions = [session("anna"), session("anna"), session("bob")];
        let mut seconds = Vec::new();
        for session in sessions {
            seconds.push(session.await.unwrap());
        }
        assert!((1.9..2.1).contains(&seconds[0].max(seconds[1])), "{seconds:?}");
        assert!((0.9..1.1).contains(&seconds[2]), "{seconds:?}");
    }
}
