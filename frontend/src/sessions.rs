//! The FTP sessions of all listeners: shown to the operator, and drained when the front end stops.
//!
//! Who calls it: `door` with each session; `running` and `operator` for all of them.
//! What it calls: the handles of portolan-ftp on control connections.
//! What it never does: let anybody in.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use portolan_proto::id::{SessionId, TransferId};
use portolan_telemetry::log::AUDIT;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::flow::Admission;
use portolan_ftp::transfer::{Stand, Transfer};
use portolan_ftp::{ControlConnection, Ending};

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    present: Mutex<HashMap<SessionId, Arc<ControlConnection>>>,
    /// Set and read while `present` is locked, so that a drain misses nobody.
    is_draining: AtomicBool,
    tasks: TaskTracker,
    cut: CancellationToken,
}

/// What became of the transfers that were under way in a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drained {
    pub finished: usize,
    /// By the client or a node.
    pub failed: usize,
    /// By us.
    pub cut: usize,
}

impl Sessions {
    fn present(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<ControlConnection>>> {
        self.present.lock()
    }

    /// All of them, the oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<ControlConnection>> {
        let mut all: Vec<_> = self.present().values().cloned().collect();
        all.sort_by_key(|control| control.since);
        all
    }

    /// Ends the sessions that are meant; how many.
    pub(crate) fn kick(&self, is_meant: impl Fn(&ControlConnection) -> bool) -> usize {
        let meant: Vec<_> = self.list().into_iter().filter(|control| is_meant(control)).collect();
        for control in &meant {
            tracing::warn!(target: AUDIT, parent: &control.span, event = "kick", "session closed by the operator");
            control.ask_to_end(Ending::Kick);
        }
        meant.len()
    }

    /// Runs a session until it ends or all is cut.
    pub(crate) fn serve(
        self: &Arc<Self>,
        control: Arc<ControlConnection>,
        admission: Admission,
        session: impl Future<Output = ()> + Send + 'static,
    ) {
        {
            let mut present = self.present();
            present.insert(control.id, Arc::clone(&control));
            if self.is_draining.load(Ordering::Acquire) {
                control.ask_to_end(Ending::Drain);
            }
        }
        let present = Present { control, sessions: Arc::clone(self), _admission: admission };
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            let _present = present;
            tokio::select! {
                () = session => {}
                () = cut.cancelled() => {}
            }
        });
    }

    /// Asks all sessions to end: those that are idle do at once, the others after their transfer, as their engine sees
    /// to it. Until `deadline`; then the rest is cut, and what is cut commits nothing.
    pub(crate) async fn drain(&self, deadline: impl Future<Output = ()>) -> Drained {
        let present: Vec<_> = {
            let present = self.present();
            self.is_draining.store(true, Ordering::Release);
            present.values().cloned().collect()
        };
        let seen = Mutex::new(HashMap::new());
        let noting = present.into_iter().map(|control| note_transfers(control, &seen));
        let noting = async {
            join_all(noting).await;
            std::future::pending::<()>().await;
        };
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = deadline => {}
            () = noting => {}
        }
        self.cut.cancel();
        self.tasks.wait().await;
        let mut drained = Drained::default();
        for transfer in seen.lock().values() {
            match transfer.stand() {
                Stand::Complete => drained.finished += 1,
                Stand::Failed => drained.failed += 1,
                Stand::UnderWay => drained.cut += 1,
            }
        }
        drained
    }
}

/// Asks a session to end, and notes its transfers from now on. Never ends.
async fn note_transfers(control: Arc<ControlConnection>, seen: &Mutex<HashMap<TransferId, Arc<Transfer>>>) {
    let mut transfers = control.watch_transfers();
    control.ask_to_end(Ending::Drain);
    loop {
        if let Some(transfer) = control.shown().transfer {
            seen.lock().insert(transfer.id, transfer);
        }
        if transfers.changed().await.is_err() {
            return;
        }
    }
}

/// A session that is in: its place and its entry, given back however it ends.
struct Present {
    control: Arc<ControlConnection>,
    sessions: Arc<Sessions>,
    _admission: Admission,
}

impl Drop for Present {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(session = %self.control.id, "a session did not end in order");
        }
        self.sessions.present().remove(&self.control.id);
        // What is cut ends a moment later, and belongs to it.
        if !self.control.is_busy() {
            self.control.tell_end();
        }
        self.control.close();
    }
}
