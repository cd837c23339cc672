//! The gate: accepts connections, finds out whom they come from, and lets them in or refuses them.
//!
//! ```text
//! accept ──> PROXY header ──> access rules ──> bans ──> flow control ──> session
//!            (trusted only)        └────────────┴────────────┴──> 421
//! ```
//!
//! It is the same for every service ([`Serve`]).
//!
//! Who calls it: `running::gates`, with one gate for each listener.
//! What it calls: `cluster::auth::lockout`; the service, with each connection that it lets in.
//! What it never does: know the service's protocol.

pub mod access;
pub mod flow;
mod refusal;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use portolan_config::checked::access::Limits;
use portolan_config::checked::access::{AccessList, AccessRule, RuleLimits, Scope, Verdict};
use portolan_config::checked::frontend::Frontend as Config;
use portolan_config::units::Addresses;
use rustix::net::SendFlags;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use flow::{Flow, Place, Usage};
use portolan_cluster::auth::lockout::Lockout;
use portolan_net::Origin;
use portolan_net::proxy;
use portolan_telemetry::shown_time;
pub use refusal::Refused;
use refusal::Refuser;

/// Pause after a failed accept: without it, running out of descriptors would spin a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that the system holds until they are accepted: a burst of clients that connect at once.
const BACKLOG: u32 = 4_096;
/// Connections of load balancers whose headers are awaited at once.
const HEADERS_MAX: usize = 1_024;

/// A service behind gates, as one listener offers it.
pub trait Serve: Send + Sync + 'static {
    /// What the configuration says of its listener.
    fn door(&self) -> Door<'_>;
    fn lockout(&self) -> &Lockout;
    /// The TLS of a client that speaks it from the first byte on; `None`: a connection begins in plaintext.
    fn implicit_tls(&self) -> Option<Arc<rustls::ServerConfig>>;
    /// What a refused client is sent.
    fn refusal(&self, why: &Refused) -> String;
    /// What a load balancer's own connection is sent, where it begins in plaintext.
    fn health_greeting(&self) -> &'static [u8];
    /// Counts a refusal.
    fn count_refused(&self, why: &Refused);
    /// Serves a connection that was let in, in a task of its own. The admission is dropped at its end.
    fn serve(self: Arc<Self>, stream: TcpStream, origin: Origin, admission: flow::Admission);
}

/// A listener as its gate sees it.
pub struct Door<'a> {
    pub name: &'a str,
    pub limits: Limits,
    pub access: Option<&'a AccessList>,
    /// The load balancers whose PROXY headers count.
    pub trusted: &'a [Addresses],
    /// How long a PROXY header may take.
    pub header_timeout: Duration,
}

/// What all gates share.
#[derive(Debug)]
pub struct Commons {
    bystanders: Bystanders,
    global: Arc<Flow>,
    ftp: Arc<Flow>,
    /// Connections by access rules that have limits, by where the rule stands and how it is written.
    rules: Mutex<HashMap<String, Arc<Flow>>>,
}

/// The tasks of connections that are no sessions: awaited headers, refusals. They end when a drain begins.
#[derive(Debug, Clone, Default)]
struct Bystanders {
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Bystanders {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = end.cancelled() => {}
            }
        });
    }
}

impl Commons {
    /// Ends what is done for connections that are no sessions.
    pub async fn stop(&self) {
        self.bystanders.end.cancel();
        self.bystanders.tasks.close();
        self.bystanders.tasks.wait().await;
    }

    pub fn new(config: &Config) -> Self {
        Self {
            bystanders: Bystanders::default(),
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
struct Rules<S> {
    service: Arc<S>,
    /// The connections of each rule of the access list that has limits.
    flows: Vec<Option<Arc<Flow>>>,
    ipv6_prefix: u8,
}

impl<S: Serve> Rules<S> {
    fn new(service: Arc<S>, commons: &Commons, ipv6_prefix: u8) -> Self {
        let door = service.door();
        let flow = |list: &AccessList, rule: &AccessRule| {
            let limited = rule.limits != RuleLimits::NONE;
            limited.then(|| commons.of_rule(list, door.name, rule))
        };
        let lists = door.access.iter();
        let flows = lists.flat_map(|list| list.rules.iter().map(|rule| flow(list, rule))).collect();
        Self { service, flows, ipv6_prefix }
    }
}

/// One listener.
pub struct Gate<S> {
    name: Arc<str>,
    address: SocketAddr,
    flow: Arc<Flow>,
    rules: ArcSwap<Rules<S>>,
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

impl<S: Serve> Gate<S> {
    /// A gate for what has been bound to `address`. Limits of its access rules are in force from here on.
    pub fn new(service: S, address: SocketAddr, commons: Arc<Commons>, ipv6_prefix: u8) -> Self {
        let Door { name, limits, .. } = service.door();
        let name: Arc<str> = name.into();
        let flow = Arc::new(Flow::new(Place::Listener(Arc::clone(&name)), limits));
        let rules = Rules::new(Arc::new(service), &commons, ipv6_prefix);
        let refuser = Refuser::new(commons.bystanders.clone(), Arc::clone(&name));
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

    pub fn service(&self) -> Arc<S> {
        Arc::clone(&self.rules.load().service)
    }

    pub fn usage(&self, now: Instant) -> Usage {
        self.flow.usage(now)
    }

    /// Takes another service and its rules, for connections to come.
    pub fn update(&self, service: S, ipv6_prefix: u8) {
        self.flow.set_limits(service.door().limits);
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
        let Door { trusted, .. } = rules.service.door();
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
        self.commons.bystanders.spawn(async move {
            let _turn = turn;
            gate.read_header(&rules, stream, peer, own).await;
        });
    }

    async fn read_header(&self, rules: &Rules<S>, mut stream: TcpStream, peer: SocketAddr, own: IpAddr) {
        let limit = rules.service.door().header_timeout;
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
    async fn answer_health_check(&self, rules: &Rules<S>, stream: TcpStream) {
        let greeting = rules.service.health_greeting();
        if rules.service.implicit_tls().is_none()
            && rustix::net::send(&stream, greeting, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err()
        {
            return;
        }
        refusal::read_away(stream).await;
    }

    /// Lets a connection in or refuses it.
    fn decide(&self, rules: &Rules<S>, stream: TcpStream, origin: Origin) {
        let admission = match self.admit(rules, &origin) {
            Ok(admission) => admission,
            Err(refused) => {
                self.refuser.refuse(&*rules.service, stream, origin.client, refused);
                return;
            }
        };
        Arc::clone(&rules.service).serve(stream, origin, admission);
    }

    fn admit(&self, rules: &Rules<S>, origin: &Origin) -> Result<flow::Admission, Refused> {
        let service = &rules.service;
        let mut limits = RuleLimits::NONE;
        let mut by_rule = None;
        if let Some(list) = service.door().access {
            let decision = access::decide(&list.rules, origin.client.ip());
            if decision.verdict == Verdict::Deny {
                let rule = decision.rule.map(|place| list.rules[place].to_string());
                return Err(Refused::Denied { scope: list.scope, rule });
            }
            limits = decision.limits;
            by_rule = decision.rule.and_then(|place| rules.flows.get(place)).and_then(Option::as_ref);
        }
        let now = Instant::now();
        if let Some(until) = service.lockout().address_banned_until(origin.network, now) {
            return Err(Refused::Banned { until: shown_time(until) });
        }
        let scopes = [&self.commons.global, &self.commons.ftp, &self.flow];
        Ok(flow::admit(scopes, by_rule, limits, origin.network, now)?)
    }
}
