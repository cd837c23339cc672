//! What is to be seen of a running program: its log, its traces, its metrics, its health.
//!
//! Who calls it: the programs, to start and reload it; all code of theirs, by `tracing`.
//! What it calls: log targets and collectors; its HTTP server answers whoever scrapes it.
//! What it never does: let the work wait for whoever watches it.

#![forbid(unsafe_code)]

mod collector;
pub mod http;
pub mod log;
pub mod metrics;
pub mod trace;

use std::io;

use portolan_config::checked::log::{Levels, Log, Tracing};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Levels in the environment take the place of those of the configuration: `LEVEL` or `MODULE=LEVEL`, parted by commas.
pub const LEVEL_VARIABLE: &str = "PORTOLAN_LOG";

/// The telemetry of a process. What waits to be written is written when it is stopped.
pub struct Telemetry {
    log: log::Running,
    spans: Option<trace::Exporting>,
    /// Of the environment.
    levels: Option<Levels>,
}

#[derive(Debug)]
pub enum Error {
    /// What [`LEVEL_VARIABLE`] says is not valid.
    Levels(String),
    Start(io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Levels(message) => write!(f, "{LEVEL_VARIABLE}: {message}"),
            Error::Start(error) => write!(f, "logging cannot be started: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Start(error)
    }
}

impl Telemetry {
    /// Starts logging and, where that is configured, the export of traces; once in a process.
    ///
    /// # Errors
    /// The environment's levels are not valid, or the system has no thread left.
    pub fn start(log: &Log, tracing: Option<&Tracing>, program: &'static str) -> Result<Self, Error> {
        let levels = match std::env::var(LEVEL_VARIABLE) {
            Ok(written) => Some(
                written
                    .parse()
                    .map_err(|error| Error::Levels(format!("{written:?} is not valid; {error}")))?,
            ),
            Err(_) => None,
        };
        let log = log::Running::start(&overridden(log, levels.as_ref()), program)?;
        let (layer, spans) = match tracing {
            None => (None, None),
            Some(tracing) => {
                let (layer, spans) = trace::start(tracing, program)?;
                (Some(layer), Some(spans))
            }
        };
        let filtered = log.clone().with_filter(log.clone());
        tracing_subscriber::registry().with(layer).with(filtered).init();
        tell_panics();
        Ok(Self { log, spans, levels })
    }

    /// Takes other log targets.
    ///
    /// # Errors
    /// The system has no thread left; nothing has changed.
    pub fn set_log(&self, log: &Log) -> io::Result<()> {
        self.log.replace(&overridden(log, self.levels.as_ref()))
    }

    /// True when the levels of the configuration are without effect.
    pub fn is_overridden(&self) -> bool {
        self.levels.is_some()
    }

    /// How the targets of log and traces fare.
    pub fn fates(&self) -> Vec<log::TargetFate> {
        let spans = self.spans.iter().map(trace::Exporting::fate);
        self.log.fates().into_iter().chain(spans).collect()
    }

    /// What is wrong with it, for who asks whether the program is ready: targets that do not take what they are handed.
    pub fn warnings(&self) -> Vec<String> {
        let failing = self.fates().into_iter().filter(|target| target.fate.is_failing());
        failing.map(|target| format!("log target {} takes nothing", target.name)).collect()
    }

    /// Delivers what waits, for a short time. Nothing is logged from then on.
    pub fn stop(&self) {
        self.log.stop();
        if let Some(spans) = &self.spans {
            spans.stop();
        }
    }
}

/// A panic is on stderr by itself, which nobody may read, or which would make the thread wait.
fn tell_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or_default();
        tracing::error!(target: log::CRITICAL, at, said, "a part of the program has failed");
        if log::stderr_takes() {
            default(panic);
        }
    }));
}

fn overridden(log: &Log, levels: Option<&Levels>) -> Log {
    let mut log = log.clone();
    if let Some(levels) = levels {
        for target in &mut log.targets {
            target.levels = levels.clone();
        }
    }
    log
}

/// A point in time for people, in UTC.
pub fn shown_time(time: std::time::SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', " UTC")
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
