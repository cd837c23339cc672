//! One event as the targets are handed it: its fields, and the connection that it belongs to.

use std::fmt::Write as _;
use std::time::SystemTime;

use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};

use super::{CRITICAL, PROTOCOL};

/// How bad it is, in syslog's numbers (RFC 5424 section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Severity {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

impl Severity {
    fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            _ if metadata.target() == CRITICAL => Severity::Critical,
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            Level::INFO => Severity::Info,
            Level::DEBUG | Level::TRACE => Severity::Debug,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Unsigned(u64),
    Number(f64),
    Flag(bool),
}

impl Value {
    /// As text; the empty text where it is none.
    pub(super) fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Unsigned(number) => number.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
        }
    }
}

/// Fields in the order in which they were given.
pub(super) type Fields = Vec<(&'static str, Value)>;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) time: SystemTime,
    pub(super) severity: Severity,
    /// `CRITICAL`, `ERROR`, `WARN`, `INFO`, `PROTOCOL`, `DEBUG` or `TRACE`.
    pub(super) level: &'static str,
    /// The module that it comes from, or its class.
    pub(super) source: String,
    pub(super) message: String,
    /// Those of the event, then those of its connection that the event does not have itself.
    pub(super) fields: Fields,
    /// The trace that it belongs to, where that is exported.
    pub(super) trace: Option<(TraceId, SpanId)>,
}

impl Record {
    pub(super) fn new(event: &tracing::Event<'_>, connection: Option<&Fields>) -> Self {
        let metadata = event.metadata();
        let mut gathered = Gathered::default();
        event.record(&mut gathered);
        let Gathered { message, mut fields } = gathered;
        for (name, value) in connection.into_iter().flatten() {
            if !fields.iter().any(|(there, _)| there == name) {
                fields.push((name, value.clone()));
            }
        }
        let class = metadata.target();
        let level = match *metadata.level() {
            _ if class == CRITICAL => "CRITICAL",
            _ if class == PROTOCOL => "PROTOCOL",
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBUG",
            Level::TRACE => "TRACE",
        };
        let current = opentelemetry::Context::current();
        let span = current.span();
        let trace = span.span_context();
        Self {
            time: SystemTime::now(),
            severity: Severity::of(metadata),
            level,
            source: metadata.module_path().unwrap_or(class).to_owned(),
            message,
            fields,
            trace: trace.is_valid().then(|| (trace.trace_id(), trace.span_id())),
        }
    }

    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(there, _)| *there == name).map(|(_, value)| value)
    }

    /// Bytes that it takes up, about.
    pub(super) fn bytes(&self) -> usize {
        let text = |value: &Value| if let Value::Text(text) = value { text.len() } else { 0 };
        let fields: usize = self.fields.iter().map(|(_, value)| size_of::<Value>() * 2 + text(value)).sum();
        size_of::<Self>() + self.source.len() + self.message.len() + fields
    }
}

/// The fields of a span.
pub(super) fn fields_of(attributes: &tracing::span::Attributes<'_>) -> Fields {
    let mut gathered = Gathered::default();
    attributes.record(&mut gathered);
    gathered.fields
}

#[derive(Debug, Default)]
struct Gathered {
    message: String,
    fields: Fields,
}

impl Gathered {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", value) => self.message = value.text(),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Gathered {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Integer(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Unsigned(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, Value::Unsigned(u64::try_from(value).unwrap_or(u64::MAX)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Number(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Flag(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let mut text = String::new();
        // Writing to a String does not fail.
        write!(text, "{value:?}").ok();
        self.add(field, Value::Text(text));
    }
}
