//! Types of single values: durations, addresses, port ranges. Each parses from text and says what is allowed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

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
        let name = !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_');
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
    fn hosts_and_ports() {
        for bad in ["", ":1", "a", "a:", "a:0", "a:99999", "a b:1", "[::1:1", "::1", "http://a:1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        for (good, loopback) in
            [("127.0.0.1:1", true), ("[::1]:1", true), ("localhost:1", true), ("mail-1.example:7171", false)]
        {
            assert_eq!(good.parse::<HostPort>().unwrap().is_loopback(), loopback, "{good}");
        }
    }
}
