//! Types of single values: durations, addresses, port ranges. Each parses from text and says what is allowed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use rustls::pki_types::DnsName;

/// Text that does not parse: what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("allowed: {0}")]
pub struct Allowed(pub &'static str);

/// A span of time such as `300s`, `5m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub std::time::Duration);

impl FromStr for Span {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| Allowed("a duration such as \"300s\" or \"5m\""))
    }
}

/// An inclusive range of TCP ports, written `50000-50999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        let allowed = Allowed("FIRST-LAST, both from 1024 to 65535, FIRST not above LAST");
        let (first, last) = text.split_once('-').ok_or(allowed.clone())?;
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if 1024 <= first && first <= last => Ok(Self { first, last }),
            _ => Err(allowed),
        }
    }
}

/// Bytes a second, both ends included in the range; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate(pub u64);

impl Rate {
    /// Below, a transfer would seem to stand still.
    pub const LEAST: u64 = 16 * 1024;
    pub const MOST: u64 = 1 << 40;
}

impl FromStr for Rate {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        let rate = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64());
        rate.filter(|rate| *rate == 0 || (Self::LEAST..=Self::MOST).contains(rate)).map(Self).ok_or(Allowed(
            "bytes a second such as \"500KiB\" or \"10MB\", from 16KiB to 1TiB, or \"0\" for no limit",
        ))
    }
}

/// A number of bytes such as `100MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        let size = text.parse::<bytesize::ByteSize>().ok().map(|size| Self(size.as_u64()));
        size.filter(|size| size.0 <= Rate::MOST)
            .ok_or(Allowed("bytes such as \"500KiB\" or \"100MB\", up to 1TiB"))
    }
}

/// Room that is to be left free: a number of bytes, a part of the whole, or the lesser of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreeMin {
    bytes: Option<u64>,
    percent: Option<u8>,
}

impl FreeMin {
    /// Nothing.
    pub const NONE: Self = Self { bytes: None, percent: None };
    const PERCENT_MOST: u8 = 50;

    /// Bytes that are to be left of so many; 0 where nothing is.
    pub fn of(self, bytes_total: u64) -> u64 {
        let part = self.percent.map(|percent| bytes_total / 100 * u64::from(percent));
        [self.bytes, part].into_iter().flatten().min().unwrap_or(0)
    }
}

impl FromStr for FreeMin {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        let allowed = || {
            Allowed(
                "bytes such as \"1GiB\", a part up to \"50%\", or the lesser of both, \"1GiB or 5%\"; \"0\" for nothing",
            )
        };
        let bytes = |text: &str| text.trim().parse::<Size>().map(|size| size.0).map_err(|_| allowed());
        let percent = |text: &str| {
            let number = text.trim().strip_suffix('%').and_then(|text| text.trim().parse::<u8>().ok());
            number.filter(|number| *number <= Self::PERCENT_MOST)
        };
        if let Some((one, other)) = text.split_once(" or ") {
            let percent = percent(other).ok_or_else(allowed)?;
            return Ok(Self { bytes: Some(bytes(one)?), percent: Some(percent) });
        }
        match percent(text) {
            Some(percent) => Ok(Self { bytes: None, percent: Some(percent) }),
            None => Ok(Self { bytes: Some(bytes(text)?), percent: None }),
        }
    }
}

/// Addresses of clients: all, one, a range or a network. An IPv4 address written as IPv6 (RFC 4291 section
/// 2.5.5.2) is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Addresses {
    All,
    Network(IpNet),
    /// First and last, of one family, the first not above the last.
    Range(IpAddr, IpAddr),
}

impl Addresses {
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Addresses::All => true,
            Addresses::Network(network) => network.contains(&address),
            Addresses::Range(first, last) => {
                first.is_ipv4() == address.is_ipv4() && (*first..=*last).contains(&address)
            }
        }
    }
}

impl Addresses {
    /// True when no address of a family is left out.
    pub fn is_everybody(&self) -> bool {
        let ends: [[IpAddr; 2]; 2] = [
            [IpAddr::from([0; 4]), IpAddr::from([255; 4])],
            [IpAddr::from([0; 16]), IpAddr::from([0xff; 16])],
        ];
        ends.iter().any(|[first, last]| self.contains(*first) && self.contains(*last))
    }
}

impl FromStr for Addresses {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        let allowed = || {
            Allowed(
                "\"all\", an IP address, a range FIRST-LAST of them, or a network such as 10.0.0.0/8 without host bits",
            )
        };
        let address = |text: &str| text.trim().parse::<IpAddr>().map(|address| address.to_canonical()).ok();
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = address(first).zip(address(last)).ok_or_else(allowed)?;
            let ordered = first.is_ipv4() == last.is_ipv4() && first <= last;
            return ordered.then_some(Self::Range(first, last)).ok_or_else(allowed);
        }
        if let Some(address) = address(text) {
            return Ok(Self::Network(address.into()));
        }
        let network = text.parse::<IpNet>().ok().filter(|network| network.trunc() == *network);
        network.map(|network| Self::Network(as_ipv4(network))).ok_or_else(allowed)
    }
}

/// A network of IPv4 addresses that is written as IPv6, as IPv4.
fn as_ipv4(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    match mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()) {
        Some(v4) => v4.into(),
        None => network,
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addresses::All => f.write_str("all"),
            Addresses::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                network.addr().fmt(f)
            }
            Addresses::Network(network) => network.fmt(f),
            Addresses::Range(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Where to connect to: an IP address or a DNS name, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// True when the host is a loopback address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        let literal = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host == "localhost" || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for HostPort {
    type Err = Allowed;

    fn from_str(text: &str) -> Result<Self, Allowed> {
        let allowed = Allowed("HOST:PORT with a DNS name, an IPv4 address or an [IPv6] address");
        let (host, port) = text.rsplit_once(':').ok_or(allowed.clone())?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(allowed.clone())?;
        let name = DnsName::try_from(host).is_ok() || host.parse::<Ipv4Addr>().is_ok();
        let v6 = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
        if name || v6 { Ok(Self { host: host.to_owned(), port }) } else { Err(allowed) }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges() {
        for bad in ["", "5", "50000", "50999-50000", "0-10", "1023-2000", "1024-70000", "a-b", "-"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        let range: PortRange = "50000-50999".parse().unwrap();
        assert_eq!(range.count(), 1000);
        assert_eq!("1024-65535".parse::<PortRange>().unwrap().count(), 64512);
    }

    #[test]
    fn rates() {
        for bad in ["", "fast", "-1", "1", "16383", "2TiB", "10MiB/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        for (good, bytes) in
            [("0", 0), ("16KiB", 16_384), ("10MB", 10_000_000), ("1.5 MiB", 1_572_864), ("1TiB", 1 << 40)]
        {
            assert_eq!(good.parse::<Rate>(), Ok(Rate(bytes)), "{good}");
        }
    }

    #[test]
    fn room_to_be_left() {
        for bad in ["", "%", "51%", "-1%", "2TiB", "5% or 1GiB", "1GiB or", "1GiB or 1MiB", "1.5%"] {
            assert!(bad.parse::<FreeMin>().is_err(), "{bad}");
        }
        let gib = 1_u64 << 30;
        for (text, total, left) in [
            ("0", 100 * gib, 0),
            ("0%", 100 * gib, 0),
            ("1GiB", 100 * gib, gib),
            ("5%", 100 * gib, 5 * gib),
            ("1GiB or 5%", 100 * gib, gib),
            ("1GiB or 5%", 1_000, 50),
        ] {
            assert_eq!(text.parse::<FreeMin>().unwrap().of(total), left, "{text}");
        }
        assert_eq!(FreeMin::NONE.of(u64::MAX), 0);
    }

    #[test]
    fn addresses_of_clients() {
        for bad in [
            "",
            "any",
            "10.0.0",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-::1",
            "1-2",
            "::/129",
            "-",
            "localhost",
        ] {
            assert!(bad.parse::<Addresses>().is_err(), "{bad}");
        }
        for (text, inside, outside) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.2"),
            ("::ffff:10.0.0.1", "10.0.0.1", "::10.0.0.1"),
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
            ("10.0.0.5-10.0.1.4", "10.0.0.255", "10.0.1.5"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::1-2001:db8::ff", "2001:db8::ff", "2001:db8::100"),
            ("0.0.0.0/0", "192.0.2.1", "2001:db8::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
            ("::/0", "::1", "::ffff:192.0.2.1"),
        ] {
            let addresses: Addresses = text.parse().unwrap();
            assert!(addresses.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!addresses.contains(outside.parse().unwrap()), "{text} {outside}");
            assert_eq!(addresses.to_string().parse(), Ok(addresses), "{text}");
        }
        for (text, everybody) in [
            ("0.0.0.0/0", true),
            ("::/0", true),
            ("0.0.0.0-255.255.255.255", true),
            ("0.0.0.0/1", false),
            ("::/1", false),
        ] {
            assert_eq!(text.parse::<Addresses>().unwrap().is_everybody(), everybody, "{text}");
        }
        let all: Addresses = "all".parse().unwrap();
        assert!(all.is_everybody());
        assert!(all.contains("::1".parse().unwrap()) && all.contains("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn hosts_and_ports() {
        for bad in ["", ":1", "a", "a:", "a:0", "a:99999", "a b:1", "[::1:1", "::1", "http://a:1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        for bad in ["-a:1", "a-.example:1", "a..example:1", ".:1", "1.2.3:1", "256.1.1.1:1", "127.0.0.1.:1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        for good in ["mail_1.example:1", "mail-1.example.:1", "1a:1"] {
            assert!(good.parse::<HostPort>().is_ok(), "{good}");
        }
        for (good, loopback) in
            [("127.0.0.1:1", true), ("[::1]:1", true), ("localhost:1", true), ("mail-1.example:7171", false)]
        {
            assert_eq!(good.parse::<HostPort>().unwrap().is_loopback(), loopback, "{good}");
        }
    }
}
