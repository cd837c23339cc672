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
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portolan_config::checked::listener::{Listener, PassiveHost};

use super::control::Origin;

/// A look-up that takes longer has failed.
const LOOK_UP_MAX: Duration = Duration::from_secs(5);

/// What is known of the names.
#[derive(Debug, Default)]
pub struct AdvertisedNames {
    known: Mutex<BTreeMap<String, Option<Ipv4Addr>>>,
}

impl AdvertisedNames {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Option<Ipv4Addr>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the names of these listeners from now on.
    pub fn follow(&self, listeners: &[Listener]) {
        let hosts = listeners.iter().flat_map(|listener| {
            listener.passive_address.iter().chain(listener.passive_addresses.iter().map(|(_, host)| host))
        });
        let names = hosts.filter_map(|host| match host {
            PassiveHost::Address(_) => None,
            PassiveHost::Name(name) => Some(name.clone()),
        });
        let mut known = self.known();
        *known = names
            .map(|name| {
                let address = known.get(&name).copied().flatten();
                (name, address)
            })
            .collect();
    }

    /// Resolves all names. Of several addresses the present one is kept, else the lowest is taken, so that the
    /// answer does not change with the order in which they come.
    pub async fn refresh(&self) {
        let names: Vec<String> = self.known().keys().cloned().collect();
        for name in names {
            let found = tokio::time::timeout(LOOK_UP_MAX, tokio::net::lookup_host((&*name, 0))).await;
            let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            let addresses: Vec<Ipv4Addr> = match found {
                Ok(found) => found
                    .filter_map(|address| match address.ip() {
                        IpAddr::V4(address) => Some(address),
                        IpAddr::V6(_) => None,
                    })
                    .collect(),
                Err(error) => {
                    tracing::warn!(name, %error, "a passive_address does not resolve; the last one stays");
                    continue;
                }
            };
            let mut known = self.known();
            let Some(present) = known.get_mut(&name) else { continue };
            if present.is_some_and(|present| addresses.contains(&present)) {
                continue;
            }
            match addresses.iter().min() {
                Some(address) => {
                    tracing::info!(name, %address, "a passive_address resolves");
                    *present = Some(*address);
                }
                None => tracing::warn!(name, "a passive_address has no IPv4 address; the last one stays"),
            }
        }
    }

    /// What PASV names to a client.
    pub fn address(&self, listener: &Listener, origin: &Origin) -> Advertised {
        let own = listener.passive_addresses.iter().find(|(clients, _)| clients.contains(origin.client.ip()));
        match own.map(|(_, host)| host).or(listener.passive_address.as_ref()) {
            Some(PassiveHost::Address(address)) => Advertised::Address(*address),
            Some(PassiveHost::Name(name)) => match self.known().get(name).copied().flatten() {
                Some(address) => Advertised::Address(address),
                None => Advertised::Unresolved,
            },
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
