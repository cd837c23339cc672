//! The watch of one node: keeps a WatchHoldings stream open, which tells both what the node holds and that it
//! is there.

use std::time::Duration;

use portolan_proto::v1::agent_client::AgentClient;
use portolan_proto::v1::{DescribeRequest, WatchHoldingsRequest};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{CALL_MAX, Health, NodeClient};
use crate::router::{NodeHoldings, Router};

/// Pauses between attempts to reach a node: doubled from the first to the last. A node that comes back is
/// noticed within the last one and the time of a connection.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("node does not answer")]
    Call(#[from] Status),
    #[error("node did not answer in time")]
    Deadline(#[from] tokio::time::error::Elapsed),
    #[error("the agent says it is node {claimed}")]
    OtherNode { claimed: String },
    #[error("the agent closed the watch")]
    Closed,
    #[error("the connection is made anew with other certificates")]
    Replaced,
}

/// The innermost cause, which says what to mend.
fn root_cause(ended: &Ended) -> String {
    let causes = std::iter::successors(Some(ended as &dyn std::error::Error), |cause| cause.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

impl NodeClient {
    /// Watches the node until `stop`, reporting to the router.
    pub async fn watch(&self, router: &Router, stop: CancellationToken) {
        let mut pause = RETRY_FIRST;
        loop {
            let ended = tokio::select! {
                ended = self.watch_once(router, &mut pause) => ended,
                () = self.replaced.notified() => Err(Ended::Replaced),
                () = stop.cancelled() => return,
            };
            let (Ok(ended) | Err(ended)) = ended.map(|()| Ended::Closed);
            if let Ended::Replaced = ended {
                continue;
            }
            let cause = portolan_agent::process::chain(&ended);
            let changed = self.health.send_if_modified(|health| {
                let was_away = matches!(health, Health::Away(_));
                *health = Health::Away(root_cause(&ended));
                !was_away
            });
            if changed {
                router.set_away(self.index);
                tracing::warn!(node = %self.name, cause, "node is away");
            }
            // A different pause for each node and try, so that front ends do not all come at once.
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    async fn watch_once(&self, router: &Router, pause: &mut Duration) -> Result<(), Ended> {
        let mut client = AgentClient::clone(&self.client.load());
        let describe = client.describe(DescribeRequest {});
        let described = tokio::time::timeout(CALL_MAX, describe).await??.into_inner();
        if described.node != self.name.as_str() {
            return Err(Ended::OtherNode { claimed: described.node });
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
        self.health.send_replace(Health::Up);
        *pause = RETRY_FIRST;
        tracing::info!(node = %self.name, version = described.version, store = described.store, "node is up");
        while let Some(message) = stream.message().await? {
            router.change_holdings(self.index, &message.changes);
        }
        Ok(())
    }
}
