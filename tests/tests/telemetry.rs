//! What is to be seen of a running cluster: log targets read back with their own tools, audit and xferlog, traces,
//! metrics, health.
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, lftp, succeed, succeeded, text};
use portolan_tests::collector::{Collector, attribute};
use portolan_tests::tree::{self, assert_same};
use portolan_tests::{Cluster, Server, eventually, free_port, http, program};
use rustix::process::Signal;
use serde_json::Value;

const STDERR: &str = "[[log.targets]]\nkind = \"stderr\"\n";

/// A target with its keys.
fn target(kind: &str, keys: &str) -> String {
    format!("[[log.targets]]\nkind = \"{kind}\"\n{keys}\n")
}

/// Lines of JSON.
fn parsed(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The events of a kind, once there are as many.
fn events(path: &Path, kind: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} events {kind}"), || {
        let events: Vec<Value> = parsed(path).into_iter().filter(|event| event["event"] == kind).collect();
        (events.len() >= count).then_some(events)
    })
}

/// A process of a test, ended with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn what_admins_do_is_told_to_audit_and_xferlog_alike() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        config
            + STDERR
            + &target("file", "path = \"audit.json\"\nrecords = \"audit\"")
            + &target("file", "path = \"xferlog\"\nrecords = \"transfers\"")
    });
    let mut control = Control::connect(cluster.frontend.address);
    control.ask("USER admin");
    assert_eq!(control.ask("PASS wrong-wrong").0, 530);
    control.log_in("admin");
    let inbox = "/domains/spread.example/users/carol/folders/INBOX";
    assert_eq!(control.store(&format!("{inbox}/a b\u{7f}.eml"), b"hello"), 226);
    assert_eq!(control.fetch(&format!("RETR {inbox}/a b\u{7f}.eml")), (226, b"hello".to_vec()));
    assert_eq!(control.fetch("RETR /domains/one.example/nothing").0, 550);
    assert_eq!(control.ask(&format!("RNFR {inbox}/a b\u{7f}.eml")).0, 350);
    assert_eq!(control.ask(&format!("RNTO {inbox}/c.eml")).0, 250);
    assert_eq!(control.ask(&format!("DELE {inbox}/c.eml")).0, 250);
    cluster.kill_agent(2);
    cluster.wait_until_away(2);
    assert_eq!(control.fetch("RETR /domains/two.example/domainRegistry.bin").0, 450);
    assert_eq!(control.fetch("MLSD /domains/two.example/users").0, 450);
    let mut reader = Control::login(cluster.frontend.address, "reader");
    assert_eq!(reader.ask("DELE /domains/one.example/domainRegistry.bin").0, 550);
    control.ask("QUIT");

    let audit = cluster.path().join("audit.json");
    let sessions = events(&audit, "session", 1);
    let session = &sessions[0];
    assert_eq!(
        (&session["admin"], &session["downloads"], &session["uploads"], &session["failed"]),
        (&"admin".into(), &1.into(), &1.into(), &3.into())
    );
    assert_eq!((&session["down_bytes"], &session["up_bytes"]), (&5.into(), &5.into()));
    let logins = events(&audit, "login", 3);
    let results: Vec<_> = logins.iter().map(|login| login["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["wrong", "accepted", "accepted"]);
    assert_eq!(logins[0]["name"], "admin");
    assert!(logins[0]["client"].as_str().unwrap().starts_with("127.0.0.1:"));
    let transfers = events(&audit, "transfer", 5);
    let shown: Vec<_> = transfers
        .iter()
        .map(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
            (text("verb"), text("result"), text("node"), event["bytes"].as_u64().unwrap())
        })
        .collect();
    let row = |verb: &str, result: &str, node: &str, bytes| (verb.into(), result.into(), node.into(), bytes);
    assert_eq!(
        shown,
        [
            row("STOR", "complete", "mail-3", 5),
            row("RETR", "complete", "mail-3", 5),
            row("RETR", "refused", "mail-1", 0),
            row("RETR", "failed", "mail-2", 0),
            row("MLSD", "failed", "mail-2", 0),
        ]
    );
    assert!(transfers.iter().all(|event| event["session"] == transfers[0]["session"]));
    assert_eq!(transfers[3]["code"], 450);
    assert!(transfers[3]["cause"].as_str().unwrap().contains("mail-2"), "{}", transfers[3]);
    let changes = events(&audit, "change", 3);
    let refused = changes.iter().find(|change| change["result"] == "refused").unwrap();
    assert_eq!((&refused["admin"], &refused["verb"]), (&"reader".into(), &"DELE".into()));
    let renamed = changes.iter().find(|change| change["verb"] == "RNTO").unwrap();
    assert_eq!(renamed["to"], format!("{inbox}/c.eml"));
    assert_eq!(renamed["node"], "mail-3");

    let xferlog = fs::read_to_string(cluster.path().join("xferlog")).unwrap();
    let lines: Vec<Vec<&str>> = xferlog.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "{xferlog}");
    for (line, event) in lines.iter().zip(&transfers) {
        assert_eq!(line.len(), 18, "{line:?}");
        assert_eq!(
            (line[6], line[13], line[14], line[15], line[16]),
            ("127.0.0.1", "admin", "ftp", "0", "*")
        );
        assert_eq!(line[7], event["bytes"].to_string());
        assert_eq!(line[17] == "c", event["result"] == "complete");
        assert_eq!(line[11] == "i", event["direction"] == "upload");
    }
    assert_eq!(lines[0][8], format!("{inbox}/a_b\\u{{7f}}.eml"));
    assert!(!fs::read_to_string(&audit).unwrap().contains("wrong-wrong"));
}

/// All lines of a file and of those that it was rotated to, the oldest first; `None`: it was rotated meanwhile.
fn rotated(path: &Path) -> Option<String> {
    let read = read_rotated(path)?;
    (read_rotated(path)? == read).then_some(read)
}

fn read_rotated(path: &Path) -> Option<String> {
    let numbered = |number: usize| PathBuf::from(format!("{}.{number}", path.display()));
    let files = (1..).map(numbered).take_while(|path| path.is_file()).collect::<Vec<_>>();
    let files = files.iter().rev().map(PathBuf::as_path).chain([path]);
    files.map(|path| fs::read_to_string(path).ok()).collect()
}

#[test]
fn rotation_under_load_loses_no_line() {
    let mut cluster = Cluster::start(|path| {
        let inbox = path.join("node-1/domains/one.example/users/anna/folders/INBOX");
        fs::create_dir_all(&inbox).unwrap();
        for number in 0..2_000 {
            fs::write(inbox.join(format!("{number}.eml")), b"mail").unwrap();
        }
    });
    let file = |name: &str, records: &str| {
        let keys =
            format!("path = \"{name}\"\nrecords = \"{records}\"\nrotate_bytes = \"64KiB\"\nkeep = 1000");
        target("file", &keys)
    };
    cluster.restart_frontend(|config| {
        config
            + STDERR
            + &file("log", "log")
            + &file("audit", "audit")
            + &file("xferlog", "transfers")
            + http::TABLE
    });
    let path = "/domains/one.example/users/anna/folders/INBOX";
    let copy = cluster.path().join("copy");
    succeeded(&lftp(&cluster, &format!("mirror --parallel=8 {path} {}", copy.display())));
    let complete = |text: &str| text.lines().filter(|line| line.contains(".eml")).count();
    for name in ["log", "audit", "xferlog"] {
        let path = cluster.path().join(name);
        let text = eventually(&format!("all lines in {name}"), || {
            rotated(&path).filter(|text| complete(text) >= 2_000)
        });
        assert_eq!(complete(&text), 2_000, "{name}");
        let names: BTreeSet<&str> =
            text.split(['/', ' ', '"']).filter(|word| word.ends_with(".eml")).collect();
        assert_eq!(names.len(), 2_000, "{name}");
        assert!(cluster.path().join(format!("{name}.2")).is_file(), "{name} was rotated");
        let length = fs::metadata(cluster.path().join(format!("{name}.1"))).unwrap().len();
        assert!((60 * 1024..=64 * 1024).contains(&length), "{name}: {length}");
    }
    let address = http::address(&cluster.frontend);
    let (_, metrics) = http::get(address, "/metrics");
    let dropped = metrics.lines().filter(|line| line.starts_with("portolan_telemetry_dropped_total"));
    assert!(dropped.clone().count() >= 4 && dropped.clone().all(|line| line.ends_with(" 0")), "{metrics}");
}

#[test]
fn reloads_under_load_lose_no_line_and_write_none_over_another() {
    let mut cluster = Cluster::start(tree::fill);
    let file = |level: &str, bytes: &str| {
        let keys = format!(
            "path = \"log\"\nlevel = \"{level}\"\nformat = \"json\"\nrotate_bytes = \"{bytes}\"\nkeep = 1000"
        );
        target("file", &keys)
    };
    let first = file("protocol", "64KiB");
    cluster.restart_frontend(|config| config + STDERR + &first);
    let address = cluster.frontend.address;
    std::thread::scope(|scope| {
        for session in 0..4 {
            scope.spawn(move || {
                let mut control = Control::login(address, "admin");
                for number in 0..2_500 {
                    assert_eq!(control.ask(&format!("CLNT {session}-{number}")).0, 200);
                }
            });
        }
        let mut before = first.clone();
        for turn in 0..20 {
            // The same file each time; its level, or its rotation, differs.
            let after = match turn % 4 {
                0 => file("debug", "64KiB"),
                1 => file("debug", "80KiB"),
                2 => file("protocol", "80KiB"),
                _ => file("protocol", "64KiB"),
            };
            cluster.edit_config(|config| config.replace(&before, &after));
            assert!(cluster.reload().contains("the log is changed"));
            before = after;
        }
    });
    let path = cluster.path().join("log");
    let asked = |text: &str| text.lines().filter(|line| line.contains("\"command\":\"CLNT\"")).count();
    let text = eventually("all lines", || rotated(&path).filter(|text| asked(text) >= 10_000));
    assert_eq!(asked(&text), 10_000);
    let arguments: BTreeSet<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .filter(|line| line["command"] == "CLNT")
        .map(|line| line["argument"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(arguments.len(), 10_000);
}

#[test]
fn the_audit_tells_what_each_admin_did_also_where_one_follows_another_and_what_failed() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        config + STDERR + "level = \"protocol\"\n" + &target("file", "path = \"audit\"\nrecords = \"audit\"")
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    assert_eq!(control.ask("MDTM /domains/one.example/missing").0, 550);
    assert_eq!(control.ask("RNFR /domains/one.example/domainRegistry.bin").0, 350);
    assert!(control.ask("RNTO /domains/two.example/moved").0 >= 500);
    assert!(control.ask("SITE PSWD old-secret new-secret").0 >= 500);
    // Another one goes on.
    control.log_in("reader");
    drop(control);
    let sessions = events(&cluster.path().join("audit"), "session", 2);
    assert_eq!((&sessions[0]["admin"], &sessions[0]["downloads"]), (&"admin".into(), &1.into()));
    assert_eq!((&sessions[1]["admin"], &sessions[1]["downloads"]), (&"reader".into(), &0.into()));
    let changes: Vec<_> =
        parsed(&cluster.path().join("audit")).into_iter().filter(|one| one["event"] == "change").collect();
    assert!(changes.iter().all(|change| change["verb"] != "MDTM"), "{changes:?}");
    let log = cluster.frontend.wait_for_log("\"command\":\"SITE\"");
    assert!(!log.contains("new-secret") && !log.contains("old-secret"), "{log}");
}

#[test]
fn messages_reach_rsyslog_by_socket_udp_tcp_and_tls() {
    let mut cluster = Cluster::start(tree::fill);
    let folder = cluster.path().to_owned();
    let pki = folder.join("pki");
    succeed(Command::new(program("portolan")).args(["pki", "init", "--frontend", "localhost"]).arg(&pki));
    let [udp, tcp, tls] = [free_port(), free_port(), free_port()];
    let shown = folder.display();
    let config = format!(
        r#"global(workDirectory="{shown}" defaultNetstreamDriverCAFile="{shown}/pki/ca.pem"
  defaultNetstreamDriverCertFile="{shown}/pki/localhost.pem" defaultNetstreamDriverKeyFile="{shown}/pki/localhost-key.pem")
module(load="imudp") module(load="imuxsock" SysSock.Use="off")
module(load="imtcp")
template(name="seen" type="string"
  string="%inputname% %syslogfacility-text% %syslogseverity-text% %programname% %procid% %protocol-version% %msg%\n")
ruleset(name="all") {{ action(type="omfile" file="{shown}/seen" template="seen") }}
input(type="imudp" port="{udp}" address="127.0.0.1" name="udp" ruleset="all")
input(type="imtcp" port="{tcp}" address="127.0.0.1" name="tcp" ruleset="all")
input(type="imtcp" port="{tls}" address="127.0.0.1" name="tls" ruleset="all"
  StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/certvalid")
input(type="imuxsock" Socket="{shown}/log.sock" ruleset="all")
"#
    );
    fs::write(folder.join("rsyslog.conf"), config).unwrap();
    let mut rsyslogd = Command::new("/usr/sbin/rsyslogd");
    rsyslogd.arg("-n").arg("-f").arg(folder.join("rsyslog.conf")).arg("-i").arg(folder.join("rsyslog.pid"));
    let child = rsyslogd.stderr(Stdio::null()).spawn().expect("`tests/run` installs rsyslog");
    let _rsyslogd = Process(child);
    eventually("rsyslog listens", || std::net::TcpStream::connect(("127.0.0.1", tls)).ok());
    cluster.restart_frontend(|config| {
        let to = |address: &str, more: &str| target("syslog", &format!("address = \"{address}\"\n{more}"));
        let identity =
            "ca = \"pki/ca.pem\"\ncertificate = \"pki/front-1.pem\"\nkey = \"pki/front-1-key.pem\"";
        config
            + STDERR
            + &to(&format!("unix:{shown}/log.sock"), "facility = \"mail\"")
            + &to(&format!("udp://127.0.0.1:{udp}"), "facility = \"local3\"")
            + &to(&format!("tcp://127.0.0.1:{tcp}"), "records = \"audit\"")
            + &to(&format!("tls://localhost:{tls}"), &format!("facility = \"ftp\"\n{identity}"))
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    let id = cluster.frontend.id();
    let seen = folder.join("seen");
    for (input, start) in [
        ("imuxsock", format!("imuxsock mail info portolan-frontend {id} 0 ")),
        ("udp", format!("udp local3 info portolan-frontend {id} 1 ")),
        ("tcp", format!("tcp daemon info portolan-frontend {id} 1 ")),
        ("tls", format!("tls ftp info portolan-frontend {id} 1 ")),
    ] {
        eventually(&format!("the transfer came by {input}"), || {
            let text = fs::read_to_string(&seen).ok()?;
            let line =
                text.lines().find(|line| line.starts_with(&start) && line.contains("domainRegistry.bin"))?;
            let said = line.strip_prefix(&start)?.trim_start();
            if input == "tcp" {
                let event: Value = serde_json::from_str(said).unwrap();
                assert_eq!((&event["event"], &event["admin"]), (&"transfer".into(), &"admin".into()));
            } else {
                assert!(said.starts_with("transfer complete ") && said.contains(" admin=admin "), "{said}");
            }
            Some(())
        });
    }
}

#[test]
fn a_syslog_server_that_is_not_trusted_is_told_nothing() {
    let mut cluster = Cluster::start(tree::fill);
    // The front end's own implicit TLS stands in for a server with a certificate of another authority.
    let others = tempfile::tempdir().unwrap();
    portolan_tests::prepare(others.path());
    cluster.restart_with_implicit_tls();
    let port = cluster.frontend.addresses[1].port();
    fs::copy(others.path().join("pki/ca.pem"), cluster.path().join("other-ca.pem")).unwrap();
    cluster.edit_config(|config| {
        let keys = format!("address = \"tls://localhost:{port}\"\nca = \"other-ca.pem\"");
        config + STDERR + &target("syslog", &keys)
    });
    cluster.reload();
    let log = cluster.frontend.wait_for_log("log target fails");
    assert!(log.contains("UnknownIssuer") || log.contains("invalid peer certificate"), "{log}");
}

#[test]
fn the_journal_has_each_field() {
    let cluster = Cluster::start(tree::fill);
    let folder = cluster.path().display().to_string();
    cluster.edit_config(|config| {
        // Beside the one that runs already.
        config.replace("control.sock", "control-2.sock") + STDERR + &target("journald", "level = \"info\"")
    });
    // A journal of the test's own: /run is another one for it and for a front end.
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log/journal && \
         echo $$ > {folder}/journal.pid && exec /lib/systemd/systemd-journald"
    );
    let mut journald = Command::new("unshare");
    journald.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let child =
        journald.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("util-linux is essential");
    let _journald = Process(child);
    let within = |program: &Path| {
        let mut command = Command::new("nsenter");
        let id = fs::read_to_string(format!("{folder}/journal.pid")).unwrap();
        command.args(["--target", id.trim(), "--mount"]).arg(program);
        command
    };
    eventually("the journal listens", || {
        fs::read_to_string(format!("{folder}/journal.pid")).ok()?;
        let there = within(Path::new("test")).args(["-S", "/run/systemd/journal/socket"]).status().ok()?;
        there.success().then_some(())
    });
    let command = within(&program("portolan-frontend"));
    let frontend = Server::spawn(command, "portolan-frontend", &cluster.path().join("frontend.toml"));
    let mut control = Control::login(frontend.address, "admin");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    let entry = eventually("the transfer is in the journal", || {
        let mut journalctl = within(Path::new("journalctl"));
        journalctl.args(["--directory=/run/log/journal", "--output=json", "PORTOLAN_VERB=RETR"]);
        let output = journalctl.output().ok()?;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    });
    for (field, value) in [
        ("SYSLOG_IDENTIFIER", "portolan-frontend"),
        ("PRIORITY", "6"),
        ("_TRANSPORT", "journal"),
        ("PORTOLAN_ADMIN", "admin"),
        ("PORTOLAN_NODE", "mail-1"),
        ("PORTOLAN_PATH", "/domains/one.example/domainRegistry.bin"),
        ("PORTOLAN_RESULT", "complete"),
    ] {
        assert_eq!(entry[field], value, "{field}: {entry}");
    }
    assert!(entry["MESSAGE"].as_str().unwrap().starts_with("transfer complete "), "{entry}");
}

#[test]
fn a_trace_shows_command_front_end_node_and_disk_and_the_log_belongs_to_it() {
    let mut cluster = Cluster::start(tree::fill);
    let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let tracing = format!("[tracing]\nendpoint = \"http://{address}\"\n");
    for number in 1..=3 {
        cluster.restart_agent_with(number, &tracing);
    }
    let otlp = target("otlp", &format!("endpoint = \"http://{address}\""));
    cluster.restart_frontend(|config| config + STDERR + &otlp + &tracing);
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    assert_eq!(control.store("/domains/one.example/domainCoreConfig.cfg", b"new"), 226);
    cluster.frontend.wait_for_log("log target fails");
    // A collector that comes late gets all of it.
    let collector = Collector::start(address);
    for (verb, call) in [("RETR", "Read"), ("STOR", "Write")] {
        let trace = eventually(&format!("the spans of {verb}"), || {
            let received = collector.received();
            let (_, command) = received.spans.iter().find(|(_, span)| span.name == verb)?;
            let trace: Vec<_> = received
                .spans
                .iter()
                .filter(|(_, span)| span.trace_id == command.trace_id)
                .cloned()
                .collect();
            let disk = trace.iter().any(|(service, span)| service == "portolan-agent" && span.name == "disk");
            (trace.len() >= 4 && disk).then_some(trace)
        });
        let find = |service: &str, name: &str| {
            let found = trace.iter().find(|(of, span)| of == service && span.name == name);
            &found.unwrap_or_else(|| panic!("{service} {name}: {trace:?}")).1
        };
        let command = find("portolan-frontend", verb);
        assert!(command.parent_span_id.is_empty(), "a command is a trace of its own");
        assert_eq!(attribute(&command.attributes, "admin").as_deref(), Some("admin"));
        assert_eq!(attribute(&command.attributes, "node").as_deref(), Some("mail-1"));
        assert_eq!(attribute(&command.attributes, "outcome").as_deref(), Some("complete"));
        assert_eq!(attribute(&command.attributes, "reply").as_deref(), Some("226"));
        let asked = find("portolan-frontend", call);
        assert_eq!(asked.parent_span_id, command.span_id);
        let answered = find("portolan-agent", call);
        assert_eq!(answered.parent_span_id, asked.span_id);
        assert_eq!(find("portolan-agent", "disk").parent_span_id, answered.span_id);
        let log = eventually("the log of the transfer", || {
            let received = collector.received();
            let of = |text: &str| {
                received
                    .logs
                    .iter()
                    .find(|(_, log)| attribute(&log.attributes, "verb").as_deref() == Some(text))
                    .cloned()
            };
            of(verb)
        });
        assert_eq!((log.0.as_str(), &log.1.trace_id), ("portolan-frontend", &command.trace_id));
        // The session's trace is another one, which the command's leads to.
        drop(trace);
    }
    drop(control);
    eventually("the connection's own trace", || {
        let received = collector.received();
        let (_, connection) = received.spans.iter().find(|(_, span)| span.name == "connection")?;
        let (_, command) = received.spans.iter().find(|(_, span)| span.name == "RETR")?;
        assert_eq!(command.links[0].trace_id, connection.trace_id);
        Some(())
    });
}

#[test]
fn sampling_leaves_commands_out_and_never_halves_one() {
    let mut cluster = Cluster::start(tree::fill);
    let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let collector = Collector::start(address);
    let tracing = |ratio: &str| format!("[tracing]\nendpoint = \"http://{address}\"\nratio = {ratio}\n");
    for number in 1..=3 {
        cluster.restart_agent_with(number, &tracing("1.0"));
    }
    cluster.restart_frontend(|config| config + &tracing("0.3"));
    let mut control = Control::login(cluster.frontend.address, "admin");
    for _ in 0..200 {
        assert_eq!(control.ask("MDTM /domains/one.example/domainRegistry.bin").0, 213);
    }
    drop(control);
    eventually("spans come, and no more", || {
        let before = collector.received().spans.len();
        std::thread::sleep(Duration::from_millis(600));
        (before > 0 && collector.received().spans.len() == before).then_some(())
    });
    let received = collector.received();
    let traces = |service: &str, name: &str| -> BTreeSet<Vec<u8>> {
        let spans = received.spans.iter().filter(|(of, span)| of == service && span.name == name);
        spans.map(|(_, span)| span.trace_id.clone()).collect()
    };
    let commands = traces("portolan-frontend", "MDTM");
    assert!((25..=100).contains(&commands.len()), "{} of 200 at 0.3", commands.len());
    // The agent follows what the front end has decided.
    assert_eq!(traces("portolan-agent", "Stat"), commands);
}

#[test]
fn stuck_targets_hold_up_nothing_and_what_they_lose_is_counted() {
    let mut cluster = Cluster::start(tree::fill);
    // A server that takes the connection and reads nothing, and one that is not there.
    let stuck = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, nobody) = (stuck.local_addr().unwrap().port(), free_port());
    cluster.restart_frontend(|config| {
        config
            + STDERR
            + &target("syslog", &format!("address = \"tcp://127.0.0.1:{port}\"\nlevel = \"trace\""))
            + &target("otlp", &format!("endpoint = \"http://127.0.0.1:{nobody}\"\nlevel = \"trace\""))
            + http::TABLE
    });
    let address = http::address(&cluster.frontend);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let asked = |control: &mut Control| {
        let begun = Instant::now();
        // As one piece, so that the client is no bottleneck; less than may be sent ahead.
        for _ in 0..50 {
            control.send("NOOP\r\n".repeat(40).as_bytes()).unwrap();
            for _ in 0..40 {
                assert_eq!(control.reply().0, 200);
            }
        }
        begun.elapsed()
    };
    let before = asked(&mut control);
    let dropped = |kind: &str| {
        let (_, metrics) = http::get(address, "/metrics");
        let start = format!("portolan_telemetry_dropped_total{{target=\"{kind}");
        let line = metrics.lines().find(|line| line.starts_with(&start)).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    eventually("both targets lose lines", || {
        asked(&mut control);
        (dropped("syslog tcp://") > 0 && dropped("otlp ") > 0).then_some(())
    });
    let after = asked(&mut control);
    assert!(after < before * 3 + Duration::from_secs(1), "{before:?} before, {after:?} with full queues");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    // Two queues of 16 MiB, and what the records of one of them take up beside their text.
    let resident = cluster.frontend.resident_kib() / 1024;
    assert!(resident < 200, "{resident} MiB");
    // The program ends in its time all the same.
    let begun = Instant::now();
    cluster.frontend.signal(Signal::TERM);
    assert_eq!(cluster.frontend.wait(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_full_pipe_on_stderr_holds_up_no_session() {
    let cluster = Cluster::start(tree::fill);
    cluster.edit_config(|config| {
        config
            .replace("control.sock", "control-2.sock")
            .replace("127.0.0.1:0\"\ncertificate", &format!("127.0.0.1:{}\"\ncertificate", free_port()))
            .replace("[log]\n", "[log]\nlevel = \"trace\"\n")
    });
    let config = fs::read_to_string(cluster.path().join("frontend.toml")).unwrap();
    let address = config.split("[[listeners]]\naddress = \"").nth(1).unwrap().split('"').next().unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let mut command = Command::new(program("portolan-frontend"));
    command.arg("--config").arg(cluster.path().join("frontend.toml")).stderr(Stdio::piped());
    let mut frontend = Process(command.spawn().unwrap());
    eventually("it listens", || std::net::TcpStream::connect(address).ok());
    // 64 KiB fill the pipe; this logs some 10 MB.
    let mut control = Control::login(address, "admin");
    for _ in 0..20_000 {
        assert_eq!(control.ask("NOOP").0, 200);
    }
    // It ends all the same.
    let id = rustix::process::Pid::from_raw(i32::try_from(frontend.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, Signal::TERM).unwrap();
    let begun = Instant::now();
    let ended = eventually("the front end ends", || frontend.0.try_wait().unwrap());
    assert!(ended.success() && begun.elapsed() < Duration::from_secs(10), "{ended} {:?}", begun.elapsed());
    // What it could take is there when somebody reads.
    let mut start = [0; 4_096];
    frontend.0.stderr.take().unwrap().read_exact(&mut start).unwrap();
    assert!(start.starts_with(b"{\"timestamp\":"));
}

#[test]
fn levels_modules_and_listeners_decide_what_a_target_takes() {
    let mut cluster = Cluster::start(tree::fill);
    let listeners = [free_port(), free_port()];
    cluster.restart_frontend(|config| {
        let first = format!("address = \"127.0.0.1:{}\"\ncertificate", listeners[0]);
        let second = format!(
            "[[listeners]]\naddress = \"127.0.0.1:{}\"\ncertificate = \"pki/front-1.pem\"\n\
             key = \"pki/front-1-key.pem\"\npassive_ports = \"10000-19999\"\n",
            listeners[1]
        );
        let of = |index: usize| format!("listeners = [\"127.0.0.1:{}\"]", listeners[index]);
        config.replace("address = \"127.0.0.1:0\"\ncertificate", &first)
            + &second
            + STDERR
            + &target("file", &format!("path = \"first\"\nlevel = \"protocol\"\n{}", of(0)))
            + &target("file", &format!("path = \"second\"\n{}", of(1)))
            + &target("file", "path = \"errors\"\nlevel = \"error\"\nformat = \"text\"")
            + &target("file", "path = \"gate\"\nlevel = \"critical\"\nmodules = { \"portolan_frontend::gate\" = \"debug\" }")
    });
    let [first, second] = listeners.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut control = Control::connect(first);
    control.ask("USER admin");
    control.ask("PASS a-secret-that-is-wrong");
    control.ask("a-secret-alone");
    control.log_in("admin");
    control.ask("PWD");
    control.ask("QUIT");
    let mut control = Control::login(second, "reader");
    control.ask("QUIT");
    let read = |name: &str| fs::read_to_string(cluster.path().join(name)).unwrap_or_default();
    let log = eventually("both sessions are logged", || {
        let (one, two) = (read("first"), read("second"));
        (one.contains("session ended") && two.contains("session ended")).then_some(one)
    });
    let said: Vec<(String, String)> = parsed(&cluster.path().join("first"))
        .iter()
        .filter(|line| line["level"] == "PROTOCOL" && line["command"].is_string())
        .map(|line| {
            (line["command"].as_str().unwrap().to_owned(), line["argument"].as_str().unwrap().to_owned())
        })
        .collect();
    assert!(said.contains(&("PASS".to_owned(), "***".to_owned())), "{said:?}");
    assert!(said.contains(&("USER".to_owned(), "admin".to_owned())), "{said:?}");
    assert!(log.contains("\"reply\":257"), "{log}");
    assert!(!log.contains("secret") && !log.contains("reader"), "{log}");
    let other = read("second");
    assert!(other.contains("reader") && !other.contains("\"admin\":\"admin\""), "{other}");
    assert!(!other.contains("PROTOCOL"), "{other}");
    assert_eq!(read("errors"), "");
    let gate = read("gate");
    assert!(gate.contains("session begins") && !gate.contains("login"), "{gate}");
}

#[test]
fn the_log_changes_by_reload_and_what_stays_loses_nothing() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| config + STDERR + &target("file", "path = \"kept\""));
    let mut control = Control::login(cluster.frontend.address, "admin");
    cluster.edit_config(|config| config + &target("file", "path = \"added\"\nlevel = \"protocol\""));
    assert!(cluster.reload().contains("the log is changed"));
    control.ask("PWD");
    eventually("the new target is told of the session that was there", || {
        let text = fs::read_to_string(cluster.path().join("added")).ok()?;
        (text.contains("\"command\":\"PWD\"") && text.contains("\"session\":")).then_some(())
    });
    cluster.edit_config(|config| config.replace("path = \"kept\"", "path = \"kept\"\nlevel = \"error\""));
    cluster.reload();
    control.ask("QUIT");
    eventually("the other target goes on", || {
        fs::read_to_string(cluster.path().join("added")).ok()?.contains("session ended").then_some(())
    });
    let kept = fs::read_to_string(cluster.path().join("kept")).unwrap();
    assert!(kept.contains("\"event\":\"login\"") && !kept.contains("session ended"), "{kept}");

    // An agent takes the log of its configuration, and nothing else, at a SIGHUP.
    let config = cluster.path().join("agent-1.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + STDERR + &target("file", "path = \"agent\"\nlevel = \"trace\"")).unwrap();
    cluster.agent(1).signal(Signal::HUP);
    cluster.agent(1).wait_for_log("log reloaded");
    eventually("the agent logs into the file", || {
        fs::read_to_string(cluster.path().join("agent")).ok().filter(|text| !text.is_empty())
    });
    let backup = cluster.path().join("backup");
    succeeded(&lftp(&cluster, &format!("mirror /domains/one.example {}", backup.display())));
    assert_same(&tree::read(&cluster.domains(1).join("one.example")), &tree::read(&backup));
}

/// The names of all metrics that a program shows, with their types.
fn shown_metrics(address: SocketAddr) -> BTreeMap<String, String> {
    // As Prometheus asks.
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    let (status, head, body) = http::get_as(address, "/metrics", accept);
    assert_eq!(status, 200);
    assert!(body.ends_with("# EOF\n") && head.contains("application/openmetrics-text"), "{head} {body}");
    let lines = body.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

#[test]
fn scrapers_that_do_not_ask_for_openmetrics_get_the_classic_format_that_promtool_takes() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| config + http::TABLE);
    cluster.restart_agent_with(1, http::TABLE);
    drop(Control::login(cluster.frontend.address, "admin"));
    for server in [&cluster.frontend, cluster.agent(1)] {
        for accept in ["*/*", "text/plain", "text/html"] {
            let (status, head, body) = http::get_as(http::address(server), "/metrics", accept);
            assert_eq!(status, 200);
            assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
            assert!(!body.contains("# EOF") && !body.contains("# UNIT"), "{body}");
            assert!(body.contains("# TYPE portolan_build_info gauge"), "{body}");
            assert!(body.contains("# TYPE process_cpu_seconds_total counter"), "{body}");
            let mut command = Command::new("promtool");
            let mut child = command
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("`tests/run` installs promtool");
            child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
            let checked = child.wait_with_output().unwrap();
            let told = text(&checked);
            assert!(checked.status.success() && told.is_empty(), "{told}");
        }
    }
}

fn read_of_the_project(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(path)).unwrap()
}

/// The metrics of a section of docs/metrics.md.
fn documented(section: &str) -> BTreeMap<String, String> {
    let page = read_of_the_project("docs/metrics.md");
    let (_, rest) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let rows = rest.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let cells =
        |row: &str| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>();
    rows.map(cells).map(|cells| (cells[1].clone(), cells[2].clone())).collect()
}

#[test]
fn metrics_are_those_of_the_documentation_and_labels_are_bounded() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_agent_with(1, http::TABLE);
    let (ldap, collector) = (free_port(), free_port());
    cluster.restart_frontend(|config| {
        let access = "access = [{ allow = \"all\" }, { deny = \"127.0.0.9\" }]\npassive_ports";
        config.replace("passive_ports", access)
            + http::TABLE
            + &format!("[tracing]\nendpoint = \"http://127.0.0.1:{collector}\"\n")
            + &format!(
                "[[directories]]\nname = \"corp\"\nkind = \"openldap\"\nuris = [\"ldap://127.0.0.1:{ldap}\"]\n\
                 base = \"dc=example\"\nfilter = \"(uid={{user}})\"\n[map.ldap]\ndirectory = \"corp\"\n\
                 domain_base = \"dc=example\"\nuser_base = \"dc=example\"\n"
            )
            + "[[grants]]\nuser = \"x\"\nrights = [\"backup\"]\ndomains = [\"*\"]\n"
    });
    let mut control = Control::connect(cluster.frontend.address);
    control.log_in("admin");
    control.fetch("MLSD /");
    control.fetch("RETR /domains/one.example/domainRegistry.bin");
    control.store("/domains/one.example/new", b"1234567");
    control.ask("DELE /domains/one.example/new");
    control.ask("XMADE up");
    let refused = connect_from([127, 0, 0, 9].into(), cluster.frontend.address).unwrap();
    assert_eq!(Control::over(refused).reply().0, 421);
    let mut guess = Control::connect(cluster.frontend.address);
    guess.ask("USER somebody-made-up");
    guess.ask("PASS wrong-wrong");
    cluster.reload();
    let (frontend, agent) = (http::address(&cluster.frontend), http::address(cluster.agent(1)));
    let joined = |section: &str| {
        let mut all = documented("Every program");
        all.extend(documented(section));
        all
    };
    assert_eq!(shown_metrics(frontend), joined("Front end"));
    assert_eq!(shown_metrics(agent), joined("Agent"));
    let (_, body) = http::get(frontend, "/metrics");
    for made_up in ["somebody", "XMADE", "one.example", "anna", "/domains"] {
        assert!(!body.contains(made_up), "{made_up}: {body}");
    }
    for (name, value) in [
        ("portolan_transfers_total{verb=\"STOR\",outcome=\"complete\"}", 1.0),
        ("portolan_transfer_bytes_total{way=\"upload\"}", 7.0),
        ("portolan_changes_total{verb=\"DELE\",outcome=\"complete\"}", 1.0),
        ("portolan_logins_total{outcome=\"accepted\"}", 1.0),
        ("portolan_node_up{node=\"mail-2\"}", 1.0),
        ("portolan_reloads_total{outcome=\"complete\"}", 1.0),
        ("portolan_sessions_logged_in", 1.0),
        ("portolan_limit_max{scope=\"ftp\",limit=\"simultaneous\"}", 200.0),
        ("portolan_map_domains{source=\"static\"}", 3.0),
        ("portolan_map_directory_failing", 1.0),
    ] {
        assert_eq!(http::metric(frontend, name), Some(value), "{name}: {body}");
    }
    assert_eq!(http::metric(agent, "portolan_agent_written_bytes_total"), Some(7.0));
    assert_eq!(http::metric(agent, "portolan_agent_calls_total{method=\"Write\",code=\"ok\"}"), Some(1.0));
    let expiry = format!(
        "portolan_certificate_expiry_timestamp_seconds{{of=\"cluster\",file=\"{}\"}}",
        cluster.path().join("pki/front-1.pem").display()
    );
    let ends = http::metric(frontend, &expiry).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((820.0..830.0).contains(&((ends - now) / 86_400.0)), "{ends}");
}

#[test]
fn rules_hold_and_rules_and_dashboard_name_metrics_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("monitoring");
    for arguments in [["check", "rules", "portolan.rules.yml"], ["test", "rules", "portolan.rules.test.yml"]]
    {
        succeed(Command::new("promtool").current_dir(&root).args(arguments));
    }
    let known: BTreeSet<String> = ["Every program", "Front end", "Agent"]
        .into_iter()
        .flat_map(|section| documented(section).into_keys())
        .collect();
    let dashboard = read_of_the_project("monitoring/grafana-portolan.json");
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 10);
    let rules = read_of_the_project("monitoring/portolan.rules.yml");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = [&dashboard, &rules].into_iter().flat_map(|text| text.split(|c| !is_word(c)));
    let mut used = 0;
    for word in words.filter(|word| word.starts_with("portolan_") || word.starts_with("process_")) {
        let name = ["_total", "_bucket", "_sum", "_count", "_info"]
            .iter()
            .find_map(|end| word.strip_suffix(end).filter(|name| known.contains(*name)))
            .unwrap_or(word);
        assert!(known.contains(name), "{word}");
        used += 1;
    }
    assert!(used > 40, "{used}");
}

#[test]
fn readiness_tells_its_reasons_and_an_outage_of_a_part_is_none() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_agent_with(1, http::TABLE);
    cluster.restart_frontend(|config| {
        config.replace("drain_timeout = \"5s\"", "drain_timeout = \"20s\"") + http::TABLE
    });
    let (frontend, agent) = (http::address(&cluster.frontend), http::address(cluster.agent(1)));
    assert_eq!(http::get(frontend, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(http::get(frontend, "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(http::get(agent, "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(http::get(frontend, "/nothing").0, 404);
    cluster.kill_agent(3);
    cluster.wait_until_away(3);
    let (status, text) = http::get(frontend, "/readyz");
    assert_eq!(status, 200);
    assert!(text.starts_with("ready\nwarning: node mail-3 is away: "), "{text}");
    assert_eq!(http::metric(frontend, "portolan_node_up{node=\"mail-3\"}"), Some(0.0));
    cluster.edit_config(|config| config + "nonsense = 1\n");
    assert_eq!(cluster.operate(&["reload"]).status.code(), Some(1));
    let (status, text) = http::get(frontend, "/readyz");
    assert_eq!(status, 200);
    assert!(text.contains("warning: the last reload was refused: "), "{text}");
    cluster.kill_agent(1);
    cluster.kill_agent(2);
    eventually("nobody is left", || {
        let (status, text) = http::get(frontend, "/readyz");
        (status == 503 && text.contains("not ready: no node is up")).then_some(())
    });
    cluster.start_agent(1);
    eventually("one is back", || (http::get(frontend, "/readyz").0 == 200).then_some(()));
    // A drain is told while a session still has something under way.
    let mut control = Control::login(cluster.frontend.address, "admin");
    let _data = control.passive();
    control.send(b"STOR /domains/one.example/slow\r\n").unwrap();
    assert_eq!(control.reply().0, 150);
    cluster.frontend.signal(Signal::TERM);
    eventually("the drain is told", || {
        let (status, text) = http::get(frontend, "/readyz");
        (status == 503 && text.contains("not ready: the front end is draining")).then_some(())
    });
    assert_eq!(http::get(frontend, "/healthz").0, 200);
}

#[test]
fn a_hostile_client_of_the_http_server_does_not_keep_others_away() {
    use std::io::Write as _;
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| config + http::TABLE);
    let address = http::address(&cluster.frontend);
    for garbage in [&b"\x16\x03\x01garbage\r\n\r\n"[..], b"GET /metrics HTTP/9.9\r\n\r\n", &[b'a'; 1 << 20]] {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(garbage).ok();
    }
    // More than there is room for: the oldest have to go.
    let silent: Vec<_> = (0..80).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let begun = Instant::now();
    assert_eq!(http::get(address, "/healthz").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(silent);
}
