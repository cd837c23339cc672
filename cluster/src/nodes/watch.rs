//! The watch of one node: keeps a WatchHoldings stream open, which tells both what the node holds and that it
//! is there.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use portolan_proto::failure::reason_of;
use portolan_proto::id::NodeId;
use portolan_proto::v1::agent_server::SERVICE_NAME;
use portolan_proto::v1::{DescribeRequest, Reason, WatchHoldingsRequest};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{CALL_MAX, Health, NodeClient, UNANSWERED_MAX};
use crate::map::{NodeHoldings, Router};

/// Pauses between attempts to reach a node: doubled from the first to the last. A node that comes back is
/// noticed within the last one and the time of a connection.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);
/// A node that goes away again before it was up for this long flaps. From the third time on it is left alone for longer, up
/// to the last pause.
const STEADY: Duration = Duration::from_secs(30);
const FLAPS_FORGIVEN: u32 = 2;
const RETRY_FLAPPING_LAST: Duration = Duration::from_secs(30);

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("node does not answer")]
    Call(#[source] Status),
    #[error("node did not answer in time")]
    Deadline(#[from] tokio::time::error::Elapsed),
    #[error("the agent says it is node {claimed}")]
    OtherNode { claimed: String },
    #[error("the agent closed the watch")]
    Closed,
    #[error("the agent says that it does not serve")]
    NotServing,
    /// In its own words.
    #[error("{sentence}")]
    Refused { sentence: String },
    #[error(
        "its store is that of node {holder} by its mark; one of the two has to be the other's standby, or to be taken out"
    )]
    SameStore { holder: NodeId },
    #[error("{UNANSWERED_MAX} calls in a row got no answer")]
    Unanswered,
    #[error("discovery has not found it")]
    NotFound,
    #[error("it is dialled anew")]
    Replaced,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        match reason_of(&status) {
            Some(Reason::StoreNotMarked) => Ended::Refused { sentence: status.message().to_owned() },
            _ => Ended::Call(status),
        }
    }
}

/// The innermost cause, which says what to mend.
fn root_cause(ended: &Ended) -> String {
    let causes = std::iter::successors(Some(ended as &dyn std::error::Error), |cause| cause.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

/// How long to leave a node alone.
#[derive(Debug)]
struct Pauses {
    next: Duration,
    flaps: u32,
}

impl Pauses {
    fn new() -> Self {
        Self { next: RETRY_FIRST, flaps: 0 }
    }

    /// The pause after an attempt in which the node was up since some time, or was not.
    fn after(&mut self, up_since: Option<Instant>) -> Duration {
        match up_since.map(|since| since.elapsed()) {
            Some(up) if up >= STEADY => *self = Self::new(),
            Some(_) => {
                self.flaps += 1;
                self.next = RETRY_FIRST;
            }
            None => {}
        }
        let pause = self.next;
        self.next = (pause * 2).min(RETRY_LAST);
        if up_since.is_some() && self.flaps > FLAPS_FORGIVEN {
            let doubled = (self.flaps - FLAPS_FORGIVEN).min(10);
            return (RETRY_LAST * 2_u32.pow(doubled)).min(RETRY_FLAPPING_LAST);
        }
        pause
    }
}

impl NodeClient {
    /// Watches the node until `stop` or until it is taken out, reporting to the router.
    pub async fn watch(&self, router: &Router, stop: CancellationToken) {
        let stopped = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.out.cancelled() => {}
            }
        };
        tokio::select! {
            () = stopped => {}
            never = self.watch_for_ever(router) => match never {},
        }
    }

    async fn watch_for_ever(&self, router: &Router) -> Infallible {
        let mut pauses = Pauses::new();
        loop {
            let mut up_since = None;
            let ended = tokio::select! {
                ended = self.watch_once(router, &mut up_since) => ended,
                () = self.replaced.notified() => Err(Ended::Replaced),
                () = self.wait_until_unanswered() => Err(Ended::Unanswered),
            };
            let (Ok(ended) | Err(ended)) = ended.map(|()| Ended::Closed);
            if let Ended::Replaced = ended {
                continue;
            }
            self.unanswered.store(0, Ordering::Relaxed);
            let cause = portolan_telemetry::chain(&ended);
            let next = Health::Away(root_cause(&ended));
            let before = self.health.send_replace(next.clone());
            if !matches!(before, Health::Away(_)) {
                router.set_away(self.index);
            }
            // Once for each absence; what a person has to mend also where the node was away for another reason.
            match &ended {
                Ended::SameStore { .. } if before != next => {
                    tracing::error!(node = %self.name, cause, "node is away");
                }
                Ended::Refused { .. } if before != next => {
                    tracing::warn!(node = %self.name, cause, "node is away");
                }
                _ if !matches!(before, Health::Away(_)) => {
                    tracing::warn!(node = %self.name, cause, "node is away");
                }
                _ => {}
            }
            // A different pause for each node and try, so that front ends do not all come at once.
            let pause = pauses.after(up_since).mul_f64(rand::random_range(0.5..1.0));
            if matches!(ended, Ended::NotFound) {
                self.replaced.notified().await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.replaced.notified() => {}
            }
        }
    }

    /// Waits until too many calls in a row got no answer. A wake-up of an earlier absence is not one.
    async fn wait_until_unanswered(&self) {
        loop {
            self.suspected.notified().await;
            if self.unanswered.load(Ordering::Relaxed) >= UNANSWERED_MAX {
                return;
            }
        }
    }

    async fn watch_once(&self, router: &Router, up_since: &mut Option<Instant>) -> Result<(), Ended> {
        let Some(channel) = self.channel.load_full() else { return Err(Ended::NotFound) };
        let mut health = channel.health.clone();
        let check = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let check = tokio::time::timeout(CALL_MAX, health.check(check)).await??.into_inner();
        if check.status() != ServingStatus::Serving {
            return Err(why_not_serving(channel.client.clone()).await);
        }
        let mut client = channel.client.clone();
        let describe = client.describe(DescribeRequest {});
        let described = tokio::time::timeout(CALL_MAX, describe).await??.into_inner();
        if described.node != self.name.as_str() {
            return Err(Ended::OtherNode { claimed: described.node });
        }
        if let Err(holder) = router.claim_store(self.index, &described.store_id) {
            return Err(Ended::SameStore { holder });
        }
        let watch = client.watch_holdings(WatchHoldingsRequest {});
        let mut stream = tokio::time::timeout(CALL_MAX, watch).await??.into_inner();
        // The first set is gathered aside and takes the place of the old one as a whole.
        let mut whole = NodeHoldings::default();
        loop {
            let Some(message) = tokio::time::timeout(CALL_MAX, stream.message()).await?? else {
                return Ok(());
            };
            whole.apply(&message.changes);
            if message.complete {
                break;
            }
        }
        router.replace_holdings(self.index, whole);
        self.stood_in.store(false, Ordering::Relaxed);
        self.health.send_replace(Health::Up);
        *up_since = Some(Instant::now());
        tracing::info!(node = %self.name, version = described.version, store = described.store, "node is up");
        while let Some(message) = stream.message().await? {
            router.change_holdings(self.index, &message.changes);
        }
        Ok(())
    }
}

/// Asks an agent that does not serve for the reason.
async fn why_not_serving(mut client: super::Client) -> Ended {
    let asked = tokio::time::timeout(CALL_MAX, client.watch_holdings(WatchHoldingsRequest {})).await;
    match asked {
        Ok(Err(status)) => match Ended::from(status) {
            refused @ Ended::Refused { .. } => refused,
            _ => Ended::NotServing,
        },
        _ => Ended::NotServing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_flaps_is_left_alone_for_longer() {
        let mut pauses = Pauses::new();
        assert_eq!(pauses.after(None), RETRY_FIRST);
        assert_eq!(pauses.after(None), RETRY_FIRST * 2);
        let just_now = || Some(Instant::now());
        assert_eq!(pauses.after(just_now()), RETRY_FIRST, "restarts happen");
        assert_eq!(pauses.after(just_now()), RETRY_FIRST);
        assert_eq!(pauses.after(just_now()), RETRY_LAST * 2);
        assert_eq!(pauses.after(just_now()), RETRY_LAST * 4);
        for _ in 0..20 {
            pauses.after(just_now());
        }
        assert_eq!(pauses.after(just_now()), RETRY_FLAPPING_LAST);
        let long_ago = Instant::now().checked_sub(STEADY);
        assert_eq!(pauses.after(long_ago), RETRY_FIRST);
        assert_eq!(pauses.after(just_now()), RETRY_FIRST);
    }
}
