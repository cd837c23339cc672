//! The gate: accepts connections, finds out whom they come from, and lets them in or refuses them.
//!
//! ```text
//! accept ──> PROXY header ──> access rules ──> bans ──> flow control ──> session
//!            (trusted only)        └────────────┴────────────┴──> 421
//! ```
//!
//! Who calls it: `Frontend`, with one gate for each listener.
//! What it calls: `auth::lockout`; `ftp::Service`, with each connection that it lets in.
//! What it never does: parse FTP.

pub mod access;
pub mod flow;
mod refusal;
pub mod sessions;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use portolan_config::checked::access::{AccessList, AccessRule, RuleLimits, Scope, Verdict};
use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::checked::listener::Tls;
use rustix::net::SendFlags;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use flow::{Flow, Place, Usage};
use portolan_ftp::{ControlConnection, Service, shown_time};
use portolan_net::Origin;
use portolan_net::proxy;
use refusal::{Refused, Refuser};
use sessions::Sessions;

/// Pause after a failed accept: without it, running out of descriptors would spin a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that the system holds until they are accepted: a burst of clients that connect at once.
const BACKLOG: u32 = 4_096;
/// Connections of load balancers whose headers are awaited at once.
const HEADERS_MAX: usize = 1_024;

/// What a balancer's own connection is greeted with.
const HEALTHY: &[u8] = b"220 Portolan ready.\r\n";

/// What all gates share.
#[derive(Debug)]
pub struct Commons {
    pub sessions: Arc<Sessions>,
    global: Arc<Flow>,
    ftp: Arc<Flow>,
    /// Connections by access rules that have limits, by where the rule stands and how it is written.
    rules: Mutex<HashMap<String, Arc<Flow>>>,
}

impl Commons {
    pub fn new(config: &Config) -> Self {
        Self {
            sessions: Arc::default(),
            global: Arc::new(Flow::new(Place::Global, config.global_limits)),
            ftp: Arc::new(Flow::new(Place::Ftp, config.ftp_limits)),
            rules: Mutex::default(),
        }
    }

    /// Takes over what a reload changes.
    pub fn update(&self, config: &Config) {
        self.global.set_limits(config.global_limits);
        self.ftp.set_limits(config.ftp_limits);
    }

    /// The connections by a rule. One that was there before a reload goes on counting.
    fn of_rule(&self, list: &AccessList, listener: &str, rule: &AccessRule) -> Arc<Flow> {
        let name = match list.scope {
            Scope::Global | Scope::Ftp => format!("{}: {rule}", list.scope),
            Scope::Listener => format!("listener {listener}: {rule}"),
        };
        let mut rules = self.rules.lock();
        rules.retain(|_, flow| Arc::strong_count(flow) > 1);
        let place = Place::Rule(name.as_str().into());
        let flow = rules.entry(name).or_insert_with(|| Arc::new(Flow::new(place, rule.limits.own)));
        flow.set_limits(rule.limits.own);
        Arc::clone(flow)
    }

    /// How full global, FTP and the rules are.
    pub fn usages(&self, now: Instant) -> Vec<Usage> {
        let rules = self.rules.lock();
        let mut by_rule: Vec<Usage> = rules.values().map(|flow| flow.usage(now)).collect();
        by_rule.sort_by_key(|usage| usage.place.to_string());
        [&self.global, &self.ftp].into_iter().map(|flow| flow.usage(now)).chain(by_rule).collect()
    }
}

/// What decides over connections to one listener. A reload puts another one in its place.
struct Rules {
    service: Arc<Service>,
    /// The connections of each rule of the access list that has limits.
    flows: Vec<Option<Arc<Flow>>>,
    ipv6_prefix: u8,
}

impl Rules {
    fn new(service: Arc<Service>, commons: &Commons, ipv6_prefix: u8) -> Self {
        let listener = &service.listener;
        let flow = |list: &AccessList, rule: &AccessRule| {
            let limited = rule.limits != RuleLimits::NONE;
            limited.then(|| commons.of_rule(list, &listener.name, rule))
        };
        let lists = listener.access.iter();
        let flows = lists.flat_map(|list| list.rules.iter().map(|rule| flow(list, rule))).collect();
        Self { service, flows, ipv6_prefix }
    }
}

/// One listener.
pub struct Gate {
    name: Arc<str>,
    address: SocketAddr,
    flow: Arc<Flow>,
    rules: ArcSwap<Rules>,
    commons: Arc<Commons>,
    headers: Arc<Semaphore>,
    refuser: Refuser,
}

/// Listens at an address as a gate wants it.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Gate {
    /// A gate for what has been bound to `address`. Limits of its access rules are in force from here on.
    pub fn new(service: Service, address: SocketAddr, commons: Arc<Commons>, ipv6_prefix: u8) -> Self {
        let name: Arc<str> = service.listener.name.as_str().into();
        let flow = Arc::new(Flow::new(Place::Listener(Arc::clone(&name)), service.listener.limits));
        let rules = Rules::new(Arc::new(service), &commons, ipv6_prefix);
        let refuser = Refuser::new(Arc::clone(&commons.sessions), Arc::clone(&name));
        let headers = Arc::new(Semaphore::new(HEADERS_MAX));
        Self { name, address, flow, rules: ArcSwap::from_pointee(rules), commons, headers, refuser }
    }

    /// The address that is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.rules.load().service)
    }

    pub fn usage(&self, now: Instant) -> Usage {
        self.flow.usage(now)
    }

    /// Takes another service and its rules, for connections to come. Bandwidth limits hold for all.
    pub fn update(&self, service: Service, ipv6_prefix: u8) {
        self.flow.set_limits(service.listener.limits);
        service.apply_bandwidth();
        self.rules.store(Arc::new(Rules::new(Arc::new(service), &self.commons, ipv6_prefix)));
    }

    /// Takes connections until `stop`. Its sessions go on.
    pub async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.arrived(stream, peer),
                    Err(error) => {
                        tracing::warn!(%error, listener = %self.name, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// A connection has come. If it comes from a load balancer, whom it comes from is told by its header.
    fn arrived(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let rules = self.rules.load_full();
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let own = match stream.local_addr() {
            Ok(own) => own.ip().to_canonical(),
            Err(error) => {
                tracing::debug!(%error, %peer, "connection was lost before it began");
                return;
            }
        };
        let trusted = &rules.service.listener.proxy_protocol.trusted;
        if !trusted.iter().any(|balancer| balancer.contains(peer.ip())) {
            let network = portolan_net::network::network(peer.ip(), rules.ipv6_prefix);
            let origin = Origin { client: peer, network, contacted: own, own, balancer: None };
            self.decide(&rules, stream, origin);
            return;
        }
        let Ok(turn) = Arc::clone(&self.headers).try_acquire_owned() else {
            tracing::warn!(%peer, listener = %self.name, "connection closed: too many PROXY headers are awaited");
            return;
        };
        let gate = Arc::clone(self);
        self.commons.sessions.spawn(async move {
            let _turn = turn;
            gate.read_header(&rules, stream, peer, own).await;
        });
    }

    async fn read_header(&self, rules: &Rules, mut stream: TcpStream, peer: SocketAddr, own: IpAddr) {
        let limit = rules.service.listener.handshake_timeout;
        let ends = match tokio::time::timeout(limit, proxy::read(&mut stream)).await {
            Ok(Ok(ends)) => ends,
            // A balancer that only looks whether somebody is here.
            Ok(Err(proxy::Error::Read(error))) => {
                tracing::debug!(%peer, listener = %self.name, %error, "connection ended before its PROXY header");
                return;
            }
            Ok(Err(error)) => {
                let cause = portolan_telemetry::chain(&error);
                tracing::warn!(%peer, listener = %self.name, cause, "connection closed: no good PROXY header");
                return;
            }
            Err(_) => {
                tracing::warn!(%peer, listener = %self.name, "connection closed: no PROXY header in time");
                return;
            }
        };
        let Some(ends) = ends else {
            self.answer_health_check(rules, stream).await;
            return;
        };
        let client = SocketAddr::new(ends.source.ip().to_canonical(), ends.source.port());
        let contacted = ends.destination.ip().to_canonical();
        let network = portolan_net::network::network(client.ip(), rules.ipv6_prefix);
        self.decide(rules, stream, Origin { client, network, contacted, own, balancer: Some(peer.ip()) });
    }

    /// The balancer itself looks whether somebody is here. That is no session: it is neither counted nor refused nor
    /// logged. Where the greeting is plaintext it gets one, for checks that look at it.
    async fn answer_health_check(&self, rules: &Rules, stream: TcpStream) {
        if !matches!(rules.service.listener.tls, Tls::Implicit(_))
            && rustix::net::send(&stream, HEALTHY, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err()
        {
            return;
        }
        refusal::read_away(stream).await;
    }

    /// Lets a connection in or refuses it.
    fn decide(&self, rules: &Rules, stream: TcpStream, origin: Origin) {
        let admission = match self.admit(rules, &origin) {
            Ok(admission) => admission,
            Err(refused) => {
                self.refuser.refuse(&rules.service, stream, origin.client, refused);
                return;
            }
        };
        let metrics = Arc::clone(&rules.service.shared.metrics);
        metrics.connected(&self.name);
        let control = match ControlConnection::new(&stream, origin, Arc::clone(&self.name), metrics) {
            Ok(control) => Arc::new(control),
            Err(error) => {
                tracing::debug!(%error, peer = %origin.client, "connection was lost before it began");
                return;
            }
        };
        let service = Arc::clone(&rules.service);
        let served = Arc::clone(&control);
        let serve = async move {
            tracing::debug!("session begins");
            service.serve(stream, served).await;
            tracing::debug!("session ends");
        };
        let span = control.span.clone();
        self.commons.sessions.serve(control, admission, serve.instrument(span));
    }

    fn admit(&self, rules: &Rules, origin: &Origin) -> Result<flow::Admission, Refused> {
        let service = &rules.service;
        let mut limits = RuleLimits::NONE;
        let mut by_rule = None;
        if let Some(list) = &service.listener.access {
            let decision = access::decide(&list.rules, origin.client.ip());
            if decision.verdict == Verdict::Deny {
                let rule = decision.rule.map(|place| list.rules[place].to_string());
                return Err(Refused::Denied { scope: list.scope, rule });
            }
            limits = decision.limits;
            by_rule = decision.rule.and_then(|place| rules.flows.get(place)).and_then(Option::as_ref);
        }
        let now = Instant::now();
        if let Some(until) = service.shared.desk.lockout.address_banned_until(origin.network, now) {
            return Err(Refused::Banned { until: shown_time(until) });
        }
        let scopes = [&self.commons.global, &self.commons.ftp, &self.flow];
        Ok(flow::admit(scopes, by_rule, limits, origin.network, now)?)
    }
}
