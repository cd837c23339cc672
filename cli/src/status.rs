//! `portolan status`: who is connected to a running front end, what is in use, and how its nodes are.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use indicatif::{BinaryBytes, HumanCount};
use portolan_proto::control::{DescribeRequest, DescribeResponse, ListSessionsRequest, Session, Usage};

use super::Socket;
use portolan_telemetry::shown_time;

/// Show the sessions, nodes and limits of the running front end.
#[derive(Parser)]
pub(super) struct Arguments {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    super::ask(&arguments.socket, |mut client| async move {
        let described = client.describe(DescribeRequest {}).await?.into_inner();
        let mut stream = client.list_sessions(ListSessionsRequest {}).await?.into_inner();
        let mut sessions = Vec::new();
        while let Some(batch) = stream.message().await? {
            sessions.extend(batch.sessions);
        }
        Ok(show(&described, &sessions, SystemTime::now()))
    })
}

fn show(described: &DescribeResponse, sessions: &[Session], now: SystemTime) -> String {
    let mut text = format!(
        "portolan-frontend {}, process {}, started {}, {} since {}\n{}, read {}\n",
        described.version,
        described.process_id,
        shown_time(super::time(described.started_ns)),
        described.phase,
        shown_time(super::time(described.phase_since_ns)),
        described.config_file,
        shown_time(super::time(described.config_read_ns)),
    );
    if let Some(refused) = &described.refused_reload {
        let at = shown_time(super::time(refused.at_ns));
        text += &format!("the reload of {at} was refused:\n{}\n", refused.cause);
    }
    if let Some(map) = &described.directory_map {
        let read = map
            .read_ns
            .map_or_else(|| "never read".to_owned(), |at| format!("read {}", shown_time(super::time(at))));
        text += &format!("map of directory {}: {} domains, {read}\n", map.directory, map.domains);
        if !map.failure.is_empty() {
            text += &format!("the last reading of the map failed: {}\n", map.failure);
        }
    }
    let (domains, objects) = (described.conflicting_domains, described.conflicting_objects);
    if domains + objects > 0 {
        text += &format!(
            "not shown to clients: parts of {domains} domains, copies of {objects} objects (portolan map --conflicts)\n"
        );
    }
    let heading = |words: &[&str]| vec![words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()];

    for one in described.nodes.iter().filter(|one| one.in_doubt > 0) {
        text += &format!(
            "node {} no longer announces {} domains and objects, which is not believed (portolan map confirm)\n",
            one.name, one.in_doubt
        );
    }
    let mut listeners = heading(&["LISTENER", "ADDRESS", "ENGINE", "TLS"]);
    for one in &described.listeners {
        listeners.push(vec![one.name.clone(), one.address.clone(), one.engine.clone(), one.tls.clone()]);
    }
    let mut nodes = heading(&["NODE", "ADDRESS", "HEALTH", "STANDBY OF", "CAUSE"]);
    for one in &described.nodes {
        nodes.push(
            [&one.name, &one.address, &one.health, &one.standby_of, &one.cause].map(Clone::clone).to_vec(),
        );
    }
    let mut directories = heading(&["DIRECTORY", "SERVER", "HEALTH"]);
    for one in &described.directories {
        for server in &one.servers {
            let health = if server.away { "did not answer" } else { "-" };
            directories.push(vec![one.name.clone(), server.uri.clone(), health.to_owned()]);
        }
    }
    let mut limits =
        heading(&["LIMITS OF", "NOW", "OF ONE ADDRESS", "NEW", "NEW BY ONE ADDRESS", "ADDRESSES"]);
    limits.extend(described.usages.iter().map(usage));
    let mut shown = heading(&["SESSION", "ADMIN", "FROM", "LISTENER", "SINCE", "DOES"]);
    shown.extend(sessions.iter().map(|one| session(one, now)));
    let mut tables = vec![listeners, nodes, limits, shown];
    if directories.len() > 1 {
        tables.insert(2, directories);
    }
    for table in tables {
        text.push('\n');
        text += &super::table(&table);
    }
    let bans = described.bans;
    text += &format!("\n{} sessions, {bans} bans (portolan bans)\n", HumanCount(sessions.len() as u64));
    text
}

/// `in use/maximum`.
fn of(present: u32, maximum: u32) -> String {
    if maximum == 0 { format!("{present}/no limit") } else { format!("{present}/{maximum}") }
}

fn usage(usage: &Usage) -> Vec<String> {
    let interval = usage.interval_seconds;
    vec![
        usage.scope.clone(),
        of(usage.simultaneous, usage.simultaneous_max),
        of(usage.simultaneous_of_one_address, usage.simultaneous_per_address_max),
        format!("{} in {interval} s", of(usage.new, usage.new_max)),
        format!("{} in {interval} s", of(usage.new_by_one_address, usage.new_per_address_max)),
        usage.addresses.to_string(),
    ]
}

fn session(session: &Session, now: SystemTime) -> Vec<String> {
    let since = now.duration_since(super::time(session.since_ns)).unwrap_or_default();
    let from = match &session.balancer {
        Some(balancer) => format!("{} by {balancer}", session.client),
        None => session.client.clone(),
    };
    let does = match &session.transfer {
        None => "-".to_owned(),
        Some(transfer) => {
            let seconds = (transfer.elapsed_ms as f64 / 1_000.0).max(0.001);
            let rate = BinaryBytes((transfer.bytes as f64 / seconds) as u64);
            let (id, verb, path) = (&transfer.id, &transfer.verb, &transfer.path);
            format!("{id} {verb} {path}: {} in {seconds:.0} s, {rate}/s", BinaryBytes(transfer.bytes))
        }
    };
    let whole_seconds = Duration::from_secs(since.as_secs());
    vec![
        session.id.clone(),
        session.admin.clone().unwrap_or_else(|| "-".to_owned()),
        from,
        session.listener.clone(),
        humantime::format_duration(whole_seconds).to_string(),
        does,
    ]
}
