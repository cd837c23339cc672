//! Ctrl-C and SIGTERM end the run between two files, so that every guard is dropped.
//!
//! Who calls it: `main` once; `client` and `measure` before each transfer.
//! What it calls: tokio's signals, on a thread of their own.
//! What it never does: end the process by itself.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::Result;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Begins to listen for the signals.
pub(crate) fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// `Err` once a signal has come.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err("interrupted by a signal".into()) } else { Ok(()) }
}
