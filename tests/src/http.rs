//! Metrics and health of a program, asked for by HTTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Server;

/// The table of a configuration that has them served.
pub const TABLE: &str = "[http]\naddress = \"127.0.0.1:0\"\n";

/// Where a program serves them.
pub fn address(server: &Server) -> SocketAddr {
    let log = server.wait_for_log("metrics and health are served");
    let line = log.lines().find(|line| line.contains("metrics and health are served")).expect("it is there");
    let address = line.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next());
    address.and_then(|address| address.parse().ok()).expect("the log tells the address")
}

/// The status and the body.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = get_as(address, path, "*/*");
    (status, body)
}

/// The status, the head and the body, for a client that accepts this.
pub fn get_as(address: SocketAddr, path: &str, accept: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
        .expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// The value of a metric with its labels as they are written, such as `portolan_sessions{listener="a"}`; `None`: it is
/// not there.
pub fn metric(address: SocketAddr, name: &str) -> Option<f64> {
    let (_, body) = get(address, "/metrics");
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok())
}
