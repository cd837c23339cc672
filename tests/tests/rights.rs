//! Each right gives what it says, on the front end and on the agent: to read, to write, to delete.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;

use portolan_proto::failure::reason_of;
use portolan_proto::v1::agent_client::AgentClient;
use portolan_proto::v1::{self, Reason, write_request::Part};
use portolan_tests::client::Control;
use portolan_tests::{Cluster, admin_line, tree};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

const FILE: &str = "/domains/one.example/domainRegistry.bin";

/// A cluster with admins of these names and rights.
fn cluster_of(admins: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::start(tree::fill);
    let file = cluster.path().join("admins");
    let lines = admins.iter().map(|(name, rights)| admin_line(&[name, &format!("--rights={rights}")]));
    fs::write(&file, fs::read_to_string(&file).unwrap() + &lines.collect::<String>()).unwrap();
    cluster.restart_frontend(|config| config);
    cluster
}

/// An upload; the reply at its end.
fn uploaded(control: &mut Control, before: &str, command: &str, content: &[u8]) -> String {
    if !before.is_empty() {
        assert_eq!(control.ask(before).0, 350);
    }
    use std::io::Write as _;
    let mut data = control.passive();
    let (code, said) = control.ask(command);
    assert_eq!(code, 150, "{said}");
    data.write_all(content).unwrap();
    drop(data);
    let (code, said) = control.reply();
    assert_eq!(code, 226, "{said}");
    said
}

#[test]
fn who_may_write_and_not_read_learns_nothing_of_the_content_by_checksums() {
    let cluster = cluster_of(&[("writer", "write"), ("restorer", "restore")]);
    let path = cluster.domains(1).join("one.example/domainRegistry.bin");
    for name in ["writer", "restorer"] {
        fs::write(&path, b"secret").unwrap();
        let mut control = Control::login(cluster.frontend.address, name);
        for command in ["HASH", "XCRC", "XMD5", "XSHA1", "XSHA256", "XSHA512", "MD5"] {
            let (code, said) = control.ask(&format!("{command} {FILE}"));
            assert!(code >= 500 && !said.contains("exist"), "{name} {command}: {said}");
            // Whether there is a file, LIST says; that is no reason to say it in another way.
            let (missing, _) = control.ask(&format!("{command} {FILE}.missing"));
            assert_eq!(code, missing, "{name} {command}");
        }
        assert_eq!(control.fetch(&format!("RETR {FILE}")).0, 550);
        // What a restore needs to know.
        assert_eq!(control.ask(&format!("SIZE {FILE}")).1, "213 6");
        assert_eq!(control.ask(&format!("MDTM {FILE}")).0, 213);
        assert_eq!(control.ask(&format!("MLST {FILE}")).0, 250);
        let said = uploaded(&mut control, "", &format!("APPE {FILE}"), b"");
        assert!(said.contains("6 bytes") && !said.contains("CRC"), "{said}");
        for offset in (0..6).rev() {
            let said = uploaded(&mut control, &format!("REST {offset}"), &format!("STOR {FILE}"), b"");
            assert!(said.contains(&format!("{offset} bytes")), "{said}");
            assert!(offset == 0 || !said.contains("CRC"), "{said}");
        }
        // Of what it has sent itself it may know it.
        let said = uploaded(&mut control, "", &format!("STOR {FILE}"), b"123456789");
        assert!(said.contains("CRC-32 cbf43926"), "{said}");
    }
    // Who may read is told of the whole file.
    let mut admin = Control::login(cluster.frontend.address, "admin");
    let said = uploaded(&mut admin, "REST 5", &format!("STOR {FILE}"), b"6789");
    assert!(said.contains("CRC-32 cbf43926"), "{said}");
}

#[test]
fn the_right_to_delete_is_apart_from_the_right_to_write() {
    let mut cluster = cluster_of(&[
        ("writer", "backup,write"),
        ("remover", "delete"),
        ("restorer", "restore"),
        ("reader-2", "backup"),
    ]);
    for engine in ["native", "libunftp"] {
        cluster.restart_frontend(|config| {
            let config = config.replace("engine = \"native\"\n", "");
            config.replacen("[[listeners]]\n", &format!("[[listeners]]\nengine = \"{engine}\"\n"), 1)
        });
        let address = cluster.frontend.address;
        let folder = cluster.domains(1).join("one.example/users");
        let wire = "/domains/one.example/users";
        fs::create_dir_all(folder.join("empty")).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(folder.join(name), name).unwrap();
        }
        let refused = |control: &mut Control, command: &str| {
            let (code, said) = control.ask(command);
            assert!((550..554).contains(&code), "{engine} {command}: {said}");
            said
        };
        for name in ["writer", "reader-2"] {
            let mut control = Control::login(address, name);
            let said = refused(&mut control, &format!("DELE {wire}/a"));
            assert!(engine == "libunftp" || said.contains("the right to delete"), "{said}");
            refused(&mut control, &format!("RMD {wire}/empty"));
            refused(&mut control, &format!("DELE {wire}/missing"));
        }
        let mut writer = Control::login(address, "writer");
        assert_eq!(writer.store(&format!("{wire}/a"), b"new"), 226, "{engine}");
        assert_eq!(writer.store(&format!("{wire}/d"), b"d"), 226);
        assert_eq!(writer.ask(&format!("MKD {wire}/made")).0, 257);
        assert_eq!(writer.ask(&format!("RNFR {wire}/d")).0, 350);
        assert_eq!(writer.ask(&format!("RNTO {wire}/b")).0, 250, "a file replaces a file, as STOR does");
        assert_eq!(fs::read(folder.join("b")).unwrap(), b"d");
        let mut remover = Control::login(address, "remover");
        let said = refused(&mut remover, &format!("MKD {wire}/other"));
        assert!(engine == "libunftp" || said.contains("the right to write"), "{said}");
        assert_ne!(remover.store(&format!("{wire}/c"), b"x"), 226);
        assert_ne!(remover.fetch(&format!("RETR {wire}/c")).0, 226);
        let (_, listing) = remover.fetch(&format!("NLST {wire}"));
        assert!(String::from_utf8(listing).unwrap().contains('c'), "{engine}");
        let (code, _) = remover.ask(&format!("RNFR {wire}/c"));
        assert!(code >= 500 || remover.ask(&format!("RNTO {wire}/z")).0 >= 500, "{engine}");
        assert_eq!(fs::read(folder.join("c")).unwrap(), b"c");
        if engine == "native" {
            assert!((500..560).contains(&remover.ask(&format!("MFMT 20200101000000 {wire}/c")).0));
            assert!((500..560).contains(&remover.ask(&format!("SITE CHMOD 600 {wire}/c")).0));
            for (name, file, directory) in [
                ("writer", "perm=afrw;", "perm=ceflm;"),
                ("remover", "perm=d;", "perm=delp;"),
                ("restorer", "perm=adfw;", "perm=cdeflmp;"),
                ("reader-2", "perm=r;", "perm=el;"),
                ("admin", "perm=adfrw;", "perm=cdeflmp;"),
            ] {
                let mut control = Control::login(address, name);
                for (path, perm) in [("c", file), ("empty", directory)] {
                    let (_, said) = control.ask(&format!("MLST {wire}/{path}"));
                    assert!(said.contains(perm), "{name} {path}: {said}");
                }
            }
        }
        assert_eq!(remover.ask(&format!("DELE {wire}/c")).0, 250, "{engine}");
        assert_eq!(remover.ask(&format!("RMD {wire}/made")).0, 250, "{engine}");
        assert!(!folder.join("c").try_exists().unwrap() && !folder.join("made").try_exists().unwrap());
        // Restore is what it was.
        let mut restorer = Control::login(address, "restorer");
        assert_eq!(restorer.ask(&format!("DELE {wire}/a")).0, 250);
        assert_eq!(restorer.ask(&format!("RMD {wire}/empty")).0, 250);
    }
    // A node may allow a front end less than the front end allows its admins.
    let folder = cluster.domains(1).join("one.example/users");
    fs::write(folder.join("kept"), "kept").unwrap();
    cluster.restart_agent_with(1, "[[allow]]\nfrontend = \"front-1\"\nrights = [\"backup\", \"write\"]\n");
    cluster.restart_frontend(|config| config.replace("engine = \"libunftp\"\n", ""));
    let mut admin = Control::login(cluster.frontend.address, "admin");
    assert_eq!(admin.store("/domains/one.example/users/kept", b"new"), 226);
    let (code, said) = admin.ask("DELE /domains/one.example/users/kept");
    assert!(code == 550 && folder.join("kept").try_exists().unwrap(), "{said}");
}

async fn agent(cluster: &Cluster) -> AgentClient<Channel> {
    let read = |file: &str| fs::read(cluster.path().join("pki").join(file)).unwrap();
    let tls = ClientTlsConfig::new()
        .domain_name("mail-1")
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .identity(Identity::from_pem(read("front-1.pem"), read("front-1-key.pem")));
    let address = format!("https://{}", cluster.agent(1).address);
    let channel = Channel::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    AgentClient::new(channel)
}

fn caller(restore: bool, delete: Option<bool>) -> Option<v1::Caller> {
    let grant = Some(v1::Grant { restore, delete, ..v1::Grant::default() });
    Some(v1::Caller { admin: "anna".into(), session_id: "s1".into(), grant })
}

/// A front end of before the right to delete, and one that was taken over.
#[tokio::test]
async fn an_agent_checks_the_right_to_delete_and_tells_no_checksum_to_who_may_not_read() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(tree::fill)).await.unwrap();
    let mut agent = agent(&cluster).await;
    let path = |name: &str| -> bytes::Bytes { format!("domains/one.example/{name}").into_bytes().into() };
    for (restore, delete, allowed) in [
        (true, Some(false), false),
        (false, None, false),
        (false, Some(false), false),
        (true, None, true),
        (true, Some(true), true),
        (false, Some(true), true),
    ] {
        let folder = cluster.domains(1).join("one.example");
        fs::write(folder.join("file"), "x").unwrap();
        fs::create_dir_all(folder.join("folder")).unwrap();
        let request = v1::RemoveRequest { caller: caller(restore, delete), path: path("file") };
        let removed = agent.remove(request).await.map(drop).map_err(|status| reason_of(&status));
        let request = v1::RemoveDirectoryRequest { caller: caller(restore, delete), path: path("folder") };
        let directory = agent.remove_directory(request).await.map(drop).map_err(|status| reason_of(&status));
        let expected = if allowed { Ok(()) } else { Err(Some(Reason::NotGranted)) };
        assert_eq!((removed, directory), (expected, expected), "{restore} {delete:?}");
        assert_eq!(folder.join("file").try_exists().unwrap(), !allowed);
        assert_eq!(folder.join("folder").try_exists().unwrap(), !allowed);
    }
    let file = cluster.domains(1).join("one.example/file");
    for (offset, append, sent, crc32) in
        [(5, false, "6789", "6789"), (0, true, "", ""), (0, false, "123456789", "123456789")]
    {
        fs::write(&file, "12345").unwrap();
        let begin = v1::WriteBegin {
            caller: caller(true, None),
            path: path("file"),
            offset,
            append,
            ..Default::default()
        };
        let finish = v1::WriteFinish { length: sent.len() as u64, crc32c: crc32c::crc32c(sent.as_bytes()) };
        let mut parts = vec![Part::Begin(begin), Part::Finish(finish), Part::Commit(v1::WriteCommit {})];
        if !sent.is_empty() {
            parts.insert(1, Part::Chunk(sent.as_bytes().into()));
        }
        let messages: Vec<_> = parts.into_iter().map(|part| v1::WriteRequest { part: Some(part) }).collect();
        let mut answers = agent.write(tokio_stream::iter(messages)).await.unwrap().into_inner();
        let mut last = None;
        while let Some(answer) = answers.message().await.unwrap() {
            last = Some(answer);
        }
        let last = last.unwrap();
        assert_eq!(last.step(), v1::WriteStep::Committed);
        assert_eq!(last.crc32, crc32_of(crc32), "{offset} {append}");
    }
}

fn crc32_of(text: &str) -> u32 {
    let mut crc32 = flate2::Crc::new();
    crc32.update(text.as_bytes());
    crc32.sum()
}
