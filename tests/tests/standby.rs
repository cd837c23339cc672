//! Standbys: read while their node is away, written to only where that is configured.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::path::Path;
use std::process::Command;

use portolan_tests::client::{Control, lftp, succeed, succeeded};
use portolan_tests::link::Link;
use portolan_tests::tree::{self, assert_same, put};
use portolan_tests::{Cluster, eventually};

/// mail-4 has what mail-1 has.
fn start() -> Cluster {
    let mut cluster = Cluster::start_many(4, |folder| {
        tree::fill(folder);
        put(&folder.join("node-1/domains/one.example/users/alice/folders/big.eml"), &tree::noise(48 << 20));
    });
    copy(cluster.path());
    cluster.restart_with_node(1, "standby = [\"mail-4\"]");
    cluster
}

fn copy(folder: &Path) {
    // Without the mark, so that mail-4 serves it under its own.
    succeed(Command::new("cp").arg("-a").arg(folder.join("node-1/domains")).arg(folder.join("node-4")));
}

const REGISTRY: &str = "/domains/one.example/users/alice/Registry.bin";
const BIG: &str = "/domains/one.example/users/alice/folders/big.eml";

#[test]
fn a_standby_is_read_in_mid_session_and_not_written_to() {
    let mut cluster = start();
    let mut session = Control::login(cluster.frontend.address, "admin");
    let before = session.fetch(&format!("RETR {REGISTRY}"));
    assert_eq!(before.0, 226);
    // A standby adds nothing of its own.
    fs::create_dir(cluster.path().join("node-4/domains/standby-only.example")).unwrap();

    put(&cluster.domains(1).join("spread.example/users/late/Registry.bin"), b"first");

    cluster.kill_agent(1);
    cluster.wait_until_away(1);
    assert_eq!(session.fetch(&format!("RETR {REGISTRY}")), before);
    assert_eq!(session.ask(&format!("SIZE {REGISTRY}")).0, 213);
    assert_eq!(session.ask(&format!("HASH {REGISTRY}")).0, 213);
    assert!(session.fetch("MLSD /domains/spread.example/users").1.windows(4).any(|name| name == b"erin"));
    let (code, domains) = session.fetch("NLST /domains");
    assert_eq!(code, 226);
    assert!(!String::from_utf8(domains).unwrap().contains("standby-only"));
    cluster.frontend.wait_for_log("a standby is read in place of a node");
    let told = cluster.frontend.log().matches("a standby is read in place of a node").count();
    assert_eq!(told, 1, "once for each absence");

    assert_eq!(session.store(REGISTRY, b"new"), 450);
    assert_eq!(session.ask("MKD /domains/one.example/users/new").0, 450);
    assert_eq!(session.ask(&format!("DELE {REGISTRY}")).0, 450);
    // What the standby does not have yet is not taken for absent where something would be changed.
    assert_eq!(session.ask("DELE /domains/spread.example/users/late/Registry.bin").0, 450);
    assert_eq!(session.ask("MKD /domains/spread.example/users/late").0, 450);
    assert_eq!(session.store("/domains/spread.example/users/late/Registry.bin", b"second"), 450);
    assert!(!cluster.domains(3).join("spread.example/users/late").is_dir());
    assert_eq!(session.fetch(&format!("RETR {REGISTRY}")), before);

    // A whole backup, and one by a front end that never heard the node.
    let whole = |cluster: &Cluster| {
        let backup = tempfile::tempdir().unwrap();
        succeeded(&lftp(cluster, &format!("mirror /domains/one.example {}", backup.path().display())));
        assert_same(&tree::read(&cluster.domains(1).join("one.example")), &tree::read(backup.path()));
    };
    whole(&cluster);
    cluster.restart_frontend(|config| config);
    whole(&cluster);
    let mut session = Control::login(cluster.frontend.address, "admin");
    assert_eq!(session.fetch("NLST /domains").0, 226);

    cluster.start_agent(1);
    eventually("the node takes changes again", || {
        (session.ask("MKD /domains/one.example/users/new").0 == 257).then_some(())
    });
    assert!(cluster.domains(1).join("one.example/users/new").is_dir());
}

#[test]
fn a_standby_is_written_to_where_that_is_configured() {
    let mut cluster = start();
    cluster.restart_frontend(|config| config.replace("[\"mail-4\"]", "[\"mail-4\"]\nstandby_writes = true"));
    cluster.kill_agent(1);
    cluster.wait_until_away(1);
    let mut session = Control::login(cluster.frontend.address, "admin");
    let path = "/domains/one.example/users/new/Registry.bin";
    assert_eq!(session.ask("MKD /domains/one.example/users/new").0, 257);
    assert_eq!(session.store(path, b"new"), 226);
    assert_eq!(session.fetch(&format!("RETR {path}")), (226, b"new".to_vec()));
    assert_eq!(fs::read(cluster.path().join(format!("node-4{path}"))).unwrap(), b"new");
    assert!(!cluster.domains(1).join("one.example/users/new").is_dir());
}

/// Reads a download until some of it has come, does something, and reads the rest.
fn download(cluster: &Cluster, meanwhile: impl FnOnce()) -> (u16, Vec<u8>) {
    use std::io::Read as _;
    let mut session = Control::login(cluster.frontend.address, "admin");
    let mut stream = session.passive();
    assert_eq!(session.ask(&format!("RETR {BIG}")).0, 150);
    let mut content = vec![0; 1 << 20];
    stream.read_exact(&mut content).unwrap();
    meanwhile();
    stream.read_to_end(&mut content).ok();
    (session.reply().0, content)
}

#[test]
fn a_broken_download_goes_on_from_the_standby_if_it_has_the_same_file() {
    let mut cluster = start();
    let whole = fs::read(cluster.path().join(format!("node-1{BIG}"))).unwrap();
    let link = cluster.link(1);
    let (code, content) = download(&cluster, || link.set(Link::Cut));
    assert_eq!(code, 226);
    assert!(content == whole, "{} of {} bytes, or others", content.len(), whole.len());
    assert!(link.down() < whole.len() as u64, "the node did not send all of it");
    cluster.frontend.wait_for_log("a standby goes on with a download");

    // Another file of the same length is not mixed with it.
    link.set(Link::Open);
    let up = |cluster: &Cluster| String::from_utf8_lossy(&cluster.operate(&["status"]).stdout).into_owned();
    eventually("the node is back", || (!up(&cluster).contains("away")).then_some(()));
    tree::put_at(&cluster.path().join(format!("node-4{BIG}")), &whole, 1_700_000_000);
    let (code, content) = download(&cluster, || link.set(Link::Cut));
    assert_eq!(code, 426);
    assert!(content.len() < whole.len() && whole.starts_with(&content), "{} bytes", content.len());
    cluster.frontend.wait_for_log("a standby has another file");

    // A node that falls silent is noticed by its connection, and the download goes on.
    link.set(Link::Open);
    eventually("the node is back", || (!up(&cluster).contains("away")).then_some(()));
    copy(cluster.path());
    let (code, content) = download(&cluster, || link.set(Link::HalfOpen));
    assert_eq!((code, content == whole), (226, true), "{} of {} bytes", content.len(), whole.len());
}
