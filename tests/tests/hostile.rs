//! Clients and front ends that mean no good.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use portolan_proto::failure::reason_of;
use portolan_proto::v1::agent_client::AgentClient;
use portolan_proto::v1::{self, Reason, write_request::Part};
use portolan_tests::client::Control;
use portolan_tests::{Cluster, PASSWORD, eventually, tree};
use rand::{Rng as _, SeedableRng as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

#[test]
fn garbage_and_half_open_connections_do_not_disturb_others() {
    let cluster = Cluster::start(tree::fill);
    let address = cluster.frontend.address;
    let mut good = Control::login(address, "admin");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let mut open = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut noise = vec![0; 2_000];
        random.fill_bytes(&mut noise);
        match number % 4 {
            0 => stream.write_all(&noise).unwrap(),
            1 => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap(),
            2 => stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap(),
            _ => {}
        }
        open.push(stream);
    }
    assert_eq!(good.fetch("RETR /domains/one.example/domainRegistry.bin"), (226, b"one.example".to_vec()));
    drop(open);
    assert_eq!(good.ask("NOOP").0, 200);
    let log = cluster.frontend.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn sessions_past_the_limit_are_told_so_and_places_come_free() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with("limits = { simultaneous = 3 }");
    let address = cluster.frontend.address;
    let mut sessions: Vec<Control> = (0..3).map(|_| Control::connect(address)).collect();
    let mut refused = TcpStream::connect(address).unwrap();
    refused.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut text = String::new();
    refused.read_to_string(&mut text).unwrap();
    assert_eq!(text, "421 All 3 connections of this listener are in use; try again later.\r\n");
    sessions.pop();
    eventually("the place is free", || {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut code = [0; 3];
        stream.read_exact(&mut code).unwrap();
        (&code == b"220").then_some(())
    });
}

#[test]
fn thousands_of_broken_downloads_cost_no_other_transfer_its_node() {
    let cluster = Cluster::start(tree::fill);
    let address = cluster.frontend.address;
    std::fs::write(cluster.domains(1).join("one.example/large"), vec![7; 8 << 20]).unwrap();
    let mut other = Control::login(address, "admin");
    let mut data = other.passive();
    assert_eq!(other.ask("RETR /domains/one.example/large").0, 150);
    let mut breaking = Control::login(address, "admin");
    for number in 0..3_000 {
        let stream = breaking.passive();
        breaking.send(b"RETR /domains/one.example/large\r\nABOR\r\n").unwrap();
        drop(stream);
        // 150, 426 and 226, or without the first.
        while breaking.reply().0 != 226 {}
        assert_eq!(breaking.ask("NOOP").0, 200, "{number}");
    }
    let mut content = Vec::new();
    data.read_to_end(&mut content).unwrap();
    assert_eq!((other.reply().0, content.len()), (226, 8 << 20));
    assert!(!cluster.frontend.log().contains("node is away"));
}

#[test]
fn plaintext_logins_are_refused_where_tls_is_required() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with("tls_required = true");
    let mut control = Control::connect(cluster.frontend.address);
    let (code, _) = control.ask("USER admin");
    assert!(code >= 500, "{code}");
    assert!(control.ask(&format!("PASS {PASSWORD}")).0 >= 500);
    let listed = portolan_tests::client::curl(&cluster, &["--list-only"], "/domains/");
    assert!(listed.status.success(), "{}", portolan_tests::client::text(&listed));
}

#[test]
fn a_flood_of_passwords_closes_its_session_and_delays_nobody() {
    let cluster = Cluster::start(tree::fill);
    let address = cluster.frontend.address;
    let mut flood = Control::connect(address);
    flood.send(&b"USER admin\r\nPASS wrong-secret\r\n".repeat(600)).unwrap();
    let started = std::time::Instant::now();
    let mut good = Control::login(address, "admin");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(good.ask("NOOP").0, 200);
    let mut replies = 0;
    while flood.reply().0 != 0 {
        replies += 1;
    }
    assert!(replies < 1_200, "the session was closed");
    let refusals = cluster.frontend.wait_for_log("login refused").matches("login refused").count();
    assert!((1..=5).contains(&refusals), "{refusals}");
}

#[test]
fn wrong_passwords_are_refused_and_never_logged() {
    let cluster = Cluster::start(tree::fill);
    for (name, password) in [("admin", "wrong-secret"), ("nobody", PASSWORD), ("admin", "")] {
        let mut control = Control::connect(cluster.frontend.address);
        control.ask(&format!("USER {name}"));
        assert_eq!(control.ask(&format!("PASS {password}")).0, 530, "{name}");
        assert_eq!(control.ask("PWD").0, 530);
    }
    let log = eventually("all three are logged", || {
        Some(cluster.frontend.log()).filter(|log| log.matches("login refused").count() == 3)
    });
    assert!(!log.contains("wrong-secret") && !log.contains(PASSWORD), "{log}");
}

/// A channel to a node with the certificate of `name`.
async fn channel(
    cluster: &Cluster,
    node: usize,
    name: Option<&str>,
) -> Result<Channel, tonic::transport::Error> {
    let pki = cluster.path().join("pki");
    let read = |file: String| std::fs::read(pki.join(file)).expect("made by the cluster");
    let mut tls = ClientTlsConfig::new()
        .domain_name(format!("mail-{node}"))
        .ca_certificate(Certificate::from_pem(read("ca.pem".into())));
    if let Some(name) = name {
        tls = tls.identity(Identity::from_pem(read(format!("{name}.pem")), read(format!("{name}-key.pem"))));
    }
    let address = cluster.agent(node).address;
    Channel::from_shared(format!("https://{address}")).expect("an address").tls_config(tls)?.connect().await
}

fn caller(domain: Option<&str>, backup: bool, restore: bool) -> Option<v1::Caller> {
    let domain = domain.map(|name| name.as_bytes().to_vec().into());
    let grant = Some(v1::Grant { backup, restore, domain, delete: None });
    Some(v1::Caller { admin: "mallory".into(), session_id: "s1".into(), grant })
}

#[tokio::test]
async fn an_agent_serves_only_front_ends_of_its_authority() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(tree::fill)).await.unwrap();
    // TLS 1.3 tells the client of a refused certificate with its first answer.
    for stranger in [None, Some("mail-2")] {
        let refused = match channel(&cluster, 1, stranger).await {
            Err(_) => true,
            Ok(channel) => AgentClient::new(channel).describe(v1::DescribeRequest {}).await.is_err(),
        };
        assert!(refused, "{stranger:?} was served");
    }
    let mut agent = AgentClient::new(channel(&cluster, 1, Some("front-1")).await.unwrap());
    let described = agent.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((described.node.as_str(), described.store.as_str()), ("mail-1", "tree"));
    assert!(described.bytes_free > 0 && described.bytes_free <= described.bytes_total);
}

#[tokio::test]
async fn a_stolen_front_end_certificate_does_not_leave_the_store_or_its_grant() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(tree::fill)).await.unwrap();
    let mut agent = AgentClient::new(channel(&cluster, 1, Some("front-1")).await.unwrap());
    let all = || caller(None, true, true);
    for (path, caller, reason) in [
        ("../../etc/passwd", all(), Reason::BadName),
        ("/etc/passwd", all(), Reason::BadName),
        ("domains/one.example/../../../etc/passwd", all(), Reason::BadName),
        ("domains/one.example//x", all(), Reason::BadName),
        (".portolan/lock", all(), Reason::NotFound),
        ("", all(), Reason::NotFound),
        (
            "domains/spread.example/domainRegistry.bin",
            caller(Some("one.example"), true, true),
            Reason::NotGranted,
        ),
        ("domains/one.example/domainRegistry.bin", caller(None, false, true), Reason::NotGranted),
        ("domains/one.example/domainRegistry.bin", None, Reason::BadRequest),
    ] {
        let request =
            v1::ReadRequest { caller, path: path.as_bytes().to_vec().into(), offset: 0, length: None };
        let status = agent.read(request).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(reason), "{path}: {status}");
    }
}

#[test]
fn a_front_end_may_do_on_a_node_what_the_node_allows_it_and_no_more() {
    let mut cluster = Cluster::start(tree::fill);
    let made = std::process::Command::new(portolan_tests::program("portolan"))
        .args(["pki", "init"])
        .arg(cluster.path().join("pki"))
        .arg("--frontend=stranger")
        .output()
        .unwrap();
    assert!(made.status.success());
    cluster.restart_agent_with(
        1,
        "[[allow]]\nfrontend = \"front-1\"\nrights = [\"backup\"]\ndomains = [\"one.*\"]\n",
    );
    // Whatever grant it states.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let read = |name: &'static str, path: &'static str| {
        let request = v1::ReadRequest {
            caller: caller(None, true, true),
            path: path.as_bytes().to_vec().into(),
            offset: 0,
            length: None,
        };
        runtime.block_on(async {
            let mut agent = AgentClient::new(channel(&cluster, 1, Some(name)).await.unwrap());
            agent.read(request).await.map(drop).map_err(|status| reason_of(&status))
        })
    };
    assert_eq!(read("front-1", "domains/one.example/domainRegistry.bin"), Ok(()));
    assert_eq!(read("front-1", "domains/spread.example/domainRegistry.bin"), Err(Some(Reason::NotGranted)));
    assert_eq!(read("stranger", "domains/one.example/domainRegistry.bin"), Err(Some(Reason::NotGranted)));
    let address = cluster.frontend.address;
    let mut control = eventually("the node is heard again", || {
        let mut control = Control::login(address, "admin");
        (control.fetch("RETR /domains/one.example/domainRegistry.bin").0 == 226).then_some(control)
    });
    assert_eq!(control.store("/domains/one.example/domainRegistry.bin", b"new"), 550);
    assert_eq!(control.ask("DELE /domains/one.example/domainRegistry.bin").0, 550);
    assert_eq!(control.fetch("RETR /domains/spread.example/domainRegistry.bin").0, 550);
    cluster.agent(1).wait_for_log("no rule allows it to this front end");
    let file = cluster.domains(1).join("one.example/domainRegistry.bin");
    assert_eq!(std::fs::read(file).unwrap(), b"one.example");
}

/// What an agent answers last to the messages of an upload.
async fn last_answer(
    agent: &mut AgentClient<tonic::transport::Channel>,
    messages: Vec<v1::WriteRequest>,
) -> Result<v1::WriteResponse, tonic::Status> {
    let mut answers = agent.write(tokio_stream::iter(messages)).await?.into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await? {
        last = Some(answer);
    }
    last.ok_or_else(|| tonic::Status::unknown("no answer"))
}

#[tokio::test]
async fn an_upload_without_its_finish_changes_nothing() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(tree::fill)).await.unwrap();
    let mut agent = AgentClient::new(channel(&cluster, 1, Some("front-1")).await.unwrap());
    let path = "domains/one.example/domainRegistry.bin";
    let begin = || {
        let path = path.as_bytes().to_vec().into();
        let caller = caller(None, false, true);
        Part::Begin(v1::WriteBegin {
            caller,
            path,
            offset: 0,
            modified_ns: None,
            exclusive: false,
            append: false,
        })
    };
    let chunk = |bytes: &'static [u8]| Part::Chunk(bytes.into());
    let finish = |length, crc32c| Part::Finish(v1::WriteFinish { length, crc32c });
    let commit = || Part::Commit(v1::WriteCommit {});
    let crc = crc32c::crc32c(b"newest");
    for (what, parts) in [
        ("nothing", vec![]),
        ("no finish", vec![begin(), chunk(b"new")]),
        ("no begin", vec![chunk(b"new")]),
        ("two begins", vec![begin(), begin()]),
        ("an empty chunk", vec![begin(), chunk(b""), finish(0, 0)]),
        ("a wrong length", vec![begin(), chunk(b"newest"), finish(5, crc)]),
        ("a wrong checksum", vec![begin(), chunk(b"newest"), finish(6, crc + 1)]),
        ("no commit", vec![begin(), chunk(b"newest"), finish(6, crc)]),
        ("a commit without a finish", vec![begin(), chunk(b"newest"), commit()]),
        (
            "more after the finish",
            vec![begin(), chunk(b"newest"), finish(6, crc), chunk(b"newest"), commit()],
        ),
    ] {
        let messages: Vec<_> = parts.into_iter().map(|part| v1::WriteRequest { part: Some(part) }).collect();
        last_answer(&mut agent, messages).await.expect_err(what);
    }
    let file = cluster.domains(1).join("one.example/domainRegistry.bin");
    assert_eq!(std::fs::read(&file).unwrap(), b"one.example");
    assert_eq!(std::fs::read_dir(cluster.path().join("node-1/.portolan/staging")).unwrap().count(), 0);
    let parts = vec![begin(), chunk(b"new"), chunk(b"est"), finish(6, crc), commit()];
    let messages: Vec<_> = parts.into_iter().map(|part| v1::WriteRequest { part: Some(part) }).collect();
    let committed = last_answer(&mut agent, messages).await.unwrap();
    assert_eq!((committed.step(), committed.size), (v1::WriteStep::Committed, 6));
    assert_eq!(std::fs::read(&file).unwrap(), b"newest");

    let request = v1::DigestRequest {
        caller: caller(None, true, false),
        path: path.as_bytes().to_vec().into(),
        algorithm: v1::DigestAlgorithm::Sha256.into(),
        offset: 0,
        length: None,
    };
    let digest = agent.digest(request).await.unwrap().into_inner();
    use sha2::Digest as _;
    assert_eq!(&digest.digest[..], &sha2::Sha256::digest(b"newest")[..]);
}
