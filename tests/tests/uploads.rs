//! An upload is all or nothing: the previous file survives every failure.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use portolan_tests::client::Control;
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, PASSWORD, eventually};

const FILE: &str = "one.example/users/alice/folders/INBOX/kept.eml";

fn cluster_with_a_file() -> (Cluster, PathBuf) {
    let cluster = Cluster::start(|folder| {
        tree::fill(folder);
        put(&folder.join("node-1/domains").join(FILE), b"the old content");
    });
    let file = cluster.domains(1).join(FILE);
    (cluster, file)
}

fn staged(cluster: &Cluster) -> usize {
    fs::read_dir(cluster.path().join("node-1/.portolan/staging")).expect("the agent runs").count()
}

/// Begins an upload and waits until the agent has a staging file for it.
fn half_an_upload(cluster: &Cluster, control: &mut Control) -> TcpStream {
    let mut data = control.passive();
    assert_eq!(control.ask(&format!("STOR /domains/{FILE}")).0, 150);
    data.write_all(&vec![b'x'; 4_000_000]).expect("the data connection stands");
    eventually("the upload is staged", || (staged(cluster) == 1).then_some(()));
    data
}

#[test]
fn a_killed_agent_keeps_the_old_file_and_sweeps_its_staging_folder() {
    let (mut cluster, file) = cluster_with_a_file();
    let mut control = Control::login(cluster.frontend.address, "admin");
    let data = half_an_upload(&cluster, &mut control);
    cluster.kill_agent(1);
    drop(data);
    assert_eq!(control.reply().0, 450);
    assert_eq!(fs::read(&file).unwrap(), b"the old content");
    assert_eq!(staged(&cluster), 1, "the crash leaves its staging file");
    cluster.start_agent(1);
    assert_eq!(staged(&cluster), 0);
    assert_eq!(fs::read(&file).unwrap(), b"the old content");
    cluster.agent(1).wait_for_log("were swept");
}

#[test]
fn a_killed_client_changes_nothing() {
    let (cluster, file) = cluster_with_a_file();
    let address = cluster.frontend.address;
    let mut curl = Command::new("curl")
        .args([
            "--silent",
            "--ssl-reqd",
            "--limit-rate",
            "1M",
            "--upload-file",
            "-",
            "--user",
            &format!("admin:{PASSWORD}"),
        ])
        .arg("--cacert")
        .arg(cluster.authority())
        .arg(format!("ftp://{address}/domains/{FILE}"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("curl runs: `tests/run` installs it");
    let mut input = curl.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || input.write_all(&vec![b'x'; 64_000_000]));
    eventually("the upload is staged", || (staged(&cluster) == 1).then_some(()));
    curl.kill().unwrap();
    curl.wait().unwrap();
    feeder.join().unwrap().expect_err("curl was killed before it had read all");
    eventually("the upload is given up", || (staged(&cluster) == 0).then_some(()));
    assert_eq!(fs::read(&file).unwrap(), b"the old content");
    eventually("the log says why", || cluster.frontend.log().contains("transfer broken off").then_some(()));
}

#[test]
fn a_full_disk_answers_452_and_keeps_the_old_file() {
    let small = SmallDisk::mount();
    let root = small.path.clone();
    let cluster = Cluster::start(move |folder| {
        fs::remove_dir_all(folder.join("node-1")).unwrap();
        std::os::unix::fs::symlink(&root, folder.join("node-1")).unwrap();
        put(&root.join("domains").join(FILE), b"the old content");
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    let path = format!("/domains/{FILE}");
    assert_eq!(control.store(&path, &vec![b'x'; 6_000_000]), 452);
    assert_eq!(fs::read(cluster.domains(1).join(FILE)).unwrap(), b"the old content");
    assert_eq!(staged(&cluster), 0);
    cluster.agent(1).wait_for_log("the disk is full");
    // The session goes on, and what fits is taken.
    assert_eq!(control.store(&path, b"the new content"), 226);
    assert_eq!(fs::read(cluster.domains(1).join(FILE)).unwrap(), b"the new content");
    drop(cluster);
}

#[test]
fn what_is_new_goes_to_the_node_with_the_most_room_and_stays_together() {
    let small = SmallDisk::mount();
    let root = small.path.clone();
    let mut cluster = Cluster::start(move |folder| {
        tree::fill(folder);
        fs::remove_dir_all(folder.join("node-1")).unwrap();
        std::os::unix::fs::symlink(&root, folder.join("node-1")).unwrap();
        put(&root.join("domains/spread.example/domainRegistry.bin"), b"spread.example");
    });
    cluster
        .restart_frontend(|config| config.replace("placement = \"home-node\"", "placement = \"least-used\""));
    let mut control = Control::login(cluster.frontend.address, "admin");
    // Of the domain's two nodes its home node is the small one.
    assert_eq!(control.ask("MKD /domains/spread.example/users/new").0, 257);
    assert_eq!(control.store("/domains/spread.example/users/new/Registry.bin", b"new"), 226);
    assert!(cluster.domains(3).join("spread.example/users/new/Registry.bin").is_file());
    // A domain that nobody knows goes to one node as a whole, at once, from however many sessions.
    let address = cluster.frontend.address;
    std::thread::scope(|scope| {
        for session in 0..6 {
            scope.spawn(move || {
                let mut control = Control::login(address, "admin");
                control.ask("MKD /domains/fresh.example");
                assert_eq!(control.ask("CWD /domains/fresh.example").0, 250);
                control.ask("MKD users");
                assert_eq!(control.ask(&format!("MKD users/user-{session}")).0, 257);
                assert_eq!(control.store(&format!("users/user-{session}/Registry.bin"), b"x"), 226);
            });
        }
    });
    let on = |node| cluster.domains(node).join("fresh.example");
    let holders: Vec<usize> = (1..=3).filter(|node| on(*node).is_dir()).collect();
    assert!(matches!(holders[..], [2 | 3]), "{holders:?}");
    assert_eq!(fs::read_dir(on(holders[0]).join("users")).unwrap().count(), 6);
    // While a node is away it may have what is to be created.
    cluster.kill_agent(2);
    eventually("the node is away", || cluster.frontend.log().contains("node is away").then_some(()));
    let (code, said) = control.ask("MKD /domains/other.example");
    assert!(code == 450 && said.contains("mail-2"), "{said}");
    drop(cluster);
}

/// A tmpfs of 4 MiB, unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&path).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounting a tmpfs needs root");
        Self { path, _folder: folder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn an_upload_resumes_and_a_file_grows_by_appending() {
    let (cluster, file) = cluster_with_a_file();
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask("REST 8").0, 350);
    assert_eq!(control.store(&format!("/domains/{FILE}"), b"mail"), 226);
    assert_eq!(fs::read(&file).unwrap(), b"the old mail");
    let mut data = control.passive();
    assert_eq!(control.ask(&format!("APPE /domains/{FILE}")).0, 150);
    data.write_all(b", longer").unwrap();
    drop(data);
    assert_eq!(control.reply().0, 226);
    assert_eq!(fs::read(&file).unwrap(), b"the old mail, longer");
    // A gap is refused, before anything is sent.
    let _data = control.passive();
    assert_eq!(control.ask("REST 1000").0, 350);
    let (code, said) = control.ask(&format!("STOR /domains/{FILE}"));
    assert!(code == 550 && said.contains("ends at byte 20"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"the old mail, longer");
    let _data = control.passive();
    assert_eq!(control.ask("REST 1").0, 350);
    assert_eq!(control.ask(&format!("STOR /domains/{FILE}.none")).0, 550);
    assert_eq!(staged(&cluster), 0);
}

#[test]
fn what_is_refused_changes_nothing_and_the_client_knows_before_it_sends() {
    let (mut cluster, file) = cluster_with_a_file();
    // A new domain has a place.
    cluster.restart_frontend(|config| config.replace("home-node", "least-used"));
    let mut control = Control::login(cluster.frontend.address, "admin");
    let missing = "/domains/typo.example/users/anna/cur/x";
    for verb in ["STOR", "APPE"] {
        let _data = control.passive();
        let (code, said) = control.ask(&format!("{verb} {missing}"));
        assert!(code == 550 && said.contains("does not exist"), "{verb}: {said}");
    }
    for (command, reply) in [
        ("MKD /domains/typo.example/users/anna/cur", 550),
        ("MKD /domains/typo.example/users/anna", 550),
        ("MKD /domains/typo.example/users", 550),
        ("RNFR /domains/one.example/users/alice/folders/INBOX/kept.eml", 350),
        ("RNTO /domains/one.example/groups/none/kept.eml", 550),
    ] {
        assert_eq!(control.ask(command).0, reply, "{command}");
    }
    // Levels that an upload would make are not made before its commit.
    let mut data = control.passive();
    assert_eq!(control.ask("ALLO 10").0, 200);
    assert_eq!(control.ask("STOR /domains/typo.example/users/Registry.bin").0, 150);
    data.write_all(b"short").unwrap();
    drop(data);
    assert_eq!(control.reply().0, 426);
    let (_, names) = control.fetch("NLST /domains");
    assert!(!String::from_utf8(names).unwrap().contains("typo"));
    for node in 1..=3 {
        assert!(!cluster.domains(node).join("typo.example").try_exists().unwrap());
    }
    assert!(!cluster.domains(1).join("one.example/groups/none").try_exists().unwrap());
    assert_eq!(fs::read(&file).unwrap(), b"the old content");
    assert_eq!(staged(&cluster), 0);
    // One that succeeds makes them.
    assert_eq!(control.store("/domains/typo.example/users/Registry.bin", b"new"), 226);
}

#[test]
fn names_are_made_renamed_and_removed() {
    let (cluster, _) = cluster_with_a_file();
    let mut control = Control::login(cluster.frontend.address, "admin");
    let inbox = "/domains/one.example/users/alice/folders/INBOX";
    assert_eq!(control.ask(&format!("MKD {inbox}/New")).0, 257);
    assert_eq!(control.ask(&format!("MKD {inbox}/New")).0, 550);
    assert_eq!(control.ask(&format!("RNFR {inbox}/kept.eml")).0, 350);
    assert_eq!(control.ask(&format!("RNTO {inbox}/New/moved.eml")).0, 250);
    assert_eq!(control.ask(&format!("RMD {inbox}/New")).0, 550);
    assert_eq!(control.ask(&format!("DELE {inbox}/New")).0, 550);
    assert_eq!(control.ask(&format!("DELE {inbox}/New/moved.eml")).0, 250);
    assert_eq!(control.ask(&format!("RMD {inbox}/New")).0, 250);
    // Between nodes and between domains nothing is renamed.
    assert_eq!(control.ask("RNFR /domains/spread.example/users/erin").0, 350);
    assert_eq!(control.ask("RNTO /domains/spread.example/users/dave").0, 550);
    assert_eq!(control.ask("RNFR /domains/spread.example/users/erin").0, 350);
    assert_eq!(control.ask("RNTO /domains/one.example/users/erin").0, 550);
    assert_eq!(control.ask("RMD /domains/spread.example/users").0, 550);
    assert!(cluster.domains(1).join("spread.example/users/erin").is_dir());
}

#[test]
fn a_drain_finishes_the_transfer_and_ends_idle_sessions() {
    let (mut cluster, file) = cluster_with_a_file();
    let mut idle = Control::login(cluster.frontend.address, "admin");
    let mut control = Control::login(cluster.frontend.address, "admin");
    let mut data = half_an_upload(&cluster, &mut control);
    cluster.frontend.signal(rustix::process::Signal::TERM);
    assert_eq!(idle.reply(), (421, "421 The service stops; closing the connection.".to_owned()));
    assert_eq!(idle.reply().0, 0, "an idle session is closed");
    std::thread::sleep(Duration::from_millis(300));
    data.write_all(b"end").unwrap();
    drop(data);
    assert_eq!(control.reply().0, 226);
    assert_eq!(fs::metadata(&file).unwrap().len(), 4_000_003);
    assert_eq!(control.reply().0, 421);
    assert_eq!(cluster.frontend.wait(), Some(0));
    cluster.frontend.wait_for_log("front end drained\",\"finished\":1,\"failed\":0,\"cut\":0");
}

#[test]
fn no_symbolic_link_of_a_node_is_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let (cluster, _) = cluster_with_a_file();
    let user = cluster.domains(1).join("one.example/users/alice");
    std::os::unix::fs::symlink(outside.path(), user.join("out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), user.join("file")).unwrap();
    let mut control = Control::login(cluster.frontend.address, "admin");
    let base = "/domains/one.example/users/alice";
    let (_, listing) = control.fetch(&format!("LIST {base}"));
    let listing = String::from_utf8(listing).unwrap();
    assert!(listing.contains(" out -> ") && listing.contains(" file -> "), "shown, not skipped: {listing}");
    for path in ["out/secret", "file", "out"] {
        assert_eq!(control.fetch(&format!("RETR {base}/{path}")), (550, Vec::new()), "{path}");
    }
    assert_eq!(control.ask(&format!("CWD {base}/out")).0, 550);
    assert_eq!(control.store(&format!("{base}/out/new"), b"x"), 550);
    assert!(!outside.path().join("new").try_exists().unwrap());
    assert!(Path::new(&outside.path().join("secret")).is_file());
}
