//! How often something happened within the last while, in constant memory and time.
//!
//! Who calls it: `gate::flow`, for new connections; `auth::lockout`, for failed logins.
//! What it calls: nothing.
//! What it never does: count less than there was. What is an eighth of the while too old may still count.

use std::time::{Duration, Instant};

/// Parts that a while is counted in.
const PARTS: u32 = 8;
/// A while that ends anywhere in the newest part touches one more than that.
const KEPT: usize = PARTS as usize + 1;

/// A count over the last while. All calls must be given the same while.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    parts: [u32; KEPT],
    /// The number of the newest part, from `epoch` on; its place is the remainder.
    newest: u64,
}

/// The while, and what its parts are numbered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct While {
    pub epoch: Instant,
    pub length: Duration,
}

impl While {
    fn part(&self, now: Instant) -> u64 {
        let part = (self.length / PARTS).as_nanos().max(1);
        let passed = now.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(passed / part).unwrap_or(u64::MAX)
    }
}

impl Recent {
    /// How often it was since `now` minus the while.
    pub fn count(&mut self, of: While, now: Instant) -> u32 {
        let part = of.part(now);
        let passed = part.saturating_sub(self.newest);
        for step in 1..=passed.min(KEPT as u64) {
            self.parts[Self::place(self.newest + step)] = 0;
        }
        self.newest = self.newest.max(part);
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }

    /// Counts one more.
    pub fn add(&mut self, of: While, now: Instant) {
        self.count(of, now);
        let part = &mut self.parts[Self::place(self.newest)];
        *part = part.saturating_add(1);
    }

    fn place(part: u64) -> usize {
        usize::try_from(part % KEPT as u64).expect("below the number of parts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_while_holds_more_than_is_counted_and_what_is_old_is_forgotten() {
        let of = While { epoch: Instant::now(), length: Duration::from_secs(60) };
        let at = |seconds: f64| of.epoch + Duration::from_secs_f64(seconds);
        let mut recent = Recent::default();
        let mut events: Vec<f64> = Vec::new();
        // As many as a limit of 5 lets in, tried at odd moments.
        for step in 0..2_000 {
            let now = f64::from(step) * 0.37;
            let counted = recent.count(of, at(now));
            let real = events.iter().filter(|event| now - **event < 60.0).count();
            assert!(counted as usize >= real, "{now}: {counted} {real}");
            let old = events.iter().filter(|event| now - **event < 67.6).count();
            assert!(counted as usize <= old, "{now}: {counted} {old}");
            if counted < 5 {
                recent.add(of, at(now));
                events.push(now);
            }
        }
        assert!(events.len() > 40, "{}", events.len());
        assert_eq!(recent.count(of, at(100_000.0)), 0);
        // A clock that stands still, or a call that comes late, loses nothing.
        recent.add(of, at(100_001.0));
        recent.add(of, at(99_000.0));
        assert_eq!(recent.count(of, at(100_001.0)), 2);
    }
}
