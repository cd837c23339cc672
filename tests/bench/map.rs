//! Measures the front end's domain map: memory, loading, the list of domains, look-ups, changes.
//!
//! The nodes are simulated within this process: what agents would announce is handed to the router in messages of the
//! size that agents send. No gRPC and no client is measured.
//!
//! Who calls it: people, for docs/scale.md.
//! What it calls: `portolan_cluster::map`.
//! What it never does: serve anybody.

use std::fs;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use portolan_cluster::map::{NodeFacts, NodeHoldings, NodeIndex, Role, Router};
use portolan_cluster::path::VirtualPath;
use portolan_config::checked::map::{Map, MapSource, Placement};
use portolan_proto::v1::HoldingChange;

// The front end's, so that memory is what it takes there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure the front end's map of domains with simulated nodes.
#[derive(Parser)]
struct Arguments {
    /// Nodes.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    nodes: u32,
    /// Domains, each on one node.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    domains: u32,
    /// Users of each domain.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    users: u32,
}

/// Changes in one message of an agent at most, as in the contract.
const CHANGES_MAX: usize = 1_000;
/// Names that a listing takes at once.
const BATCH: usize = 1_000;

fn name(domain: u32) -> String {
    format!("domain-{domain:07}.example.org")
}

fn held(domain: &str, object: Option<&str>) -> HoldingChange {
    let object = object.map(|object| object.as_bytes().to_vec().into());
    HoldingChange { domain: domain.as_bytes().to_vec().into(), object, removed: false }
}

/// All that one node announces.
fn announced(arguments: &Arguments, node: u32) -> NodeHoldings {
    let mut holdings = NodeHoldings::default();
    let mut message = Vec::with_capacity(CHANGES_MAX);
    for domain in (node..arguments.domains).step_by(arguments.nodes as usize).map(name) {
        message.push(held(&domain, None));
        for own in ["domainCoreConfig.cfg", "domainRegistry.bin"] {
            message.push(held(&domain, Some(own)));
        }
        for user in 0..arguments.users {
            message.push(held(&domain, Some(&format!("users/user-{user:06}"))));
            if message.len() >= CHANGES_MAX {
                holdings.apply(&message);
                message.clear();
            }
        }
    }
    holdings.apply(&message);
    holdings
}

/// Memory of this process in use, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there is a VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1_024
}

/// The median of `rounds` runs.
fn median(rounds: u32, mut run: impl FnMut(u32)) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|round| {
            let started = Instant::now();
            run(round);
            started.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn main() -> ExitCode {
    let arguments = match portolan_process::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    let facts = |node| NodeFacts {
        name: format!("mail-{node}").parse().expect("a node's name"),
        is_discovered: false,
        role: Role::Primary { standbys: Vec::new(), writes: false },
        mail_hosts: Vec::new(),
        rank: node as usize,
    };
    let map = Map {
        sources: vec![MapSource::Static, MapSource::Announced],
        placement: Placement::Refuse,
        mark_partial: false,
        missing_share: 20,
        domains: Vec::new(),
        ldap: None,
    };
    let router = Router::new((0..arguments.nodes).map(facts).collect(), 0, &map);
    let before = resident();
    let started = Instant::now();
    for node in 0..arguments.nodes {
        router.replace_holdings(NodeIndex(node as usize), announced(&arguments, node));
    }
    let loaded = started.elapsed();
    let memory = resident().saturating_sub(before);

    let path = |round: u32| {
        let domain = name(round.wrapping_mul(7_919) % arguments.domains);
        let text = format!("/domains/{domain}/users/user-000000/folders/INBOX/1");
        VirtualPath::resolve(&VirtualPath::default(), text.as_bytes()).expect("a good path")
    };
    let lookup = median(10_001, |round| {
        black_box(router.snapshot().route(&path(round)).ok());
    });
    let change = median(1_001, |round| {
        let domain = name(round % arguments.domains);
        let node = NodeIndex((round % arguments.domains % arguments.nodes) as usize);
        router.change_holdings(node, &[held(&domain, Some(&format!("users/new-{round}")))]);
    });
    let mut listed = 0;
    let listing = median(5, |_| {
        listed = 0;
        let snapshot = router.snapshot();
        let mut last: Option<Vec<u8>> = None;
        while let Ok(names) = snapshot.domains_after(last.as_deref(), BATCH)
            && !names.is_empty()
        {
            listed += names.len();
            last = names.into_iter().next_back();
        }
    });
    assert_eq!(listed, arguments.domains as usize, "each domain is listed once");

    let Arguments { nodes, domains, users } = arguments;
    println!(
        "| nodes | domains | users | loading | memory | a domain | list of domains | look-up | change |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    println!(
        "| {nodes} | {domains} | {} | {:.2} s | {} MiB | {} B | {:.0} ms | {:.1} µs | {:.1} µs |",
        u64::from(domains) * u64::from(users),
        loaded.as_secs_f64(),
        memory >> 20,
        memory / u64::from(domains),
        listing.as_secs_f64() * 1e3,
        lookup.as_secs_f64() * 1e6,
        change.as_secs_f64() * 1e6,
    );
    ExitCode::SUCCESS
}
