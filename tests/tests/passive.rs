//! A few passive ports for many sessions (`passive_ports_shared`).
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, curl, lftp, script, succeed, succeeded, text};
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
    assert!((9..13).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // The late connection comes to nobody.
    assert!(is_closed(TcpStream::connect(SocketAddr::new(address.ip(), left)).unwrap()));
    // Another address is not concerned.
    let source = IpAddr::from([127, 0, 0, 7]);
    let mut other = Control::over(connect_from(source, address).unwrap());
    other.reply();
    other.log_in("admin");
    assert_eq!(other.fetch(&format!("NLST {FOLDER}")).0, 226);
    // The session that waits is served although others come to its port.
    assert!(is_closed(connect_from([127, 0, 0, 8].into(), SocketAddr::new(address.ip(), kept)).unwrap()));
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), kept)).unwrap();
    assert_eq!(first.ask(&format!("NLST {FOLDER}")).0, 150);
    let mut listed = String::new();
    data.read_to_string(&mut listed).unwrap();
    assert_eq!(first.reply().0, 226);
    // A port at which somebody was served is free at once.
    assert_eq!(port_of(&mut second), (229, kept));
    // And the one that was left is, after half a minute in all.
    let mut third = Control::login(address, "admin");
    // Each asks for ten seconds.
    assert!((0..4).any(|_| port_of(&mut third) == (229, left)));
    assert!((28..45).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

/// Has the other end given the connection up?
fn is_closed(mut connection: TcpStream) -> bool {
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    match connection.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn what_is_refused_takes_no_ports_from_others() {
    let cluster = cluster(4, "");
    let address = cluster.frontend.address;
    let mut first = Control::login(address, "admin");
    let mut other = Control::login(address, "admin");
    // The client never comes, so its ports are left: two of them, and not all.
    for _ in 0..2 {
        assert_eq!(port_of(&mut first).0, 229);
        assert_eq!(first.ask(&format!("RETR {FOLDER}/missing")).0, 550);
    }
    assert_eq!(port_of(&mut first).0, 425);
    for _ in 0..5 {
        assert_eq!(other.fetch(&format!("NLST {FOLDER}")).0, 226);
    }
    // One that has come before the refusal is done with.
    let mut early = Control::login(address, "admin");
    for _ in 0..5 {
        let (_, port) = port_of(&mut early);
        let data = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
        assert_eq!(early.ask(&format!("RETR {FOLDER}/missing")).0, 550);
        assert!(is_closed(data));
    }
}

#[test]
fn one_connection_too_many_does_not_shift_those_of_the_sessions_after_it() {
    let cluster = cluster(1, "");
    let address = cluster.frontend.address;
    for name in ["first", "second"] {
        let path = cluster.domains(1).join("one.example/users/alice/folders/INBOX").join(name);
        fs::write(path, name).unwrap();
    }
    let (mut first, mut second) = (Control::login(address, "admin"), Control::login(address, "admin"));
    let (_, port) = port_of(&mut first);
    // Somebody of that address is there before the client.
    let mut stray = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(is_closed(TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap()));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| (port_of(&mut second), Instant::now()));
        std::thread::sleep(Duration::from_millis(500));
        let asked = Instant::now();
        assert_eq!(first.ask(&format!("RETR {FOLDER}/first")).0, 150);
        let mut content = String::new();
        stray.read_to_string(&mut content).unwrap();
        assert_eq!((&content[..], first.reply().0), ("first", 226));
        // The port was the first one's until then.
        let (given, at) = waiting.join().unwrap();
        assert_eq!(given, (229, port));
        assert!(at > asked);
    });
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
    assert_eq!(second.ask(&format!("RETR {FOLDER}/second")).0, 150);
    let mut content = String::new();
    data.read_to_string(&mut content).unwrap();
    assert_eq!((&content[..], second.reply().0), ("second", 226));
}

#[test]
fn sixty_transfers_of_one_address_are_under_way_at_once_through_two_ports() {
    for reuse in ["match-if-offered", "require"] {
        let cluster = cluster(2, &format!("session_reuse = \"{reuse}\""));
        let address = cluster.frontend.address;
        for (version, memory) in [
            ("1.2", "own"),
            ("1.2-without-tickets", "own"),
            ("1.3", "own"),
            ("1.2", "common"),
            ("1.2-without-tickets", "common"),
            ("1.3", "common"),
        ] {
            let mut command = script("python3", "many_sessions.py");
            command.args([address.ip().to_string(), address.port().to_string()]);
            command.arg(cluster.authority()).args([PASSWORD, version, "60", FOLDER, memory]);
            assert_eq!(succeed(&mut command).trim(), "2", "{reuse} {version} {memory}");
            for number in 0..60 {
                let path = cluster.domains(1).join(format!("one.example/users/alice/folders/INBOX/{number}"));
                let stored = fs::read_to_string(&path).unwrap();
                assert_eq!(
                    stored,
                    format!("content of session {number}\n").repeat(100),
                    "{version} {memory}"
                );
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn rclone_with_one_memory_of_tls_for_twenty_connections_copies_each_file_as_it_is() {
    let cluster = cluster(2, "");
    let address = cluster.frontend.address;
    let folder = cluster.domains(1).join("one.example/users/alice/folders/INBOX");
    for number in 0..400 {
        fs::write(folder.join(format!("m{number:05}")), format!("mail {number}\n").repeat(200)).unwrap();
    }
    let secret = succeed(Command::new("rclone").args(["obscure", PASSWORD]));
    let (ip, port, secret) = (address.ip(), address.port(), secret.trim().to_owned());
    for disable_tls13 in [true, false] {
        let remote = format!(
            ":ftp,host={ip},port={port},user=admin,pass={secret},explicit_tls=true,disable_tls13={disable_tls13},\
             encoding=Slash:"
        );
        let (down, up) = (cluster.path().join("down"), "/domains/one.example/users/alice/folders/copy");
        let rclone = |arguments: &[&str]| {
            let mut command = Command::new("timeout");
            command.args(["200", "rclone", "--config", "/dev/null", "--retries", "1", "--transfers", "20"]);
            succeed(command.args(arguments).env("SSL_CERT_FILE", cluster.authority()))
        };
        rclone(&["copy", &format!("{remote}{FOLDER}"), down.to_str().unwrap()]);
        assert_same(&tree::read(&folder), &tree::read(&down));
        rclone(&["copy", down.to_str().unwrap(), &format!("{remote}{up}")]);
        assert_same(&tree::read(&folder), &tree::read(&folder.with_file_name("copy")));
        fs::remove_dir_all(&down).unwrap();
        fs::remove_dir_all(folder.with_file_name("copy")).unwrap();
    }
}

#[test]
fn a_client_that_does_not_prove_itself_where_it_must_is_refused_and_others_are_served() {
    let cluster = cluster(2, "session_reuse = \"require\"");
    let address = cluster.frontend.address;
    let mut waiting = Control::login(address, "admin");
    let (_, port) = port_of(&mut waiting);
    // Garbage at its port, of its own address.
    let mut stray = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
    stray.write_all(b"this is no TLS at all\r\n").unwrap();
    let shown = succeeded(&curl(&cluster, &["--ssl-reqd"], "/domains/one.example/domainRegistry.bin"));
    assert!(shown.starts_with("one.example"));
    assert_eq!(waiting.ask("NOOP").0, 200);
}

#[test]
fn a_reload_keeps_who_waits_and_other_ports_take_a_restart() {
    let cluster = cluster(2, "");
    let address = cluster.frontend.address;
    let mut control = Control::login(address, "admin");
    let (_, port) = port_of(&mut control);
    cluster
        .edit_config(|config| config.replace("passive_ports =", "idle_timeout = \"200s\"\npassive_ports ="));
    assert!(cluster.reload().contains("is changed"));
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
    assert_eq!(control.ask(&format!("NLST {FOLDER}")).0, 150);
    let mut listed = String::new();
    data.read_to_string(&mut listed).unwrap();
    assert_eq!(control.reply().0, 226);
    // Sessions of before would keep the ports from those that come.
    cluster.edit_config(|config| {
        let line = config.lines().find(|line| line.starts_with("passive_ports =")).unwrap().to_owned();
        config.replace(&line, &format!("passive_ports = \"{port}-{}\"", port + 3))
    });
    let refused = text(&cluster.operate(&["reload"]));
    assert!(refused.contains("passive ports that are shared"), "{refused}");
    assert_eq!(Control::login(address, "admin").fetch(&format!("NLST {FOLDER}")).0, 226);
}

#[test]
fn who_hangs_up_while_it_waits_takes_no_port_from_others() {
    let cluster = cluster(1, "");
    let address = cluster.frontend.address;
    let mut holder = Control::login(address, "admin");
    let (_, port) = port_of(&mut holder);
    for _ in 0..4 {
        let mut gone = Control::login(address, "admin");
        gone.send(b"EPSV\r\n").unwrap();
    }
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), port)).unwrap();
    assert_eq!(holder.ask(&format!("NLST {FOLDER}")).0, 150);
    data.read_to_string(&mut String::new()).unwrap();
    assert_eq!(holder.reply().0, 226);
    let begun = Instant::now();
    assert_eq!(Control::login(address, "admin").fetch(&format!("NLST {FOLDER}")).0, 226);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_listener_that_comes_back_has_its_ports_although_a_session_of_before_is_there() {
    let mut cluster = cluster(2, "");
    let own = format!("127.0.0.1:{}", free_port());
    cluster.restart_frontend(|config| {
        config.replace("127.0.0.1:0\"\ncertificate", &format!("{own}\"\ncertificate"))
    });
    let address: SocketAddr = own.parse().unwrap();
    let mut before = Control::login(address, "admin");
    assert_eq!(before.fetch(&format!("NLST {FOLDER}")).0, 226);
    for (from, to) in [(&own[..], "127.0.0.2:0"), ("127.0.0.2:0", &own[..])] {
        cluster.edit_config(|config| config.replace(from, to));
        assert!(cluster.reload().contains("is added"));
    }
    assert_eq!(Control::login(address, "admin").fetch(&format!("NLST {FOLDER}")).0, 226);
    assert_eq!(before.fetch(&format!("NLST {FOLDER}")).0, 226);
}
