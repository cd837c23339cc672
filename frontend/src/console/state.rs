//! What a front end looks up when it is scraped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use portolan_config::certificate;
use portolan_config::checked::frontend::Security;
use portolan_telemetry::metrics::{counter, gauge, timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::Phase;
use crate::running::Running;
use crate::running::view::{DirectoryView, View};
use portolan_cluster::map::conflicts::Conflicts;
use portolan_cluster::nodes::Health;

/// See the module.
pub(super) struct State(pub(super) Arc<Running>);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

type Encoded = Result<(), fmt::Error>;

fn flag(flag: bool) -> f64 {
    if flag { 1.0 } else { 0.0 }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let view = &self.0.view();
        life(&mut encoder, view)?;
        sessions(&mut encoder, view)?;
        limits(&mut encoder, view)?;
        nodes(&mut encoder, view)?;
        directories(&mut encoder, &self.0, view)?;
        map(&mut encoder, &self.0, view)?;
        certificates(&mut encoder, view)
    }
}

fn life(encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
    let present = view.phase;
    let phases = [Phase::Starting, Phase::Serving, Phase::Reloading, Phase::Draining, Phase::Stopped];
    let values = phases.map(|phase| ([("phase", phase.name())], flag(phase == present)));
    gauge(
        encoder,
        "portolan_phase",
        "Where the front end is in its life: 1 for the present phase",
        None,
        values,
    )?;
    let ready = view.readiness().reasons.is_empty();
    let none: [(&str, &str); 0] = [];
    gauge(encoder, "portolan_ready", "1 where /readyz says so", None, [(none, flag(ready))])?;
    let read = timestamp(view.config_read);
    let help = "When the configuration in force was read, since 1970";
    gauge(encoder, "portolan_config_read_timestamp", help, Some(&Unit::Seconds), [(none, read)])?;
    let refused = flag(view.refused_reload.is_some());
    gauge(
        encoder,
        "portolan_reload_refused",
        "1 where the last reload was refused",
        None,
        [(none, refused)],
    )?;
    let bans = view.bans.len() as f64;
    gauge(encoder, "portolan_bans", "Addresses and names that are banned", None, [(none, bans)])
}

fn sessions(encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
    let sessions = &view.sessions;
    let names: Vec<String> = view.gates.iter().map(|gate| gate.name().to_owned()).collect();
    let of = |name: &String| sessions.iter().filter(|control| *control.listener == **name).count() as f64;
    let values = names.iter().map(|name| ([("listener", name.clone())], of(name)));
    gauge(encoder, "portolan_sessions", "Sessions that are in", None, values)?;
    let none: [(&str, &str); 0] = [];
    let logged_in = sessions.iter().filter(|control| control.is_logged_in()).count() as f64;
    gauge(encoder, "portolan_sessions_logged_in", "Sessions of admins", None, [(none, logged_in)])?;
    let under_way = sessions.iter().filter(|control| control.shown().transfer.is_some()).count() as f64;
    let help = "Transfers and listings that are under way";
    gauge(encoder, "portolan_transfers_under_way", help, None, [(none, under_way)])
}

fn limits(encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
    let mut used = Vec::new();
    let mut most = Vec::new();
    for usage in &view.usages {
        let scope = usage.place.to_string();
        let limits = usage.limits;
        for (limit, present, max) in [
            ("simultaneous", usage.simultaneous, limits.simultaneous),
            ("simultaneous_per_address", usage.simultaneous_of_one, limits.simultaneous_per_address),
            ("new", usage.new, limits.new),
            ("new_per_address", usage.new_by_one, limits.new_per_address),
        ] {
            let labels = [("scope", scope.clone()), ("limit", limit.to_owned())];
            used.push((labels.clone(), f64::from(present)));
            // No limit has no value to compare with.
            if max > 0 {
                most.push((labels, f64::from(max)));
            }
        }
    }
    let config = &view.config;
    let threads = [("scope", "process".to_owned()), ("limit", "threads".to_owned())];
    most.push((threads, config.threads.max as f64));
    gauge(encoder, "portolan_limit_used", "How much of a limit is used", None, used)?;
    gauge(encoder, "portolan_limit_max", "The limit; absent where there is none", None, most)?;
    let ports = config
        .listeners
        .iter()
        .map(|listener| ([("listener", listener.name.clone())], f64::from(listener.passive_ports.count())));
    gauge(encoder, "portolan_passive_ports", "Ports for passive data connections", None, ports)
}

fn nodes(encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
    let labels = |name: String| [("node", name)];
    let up = view
        .nodes
        .iter()
        .map(|view| (labels(view.node.name().to_string()), flag(matches!(view.health, Health::Up))));
    let nodes: Vec<_> = view.nodes.iter().map(|view| &view.node).collect();
    gauge(encoder, "portolan_node_up", "1 where the node is there", None, up)?;
    let in_doubt = view.nodes.iter().map(|view| (labels(view.node.name().to_string()), view.in_doubt as f64));
    let help = "Domains and objects that the node no longer announces, which is not believed";
    gauge(encoder, "portolan_node_in_doubt", help, None, in_doubt)?;
    let unanswered = nodes
        .iter()
        .map(|node| (labels(node.name().to_string()), node.calls().unanswered.load(Ordering::Relaxed)));
    let help = "Calls that the node did not answer, or not in time";
    counter(encoder, "portolan_node_calls_unanswered", help, unanswered)?;
    let failed = nodes
        .iter()
        .map(|node| (labels(node.name().to_string()), node.calls().failed.load(Ordering::Relaxed)));
    let help = "Calls that failed on the node: its disk, its room, damaged data";
    counter(encoder, "portolan_node_calls_failed", help, failed)?;
    if nodes.is_empty() {
        return Ok(());
    }
    let help = "Calls to the node, to the first answer";
    let seconds = Some(&Unit::Seconds);
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("portolan_node_call_duration", help, seconds, kind)?;
    for node in &nodes {
        node.calls().seconds.encode(family.encode_family(&labels(node.name().to_string()))?)?;
    }
    Ok(())
}

fn directories(encoder: &mut DescriptorEncoder<'_>, running: &Running, view: &View) -> Encoded {
    let directories = &view.directories;
    let up = directories.iter().flat_map(|DirectoryView { name, servers }| {
        servers.iter().map(move |(server, away)| {
            ([("directory", name.clone()), ("server", server.clone())], flag(!away))
        })
    });
    let help = "1 where the server answered when it was asked last";
    gauge(encoder, "portolan_directory_server_up", help, None, up)?;
    let asked = running.auth().directories_asked();
    let failures = asked
        .iter()
        .map(|(name, asked)| ([("directory", name.clone())], asked.failures.load(Ordering::Relaxed)));
    let help = "Times that a server of the directory did not answer";
    counter(encoder, "portolan_directory_failures", help, failures)?;
    if asked.is_empty() {
        return Ok(());
    }
    let help = "All that a server is asked for one login or probe";
    let (seconds, kind) = (Some(&Unit::Seconds), MetricType::Histogram);
    let mut family = encoder.encode_descriptor("portolan_directory_duration", help, seconds, kind)?;
    for (name, asked) in &asked {
        asked.seconds.encode(family.encode_family(&[("directory", name.clone())])?)?;
    }
    Ok(())
}

fn map(encoder: &mut DescriptorEncoder<'_>, running: &Running, view: &View) -> Encoded {
    let map = running.router().snapshot();
    let sizes = map.sizes();
    let given = [("static", Some(sizes.fixed)), ("ldap", sizes.ldap)];
    let given = given.into_iter().filter_map(|(source, size)| Some(([("source", source)], size? as f64)));
    gauge(encoder, "portolan_map_domains", "Domains that a source of the map places", None, given)?;
    let announced = sizes.announced.iter().map(|(node, count)| ([("node", node.to_string())], *count as f64));
    gauge(encoder, "portolan_node_domains", "Domains that the node announces", None, announced)?;
    let Conflicts { domains, objects } = view.conflicts;
    let hidden = [("domain", domains), ("object", objects)];
    let hidden = hidden.map(|(kind, count)| ([("kind", kind)], count as f64));
    let help = "What nodes hold and no client is shown, because the map leads elsewhere";
    gauge(encoder, "portolan_map_conflicts", help, None, hidden)?;
    let none: [(&str, &str); 0] = [];
    let (seconds, since) = (Some(&Unit::Seconds), timestamp(map.since));
    let help = "When the map changed last, since 1970";
    gauge(encoder, "portolan_map_changed_timestamp", help, seconds, [(none, since)])?;
    let Some(ldap) = &view.directory_map else { return Ok(()) };
    let help = "When the map of the directory was read last, since 1970";
    // Never is 1970.
    let read = ldap.read.map_or(0.0, timestamp);
    gauge(encoder, "portolan_map_directory_read_timestamp", help, seconds, [(none, read)])?;
    let failing = flag(ldap.failure.is_some());
    let help = "1 where the last reading of the directory's map failed";
    gauge(encoder, "portolan_map_directory_failing", help, None, [(none, failing)])
}

fn certificates(encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
    let config = &view.config;
    let mut ends = Vec::new();
    let mut add = |of: &str, file: &std::path::Path, chain: &[rustls::pki_types::CertificateDer<'_>]| {
        // The first of a chain to end ends them all.
        let first = chain.iter().filter_map(|der| certificate::ends(der)).min();
        if let Some(first) = first {
            ends.push(([("of", of.to_owned()), ("file", file.display().to_string())], timestamp(first)));
        }
    };
    for listener in &config.listeners {
        for identity in listener.tls.settings().into_iter().flat_map(|tls| &tls.identities) {
            add(&format!("listener {}", listener.name), &identity.chain_file, &identity.chain);
        }
    }
    if let Security::Mutual { identity, ca } = &config.cluster {
        add("cluster", &identity.chain_file, &identity.chain);
        add("cluster", &ca.file, &ca.certificates);
    }
    for directory in &config.directories {
        if let Some(identity) = &directory.identity {
            add(&format!("directory {}", directory.name), &identity.chain_file, &identity.chain);
        }
    }
    ends.sort_by(|a, b| a.0.cmp(&b.0));
    ends.dedup_by(|a, b| a.0 == b.0);
    let help = "When a certificate ends, since 1970";
    gauge(encoder, "portolan_certificate_expiry_timestamp", help, Some(&Unit::Seconds), ends)
}
