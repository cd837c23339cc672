//! Flow control: how many connections there are, and how many are new, in total and by address.
//!
//! A connection is counted in each scope that it belongs to: global, FTP, its listener, and the access rule
//! that let it in, if that has limits. It is let in when all of them have room, and then it is counted in all of
//! them at once, so that no burst gets past a limit. Refused ones are not counted.
//!
//! No library does this: rate limiters such as `governor` let twice the limit through within the first interval,
//! and take their token before another scope has said no.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use portolan_config::checked::access::{Limits, RuleLimits};

use portolan_net::window::{Recent, While};

/// Addresses that a scope remembers at most. With limits on totals there are never that many: an address is
/// forgotten when its connections are gone and were opened more than an interval ago.
const ADDRESSES_MAX: usize = 65_536;
/// A table that has grown to this is looked through for addresses to forget, and again when it has doubled.
const SWEEP_AT_FIRST: usize = 1_024;

/// What a limit holds for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Global,
    Ftp,
    Listener(Arc<str>),
    /// An access rule, as it is written.
    Rule(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Global => f.write_str("global"),
            Place::Ftp => f.write_str("ftp"),
            Place::Listener(name) => write!(f, "listener {name}"),
            Place::Rule(rule) => write!(f, "rule {rule}"),
        }
    }
}

/// The connections of one scope.
#[derive(Debug)]
pub struct Flow {
    place: Place,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    interval: While,
    total: Counter,
    by_address: HashMap<IpAddr, Counter>,
    sweep_at: usize,
    swept: Instant,
}

#[derive(Debug, Clone, Default)]
struct Counter {
    present: u32,
    recent: Recent,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub place: Place,
    pub limit: Limit,
    pub value: u32,
    pub interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Simultaneous,
    SimultaneousPerAddress,
    New,
    NewPerAddress,
    /// Not one of the configuration.
    Addresses,
}

impl Limit {
    /// Its key in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Limit::Simultaneous => "simultaneous",
            Limit::SimultaneousPerAddress => "simultaneous_per_address",
            Limit::New => "new",
            Limit::NewPerAddress => "new_per_address",
            Limit::Addresses => "addresses",
        }
    }
}

/// The sentence that the client gets.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Global => "this server",
            Place::Ftp => "the FTP service",
            Place::Listener(_) => "this listener",
            Place::Rule(_) => "the access rule for your address",
        };
        let (value, seconds) = (self.value, self.interval.as_secs());
        match self.limit {
            Limit::Simultaneous => write!(f, "All {value} connections of {place} are in use"),
            Limit::SimultaneousPerAddress => {
                write!(f, "Your address has {value} connections, as many as {place} allows")
            }
            Limit::New => {
                write!(f, "{value} connections came within {seconds} s, as many as {place} allows")
            }
            Limit::NewPerAddress => write!(
                f,
                "{value} connections came from your address within {seconds} s, as many as {place} allows"
            ),
            Limit::Addresses => write!(f, "Too many recent clients at {place}"),
        }?;
        f.write_str("; try again later.")
    }
}

/// How full a scope is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub place: Place,
    pub limits: Limits,
    pub simultaneous: u32,
    pub new: u32,
    /// Addresses that are remembered.
    pub addresses: usize,
    /// The most connections that one address has, and has opened within the interval.
    pub simultaneous_of_one: u32,
    pub new_by_one: u32,
}

/// A connection that was let in, counted as long as this lives.
#[derive(Debug)]
pub struct Admission {
    flows: Vec<Arc<Flow>>,
    address: IpAddr,
}

impl Flow {
    pub fn new(place: Place, limits: Limits) -> Self {
        let interval = While { epoch: Instant::now(), length: limits.interval };
        let state = State {
            limits,
            interval,
            total: Counter::default(),
            by_address: HashMap::new(),
            sweep_at: SWEEP_AT_FIRST,
            swept: interval.epoch,
        };
        Self { place, state: Mutex::new(state) }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Other limits, for connections to come. Those that are there stay counted.
    pub fn set_limits(&self, limits: Limits) {
        let mut state = self.state();
        if limits.interval != state.limits.interval {
            // Counts of another interval mean nothing.
            state.interval = While { epoch: Instant::now(), length: limits.interval };
            state.total.recent = Recent::default();
            for counter in state.by_address.values_mut() {
                counter.recent = Recent::default();
            }
        }
        state.limits = limits;
    }

    pub fn usage(&self, now: Instant) -> Usage {
        let mut state = self.state();
        let State { limits, interval, total, by_address, .. } = &mut *state;
        let simultaneous_of_one = by_address.values().map(|counter| counter.present).max();
        let new_by_one = by_address.values_mut().map(|counter| counter.recent.count(*interval, now)).max();
        Usage {
            place: self.place.clone(),
            limits: *limits,
            simultaneous: total.present,
            new: total.recent.count(*interval, now),
            addresses: by_address.len(),
            simultaneous_of_one: simultaneous_of_one.unwrap_or(0),
            new_by_one: new_by_one.unwrap_or(0),
        }
    }
}

impl State {
    /// The limit that has no room for one more from `address`. `except` are limits by address that a rule has
    /// replaced.
    fn full(&mut self, address: IpAddr, except: RuleLimits, now: Instant) -> Option<(Limit, u32)> {
        let Self { limits, interval, .. } = *self;
        let reached = |limit: u32, count: u32| limit > 0 && count >= limit;
        if reached(limits.simultaneous, self.total.present) {
            return Some((Limit::Simultaneous, limits.simultaneous));
        }
        if reached(limits.new, self.total.recent.count(interval, now)) {
            return Some((Limit::New, limits.new));
        }
        match self.by_address.get_mut(&address) {
            Some(counter) => {
                if !except.replaces_simultaneous_per_address
                    && reached(limits.simultaneous_per_address, counter.present)
                {
                    return Some((Limit::SimultaneousPerAddress, limits.simultaneous_per_address));
                }
                if !except.replaces_new_per_address
                    && reached(limits.new_per_address, counter.recent.count(interval, now))
                {
                    return Some((Limit::NewPerAddress, limits.new_per_address));
                }
            }
            None => {
                self.sweep(now);
                if self.by_address.len() >= ADDRESSES_MAX {
                    return Some((Limit::Addresses, u32::try_from(ADDRESSES_MAX).unwrap_or(u32::MAX)));
                }
            }
        }
        None
    }

    fn enter(&mut self, address: IpAddr, now: Instant) {
        let interval = self.interval;
        for counter in [&mut self.total, self.by_address.entry(address).or_default()] {
            counter.present += 1;
            counter.recent.add(interval, now);
        }
    }

    fn leave(&mut self, address: IpAddr, now: Instant) {
        self.total.present = self.total.present.saturating_sub(1);
        let Some(counter) = self.by_address.get_mut(&address) else { return };
        counter.present = counter.present.saturating_sub(1);
        if counter.present == 0 && counter.recent.count(self.interval, now) == 0 {
            self.by_address.remove(&address);
        }
    }

    /// Forgets addresses of which nothing counts any more; in constant time a connection, taken over all.
    fn sweep(&mut self, now: Instant) {
        let full = self.by_address.len() >= ADDRESSES_MAX;
        // Nothing more can be forgotten before a part of the interval is over.
        let soon = now.saturating_duration_since(self.swept) < self.interval.length / 8;
        if self.by_address.len() < self.sweep_at || (full && soon) {
            return;
        }
        self.swept = now;
        let interval = self.interval;
        self.by_address.retain(|_, counter| counter.present > 0 || counter.recent.count(interval, now) > 0);
        self.sweep_at = (self.by_address.len() * 2).clamp(SWEEP_AT_FIRST, ADDRESSES_MAX);
        self.by_address.shrink_to(self.sweep_at);
    }
}

/// Lets a connection in and counts it in `scopes` and in the scope of the rule that allowed it, or says which
/// limit has no room. `address` is the client's, as `client::network` gives it; `limits` are the rule's.
pub fn admit(
    scopes: [&Arc<Flow>; 3],
    rule: Option<&Arc<Flow>>,
    limits: RuleLimits,
    address: IpAddr,
    now: Instant,
) -> Result<Admission, Refusal> {
    // Always in this order, so that two never wait for each other.
    let flows: Vec<Arc<Flow>> = scopes.into_iter().chain(rule).cloned().collect();
    let mut states: Vec<_> = flows.iter().map(|flow| flow.state()).collect();
    for (index, (flow, state)) in flows.iter().zip(&mut states).enumerate() {
        let except = if index < scopes.len() { limits } else { RuleLimits::NONE };
        if let Some((limit, value)) = state.full(address, except, now) {
            let interval = state.limits.interval;
            return Err(Refusal { place: flow.place.clone(), limit, value, interval });
        }
    }
    for state in &mut states {
        state.enter(address, now);
    }
    drop(states);
    Ok(Admission { flows, address })
}

impl Drop for Admission {
    fn drop(&mut self) {
        let now = Instant::now();
        for flow in &self.flows {
            flow.state().leave(self.address, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows(limits: [Limits; 3]) -> [Arc<Flow>; 3] {
        let [global, ftp, listener] = limits;
        [
            Arc::new(Flow::new(Place::Global, global)),
            Arc::new(Flow::new(Place::Ftp, ftp)),
            Arc::new(Flow::new(Place::Listener("127.0.0.1:21".into()), listener)),
        ]
    }

    fn enter(flows: &[Arc<Flow>; 3], address: &str, now: Instant) -> Result<Admission, Refusal> {
        let [global, ftp, listener] = flows;
        admit([global, ftp, listener], None, RuleLimits::NONE, address.parse().unwrap(), now)
    }

    fn refused(entered: Result<Admission, Refusal>) -> (Place, Limit) {
        let refusal = entered.unwrap_err();
        (refusal.place, refusal.limit)
    }

    #[test]
    fn each_scope_refuses_at_its_limit_and_counts_nothing_that_another_refused() {
        let now = Instant::now();
        let two = Limits { simultaneous: 2, ..Limits::NONE };
        let one_each = Limits { simultaneous_per_address: 1, ..Limits::NONE };
        let flows = flows([Limits::NONE, two, one_each]);
        let first = enter(&flows, "10.0.0.1", now).unwrap();
        let listener = Place::Listener("127.0.0.1:21".into());
        assert_eq!(refused(enter(&flows, "10.0.0.1", now)), (listener, Limit::SimultaneousPerAddress));
        let _second = enter(&flows, "10.0.0.2", now).unwrap();
        let refusal = enter(&flows, "10.0.0.3", now).unwrap_err();
        assert_eq!(refusal.to_string(), "All 2 connections of the FTP service are in use; try again later.");
        assert_eq!(flows[0].usage(now).simultaneous, 2);
        drop(first);
        let usage = flows[2].usage(now);
        assert_eq!((usage.simultaneous, usage.simultaneous_of_one, usage.new), (1, 1, 2));
        enter(&flows, "10.0.0.3", now).unwrap();
    }

    #[test]
    fn new_connections_are_limited_within_any_interval() {
        let now = Instant::now();
        let limits = Limits { new: 5, new_per_address: 2, ..Limits::NONE };
        let flows = flows([limits, Limits::NONE, Limits::NONE]);
        for address in ["10.0.0.1", "10.0.0.1", "10.0.0.2"] {
            enter(&flows, address, now).unwrap();
        }
        assert_eq!(refused(enter(&flows, "10.0.0.1", now)), (Place::Global, Limit::NewPerAddress));
        enter(&flows, "10.0.0.3", now).unwrap();
        enter(&flows, "10.0.0.4", now).unwrap();
        let later = now + Duration::from_secs(59);
        assert_eq!(refused(enter(&flows, "10.0.0.5", later)), (Place::Global, Limit::New));
        let after = now + Duration::from_secs(69);
        enter(&flows, "10.0.0.1", after).unwrap();
        assert_eq!(flows[0].usage(after).new, 1);
    }

    #[test]
    fn a_rule_gives_more_to_its_addresses_within_the_totals() {
        let now = Instant::now();
        let limits = Limits { simultaneous: 4, simultaneous_per_address: 1, ..Limits::NONE };
        let [global, ftp, listener] = &flows([limits, Limits::NONE, Limits::NONE]);
        let own = Limits { simultaneous_per_address: 3, ..Limits::NONE };
        let rule = Arc::new(Flow::new(Place::Rule("allow 10.0.0.1".into()), own));
        let limits = RuleLimits { own, replaces_simultaneous_per_address: true, ..RuleLimits::NONE };
        let enter = |address: &str| {
            admit([global, ftp, listener], Some(&rule), limits, address.parse().unwrap(), now)
        };
        let mut held: Vec<_> = (0..3).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert_eq!(enter("10.0.0.1").unwrap_err().limit, Limit::SimultaneousPerAddress);
        held.push(enter("10.0.0.2").unwrap());
        let refusal = enter("10.0.0.2").unwrap_err();
        assert_eq!((refusal.place, refusal.limit), (Place::Global, Limit::Simultaneous));
        assert_eq!(rule.usage(now).simultaneous, 4);
    }

    #[test]
    fn addresses_are_forgotten_and_never_too_many() {
        let start = Instant::now();
        let flows = flows([Limits::NONE, Limits::NONE, Limits::NONE]);
        let mut now = start;
        for number in 0..200_000_u32 {
            now = start + Duration::from_millis(number.into());
            let address = IpAddr::from(number.to_be_bytes());
            let [global, ftp, listener] = &flows;
            // What is refused is refused for the number of addresses.
            match admit([global, ftp, listener], None, RuleLimits::NONE, address, now) {
                Ok(admission) => drop(admission),
                Err(refusal) => assert_eq!(refusal.limit, Limit::Addresses),
            }
            assert!(flows[0].state().by_address.len() <= ADDRESSES_MAX);
        }
        now += Duration::from_secs(70);
        flows[0].state().sweep_at = 0;
        flows[0].state().sweep(now);
        assert_eq!(flows[0].usage(now).addresses, 0);
    }

    #[test]
    fn a_burst_of_threads_never_passes_a_limit() {
        let limits = Limits { simultaneous: 50, simultaneous_per_address: 20, ..Limits::NONE };
        let flows = flows([Limits::NONE, Limits::NONE, limits]);
        let held: Vec<Admission> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let flows = &flows;
                    scope.spawn(move || {
                        let address = format!("10.0.0.{}", thread % 4);
                        (0..500)
                            .filter_map(|_| enter(flows, &address, Instant::now()).ok())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(held.len(), 50);
        let usage = flows[2].usage(Instant::now());
        assert_eq!((usage.simultaneous, usage.simultaneous_of_one), (50, 20));
        drop(held);
        assert_eq!(flows[2].usage(Instant::now()).simultaneous, 0);
    }

    #[test]
    fn other_limits_hold_from_then_on() {
        let now = Instant::now();
        let flows = flows([Limits { simultaneous: 1, ..Limits::NONE }, Limits::NONE, Limits::NONE]);
        let _first = enter(&flows, "10.0.0.1", now).unwrap();
        assert!(enter(&flows, "10.0.0.1", now).is_err());
        flows[0].set_limits(Limits { simultaneous: 2, new: 2, ..Limits::NONE });
        let second = enter(&flows, "10.0.0.1", now).unwrap();
        drop(second);
        assert_eq!(enter(&flows, "10.0.0.1", now).unwrap_err().limit, Limit::New);
        flows[0].set_limits(Limits { new: 1, interval: Duration::from_secs(30), ..Limits::NONE });
        enter(&flows, "10.0.0.1", Instant::now()).unwrap();
    }
}
