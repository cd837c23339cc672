//! OTLP: records to an OpenTelemetry collector.

use std::collections::VecDeque;
use std::io;
use std::time::SystemTime;

use opentelemetry::InstrumentationScope;
use opentelemetry::logs::{
    AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity as OtelSeverity,
};
use opentelemetry::trace::TraceFlags;
use opentelemetry_otlp::LogExporter;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _, SdkLogRecord, SdkLogger, SdkLoggerProvider};
use portolan_config::checked::log::Collector;

use crate::collector;
use crate::log::queue::Sink;
use crate::log::record::{Record, Severity, Value};

/// See the module.
pub(in crate::log) struct Logs {
    exporter: Result<(tokio::runtime::Runtime, LogExporter), String>,
    logger: SdkLogger,
    scope: InstrumentationScope,
}

impl Logs {
    pub(in crate::log) fn new(settings: &Collector, program: &'static str) -> Self {
        let made = collector::runtime().and_then(|runtime| {
            let exporter = {
                let _within = runtime.enter();
                collector::log_exporter(settings)
            };
            let mut exporter = exporter?;
            exporter.set_resource(&collector::resource(program));
            Ok((runtime, exporter))
        });
        // It only makes the records.
        let provider = SdkLoggerProvider::builder().build();
        Self {
            exporter: made.map_err(|error| error.to_string()),
            logger: provider.logger(program),
            scope: InstrumentationScope::builder(program).with_version(env!("CARGO_PKG_VERSION")).build(),
        }
    }

    fn converted(&self, record: &Record) -> SdkLogRecord {
        let mut converted = self.logger.create_log_record();
        converted.set_timestamp(record.time);
        converted.set_observed_timestamp(SystemTime::now());
        converted.set_severity_number(match record.severity {
            Severity::Critical => OtelSeverity::Fatal,
            Severity::Error => OtelSeverity::Error,
            Severity::Warning => OtelSeverity::Warn,
            Severity::Info => OtelSeverity::Info,
            Severity::Debug => OtelSeverity::Debug,
        });
        converted.set_severity_text(record.level);
        converted.set_body(AnyValue::String(record.message.clone().into()));
        converted.add_attribute("code.namespace", record.source.clone());
        for (name, value) in &record.fields {
            let value = match value {
                Value::Text(text) => AnyValue::String(text.clone().into()),
                Value::Integer(number) => AnyValue::Int(*number),
                Value::Unsigned(number) => AnyValue::Int(i64::try_from(*number).unwrap_or(i64::MAX)),
                Value::Number(number) => AnyValue::Double(*number),
                Value::Flag(flag) => AnyValue::Boolean(*flag),
            };
            converted.add_attribute(*name, value);
        }
        if let Some((trace, span)) = record.trace {
            converted.set_trace_context(trace, span, Some(TraceFlags::SAMPLED));
        }
        converted
    }
}

impl Sink<Record> for Logs {
    fn deliver(&mut self, items: &mut VecDeque<Record>, refused: &mut u64) -> io::Result<()> {
        let (runtime, exporter) = match &self.exporter {
            Ok(made) => made,
            Err(cause) => return Err(io::Error::other(cause.clone())),
        };
        collector::deliver(items, refused, Record::bytes, |items| {
            let records: Vec<SdkLogRecord> = items.map(|record| self.converted(record)).collect();
            let batch: Vec<_> = records.iter().map(|record| (record, &self.scope)).collect();
            runtime.block_on(exporter.export(LogBatch::new(&batch)))
        })
    }
}
