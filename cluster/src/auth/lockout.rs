//! Failed logins across sessions: they are answered ever later, and then their address or name is banned for a
//! while.
//!
//! Who calls it: the login desk, around each login; `gate`, which turns banned addresses away; `operator`, for
//! the operator.
//! What it calls: `client`, to know a network when it is typed.
//! What it never does: keep an admin out of where it has logged in before, because somebody else guesses at its
//! name from elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use portolan_config::checked::access::Bans;

use portolan_proto::path;

use super::fold::fold;
use portolan_net::network;
use portolan_net::window::{Recent, While};

/// Addresses, and names, with failures that are remembered at most; the one that was quiet for longest is
/// forgotten first.
const REMEMBERED_MAX: usize = 65_536;
/// Banned ones that are passed over at most when something is to be forgotten.
const FORGET_TRIES: usize = 16;
/// Addresses from which a name has logged in that are remembered at most.
const KNOWN_MAX: usize = 16;
/// The delay of the first failure; doubled with each.
const DELAY_FIRST: Duration = Duration::from_millis(250);

/// Who is banned. For people: a network of IPv6 has its length, and a name is whatever a client has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Banned {
    Address(String),
    /// A name, but where it has logged in from before.
    Name(String),
}

impl fmt::Display for Banned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Banned::Address(address) => write!(f, "address {address}"),
            Banned::Name(name) => write!(f, "name {name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    pub who: Banned,
    pub until: SystemTime,
    /// Failures that led to it.
    pub failures: u32,
}

/// Failures, and what they lead to. Addresses are as `client::network` gives them.
#[derive(Debug)]
pub struct Lockout {
    epoch: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rules: Bans,
    /// For showing addresses, and knowing them when they are typed.
    ipv6_prefix: u8,
    addresses: LruCache<IpAddr, Record>,
    names: LruCache<String, Record>,
    /// Where admins have logged in from, the latest last. Not among what is forgotten, or strangers could make it be
    /// forgotten; there are as many as admins.
    known: HashMap<String, Vec<IpAddr>>,
}

#[derive(Debug, Default)]
struct Record {
    recent: Recent,
    ban: Option<(Instant, u32)>,
}

/// Forgets what was quiet for longest, where there is too much; what is banned stays, as far as a few tries find
/// something else.
fn forget<K: std::hash::Hash + Eq>(records: &mut LruCache<K, Record>, now: Instant) {
    for _ in 0..FORGET_TRIES {
        if records.len() <= REMEMBERED_MAX {
            return;
        }
        let Some((key, record)) = records.pop_lru() else { return };
        if record.banned_until(now).is_some() {
            records.push(key, record);
        }
    }
    records.pop_lru();
}

impl State {
    fn knows(&self, address: IpAddr, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.contains(&address))
    }

    fn address(&self, address: IpAddr) -> Banned {
        Banned::Address(network::shown(address, self.ipv6_prefix))
    }

    fn name(name: &str) -> Banned {
        Banned::Name(path::display(name.as_bytes()))
    }
}

impl Record {
    fn banned_until(&self, now: Instant) -> Option<Instant> {
        self.ban.map(|(until, _)| until).filter(|until| *until > now)
    }

    /// Counts one more; the count, and whether that has led to a ban.
    fn fail(&mut self, of: While, limit: u32, duration: Duration, now: Instant) -> (u32, bool) {
        self.recent.add(of, now);
        let count = self.recent.count(of, now);
        let banned = limit > 0 && count >= limit && self.banned_until(now).is_none();
        if banned {
            self.ban = Some((now + duration, count));
            // After the ban it begins anew.
            self.recent = Recent::default();
        }
        (count, banned)
    }
}

impl Lockout {
    pub fn new(rules: Bans, ipv6_prefix: u8) -> Self {
        let (addresses, names) = (LruCache::unbounded(), LruCache::unbounded());
        let state = State { rules, ipv6_prefix, addresses, names, known: HashMap::new() };
        Self { epoch: Instant::now(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Other rules, for failures to come. Bans stay until they end or are lifted.
    pub fn set_rules(&self, rules: Bans, ipv6_prefix: u8) {
        let mut state = self.state();
        if state.ipv6_prefix != ipv6_prefix {
            // Networks of another size mean nothing.
            state.ipv6_prefix = ipv6_prefix;
            let networks: Vec<IpAddr> =
                state.addresses.iter().map(|(address, _)| *address).filter(IpAddr::is_ipv6).collect();
            for network in networks {
                state.addresses.pop(&network);
            }
        }
        if state.rules.window != rules.window {
            for (_, record) in state.addresses.iter_mut() {
                record.recent = Recent::default();
            }
            for (_, record) in state.names.iter_mut() {
                record.recent = Recent::default();
            }
        }
        state.rules = rules;
    }

    /// The end of the ban of an address.
    pub fn address_banned_until(&self, address: IpAddr, now: Instant) -> Option<SystemTime> {
        let until = self.state().addresses.get(&address)?.banned_until(now)?;
        Some(wall_clock(until, now))
    }

    /// Why a login may not even be tried. Names are folded (`fold`), here and below.
    pub fn banned(&self, address: IpAddr, name: &str, now: Instant) -> Option<Ban> {
        let mut state = self.state();
        if let Some(record) = state.addresses.get(&address)
            && let Some(until) = record.banned_until(now)
        {
            let failures = record.ban.map_or(0, |(_, failures)| failures);
            return Some(Ban { who: state.address(address), until: wall_clock(until, now), failures });
        }
        if state.knows(address, name) {
            return None;
        }
        let record = state.names.get(name)?;
        let until = record.banned_until(now)?;
        let failures = record.ban.map_or(0, |(_, failures)| failures);
        Some(Ban { who: State::name(name), until: wall_clock(until, now), failures })
    }

    /// A login has failed: how late to answer, and the bans that it led to. `names` are what was typed and then, where a
    /// directory has found another, what it calls the account: the failure counts for each. How late tells nothing of
    /// the second, which only an account has.
    pub fn failed(&self, address: IpAddr, names: &[&str], now: Instant) -> (Duration, Vec<Ban>) {
        let mut state = self.state();
        let address_shown = state.address(address);
        let is_known = names.iter().any(|name| state.knows(address, name));
        let State { rules, addresses, names: by_names, .. } = &mut *state;
        let of = While { epoch: self.epoch, length: rules.window };
        let mut bans = Vec::new();
        let mut note = |who, banned, failures| {
            if banned {
                bans.push(Ban { who, until: wall_clock(now + rules.duration, now), failures });
            }
        };
        let record = addresses.get_or_insert_mut(address, Record::default);
        let (by_address, banned) = record.fail(of, rules.address_failures, rules.duration, now);
        note(address_shown, banned, by_address);
        let mut count = by_address;
        // Where it has logged in before, a slip of the finger is no attack.
        for (at, name) in names.iter().enumerate().filter(|_| !is_known) {
            let record = by_names.get_or_insert_mut((*name).to_owned(), Record::default);
            let (by_name, banned) = record.fail(of, rules.name_failures, rules.duration, now);
            note(State::name(name), banned, by_name);
            if at == 0 {
                count = count.max(by_name);
            }
            forget(by_names, now);
        }
        forget(addresses, now);
        let doubled = 2_u32.saturating_pow(count.saturating_sub(1));
        (DELAY_FIRST.saturating_mul(doubled).min(rules.delay_max), bans)
    }

    /// An admin has logged in: from here it is let in although its name is banned elsewhere. `names` are the account's, and
    /// then what was typed, where that is another.
    pub fn succeeded(&self, address: IpAddr, names: &[&str]) {
        let mut state = self.state();
        for (at, name) in names.iter().enumerate() {
            // A directory may have one account by any number of spellings.
            if at > 0 && state.known.len() >= REMEMBERED_MAX && !state.known.contains_key(*name) {
                continue;
            }
            let known = state.known.entry((*name).to_owned()).or_default();
            known.retain(|one| *one != address);
            if known.len() == KNOWN_MAX {
                known.remove(0);
            }
            known.push(address);
        }
    }

    /// The bans that hold.
    pub fn bans(&self, now: Instant) -> Vec<Ban> {
        let state = self.state();
        let ban = |who, record: &Record| {
            let until = record.banned_until(now)?;
            let failures = record.ban.map_or(0, |(_, failures)| failures);
            Some(Ban { who, until: wall_clock(until, now), failures })
        };
        let addresses =
            state.addresses.iter().filter_map(|(address, record)| ban(state.address(*address), record));
        let names = state.names.iter().filter_map(|(name, record)| ban(State::name(name), record));
        addresses.chain(names).collect()
    }

    /// Lifts the bans of an address, a network or a name, as it was typed or is shown, or all; those that were lifted.
    /// Failures are forgotten too. `None`: nothing is known of it.
    pub fn lift(&self, who: Option<&str>, now: Instant) -> Option<Vec<Ban>> {
        let bans = self.bans(now);
        let mut state = self.state();
        let State { ipv6_prefix, addresses, names, .. } = &mut *state;
        let Some(typed) = who else {
            addresses.clear();
            names.clear();
            return Some(bans);
        };
        let (address, length) = typed.split_once('/').unwrap_or((typed, ""));
        let address: Option<IpAddr> = address.parse().ok();
        let address = address.filter(|_| length.is_empty() || length == ipv6_prefix.to_string());
        let mut meant = Vec::new();
        if let Some(address) = address.map(|address| network::network(address, *ipv6_prefix))
            && addresses.pop(&address).is_some()
        {
            meant.push(Banned::Address(network::shown(address, *ipv6_prefix)));
        }
        let folded = fold(typed);
        let is_meant = |name: &str| {
            name == typed
                || folded.as_deref() == Some(name)
                || State::name(name) == Banned::Name(typed.to_owned())
        };
        let same: Vec<String> =
            names.iter().map(|(name, _)| name).filter(|name| is_meant(name)).cloned().collect();
        for name in same {
            names.pop(&name);
            meant.push(State::name(&name));
        }
        (!meant.is_empty()).then(|| bans.into_iter().filter(|ban| meant.contains(&ban.who)).collect())
    }
}

fn wall_clock(at: Instant, now: Instant) -> SystemTime {
    SystemTime::now() + at.saturating_duration_since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Bans = Bans {
        address_failures: 3,
        name_failures: 5,
        window: Duration::from_secs(600),
        duration: Duration::from_secs(900),
        delay_max: Duration::from_secs(1),
    };

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn failures_are_answered_later_and_later_and_ban_the_address() {
        let (lockout, now) = (Lockout::new(RULES, 64), Instant::now());
        let delays: Vec<_> =
            ["a", "b", "c"].map(|name| lockout.failed(address(1), &[name], now).0.as_millis()).into();
        assert_eq!(delays, [250, 500, 1_000]);
        let ban = lockout.banned(address(1), "d", now).unwrap();
        assert_eq!((ban.who, ban.failures), (Banned::Address("192.0.2.1".into()), 3));
        assert!(lockout.address_banned_until(address(1), now).is_some());
        assert_eq!(lockout.banned(address(2), "a", now), None);
        let after = now + RULES.duration + Duration::from_secs(1);
        assert_eq!(lockout.banned(address(1), "d", after), None);
        assert_eq!(lockout.bans(after), []);
    }

    #[test]
    fn a_name_that_is_guessed_at_from_everywhere_is_open_only_where_it_is_known() {
        let (lockout, now) = (Lockout::new(RULES, 64), Instant::now());
        lockout.succeeded(address(9), &["anna"]);
        for number in 0..4 {
            assert_eq!(lockout.failed(address(number), &["anna"], now).1, []);
        }
        let bans = lockout.failed(address(4), &["anna"], now).1;
        assert_eq!(bans[0].who, Banned::Name("anna".into()));
        assert_eq!(lockout.banned(address(5), "anna", now).unwrap().failures, 5);
        assert_eq!(lockout.banned(address(9), "anna", now), None);
        assert_eq!(lockout.banned(address(5), "bob", now), None);
        // A wrong password there is no part of the attack.
        assert_eq!(lockout.failed(address(9), &["anna"], now).0, DELAY_FIRST);
    }

    #[test]
    fn spellings_of_one_account_count_together_and_leave_its_own_address_open() {
        let (lockout, now) = (Lockout::new(RULES, 64), Instant::now());
        lockout.succeeded(address(9), &["anna", "anna@a.example"]);
        for number in 0..4 {
            let (typed, other) = (format!("anna@{number}.example"), format!("other@{number}.example"));
            let (pause, bans) = lockout.failed(address(number), &[&typed, "anna"], now);
            assert_eq!(bans, []);
            // As for a name that nobody has.
            assert_eq!(lockout.failed(address(100 + number), &[&other], now).0, pause);
        }
        let bans = lockout.failed(address(4), &["anna@4.example", "anna"], now).1;
        assert_eq!(bans.len(), 1);
        assert_eq!(bans[0].who, Banned::Name("anna".into()));
        assert!(lockout.banned(address(5), "anna", now).is_some());
        for name in ["anna", "anna@a.example"] {
            assert_eq!(lockout.banned(address(9), name, now), None, "{name}");
        }
        assert_eq!(lockout.lift(Some(" ANNA"), now).unwrap().len(), 1);
    }

    #[test]
    fn old_failures_do_not_count() {
        let (lockout, start) = (Lockout::new(RULES, 64), Instant::now());
        for number in 0..20 {
            let now = start + Duration::from_secs(700 * number);
            assert_eq!(lockout.failed(address(1), &["anna"], now).1, [], "{number}");
        }
    }

    #[test]
    fn bans_are_lifted_with_their_failures() {
        let (lockout, now) = (Lockout::new(RULES, 64), Instant::now());
        for last in [1, 2] {
            for _ in 0..3 {
                lockout.failed(address(last), &["anna"], now);
            }
        }
        assert_eq!(lockout.bans(now).len(), 3);
        assert_eq!(lockout.lift(Some("192.0.2.7"), now), None);
        assert_eq!(lockout.lift(Some("192.0.2.1"), now).unwrap().len(), 1);
        assert_eq!(lockout.banned(address(1), "bob", now), None);
        assert_eq!(lockout.failed(address(1), &["bob"], now).1, []);
        assert_eq!(lockout.lift(None, now).unwrap().len(), 2);
        assert_eq!(lockout.bans(now), []);
        // By any of its addresses, and by what is shown; failures that are no ban yet are forgotten too.
        let network: IpAddr = "2001:db8:0:1::".parse().unwrap();
        for typed in ["2001:db8:0:1::", "2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"] {
            for _ in 0..3 {
                lockout.failed(network, &["bad\x1bname"], now);
            }
            assert_eq!(
                lockout.lift(Some(typed), now).unwrap()[0].who.to_string(),
                "address 2001:db8:0:1::/64"
            );
        }
        assert_eq!(lockout.lift(Some("2001:db8:0:1::/48"), now), None);
        lockout.failed(address(1), &["bob"], now);
        assert_eq!(lockout.lift(Some("192.0.2.1"), now), Some(vec![]));
        let Banned::Name(shown) = &lockout.bans(now)[0].who else { panic!("a name") };
        assert_eq!(lockout.lift(Some(shown), now).unwrap().len(), 1);
    }

    #[test]
    fn without_limits_nobody_is_banned_and_what_is_remembered_is_bounded() {
        let rules = Bans { address_failures: 0, name_failures: 0, ..RULES };
        let (lockout, now) = (Lockout::new(rules, 64), Instant::now());
        for number in 0..100_000_u32 {
            let from = IpAddr::from(number.to_be_bytes());
            assert_eq!(lockout.failed(from, &[&number.to_string()], now).1, []);
        }
        let state = lockout.state();
        assert_eq!((state.addresses.len(), state.names.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
    }

    #[test]
    fn no_flood_of_names_makes_known_addresses_or_bans_be_forgotten() {
        let rules = Bans { address_failures: 3, name_failures: 3, ..RULES };
        let (lockout, now) = (Lockout::new(rules, 64), Instant::now());
        lockout.succeeded(address(9), &["anna"]);
        for _ in 0..3 {
            lockout.failed(address(1), &["anna"], now);
        }
        for number in 0..70_000_u32 {
            lockout.failed(IpAddr::from(number.to_be_bytes()), &[&number.to_string()], now);
        }
        assert!(lockout.address_banned_until(address(1), now).is_some());
        assert!(lockout.banned(address(8), "anna", now).is_some());
        assert_eq!(lockout.banned(address(9), "anna", now), None);
    }
}
