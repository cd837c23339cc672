//! What an agent counts while it works: calls, content, commits.
//!
//! Who calls it: the layer around the gRPC service, and `service`.
//! What it calls: prometheus-client.
//! What it never does: take a label from a caller. Labels are methods and gRPC codes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use portolan_telemetry::metrics::SECONDS;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::codegen::{Service, http};
use tonic::{Code, Status};

/// The methods of the contract, and what else may be asked for.
const METHODS: [&str; 16] = [
    "Describe",
    "WatchHoldings",
    "Stat",
    "List",
    "Read",
    "Write",
    "MakeDirectory",
    "Remove",
    "RemoveDirectory",
    "Rename",
    "SetTimes",
    "SetMode",
    "Digest",
    "Check",
    "Watch",
    "other",
];

type Labels = [(&'static str, &'static str); 1];

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    calls: Family<[(&'static str, &'static str); 2], Counter>,
    call_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    commit_seconds: Histogram,
    read_bytes: Counter,
    written_bytes: Counter,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(seconds),
            commit_seconds: seconds(),
            read_bytes: Counter::default(),
            written_bytes: Counter::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("portolan_agent");
        registry.register("calls", "gRPC calls, by the code of the first answer", self.calls.clone());
        let help = "From the call to the first answer";
        registry.register_with_unit("call_duration", help, Unit::Seconds, self.call_seconds.clone());
        let help = "Checking, syncing and renaming an upload";
        registry.register_with_unit("commit_duration", help, Unit::Seconds, self.commit_seconds.clone());
        let help = "Content that was read for front ends";
        registry.register_with_unit("read", help, Unit::Bytes, self.read_bytes.clone());
        let help = "Content of uploads that were committed";
        registry.register_with_unit("written", help, Unit::Bytes, self.written_bytes.clone());
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.read_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn committed(&self, took: Duration, bytes: u64) {
        self.commit_seconds.observe(took.as_secs_f64());
        self.written_bytes.inc_by(bytes);
    }

    fn called(&self, method: &'static str, code: Code, took: Duration) {
        self.calls.get_or_create(&[("method", method), ("code", word(code))]).inc();
        self.call_seconds.get_or_create(&[("method", method)]).observe(took.as_secs_f64());
    }
}

fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// Counts the calls of a service.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    pub(crate) inner: S,
    pub(crate) metrics: Arc<Metrics>,
}

type Answer<R, E> = Pin<Box<dyn Future<Output = Result<http::Response<R>, E>> + Send>>;

impl<S, B, R> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<R, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let asked = request.uri().path().rsplit('/').next().unwrap_or_default();
        let method = METHODS.into_iter().find(|method| *method == asked).unwrap_or("other");
        let (metrics, begun) = (Arc::clone(&self.metrics), Instant::now());
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            // An answer that begins well has its code at its end.
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            metrics.called(method, code, begun.elapsed());
            Ok(answer)
        })
    }
}
