//! The mark of a store: an unmounted volume is not an empty node. Real mounts under agents, and what clients that remove what
//! is gone make of them.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, Protection, lftp, lftp_as_it_comes, succeed, succeeded, text};
use portolan_tests::tree::{self, assert_same, put};
use portolan_tests::volumes::{Volumes, mount};
use portolan_tests::{Cluster, PASSWORD, eventually, http, mark, program};

/// As long as a store that is mounted may take to be served.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// A cluster whose nodes' volumes of these numbers are mounted, and whose domains only announcements place. The volumes
/// go first when it is dropped.
struct Site {
    volumes: Volumes,
    cluster: Cluster,
}

impl Site {
    fn start(count: usize, mounted: &[usize]) -> Self {
        let mut volumes = None;
        let mut cluster = Cluster::start_many(count, |place| {
            let mut made = Volumes::new(place);
            for number in mounted {
                // The folder that the volume is mounted on is empty.
                fs::remove_dir(made.root(*number).join("domains")).unwrap();
                made.make(&number.to_string());
                made.mount(&number.to_string(), *number);
                fs::create_dir(made.root(*number).join("domains")).unwrap();
            }
            tree::fill(place);
            volumes = Some(made);
        });
        for number in 1..=count {
            cluster.restart_agent_with(number, http::TABLE);
        }
        cluster.restart_frontend(|config| {
            let (before, rest) = config.split_once("[[map.domains]]").unwrap();
            let (_, nodes) = rest.split_once("[[nodes]]").unwrap();
            format!("{before}[[nodes]]{nodes}{}", http::TABLE)
        });
        let site = Self { volumes: volumes.unwrap(), cluster };
        site.wait_until_whole();
        site
    }

    fn control(&self) -> Control {
        Control::login(self.cluster.frontend.address, "admin")
    }

    /// Every node's domains are listed and can be read.
    fn wait_until_whole(&self) {
        let mut control = self.control();
        let started = Instant::now();
        eventually("all domains are served", || {
            ["one", "two", "spread"]
                .iter()
                .all(|name| control.fetch(&format!("MLSD /domains/{name}.example/users")).0 == 226)
                .then_some(())
        });
        assert!(started.elapsed() < SERVED_WITHIN, "{:?}", started.elapsed());
    }

    /// The node is away, and the operator is told why.
    fn wait_until_refused(&self, number: usize, why: &str) {
        eventually(why, || {
            let status = succeeded(&self.cluster.operate(&["status"]));
            let name = format!("mail-{number}");
            let line = status.lines().find(|line| line.split_whitespace().next() == Some(&name))?.to_owned();
            (line.contains("away") && line.contains(why)).then_some(())
        });
        let (_, told) = http::get(http::address(&self.cluster.frontend), "/readyz");
        assert!(told.contains(&format!("node mail-{number} is away")) && told.contains(why), "{told}");
    }

    /// What an agent without a store shows of itself.
    fn assert_not_served(&self, number: usize, detail: &str) {
        let console = http::address(self.cluster.agent(number));
        let (status, told) = http::get(console, "/readyz");
        assert_eq!(status, 503, "{told}");
        assert!(told.contains(detail), "{told}");
        assert_eq!(http::metric(console, "portolan_agent_store_marked"), Some(0.0));
    }

    /// `/domains` is refused or complete; what lies on the other nodes is served, what lies on this one is refused.
    fn assert_only_away(&self, number: usize) {
        let mut control = self.control();
        let (code, names) = control.fetch("NLST /domains");
        let names = String::from_utf8(names).unwrap();
        let all = ["one.example", "two.example", "spread.example"].iter().all(|name| names.contains(name));
        assert!(code == 450 || code == 226 && all, "{code} {names}");
        let (own, other) = if number == 2 { ("two", "one") } else { ("one", "two") };
        assert_eq!(control.fetch(&format!("MLSD /domains/{own}.example/users")).0, 450);
        assert_eq!(control.fetch(&format!("MLSD /domains/{other}.example/users")).0, 226);
        assert_eq!(control.store(&format!("/domains/{own}.example/users/new.eml"), b"new"), 450);
    }

    fn lftp_backup(&self) -> PathBuf {
        self.cluster.path().join("backup-lftp")
    }

    fn rclone_backup(&self) -> PathBuf {
        self.cluster.path().join("backup-rclone")
    }

    fn mirror(&self) -> String {
        format!("mirror --delete /domains {}", self.lftp_backup().display())
    }

    fn rclone_sync(&self) -> Output {
        let secret = succeed(Command::new("rclone").args(["obscure", PASSWORD]));
        let address = self.cluster.frontend.address;
        let remote = format!(
            ":ftp,host={},port={},user=admin,pass={},explicit_tls=true,encoding=Slash:/domains",
            address.ip(),
            address.port(),
            secret.trim()
        );
        let mut command = Command::new("timeout");
        command
            .args(["60", "rclone", "--config", "/dev/null", "--retries", "1", "--low-level-retries", "1"])
            .args(["sync", "--create-empty-src-dirs", &remote])
            .arg(self.rclone_backup())
            .env("SSL_CERT_FILE", self.cluster.authority());
        command.output().unwrap()
    }

    /// Two backups of all that there is.
    fn back_up(&self) {
        succeeded(&lftp(&self.cluster, &self.mirror()));
        succeeded(&self.rclone_sync());
        self.assert_backups_whole();
    }

    fn assert_backups_whole(&self) {
        let nodes = tree::read_nodes(self.cluster.path());
        for backup in [self.lftp_backup(), self.rclone_backup()] {
            assert_same(&nodes, &tree::read(&backup));
        }
    }

    /// Backups that remove what is gone take nothing away.
    fn assert_backups_lose_nothing(&self) {
        let before = [self.lftp_backup(), self.rclone_backup()].map(|backup| tree::read(&backup));
        assert!(before.iter().all(|files| files.len() > 240), "there is a backup");
        let told = lftp(&self.cluster, &self.mirror());
        assert!(!told.status.success(), "lftp says that not all was copied: {}", text(&told));
        let told = self.rclone_sync();
        assert!(!told.status.success(), "rclone says that not all was copied: {}", text(&told));
        let after = [self.lftp_backup(), self.rclone_backup()].map(|backup| tree::read(&backup));
        for (before, after) in before.iter().zip(&after) {
            assert_same(before, after);
        }
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_volume_that_is_not_mounted_at_the_start_is_served_once_it_is() {
    let mut site = Site::start(3, &[2]);
    site.back_up();
    site.cluster.kill_agent(2);
    site.volumes.unmount(2);
    site.cluster.restart_agent_with(2, http::TABLE);
    site.wait_until_refused(2, "the store of node mail-2 carries no mark; its volume may not be mounted");
    site.assert_not_served(2, "then run once: portolan-agent mark ");
    site.assert_only_away(2);
    site.assert_backups_lose_nothing();
    // lftp's own settings, with which it tries again and again.
    let before = tree::read(&site.lftp_backup());
    let mut patient = lftp_as_it_comes(Protection::Explicit, &site.cluster, &site.mirror());
    let arguments: Vec<_> = patient.get_args().map(std::ffi::OsStr::to_owned).collect();
    patient = Command::new("timeout");
    patient.arg("6").args(&arguments[1..]).env("HOME", site.cluster.path());
    assert!(!patient.status().unwrap().success());
    assert_same(&before, &tree::read(&site.lftp_backup()));

    let log = site.cluster.agent(2).log();
    assert_eq!(log.matches("the store is not served").count(), 1, "once, not at each look: {log}");
    assert!(log.contains(&format!("portolan-agent mark {} --node mail-2", site.volumes.root(2).display())));
    assert!(is_empty(&site.volumes.root(2)), "nothing is made in the mount point");

    site.volumes.mount("2", 2);
    site.wait_until_whole();
    site.cluster.agent(2).wait_for_log("the store is served");
    let console = http::address(site.cluster.agent(2));
    assert_eq!(http::metric(console, "portolan_agent_store_marked"), Some(1.0));
    assert_eq!(http::get(console, "/readyz").0, 200);
    assert_eq!(site.control().store("/domains/two.example/users/bob/new.eml", b"new"), 226);
    site.back_up();
}

#[test]
fn a_volume_that_is_unmounted_under_an_agent_takes_nothing_with_it() {
    let mut site = Site::start(3, &[2]);
    let big = "/domains/two.example/users/bob/big.eml";
    put(&site.volumes.root(2).join(&big[1..]), &tree::noise(24 << 20));
    site.back_up();
    let mut session = site.control();
    assert_eq!(session.fetch("MLSD /domains/two.example/users/bob").0, 226);
    // A download and an upload in their midst.
    let mut reading = site.control();
    assert_eq!(reading.ask("TYPE I").0, 200);
    let mut download = reading.passive();
    reading.send(format!("RETR {big}\r\n").as_bytes()).unwrap();
    assert_eq!(reading.reply().0, 150);
    let mut part = vec![0; 100_000];
    download.read_exact(&mut part).unwrap();
    let mut writing = site.control();
    assert_eq!(writing.ask("TYPE I").0, 200);
    let mut upload = writing.passive();
    writing.send(b"STOR /domains/two.example/users/bob/late.eml\r\n").unwrap();
    assert_eq!(writing.reply().0, 150);
    upload.write_all(&[b'x'; 100_000]).unwrap();
    eventually("the upload is staged", || {
        (!is_empty(&site.volumes.root(2).join(".portolan/staging"))).then_some(())
    });

    site.volumes.unmount(2);
    // At once, before any look.
    let (code, reply) = session.ask("MKD /domains/two.example/users/bob/new");
    assert_eq!(code, 450, "{reply}");
    assert_eq!(session.fetch("MLSD /domains/two.example/users/bob").0, 450);
    upload.write_all(&[b'x'; 100_000]).unwrap();
    drop(upload);
    let (code, reply) = writing.reply();
    assert!((400..500).contains(&code), "{code} {reply}");
    let mut rest = Vec::new();
    download.read_to_end(&mut rest).ok();
    assert!(rest.len() + part.len() < 24 << 20, "the kernel would give it all; the agent does not");
    let (code, reply) = reading.reply();
    assert!((400..500).contains(&code), "{code} {reply}");

    site.wait_until_refused(2, "the store of node mail-2 carries no mark");
    site.assert_only_away(2);
    site.assert_backups_lose_nothing();
    assert!(is_empty(&site.volumes.root(2)), "nothing went to the mount point");
    let volume = site.volumes.volume("2").join("domains/two.example/users/bob");
    for name in ["late.eml", "new"] {
        assert!(!volume.join(name).try_exists().unwrap(), "{name} is not on the volume either");
    }

    site.volumes.mount("2", 2);
    site.wait_until_whole();
    assert_eq!(session.store("/domains/two.example/users/bob/late.eml", b"late"), 226);
    assert_eq!(fs::read(volume.join("late.eml")).unwrap(), b"late");
    site.back_up();
}

#[test]
fn a_volume_over_another_one_is_not_taken_for_it() {
    let mut site = Site::start(3, &[2]);
    site.back_up();
    site.volumes.make("empty");
    site.volumes.mount("empty", 2);
    site.wait_until_refused(2, "the store of node mail-2 carries no mark");
    site.assert_only_away(2);
    site.assert_backups_lose_nothing();
    // Another node's, and what is no mark.
    mark(&site.volumes.volume("empty"), "mail-9");
    site.wait_until_refused(2, "the store of node mail-2 is marked for node mail-9");
    site.assert_not_served(2, "is marked for node mail-9, not mail-2");
    fs::write(site.volumes.volume("empty").join(".portolan/mark"), "version = 1\nid = \"").unwrap();
    site.wait_until_refused(2, "the mark of the store of node mail-2 cannot be read");
    site.assert_backups_lose_nothing();
    // Folders, and no domains.
    fs::remove_dir_all(site.volumes.volume("empty").join(".portolan")).unwrap();
    put(&site.volumes.volume("empty").join("two.example/users/bob/mail.eml"), b"mail");
    site.wait_until_refused(2, "the store of node mail-2 carries no mark");
    site.assert_not_served(2, "holds no domains (expected: domains/<domain>/... in store.root)");
    site.volumes.unmount(2);
    site.wait_until_whole();
    site.back_up();

    // A volume that is marked for the node and empty is an empty node, once somebody says that it is meant to be.
    site.volumes.make("new");
    mark(&site.volumes.volume("new"), "mail-2");
    site.volumes.mount("new", 2);
    let mut control = site.control();
    site.cluster.agent(2).wait_for_log("another volume carries the mark");
    site.cluster.frontend.wait_for_log("a node no longer announces much of what it held");
    site.assert_backups_lose_nothing();
    succeeded(&site.cluster.operate(&["map", "confirm", "mail-2"]));
    eventually("the new volume is believed", || {
        (control.fetch("MLSD /domains/two.example/users").0 == 550).then_some(())
    });
    assert_eq!(control.store("/domains/one.example/users/alice/new.eml", b"new"), 226);
}

#[test]
fn swapped_volumes_of_two_nodes_are_served_by_neither() {
    let mut site = Site::start(3, &[1, 2]);
    site.back_up();
    for number in [1, 2] {
        site.cluster.kill_agent(number);
        site.volumes.unmount(number);
    }
    site.volumes.mount("1", 2);
    site.volumes.mount("2", 1);
    for number in [1, 2] {
        site.cluster.restart_agent_with(number, http::TABLE);
    }
    site.wait_until_refused(1, "the store of node mail-1 is marked for node mail-2");
    site.wait_until_refused(2, "the store of node mail-2 is marked for node mail-1");
    let mut control = site.control();
    for name in ["one", "two", "spread"] {
        assert_eq!(control.fetch(&format!("MLSD /domains/{name}.example/users")).0, 450, "{name}");
    }
    site.assert_backups_lose_nothing();
    for number in [1, 2] {
        site.volumes.unmount(number);
    }
    site.volumes.mount("1", 1);
    site.volumes.mount("2", 2);
    site.wait_until_whole();
    site.back_up();
}

#[test]
fn a_snapshot_is_served_for_its_node_and_a_copy_is_no_other_part_of_the_cluster() {
    let mut site = Site::start(4, &[2, 4]);
    site.back_up();
    // A copy of the whole volume, as a snapshot is.
    site.cluster.kill_agent(4);
    site.volumes.unmount(4);
    let (from, to) = (site.volumes.volume("2"), site.volumes.volume("4"));
    fs::remove_dir_all(to.join(".portolan")).unwrap();
    fs::remove_dir_all(to.join("domains")).unwrap();
    succeed(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to));
    site.volumes.mount("4", 4);
    site.volumes.make_read_only(4);
    site.cluster.restart_agent_with(4, http::TABLE);
    site.wait_until_refused(4, "the store of node mail-4 is marked for node mail-2");
    let of_second =
        |config: String| config.replace("[store]\n", "[store]\nmark_of = \"mail-2\"\n") + http::TABLE;
    site.cluster.restart_agent(4, of_second);
    // By nobody's word a standby: mail-2 was heard first.
    site.wait_until_refused(4, "its store is that of node mail-2 by its mark");
    let log = site.cluster.frontend.log();
    let line = log.lines().find(|line| line.contains("its store is that of node mail-2")).unwrap();
    assert!(line.to_lowercase().contains("error"), "{line}");
    site.wait_until_whole();
    site.back_up();
    // As the standby it reads, and the read-only volume takes nothing.
    site.cluster.restart_with_node(2, "standby = [\"mail-4\"]");
    let mut control = site.control();
    eventually("the standby is up", || {
        let status = succeeded(&site.cluster.operate(&["status"]));
        status.lines().any(|line| line.starts_with("mail-4 ") && line.contains(" up ")).then_some(())
    });
    site.wait_until_whole();
    site.cluster.kill_agent(2);
    site.cluster.wait_until_away(2);
    let registry = "/domains/two.example/users/bob/Registry.bin";
    eventually("the standby is read", || (control.fetch(&format!("RETR {registry}")).0 == 226).then_some(()));
    site.cluster.restart_frontend(|config| {
        config.replace("standby = [\"mail-4\"]", "standby = [\"mail-4\"]\nstandby_writes = true")
    });
    let mut control = site.control();
    eventually("the read-only volume refuses", || (control.store(registry, b"new") == 550).then_some(()));
    assert_eq!(
        fs::read(to.join("domains/two.example/users/bob/Registry.bin")).unwrap(),
        [0, 255, 13, 10, 26]
    );
}

#[test]
fn a_read_only_store_may_do_without_a_mark_and_the_operator_is_warned() {
    let mut site = Site::start(3, &[2]);
    site.cluster.kill_agent(2);
    fs::remove_dir_all(site.volumes.root(2).join(".portolan")).unwrap();
    site.volumes.make_read_only(2);
    let unchecked = |config: String| config.replace("[store]\n", "[store]\nmark = \"none\"\n") + http::TABLE;
    site.cluster.restart_agent(2, unchecked);
    site.wait_until_whole();
    site.cluster.agent(2).wait_for_log("an unmounted volume is served as a node without domains");
    let config = site.cluster.path().join("agent-2.toml");
    let checked = Command::new(program("portolan")).arg("check").arg(&config).output().unwrap();
    assert!(
        text(&checked).contains("store.mark: the agent serves whatever is at store.root"),
        "{}",
        text(&checked)
    );
    assert_eq!(site.control().store("/domains/two.example/users/bob/new.eml", b"new"), 550);
    site.back_up();
    // Another volume under the running agent is not taken for it all the same.
    site.volumes.make("empty");
    site.volumes.mount("empty", 2);
    site.wait_until_refused(2, "another volume than before is mounted at the store of node mail-2");
    site.assert_backups_lose_nothing();
    // Nor at the looks that follow.
    std::thread::sleep(portolan_agent::volume::LOOK_EVERY + Duration::from_secs(1));
    site.assert_only_away(2);
    site.volumes.unmount(2);
    site.wait_until_whole();
    // Why marks are there: without one, this is a node without domains. What was seen on it is in doubt.
    site.cluster.kill_agent(2);
    site.volumes.unmount(2);
    site.cluster.restart_agent(2, unchecked);
    let mut control = site.control();
    site.cluster.frontend.wait_for_log("a node no longer announces much of what it held");
    assert_eq!(control.fetch("NLST /domains/two.example/users").0, 450);
    succeeded(&site.cluster.operate(&["map", "confirm", "mail-2"]));
    eventually("the domain is gone", || {
        let (code, names) = control.fetch("NLST /domains");
        (code == 226 && !String::from_utf8(names).unwrap().contains("two.example")).then_some(())
    });
}

fn marking(arguments: &[&str], root: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(program("portolan-agent"));
    let done = command.arg("mark").arg(root).args(arguments).output().unwrap();
    (done.status.code(), text(&done))
}

#[test]
fn the_command_marks_what_is_mounted_and_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    fs::create_dir(&root).unwrap();
    let (status, told) = marking(&["--node", "mail-1"], &root);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("its volume may not be mounted") && told.contains("--empty"), "{told}");
    assert!(is_empty(&root));
    let config = folder.path().join("agent.toml");
    let keys =
        "version = 1\nnode = \"mail-1\"\n[listen]\naddress = \"127.0.0.1:0\"\n[store]\nroot = \"store\"\n";
    fs::write(&config, keys).unwrap();
    let check = || {
        let mut command = Command::new(program("portolan"));
        text(&command.arg("check").arg(&config).output().unwrap())
    };
    assert!(
        check().contains(&format!("portolan-agent mark {} --node mail-1", root.display())),
        "{}",
        check()
    );

    let volumes = {
        let mut volumes = Volumes::new(folder.path());
        mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &root);
        volumes.mounted.push(root.clone());
        volumes
    };
    let by_config = ["--config", config.to_str().unwrap()];
    let (status, told) = marking(&by_config, &root);
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("is marked for node mail-1, as store "), "{told}");
    let written = fs::read_to_string(root.join(".portolan/mark")).unwrap();
    let (status, told) = marking(&by_config, &root);
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("already") && told.contains("nothing was changed"), "{told}");
    let (status, told) = marking(&["--node", "mail-2", "--empty"], &root);
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains("marked for node mail-1 already") && told.contains("/.portolan/mark by hand"),
        "{told}"
    );
    assert_eq!(fs::read_to_string(root.join(".portolan/mark")).unwrap(), written);
    assert!(!check().contains("mark"), "{}", check());
    fs::write(&config, keys.replace("mail-1", "mail-3")).unwrap();
    assert!(check().contains("is marked for node mail-1, not mail-3"), "{}", check());
    for arguments in [&["--node", "BAD"][..], &["--config", "/nowhere"], &["--node", "a", "--config", "b"]] {
        assert_eq!(marking(arguments, &root).0, Some(64), "{arguments:?}");
    }
    // A volume below the root is none that its mark can vouch for.
    drop(volumes);
    fs::create_dir(root.join("domains")).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &root.join("domains"));
    let mut below = Volumes::new(folder.path());
    below.mounted.push(root.join("domains"));
    let (status, told) = marking(&["--node", "mail-1"], &root);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("lies on another file system"), "{told}");
}

#[test]
fn a_mark_that_root_makes_belongs_to_whom_the_store_belongs_to() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.kill_agent(1);
    let (path, root) = (cluster.path().to_owned(), cluster.path().join("node-1"));
    fs::remove_dir_all(root.join(".portolan")).unwrap();
    for folder in [&root, &path.join("pki")] {
        succeed(Command::new("chown").args(["--recursive", "65534:65534"]).arg(folder));
    }
    succeed(Command::new("chmod").arg("o+x").arg(&path));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program("portolan-agent"));
    cluster.restart_agent_by(1, command, |config| config);
    cluster.agent(1).wait_for_log("carries no mark");
    assert_eq!(marking(&["--node", "mail-1"], &root).0, Some(0));
    let mut control = Control::login(cluster.frontend.address, "admin");
    eventually("the store is served without a restart", || {
        (control.store("/domains/one.example/users/alice/new.eml", b"new") == 226).then_some(())
    });
}
