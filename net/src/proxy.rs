//! The header with which a load balancer tells whom a connection comes from: HAProxy's PROXY protocol, versions 1
//! (text) and 2 (binary), as its doc/proxy-protocol.txt has them.
//!
//! Who calls it: `gate` for control connections, `native::data` for data connections.
//! What it calls: ppp.
//! What it never does: read a byte beyond the header, or believe one that did not come from a trusted address.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A text header at most, its end included.
const V1_BYTES_MAX: usize = 107;
/// A binary header at most. Balancers send a few hundred bytes.
const V2_BYTES_MAX: usize = 4_096;
/// The signature, then version, command, family and length.
const V2_START_BYTES: usize = 16;

/// Whom a connection comes from, and which address it was made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection ended within its PROXY header")]
    Read(#[from] io::Error),
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("the PROXY header is faulty")]
    Text(#[source] v1::BinaryParseError),
    #[error("the PROXY header is faulty")]
    Binary(#[source] v2::ParseError),
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    #[error("the PROXY header is of no TCP connection")]
    NotTcp,
}

/// Is this the beginning of a header, or of what looks like one?
pub fn looks_like_header(bytes: &[u8]) -> bool {
    let text = ["PROXY TCP4 ", "PROXY TCP6 ", "PROXY UNKNOWN"];
    bytes.starts_with(v2::PROTOCOL_PREFIX) || text.iter().any(|start| bytes.starts_with(start.as_bytes()))
}

/// Reads the header. `None`: the balancer speaks for itself, as in a health check.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Ends>, Error> {
    // As long as a version 2 signature, and shorter than any header.
    let mut header = vec![0; v2::PROTOCOL_PREFIX.len()];
    stream.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        return read_binary(stream, header).await;
    }
    if !header.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        return Err(Error::Missing);
    }
    // One by one: what follows the line belongs to the client.
    while !header.ends_with(v1::PROTOCOL_SUFFIX.as_bytes()) {
        if header.len() == V1_BYTES_MAX {
            return Err(Error::TooLong(V1_BYTES_MAX));
        }
        header.push(stream.read_u8().await?);
    }
    let header = v1::Header::try_from(&header[..]).map_err(Error::Text)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(ends) => Some(Ends {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        }),
        v1::Addresses::Tcp6(ends) => Some(Ends {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        }),
        v1::Addresses::Unknown => None,
    })
}

async fn read_binary(
    stream: &mut (impl AsyncRead + Unpin),
    mut header: Vec<u8>,
) -> Result<Option<Ends>, Error> {
    header.resize(V2_START_BYTES, 0);
    stream.read_exact(&mut header[v2::PROTOCOL_PREFIX.len()..]).await?;
    let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if rest > V2_BYTES_MAX {
        return Err(Error::TooLong(V2_BYTES_MAX));
    }
    header.resize(V2_START_BYTES + rest, 0);
    stream.read_exact(&mut header[V2_START_BYTES..]).await?;
    let header = v2::Header::try_from(&header[..]).map_err(Error::Binary)?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    match (header.addresses, header.protocol) {
        (v2::Addresses::IPv4(ends), v2::Protocol::Stream) => Ok(Some(Ends {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        })),
        (v2::Addresses::IPv6(ends), v2::Protocol::Stream) => Ok(Some(Ends {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        })),
        (v2::Addresses::Unspecified, _) => Ok(None),
        (v2::Addresses::IPv4(_) | v2::Addresses::IPv6(_) | v2::Addresses::Unix(_), _) => Err(Error::NotTcp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parse(bytes: &[u8]) -> (Result<Option<Ends>, Error>, usize) {
        let mut rest = bytes;
        let read = read(&mut rest).await;
        (read, rest.len())
    }

    fn v2(version_command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[version_command, family], &length, payload].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x30, 0x39, 0, 21];

    #[tokio::test]
    async fn both_versions_are_read_to_their_last_byte() {
        let ends =
            Ends { source: "192.0.2.1:12345".parse().unwrap(), destination: "10.0.0.1:21".parse().unwrap() };
        let text = b"PROXY TCP4 192.0.2.1 10.0.0.1 12345 21\r\n".to_vec();
        let with_extras = [&V4[..], &[0x04, 0, 2, 0, 0]].concat();
        for header in [text, v2(0x21, 0x11, &V4), v2(0x21, 0x11, &with_extras)] {
            let (read, rest) = parse(&[&header[..], b"USER x\r\n"].concat()).await;
            assert_eq!((read.unwrap(), rest), (Some(ends), 8));
        }
        let text = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n";
        assert_eq!(parse(text).await.0.unwrap().unwrap().source, "[2001:db8::1]:1".parse().unwrap());
        for own in [b"PROXY UNKNOWN\r\n".to_vec(), v2(0x20, 0x00, b""), v2(0x20, 0x11, &V4), v2(0x21, 0, b"")]
        {
            assert_eq!(parse(&own).await.0.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bad in [
            b"USER admin\r\nPASS x\r\n".to_vec(),
            b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.999 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXYTCP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1".to_vec(),
            b"PROXY \xff\xff\xff\xff\xff\xff\xff\r\n".to_vec(),
            v2(0x11, 0x11, &V4),
            v2(0x2f, 0x11, &V4),
            v2(0x21, 0x12, &V4),
            v2(0x21, 0x31, &[0; 216]),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x11, &[0; V2_BYTES_MAX + 1]),
            v2(0x21, 0x11, &V4)[..27].to_vec(),
            b"\r\n\r\n\0\r\n".to_vec(),
            vec![],
        ] {
            let (read, _) = parse(&bad).await;
            assert!(read.is_err(), "{}", bad.escape_ascii());
        }
    }
}
