//! The gate, setting by setting: who may connect, how often, how long, and what is said to those who may not.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, curl_over, lftp, succeed, succeeded, text};
use portolan_tests::client::{Protection, curl};
use portolan_tests::{Cluster, PASSWORD, eventually, program, tree};

/// A cluster whose listener has these keys, and whose file ends with these tables.
fn cluster(keys: &str, tables: &str) -> Cluster {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        config.replace("passive_ports", &format!("{keys}\npassive_ports")) + tables
    });
    cluster
}

fn loopback(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

/// Connects from an address; the first line, and the connection.
fn greeting(source: IpAddr, address: SocketAddr) -> (String, Control) {
    let mut control = Control::over(connect_from(source, address).unwrap());
    let (_, line) = control.reply();
    (line, control)
}

/// As many connections from an address as are let in, up to `most`, and the refusal that came then.
fn fill(source: IpAddr, address: SocketAddr, most: usize) -> (Vec<Control>, String) {
    let mut held = Vec::new();
    while held.len() < most {
        let (line, control) = greeting(source, address);
        if !line.starts_with("220 ") {
            return (held, line);
        }
        held.push(control);
    }
    (held, String::new())
}

#[test]
fn without_rules_everybody_may_connect_and_an_empty_list_denies_all() {
    let mut cluster = cluster("", "");
    assert!(greeting(loopback(7), cluster.frontend.address).0.starts_with("220 "));
    cluster.restart_with("access = []");
    let line = greeting(loopback(1), cluster.frontend.address).0;
    assert_eq!(line, "421 Connections from your address are not accepted here.");
    cluster.frontend.wait_for_log("connection refused: access rules");
}

#[test]
fn the_rules_of_the_listener_count_instead_of_those_of_ftp_and_these_instead_of_the_global_ones() {
    let global = "[global]\naccess = [{ allow = \"127.0.0.1\" }]\n";
    let ftp =
        "[ftp]\naccess = [{ allow = \"127.0.0.2-127.0.0.3\" }, { deny = \"127.0.0.3\", priority = 500 }]\n";
    let own = "access = [{ allow = \"127.0.0.0/8\" }, { deny = \"127.0.0.4\", priority = 499 }, \
               { deny = \"127.0.0.5\", priority = 501 }]";
    for (keys, tables, allowed, denied) in [
        ("", global.to_owned(), vec![1], vec![2, 3, 4]),
        ("", format!("{global}{ftp}"), vec![2], vec![1, 3, 4]),
        (own, format!("{global}{ftp}"), vec![1, 2, 3, 5], vec![4]),
    ] {
        let cluster = cluster(keys, &tables);
        for (last, expected) in
            allowed.into_iter().map(|last| (last, "220")).chain(denied.into_iter().map(|last| (last, "421")))
        {
            let line = greeting(loopback(last), cluster.frontend.address).0;
            assert!(line.starts_with(expected), "{keys} {tables} 127.0.0.{last}: {line}");
        }
    }
}

#[test]
fn a_client_by_ipv4_at_a_listener_for_both_families_meets_the_rules_of_ipv4() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        let keys = "address = \"[::]:0\"\ninsecure = true\ntls_required = false\n\
                    access = [{ allow = \"127.0.0.0/30\" }, { allow = \"::1\" }]";
        config.replacen("address = \"127.0.0.1:0\"", keys, 1)
    });
    let port = cluster.frontend.address.port();
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
    assert!(greeting(loopback(1), at("127.0.0.1")).0.starts_with("220 "));
    assert!(greeting(loopback(9), at("127.0.0.1")).0.starts_with("421 "));
    let mut control = Control::over(TcpStream::connect(at("::1")).unwrap());
    assert_eq!(control.reply().0, 220);
    control.log_in("admin");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    let url = format!("ftp://[::1]:{port}/domains/one.example/domainRegistry.bin");
    let user = format!("admin:{PASSWORD}");
    assert_eq!(succeed(Command::new("curl").args(["--silent", "--user", &user, &url])), "one.example");
}

#[test]
fn each_limit_holds_at_each_scope_and_the_refusal_names_it() {
    let refusals = [
        ("simultaneous = 3", 3, "All 3 connections of PLACE are in use"),
        ("simultaneous_per_address = 3", 3, "Your address has 3 connections, as many as PLACE allows"),
        ("new = 3", 3, "3 connections came within 60 s, as many as PLACE allows"),
        (
            "new_per_address = 3",
            3,
            "3 connections came from your address within 60 s, as many as PLACE allows",
        ),
    ];
    for (limit, most, refusal) in refusals {
        for (keys, tables, place) in [
            (format!("limits = {{ {limit} }}"), String::new(), "this listener"),
            (String::new(), format!("[ftp.limits]\n{limit}\n"), "the FTP service"),
            (String::new(), format!("[global.limits]\n{limit}\n"), "this server"),
            (
                format!("access = [{{ allow = \"all\", limits = {{ {limit} }} }}]"),
                String::new(),
                "the access rule for your address",
            ),
        ] {
            let cluster = cluster(&keys, &tables);
            let address = cluster.frontend.address;
            let (held, refused) = fill(loopback(1), address, 10);
            let expected = format!("421 {}; try again later.", refusal.replace("PLACE", place));
            assert_eq!((held.len(), &*refused), (most, &*expected), "{keys} {tables}");
            let other = greeting(loopback(2), address).0;
            let by_address = limit.contains("per_address");
            assert_eq!(other.starts_with("220 "), by_address, "{keys} {tables}: {other}");
            drop(held);
            // A limit on new connections does not come free with them.
            if limit.starts_with("new") {
                assert_eq!(greeting(loopback(1), address).0, expected);
                continue;
            }
            eventually("the places come free", || {
                greeting(loopback(1), address).0.starts_with("220 ").then_some(())
            });
        }
    }
}

#[test]
fn by_default_an_address_may_have_20_connections_and_0_is_no_limit() {
    let mut cluster = cluster("", "");
    let (held, refused) = fill(loopback(1), cluster.frontend.address, 30);
    assert_eq!(held.len(), 20);
    assert!(refused.starts_with("421 Your address has 20 connections"), "{refused}");
    assert!(greeting(loopback(2), cluster.frontend.address).0.starts_with("220 "));
    let shown = succeeded(&cluster.operate(&["status"]));
    assert!(shown.contains("600 in 60 s") && shown.contains("20/20"), "{shown}");
    drop(held);
    let none = "simultaneous = 0\nsimultaneous_per_address = 0\nnew = 0\nnew_per_address = 0\n";
    cluster.restart_frontend(|config| {
        let own = "limits = { simultaneous = 0, simultaneous_per_address = 0, new = 0, new_per_address = 0 }";
        config.replace("passive_ports", &format!("{own}\npassive_ports"))
            + &format!("[ftp.limits]\n{none}[global.limits]\n{none}")
    });
    assert_eq!(fill(loopback(1), cluster.frontend.address, 700).0.len(), 700);
}

#[test]
fn a_rule_gives_a_host_more_than_others_have() {
    let keys = "access = [{ allow = \"all\" }, { allow = \"127.0.0.2\", priority = 1, \
                limits = { simultaneous_per_address = 25 } }]";
    let cluster = cluster(keys, "");
    let address = cluster.frontend.address;
    assert_eq!(fill(loopback(2), address, 50).0.len(), 25);
    assert_eq!(fill(loopback(1), address, 50).0.len(), 20);
}

#[test]
fn with_implicit_tls_a_client_is_refused_inside_tls() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        config.replace("passive_ports", "tls = \"implicit\"\naccess = []\npassive_ports")
    });
    let address = cluster.frontend.address;
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--verbose", "--max-time", "20", "--cacert"])
        .arg(cluster.authority())
        .args(["--user", &format!("admin:{PASSWORD}"), &format!("ftps://{address}/")])
        .output()
        .unwrap();
    let shown = text(&output);
    assert!(shown.contains("< 421 Connections from your address are not accepted here."), "{shown}");
}

/// What a session may get wrong: the default, another number, and no limit.
#[test]
fn too_many_wrong_commands_end_the_session() {
    for (tables, limit) in [
        ("", Some(20)),
        ("[ftp.errors]\nwrong_commands_max = 3\n", Some(3)),
        ("[global.errors]\nwrong_commands_max = 4\n", Some(4)),
        ("[ftp.errors]\nwrong_commands_max = 0\n", None),
    ] {
        let cluster = cluster("", tables);
        let mut control = Control::login(cluster.frontend.address, "admin");
        let wrong = ["XYZZY", "RETR", "MFMT x y", "RNTO /x"];
        for number in 1..limit.unwrap_or(150) {
            let code = control.ask(wrong[number % wrong.len()]).0;
            assert!(matches!(code, 500 | 501 | 503), "{number}: {code}");
            // What is refused for other reasons is not wrong.
            assert_eq!(control.ask("SIZE /nothing").0, 550);
            assert_eq!(control.ask("MODE B").0, 504);
        }
        if let Some(limit) = limit {
            let reply = control.ask("XYZZY");
            assert_eq!(reply, (421, format!("421 {limit} wrong commands; closing the connection.")));
            assert_eq!(control.reply().0, 0);
        }
    }
    // A listener has its own.
    let cluster = cluster("errors = { wrong_commands_max = 1 }", "[ftp.errors]\nwrong_commands_max = 0\n");
    assert_eq!(Control::connect(cluster.frontend.address).ask("XYZZY").0, 421);
}

#[test]
fn too_many_failed_logins_end_the_session_and_each_is_answered_later() {
    for (tables, limit) in
        [("", 5), ("[ftp.errors]\nfailed_logins_max = 2\n", 2), ("[ftp.errors]\nfailed_logins_max = 0\n", 0)]
    {
        let cluster = cluster("", &format!("{tables}[ftp.bans]\ndelay_max = \"1s\"\n"));
        let mut control = Control::connect(cluster.frontend.address);
        let mut took = Vec::new();
        for number in 1..=7 {
            control.ask("USER admin");
            let started = Instant::now();
            let (code, _) = control.ask("PASS wrong");
            took.push(started.elapsed());
            if number == limit {
                assert_eq!(code, 530);
                assert_eq!(control.reply().0, 0);
                break;
            }
            assert_eq!(code, 530, "{tables} {number}");
        }
        assert!(took[1] > Duration::from_millis(450), "{took:?}");
        if limit != 2 {
            assert!(took[3] > Duration::from_millis(900) && took[3] < Duration::from_secs(2), "{took:?}");
        }
    }
}

#[test]
fn an_address_that_guesses_is_banned_others_are_not_and_the_operator_lifts_it() {
    let bans = "[ftp.bans]\naddress_failures = 4\nduration = \"3s\"\ndelay_max = \"0s\"\n";
    let cluster = cluster("", bans);
    let address = cluster.frontend.address;
    let mut inside = Control::over(connect_from(loopback(9), address).unwrap());
    assert_eq!(inside.reply().0, 220);
    inside.log_in("admin");
    // Across sessions.
    for number in 0..4 {
        let (_, mut control) = greeting(loopback(9), address);
        control.ask(&format!("USER nobody{number}"));
        assert_eq!(control.ask("PASS wrong").0, 530);
    }
    let refused = greeting(loopback(9), address).0;
    assert!(
        refused.starts_with("421 Too many logins from your address have failed; come again after 20"),
        "{refused}"
    );
    // Who is in stays in, and others come in.
    assert_eq!(inside.ask("NOOP").0, 200);
    greeting(loopback(8), address).1.log_in("admin");
    let shown = succeeded(&cluster.operate(&["bans"]));
    assert!(shown.contains("address  127.0.0.9") && shown.contains(" UTC"), "{shown}");
    let lifted = cluster.operate(&["bans", "lift", "127.0.0.9"]);
    assert_eq!(succeeded(&lifted), "1 lifted\n");
    assert!(greeting(loopback(9), address).0.starts_with("220 "));
    assert!(!cluster.operate(&["bans", "lift", "127.0.0.9"]).status.success());
    // And a ban ends by itself.
    for _ in 0..4 {
        let (_, mut control) = greeting(loopback(9), address);
        control.ask("USER admin");
        control.ask("PASS wrong");
    }
    assert!(greeting(loopback(9), address).0.starts_with("421 "));
    eventually("the ban ends", || greeting(loopback(9), address).0.starts_with("220 ").then_some(()));
}

#[test]
fn a_name_that_is_guessed_at_from_many_addresses_is_open_only_where_it_has_logged_in_before() {
    let bans = "[ftp.bans]\naddress_failures = 0\nname_failures = 6\ndelay_max = \"0s\"\n";
    let cluster = cluster("", bans);
    let address = cluster.frontend.address;
    greeting(loopback(2), address).1.log_in("admin");
    for last in 10..16 {
        let (_, mut control) = greeting(loopback(last), address);
        control.ask("USER admin");
        assert_eq!(control.ask("PASS wrong").0, 530);
    }
    let (_, mut stranger) = greeting(loopback(20), address);
    stranger.ask("USER admin");
    let (code, said) = stranger.ask(&format!("PASS {PASSWORD}"));
    assert!(code == 421 && said.contains("no more are taken from here until"), "{said}");
    greeting(loopback(2), address).1.log_in("admin");
    greeting(loopback(20), address).1.log_in("reader");
    let shown = succeeded(&cluster.operate(&["bans"]));
    assert!(shown.contains("name  ") && shown.contains("admin"), "{shown}");
    assert_eq!(succeeded(&cluster.operate(&["bans", "lift", "--all"])), "1 lifted\n");
    greeting(loopback(20), address).1.log_in("admin");
}

#[test]
fn a_network_of_ipv6_is_banned_as_one_and_lifted_by_any_of_its_addresses() {
    let mut cluster = cluster("", "[ftp.bans]\naddress_failures = 2\ndelay_max = \"0s\"\n");
    cluster.restart_frontend(|config| config.replace("address = \"127.0.0.1:0\"", "address = \"[::1]:0\""));
    let address = cluster.frontend.address;
    for _ in 0..2 {
        let mut control = Control::connect(address);
        control.ask("USER admin");
        assert_eq!(control.ask("PASS wrong").0, 530);
    }
    let refused = Control::over(TcpStream::connect(address).unwrap()).reply().1;
    assert!(refused.starts_with("421 Too many logins from your address"), "{refused}");
    assert!(succeeded(&cluster.operate(&["bans"])).contains("address  ::/64 "));
    assert_eq!(succeeded(&cluster.operate(&["bans", "lift", "::1"])), "1 lifted\n");
    Control::login(address, "admin");
}

#[test]
fn silence_ends_a_session_before_the_login_after_it_and_in_a_handshake() {
    let keys = "idle_timeout = \"10s\"\nlogin_timeout = \"5s\"\nhandshake_timeout = \"1s\"";
    let cluster = cluster(keys, "");
    let address = cluster.frontend.address;
    let mut idle = Control::login(address, "admin");
    let opened = Instant::now();
    let mut nobody = Control::connect(address);
    let mut handshake = Control::connect(address);
    assert_eq!(handshake.ask("AUTH TLS").0, 234);
    assert_eq!(handshake.reply().0, 0, "the handshake takes a second at most");
    assert!(opened.elapsed() < Duration::from_secs(4), "{:?}", opened.elapsed());
    // Commands that do not log in gain no time.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(nobody.ask("NOOP").0, 200);
    assert_eq!(nobody.reply(), (421, "421 Login timed out; closing the connection.".to_owned()));
    assert!(opened.elapsed() < Duration::from_secs(7), "{:?}", opened.elapsed());
    assert_eq!(idle.reply(), (421, "421 Idle timeout; closing the connection.".to_owned()));
    assert!(opened.elapsed() > Duration::from_secs(9), "{:?}", opened.elapsed());
}

#[test]
fn the_banner_is_the_operators_and_may_have_several_lines() {
    let mut cluster = cluster("banner = \"Backup of example.org\\nAuthorised use only\"", "");
    let (line, _) = greeting(loopback(1), cluster.frontend.address);
    assert_eq!(line, "220-Backup of example.org\n Authorised use only\n220 End.");
    succeeded(&lftp(&cluster, "cls /domains"));
    cluster.restart_with("engine = \"libunftp\"");
    assert_eq!(
        greeting(loopback(1), cluster.frontend.address).0,
        "220 Backup of example.org Authorised use only"
    );
}

#[test]
fn a_listener_that_is_not_enabled_does_not_listen() {
    let mut cluster = Cluster::start(tree::fill);
    let port = cluster.frontend.address.port();
    cluster.restart_frontend(|config| {
        // Written so that the harness does not wait for it.
        config + &format!("[['listeners']]\naddress = \"127.0.0.1:{port}\"\nenable = false\ntls = \"off\"\n")
    });
    assert_ne!(cluster.frontend.address.port(), port);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// Threads of the process, but for those of log targets.
fn workers(cluster: &Cluster) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", cluster.frontend.id())).unwrap();
    let names =
        tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| name != "log\n").count()
}

#[test]
fn threads_are_as_many_as_configured() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut cluster = Cluster::start(tree::fill);
    // The main thread, that of the signals, and the workers; nothing blocks before anybody has logged in but the look at
    // certificates.
    for (tables, least) in [
        ("".to_owned(), cores.clamp(2, 20)),
        ("[threads]\nmin = 7\n".to_owned(), cores.max(7)),
        ("[threads]\nmin = 1\nmax = 1\n".to_owned(), 1),
    ] {
        cluster.restart_frontend(|config| config + &tables);
        let threads = workers(&cluster);
        assert!((2 + least..=3 + least).contains(&threads), "{tables}: {threads} threads, {least} workers");
        // Even one thread serves.
        succeeded(&lftp(&cluster, "mirror / mirrored"));
        cluster.restart_frontend(|config| config.replace(&tables, ""));
        std::fs::remove_dir_all("mirrored").ok();
    }
}

#[test]
fn a_value_that_is_out_of_range_is_refused_before_anything_starts() {
    let cluster = Cluster::start(tree::fill);
    let good = std::fs::read_to_string(cluster.path().join("frontend.toml")).unwrap();
    for (from, to, told) in [
        (
            "address = \"127.0.0.1:0\"",
            "address = \"localhost:21\"",
            "listeners[0].address: \"localhost:21\" is not an address",
        ),
        (
            "passive_ports",
            "enable = 1\npassive_ports",
            "listeners[0].enable: the number 1 is not valid; allowed: true or false, without quotation marks",
        ),
        (
            "passive_ports",
            "idle_timeout = \"9s\"\npassive_ports",
            "listeners[0].idle_timeout: 9s is out of range; allowed: 10s to 86400s",
        ),
        (
            "passive_ports",
            "tls = \"starttls\"\npassive_ports",
            "listeners[0].tls: \"starttls\" is not valid; allowed: \"off\", \"explicit\", \"implicit\"",
        ),
        (
            "passive_ports",
            "tls_versions = [\"1.1\"]\npassive_ports",
            "listeners[0].tls_versions: [\"1.1\"] is not valid",
        ),
        (
            "passive_ports = \"20000-29999\"",
            "passive_ports = \"20-30\"",
            "listeners[0].passive_ports: \"20-30\" is not valid; allowed: FIRST-LAST",
        ),
        (
            "passive_ports",
            "passive_address = \"a b\"\npassive_ports",
            "listeners[0].passive_address: \"a b\" is not valid",
        ),
        (
            "passive_ports",
            "proxy_protocol = { trusted = [\"x\"] }\npassive_ports",
            "listeners[0].proxy_protocol.trusted: \"x\" is not valid",
        ),
        (
            "passive_ports",
            "limits = { interval = \"29s\" }\npassive_ports",
            "listeners[0].limits.interval: 29s is out of range; allowed: 30s to 86400s",
        ),
        (
            "passive_ports",
            "limits = { simultaneous = -1 }\npassive_ports",
            "listeners[0].limits.simultaneous: the number -1 is not valid; allowed: a whole number from 0 on, without quotation marks",
        ),
        (
            "passive_ports",
            "access = [{ allow = \"all\", priority = 1001 }]\npassive_ports",
            "listeners[0].access[0].priority: 1001 is out of range; allowed: 1 to 1000",
        ),
        (
            "passive_ports",
            "errors = { wrong_commands_max = 101 }\npassive_ports",
            "listeners[0].errors.wrong_commands_max: 101 is out of range; allowed: 0 to 100",
        ),
        ("[admins]", "[threads]\nmax = 129\n[admins]", "threads.max: 129 is out of range; allowed: 1 to 128"),
        (
            "[admins]",
            "[threads]\nmin = 30\nmax = 20\n[admins]",
            "threads.max: 20 is less than threads.min, which is 30",
        ),
        (
            "passive_ports",
            "session_bandwidth = { down = \"1KiB\" }\npassive_ports",
            "listeners[0].session_bandwidth.down: \"1KiB\" is not valid",
        ),
    ] {
        let file = cluster.path().join("faulty.toml");
        assert!(good.contains(from), "{from}");
        std::fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let output = Command::new(program("portolan-frontend")).arg("--config").arg(&file).output().unwrap();
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(64), "{to}: {shown}");
        assert!(shown.contains(told) && shown.contains("faulty.toml:"), "{to}: {shown}");
    }
}

/// What one client of a burst was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Served,
    Refused,
}

/// Opens connections from several addresses at once, and keeps them; what each was told.
fn burst(address: SocketAddr, addresses: u8, each: usize) -> (Vec<TcpStream>, Vec<Told>) {
    let opened: Vec<Vec<TcpStream>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..addresses)
            .map(|number| {
                let source = loopback(100 + number);
                scope.spawn(move || (0..each).map(|_| connect_from(source, address).unwrap()).collect())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut opened: Vec<TcpStream> = opened.into_iter().flatten().collect();
    let told = opened
        .iter_mut()
        .map(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut code = [0; 4];
            stream.read_exact(&mut code).expect("each is told something");
            match &code {
                b"220 " => Told::Served,
                b"421 " => Told::Refused,
                _ => panic!("{}", code.escape_ascii()),
            }
        })
        .collect();
    (opened, told)
}

#[test]
fn a_burst_of_5000_connections_is_refused_past_the_limits_and_disturbs_nobody() {
    const ADDRESSES: u8 = 25;
    const EACH: usize = 200;
    for engine in ["native", "libunftp"] {
        let mut cluster =
            cluster(&format!("engine = \"{engine}\""), "[global.limits]\nnew = 0\n[ftp.limits]\nnew = 0\n");
        cluster.restart_frontend(|config| {
            config.replace("passive_ports", "limits = { new = 0 }\npassive_ports")
        });
        let address = cluster.frontend.address;
        std::fs::write(cluster.domains(1).join("one.example/large"), vec![7; 64 << 20]).unwrap();
        let mut good = Control::login(address, "admin");
        for transferring in [false, true] {
            let before = cluster.frontend.resident_kib();
            let loading = std::thread::scope(|scope| {
                // Of an address of its own, and there before the others, so that its place is its own.
                let mut control = Control::over(connect_from(loopback(50), address).unwrap());
                assert_eq!(control.reply().0, 220);
                control.log_in("admin");
                let load = scope.spawn(move || {
                    let mut moved = 0;
                    for _ in 0..if transferring { 8 } else { 0 } {
                        moved += control.fetch("RETR /domains/one.example/large").1.len();
                    }
                    moved
                });
                let started = Instant::now();
                let (mut slowest, mut asked) = (Duration::ZERO, 0);
                let bursting = scope.spawn(|| burst(address, ADDRESSES, EACH));
                while !bursting.is_finished() {
                    let now = Instant::now();
                    assert_eq!(good.ask("NOOP").0, 200);
                    asked += 1;
                    slowest = slowest.max(now.elapsed());
                    std::thread::sleep(Duration::from_millis(2));
                }
                let (held, told) = bursting.join().unwrap();
                let took = started.elapsed();
                let served = told.iter().filter(|told| **told == Told::Served).count();
                println!(
                    "{engine}, transferring {transferring}: {served} of {} served in {took:?}; {asked} NOOPs, the \
                     slowest {slowest:?}",
                    told.len()
                );
                // 200 of the listener, less the two that were there, or are coming and going.
                assert!((198..=199).contains(&served), "{served}");
                assert!(slowest < Duration::from_secs(2), "{slowest:?}");
                assert!(greeting(loopback(101), address).0.starts_with("421 All 200 connections"));
                drop(held);
                load.join().unwrap()
            });
            assert_eq!(loading, if transferring { 8 * (64 << 20) } else { 0 });
            eventually("all places come free but one", || {
                succeeded(&cluster.operate(&["status"])).contains("\n1 sessions, ").then_some(())
            });
            assert!(greeting(loopback(101), address).0.starts_with("220 "));
            let grown = cluster.frontend.resident_kib().saturating_sub(before);
            println!("{engine}, transferring {transferring}: memory +{grown} KiB");
            assert!(grown < 48 * 1024, "{grown} KiB");
        }
        let log = cluster.frontend.wait_for_log("more connections were refused");
        assert!(!log.contains("panicked"), "{log}");
        // 9,600 refusals are not 9,600 lines.
        let lines = log.matches("connection refused: too many").count();
        assert!(lines < 500, "{lines}");
    }
}

#[test]
fn the_sample_of_the_documentation_serves_a_real_client_over_each_kind_of_tls() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with_implicit_tls();
    for protection in Protection::ALL {
        let fetched = curl_over(protection, &cluster, &[], "/domains/one.example/domainRegistry.bin");
        assert_eq!(succeeded(&fetched), "one.example", "{}", protection.name());
    }
    assert!(curl(&cluster, &["--tls-max", "1.2"], "/").status.success());
}
