//! The FTP sessions of all listeners: shown to the operator, and drained when the front end stops.
//!
//! Who calls it: `doors` with each session; `running` and `operator` for all of them.
//! What it calls: the handles of portolan-ftp on control connections.
//! What it never does: let anybody in.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use portolan_proto::id::{SessionId, TransferId};
use portolan_telemetry::log::AUDIT;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::flow::Admission;
use portolan_ftp::transfer::{Stand, Transfer};
use portolan_ftp::{ControlConnection, Ending};

/// How often a drain looks for sessions that have become idle.
const DRAIN_STEP: Duration = Duration::from_millis(50);
/// A session whose transfer has just ended gets this long to be told so.
const REPLY_GRACE: Duration = Duration::from_millis(500);

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    present: Mutex<HashMap<SessionId, Arc<ControlConnection>>>,
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
        self.present().insert(control.id, Arc::clone(&control));
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

    /// Lets what is under way finish, and ends sessions that are idle, at once or after their transfer. Until
    /// `deadline`; then the rest is cut, and what is cut commits nothing.
    pub(crate) async fn drain(&self, deadline: impl Future<Output = ()>) -> Drained {
        let mut seen = HashMap::new();
        let close_idle = async {
            loop {
                self.note_transfers(&mut seen);
                // One that ends by itself does so after its transfer, and takes no other command: a client that never
                // pauses would keep the drain.
                let may_end = |control: &Arc<ControlConnection>| {
                    control.ends_by_itself() || control.is_idle_for(REPLY_GRACE)
                };
                for control in self.present().values().filter(|control| may_end(control)) {
                    control.ask_to_end(Ending::Drain);
                }
                tokio::time::sleep(DRAIN_STEP).await;
            }
        };
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = deadline => {}
            () = close_idle => {}
        }
        self.cut.cancel();
        self.tasks.wait().await;
        let mut drained = Drained::default();
        for transfer in seen.values() {
            match transfer.stand() {
                Stand::Complete => drained.finished += 1,
                Stand::Failed => drained.failed += 1,
                Stand::UnderWay => drained.cut += 1,
            }
        }
        drained
    }

    fn note_transfers(&self, seen: &mut HashMap<TransferId, Arc<Transfer>>) {
        let under_way = self.present();
        let transfers = under_way.values().filter_map(|control| control.shown().transfer);
        seen.extend(transfers.map(|transfer| (transfer.id, transfer)));
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
