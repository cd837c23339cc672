//! A few passive ports for many sessions (`passive_ports_shared`).
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, curl, lftp, script, succeed, succeeded};
use portolan_tests::tree::{self, assert_same};
use portolan_tests::{Cluster, PASSWORD, free_port};

const FOLDER: &str = "/domains/one.example/users/alice/folders/INBOX";

/// A cluster whose passive ports are `count`, shared.
fn cluster(count: u16, keys: &str) -> Cluster {
    let mut cluster = Cluster::start(tree::fill);
    // Below those that the system gives away.
    let first = 10_000 + free_port() % 10_000;
    let ports =
        format!("passive_ports = \"{first}-{}\"\npassive_ports_shared = true\n{keys}", first + count - 1);
    cluster.restart_frontend(|config| {
        let limits =
            "limits = { simultaneous = 0, simultaneous_per_address = 0, new = 0, new_per_address = 0 }";
        let raised = config.replace("passive_ports = \"20000-29999\"", &format!("{ports}\n{limits}"));
        let limits = "simultaneous = 0\nsimultaneous_per_address = 0\nnew = 0\nnew_per_address = 0\n";
        format!("{raised}[global.limits]\n{limits}[ftp.limits]\n{limits}")
    });
    cluster
}

fn port_of(control: &mut Control) -> (u16, u16) {
    let (code, text) = control.ask("EPSV");
    (code, text.split('|').nth(3).and_then(|port| port.parse().ok()).unwrap_or_default())
}

#[test]
fn eight_ports_serve_four_hundred_sessions_of_fifty_addresses_at_once() {
    let cluster = cluster(8, "");
    let address = cluster.frontend.address;
    for number in 0..400 {
        let path = cluster.domains(1).join(format!("one.example/users/alice/folders/INBOX/{number}"));
        fs::write(path, format!("mail {number}")).unwrap();
    }
    let mut ports = BTreeSet::new();
    // Each address has as many sessions as there are ports, and all of them wait before the first one transfers.
    let mut waiting: Vec<(u32, IpAddr, Control, u16)> = Vec::new();
    for number in 0..400_u32 {
        let source = IpAddr::from([127, 1, 0, u8::try_from(1 + number / 8).unwrap()]);
        let mut control = Control::over(connect_from(source, address).unwrap());
        assert_eq!(control.reply().0, 220);
        control.log_in("admin");
        let (code, port) = port_of(&mut control);
        assert_eq!(code, 229);
        ports.insert(port);
        waiting.push((number, source, control, port));
    }
    // The last ones first, so that no order helps.
    for (number, source, control, port) in waiting.iter_mut().rev() {
        let mut data = connect_from(*source, SocketAddr::new(address.ip(), *port)).unwrap();
        assert_eq!(control.ask(&format!("RETR {FOLDER}/{number}")).0, 150);
        let mut content = String::new();
        data.read_to_string(&mut content).unwrap();
        assert_eq!((content, control.reply().0), (format!("mail {number}"), 226));
    }
    assert_eq!(ports.len(), 8);
}

#[test]
fn sessions_of_one_address_take_turns_and_content_never_crosses() {
    let cluster = cluster(2, "");
    let address = cluster.frontend.address;
    std::thread::scope(|scope| {
        for number in 0..16 {
            scope.spawn(move || {
                let mut control = Control::login(address, "admin");
                for step in 0..25 {
                    let (path, content) = (format!("{FOLDER}/{number}-{step}"), format!("{number} {step}"));
                    assert_eq!(control.store(&path, content.as_bytes()), 226);
                    assert_eq!(control.fetch(&format!("RETR {path}")), (226, content.into_bytes()));
                }
            });
        }
    });
    let backup = cluster.path().join("backup");
    succeeded(&lftp(&cluster, &format!("mirror --parallel=8 /domains/one.example {}", backup.display())));
    assert_same(&tree::read(&cluster.domains(1).join("one.example")), &tree::read(&backup));
}

#[test]
fn a_port_that_was_left_is_given_to_nobody_else_of_that_address_for_a_while() {
    let cluster = cluster(2, "");
    let address = cluster.frontend.address;
    let mut first = Control::login(address, "admin");
    let (_, left) = port_of(&mut first);
    let (_, kept) = port_of(&mut first);
    assert_ne!(left, kept);
    // One port is left, the other one taken: there is none for another session of this address.
    let mut second = Control::login(address, "admin");
    let begun = Instant::now();
    let (code, _) = port_of(&mut second);
    assert_eq!(code, 425);
    assert!((4..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // The late connection comes to nobody.
    let mut late = TcpStream::connect(SocketAddr::new(address.ip(), left)).unwrap();
    late.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(late.write_all(b"x").is_err() || matches!(late.read(&mut [0; 1]), Ok(0) | Err(_)));
    // Another address is not concerned.
    let source = IpAddr::from([127, 0, 0, 7]);
    let mut other = Control::over(connect_from(source, address).unwrap());
    other.reply();
    other.log_in("admin");
    assert_eq!(other.fetch(&format!("NLST {FOLDER}")).0, 226);
    // The session that waits is served although others come to its port.
    let stranger = connect_from([127, 0, 0, 8].into(), SocketAddr::new(address.ip(), kept)).unwrap();
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), kept)).unwrap();
    assert_eq!(first.ask(&format!("NLST {FOLDER}")).0, 150);
    let mut listed = String::new();
    data.read_to_string(&mut listed).unwrap();
    assert_eq!(first.reply().0, 226);
    drop(stranger);
    // A port at which somebody was served is free at once.
    assert_eq!(port_of(&mut second), (229, kept));
}

#[test]
fn sessions_that_share_address_and_port_are_told_apart_by_the_tls_session_that_they_resume() {
    let cluster = cluster(2, "session_reuse = \"require\"");
    let address = cluster.frontend.address;
    for version in ["1.2", "1.2-without-tickets", "1.3"] {
        let mut command = script("python3", "many_sessions.py");
        command.args([address.ip().to_string(), address.port().to_string()]);
        command.arg(cluster.authority()).args([PASSWORD, version, "60", FOLDER]);
        assert_eq!(succeed(&mut command).trim(), "2", "{version}");
    }
    let stored: BTreeMap<_, _> = (0..60)
        .map(|number| {
            let path = cluster.domains(1).join(format!("one.example/users/alice/folders/INBOX/{number}"));
            (number, fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(
        stored.iter().all(|(number, text)| *text == format!("content of session {number}\n").repeat(100))
    );
}

#[test]
fn a_connection_that_does_not_tell_whose_it_is_comes_to_nobody() {
    let cluster = cluster(1, "session_reuse = \"require\"");
    let address = cluster.frontend.address;
    // Two sessions at the only port; then connections that say nothing, garbage, and a half of a ClientHello.
    let mut command = script("python3", "two_at_one_port.py");
    command.args([address.ip().to_string(), address.port().to_string()]);
    command.arg(cluster.authority()).args([PASSWORD, FOLDER]);
    assert_eq!(succeed(&mut command).trim(), "226 226");
    let log = cluster.frontend.wait_for_log("it does not tell whose it is");
    assert!(!log.contains("panicked"), "{log}");
    // With real clients.
    let shown = succeeded(&curl(&cluster, &["--ssl-reqd"], "/domains/one.example/domainRegistry.bin"));
    assert!(shown.starts_with("one.example"));
}

#[test]
fn a_reload_keeps_who_waits_and_may_take_more_ports() {
    let cluster = cluster(1, "");
    let address = cluster.frontend.address;
    let mut control = Control::login(address, "admin");
    let (_, port) = port_of(&mut control);
    cluster.edit_config(|config| config.replace(&format!("{port}-{port}"), &format!("{port}-{}", port + 3)));
    cluster.reload();
    let mut other = Control::login(address, "admin");
    assert_eq!(other.fetch(&format!("NLST {FOLDER}")).0, 226);
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
    assert_eq!(control.ask(&format!("NLST {FOLDER}")).0, 150);
    let mut listed = String::new();
    data.read_to_string(&mut listed).unwrap();
    assert_eq!(control.reply().0, 226);
}
