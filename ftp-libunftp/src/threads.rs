//! Threads that sessions of the library run on, each with a runtime of its own.
//!
//! Why not the runtime of everything else: after AUTH TLS the library goes on reading commands until a task
//! that it spawned has told it to stop, and a ClientHello that is read meanwhile is lost. With several workers
//! that happens to some of a hundred logins on a busy machine. On a runtime of one thread the spawned task
//! always runs before the socket is looked at again.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Threads at most; more than this many cores bring nothing to FTP.
const THREADS_MAX: usize = 16;
/// Tasks that are run before the sockets are looked at again. The default of 61 would leave the library's race
/// open every sixty-first time.
const TASKS_BEFORE_SOCKETS: u32 = 4_096;

/// The threads of one listener; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Threads {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
    _stop: DropGuard,
}

impl Threads {
    /// As many threads as there are cores.
    pub(crate) fn start() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let stop = CancellationToken::new();
        // Those that have started end when one cannot.
        let _stop = stop.clone().drop_guard();
        let mut runtimes = Vec::with_capacity(count);
        for number in 0..count {
            let runtime =
                Builder::new_current_thread().enable_all().event_interval(TASKS_BEFORE_SOCKETS).build()?;
            runtimes.push(runtime.handle().clone());
            let stopped = stop.clone();
            std::thread::Builder::new()
                .name(format!("libunftp-{number}"))
                .spawn(move || runtime.block_on(stopped.cancelled()))?;
        }
        Ok(Self { runtimes, next: AtomicUsize::new(0), _stop })
    }

    /// The runtime for the next session, by turns.
    pub(super) fn next(&self) -> &Handle {
        &self.runtimes[self.next.fetch_add(1, Ordering::Relaxed) % self.runtimes.len()]
    }
}
