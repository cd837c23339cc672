//! The address that PASV names: the one that the client connected to, a fixed one, or a DNS name's.
//!
//! Names are resolved at the start and again and again, so that a front end behind an address that changes
//! follows it. A name that does not resolve any more keeps its last address.
//!
//! Who calls it: `Frontend`, to resolve; the engines, for PASV.
//! What it calls: the system's resolver.
//! What it never does: resolve while a client waits.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use portolan_config::checked::listener::{Listener, PassiveHost};
use portolan_config::units::Addresses;

use portolan_net::Origin;

/// A look-up that takes longer has failed.
const LOOK_UP_MAX: Duration = Duration::from_secs(5);

/// The names that are followed: those of listeners and of sessions that began before a reload.
#[derive(Debug, Default)]
pub struct AdvertisedNames {
    followed: Mutex<BTreeMap<String, Weak<Name>>>,
}

#[derive(Debug)]
struct Name {
    text: String,
    address: Mutex<Option<Ipv4Addr>>,
}

impl Name {
    fn address(&self) -> MutexGuard<'_, Option<Ipv4Addr>> {
        self.address.lock()
    }

    /// Resolves it. Of several addresses the present one is kept, else the lowest is taken, so that the answer does not
    /// change with the order in which they come.
    async fn refresh(&self) {
        let name = &*self.text;
        let found = tokio::time::timeout(LOOK_UP_MAX, tokio::net::lookup_host((name, 0))).await;
        let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let addresses: Vec<Ipv4Addr> = match found {
            Ok(found) => found
                .filter_map(|address| match address.ip() {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            Err(error) => {
                tracing::warn!(name, %error, "a passive_address does not resolve; the last known address stays");
                return;
            }
        };
        let mut present = self.address();
        if present.is_some_and(|present| addresses.contains(&present)) {
            return;
        }
        match addresses.iter().min() {
            Some(address) => {
                tracing::info!(name, %address, "a passive_address resolves");
                *present = Some(*address);
            }
            None => {
                tracing::warn!(name, "a passive_address has no IPv4 address; the last known address stays");
            }
        }
    }
}

impl AdvertisedNames {
    fn followed(&self) -> MutexGuard<'_, BTreeMap<String, Weak<Name>>> {
        self.followed.lock()
    }

    /// Follows a name for as long as somebody holds it.
    fn name(&self, text: &str) -> Arc<Name> {
        let mut followed = self.followed();
        if let Some(name) = followed.get(text).and_then(Weak::upgrade) {
            return name;
        }
        followed.retain(|_, name| name.strong_count() > 0);
        let name = Arc::new(Name { text: text.to_owned(), address: Mutex::new(None) });
        followed.insert(text.to_owned(), Arc::downgrade(&name));
        name
    }

    /// Resolves all names, side by side.
    pub async fn refresh(&self) {
        let names: Vec<Arc<Name>> = self.followed().values().filter_map(Weak::upgrade).collect();
        futures_util::future::join_all(names.iter().map(|name| name.refresh())).await;
    }
}

/// What PASV names on a listener.
#[derive(Debug)]
pub struct ListenerAddresses {
    /// The first that fits counts.
    by_client: Vec<(Addresses, Host)>,
    otherwise: Option<Host>,
}

#[derive(Debug)]
enum Host {
    Address(Ipv4Addr),
    Name(Arc<Name>),
}

impl ListenerAddresses {
    pub fn new(listener: &Listener, names: &AdvertisedNames) -> Self {
        let host = |host: &PassiveHost| match host {
            PassiveHost::Address(address) => Host::Address(*address),
            PassiveHost::Name(text) => Host::Name(names.name(text)),
        };
        let by_client = listener.passive_addresses.iter().map(|(clients, to)| (*clients, host(to)));
        Self { by_client: by_client.collect(), otherwise: listener.passive_address.as_ref().map(host) }
    }

    /// What PASV names to a client.
    pub fn address(&self, origin: &Origin) -> Advertised {
        let own = self.by_client.iter().find(|(clients, _)| clients.contains(origin.client.ip()));
        match own.map(|(_, host)| host).or(self.otherwise.as_ref()) {
            Some(Host::Address(address)) => Advertised::Address(*address),
            Some(Host::Name(name)) => name.address().map_or(Advertised::Unresolved, Advertised::Address),
            None => match origin.contacted {
                IpAddr::V4(address) => Advertised::Address(address),
                IpAddr::V6(_) => Advertised::Ipv6,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advertised {
    Address(Ipv4Addr),
    /// The name has not resolved yet.
    Unresolved,
    /// The client came by IPv6, which PASV cannot name.
    Ipv6,
}
