//! Finds agents in DNS.
//!
//! Who calls it: the front end, at the start; then it looks by the interval of the configuration.
//! What it calls: hickory-resolver for the records; `nodes::identify`, because the certificate of an agent says who it is and
//! its address does not; `members`.
//! What it never does: take a node out, or move one that is up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::StreamExt as _;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::{Resolver, TokioResolver};
use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::nodes::{Discovery as Settings, DnsQuery};
use portolan_config::units::HostPort;
use portolan_telemetry::chain;
use tokio::sync::Notify;

use crate::in_force::InForce;
use crate::nodes::members::Members;
use crate::nodes::{self, Health};

/// Agents that are asked at once who they are.
const IDENTIFIED_AT_ONCE: usize = 16;

/// The faults that were logged last: once is enough.
#[derive(Debug, Default)]
struct Logged {
    dns: String,
    /// By address.
    agents: BTreeMap<String, String>,
}

/// See the module.
pub struct Discovery {
    in_force: Arc<InForce>,
    members: Arc<Members>,
    wanted: Notify,
    /// One look at a time.
    logged: tokio::sync::Mutex<Logged>,
}

impl Discovery {
    pub fn new(in_force: Arc<InForce>, members: Arc<Members>) -> Self {
        Self { in_force, members, wanted: Notify::new(), logged: tokio::sync::Mutex::default() }
    }

    /// Nodes are to be looked for at once.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Looks when it is time to, for ever, and calls `changed` when nodes have come or moved.
    pub async fn run(&self, changed: impl Fn()) {
        loop {
            self.until_due().await;
            if self.look().await {
                changed();
            }
        }
    }

    async fn until_due(&self) {
        let Some(interval) = self.in_force.load().discovery.as_ref().map(|discovery| discovery.interval)
        else {
            return self.wanted.notified().await;
        };
        tokio::select! {
            () = self.wanted.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }

    /// Looks for nodes in DNS, where that is configured, and dials those that have come or moved. Returns whether there are
    /// any.
    pub async fn look(&self) -> bool {
        let config = self.in_force.load();
        let Some(discovery) = &config.discovery else { return false };
        let mut logged = self.logged.lock().await;
        if !find(&config, discovery, &self.members, &mut logged).await {
            return false;
        }
        let _change = self.in_force.change().await;
        let config = self.in_force.load();
        match self.members.prepare(&config, false) {
            Ok(change) => self.members.apply(change, &config, false),
            Err(error) => tracing::error!(cause = chain(&error), "a node that was found cannot be dialled"),
        }
        true
    }
}

/// Looks once. Returns whether nodes have come or moved.
async fn find(config: &Config, discovery: &Settings, members: &Members, logged: &mut Logged) -> bool {
    let addresses = match resolve(discovery).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let cause = chain(&error);
            if logged.dns != cause {
                tracing::error!(cause, "nodes cannot be looked up in DNS; those that are known stay");
            }
            logged.dns = cause;
            return false;
        }
    };
    logged.dns.clear();
    // Who is up at an address needs not be asked again: its certificate was checked when it was dialled.
    let up: BTreeSet<String> = members
        .nodes()
        .list()
        .iter()
        .filter(|node| *node.health().borrow() == Health::Up)
        .filter_map(|node| node.address())
        .map(|address| address.to_string())
        .collect();
    let asked = addresses.into_iter().map(host_port).filter(|address| !up.contains(&address.to_string()));
    let identified = futures_util::stream::iter(asked)
        .map(|address| async move {
            let who = nodes::identify(&address, &config.cluster).await;
            (address, who)
        })
        .buffer_unordered(IDENTIFIED_AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut news = false;
    let mut faults = BTreeMap::new();
    for (address, who) in identified {
        let fault = match who {
            Ok(name) => match members.nodes().find(&name) {
                Some(node) if *node.health().borrow() == Health::Up => format!(
                    "it says that it is node {name}, which is up at {}",
                    node.address().map(|address| address.to_string()).unwrap_or_default()
                ),
                _ => {
                    news |= members.take_in(&name, &address);
                    continue;
                }
            },
            Err(error) => chain(&error),
        };
        let address = address.to_string();
        if logged.agents.get(&address) != Some(&fault) {
            tracing::warn!(address, fault, "an address that DNS names is not used as a node");
        }
        faults.insert(address, fault);
    }
    logged.agents = faults;
    news
}

fn host_port(address: SocketAddr) -> HostPort {
    let host = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    HostPort { host, port: address.port() }
}

async fn resolve(discovery: &Settings) -> Result<BTreeSet<SocketAddr>, NetError> {
    let resolver = resolver(&discovery.servers)?;
    let mut addresses = BTreeSet::new();
    match &discovery.query {
        DnsQuery::Addresses(name) => {
            let found = resolver.lookup_ip(name.host.as_str()).await?;
            addresses.extend(found.iter().map(|ip| SocketAddr::new(ip, name.port)));
        }
        DnsQuery::Services(name) => {
            let found = resolver.srv_lookup(name.as_str()).await?;
            for record in found.answers() {
                let RData::SRV(service) = &record.data else { continue };
                // RFC 2782: the root as target says that there is none.
                if service.target.is_root() {
                    continue;
                }
                // A target whose address is missing for now is as good as a node that is away.
                match resolver.lookup_ip(service.target.clone()).await {
                    Ok(found) => addresses.extend(found.iter().map(|ip| SocketAddr::new(ip, service.port))),
                    Err(error) if error.is_no_records_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(addresses)
}

/// Made anew for each look, so that a changed resolv.conf counts and nothing is cached.
fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        Resolver::builder_tokio()?
    } else {
        let server = |address: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            NameServerConfig::new(address.ip(), true, connections.to_vec())
        };
        let servers = servers.iter().map(server).collect();
        Resolver::builder_with_config(
            ResolverConfig::from_name_servers(servers),
            TokioRuntimeProvider::default(),
        )
    };
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}
