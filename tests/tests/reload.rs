//! A front end that goes on: reloads, renewed certificates, drains, and what the operator sees and does meanwhile.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, succeeded, text};
use portolan_tests::tree::put;
use portolan_tests::{Cluster, PASSWORD, admin_line, eventually, program, tree};
use rustix::process::Signal;
use sha2::Digest as _;

const GIB: u64 = 1 << 30;

fn code(address: SocketAddr) -> u16 {
    Control::over(std::net::TcpStream::connect(address).unwrap()).reply().0
}

#[test]
fn a_reload_changes_rules_limits_admins_map_and_log_and_drops_no_session() {
    let cluster = Cluster::start(tree::fill);
    let address = cluster.frontend.address;
    let mut reader = Control::login(address, "reader");
    let mut admin = Control::login(address, "admin");
    assert_eq!(cluster.reload(), "reloaded; nothing has changed\n");
    assert_eq!(admin.ask("MKD /domains/new.example").0, 550);

    cluster.edit_config(|config| {
        config
            .replace("passive_ports", "limits = { simultaneous = 2 }\npassive_ports")
            .replace("[log]", "[log]\nlevel = \"debug\"")
            + "[[map.domains]]\nname = \"new.example\"\nnodes = [\"mail-3\"]\n"
    });
    let admins = cluster.path().join("admins");
    let lines = fs::read_to_string(&admins).unwrap();
    let kept: String = lines.lines().filter(|line| !line.starts_with("reader:")).collect();
    fs::write(&admins, kept + "\n" + &admin_line(&["carol", "--rights=backup"])).unwrap();
    let told = cluster.reload();
    for expected in [
        "listener 127.0.0.1:0 is changed",
        "the admins are changed",
        "the map is changed",
        "the log is changed",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    // Who is in stays in, with what the session had; new ones meet the new limit.
    assert_eq!(reader.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    assert_eq!(code(address), 421);
    drop(reader);
    eventually("the place is free", || (code(address) == 220).then_some(()));
    let mut carol = eventually("the place is free", || {
        let mut control = Control::over(std::net::TcpStream::connect(address).unwrap());
        (control.reply().0 == 220).then_some(control)
    });
    carol.log_in("carol");
    carol.ask("USER reader");
    assert_eq!(carol.ask(&format!("PASS {PASSWORD}")).0, 530);
    assert_eq!(admin.ask("MKD /domains/new.example").0, 257);
    assert!(cluster.domains(3).join("new.example").is_dir());
    eventually("debug lines are written", || {
        cluster.frontend.log().contains("\"level\":\"DEBUG\"").then_some(())
    });

    // SIGHUP does the same.
    cluster.edit_config(|config| config.replace("simultaneous = 2", "simultaneous = 3"));
    cluster.frontend.signal(Signal::HUP);
    eventually("one more place", || (code(address) == 220).then_some(()));
    // Access rules, also of sessions that are there already: they stay.
    cluster.edit_config(|config| config.replace("passive_ports", "access = []\npassive_ports"));
    cluster.reload();
    assert_eq!(code(address), 421);
    assert_eq!(admin.ask("NOOP").0, 200);
}

#[test]
fn a_faulty_configuration_is_refused_as_a_whole_with_all_its_faults() {
    let cluster = Cluster::start(tree::fill);
    let address = cluster.frontend.address;
    let good = fs::read_to_string(cluster.path().join("frontend.toml")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap();
    let limited = good.replace("passive_ports", "limits = { simultaneous = 1 }\npassive_ports");
    let more = format!("[[listeners]]\naddress = \"{taken_address}\"\ntls = \"off\"\n");
    for (config, told) in [
        (
            limited.replace("passive_ports", "idle_timeout = \"1s\"\nspeed = 3\npassive_ports"),
            vec![
                "listeners[0].idle_timeout: 1s is out of range",
                "listeners[0].speed: unknown key",
                "2 faults",
            ],
        ),
        (limited.clone() + &more, vec!["cannot listen on", "Address already in use"]),
        (
            limited.clone() + "[tracing]\nendpoint = \"http://127.0.0.1:4317\"\n",
            vec!["tracing: changed, which takes a restart"],
        ),
        (limited.clone() + "[threads]\nmin = 3\n", vec!["threads: changed, which takes a restart"]),
        ("not toml".to_owned(), vec!["not TOML"]),
    ] {
        cluster.edit_config(|_| config);
        let output = cluster.operate(&["reload"]);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        for told in told {
            assert!(shown.contains(told), "{told}: {shown}");
        }
        // Not even the half that was right is in force.
        let held = [code(address), code(address)];
        assert_eq!(held, [220, 220]);
    }
    let shown = succeeded(&cluster.operate(&["status"]));
    assert!(shown.contains("was refused:\n") && shown.contains("not TOML"), "{shown}");
    eventually("each refusal is logged", || {
        let log = cluster.frontend.log();
        let refused = "the new configuration is refused; the old one stays in force";
        (log.matches(refused).count() == 5).then_some(())
    });
    cluster.edit_config(|_| good);
    assert_eq!(cluster.reload(), "reloaded; nothing has changed\n");
}

#[test]
fn listeners_come_and_go_with_a_reload() {
    let cluster = Cluster::start(tree::fill);
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let added: SocketAddr = ([127, 0, 0, 1], port).into();
    let more = format!("[[listeners]]\naddress = \"{added}\"\ntls = \"off\"\nengine = \"libunftp\"\n");
    cluster.edit_config(|config| config + &more);
    assert_eq!(cluster.reload(), format!("listener {added} is added\n"));
    let mut native = Control::login(cluster.frontend.address, "admin");
    let mut library = Control::login(added, "admin");
    let shown = succeeded(&cluster.operate(&["status"]));
    assert!(shown.contains("libunftp  off") && shown.contains("native    explicit"), "{shown}");

    cluster.edit_config(|config| config.replace(&more, ""));
    assert_eq!(cluster.reload(), format!("listener {added} is removed; its sessions go on\n"));
    assert!(std::net::TcpStream::connect(added).is_err());
    assert_eq!(library.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    assert_eq!(native.ask("NOOP").0, 200);
    // And back again, at the same address.
    cluster.edit_config(|config| config + &more);
    cluster.reload();
    assert_eq!(code(added), 220);
}

/// What curl does as `admin`, over explicit TLS and no faster than `rate`.
fn curl(cluster: &Cluster, rate: &str, arguments: &[&str], path: &str) -> Child {
    Command::new("curl")
        .args(["--silent", "--show-error", "--ssl-reqd", "--max-time", "120", "--limit-rate", rate])
        .args(["--user", &format!("admin:{PASSWORD}"), "--cacert"])
        .arg(cluster.authority())
        .args(arguments)
        .arg(format!("ftp://{}{path}", cluster.frontend.address))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) {
    succeeded(&child.wait_with_output().unwrap());
}

/// A file of 1 GiB that is not all the same, in a moment.
fn large_file(path: &Path) -> Vec<u8> {
    let block: Vec<u8> =
        (0..1 << 20).map(|number: u32| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = fs::File::create(path).unwrap();
    for _ in 0..GIB >> 20 {
        file.write_all(&block).unwrap();
    }
    digest(path)
}

fn digest(path: &Path) -> Vec<u8> {
    let mut file = fs::File::open(path).unwrap();
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hash.finalize().to_vec(),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn renew(cluster: &Cluster) {
    let pki = cluster.path().join("pki");
    for name in ["front-1.pem", "front-1-key.pem"] {
        fs::remove_file(pki.join(name)).unwrap();
    }
    let made = Command::new(program("portolan"))
        .args(["pki", "init"])
        .arg(&pki)
        .args(["--frontend=front-1", "--alias=127.0.0.1", "--alias=renewed.example"])
        .output()
        .unwrap();
    succeeded(&made);
}

#[test]
fn a_gibibyte_survives_reloads_new_certificates_the_end_of_its_listener_and_a_drain() {
    let mut cluster = Cluster::start(tree::fill);
    // Long enough for a machine that does something else too.
    cluster.restart_frontend(|config| config.replace("drain_timeout = \"5s\"", "drain_timeout = \"300s\""));
    let remote = cluster.domains(1).join("one.example/large");
    let expected = large_file(&remote);
    let (local, fetched) = (cluster.path().join("upload"), cluster.path().join("fetched"));
    fs::hard_link(&remote, &local).unwrap();
    let uploaded = cluster.domains(1).join("one.example/uploaded");
    let started = Instant::now();
    let down =
        curl(&cluster, "110M", &["--output", &fetched.to_string_lossy()], "/domains/one.example/large");
    let up =
        curl(&cluster, "110M", &["--upload-file", &local.to_string_lossy()], "/domains/one.example/uploaded");
    let moved = |least: u64| {
        eventually("content moves", || {
            (fs::metadata(&fetched).is_ok_and(|found| found.len() > least)).then_some(())
        });
    };
    moved(1 << 20);
    let shown = succeeded(&cluster.operate(&["status"]));
    for expected in [
        "RETR /domains/one.example/large: ",
        "STOR /domains/one.example/uploaded: ",
        "/s\n",
        "  admin  127.0.0.1:",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }

    cluster.edit_config(|config| config.replace("passive_ports", "idle_timeout = \"20s\"\npassive_ports"));
    cluster.reload();
    renew(&cluster);
    eventually("the certificates are renewed", || {
        let log = cluster.frontend.log();
        (log.contains("the certificates of a listener are renewed")
            && log.contains("the certificates of the cluster are renewed"))
        .then_some(())
    });
    // A new client meets the new certificate, and the nodes are there.
    let named = ["--resolve", "renewed.example:PORT:127.0.0.1"];
    let resolve = named[1].replace("PORT", &cluster.frontend.address.port().to_string());
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--ssl-reqd", named[0], &resolve, "--cacert"])
        .arg(cluster.authority())
        .args(["--user", &format!("admin:{PASSWORD}")])
        .arg(format!("ftp://renewed.example:{}/domains/two.example/", cluster.frontend.address.port()))
        .output()
        .unwrap();
    succeeded(&output);

    // Its listener goes, another one is there.
    let address = cluster.frontend.address;
    cluster.edit_config(|config| config.replace("address = \"127.0.0.1:0\"", "address = \"127.0.0.2:0\""));
    let told = cluster.reload();
    assert!(told.contains("127.0.0.2:0 is added") && told.contains("127.0.0.1:0 is removed"), "{told}");
    assert!(std::net::TcpStream::connect(address).is_err());
    let so_far = fs::metadata(&fetched).unwrap().len();
    cluster.frontend.signal(Signal::TERM);
    cluster.frontend.wait_for_log("front end drains");
    let shown = succeeded(&cluster.operate(&["status"]));
    assert!(shown.contains("draining since"), "{shown}");
    assert!(so_far < GIB / 10 * 9, "{so_far} bytes before the drain: too fast to show anything");
    finish(down);
    finish(up);
    println!("1 GiB each way, at once, in {:?}; {so_far} bytes before the drain", started.elapsed());
    assert_eq!(digest(&fetched), expected);
    assert_eq!(digest(&uploaded), expected);
    assert_eq!(cluster.frontend.wait(), Some(0));
    cluster.frontend.wait_for_log("front end drained\",\"finished\":2,\"failed\":0,\"cut\":0");
}

/// What openssl gets from an agent that it shows a certificate of ours: the agent's certificate, and what is said.
fn meet_agent(cluster: &Cluster, number: usize, shown: &Path) -> String {
    let address = cluster.agent(number).address.to_string();
    let mut client = Command::new("timeout");
    client.args(["10", "openssl", "s_client", "-alpn", "h2", "-connect", &address, "-cert"]);
    client.arg(shown.join("front-1.pem")).arg("-key").arg(shown.join("front-1-key.pem"));
    text(&client.stdin(Stdio::null()).output().unwrap())
}

#[test]
fn an_authority_is_replaced_under_a_download_without_a_restart() {
    let cluster = Cluster::start(tree::fill);
    let remote = cluster.domains(1).join("one.example/large");
    let (expected, fetched) = (large_file(&remote), cluster.path().join("fetched"));
    let down = curl(&cluster, "35M", &["--output", &fetched.to_string_lossy()], "/domains/one.example/large");
    let (pki, old, new) =
        (cluster.path().join("pki"), cluster.path().join("old"), cluster.path().join("new"));
    let made = Command::new(program("portolan"))
        .args(["pki", "init"])
        .arg(&new)
        .args((1..=3).map(|number| format!("--node=mail-{number}")))
        .args(["--frontend=front-1", "--alias=127.0.0.1"])
        .output();
    succeeded(&made.unwrap());
    succeeded(&Command::new("cp").arg("-a").arg(&pki).arg(&old).output().unwrap());
    // As a volume of Kubernetes changes: each file at once.
    let replace = |name: &str, content: Vec<u8>| {
        let beside = pki.join("beside");
        fs::write(&beside, content).unwrap();
        fs::set_permissions(&beside, fs::metadata(pki.join(name)).unwrap().permissions()).unwrap();
        fs::rename(&beside, pki.join(name)).unwrap();
    };
    let renewed = |times: usize| {
        eventually("all have taken the certificates", || {
            let line = "the certificates are renewed";
            let agents = (1..=3).all(|number| cluster.agent(number).log().matches(line).count() == times);
            let line = "the certificates of the cluster are renewed";
            (agents && cluster.frontend.log().matches(line).count() == times).then_some(())
        });
    };

    // A file that is no certificate changes nothing, and is told once.
    let kept = fs::read(pki.join("mail-2.pem")).unwrap();
    replace("mail-2.pem", b"nonsense".to_vec());
    cluster.agent(2).wait_for_log("cannot be used; the old ones stay");
    assert!(meet_agent(&cluster, 2, &old).contains("subject=CN = mail-2"));
    replace("mail-2.pem", kept);

    // Both authorities are trusted, then all have certificates of the new one, then the old one is not trusted.
    let authority = |folder: &Path| fs::read(folder.join("ca.pem")).unwrap();
    replace("ca.pem", [authority(&old), authority(&new)].concat());
    renewed(1);
    for name in ["mail-1", "mail-2", "mail-3", "front-1"] {
        for file in [format!("{name}.pem"), format!("{name}-key.pem")] {
            replace(&file, fs::read(new.join(&file)).unwrap());
        }
    }
    renewed(2);
    replace("ca.pem", authority(&new));
    renewed(3);

    let verify = ["verify", "-CAfile"];
    let shown = |number| {
        let said = meet_agent(&cluster, number, &new);
        let certificate = cluster.path().join("shown.pem");
        fs::write(&certificate, &said).unwrap();
        let verified =
            Command::new("openssl").args(verify).arg(new.join("ca.pem")).arg(&certificate).output();
        assert!(succeeded(&verified.unwrap()).contains("OK"), "{said}");
    };
    (1..=3).for_each(shown);
    assert!(!cluster.agent(3).log().contains("TLS handshake failed"), "{}", cluster.agent(3).log());
    meet_agent(&cluster, 3, &old);
    assert!(cluster.agent(3).wait_for_log("TLS handshake failed").contains("invalid peer certificate"));
    let mut control = Control::login(cluster.frontend.address, "admin");
    for domain in ["one.example", "two.example", "spread.example"] {
        assert_eq!(control.fetch(&format!("NLST /domains/{domain}")).0, 226);
    }
    assert!(
        fs::metadata(&fetched).unwrap().len() < GIB / 10 * 9,
        "the download was too fast to show anything"
    );
    finish(down);
    assert_eq!(digest(&fetched), expected);
    assert!(!cluster.frontend.log().contains("node is away"), "{}", cluster.frontend.log());
}

#[test]
fn what_a_drain_cuts_commits_nothing_and_is_counted() {
    for second_signal in [false, true] {
        let mut cluster = Cluster::start(tree::fill);
        let timeout = if second_signal { "600s" } else { "1s" };
        cluster.restart_frontend(|config| {
            config.replace("drain_timeout = \"5s\"", &format!("drain_timeout = \"{timeout}\""))
        });
        let file = cluster.domains(1).join("one.example/kept");
        put(&file, b"old");
        let mut control = Control::login(cluster.frontend.address, "admin");
        let mut data = control.passive();
        assert_eq!(control.ask("STOR /domains/one.example/kept").0, 150);
        data.write_all(&vec![1; 1 << 20]).unwrap();
        cluster.frontend.signal(Signal::TERM);
        if second_signal {
            cluster.frontend.wait_for_log("front end drains");
            cluster.frontend.signal(Signal::TERM);
        }
        assert_eq!(cluster.frontend.wait(), Some(0));
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert!(data.write_all(&vec![1; 1 << 20]).and_then(|()| data.write_all(&vec![1; 1 << 20])).is_err());
        cluster.frontend.wait_for_log("\"finished\":0,\"failed\":0,\"cut\":1");
        assert!(!cluster.path().join("control.sock").try_exists().unwrap());
    }
}

#[test]
fn the_operator_ends_a_session_and_its_upload_is_not_kept() {
    for engine in ["native", "libunftp"] {
        let mut cluster = Cluster::start(tree::fill);
        cluster.restart_with(&format!("engine = \"{engine}\""));
        let file = cluster.domains(1).join("one.example/kept");
        put(&file, b"old");
        let mut other = Control::login(cluster.frontend.address, "reader");
        let mut control = Control::login(cluster.frontend.address, "admin");
        let mut data = control.passive();
        assert_eq!(control.ask("STOR /domains/one.example/kept").0, 150);
        data.write_all(&vec![1; 1 << 20]).unwrap();
        let id = eventually("the session is shown with its transfer", || {
            let shown = succeeded(&cluster.operate(&["status"]));
            let line =
                shown.lines().find(|line| line.contains("STOR /domains/one.example/kept: 1"))?.to_owned();
            Some(line.split(' ').next()?.to_owned())
        });
        succeeded(&cluster.operate(&["kick", &id]));
        if engine == "native" {
            let expected = "421 Session closed by the operator.".to_owned();
            assert_eq!(control.reply(), (421, expected));
        }
        assert_eq!(control.reply().0, 0);
        drop(data);
        eventually("the session is gone", || {
            let shown = succeeded(&cluster.operate(&["status"]));
            (!shown.lines().any(|line| line.starts_with(&id))).then_some(())
        });
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(other.ask("NOOP").0, 200);
        assert_eq!(succeeded(&cluster.operate(&["kick", "--admin", "reader"])), "sessions asked to end: 1\n");
        eventually("its session is gone", || (other.ask("NOOP").0 != 200).then_some(()));
        let missing = cluster.operate(&["kick", &id]);
        assert_eq!(
            (missing.status.code(), text(&missing)),
            (Some(1), format!("portolan: there is no session \"{id}\"\n"))
        );
    }
}

/// A transfer of the library runs in a task of its own.
#[test]
fn a_download_ends_with_its_session_with_either_engine() {
    for engine in ["native", "libunftp"] {
        let mut cluster = Cluster::start(tree::fill);
        cluster.restart_with(&format!("engine = \"{engine}\"\nlimits = {{ simultaneous = 2 }}"));
        fs::write(cluster.domains(1).join("one.example/large"), vec![7; 64 << 20]).unwrap();
        let address = cluster.frontend.address;
        let begin = || {
            let mut control = Control::login(address, "admin");
            let data = control.passive();
            assert_eq!(control.ask("RETR /domains/one.example/large").0, 150);
            (control, data)
        };
        let received = |mut data: std::net::TcpStream| {
            let (mut buffer, mut count) = (vec![0; 1 << 20], 0);
            while let Ok(read @ 1..) = data.read(&mut buffer) {
                count += read;
            }
            count
        };
        let (control, data) = begin();
        let shown = succeeded(&cluster.operate(&["status"]));
        assert!(shown.contains("RETR /domains/one.example/large"), "{shown}");
        succeeded(&cluster.operate(&["kick", "--admin", "admin"]));
        let count = received(data);
        assert!(count < 32 << 20, "{engine}: {count} bytes came after the kick");
        drop(control);
        // Who closes the control connection gives up the download, and has its place until that has ended.
        let mut open = Vec::new();
        for _ in 0..10 {
            let (control, data) = eventually("a place is free", || {
                let mut control = Control::over(std::net::TcpStream::connect(address).unwrap());
                if control.reply().0 != 220 {
                    return None;
                }
                control.log_in("admin");
                let data = control.passive();
                (control.ask("RETR /domains/one.example/large").0 == 150).then_some((control, data))
            });
            drop(control);
            open.push(data);
        }
        eventually("no session is left", || {
            succeeded(&cluster.operate(&["status"])).contains("\n0 sessions").then_some(())
        });
        for data in open {
            let count = received(data);
            assert!(count < 32 << 20, "{engine}: {count} bytes came without a session");
        }
    }
}

#[test]
fn a_drain_waits_for_transfers_only() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| {
        config.replace("drain_timeout = \"5s\"", "drain_timeout = \"60s\"")
            + "[[listeners]]\naddress = \"127.0.0.1:0\"\ntls = \"implicit\"\ncertificate = \"pki/front-1.pem\"\n\
               key = \"pki/front-1-key.pem\"\npassive_ports = \"10000-19999\"\n\
               proxy_protocol = { trusted = [\"127.0.0.99\"], data = \"header\" }\n"
    });
    let [explicit, implicit] = cluster.frontend.addresses[..] else { panic!("two listeners") };
    let mut handshake = Control::connect(explicit);
    assert_eq!(handshake.ask("AUTH TLS").0, 234);
    let _silent = std::net::TcpStream::connect(implicit).unwrap();
    let _headless = portolan_tests::client::connect_from([127, 0, 0, 99].into(), implicit).unwrap();
    let mut deaf = Control::login(explicit, "admin");
    for _ in 0..30_000 {
        // Until its replies fill all buffers.
        if deaf.send(b"FEAT\r\n").is_err() {
            break;
        }
    }
    let mut ahead = Control::login(explicit, "admin");
    ahead.send("HASH /domains/one.example/domainRegistry.bin\r\n".repeat(60).as_bytes()).unwrap();
    // However often a reload is asked for, once more is enough.
    for _ in 0..200 {
        cluster.frontend.signal(Signal::HUP);
    }
    let started = Instant::now();
    cluster.frontend.signal(Signal::TERM);
    eventually("nobody is let in", || std::net::TcpStream::connect(explicit).is_err().then_some(()));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(cluster.frontend.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn sessions_keep_what_they_began_with_and_reloads_leave_nothing_behind() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with("passive_address = \"localhost\"\nengine = \"native\"");
    let mut before = Control::login(cluster.frontend.address, "admin");
    cluster.edit_config(|config| config.replace("\"localhost\"", "\"192.0.2.1\""));
    cluster.reload();
    assert!(before.ask("PASV").1.contains("(127,0,0,1,"));
    assert!(Control::login(cluster.frontend.address, "admin").ask("PASV").1.contains("(192,0,2,1,"));

    let count = |kind: &str| fs::read_dir(format!("/proc/{}/{kind}", cluster.frontend.id())).unwrap().count();
    cluster.edit_config(|config| config.replace("engine = \"native\"", "engine = \"libunftp\""));
    cluster.reload();
    let (threads, files) = (count("task"), count("fd"));
    let mut held = Vec::new();
    for number in 10..40 {
        held.push(Control::login(cluster.frontend.address, "admin"));
        if held.len() > 10 {
            held.remove(0);
        }
        cluster.edit_config(|config| {
            let mut lines: Vec<String> = config.lines().map(str::to_owned).collect();
            lines.retain(|line| !line.starts_with("idle_timeout"));
            lines.join("\n").replace("passive_ports", &format!("idle_timeout = \"{number}s\"\npassive_ports"))
        });
        cluster.reload();
    }
    // Workers that block come and go, and so do the last of the sessions that have left.
    eventually("threads are few", || (count("task") <= threads + 4).then_some(()));
    eventually("only held sessions have files", || (count("fd") <= files + 4 * held.len()).then_some(()));
    drop(held);
    eventually("all sessions are gone", || (count("fd") <= files + 4).then_some(()));
}

#[test]
fn the_control_socket_is_for_its_user_alone_and_a_stale_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut cluster = Cluster::start(tree::fill);
    let socket = cluster.path().join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Another user, whom the mode would let in.
    fs::set_permissions(cluster.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let copy = cluster.path().join("portolan");
    fs::copy(program("portolan"), &copy).unwrap();
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["status", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        text(&nobody).contains("only root and the front end's own user may do this"),
        "{}",
        text(&nobody)
    );
    // Killed, so that the socket stays behind.
    cluster.restart_frontend(|config| config);
    succeeded(&cluster.operate(&["status"]));
    // Two of them do not share one.
    let second = Command::new(program("portolan-frontend"))
        .arg("--config")
        .arg(cluster.path().join("frontend.toml"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains("another front end uses it"), "{}", text(&second));
    cluster.frontend.signal(Signal::TERM);
    assert_eq!(cluster.frontend.wait(), Some(0));
    let gone = cluster.operate(&["status"]);
    assert!(
        gone.status.code() == Some(1) && text(&gone).contains("no front end answers at"),
        "{}",
        text(&gone)
    );
}

#[test]
fn the_service_manager_is_told_and_its_sockets_are_taken() {
    let cluster = Cluster::start(tree::fill);
    let folder = cluster.path();
    let notify = UnixDatagram::bind(folder.join("notify.sock")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = fs::read_to_string(folder.join("frontend.toml")).unwrap();
    let config =
        config.replacen("127.0.0.1:0", &address.to_string(), 1).replace("control.sock", "second.sock");
    fs::write(folder.join("second.toml"), config).unwrap();
    // As systemd does: the socket is file 3, and the process is told that it is meant.
    let script = "import os, socket, sys\n\
        listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n\
        os.dup2(listener.fileno(), 3)\n\
        os.set_inheritable(3, True)\n\
        os.environ['LISTEN_FDS'] = '1'\n\
        os.environ['LISTEN_PID'] = str(os.getpid())\n\
        os.execv(sys.argv[3], sys.argv[3:])\n";
    drop(socket);
    let mut child = Command::new("python3")
        .args(["-c", script, &address.ip().to_string(), &address.port().to_string()])
        .arg(program("portolan-frontend"))
        .arg("--config")
        .arg(folder.join("second.toml"))
        .env("NOTIFY_SOCKET", folder.join("notify.sock"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let count = notify.recv(&mut buffer).expect("the front end tells it");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    assert_eq!(told(), "READY=1\n");
    Control::login(address, "admin");
    let signal = |signal| {
        let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    };
    signal(Signal::HUP);
    let reloading = told();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(), "READY=1\n");
    signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn nodes_come_go_and_move_by_a_reload_while_transfers_go_on() {
    let mut cluster = Cluster::start_many(4, |folder| {
        tree::fill(folder);
        tree::put(&folder.join("node-4/domains/four.example/users/x/big.eml"), &tree::noise(32 << 20));
    });
    let list = |session: &mut Control| {
        let (code, names) = session.fetch("NLST /domains");
        (code, String::from_utf8(names).unwrap().contains("four.example"))
    };
    let mut session = Control::login(cluster.frontend.address, "admin");
    eventually("all are heard", || (list(&mut session) == (226, true)).then_some(()));
    let mut loading = Control::login(cluster.frontend.address, "admin");
    let mut data = loading.passive();
    assert_eq!(loading.ask("RETR /domains/four.example/users/x/big.eml").0, 150);

    // Taken out: what it alone held is no more, and what is under way ends in order.
    let address = cluster.agent(4).address;
    let table = format!("[[nodes]]\nname = \"mail-4\"\naddress = \"{address}\"\n");
    cluster.edit_config(|config| config.replace(&table, ""));
    assert!(cluster.reload().contains("the nodes are changed"));
    assert_eq!(list(&mut session), (226, false));
    assert_eq!(session.ask("CWD /domains/four.example").0, 550);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut data, &mut content).unwrap();
    assert_eq!((loading.reply().0, content == tree::noise(32 << 20)), (226, true));

    // Back, at another address: until it is heard nobody says that it holds nothing.
    cluster.kill_agent(4);
    cluster.edit_config(|config| config + &table);
    cluster.reload();
    assert_eq!(list(&mut session).0, 450);
    cluster.move_agent(4, "127.0.0.1:0".parse().unwrap());
    let moved = cluster.agent(4).address.to_string();
    cluster.edit_config(|config| config.replace(&address.to_string(), &moved));
    cluster.reload();
    eventually("it is heard at its new address", || (list(&mut session) == (226, true)).then_some(()));
    assert_eq!(session.fetch("RETR /domains/four.example/users/x/big.eml").0, 226);
}
