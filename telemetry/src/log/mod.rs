//! The log: events to targets, each with its own level, rules and form.
//!
//! An event is made a `record::Record` once. Each target that takes it formats it where it was logged, and has a
//! queue and a thread to bring it where it belongs (`queue`): who logs never waits, and what does not fit is counted.
//!
//! Who calls it: `tracing`, with each event; the programs, to start, reload and stop it.
//! What it calls: the sinks in `sink/`.
//! What it never does: wait, or write a secret: what is one is never given to it.

mod format;
mod levels;
pub(crate) mod queue;
mod record;
mod sink;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use portolan_config::checked::log::{Log, LogFormat, LogOutput, LogTarget, Records};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

pub use queue::Fate;
use queue::Queue;
use record::{Fields, Record};
pub(crate) use sink::stderr_takes;

/// The class of events after which the program cannot go on.
pub const CRITICAL: &str = "portolan::critical";
/// The class of the control conversation: what clients say and are told.
pub const PROTOCOL: &str = "portolan::protocol";
/// The class of events that say who did what: the audit and the log of transfers are made of them.
pub const AUDIT: &str = "portolan::audit";
/// The class of the span of a connection, whose fields all that is logged within it gets. One of them is
/// [`LISTENER_FIELD`].
pub const CONNECTION: &str = "portolan::connection";
pub const LISTENER_FIELD: &str = "listener";

/// How long a program that ends waits for its log.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// A log that runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Running {
    targets: Arc<ArcSwap<Vec<Arc<Target>>>>,
    program: &'static str,
}

struct Target {
    settings: LogTarget,
    filter: Targets,
    way: Way,
}

/// How records go to a target.
enum Way {
    Lines(Arc<Queue<Vec<u8>>>, Form),
    Records(Arc<Queue<Record>>),
}

type Form = Box<dyn Fn(&Record) -> Option<Vec<u8>> + Send + Sync>;

/// A target, as metrics show it.
#[derive(Debug, Clone)]
pub struct TargetFate {
    pub name: String,
    pub fate: Arc<Fate>,
}

impl Running {
    /// Starts the targets.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(log: &Log, program: &'static str) -> std::io::Result<Self> {
        let running = Self { targets: Arc::default(), program };
        running.replace(log)?;
        Ok(running)
    }

    /// Takes other targets. Those that stay as they are go on; those that are gone deliver what they have.
    ///
    /// # Errors
    /// The system has no thread left; nothing has changed.
    pub(crate) fn replace(&self, log: &Log) -> std::io::Result<()> {
        let old = self.targets.load_full();
        let mut targets = Vec::new();
        for settings in &log.targets {
            targets.push(match old.iter().find(|target| target.settings == *settings) {
                Some(same) => Arc::clone(same),
                None => {
                    let name = settings.output.to_string();
                    let before = old.iter().find(|target| target.way.name() == name);
                    Arc::new(Target::start(settings.clone(), &name, before.map(|old| &**old), self.program)?)
                }
            });
        }
        let is_stderr = |settings: &LogTarget| matches!(settings.output, LogOutput::Stderr { .. });
        sink::stderr_is_target(log.targets.iter().any(is_stderr));
        self.targets.store(Arc::new(targets));
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    pub(crate) fn fates(&self) -> Vec<TargetFate> {
        let shown = |target: &Arc<Target>| TargetFate {
            name: target.way.name().to_owned(),
            fate: Arc::clone(target.way.fate()),
        };
        self.targets.load().iter().map(shown).collect()
    }

    /// Lets the targets deliver what they have, for a short time.
    pub(crate) fn stop(&self) {
        let deadline = Instant::now() + LAST_WORDS_MAX;
        let targets = self.targets.swap(Arc::default());
        for target in targets.iter() {
            target.way.close(deadline);
        }
        for target in targets.iter() {
            target.way.wait(deadline);
        }
    }

    fn would_enable(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() {
            return metadata.target() == CONNECTION;
        }
        self.targets.load().iter().any(|target| target.would_enable(metadata))
    }
}

impl Target {
    /// `before` is the target that has had the same place.
    fn start(
        settings: LogTarget,
        name: &str,
        before: Option<&Self>,
        program: &'static str,
    ) -> std::io::Result<Self> {
        let filter = levels::filter(settings.records, &settings.levels);
        let form = |line: fn(&Record) -> Option<String>| -> Form {
            Box::new(move |record| line(record).map(String::into_bytes))
        };
        let on_terminal = std::io::stderr().is_terminal();
        let lines = |format: LogFormat| match (settings.records, format) {
            (Records::Transfers, _) => form(format::xferlog),
            (Records::Audit, _) => form(|record| Some(format::audit(record))),
            (Records::Log, LogFormat::Text) => form(|record| Some(format::text(record, false))),
            (Records::Log, LogFormat::Auto) if on_terminal => form(|record| Some(format::text(record, true))),
            (Records::Log, LogFormat::Auto | LogFormat::Json) => form(|record| Some(format::json(record))),
        };
        let records = settings.records;
        let goes_on = before.is_some_and(|before| is_same_sink(&before.settings.output, &settings.output));
        let (lines_before, records_before) = match before.map(|before| &before.way) {
            Some(Way::Lines(queue, _)) => (Some(queue), None),
            Some(Way::Records(queue)) => (None, Some(queue)),
            None => (None, None),
        };
        let way = match &settings.output {
            LogOutput::Stderr { format } => {
                Way::Lines(follow(name, lines_before, goes_on, || sink::Stderr)?, lines(*format))
            }
            LogOutput::File { path, format, rotation } => {
                let (path, rotation) = (path.clone(), *rotation);
                let sink = move || sink::file::RotatingFile::new(path, rotation);
                Way::Lines(follow(name, lines_before, goes_on, sink)?, lines(*format))
            }
            LogOutput::Syslog { server, header, facility } => {
                let (facility, header, server) = (*facility, *header, server.clone());
                let queue = follow(name, lines_before, goes_on, move || sink::syslog::Syslog::new(server))?;
                let form = move |record: &Record| {
                    let said = said(records, record)?;
                    Some(sink::syslog::message(record, facility, header, program, &said).into_bytes())
                };
                Way::Lines(queue, Box::new(form))
            }
            LogOutput::Journald => {
                let queue = follow(name, lines_before, goes_on, sink::journald::Journald::new)?;
                let form = move |record: &Record| {
                    let said = said(records, record)?;
                    Some(sink::journald::entry(record, program, &said))
                };
                Way::Lines(queue, Box::new(form))
            }
            LogOutput::Otlp(collector) => {
                let collector = collector.clone();
                let sink = move || sink::otlp::Logs::new(&collector, program);
                Way::Records(follow(name, records_before, goes_on, sink)?)
            }
        };
        Ok(Self { settings, filter, way })
    }

    fn would_enable(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.would_enable(metadata.target(), metadata.level())
    }

    /// Whether it takes what connections of this listener log; `None`: it belongs to no connection.
    fn takes_from(&self, listener: Option<&str>) -> bool {
        let wanted = &self.settings.listeners;
        wanted.is_empty() || listener.is_some_and(|listener| wanted.iter().any(|wanted| wanted == listener))
    }
}

/// True where only what is logged differs, or its form.
fn is_same_sink(old: &LogOutput, new: &LogOutput) -> bool {
    match (old, new) {
        (LogOutput::Stderr { .. }, LogOutput::Stderr { .. }) | (LogOutput::Journald, LogOutput::Journald) => {
            true
        }
        (LogOutput::File { path, rotation, .. }, LogOutput::File { path: other, rotation: others, .. }) => {
            path == other && rotation == others
        }
        (LogOutput::Syslog { server, .. }, LogOutput::Syslog { server: other, .. }) => server == other,
        (LogOutput::Otlp(collector), LogOutput::Otlp(other)) => collector == other,
        _ => false,
    }
}

/// The queue of a target. The one before it goes on, or comes to its end first: two threads would write over each other.
fn follow<T: Send + 'static, S: queue::Sink<T>>(
    name: &str,
    before: Option<&Arc<Queue<T>>>,
    goes_on: bool,
    sink: impl FnOnce() -> S + Send + 'static,
) -> std::io::Result<Arc<Queue<T>>> {
    if let Some(queue) = before.filter(|_| goes_on) {
        return Ok(Arc::clone(queue));
    }
    // A target at the same place counts on.
    let fate = before.map(|queue| Arc::clone(queue.fate())).unwrap_or_default();
    let before = before.map(Arc::clone);
    let begin = move || {
        if let Some(before) = before {
            Queue::see_off(before);
        }
        sink()
    };
    Queue::start(name, fate, begin).map(Arc::new)
}

/// What a record says to a target that has its own fields for time and severity; `None`: nothing.
fn said(records: Records, record: &Record) -> Option<String> {
    let line = match records {
        Records::Log => return Some(format::message(record)),
        Records::Transfers => format::xferlog(record)?,
        Records::Audit => format::audit(record),
    };
    Some(line.trim_end().to_owned())
}

impl Way {
    fn name(&self) -> &str {
        match self {
            Way::Lines(queue, _) => queue.name(),
            Way::Records(queue) => queue.name(),
        }
    }

    fn fate(&self) -> &Arc<Fate> {
        match self {
            Way::Lines(queue, _) => queue.fate(),
            Way::Records(queue) => queue.fate(),
        }
    }

    fn close(&self, deadline: Instant) {
        match self {
            Way::Lines(queue, _) => queue.close(deadline),
            Way::Records(queue) => queue.close(deadline),
        }
    }

    fn wait(&self, deadline: Instant) {
        match self {
            Way::Lines(queue, _) => queue.wait(deadline),
            Way::Records(queue) => queue.wait(deadline),
        }
    }

    fn take(&self, record: &Record) {
        match self {
            Way::Lines(queue, form) => {
                if let Some(line) = form(record) {
                    let bytes = line.len();
                    queue.push(line, bytes);
                }
            }
            Way::Records(queue) => queue.push(record.clone(), record.bytes()),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Running {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        id: &tracing::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(record::fields_of(attributes));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let targets = self.targets.load();
        let mut takers = targets.iter().filter(|target| target.would_enable(metadata)).peekable();
        if takers.peek().is_none() {
            return;
        }
        let connection = context.event_span(event);
        let extensions = connection.as_ref().map(|span| span.extensions());
        let connection = extensions.as_ref().and_then(|extensions| extensions.get::<Fields>());
        let record = Record::new(event, connection);
        let listener = record.field(LISTENER_FIELD).map(record::Value::text);
        for target in takers {
            if target.takes_from(listener.as_deref()) {
                target.way.take(&record);
            }
        }
    }
}

impl<S> Filter<S> for Running {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.would_enable(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Asked again when the targets change.
        if self.would_enable(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let targets = self.targets.load();
        let of_target = |target: &Arc<Target>| {
            <Targets as Layer<tracing_subscriber::Registry>>::max_level_hint(&target.filter)
        };
        let levels = targets.iter().map(|target| of_target(target).unwrap_or(LevelFilter::TRACE));
        // The spans of connections are of level info.
        Some(levels.max().unwrap_or(LevelFilter::OFF).max(LevelFilter::INFO))
    }
}
