//! Metrics that every program has: what was built, its process, its log.
//!
//! Labels come from closed sets or from the configuration, never from a client.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::Telemetry;

/// Bounds of durations, in seconds: from what a small file takes to what a large one does.
pub const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0];

/// The registry of a program, with what every program has.
pub fn registry(program: &'static str, telemetry: Option<Arc<Telemetry>>) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("program", program), ("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("portolan_build", "The program that runs", build);
    registry.register_collector(Box::new(Process::new()));
    if let Some(telemetry) = telemetry {
        registry.register_collector(Box::new(LogTargets(telemetry)));
    }
    registry
}

/// The registry's metrics as OpenMetrics text.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    prometheus_client::encoding::text::encode(&mut text, registry).ok();
    text
}

/// OpenMetrics text, as [`encode`] writes it, in the classic text format of Prometheus (0.0.4): there the name of a counter
/// has its `_total` also where its type is told, an info is a gauge, and units and the end are not marked.
pub fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), told) => help = told,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some(help) = help.take() {
                    text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// A gauge at the time of a scrape.
///
/// # Errors
/// Of the encoder.
pub fn gauge<L: prometheus_client::encoding::EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl IntoIterator<Item = (L, f64)>,
) -> Result<(), std::fmt::Error> {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A counter at the time of a scrape.
///
/// # Errors
/// Of the encoder.
pub fn counter<L: prometheus_client::encoding::EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Seconds since 1970.
pub fn timestamp(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The log's targets.
struct LogTargets(Arc<Telemetry>);

impl std::fmt::Debug for LogTargets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogTargets")
    }
}

impl Collector for LogTargets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let fates = self.0.fates();
        let labels = |target: &crate::log::TargetFate| [("target", target.name.clone())];
        counter(
            &mut encoder,
            "portolan_telemetry_delivered",
            "Lines and spans that a log target or collector took",
            fates.iter().map(|target| (labels(target), target.fate.delivered())),
        )?;
        counter(
            &mut encoder,
            "portolan_telemetry_dropped",
            "Lines and spans that were dropped, because a log target or collector takes less than comes",
            fates.iter().map(|target| (labels(target), target.fate.dropped())),
        )?;
        counter(
            &mut encoder,
            "portolan_telemetry_failures",
            "Failed attempts to deliver to a log target or collector",
            fates.iter().map(|target| (labels(target), target.fate.failures())),
        )
    }
}

/// The process, by the names that Prometheus' client libraries use.
#[derive(Debug)]
struct Process {
    started: f64,
}

impl Process {
    fn new() -> Self {
        Self { started: timestamp(SystemTime::now()) }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let none: [(&str, &str); 0] = [];
        let mut one = |name: &str, help: &str, unit: Option<Unit>, value: Option<f64>| {
            gauge(&mut encoder, name, help, unit.as_ref(), value.map(|value| (none, value)))
        };
        one(
            "process_start_time",
            "When the process began, since 1970",
            Some(Unit::Seconds),
            Some(self.started),
        )?;
        one("process_resident_memory", "Memory in use", Some(Unit::Bytes), resident_bytes())?;
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|folder| folder.count() as f64);
        one("process_open_fds", "Open file descriptors", None, open)?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        one("process_max_fds", "Open file descriptors at most", None, limit.map(|limit| limit as f64))?;
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        let kind = prometheus_client::metrics::MetricType::Counter;
        let help = "Processor time, of all threads";
        let family = encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), kind)?;
        ConstCounter::new(seconds).encode(family)
    }
}

fn resident_bytes() -> Option<f64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_format_names_counters_and_infos_as_their_samples() {
        let open = "# HELP a A \\n thing.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"y z\"} 1\n\
                    # HELP b B.\n# TYPE b info\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c gauge\nc 2\n# EOF\n";
        let classic_text = "# HELP a_total A \\n thing.\n# TYPE a_total counter\na_total{x=\"y z\"} 1\n\
                            # HELP b_info B.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c gauge\nc 2\n";
        assert_eq!(classic(open), classic_text);
    }
}
