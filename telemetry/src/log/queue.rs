//! Between those who log and a target: a queue with an end, and the thread that empties it.
//!
//! Who logs never waits. What does not fit is dropped and counted. A target that fails gets what it did not take
//! again, until the program ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::sink::say;

/// What may wait for one target.
const BYTES_MAX: usize = 16 * 1024 * 1024;
const ITEMS_MAX: usize = 65_536;
/// Items that a target is handed at once.
const BATCH_MAX: usize = 1_024;
/// After a batch more is let gather for this long: who logs then need not wake the thread for each line.
const GATHER: Duration = Duration::from_millis(10);
/// A target that is to end is tried again this often.
const LAST_TRIES: Duration = Duration::from_millis(100);
/// What a queue that a reload has replaced has not delivered by then is given up.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// Pauses after a failure, doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(15);

/// Where items end up.
pub(crate) trait Sink<T> {
    /// Delivers from the front, and takes out what is delivered.
    ///
    /// `refused` counts those that are taken out because they never will be.
    ///
    /// # Errors
    /// What is left was not delivered, or not surely so.
    fn deliver(&mut self, items: &mut VecDeque<T>, refused: &mut u64) -> io::Result<()>;

    /// Nothing more comes: what is on its way is seen through, as far as that takes a moment.
    fn end(&mut self) {}
}

/// How a target fares.
#[derive(Debug, Default)]
pub struct Fate {
    delivered: AtomicU64,
    dropped: AtomicU64,
    failures: AtomicU64,
    is_failing: AtomicBool,
}

impl Fate {
    /// Items that the target took.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Items that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// It has not taken what it was handed last.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// How often the target failed to take something. It was tried again.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// The entry of a queue. The thread ends when this is dropped and what waited is delivered.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    shared: Arc<Shared<T>>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared<T> {
    name: String,
    state: Mutex<State<T>>,
    changed: Condvar,
    fate: Arc<Fate>,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// The thread waits to be woken.
    waits: bool,
    /// Nothing more comes; undelivered items are given up then.
    closed: Option<Instant>,
}

impl<T: Send + 'static> Queue<T> {
    /// Starts the thread of a target. The sink is made on it.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start<S: Sink<T>>(
        name: &str,
        fate: Arc<Fate>,
        sink: impl FnOnce() -> S + Send + 'static,
    ) -> io::Result<Self> {
        let state = State { items: VecDeque::new(), bytes: 0, waits: false, closed: None };
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            fate,
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || own.run(sink()))?;
        Ok(Self { shared, thread })
    }

    /// Lets a queue that nobody puts anything into any more come to its end; its place is another's then.
    pub(crate) fn see_off(queue: Arc<Self>) {
        while Arc::strong_count(&queue) > 1 {
            std::thread::sleep(Duration::from_millis(2));
        }
        queue.close(Instant::now() + GIVEN_UP);
        while !queue.thread.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Puts an item in, if there is room.
    pub(crate) fn push(&self, item: T, bytes: usize) {
        let mut state = self.shared.state();
        if state.items.len() >= ITEMS_MAX || state.bytes + bytes > BYTES_MAX {
            drop(state);
            self.shared.fate.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.items.push_back((item, bytes));
        state.bytes += bytes;
        if state.waits {
            state.waits = false;
            self.shared.changed.notify_one();
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn fate(&self) -> &Arc<Fate> {
        &self.shared.fate
    }

    /// Nothing more comes. What waits is delivered until the deadline.
    pub(crate) fn close(&self, deadline: Instant) {
        self.shared.state().closed = Some(deadline);
        self.shared.changed.notify_one();
    }

    /// Waits until the thread is done, until the deadline of [`Queue::close`]. A thread that is stuck is left behind.
    pub(crate) fn wait(&self, deadline: Instant) {
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.thread.is_finished() {
            let left = self.shared.state().items.len();
            say(&format!("log target {}: more than {left} lines were not delivered\n", self.shared.name));
        }
    }
}

impl<T> Drop for Queue<T> {
    /// A queue that a reload has replaced delivers what it has, in its own time.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.closed.is_none() {
            state.closed = Some(Instant::now() + GIVEN_UP);
            self.shared.changed.notify_one();
        }
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock()
    }

    /// Waits for items; `false` when the queue is closed and empty.
    fn take(&self, batch: &mut VecDeque<T>) -> bool {
        let mut state = self.state();
        while state.items.is_empty() {
            if state.closed.is_some() {
                return false;
            }
            state.waits = true;
            self.changed.wait(&mut state);
        }
        while batch.len() < BATCH_MAX
            && let Some((item, bytes)) = state.items.pop_front()
        {
            state.bytes -= bytes;
            batch.push_back(item);
        }
        true
    }

    /// Lets time pass; `false` when the queue is closed and its time is up.
    fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let end = state.closed.map_or(until, |closed| closed.min(until));
            if state.closed.is_some_and(|closed| now >= closed) {
                return false;
            }
            let Some(left) = end.checked_duration_since(now).filter(|left| !left.is_zero()) else {
                return true;
            };
            let was_closed = state.closed.is_some();
            let left = if was_closed { left.min(LAST_TRIES) } else { left };
            self.changed.wait_for(&mut state, left);
            // Who is to end has no time for long pauses.
            if was_closed || state.closed.is_some() {
                return true;
            }
        }
    }

    fn run(&self, mut sink: impl Sink<T>) {
        let mut batch = VecDeque::new();
        let mut pause = RETRY_FIRST;
        let (mut failing, mut is_told) = (false, false);
        while self.take(&mut batch) {
            let is_full = batch.len() == BATCH_MAX;
            while !batch.is_empty() {
                let (before, mut refused) = (batch.len(), 0);
                let delivered = sink.deliver(&mut batch, &mut refused);
                let count = (before - batch.len()) as u64;
                self.fate.delivered.fetch_add(count - refused, Ordering::Relaxed);
                self.fate.dropped.fetch_add(refused, Ordering::Relaxed);
                // Once: what is logged of it may be refused too.
                if refused > 0 && !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(
                        name = self.name,
                        "a log target refuses some lines; they are counted as dropped"
                    );
                }
                let Err(error) = delivered else {
                    self.fate.is_failing.store(false, Ordering::Relaxed);
                    if std::mem::take(&mut failing) {
                        let dropped = self.fate.dropped();
                        tracing::warn!(name = self.name, dropped, "log target is back");
                    }
                    pause = RETRY_FIRST;
                    continue;
                };
                self.fate.failures.fetch_add(1, Ordering::Relaxed);
                self.fate.is_failing.store(true, Ordering::Relaxed);
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(name = self.name, %error, "log target fails; what is logged waits for it");
                    say(&format!("log target {}: {error}\n", self.name));
                }
                if !self.pause(pause) {
                    let lost = (batch.len() + self.state().items.len()) as u64;
                    self.fate.dropped.fetch_add(lost, Ordering::Relaxed);
                    tracing::error!(name = self.name, lost, "what a log target did not take is lost");
                    say(&format!("log target {}: {lost} lines were not delivered\n", self.name));
                    return;
                }
                pause = (pause * 2).min(RETRY_LAST);
            }
            if !is_full && self.state().closed.is_none() {
                std::thread::sleep(GATHER);
            }
        }
        sink.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what it may, and then fails.
    struct Fussy(Arc<Mutex<(Vec<u32>, usize)>>);

    impl Sink<u32> for Fussy {
        fn deliver(&mut self, items: &mut VecDeque<u32>, _: &mut u64) -> io::Result<()> {
            let mut taken = self.0.lock();
            while let Some(item) = items.front().copied() {
                if taken.1 == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                taken.1 -= 1;
                taken.0.push(item);
                items.pop_front();
            }
            Ok(())
        }
    }

    #[test]
    fn a_target_that_fails_is_handed_the_same_again_and_in_order() {
        let taken = Arc::new(Mutex::new((Vec::new(), 3)));
        let sink = Fussy(Arc::clone(&taken));
        let fate = Arc::new(Fate::default());
        let queue = Queue::start("test", Arc::clone(&fate), move || sink).unwrap();
        for number in 0..10 {
            queue.push(number, 1);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while fate.failures() == 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        taken.lock().1 = 100;
        queue.close(end);
        queue.wait(end);
        assert_eq!(taken.lock().0, (0..10).collect::<Vec<_>>());
        assert_eq!((fate.delivered(), fate.dropped()), (10, 0));
    }

    #[test]
    fn a_stuck_target_costs_counted_items_and_no_time() {
        let taken = Arc::new(Mutex::new((Vec::new(), 0)));
        let sink = Fussy(Arc::clone(&taken));
        let fate = Arc::new(Fate::default());
        let queue = Queue::start("test", Arc::clone(&fate), move || sink).unwrap();
        let (count, begun) = (ITEMS_MAX as u64 + 5_000, Instant::now());
        for _ in 0..count {
            queue.push(0, 1);
        }
        // Those that the thread holds are not in the queue any more.
        let most = 5_000;
        assert!((most - BATCH_MAX as u64..=most).contains(&fate.dropped()), "{}", fate.dropped());
        assert!(begun.elapsed() < Duration::from_secs(5));
        let dropped = fate.dropped();
        queue.push(0, BYTES_MAX + 1);
        assert_eq!(fate.dropped(), dropped + 1);
        queue.close(Instant::now());
        queue.wait(Instant::now() + Duration::from_secs(5));
        assert_eq!(fate.delivered(), 0);
    }
}
