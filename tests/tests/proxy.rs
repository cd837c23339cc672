//! Behind a load balancer that speaks the PROXY protocol: HAProxy, and what comes from one that is broken.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, succeed, succeeded, text};
use portolan_tests::{Cluster, PASSWORD, eventually, tree};

/// Ports that the front end has at its address, and HAProxy at its own.
const PASSIVE: &str = "30100-30149";

/// A cluster whose front end trusts HAProxy, at addresses of its own: tests run side by side, and two of HAProxy would
/// share their ports.
struct Balanced {
    cluster: Cluster,
    front: IpAddr,
    /// HAProxy as its clients see it, and as the front end sees it.
    balancer: IpAddr,
    inside: IpAddr,
}

impl std::ops::Deref for Balanced {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// Behind a balancer TLS is required by default, because clients come from anywhere.
const PLAINTEXT: &str = "tls_required = false\ninsecure = true\n";

/// HAProxy before the front end of a cluster. Killed when dropped.
struct HaProxy {
    child: Child,
    address: SocketAddr,
}

impl HaProxy {
    /// `control` and `data` are options of its connections to the front end.
    fn start(cluster: &Balanced, control: &str, data: &str) -> Self {
        let Balanced { front, balancer, inside, .. } = cluster;
        let free = TcpListener::bind((*balancer, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let address_inside = cluster.frontend.address;
        let config = format!(
            "global\n  maxconn 2000\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             listen ftp\n  bind {address}\n  source {inside}\n  server front {address_inside} {control} check inter 300ms\n\
             listen data\n  bind {balancer}:{PASSIVE}\n  source {inside}\n  server front {front} {data}\n"
        );
        let file = cluster.path().join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`tests/run` installs haproxy");
        eventually("HAProxy listens", || TcpStream::connect(address).ok());
        Self { child, address }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn cluster(keys: &str, data: &str) -> Balanced {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let net = NEXT.fetch_add(1, Ordering::Relaxed);
    let [front, balancer, inside] = [60, 61, 62].map(|last| IpAddr::from([127, 0, net, last]));
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        config
            .replace("address = \"127.0.0.1:0\"", &format!("address = \"{front}:0\""))
            .replace(
                "passive_ports = \"20000-29999\"",
                &format!(
                    "passive_ports = \"{PASSIVE}\"\n{PLAINTEXT}{}",
                    keys.replace("FRONTEND", &front.to_string())
                ),
            )
            .replace(
                "[admins]",
                &format!("[listeners.proxy_protocol]\ntrusted = [\"{inside}\"]\ndata = \"{data}\"\n[admins]"),
            )
    });
    Balanced { cluster, front, balancer, inside }
}

/// curl as `admin` from an address of its own. The certificate does not name the balancer: `--insecure` for TLS.
fn curl(from: &str, cluster: &Balanced, arguments: &[&str], address: SocketAddr, path: &str) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--verbose", "--max-time", "30", "--interface", from])
        .args(["--user", &format!("admin:{PASSWORD}"), "--cacert"])
        .arg(cluster.authority())
        .args(arguments)
        .arg(format!("ftp://{address}{path}"));
    command
}

const FILE: &str = "/domains/one.example/domainRegistry.bin";

#[test]
fn behind_haproxy_data_goes_through_it_and_rules_and_limits_are_of_the_client() {
    let rules = "access = [{ allow = \"127.0.0.0/29\" }, { deny = \"127.0.0.5\", priority = 1 }]\n\
                 limits = { simultaneous_per_address = 3 }";
    for (control, data, way, shared) in [
        ("send-proxy-v2", "send-proxy-v2", "header", false),
        ("send-proxy", "send-proxy", "header", true),
        ("send-proxy-v2", "", "bare", false),
        ("send-proxy-v2", "", "bare", true),
    ] {
        // Without it, connections of all clients of the balancer would be alike.
        let needs_proof = shared && way == "bare";
        let proof = if needs_proof { "session_reuse = \"require\"\ntls_data_required = true" } else { "" };
        let keys = format!("{rules}\npassive_ports_shared = {shared}\n{proof}");
        let cluster = cluster(&keys, way);
        let balancer = HaProxy::start(&cluster, control, data);
        // PASV and EPSV, in plaintext and with TLS, both ways.
        for arguments in [&["--disable-epsv"][..], &[], &["--ssl-reqd", "--insecure"]] {
            if needs_proof && !arguments.contains(&"--ssl-reqd") {
                continue;
            }
            let shown = succeed(&mut curl("127.0.0.3", &cluster, arguments, balancer.address, FILE));
            assert!(shown.starts_with("one.example"), "{shown}");
            if arguments == ["--disable-epsv"] {
                let named = cluster.balancer.to_string().replace('.', ",");
                assert!(shown.contains(&format!("227 Entering Passive Mode ({named},117,")), "{shown}");
            }
        }
        let local = cluster.path().join("up");
        fs::write(&local, vec![b'x'; 3 << 20]).unwrap();
        let upload = ["--ssl-reqd", "--insecure", "--upload-file", &local.to_string_lossy()];
        succeed(&mut curl("127.0.0.3", &cluster, &upload, balancer.address, "/domains/one.example/up"));
        assert_eq!(fs::metadata(cluster.domains(1).join("one.example/up")).unwrap().len(), 3 << 20);
        // The rules are those for the client's address, not for HAProxy's, which no rule allows.
        let denied = curl("127.0.0.5", &cluster, &[], balancer.address, FILE).output().unwrap();
        assert!(
            text(&denied).contains("421 Connections from your address are not accepted here."),
            "{}",
            text(&denied)
        );
        let connect = |from: [u8; 4]| {
            let mut control = Control::over(connect_from(IpAddr::from(from), balancer.address).unwrap());
            (control.reply(), control)
        };
        let _held: Vec<_> = (0..3)
            .map(|_| {
                let (reply, control) = connect([127, 0, 0, 4]);
                assert_eq!(reply.0, 220);
                control
            })
            .collect();
        assert!(connect([127, 0, 0, 4]).0.1.starts_with("421 Your address has 3 connections"));
        let (reply, mut other) = connect([127, 0, 0, 6]);
        assert_eq!(reply.0, 220);
        other.log_in("admin");
        let shown = succeeded(&cluster.operate(&["status"]));
        assert!(
            shown.contains(&format!(" by {} ", cluster.inside)) && shown.contains("  127.0.0.6:"),
            "{shown}"
        );
    }
}

#[test]
fn data_may_come_from_the_client_itself_where_only_the_control_connection_is_balanced() {
    let cluster = cluster("passive_address = \"FRONTEND\"", "direct");
    let balancer = HaProxy::start(&cluster, "send-proxy-v2", "");
    // EPSV would lead to the balancer; curl goes on with PASV.
    let arguments = ["--no-ftp-skip-pasv-ip"];
    let shown = succeed(&mut curl("127.0.0.3", &cluster, &arguments, balancer.address, FILE));
    assert!(shown.contains("< 502 EPSV is not available behind this load balancer"), "{shown}");
    let named = cluster.front.to_string().replace('.', ",");
    assert!(shown.contains(&format!("227 Entering Passive Mode ({named},")), "{shown}");
    assert!(shown.starts_with("one.example"), "{shown}");
    // Who comes by itself is served as always.
    assert_eq!(Control::login(cluster.frontend.address, "admin").fetch(&format!("RETR {FILE}")).0, 226);
}

#[test]
fn a_header_where_none_is_awaited_is_never_stored() {
    for options in ["send-proxy", "send-proxy-v2"] {
        let cluster = cluster("", "bare");
        let balancer = HaProxy::start(&cluster, "send-proxy-v2", options);
        let local = cluster.path().join("up");
        fs::write(&local, "content").unwrap();
        let stored = cluster.domains(1).join("one.example/up");
        fs::write(&stored, "old").unwrap();
        let upload = ["--upload-file", &local.to_string_lossy()];
        let refused = curl("127.0.0.3", &cluster, &upload, balancer.address, "/domains/one.example/up");
        let refused = { refused }.output().unwrap();
        assert!(!refused.status.success() && text(&refused).contains("< 426 "), "{}", text(&refused));
        assert_eq!(fs::read(&stored).unwrap(), b"old");
        cluster.frontend.wait_for_log("proxy_protocol.data must be");
    }
    // And on a control connection from an address that is not trusted.
    let cluster = cluster("", "header");
    for header in
        [&b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c0123456789ab"]
    {
        let mut stranger = Control::connect(cluster.frontend.address);
        stranger.send(header).unwrap();
        assert_eq!(stranger.reply().0, 421);
    }
    cluster
        .frontend
        .wait_for_log("a PROXY header came from an address that is not in proxy_protocol.trusted");
}

#[test]
fn health_checks_of_the_balancer_are_neither_counted_nor_refused_nor_logged() {
    let cluster = cluster("access = [{ allow = \"127.0.0.3\" }]", "header");
    let balancer = HaProxy::start(&cluster, "send-proxy-v2", "send-proxy-v2");
    succeed(&mut curl("127.0.0.3", &cluster, &[], balancer.address, FILE));
    let mut check = connect_from(cluster.inside, cluster.frontend.address).unwrap();
    check.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    let mut check = Control::over(check);
    assert_eq!(check.reply().0, 220);
    // Some checks of HAProxy, every 300 ms.
    std::thread::sleep(Duration::from_secs(2));
    let shown = succeeded(&cluster.operate(&["status"]));
    assert!(shown.contains(" 1/600 in 60 s"), "curl's connection alone: {shown}");
    let log = cluster.frontend.log();
    let lines = log.lines().filter(|line| line.contains(&cluster.inside.to_string())).count();
    assert_eq!(lines, 0, "{log}");
}

#[test]
fn the_library_is_served_behind_haproxy_too() {
    let cluster = cluster("engine = \"libunftp\"", "bare");
    let balancer = HaProxy::start(&cluster, "send-proxy-v2", "");
    for arguments in [&["--disable-epsv"][..], &["--ssl-reqd", "--insecure"]] {
        let shown = succeed(&mut curl("127.0.0.3", &cluster, arguments, balancer.address, FILE));
        assert!(shown.starts_with("one.example"), "{shown}");
    }
    // The client's own address is logged.
    cluster.frontend.wait_for_log("\"client\":\"127.0.0.3:");
}

#[test]
fn a_data_connection_for_another_client_is_not_taken() {
    let cluster = cluster("", "header");
    let balancer = HaProxy::start(&cluster, "send-proxy-v2", "send-proxy-v2");
    let mut control = Control::over(connect_from([127, 0, 0, 3].into(), balancer.address).unwrap());
    assert_eq!(control.reply().0, 220);
    control.log_in("admin");
    let (code, said) = control.ask("EPSV");
    assert_eq!(code, 229);
    let port: u16 = said.split('|').nth(3).unwrap().parse().unwrap();
    // Another client of the balancer, one that claims to be a balancer, and one without a header.
    let data_port = SocketAddr::new(cluster.balancer, port);
    let front_port = SocketAddr::new(cluster.front, port);
    let mut foreign = connect_from([127, 0, 0, 4].into(), data_port).unwrap();
    let mut forged = connect_from([127, 0, 0, 4].into(), front_port).unwrap();
    forged.write_all(b"PROXY TCP4 127.0.0.3 127.0.0.1 1 2\r\n").unwrap();
    let mut bare = connect_from(cluster.inside, front_port).unwrap();
    bare.write_all(b"no header at all").unwrap();
    let mut own = connect_from([127, 0, 0, 3].into(), data_port).unwrap();
    assert_eq!(control.ask(&format!("RETR {FILE}")).0, 150);
    let mut content = String::new();
    own.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one.example");
    assert_eq!(control.reply().0, 226);
    for stranger in [&mut foreign, &mut forged, &mut bare] {
        stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut nothing = Vec::new();
        // Closed, or reset because it had sent something.
        stranger.read_to_end(&mut nothing).ok();
        assert_eq!(nothing, b"");
    }
}

#[test]
fn from_a_trusted_address_only_a_good_header_is_served_and_from_others_none_is_believed() {
    let cluster = cluster("handshake_timeout = \"1s\"\nlimits = { simultaneous_per_address = 2 }", "header");
    let address = cluster.frontend.address;
    let trusted = || connect_from(cluster.inside, address).unwrap();
    let v2 = |length: u16| [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &length.to_be_bytes()].concat();
    for bad in [
        b"USER admin\r\nPASS x\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4\r\n".to_vec(),
        [&b"PROXY "[..], &[b'A'; 500]].concat(),
        v2(65_535),
        v2(3),
        vec![0; 64],
    ] {
        let mut stream = trusted();
        stream.write_all(&bad).unwrap();
        // A short header may be waited for.
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert_eq!(answer.escape_ascii().to_string(), "", "{}", bad.escape_ascii());
    }
    let started = Instant::now();
    let mut silent = trusted();
    silent.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(5));

    // In pieces, and followed by a command at once.
    let mut slow = trusted();
    for piece in b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 21\r\nNOOP\r\n".chunks(7) {
        slow.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut slow = Control::over(slow);
    assert_eq!(slow.reply().0, 220);
    assert_eq!(slow.reply().0, 200);
    let (_, said) = slow.ask("USER admin");
    assert!(said.starts_with("331"), "{said}");
    slow.ask(&format!("PASS {PASSWORD}"));
    let (_, said) = slow.ask("PASV");
    assert!(said.contains("(192,0,2,1,"), "what the client connected to: {said}");

    // Clients behind one balancer are told apart.
    let behind = |family: &str, client: &str| {
        let mut stream = trusted();
        let contacted = if family == "TCP4" { "192.0.2.1" } else { "2001:db8::1" };
        stream.write_all(format!("PROXY {family} {client} {contacted} 4000 21\r\n").as_bytes()).unwrap();
        let mut control = Control::over(stream);
        (control.reply(), control)
    };
    let held = ["192.0.2.9", "192.0.2.10", "192.0.2.10"].map(|client| behind("TCP4", client));
    assert!(held.iter().all(|((code, _), _)| *code == 220));
    assert!(behind("TCP4", "192.0.2.10").0.1.starts_with("421 Your address has 2 connections"));
    // IPv6 clients count by their network.
    let held = ["2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1"].map(|client| behind("TCP6", client));
    assert!(held.iter().all(|((code, _), _)| *code == 220));
    assert_eq!(behind("TCP6", "2001:db8:0:1:ffff::3").0.0, 421);
    let log = cluster.frontend.wait_for_log("connection closed: no good PROXY header");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn haproxy_may_carry_the_header_and_implicit_tls() {
    let cluster = cluster("tls = \"implicit\"", "header");
    let balancer = HaProxy::start(&cluster, "send-proxy-v2", "send-proxy-v2");
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "30", "--interface", "127.0.0.3", "--cacert"])
        .arg(cluster.authority())
        .args(["--insecure", "--user", &format!("admin:{PASSWORD}")])
        .arg(format!("ftps://{}{FILE}", balancer.address))
        .output()
        .unwrap();
    assert_eq!(succeeded(&output), "one.example");
}
