//! How a client counts: for limits of connections, and for failed logins.
//!
//! Who calls it: `gate`, `auth::lockout`.
//! What it calls: nothing.
//! What it never does: look at more than the address.

use std::net::{IpAddr, Ipv6Addr};

/// What counts as one client: an IPv4 address, or the first `ipv6_prefix` bits of an IPv6 one, because a host has a
/// whole network of these.
pub fn network(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let kept = u128::MAX.checked_shl(128 - u32::from(ipv6_prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & kept).into()
        }
    }
}

/// The same for people: a network of IPv6 with its length.
pub fn shown(network: IpAddr, ipv6_prefix: u8) -> String {
    match network {
        IpAddr::V6(_) if ipv6_prefix < 128 => format!("{network}/{ipv6_prefix}"),
        IpAddr::V4(_) | IpAddr::V6(_) => network.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        for (address, prefix, expected) in [
            ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
            ("2001:db8:1:2:3:4:5:6", 48, "2001:db8:1::/48"),
            ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
            ("::ffff:192.0.2.1", 64, "192.0.2.1"),
            ("192.0.2.1", 32, "192.0.2.1"),
        ] {
            assert_eq!(shown(network(address.parse().unwrap(), prefix), prefix), expected);
        }
    }
}
