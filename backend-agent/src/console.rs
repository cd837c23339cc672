//! Metrics and health of an agent by HTTP, for whoever watches it.
//!
//! Who calls it: `Agent::run`.
//! What it calls: `volume`; the HTTP server of portolan-telemetry.
//! What it never does: change anything.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use portolan_config::certificate;
use portolan_telemetry::Telemetry;
use portolan_telemetry::http::{self, Answers, Limits, Readiness, Server};
use portolan_telemetry::metrics::{self, gauge, timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::service::{AgentService, STREAMS_MAX};
use crate::store::Usage;
use crate::tls::Tls;
use crate::volume::Volume;

/// How often the disk is asked for its room. A scrape never waits for a disk.
const USAGE_EVERY: Duration = Duration::from_secs(15);
/// A disk that has not answered for so long is not there.
const USAGE_MAX: Duration = Duration::from_secs(60);

/// What is shown.
pub(crate) struct Console {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) service: AgentService,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) draining: CancellationToken,
}

/// The room of the disk, as it was told last.
#[derive(Debug, Clone)]
struct Room {
    usage: Option<Usage>,
    at: Instant,
    failure: Option<String>,
}

impl Console {
    /// Answers until `stop`.
    pub(crate) async fn run(
        self,
        server: Server,
        telemetry: Option<Arc<Telemetry>>,
        stop: CancellationToken,
    ) {
        let room = Room { usage: None, at: Instant::now(), failure: None };
        let shown = Arc::new(Shown { console: self, room: Mutex::new(room) });
        let watched = telemetry.clone();
        let mut registry = metrics::registry("portolan-agent", telemetry);
        shown.console.metrics.register(&mut registry);
        registry.register_collector(Box::new(State(Arc::clone(&shown))));
        let ready = Arc::clone(&shown);
        let answers = Answers {
            metrics: Box::new(move || metrics::encode(&registry)),
            readiness: Box::new(move || {
                let mut readiness = ready.readiness();
                readiness.warnings.extend(watched.iter().flat_map(|telemetry| telemetry.warnings()));
                readiness
            }),
        };
        tokio::select! {
            () = server.run(http::routes(answers), Limits::PROBES, stop) => {}
            () = shown.watch_room() => {}
        }
    }
}

struct Shown {
    console: Console,
    room: Mutex<Room>,
}

impl Shown {
    async fn watch_room(&self) {
        loop {
            let served = self.console.volume.served().ok();
            if let Some(served) = served.clone() {
                let asked =
                    tokio::task::spawn_blocking(move || served.store().and_then(|store| store.usage())).await;
                let asked = asked.map_err(|stopped| stopped.to_string());
                let asked = asked.and_then(|usage| usage.map_err(|error| portolan_telemetry::chain(&error)));
                let mut room = self.room.lock();
                match asked {
                    Ok(usage) => *room = Room { usage: Some(usage), at: Instant::now(), failure: None },
                    Err(failure) => room.failure = Some(failure),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(USAGE_EVERY) => {}
                () = self.console.volume.changed(served.as_ref()) => {}
            }
        }
    }

    fn room(&self) -> Room {
        self.room.lock().clone()
    }

    fn readiness(&self) -> Readiness {
        let mut readiness = Readiness::default();
        if self.console.draining.is_cancelled() {
            readiness.reasons.push("the agent is draining".to_owned());
        }
        let served = match self.console.volume.served() {
            Ok(served) => served,
            Err(report) => {
                readiness.reasons.push(format!("the store is not served: {}", report.detail));
                return readiness;
            }
        };
        let room = self.room();
        match room.failure {
            Some(failure) => readiness.reasons.push(format!("the store does not answer: {failure}")),
            None if room.at.elapsed() > USAGE_MAX => {
                let seconds = room.at.elapsed().as_secs();
                readiness.reasons.push(format!("the store has not answered for {seconds} s"));
            }
            None => {}
        }
        if let Some(failure) = served.holdings().failure() {
            readiness.warnings.push(format!("what the store holds could not be read: {failure}"));
        }
        let holdings = served.holdings().subscribe().borrow().clone();
        if let Some((domain, cause)) = holdings.unreadable.first_key_value() {
            let (count, domain) = (holdings.unreadable.len(), portolan_proto::path::display(domain));
            let warning =
                format!("{count} domains of the store cannot be read, the first is {domain}: {cause}");
            readiness.warnings.push(warning);
        }
        readiness
    }
}

struct State(Arc<Shown>);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Shown { console, .. } = &*self.0;
        let none: [(&str, &str); 0] = [];
        let mut one = |name: &str, help: &str, unit: Option<Unit>, value: f64| {
            gauge(&mut encoder, name, help, unit.as_ref(), [(none, value)])
        };
        let ready = self.0.readiness().reasons.is_empty();
        one("portolan_agent_ready", "1 where /readyz says so", None, if ready { 1.0 } else { 0.0 })?;
        let streams = console.service.streams() as f64;
        one("portolan_agent_streams", "Reads, writes, listings and digests under way", None, streams)?;
        let help = "Those that may be under way at once";
        one("portolan_agent_streams_max", help, None, STREAMS_MAX as f64)?;
        let served = console.volume.served().ok();
        let help = "1 where a store is served: it carries the mark of its node, or needs none";
        let marked = if served.is_some() { 1.0 } else { 0.0 };
        one("portolan_agent_store_marked", help, None, marked)?;
        if let Some(served) = &served {
            let holdings = served.holdings().subscribe().borrow().clone();
            let domains = holdings.domains.len() as f64;
            one("portolan_agent_domains", "Domains that the store holds", None, domains)?;
            let unreadable = holdings.unreadable.len() as f64;
            let help = "Domains whose folders cannot be read; they are announced as they were known";
            one("portolan_agent_unreadable_domains", help, None, unreadable)?;
        }
        if let Some(usage) = self.0.room().usage.filter(|_| served.is_some()) {
            let (free, total) = (usage.bytes_free as f64, usage.bytes_total as f64);
            one("portolan_agent_store_free", "Room that the store has left", Some(Unit::Bytes), free)?;
            one("portolan_agent_store_size", "Room that the store has in all", Some(Unit::Bytes), total)?;
        }
        if let Some(served) = &served {
            let read = timestamp(served.holdings().read_at());
            let help = "When all that the store holds was read last, since 1970";
            one("portolan_agent_holdings_read_timestamp", help, Some(Unit::Seconds), read)?;
            let failing = if served.holdings().failure().is_some() { 1.0 } else { 0.0 };
            one("portolan_agent_holdings_failing", "1 where the last reading failed", None, failing)?;
        }
        let Some(certificates) = console.tls.as_ref().map(|tls| tls.in_force()) else { return Ok(()) };
        let (identity, client_ca) = (&certificates.identity, &certificates.client_ca);
        let files = [(&identity.chain_file, &identity.chain), (&client_ca.file, &client_ca.certificates)];
        let ends = files.into_iter().filter_map(|(file, chain)| {
            let first: Option<SystemTime> = chain.iter().filter_map(|der| certificate::ends(der)).min();
            Some(([("of", "listen".to_owned()), ("file", file.display().to_string())], timestamp(first?)))
        });
        let help = "When a certificate ends, since 1970";
        gauge(&mut encoder, "portolan_certificate_expiry_timestamp", help, Some(&Unit::Seconds), ends)
    }
}
