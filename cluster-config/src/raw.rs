//! The raw form: the shape of the files, every key optional, every value with its place.
//!
//! A value of the wrong type is kept as a fault of its own, unknown keys are collected, so that one run
//! reports all of them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;

use crate::error::{Fault, Faults};
use crate::known::{nearest, replaced};

/// A value as written, or what is wrong with its type.
#[derive(Debug)]
pub(crate) struct Field<T> {
    pub(crate) span: Range<usize>,
    pub(crate) value: Result<T, String>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Field<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<toml::Value>::deserialize(deserializer)?;
        let span = spanned.span();
        let written = spanned.into_inner();
        let kind = written.type_str();
        let value = T::deserialize(written).map_err(|error| {
            let message = error.to_string();
            let message = message.lines().next().unwrap_or_default();
            if message.is_empty() {
                format!("a value of the kind {kind} is not valid here")
            } else {
                plain(message)
            }
        });
        Ok(Self { span, value })
    }
}

/// What serde says of a value of the wrong type, in words: what is there, and what is allowed. Other messages stay.
fn plain(message: &str) -> String {
    let mismatch = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, expected)) = mismatch.and_then(|mismatch| mismatch.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let allowed = match expected {
        "a string" => "a text in quotation marks",
        "a boolean" => "true or false, without quotation marks",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0 on, without quotation marks",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number, without quotation marks",
        "f32" | "f64" => "a number, without quotation marks",
        "a sequence" => "a list in brackets",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    let found = match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer", number)) => format!("the number {}", number.trim_matches('`')),
        Some(("floating", number)) => {
            format!("the number {}", number.trim_start_matches("point ").trim_matches('`'))
        }
        Some(("boolean", value)) => value.trim_matches('`').to_owned(),
        _ if found == "sequence" => "a list".to_owned(),
        _ if found == "map" => "a table".to_owned(),
        _ => found.to_owned(),
    };
    format!("{found} is not valid; allowed: {allowed}")
}

pub(crate) type Text = Option<Field<String>>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Frontend {
    pub(crate) version: Option<Field<u64>>,
    pub(crate) state_dir: Text,
    pub(crate) threads: Threads,
    pub(crate) control: Control,
    pub(crate) global: Global,
    pub(crate) ftp: Ftp,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) admins: Admins,
    pub(crate) directories: Vec<Directory>,
    pub(crate) grants: Vec<Grant>,
    pub(crate) cluster: Cluster,
    pub(crate) nodes: Vec<Node>,
    pub(crate) discovery: Option<Discovery>,
    pub(crate) map: Map,
    pub(crate) drain_timeout: Text,
    pub(crate) log: Log,
    pub(crate) tracing: Option<Tracing>,
    pub(crate) http: Http,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Threads {
    pub(crate) min: Option<Field<u64>>,
    pub(crate) max: Option<Field<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Control {
    pub(crate) socket: Text,
}

/// What holds for all services of a front end.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Global {
    pub(crate) ipv6_prefix: Option<Field<u64>>,
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) errors: Errors,
}

/// What holds for all listeners of FTP.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ftp {
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) errors: Errors,
    pub(crate) bans: Bans,
    pub(crate) admin_bandwidth: Bandwidth,
}

/// `None` and an empty list are not the same: the empty one denies.
pub(crate) type Access = Option<Vec<AccessRule>>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AccessRule {
    pub(crate) allow: Text,
    pub(crate) deny: Text,
    pub(crate) priority: Option<Field<u64>>,
    pub(crate) limits: Option<Limits>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    pub(crate) simultaneous: Option<Field<u64>>,
    pub(crate) simultaneous_per_address: Option<Field<u64>>,
    pub(crate) new: Option<Field<u64>>,
    pub(crate) new_per_address: Option<Field<u64>>,
    pub(crate) interval: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Errors {
    pub(crate) wrong_commands_max: Option<Field<u64>>,
    pub(crate) failed_logins_max: Option<Field<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Bans {
    pub(crate) address_failures: Option<Field<u64>>,
    pub(crate) name_failures: Option<Field<u64>>,
    pub(crate) window: Text,
    pub(crate) duration: Text,
    pub(crate) delay_max: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Bandwidth {
    pub(crate) down: Text,
    pub(crate) up: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listener {
    pub(crate) address: Text,
    pub(crate) enable: Option<Field<bool>>,
    pub(crate) engine: Text,
    pub(crate) banner: Text,
    pub(crate) tls: Text,
    pub(crate) tls_required: Option<Field<bool>>,
    pub(crate) tls_data_required: Option<Field<bool>>,
    pub(crate) tls_versions: Option<Field<Vec<String>>>,
    pub(crate) certificate: Text,
    pub(crate) key: Text,
    pub(crate) more_certificates: Vec<CertificateFiles>,
    pub(crate) client_certificate: Text,
    pub(crate) client_ca: Text,
    pub(crate) certificate_login: Text,
    pub(crate) certificate_name: Text,
    pub(crate) insecure: Option<Field<bool>>,
    pub(crate) session_reuse: Text,
    pub(crate) close_notify: Text,
    pub(crate) active: Option<Field<bool>>,
    pub(crate) ascii: Text,
    pub(crate) mode_z: Option<Field<bool>>,
    pub(crate) passive_ports: Text,
    pub(crate) passive_ports_shared: Option<Field<bool>>,
    pub(crate) passive_address: Text,
    pub(crate) passive_addresses: Vec<PassiveAddress>,
    pub(crate) proxy_protocol: ProxyProtocol,
    pub(crate) idle_timeout: Text,
    pub(crate) login_timeout: Text,
    pub(crate) handshake_timeout: Text,
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) errors: Errors,
    pub(crate) bandwidth: Bandwidth,
    pub(crate) session_bandwidth: Bandwidth,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: Text,
    pub(crate) key: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PassiveAddress {
    pub(crate) clients: Text,
    pub(crate) address: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProxyProtocol {
    pub(crate) trusted: Option<Field<Vec<String>>>,
    pub(crate) data: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Admins {
    pub(crate) file: Text,
    pub(crate) order: Option<Field<Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Directory {
    pub(crate) name: Text,
    pub(crate) kind: Text,
    pub(crate) uris: Option<Field<Vec<String>>>,
    pub(crate) start_tls: Option<Field<bool>>,
    pub(crate) ca: Text,
    pub(crate) certificate: Text,
    pub(crate) key: Text,
    pub(crate) insecure: Option<Field<bool>>,
    pub(crate) connect_timeout: Text,
    pub(crate) query_timeout: Text,
    pub(crate) bind_dn: Text,
    pub(crate) bind_password_file: Text,
    pub(crate) base: Text,
    pub(crate) scope: Text,
    pub(crate) filter: Text,
    pub(crate) bind_as: Text,
    pub(crate) name_attribute: Text,
    pub(crate) group_base: Text,
    pub(crate) group_scope: Text,
    pub(crate) nested_groups: Option<Field<bool>>,
    pub(crate) cache: Text,
    pub(crate) referrals: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Grant {
    pub(crate) group: Text,
    pub(crate) user: Text,
    pub(crate) directory: Text,
    pub(crate) rights: Option<Field<Vec<String>>>,
    pub(crate) domains: Option<Field<Vec<String>>>,
    pub(crate) domains_attribute: Text,
    pub(crate) root: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cluster {
    pub(crate) ca: Text,
    pub(crate) certificate: Text,
    pub(crate) key: Text,
    pub(crate) insecure: Option<Field<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) name: Text,
    pub(crate) address: Text,
    pub(crate) standby: Option<Field<Vec<String>>>,
    pub(crate) standby_writes: Option<Field<bool>>,
    pub(crate) mail_hosts: Option<Field<Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Discovery {
    pub(crate) addresses: Text,
    pub(crate) services: Text,
    pub(crate) interval: Text,
    pub(crate) nodes_min: Option<Field<u64>>,
    pub(crate) servers: Option<Field<Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Map {
    pub(crate) sources: Option<Field<Vec<String>>>,
    pub(crate) placement: Text,
    pub(crate) partial_listings: Text,
    pub(crate) missing_share: Option<Field<u64>>,
    pub(crate) file: Text,
    pub(crate) domains: Vec<MapDomain>,
    pub(crate) ldap: Option<LdapMap>,
}

/// A map file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MapFile {
    pub(crate) domains: Vec<MapDomain>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LdapMap {
    pub(crate) directory: Text,
    pub(crate) node_attribute: Text,
    pub(crate) domain_base: Text,
    pub(crate) domain_filter: Text,
    pub(crate) domain_attribute: Text,
    pub(crate) user_base: Text,
    pub(crate) user_filter: Text,
    pub(crate) user_attribute: Text,
    pub(crate) refresh: Text,
    pub(crate) timeout: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MapDomain {
    pub(crate) name: Text,
    pub(crate) nodes: Option<Field<Vec<String>>>,
    pub(crate) objects: Option<Field<std::collections::BTreeMap<String, String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Log {
    pub(crate) level: Text,
    pub(crate) format: Text,
    pub(crate) modules: Option<Field<std::collections::BTreeMap<String, String>>>,
    /// `None` is stderr; an empty list is nothing.
    pub(crate) targets: Option<Vec<LogTarget>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LogTarget {
    pub(crate) kind: Text,
    pub(crate) records: Text,
    pub(crate) level: Text,
    pub(crate) modules: Option<Field<std::collections::BTreeMap<String, String>>>,
    pub(crate) listeners: Option<Field<Vec<String>>>,
    pub(crate) format: Text,
    pub(crate) path: Text,
    pub(crate) rotate_bytes: Text,
    pub(crate) rotate_every: Text,
    pub(crate) keep: Option<Field<u64>>,
    pub(crate) address: Text,
    pub(crate) header: Text,
    pub(crate) facility: Text,
    pub(crate) endpoint: Text,
    pub(crate) ca: Text,
    pub(crate) certificate: Text,
    pub(crate) key: Text,
    pub(crate) timeout: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Tracing {
    pub(crate) endpoint: Text,
    pub(crate) ca: Text,
    pub(crate) certificate: Text,
    pub(crate) key: Text,
    pub(crate) timeout: Text,
    pub(crate) ratio: Option<Field<f64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Http {
    pub(crate) address: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    pub(crate) version: Option<Field<u64>>,
    pub(crate) node: Text,
    pub(crate) listen: Listen,
    pub(crate) allow: Vec<Allow>,
    pub(crate) store: Store,
    pub(crate) limits: AgentLimits,
    pub(crate) drain_timeout: Text,
    pub(crate) log: Log,
    pub(crate) tracing: Option<Tracing>,
    pub(crate) http: Http,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listen {
    pub(crate) address: Text,
    pub(crate) certificate: Text,
    pub(crate) key: Text,
    pub(crate) client_ca: Text,
    pub(crate) insecure: Option<Field<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Allow {
    pub(crate) frontend: Text,
    pub(crate) rights: Option<Field<Vec<String>>>,
    pub(crate) domains: Option<Field<Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Store {
    pub(crate) kind: Text,
    pub(crate) root: Text,
    pub(crate) rescan_interval: Text,
    pub(crate) file_mode: Text,
    pub(crate) directory_mode: Text,
    pub(crate) links: Text,
    pub(crate) mark: Text,
    pub(crate) mark_of: Text,
    pub(crate) free_min: Text,
    pub(crate) staging: Text,
    pub(crate) read_only: Option<Field<bool>>,
    pub(crate) state_dir: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AgentLimits {
    pub(crate) read_rate: Text,
    pub(crate) write_rate: Text,
}

/// A file that was read and is TOML.
pub(crate) struct Document {
    path: PathBuf,
    text: String,
    /// Variables of the environment that cannot be filled in.
    faults: Vec<Fault>,
}

impl Document {
    pub(crate) fn read(path: &Path) -> Result<Self, Faults> {
        let fault = |line, message| Fault { file: path.to_owned(), line, key: String::new(), message };
        let bytes = std::fs::read(path).map_err(|error| fault(0, format!("cannot read it: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|_| fault(0, "it is not UTF-8 text".to_owned()))?;
        let (text, faults) = filled(&text, path, |name| std::env::var(name).ok());
        let document = Self { path: path.to_owned(), text, faults };
        if let Err(error) = toml::de::DeTable::parse(&document.text) {
            let line = error.span().map_or(0, |span| document.line(span.start));
            return Err(fault(line, format!("not TOML: {}", error.message())).into());
        }
        Ok(document)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn has_key(&self, key: &str) -> bool {
        toml::de::DeTable::parse(&self.text).is_ok_and(|table| table.get_ref().contains_key(key))
    }

    /// A fault when the file configures the other program: it has one of `foreign`, and none of `own`.
    pub(crate) fn refuse_others(&self, own: &[&str], foreign: &[&str], sentence: &str) -> Result<(), Faults> {
        match foreign.iter().find(|key| self.has_key(key)) {
            Some(key) if !own.iter().any(|key| self.has_key(key)) => {
                let (file, key) = (self.path.clone(), (*key).to_owned());
                Err(Fault { file, line: self.line_of(&key), key, message: sentence.to_owned() }.into())
            }
            _ => Ok(()),
        }
    }

    /// The line, from 1, of a byte offset.
    pub(crate) fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// The raw form, and a fault for each key that it does not know.
    pub(crate) fn deserialize<T: DeserializeOwned>(&self) -> Result<(T, Vec<Fault>), Faults> {
        let mut unknown = Vec::new();
        let parsed = toml::de::Deserializer::parse(&self.text).and_then(|deserializer| {
            serde_ignored::deserialize(deserializer, |path| unknown.push(keys(&path)))
        });
        let raw = parsed.map_err(|error| {
            // A table where a value should be, or the other way round: the shape itself is wrong.
            let line = error.span().map_or(0, |span| self.line(span.start));
            let message = plain(error.message());
            Faults::from(Fault { file: self.path.clone(), line, key: String::new(), message })
        })?;
        let mut faults = self.faults.clone();
        faults.extend(unknown.into_iter().map(|keys| Fault {
            file: self.path.clone(),
            line: self.offset_of(&keys).map_or(0, |offset| self.line(offset)),
            key: render(&keys),
            message: match (replaced(&keys), nearest::<T>(&keys)) {
                (Some(now), _) => format!("is a key of an older version; write instead: {now}"),
                (None, Some(near)) => {
                    format!("unknown key; did you mean {near:?}? docs/configuration.md lists the keys")
                }
                (None, None) => "unknown key; docs/configuration.md lists the keys".to_owned(),
            },
        }));
        Ok((raw, faults))
    }

    /// Where a key stands in the text, or the nearest table around it that does.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        self.offset_of(&parse(key)).map_or(0, |offset| self.line(offset))
    }

    fn offset_of(&self, keys: &[Key]) -> Option<usize> {
        use toml::de::DeValue;
        let table = toml::de::DeTable::parse(&self.text).ok()?;
        let root = DeValue::Table(table.into_inner());
        let mut value = &root;
        let mut offset = None;
        for key in keys {
            let found = match (key, value) {
                (Key::Name(name), DeValue::Table(table)) => {
                    table.get_key_value(name.as_str()).map(|(key, value)| (key.span().start, value))
                }
                (Key::Index(index), DeValue::Array(array)) => {
                    array.get(*index).map(|value| (value.span().start, value))
                }
                _ => None,
            };
            let Some((start, next)) = found else { break };
            offset = Some(start);
            value = next.get_ref();
        }
        offset
    }
}

/// Fills variables of the environment in: `${NAME}`, but not in lines that are comments.
fn filled(text: &str, path: &Path, variable: impl Fn(&str) -> Option<String>) -> (String, Vec<Fault>) {
    let mut filled = String::new();
    let mut faults = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let mut rest = line;
        while let Some((before, after)) =
            rest.split_once("${").filter(|_| !line.trim_start().starts_with('#'))
        {
            filled.push_str(before);
            let mut fault = |message: String| {
                faults.push(Fault { file: path.to_owned(), line: index + 1, key: String::new(), message });
            };
            let Some((name, after)) = after.split_once('}') else {
                fault("${ without its end; allowed: ${NAME}, a variable of the environment".to_owned());
                rest = after;
                continue;
            };
            match variable(name) {
                // What ends a text, or a line, would be read as more of the file.
                Some(value) if value.contains(['"', '\'', '\\']) || value.chars().any(char::is_control) => {
                    fault(format!(
                        "the environment's {name} holds a quotation mark, a backslash or a line end"
                    ));
                }
                Some(value) => filled.push_str(&value),
                None => fault(format!("{name} is not set in the environment")),
            }
            rest = after;
        }
        filled.push_str(rest);
    }
    (filled, faults)
}

/// One part of a key such as `listeners[0].address`.
pub(crate) enum Key {
    Name(String),
    Index(usize),
}

fn keys(path: &serde_ignored::Path<'_>) -> Vec<Key> {
    use serde_ignored::Path as P;
    match path {
        P::Root => Vec::new(),
        P::Seq { parent, index } => {
            let mut keys = keys(parent);
            keys.push(Key::Index(*index));
            keys
        }
        P::Map { parent, key } => {
            let mut keys = keys(parent);
            keys.push(Key::Name(key.clone()));
            keys
        }
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => keys(parent),
    }
}

/// The parts of a key such as `listeners[0].address`.
fn parse(key: &str) -> Vec<Key> {
    let parts = key.split(['.', '[']).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
            Some(index) => Key::Index(index),
            None => Key::Name(part.to_owned()),
        })
        .collect()
}

fn render(keys: &[Key]) -> String {
    let mut text = String::new();
    for key in keys {
        match key {
            Key::Index(index) => text.push_str(&format!("[{index}]")),
            Key::Name(name) if text.is_empty() => text.push_str(name),
            Key::Name(name) => text.push_str(&format!(".{name}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_and_cannot_bring_more_than_a_value() {
        let variable = |name: &str| match name {
            "POD" => Some("mail-0".to_owned()),
            "EVIL" => Some("x\"\ninsecure = true".to_owned()),
            _ => None,
        };
        let text = "node = \"${POD}\" # ${POD}\n# ${UNSET}\na = \"${POD}.${POD}\"\nb = \"${UNSET}\"\nc = \"${EVIL}\"\nd = \"${POD\"\n";
        let (filled, faults) = filled(text, Path::new("file"), variable);
        assert!(
            filled.starts_with("node = \"mail-0\" # mail-0\n# ${UNSET}\na = \"mail-0.mail-0\"\n"),
            "{filled}"
        );
        assert!(!filled.contains("insecure"), "{filled}");
        let faults: Vec<_> = faults.iter().map(|fault| (fault.line, &*fault.message)).collect();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(faults[0], (4, "UNSET is not set in the environment"));
        assert_eq!((faults[1].0, faults[2].0), (5, 6));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_told_in_words() {
        #[derive(Deserialize)]
        #[serde(bound = "T: DeserializeOwned")]
        struct One<T> {
            a: Field<T>,
        }
        fn told<T: DeserializeOwned + std::fmt::Debug>(value: &str) -> String {
            toml::from_str::<One<T>>(&format!("a = {value}")).unwrap().a.value.unwrap_err()
        }
        let number = "a whole number from 0 on, without quotation marks";
        assert_eq!(told::<u64>("\"1\""), format!("the text \"1\" is not valid; allowed: {number}"));
        assert_eq!(told::<u64>("-1"), format!("the number -1 is not valid; allowed: {number}"));
        assert_eq!(told::<u64>("1.5"), format!("the number 1.5 is not valid; allowed: {number}"));
        assert_eq!(told::<u64>("[1]"), format!("a list is not valid; allowed: {number}"));
        assert_eq!(told::<u64>("{}"), format!("a table is not valid; allowed: {number}"));
        let truth = "true or false, without quotation marks";
        assert_eq!(told::<bool>("\"yes\""), format!("the text \"yes\" is not valid; allowed: {truth}"));
        let text = "a text in quotation marks";
        assert_eq!(told::<String>("true"), format!("true is not valid; allowed: {text}"));
        assert_eq!(told::<Vec<String>>("[\"a\", 7]"), format!("the number 7 is not valid; allowed: {text}"));
        assert_eq!(
            told::<Vec<String>>("\"a, b\""),
            "the text \"a, b\" is not valid; allowed: a list in brackets"
        );
        for message in [told::<String>("1979"), told::<u64>("true"), told::<Vec<u64>>("[[]]")] {
            assert!(!message.contains("invalid type") && !message.contains("u64"), "{message}");
        }
    }
}
