//! The routes of metrics and health (`/metrics`, `/healthz`, `/readyz`), and a server for them and other routes.
//!
//! Who calls it: the programs, where an address is configured; Prometheus, Kubernetes, load balancers.
//! What it calls: the closures that it was given, axum and hyper.
//! What it never does: change anything, or hold more connections than its limits allow.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The text format of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The classic text format of Prometheus.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a program is of use to its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why it is not; empty: it is.
    pub reasons: Vec<String>,
    /// What is wrong and does not keep it from serving.
    pub warnings: Vec<String>,
}

/// What the routes answer with.
pub struct Answers {
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    pub readiness: Box<dyn Fn() -> Readiness + Send + Sync>,
}

/// What a server allows its clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. For one more the oldest is closed.
    pub connections_max: usize,
    /// The head of a request has come by then.
    pub headers_max: Duration,
    /// A connection lives no longer.
    pub connection_max: Duration,
    /// Whether a connection may have more than one request.
    pub keep_alive: bool,
}

impl Limits {
    /// For probes and scrapes, which have one short request each.
    pub const PROBES: Self = Self {
        connections_max: 64,
        headers_max: Duration::from_secs(5),
        connection_max: Duration::from_secs(10),
        keep_alive: false,
    };
}

/// The routes of metrics and health.
pub fn routes(answers: Answers) -> Router {
    Router::new()
        .route("/metrics", get(answer_metrics))
        // An answer shows that the process lives.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(answers))
}

/// A server that is bound.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// The address is not to be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Answers by `router` until `stop`.
    pub async fn run(self, router: Router, limits: Limits, stop: CancellationToken) {
        tracing::info!(address = %self.address, "metrics and health are served");
        let service = TowerToHyperService::new(router);
        let connections = TaskTracker::new();
        // Oldest first.
        let mut open: VecDeque<tokio::task::JoinHandle<()>> = VecDeque::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() == limits.connections_max
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            let (service, stop) = (service.clone(), stop.clone());
            open.push_back(connections.spawn(async move {
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(limits.headers_max)
                    .keep_alive(limits.keep_alive)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // What a client does to its own connection is its own business.
                    served = tokio::time::timeout(limits.connection_max, serving) => drop(served),
                    () = stop.cancelled() => {}
                }
            }));
        }
        connections.close();
        connections.wait().await;
    }
}

/// OpenMetrics for whoever asks for it, as Prometheus does, and the classic format for all others.
async fn answer_metrics(State(answers): State<Arc<Answers>>, headers: HeaderMap) -> Response {
    let open_metrics = (answers.metrics)();
    let asked = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if wants_open_metrics(asked) {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], open_metrics).into_response()
    } else {
        ([(header::CONTENT_TYPE, CLASSIC)], metrics::classic(&open_metrics)).into_response()
    }
}

/// Does an Accept header (RFC 9110 section 12.5.1) prefer OpenMetrics to plain text?
fn wants_open_metrics<'a>(headers: impl Iterator<Item = &'a str>) -> bool {
    let (mut open, mut classic) = (0.0_f32, 0.0_f32);
    for range in headers.flat_map(|header| header.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let quality = |part: &str| part.strip_prefix("q=").or(part.strip_prefix("Q="))?.parse::<f32>().ok();
        let (kind, quality) = (parts.next().unwrap_or_default(), parts.find_map(quality).unwrap_or(1.0));
        match &*kind.to_ascii_lowercase() {
            "application/openmetrics-text" => open = open.max(quality),
            "text/plain" => classic = classic.max(quality),
            _ => {}
        }
    }
    open > 0.0 && open >= classic
}

/// 200 or 503, with a line for each thing that is wrong.
async fn ready(State(answers): State<Arc<Answers>>) -> Response {
    let Readiness { reasons, warnings } = (answers.readiness)();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut lines = vec![if reasons.is_empty() { "ready".to_owned() } else { "not ready".to_owned() }];
    lines.extend(reasons.into_iter().map(|reason| format!("not ready: {reason}")));
    lines.extend(warnings.into_iter().map(|warning| format!("warning: {warning}")));
    (status, lines.join("\n") + "\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_are_for_who_asks_for_them() {
        for (accept, wanted) in [
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                true,
            ),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text; version=0.0.1, text/plain", true),
            ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.2", false),
            ("application/openmetrics-text;q=0", false),
            ("text/plain", false),
            ("*/*", false),
            ("", false),
            (";;q=x,,", false),
        ] {
            assert_eq!(wants_open_metrics([accept].into_iter()), wanted, "{accept}");
        }
        assert!(!wants_open_metrics([].into_iter()));
    }
}
