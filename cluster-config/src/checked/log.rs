//! Where a program logs, what, and in which form; where its traces go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Anchors, Checker, Identity, span};
use crate::raw::{self, Field, Text};
use crate::units::{HostPort, Size};

/// How a program logs.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// At least one; no two of them have the same output.
    pub targets: Vec<LogTarget>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogTarget {
    pub output: LogOutput,
    pub records: Records,
    pub levels: Levels,
    /// Only what connections of these listeners log; empty: everything.
    pub listeners: Vec<String>,
}

/// What a target is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// Everything, by level.
    Log,
    /// Each upload and download, as xferlog.
    Transfers,
    /// Who did what, as JSON.
    Audit,
}

/// From the fewest to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Critical,
    Error,
    Warning,
    Info,
    /// And the control conversation.
    Protocol,
    Debug,
    Trace,
}

const LEVELS: [(&str, Level); 7] = [
    ("critical", Level::Critical),
    ("error", Level::Error),
    ("warning", Level::Warning),
    ("info", Level::Info),
    ("protocol", Level::Protocol),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

/// A level, and others for some modules and what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    pub level: Level,
    pub modules: BTreeMap<String, Level>,
}

/// Levels that do not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("allowed: a level or MODULE=LEVEL, parted by commas; levels are {}", words())]
pub struct LevelsFault;

fn words() -> String {
    LEVELS.map(|(word, _)| word).join(", ")
}

fn level(word: &str) -> Option<Level> {
    LEVELS.iter().find(|(known, _)| *known == word).map(|(_, level)| *level)
}

impl FromStr for Levels {
    type Err = LevelsFault;

    fn from_str(text: &str) -> Result<Self, LevelsFault> {
        let mut levels = Self { level: Level::Info, modules: BTreeMap::new() };
        for word in text.split(',').map(str::trim) {
            match word.split_once('=') {
                None => levels.level = level(word).ok_or(LevelsFault)?,
                Some((module, word)) if is_module(module) => {
                    levels.modules.insert(module.to_owned(), level(word).ok_or(LevelsFault)?);
                }
                Some(_) => return Err(LevelsFault),
            }
        }
        Ok(levels)
    }
}

/// The path of a module: words parted by `::`.
fn is_module(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text.split("::").all(is_word)
}

#[derive(Debug, Clone, PartialEq)]
pub enum LogOutput {
    Stderr { format: LogFormat },
    File { path: PathBuf, format: LogFormat, rotation: Rotation },
    Syslog { server: SyslogServer, header: SyslogHeader, facility: Facility },
    Journald,
    Otlp(Collector),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// When a file is rotated, and how many old ones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Before it is larger; 0: never.
    pub bytes: u64,
    pub every: RotateEvery,
    pub keep: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotateEvery {
    Never,
    Hour,
    Day,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogServer {
    /// A local socket.
    Unix(PathBuf),
    Udp(HostPort),
    Tcp(HostPort),
    Tls(SyslogTls),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogTls {
    pub server: HostPort,
    /// `None`: those of the system.
    pub ca: Option<Anchors>,
    pub identity: Option<Identity>,
}

/// What a message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyslogHeader {
    Rfc5424,
    /// As syslog(3) writes it to the local socket: RFC 3164 without the host. What listens there reads an RFC 5424
    /// header as text.
    Traditional,
}

/// RFC 5424 section 6.2.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facility {
    User,
    Mail,
    Daemon,
    Auth,
    Ftp,
    Local0,
    Local1,
    Local2,
    Local3,
    Local4,
    Local5,
    Local6,
    Local7,
}

const FACILITIES: [(&str, Facility); 13] = [
    ("user", Facility::User),
    ("mail", Facility::Mail),
    ("daemon", Facility::Daemon),
    ("auth", Facility::Auth),
    ("ftp", Facility::Ftp),
    ("local0", Facility::Local0),
    ("local1", Facility::Local1),
    ("local2", Facility::Local2),
    ("local3", Facility::Local3),
    ("local4", Facility::Local4),
    ("local5", Facility::Local5),
    ("local6", Facility::Local6),
    ("local7", Facility::Local7),
];

impl Facility {
    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Facility::User => 1,
            Facility::Mail => 2,
            Facility::Daemon => 3,
            Facility::Auth => 4,
            Facility::Ftp => 11,
            Facility::Local0 => 16,
            Facility::Local1 => 17,
            Facility::Local2 => 18,
            Facility::Local3 => 19,
            Facility::Local4 => 20,
            Facility::Local5 => 21,
            Facility::Local6 => 22,
            Facility::Local7 => 23,
        }
    }
}

/// A collector of OpenTelemetry, by gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoint: String,
    /// `None`: those of the system.
    pub ca: Option<Anchors>,
    pub identity: Option<Identity>,
    /// Of one message.
    pub timeout: Duration,
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    pub collector: Collector,
    /// How many of the commands are traced, from 0 to 1.
    pub ratio: f64,
}

impl fmt::Display for LogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogOutput::Stderr { .. } => f.write_str("stderr"),
            LogOutput::File { path, .. } => write!(f, "file {}", path.display()),
            LogOutput::Syslog { server, .. } => match server {
                SyslogServer::Unix(path) => write!(f, "syslog unix:{}", path.display()),
                SyslogServer::Udp(server) => write!(f, "syslog udp://{server}"),
                SyslogServer::Tcp(server) => write!(f, "syslog tcp://{server}"),
                SyslogServer::Tls(tls) => write!(f, "syslog tls://{}", tls.server),
            },
            LogOutput::Journald => f.write_str("journald"),
            LogOutput::Otlp(collector) => write!(f, "otlp {}", collector.endpoint),
        }
    }
}

impl Log {
    /// One target: stderr.
    pub fn stderr(level: Level, format: LogFormat) -> Self {
        let levels = Levels { level, modules: BTreeMap::new() };
        let output = LogOutput::Stderr { format };
        Self { targets: vec![LogTarget { output, records: Records::Log, levels, listeners: Vec::new() }] }
    }
}

/// Where a target ends up: a file by its folder, however that is written.
fn place(output: &LogOutput) -> String {
    let LogOutput::File { path, .. } = output else { return output.to_string() };
    let real = path.canonicalize().or_else(|_| {
        let folder = path.parent().unwrap_or(path).canonicalize()?;
        Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
    });
    format!("file {}", real.as_deref().unwrap_or(path).display())
}

/// What a kind of target understands, beside `kind` and what all of them do.
const KEYS: [(&str, &[&str]); 5] = [
    ("stderr", &["format"]),
    ("file", &["format", "path", "rotate_bytes", "rotate_every", "keep"]),
    ("syslog", &["address", "header", "facility", "ca", "certificate", "key"]),
    ("journald", &[]),
    ("otlp", &["endpoint", "ca", "certificate", "key", "timeout"]),
];

impl Checker {
    /// `listeners` are the names that there are; `None`: the program has no listeners and no admins.
    pub(crate) fn log(&mut self, raw: &raw::Log, listeners: Option<&[String]>) -> Log {
        let levels = self.levels(&raw.level, &raw.modules, "log.", None);
        let format = self.log_format(&raw.format, "log.format", LogFormat::Auto);
        let Some(raw) = &raw.targets else {
            let output = LogOutput::Stderr { format };
            let target = LogTarget { output, records: Records::Log, levels, listeners: Vec::new() };
            return Log { targets: vec![target] };
        };
        if raw.is_empty() {
            self.fault(
                None,
                "log.targets",
                "nothing would be logged; allowed: at least one target, or no key",
            );
        }
        let mut targets: Vec<LogTarget> = Vec::new();
        for (index, raw) in raw.iter().enumerate() {
            let prefix = format!("log.targets[{index}].");
            let Some(target) = self.log_target(raw, &prefix, &levels, format, listeners) else { continue };
            let output = target.output.to_string();
            let place = place(&target.output);
            if targets.iter().any(|other| self::place(&other.output) == place) {
                let message = format!("another target writes to {output}");
                self.fault(span(&raw.kind), &format!("{prefix}kind"), message);
            }
            targets.push(target);
        }
        Log { targets }
    }

    fn log_target(
        &mut self,
        raw: &raw::LogTarget,
        prefix: &str,
        levels: &Levels,
        format: LogFormat,
        listeners: Option<&[String]>,
    ) -> Option<LogTarget> {
        let key = |name: &str| format!("{prefix}{name}");
        let kinds = KEYS.map(|(kind, _)| (kind, Some(kind)));
        self.required(&raw.kind, &key("kind"));
        let kind = self.choice(&raw.kind, &key("kind"), &kinds, None)?;
        self.foreign_to_kind(raw, kind, prefix);
        let all = [("log", Records::Log), ("transfers", Records::Transfers), ("audit", Records::Audit)];
        let records = if listeners.is_some() { &all[..] } else { &all[..1] };
        let records = self.choice(&raw.records, &key("records"), records, Records::Log);
        if records != Records::Log {
            for (is_there, name) in [
                (raw.level.is_some(), "level"),
                (raw.modules.is_some(), "modules"),
                (raw.format.is_some(), "format"),
            ] {
                if is_there {
                    let message = "without effect: such records are all written, and in one form";
                    self.fault(None, &key(name), message);
                }
            }
        }
        let wanted = self.optional(&raw.listeners, &key("listeners")).cloned().unwrap_or_default();
        for name in &wanted {
            let known = listeners.unwrap_or_default();
            if !known.contains(name) {
                let message = format!("{name:?} is not an enabled listener; allowed: {known:?}");
                self.fault(span(&raw.listeners), &key("listeners"), message);
            }
        }
        let levels = self.levels(&raw.level, &raw.modules, prefix, Some(levels));
        let format = self.log_format(&raw.format, &key("format"), format);
        let output = match kind {
            "stderr" => LogOutput::Stderr { format },
            "file" => {
                self.required(&raw.path, &key("path"));
                LogOutput::File {
                    rotation: self.rotation(raw, prefix),
                    path: self.log_file(&raw.path, &key("path"))?,
                    // On a terminal or not is no question for a file.
                    format: if format == LogFormat::Auto { LogFormat::Json } else { format },
                }
            }
            "syslog" => {
                let facility = self.choice(&raw.facility, &key("facility"), &FACILITIES, Facility::Daemon);
                let server = self.syslog_server(raw, prefix)?;
                let header = match server {
                    SyslogServer::Unix(_) => SyslogHeader::Traditional,
                    SyslogServer::Udp(_) | SyslogServer::Tcp(_) | SyslogServer::Tls(_) => {
                        SyslogHeader::Rfc5424
                    }
                };
                let headers =
                    [("rfc5424", SyslogHeader::Rfc5424), ("traditional", SyslogHeader::Traditional)];
                let header = self.choice(&raw.header, &key("header"), &headers, header);
                LogOutput::Syslog { server, header, facility }
            }
            "journald" => LogOutput::Journald,
            _ => {
                let files = (&raw.ca, &raw.certificate, &raw.key);
                LogOutput::Otlp(self.collector(&raw.endpoint, files, &raw.timeout, prefix)?)
            }
        };
        Some(LogTarget { output, records, levels, listeners: wanted })
    }

    /// Keys that the kind does not know.
    fn foreign_to_kind(&mut self, raw: &raw::LogTarget, kind: &str, prefix: &str) {
        let known = KEYS.iter().find(|(known, _)| *known == kind).map_or(&[][..], |(_, keys)| keys);
        for (is_there, name) in [
            (raw.format.is_some(), "format"),
            (raw.path.is_some(), "path"),
            (raw.rotate_bytes.is_some(), "rotate_bytes"),
            (raw.rotate_every.is_some(), "rotate_every"),
            (raw.keep.is_some(), "keep"),
            (raw.address.is_some(), "address"),
            (raw.header.is_some(), "header"),
            (raw.facility.is_some(), "facility"),
            (raw.endpoint.is_some(), "endpoint"),
            (raw.ca.is_some(), "ca"),
            (raw.certificate.is_some(), "certificate"),
            (raw.key.is_some(), "key"),
            (raw.timeout.is_some(), "timeout"),
        ] {
            if is_there && !known.contains(&name) {
                self.fault(None, &format!("{prefix}{name}"), format!("without effect with kind = {kind:?}"));
            }
        }
    }

    fn levels(
        &mut self,
        word: &Text,
        modules: &Option<Field<BTreeMap<String, String>>>,
        prefix: &str,
        inherited: Option<&Levels>,
    ) -> Levels {
        let level_key = format!("{prefix}level");
        let default = inherited.map_or(Level::Info, |levels| levels.level);
        let level_of_all = self.choice(word, &level_key, &LEVELS, default);
        let Some(written) = self.optional(modules, &format!("{prefix}modules")).cloned() else {
            let modules = inherited.map(|levels| levels.modules.clone()).unwrap_or_default();
            return Levels { level: level_of_all, modules };
        };
        let mut rules = BTreeMap::new();
        for (module, word) in written {
            let key = format!("{prefix}modules.{module}");
            match level(&word) {
                Some(level) if is_module(&module) => {
                    rules.insert(module, level);
                }
                Some(_) => self.fault(
                    span(modules),
                    &key,
                    "not the path of a module, such as portolan_frontend::gate",
                ),
                None => {
                    self.fault(span(modules), &key, format!("{word:?} is not valid; allowed: {}", words()))
                }
            }
        }
        Levels { level: level_of_all, modules: rules }
    }

    fn log_format(&mut self, field: &Text, key: &str, default: LogFormat) -> LogFormat {
        let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
        self.choice(field, key, &formats, default)
    }

    fn rotation(&mut self, raw: &raw::LogTarget, prefix: &str) -> Rotation {
        let bytes_key = format!("{prefix}rotate_bytes");
        let bytes = self.parse::<Size>(&raw.rotate_bytes, &bytes_key).map_or(100 << 20, |size| size.0);
        let least = 64 * 1024;
        if bytes > 0 && bytes < least {
            let message =
                format!("{bytes} bytes is out of range; allowed: \"0\" (never), or at least \"64KiB\"");
            self.fault(span(&raw.rotate_bytes), &bytes_key, message);
        }
        let every = [("never", RotateEvery::Never), ("hour", RotateEvery::Hour), ("day", RotateEvery::Day)];
        let every =
            self.choice(&raw.rotate_every, &format!("{prefix}rotate_every"), &every, RotateEvery::Never);
        let keep = self.number(&raw.keep, &format!("{prefix}keep"), 0, 1_000, 10);
        Rotation { bytes, every, keep: u32::try_from(keep).expect("at most 1000") }
    }

    /// A file in a folder that is there.
    fn log_file(&mut self, field: &Text, key: &str) -> Option<PathBuf> {
        let path = self.path(field, key)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(std::path::Path::new("."));
        if !folder.is_dir() {
            self.fault(span(field), key, format!("{} is not a folder", folder.display()));
        } else if path.is_dir() {
            self.fault(span(field), key, format!("{} is a folder", path.display()));
        }
        Some(path)
    }

    fn syslog_server(&mut self, raw: &raw::LogTarget, prefix: &str) -> Option<SyslogServer> {
        let key = format!("{prefix}address");
        let written = self.optional(&raw.address, &key).map_or("unix:/dev/log", String::as_str).to_owned();
        let ca = self.anchors(&raw.ca, &format!("{prefix}ca"));
        let identity = self.identity(&raw.certificate, &raw.key, prefix);
        let allowed = "unix:/PATH, udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT";
        let fault = |checker: &mut Self| {
            checker.fault(span(&raw.address), &key, format!("{written:?} is not valid; allowed: {allowed}"));
        };
        let (scheme, rest) = match written.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => ("unix", path),
            Some((scheme, rest)) if rest.starts_with("//") => (scheme, &rest[2..]),
            _ => {
                fault(self);
                return None;
            }
        };
        if scheme != "tls" {
            for (is_there, name) in [
                (raw.ca.is_some(), "ca"),
                (raw.certificate.is_some(), "certificate"),
                (raw.key.is_some(), "key"),
            ] {
                if is_there {
                    self.fault(None, &format!("{prefix}{name}"), "without effect unless address is tls://");
                }
            }
        }
        let server = rest.parse::<HostPort>();
        match (scheme, server) {
            ("unix", _) => Some(SyslogServer::Unix(rest.into())),
            ("udp", Ok(server)) => Some(SyslogServer::Udp(server)),
            ("tcp", Ok(server)) => Some(SyslogServer::Tcp(server)),
            ("tls", Ok(server)) => Some(SyslogServer::Tls(SyslogTls { server, ca, identity })),
            _ => {
                fault(self);
                None
            }
        }
    }

    fn collector(
        &mut self,
        endpoint: &Text,
        (ca, certificate, private_key): (&Text, &Text, &Text),
        timeout: &Text,
        prefix: &str,
    ) -> Option<Collector> {
        let key = format!("{prefix}endpoint");
        let written = self.required(endpoint, &key).cloned();
        let ca_anchors = self.anchors(ca, &format!("{prefix}ca"));
        let identity = self.identity(certificate, private_key, prefix);
        let timeout = self.duration(timeout, &format!("{prefix}timeout"), 1, 60, 10);
        let written = written?;
        let rest = written.strip_prefix("http://").or_else(|| written.strip_prefix("https://"));
        if rest.and_then(|rest| rest.trim_end_matches('/').parse::<HostPort>().ok()).is_none() {
            let message = format!("{written:?} is not valid; allowed: http://HOST:PORT or https://HOST:PORT");
            self.fault(span(endpoint), &key, message);
        }
        if written.starts_with("http://") && (ca.is_some() || certificate.is_some()) {
            let name = if ca.is_some() { "ca" } else { "certificate" };
            self.fault(None, &format!("{prefix}{name}"), "without effect unless endpoint is https://");
        }
        Some(Collector { endpoint: written, ca: ca_anchors, identity, timeout })
    }

    pub(crate) fn tracing(&mut self, raw: &Option<raw::Tracing>) -> Option<Tracing> {
        let raw = raw.as_ref()?;
        let files = (&raw.ca, &raw.certificate, &raw.key);
        let collector = self.collector(&raw.endpoint, files, &raw.timeout, "tracing.");
        let ratio = self.optional(&raw.ratio, "tracing.ratio").copied().unwrap_or(1.0);
        if !(0.0..=1.0).contains(&ratio) {
            let message = format!("{ratio} is out of range; allowed: 0.0 to 1.0");
            self.fault(span(&raw.ratio), "tracing.ratio", message);
        }
        Some(Tracing { collector: collector?, ratio })
    }
}

/// Names that a target may be restricted to, each once.
pub(crate) fn listener_names<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_the_environment() {
        for bad in ["", "loud", "warn", "info,", "a::=info", "a=loud", "a b=info", "=info"] {
            assert_eq!(bad.parse::<Levels>(), Err(LevelsFault), "{bad}");
        }
        let levels: Levels = "warning, portolan_frontend::gate=debug".parse().unwrap();
        assert_eq!(levels.level, Level::Warning);
        assert_eq!(levels.modules["portolan_frontend::gate"], Level::Debug);
    }
}
