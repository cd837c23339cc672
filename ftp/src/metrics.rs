//! What a front end counts while it works. What it only has to look up is gathered at a scrape, by `console`.
//!
//! Who calls it: whoever does what is counted.
//! What it calls: prometheus-client.
//! What it never does: take a label from a client. Labels are verbs, outcomes, and names of the configuration.

use std::time::Duration;

use itertools::Itertools as _;
use portolan_telemetry::metrics::SECONDS;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::verb::Verb;

/// Verbs of backups and restores.
const TRANSFER_VERBS: [Verb; 4] = [Verb::RETR, Verb::STOR, Verb::LIST, Verb::MLSD];

/// One label, from a closed set.
type One = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];

/// How something ended, as a label and in the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// A node, or what it is made of, failed.
    Failed,
    /// The client, or its connection, did not see it through.
    Aborted,
    /// It is not to be had, or not allowed.
    Refused,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Complete, Self::Failed, Self::Aborted, Self::Refused];

    pub fn word(self) -> &'static str {
        match self {
            Outcome::Complete => "complete",
            Outcome::Failed => "failed",
            Outcome::Aborted => "aborted",
            Outcome::Refused => "refused",
        }
    }
}

/// Where content goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Download,
    Upload,
    Listing,
}

impl Way {
    pub fn word(self) -> &'static str {
        match self {
            Way::Download => "download",
            Way::Upload => "upload",
            Way::Listing => "listing",
        }
    }
}

type Seconds = Family<One, Histogram, fn() -> Histogram>;

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    connections: Family<[(&'static str, String); 1], Counter>,
    refused: Family<[(&'static str, String); 2], Counter>,
    commands: Family<Two, Counter>,
    transfers: Family<Two, Counter>,
    /// By [`Way`]: it is counted for each chunk, and not looked up.
    bytes: [Counter; 3],
    bytes_by_way: Family<One, Counter>,
    transfer_seconds: Seconds,
    first_byte_seconds: Seconds,
    changes: Family<Two, Counter>,
    special_entries: Counter,
    reloads: Family<One, Counter>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let bytes_by_way = Family::<One, Counter>::default();
        let bytes = [Way::Download, Way::Upload, Way::Listing]
            .map(|way| bytes_by_way.get_or_create_owned(&[("way", way.word())]));
        // Alerts are about these: a counter that is not there before it counts does not show its first increase.
        let (transfers, reloads) = (Family::<Two, Counter>::default(), Family::<One, Counter>::default());
        for (verb, outcome) in TRANSFER_VERBS.into_iter().cartesian_product(Outcome::ALL) {
            drop(transfers.get_or_create(&[("verb", verb.name()), ("outcome", outcome.word())]));
        }
        for outcome in [Outcome::Complete, Outcome::Refused] {
            drop(reloads.get_or_create(&[("outcome", outcome.word())]));
        }
        Self {
            connections: Family::default(),
            refused: Family::default(),
            commands: Family::default(),
            transfers,
            bytes,
            bytes_by_way,
            transfer_seconds: Family::new_with_constructor(seconds),
            first_byte_seconds: Family::new_with_constructor(seconds),
            changes: Family::default(),
            special_entries: Counter::default(),
            reloads,
        }
    }
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("portolan");
        registry.register("connections", "Connections that were let in", self.connections.clone());
        registry.register("connections_refused", "Connections that were refused", self.refused.clone());
        registry.register("commands", "Commands, by the reply", self.commands.clone());
        registry.register("transfers", "Uploads, downloads and listings that ended", self.transfers.clone());
        let help = "Content that moved, as it is on the nodes";
        registry.register_with_unit("transfer", help, Unit::Bytes, self.bytes_by_way.clone());
        let help = "From the command to the end of a transfer";
        registry.register_with_unit("transfer_duration", help, Unit::Seconds, self.transfer_seconds.clone());
        let help = "From the command to the first byte of content";
        registry.register_with_unit(
            "transfer_first_byte",
            help,
            Unit::Seconds,
            self.first_byte_seconds.clone(),
        );
        registry.register(
            "changes",
            "Commands that change names, times or permissions",
            self.changes.clone(),
        );
        let help = "Entries of listings that no client can fetch: links, sockets, pipes, devices";
        registry.register("special_entries", help, self.special_entries.clone());
        registry.register("reloads", "Times that the configuration was read again", self.reloads.clone());
    }

    /// Has the counters of a listener at 0 before there is anything to count.
    pub fn listens(&self, listener: &str, refusals: &[&'static str]) {
        drop(self.connections.get_or_create(&[("listener", listener.to_owned())]));
        for reason in refusals {
            let labels = [("listener", listener.to_owned()), ("reason", (*reason).to_owned())];
            drop(self.refused.get_or_create(&labels));
        }
    }

    pub fn connected(&self, listener: &str) {
        self.connections.get_or_create(&[("listener", listener.to_owned())]).inc();
    }

    pub fn refused(&self, listener: &str, reason: &'static str) {
        let labels = [("listener", listener.to_owned()), ("reason", reason.to_owned())];
        self.refused.get_or_create(&labels).inc();
    }

    pub fn command(&self, verb: Verb, code: u16) {
        let reply = match code {
            100..400 => "positive",
            400..500 => "transient",
            _ => "permanent",
        };
        self.commands.get_or_create(&[("verb", verb.name()), ("reply", reply)]).inc();
    }

    pub fn moved(&self, way: Way, bytes: usize) {
        self.bytes[way as usize].inc_by(bytes as u64);
    }

    pub fn first_byte(&self, verb: Verb, after: Duration) {
        self.first_byte_seconds.get_or_create(&[("verb", verb.name())]).observe(after.as_secs_f64());
    }

    pub fn transferred(&self, verb: Verb, outcome: Outcome, took: Duration) {
        self.transfers.get_or_create(&[("verb", verb.name()), ("outcome", outcome.word())]).inc();
        self.transfer_seconds.get_or_create(&[("verb", verb.name())]).observe(took.as_secs_f64());
    }

    pub fn changed(&self, verb: Verb, outcome: Outcome) {
        self.changes.get_or_create(&[("verb", verb.name()), ("outcome", outcome.word())]).inc();
    }

    pub fn met_special(&self, entries: usize) {
        self.special_entries.inc_by(entries as u64);
    }

    pub fn reloaded(&self, outcome: Outcome) {
        self.reloads.get_or_create(&[("outcome", outcome.word())]).inc();
    }
}
