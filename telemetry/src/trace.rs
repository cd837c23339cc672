//! Traces: spans to an OpenTelemetry collector, and their context from front end to agent (W3C Trace Context).
//!
//! A connection is a trace of its own, and so is each command, linked to its connection's: a session of a backup has
//! 100,000 commands, which no viewer shows as one trace, and sampling chooses among commands and not among sessions.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::Value;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracerProvider, SpanData, SpanExporter as _, SpanProcessor, Tracer,
};
use parking_lot::Mutex;
use portolan_config::checked::log::{Collector, Tracing};
use tonic::codegen::http::header::{HeaderMap, HeaderName};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::filter::{FilterFn, Filtered};
use tracing_subscriber::{Layer as _, Registry};

use crate::collector;
use crate::log::queue::{Fate, Queue, Sink};
use crate::log::{CONNECTION, TargetFate};

/// The class of spans that only traces are made of.
pub const TRACE: &str = "portolan::trace";

/// What a span takes up without its texts, about.
const SPAN_BYTES: usize = 1_024;
/// How long a program that ends waits for its spans.
const LAST_SPANS_MAX: Duration = Duration::from_secs(1);

/// Spans are exported; without it nobody asks for their context.
static IS_EXPORTED: AtomicBool = AtomicBool::new(false);

/// The export of spans. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Exporting {
    name: Arc<str>,
    fate: Arc<Fate>,
    queue: Arc<Mutex<Option<Queue<SpanData>>>>,
}

pub(crate) type SpanLayer =
    Filtered<OpenTelemetryLayer<Registry, Tracer>, FilterFn<fn(&tracing::Metadata<'_>) -> bool>, Registry>;

pub(crate) fn start(tracing: &Tracing, program: &'static str) -> io::Result<(SpanLayer, Exporting)> {
    let name = format!("traces {}", tracing.collector.endpoint);
    let fate = Arc::new(Fate::default());
    let settings = tracing.collector.clone();
    let queue = Queue::start(&name, Arc::clone(&fate), move || Spans::new(&settings, program))?;
    let exporting = Exporting { name: name.into(), fate, queue: Arc::new(Mutex::new(Some(queue))) };
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(tracing.ratio))))
        .with_span_processor(exporting.clone())
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_tracer(provider.tracer(program));
    IS_EXPORTED.store(true, Ordering::Relaxed);
    Ok((layer.with_filter(FilterFn::new(is_exported as fn(&tracing::Metadata<'_>) -> bool)), exporting))
}

fn is_exported(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_span() && matches!(metadata.target(), TRACE | CONNECTION)
}

impl Exporting {
    pub(crate) fn fate(&self) -> TargetFate {
        TargetFate { name: self.name.to_string(), fate: Arc::clone(&self.fate) }
    }

    pub(crate) fn stop(&self) {
        let queue = self.queue.lock().take();
        if let Some(queue) = queue {
            let deadline = Instant::now() + LAST_SPANS_MAX;
            queue.close(deadline);
            queue.wait(deadline);
        }
    }
}

impl SpanProcessor for Exporting {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if let Some(queue) = &*self.queue.lock() {
            let bytes = span_bytes(&span);
            queue.push(span, bytes);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// What the thread of the export holds.
struct Spans {
    exporter: Result<(tokio::runtime::Runtime, SpanExporter), String>,
}

impl Spans {
    fn new(settings: &Collector, program: &'static str) -> Self {
        let made = collector::runtime().and_then(|runtime| {
            let exporter = {
                let _within = runtime.enter();
                collector::span_exporter(settings)
            };
            let mut exporter = exporter?;
            exporter.set_resource(&collector::resource(program));
            Ok((runtime, exporter))
        });
        Self { exporter: made.map_err(|error| error.to_string()) }
    }
}

impl Sink<SpanData> for Spans {
    fn deliver(&mut self, items: &mut VecDeque<SpanData>, refused: &mut u64) -> io::Result<()> {
        let (runtime, exporter) = match &self.exporter {
            Ok(made) => made,
            Err(cause) => return Err(io::Error::other(cause.clone())),
        };
        collector::deliver(items, refused, span_bytes, |items| {
            runtime.block_on(exporter.export(items.cloned().collect()))
        })
    }
}

/// Bytes that a span takes up, about.
fn span_bytes(span: &SpanData) -> usize {
    let text = |value: &Value| if let Value::String(text) = value { text.as_str().len() } else { 0 };
    SPAN_BYTES + span.attributes.iter().map(|attribute| text(&attribute.value)).sum::<usize>()
}

/// Ties a command's trace to its connection's.
pub fn link(command: &Span, connection: &Span) {
    if IS_EXPORTED.load(Ordering::Relaxed) {
        command.add_link(connection.context().span().span_context().clone());
    }
}

/// Puts the context of the current span into the metadata of a call.
pub fn inject(metadata: &mut MetadataMap) {
    if IS_EXPORTED.load(Ordering::Relaxed) {
        let context = Span::current().context();
        TraceContextPropagator::new().inject_context(&context, &mut Metadata(metadata));
    }
}

/// Makes a span go on from the context in the headers of a call.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    if IS_EXPORTED.load(Ordering::Relaxed) {
        // A span that has begun already keeps its place; ours have not.
        span.set_parent(TraceContextPropagator::new().extract(&Headers(headers))).ok();
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) =
            (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value))
        {
            self.0.insert(key, value);
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
