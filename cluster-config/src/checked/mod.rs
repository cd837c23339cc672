//! The checked form: structs that cannot be wrong, made from the raw form with all faults collected.
//!
//! Who calls it: `Config::load`, `Agent::load`, `Frontend::load`.
//! What it calls: `raw`, `units`, `secret`; the file system for the certificates and lists that are named.
//! What it never does: open a socket, look up a name, or give up at the first fault.

pub mod access;
pub mod agent;
pub mod directory;
pub mod frontend;
pub mod listener;
pub mod log;
pub mod map;
pub mod nodes;
pub mod tls;

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Fault, Faults};
use crate::raw::{Document, Field, Text};
use crate::units::Span;
use tls::{Anchors, Identity};

/// The version of the configuration's format that this program reads.
pub const VERSION: u64 = 1;

/// Collects faults while values are taken out of a raw form.
pub(crate) struct Checker {
    document: Document,
    faults: Vec<Fault>,
    /// What will go wrong though the program starts. Has the shape of a fault: place and sentence.
    warnings: Vec<Fault>,
}

impl Checker {
    pub(crate) fn new(document: Document, faults: Vec<Fault>) -> Self {
        Self { document, faults, warnings: Vec::new() }
    }

    /// The warnings so far, which are to be reported whatever the faults.
    pub(crate) fn take_warnings(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.warnings)
    }

    pub(crate) fn finish(self) -> Result<(), Faults> {
        Faults::none_or(self.faults)
    }

    /// Records a fault of `key`, at the line of the field, or of the table where the key is missing.
    pub(crate) fn fault(&mut self, span: Option<&std::ops::Range<usize>>, key: &str, message: impl Display) {
        let fault = self.at(span, key, message);
        self.faults.push(fault);
    }

    /// Records a warning in the same way.
    pub(crate) fn warn(&mut self, span: Option<&std::ops::Range<usize>>, key: &str, message: impl Display) {
        let warning = self.at(span, key, message);
        self.warnings.push(warning);
    }

    fn at(&self, span: Option<&std::ops::Range<usize>>, key: &str, message: impl Display) -> Fault {
        Fault {
            file: self.document.path().to_owned(),
            line: span.map_or_else(|| self.document.line_of(key), |span| self.document.line(span.start)),
            key: key.to_owned(),
            message: message.to_string(),
        }
    }

    pub(crate) fn foreign(&mut self, faults: Faults) {
        self.faults.extend(faults.iter().cloned());
    }

    /// The value of a key that may be absent.
    pub(crate) fn optional<'a, T>(&mut self, field: &'a Option<Field<T>>, key: &str) -> Option<&'a T> {
        let field = field.as_ref()?;
        match &field.value {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(Some(&field.span), key, message);
                None
            }
        }
    }

    /// The value of a key that must be there.
    pub(crate) fn required<'a, T>(&mut self, field: &'a Option<Field<T>>, key: &str) -> Option<&'a T> {
        if field.is_none() {
            self.fault(None, key, "this key is required");
        }
        self.optional(field, key)
    }

    /// Parses a text; a text that does not parse is a fault with what is allowed.
    pub(crate) fn parse<T: FromStr<Err: Display>>(&mut self, field: &Text, key: &str) -> Option<T> {
        let text = self.optional(field, key)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(span(field), key, format!("{text:?} is not valid; {error}"));
                None
            }
        }
    }

    /// One of a closed set of words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        field: &Text,
        key: &str,
        choices: &[(&'static str, T)],
        default: T,
    ) -> T {
        let Some(text) = self.optional(field, key) else { return default };
        if let Some((_, value)) = choices.iter().find(|(word, _)| word == text) {
            return *value;
        }
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.fault(span(field), key, format!("{text:?} is not valid; allowed: {}", words.join(", ")));
        default
    }

    /// Permission bits in octal: all of `least`, which is also the default, and none beyond `most`.
    pub(crate) fn mode(&mut self, field: &Text, key: &str, least: u32, most: u32) -> u32 {
        let Some(text) = self.optional(field, key) else { return least };
        let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(text, 8).ok().filter(|_| digits) {
            Some(bits) if bits & least == least && bits & !most == 0 => bits,
            _ => {
                let message = format!(
                    "{text:?} is not valid; allowed: octal permission bits from \"{least:04o}\" to \"{most:04o}\" \
                     that include \"{least:04o}\""
                );
                self.fault(span(field), key, message);
                least
            }
        }
    }

    /// A number from `least` to `most`.
    pub(crate) fn number(
        &mut self,
        field: &Option<Field<u64>>,
        key: &str,
        least: u64,
        most: u64,
        default: u64,
    ) -> u64 {
        let Some(number) = self.optional(field, key).copied() else { return default };
        if !(least..=most).contains(&number) {
            self.fault(span(field), key, format!("{number} is out of range; allowed: {least} to {most}"));
            return default;
        }
        number
    }

    /// A duration from `least` to `most`.
    pub(crate) fn duration(
        &mut self,
        field: &Text,
        key: &str,
        least: u64,
        most: u64,
        default: u64,
    ) -> Duration {
        let default = Duration::from_secs(default);
        let Some(Span(value)) = self.parse::<Span>(field, key) else { return default };
        if value < Duration::from_secs(least) || value > Duration::from_secs(most) {
            let shown = humantime::format_duration(value);
            self.fault(span(field), key, format!("{shown} is out of range; allowed: {least}s to {most}s"));
            return default;
        }
        value
    }

    /// A file or folder named by a key, relative to the folder of the configuration file.
    pub(crate) fn path(&mut self, field: &Text, key: &str) -> Option<PathBuf> {
        let written = self.optional(field, key)?;
        if written.is_empty() {
            self.fault(span(field), key, "an empty path");
            return None;
        }
        let folder = self.document.path().parent().unwrap_or(std::path::Path::new("."));
        Some(folder.join(written))
    }

    pub(crate) fn version(&mut self, field: &Option<Field<u64>>) {
        if let Some(version) = self.required(field, "version").filter(|version| **version != VERSION) {
            let message = format!("{version} is not a version this program reads; allowed: {VERSION}");
            self.fault(field.as_ref().map(|field| &field.span), "version", message);
        }
    }
}

/// Where a field stands.
pub(crate) fn span<T>(field: &Option<Field<T>>) -> Option<&std::ops::Range<usize>> {
    field.as_ref().map(|field| &field.span)
}
