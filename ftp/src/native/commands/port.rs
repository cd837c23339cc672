//! How the next data connection comes about: PASV, EPSV, PORT, EPRT (RFC 959, RFC 2428).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use portolan_config::checked::listener::ProxiedData;

use crate::advertised::Advertised;
use crate::native::arrival::{Arrival, Door, Setup};
use crate::native::command::number;
use crate::native::session::{Session, Step};
use crate::native::shared::Guest;
use crate::reply::Reply;

/// Ports below belong to services that a server must not be sent to (RFC 2577 section 3).
const ACTIVE_PORT_MIN: u16 = 1024;

const EPSV_ONLY: &str = "After EPSV ALL there is only EPSV.";

pub(super) async fn pasv(session: &mut Session) -> Step {
    if session.epsv_only {
        return Reply::new(503, EPSV_ONLY).into();
    }
    let address = match session.service.advertised.address(&session.origin) {
        Advertised::Address(address) => address,
        Advertised::Ipv6 => return Reply::new(425, "PASV supports IPv4 only; use EPSV.").into(),
        Advertised::Unresolved => {
            return Reply::new(425, "The address for PASV is not known yet; use EPSV, or try again.").into();
        }
    };
    match listen(session).await {
        Ok(port) => {
            let [a, b, c, d] = address.octets();
            let [high, low] = port.to_be_bytes();
            Reply::with(227, format!("Entering Passive Mode ({a},{b},{c},{d},{high},{low}).")).into()
        }
        Err(reply) => reply.into(),
    }
}

pub(super) async fn epsv(session: &mut Session, argument: &[u8]) -> Step {
    if argument.eq_ignore_ascii_case(b"ALL") {
        session.epsv_only = true;
        return Reply::new(200, "EPSV ALL accepted.").into();
    }
    // EPSV names no address, so the client would come to the balancer.
    let direct = session.service.listener.proxy_protocol.data == ProxiedData::Direct;
    if session.origin.balancer.is_some() && direct {
        return Reply::new(502, "EPSV is not available behind this load balancer; use PASV.").into();
    }
    let own = protocol(session.origin.contacted);
    if !argument.is_empty() && number(argument).is_none() {
        return Reply::new(501, "Syntax: EPSV, EPSV 1, EPSV 2, EPSV ALL.").into();
    }
    if !argument.is_empty() && argument != own.as_bytes() {
        return Reply::with(522, format!("Network protocol not supported, use ({own}).")).into();
    }
    match listen(session).await {
        Ok(port) => Reply::with(229, format!("Entering Extended Passive Mode (|||{port}|).")).into(),
        Err(reply) => reply.into(),
    }
}

/// The number of a network protocol (RFC 2428 section 2).
fn protocol(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "1" } else { "2" }
}

/// Waits for the client on a port; an earlier one is given up.
async fn listen(session: &mut Session) -> Result<u16, Reply> {
    session.setup = Setup::None;
    // It may have the only port.
    session.parting = None;
    let listening = match session.service.shared_ports.clone() {
        Some(ports) => {
            let guest = Guest { session: session.id, is_protected: session.modes.protected };
            let is_gone = || session.control.is_closed_by_client();
            let placed = ports.place(&session.origin, guest, is_gone).await;
            placed.map(|slot| (slot.port(), Door::Shared(slot)))
        }
        None => session.service.passive.listen(session.origin.own).and_then(|listener| {
            let port = listener.local_addr()?.port();
            Ok((port, Door::Own(listener)))
        }),
    };
    match listening {
        Ok((port, door)) => {
            let arrival = Arrival::new(door, &session.service, session.origin, session.tls.as_ref());
            session.setup = Setup::Passive(arrival);
            Ok(port)
        }
        Err(error) => {
            tracing::warn!(session = %session.id, %error, "no passive port");
            Err(Reply::new(425, "No passive port is free; try again."))
        }
    }
}

pub(super) fn port(session: &mut Session, argument: &[u8]) -> Step {
    let numbers: Option<Vec<u8>> = argument
        .split(|byte| *byte == b',')
        .map(|word| number(word.trim_ascii()).and_then(|number| u8::try_from(number).ok()))
        .collect();
    let Some([a, b, c, d, high, low]) = numbers.as_deref() else {
        return Reply::new(501, "Syntax: PORT h1,h2,h3,h4,p1,p2.").into();
    };
    let address = Ipv4Addr::new(*a, *b, *c, *d);
    active(session, SocketAddr::new(address.into(), u16::from_be_bytes([*high, *low])))
}

pub(super) fn eprt(session: &mut Session, argument: &[u8]) -> Step {
    match parse_eprt(argument) {
        Ok(address) => active(session, address),
        Err(reply) => reply.into(),
    }
}

/// `|1|192.0.2.1|5000|`, with any delimiter.
fn parse_eprt(argument: &[u8]) -> Result<SocketAddr, Reply> {
    let syntax = || Reply::new(501, "Syntax: EPRT |1|IPv4 address|port|, EPRT |2|IPv6 address|port|.");
    let [delimiter, rest @ ..] = argument else { return Err(syntax()) };
    let words: Vec<&[u8]> = rest.split(|byte| byte == delimiter).collect();
    let [protocol, address, port, b""] = &words[..] else { return Err(syntax()) };
    let address = std::str::from_utf8(address).ok().and_then(|text| text.parse::<IpAddr>().ok());
    let port = number(port).and_then(|port| u16::try_from(port).ok());
    match (*protocol, address.zip(port)) {
        (b"1", Some((IpAddr::V4(address), port))) => Ok(SocketAddr::new(address.into(), port)),
        (b"2", Some((IpAddr::V6(address), port))) => Ok(SocketAddr::new(address.into(), port)),
        (b"1" | b"2", _) => Err(syntax()),
        (other, _) if number(other).is_none() => Err(syntax()),
        _ => Err(Reply::new(522, "Network protocol not supported, use (1,2).")),
    }
}

/// We connect to the client, and to nobody else (RFC 2577: no bounce).
fn active(session: &mut Session, address: SocketAddr) -> Step {
    if session.epsv_only {
        return Reply::new(503, EPSV_ONLY).into();
    }
    if !session.service.listener.active {
        return Reply::new(502, "Active data connections are not served here; use PASV or EPSV.").into();
    }
    if address.ip().to_canonical() != session.origin.client.ip() || address.port() < ACTIVE_PORT_MIN {
        tracing::warn!(session = %session.id, %address, "a data connection to another address or service was refused");
        return Reply::new(504, "The address must be your own and the port 1024 or above.").into();
    }
    session.setup = Setup::Active(address);
    Reply::new(200, "OK; the server will open the data connection.").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_eprt_are_checked() {
        for bad in [
            &b"|"[..],
            b"|1|127.0.0.1|1",
            b"|1|127.0.0.1|1|x",
            b"|1|::1|1|",
            b"|2|127.0.0.1|1|",
            b"|1|127.0.0.1|65536|",
            b"|1||1|",
            b"||||",
            b"|x|127.0.0.1|1|",
            b"",
        ] {
            assert_eq!(parse_eprt(bad).unwrap_err().code, 501, "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(parse_eprt(b"|3|x|1|").unwrap_err().code, 522);
        assert_eq!(parse_eprt(b"|1|127.0.0.1|2000|"), Ok("127.0.0.1:2000".parse().unwrap()));
        assert_eq!(parse_eprt(b"!2!::1!2000!"), Ok("[::1]:2000".parse().unwrap()));
    }
}
