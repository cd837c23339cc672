//! Records as lines: text for people, JSON for programs, xferlog for what reads transfers.

use std::fmt::Write as _;
use std::time::SystemTime;

use chrono::{DateTime, Local, SecondsFormat, Utc};

use portolan_proto::path::is_format;

use super::record::{Fields, Record, Severity, Value};

/// RFC 3339, with microseconds, in UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// One line for people. What a client sent cannot begin another one.
pub(super) fn text(record: &Record, colours: bool) -> String {
    let (dim, bold, plain) = if colours { ("\x1b[2m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
    let colour = match record.severity {
        _ if !colours => "",
        Severity::Critical | Severity::Error => "\x1b[31m",
        Severity::Warning => "\x1b[33m",
        Severity::Info => "\x1b[32m",
        Severity::Debug => "\x1b[34m",
    };
    let mut line = format!(
        "{dim}{}{plain} {colour}{:>8}{plain} {dim}{}:{plain} {bold}",
        timestamp(record.time),
        record.level,
        record.source
    );
    push_escaped(&mut line, &record.message);
    line.push_str(plain);
    push_fields(&mut line, &record.fields, dim, plain);
    line.push('\n');
    line
}

/// The message with its fields, for targets that have the rest in fields of their own.
pub(super) fn message(record: &Record) -> String {
    let mut line = String::new();
    push_escaped(&mut line, &record.message);
    push_fields(&mut line, &record.fields, "", "");
    line
}

fn push_fields(line: &mut String, fields: &Fields, dim: &str, plain: &str) {
    for (name, value) in fields {
        // Writing to a String does not fail.
        write!(line, " {dim}{name}={plain}").ok();
        match value {
            Value::Text(text) if is_bare(text) => line.push_str(text),
            Value::Text(text) => {
                write!(line, "{text:?}").ok();
            }
            other => line.push_str(&other.text()),
        }
    }
}

/// True for text that needs no quotation marks to be told apart.
fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && !text.chars().any(|c| c.is_control() || is_format(c) || c.is_whitespace() || c == '"' || c == '=')
}

fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() || is_format(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
}

/// One JSON object: `timestamp`, `level`, `target`, `message`, the fields, and the trace.
pub(super) fn json(record: &Record) -> String {
    let mut line = format!("{{\"timestamp\":\"{}\",\"level\":\"{}\"", timestamp(record.time), record.level);
    push_json_text(&mut line, "target", &record.source);
    push_json_text(&mut line, "message", &record.message);
    push_json_fields(&mut line, record);
    line
}

/// One audit event as a JSON object: `timestamp`, `event` and what belongs to it.
pub(super) fn audit(record: &Record) -> String {
    let mut line = format!("{{\"timestamp\":\"{}\"", timestamp(record.time));
    push_json_fields(&mut line, record);
    line
}

fn push_json_fields(line: &mut String, record: &Record) {
    for (name, value) in &record.fields {
        match value {
            Value::Text(text) => push_json_text(line, name, text),
            Value::Number(number) if !number.is_finite() => push_json_text(line, name, &number.to_string()),
            other => {
                // Writing to a String does not fail.
                write!(line, ",\"{name}\":{}", other.text()).ok();
            }
        }
    }
    if let Some((trace, span)) = record.trace {
        write!(line, ",\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"").ok();
    }
    line.push_str("}\n");
}

fn push_json_text(line: &mut String, name: &str, text: &str) {
    let text = serde_json::to_string(text).expect("text is always JSON");
    // Writing to a String does not fail.
    write!(line, ",\"{name}\":").ok();
    for c in text.chars() {
        if is_format(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(line, "\\u{unit:04x}").ok();
            }
        } else {
            line.push(c);
        }
    }
}

/// A line of xferlog(5) as wu-ftpd writes it, in local time; `None`: the record is not a transfer that moves a file.
pub(super) fn xferlog(record: &Record) -> Option<String> {
    let text = |name: &str| record.field(name).map(Value::text);
    if text("event")? != "transfer" {
        return None;
    }
    let direction = match text("direction")?.as_str() {
        "download" => 'o',
        "upload" => 'i',
        _ => return None,
    };
    let time = DateTime::<Local>::from(record.time).format("%a %b %e %H:%M:%S %Y");
    let ms: u64 = text("ms").and_then(|ms| ms.parse().ok()).unwrap_or_default();
    let host = text("client").unwrap_or_else(|| "-".to_owned());
    let host = host.parse::<std::net::SocketAddr>().map_or(host, |address| address.ip().to_string());
    let bytes = text("bytes").unwrap_or_default();
    let name = one_word(&text("path").unwrap_or_default());
    let kind = if text("type").as_deref() == Some("A") { 'a' } else { 'b' };
    let admin = one_word(&text("admin").unwrap_or_default());
    let status = if text("result").as_deref() == Some("complete") { 'c' } else { 'i' };
    // Rounded up as wu-ftpd does, which knows no transfer of 0 seconds.
    let seconds = ms.div_ceil(1_000).max(1);
    Some(format!("{time} {seconds} {host} {bytes} {name} {kind} _ {direction} r {admin} ftp 0 * {status}\n"))
}

/// xferlog parts its fields by spaces: each space or control character in one is written as an underscore.
fn one_word(text: &str) -> String {
    let word: String = text
        .chars()
        .map(|c| if c.is_control() || is_format(c) || c.is_whitespace() { '_' } else { c })
        .collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::log) fn record(message: &str, fields: &[(&'static str, &str)]) -> Record {
        Record {
            time: SystemTime::UNIX_EPOCH,
            severity: Severity::Info,
            level: "INFO",
            source: "portolan_frontend::ftp".to_owned(),
            message: message.to_owned(),
            fields: fields.iter().map(|(name, text)| (*name, Value::Text((*text).to_owned()))).collect(),
            trace: None,
        }
    }

    #[test]
    fn nothing_that_a_client_sends_begins_a_line_or_a_field() {
        let record = record("a\nb", &[("name", "x\r\nERROR forged"), ("path", "/a b=c"), ("plain", "yes")]);
        let line = text(&record, false);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(
            line.ends_with(
                r#"a\nb name="x\r\nERROR forged" path="/a b=c" plain=yes
"#
            ),
            "{line}"
        );
        for line in [json(&record), audit(&record)] {
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["name"], "x\r\nERROR forged");
        }
    }

    #[test]
    fn a_transfer_is_a_line_of_xferlog_and_nothing_else_is() {
        assert_eq!(xferlog(&record("login", &[("event", "login")])), None);
        assert_eq!(xferlog(&record("listing", &[("event", "transfer"), ("direction", "listing")])), None);
        let transfer = record(
            "transfer complete",
            &[
                ("event", "transfer"),
                ("direction", "upload"),
                ("client", "[2001:db8::1]:40000"),
                ("bytes", "1234"),
                ("path", "/domains/a/x y\tz"),
                ("ms", "1001"),
                ("admin", "anna"),
                ("result", "failed"),
            ],
        );
        let line = xferlog(&transfer).unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            fields[5..],
            [
                "2",
                "2001:db8::1",
                "1234",
                "/domains/a/x_y_z",
                "b",
                "_",
                "i",
                "r",
                "anna",
                "ftp",
                "0",
                "*",
                "i"
            ]
        );
    }
}
