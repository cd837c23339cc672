//! Five agents, one of which fails in each way while clients list, mirror, download and upload: nobody gets a short listing or a
//! wrong file, nobody waits for ever, and everything recovers by itself.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, Protection, lftp_command, succeed, succeeded};
use portolan_tests::link::{FaultLink, Link};
use portolan_tests::tree::{self, put, put_at};
use portolan_tests::{Cluster, eventually};
use rustix::process::Signal;

/// The node that fails.
const VICTIM: usize = 5;
/// The longest stated deadline of a step, 60 s without a byte, and something for the machine.
const DEADLINE: Duration = Duration::from_secs(75);

const USERS: &str = "/domains/wide.example/users";
const BIG: &str = "/domains/wide.example/users/user-5/folders/big.eml";
const TARGET: &str = "/domains/wide.example/users/user-5/folders/target.eml";
const OLD: &[u8] = b"the old content";

fn big() -> Vec<u8> {
    tree::noise(24 << 20)
}

/// One domain on five nodes, each with users of its own.
fn fill(folder: &Path) {
    for node in 1..=5 {
        let domain = folder.join(format!("node-{node}/domains/wide.example"));
        for number in 0..40 {
            put(&domain.join(format!("users/user-{node}-{number:02}/Registry.bin")), &[node]);
        }
        put(&domain.join(format!("users/user-{node}/folders/1.eml")), &tree::noise(30_000));
    }
    put(&folder.join("node-1/domains/wide.example/domainRegistry.bin"), b"wide");
    put(&folder.join(format!("node-5{BIG}")), &big());
    put(&folder.join(format!("node-5{TARGET}")), OLD);
}

fn start() -> (Cluster, FaultLink) {
    let mut cluster = Cluster::start_many(5, fill);
    let link = cluster.link(VICTIM);
    let mut session = Control::login(cluster.frontend.address, "admin");
    eventually("all nodes are heard", || (list(&mut session).0 == 226).then_some(()));
    (cluster, link)
}

fn list(session: &mut Control) -> (u16, Vec<String>) {
    let (code, names) = session.fetch(&format!("NLST {USERS}"));
    let mut names: Vec<String> = String::from_utf8(names).unwrap().lines().map(str::to_owned).collect();
    names.sort();
    (code, names)
}

/// What each client got.
struct Outcome {
    listings: Vec<(u16, Vec<String>)>,
    download: (u16, Vec<u8>),
    upload: u16,
    /// What the mirror has deleted.
    deleted: Vec<PathBuf>,
    took: Duration,
}

/// Begins a download and an upload, lets a mirror that deletes run over a whole backup, and lists, while `fault` happens.
fn meanwhile(cluster: &mut Cluster, fault: impl FnOnce(&mut Cluster)) -> Outcome {
    let address: SocketAddr = cluster.frontend.address;
    let backup = cluster.path().join("backup");
    let script = format!("mirror /domains/wide.example {}", backup.display());
    succeed(&mut lftp_command(Protection::Explicit, cluster, &script));
    let before = tree::read(&backup);
    let script = script.replace("mirror", "mirror --delete");
    let mut mirror = lftp_command(Protection::Explicit, cluster, &script);

    let mut downloading = Control::login(address, "admin");
    let mut down = downloading.passive();
    assert_eq!(downloading.ask(&format!("RETR {BIG}")).0, 150);
    let mut content = vec![0; 1 << 20];
    down.read_exact(&mut content).unwrap();
    let mut uploading = Control::login(address, "admin");
    let mut up = uploading.passive();
    assert_eq!(uploading.ask(&format!("STOR {TARGET}")).0, 150);
    up.write_all(&big()[..1 << 20]).unwrap();
    let listing = Control::login(address, "admin");

    let started = Instant::now();
    let mut outcome = std::thread::scope(|scope| {
        fault(cluster);
        let download = scope.spawn(move || {
            down.set_read_timeout(Some(DEADLINE)).unwrap();
            downloading.into_patient(DEADLINE, |session| {
                down.read_to_end(&mut content).ok();
                (session.reply().0, content)
            })
        });
        let upload = scope.spawn(move || {
            up.set_write_timeout(Some(DEADLINE)).unwrap();
            uploading.into_patient(DEADLINE, |session| {
                up.write_all(&big()[1 << 20..]).ok();
                drop(up);
                session.reply().0
            })
        });
        let listings = scope.spawn(move || {
            listing.into_patient(DEADLINE, |session| (0..5).map(|_| list(session)).collect::<Vec<_>>())
        });
        let mirror = scope.spawn(move || mirror.output().unwrap());
        mirror.join().unwrap();
        let (listings, download) = (listings.join().unwrap(), download.join().unwrap());
        let (upload, took) = (upload.join().unwrap(), started.elapsed());
        Outcome { listings, download, upload, deleted: Vec::new(), took }
    });
    let after = tree::read(&backup);
    outcome.deleted = before.into_keys().filter(|path| !after.contains_key(path)).collect();
    outcome
}

/// Nothing is short, wrong or late. `whole`: all must have come through.
fn assert_sound(cluster: &Cluster, outcome: &Outcome, expected: &[String], whole: bool) {
    let Outcome { listings, download: (code, content), upload, deleted, took } = outcome;
    println!(
        "RETR {code}, STOR {upload}, NLST {:?}, after {took:?}",
        listings.iter().map(|one| one.0).collect::<Vec<_>>()
    );
    let refused = |code: u16| !whole && [426, 450, 451].contains(&code);
    for (code, names) in listings {
        assert!(refused(*code) || (*code == 226 && names == expected), "{code}: {} names", names.len());
    }
    let big = big();
    assert!(refused(*code) || (*code == 226 && *content == big), "RETR {code}: {} bytes", content.len());
    assert!(big.starts_with(content), "what came is not the file");
    assert!(refused(*upload) || *upload == 226, "STOR {upload}");
    let stored = fs::read(cluster.path().join(format!("node-5{TARGET}"))).unwrap();
    // Without a confirmation it may have been committed all the same; never a part of it.
    let is_new = stored == big;
    assert!(if *upload == 226 { is_new } else { is_new || stored == OLD }, "{} bytes stored", stored.len());
    // Whatever the mirror saw, it saw no absence.
    assert!(deleted.is_empty(), "the mirror has deleted {deleted:?}");
    assert!(*took < DEADLINE, "{took:?}");
}

/// All is as it should be again, without anybody's help.
fn recovers(cluster: &Cluster, expected: &[String]) {
    let mut session = Control::login(cluster.frontend.address, "admin");
    eventually("the node is served again", || (list(&mut session).0 == 226).then_some(()));
    assert_eq!(list(&mut session).1, expected);
    let (code, content) = session.fetch(&format!("RETR {BIG}"));
    assert!(code == 226 && content == big(), "{code}");
    assert_eq!(session.store(TARGET, b"new"), 226);
    assert_eq!(fs::read(cluster.path().join(format!("node-5{TARGET}"))).unwrap(), b"new");
}

fn expected(cluster: &Cluster) -> Vec<String> {
    list(&mut Control::login(cluster.frontend.address, "admin")).1
}

#[test]
fn a_node_that_is_stopped() {
    let (mut cluster, _link) = start();
    let names = expected(&cluster);
    let outcome = meanwhile(&mut cluster, |cluster| cluster.agent(VICTIM).signal(Signal::TERM));
    assert_sound(&cluster, &outcome, &names, false);
    assert_eq!((outcome.download.0, outcome.upload), (226, 226), "what was under way drains");
    cluster.kill_agent(VICTIM);
    cluster.start_agent(VICTIM);
    recovers(&cluster, &names);
}

#[test]
fn a_node_that_is_killed() {
    let (mut cluster, _link) = start();
    let names = expected(&cluster);
    let outcome = meanwhile(&mut cluster, |cluster| cluster.kill_agent(VICTIM));
    assert_sound(&cluster, &outcome, &names, false);
    cluster.start_agent(VICTIM);
    recovers(&cluster, &names);
}

#[test]
fn a_node_that_freezes() {
    let (mut cluster, _link) = start();
    let names = expected(&cluster);
    let outcome = meanwhile(&mut cluster, |cluster| cluster.agent(VICTIM).freeze());
    assert_sound(&cluster, &outcome, &names, false);
    cluster.agent(VICTIM).signal(Signal::CONT);
    recovers(&cluster, &names);
}

#[test]
fn a_link_that_is_cut_and_one_that_is_half_open() {
    for fault in [Link::Cut, Link::HalfOpen] {
        let (mut cluster, link) = start();
        let names = expected(&cluster);
        let outcome = meanwhile(&mut cluster, |_| link.set(fault));
        assert_sound(&cluster, &outcome, &names, false);
        link.set(Link::Open);
        recovers(&cluster, &names);
    }
}

#[test]
fn a_link_that_is_slow() {
    let (mut cluster, link) = start();
    let names = expected(&cluster);
    let outcome = meanwhile(&mut cluster, |_| link.set(Link::Slow(Duration::from_millis(50))));
    assert_sound(&cluster, &outcome, &names, true);
    link.set(Link::Open);
    recovers(&cluster, &names);
}

#[test]
fn a_node_that_comes_back_with_other_content() {
    let (mut cluster, _link) = start();
    let mut names = expected(&cluster);
    let outcome = meanwhile(&mut cluster, |cluster| {
        cluster.kill_agent(VICTIM);
        // The same length at another time, and users that come and go.
        let node = cluster.path().join("node-5");
        put_at(&node.join(&BIG[1..]), &vec![7; big().len()], 1_700_000_000);
        let users = node.join(&USERS[1..]);
        fs::rename(users.join("user-5-00"), users.join("user-5-99")).unwrap();
        cluster.start_agent(VICTIM);
    });
    names.retain(|name| !name.ends_with("user-5-00"));
    names.push(format!("{USERS}/user-5-99"));
    names.sort();
    let Outcome { listings, download: (code, content), deleted, .. } = &outcome;
    let gone = |path: &PathBuf| path.to_string_lossy().contains("user-5-00");
    assert!(deleted.iter().all(gone), "the mirror has deleted {deleted:?}");
    assert!(listings.iter().all(|(code, listed)| *code != 226 || *listed == names), "a listing is short");
    assert!(*code != 226 || *content == big(), "two files were mixed: {code}");
    assert!(big().starts_with(content));
    let mut session = Control::login(cluster.frontend.address, "admin");
    eventually("the node is served again", || (list(&mut session) == (226, names.clone())).then_some(()));
    let (code, content) = session.fetch(&format!("RETR {BIG}"));
    assert!(code == 226 && content == vec![7; big().len()], "{code}");
}

/// An image of a disk whose end is cut off, so that reading what was there fails.
struct FailingDisk {
    folder: PathBuf,
    image: PathBuf,
}

impl FailingDisk {
    fn mount(at: &Path) -> Self {
        let image = at.with_extension("image");
        fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let copy = at.with_extension("copy");
        fs::rename(at, &copy).unwrap();
        fs::create_dir(at).unwrap();
        let disk = Self { folder: at.to_owned(), image };
        disk.attach();
        succeed(Command::new("cp").arg("-a").arg(copy.join(".")).arg(at));
        // Nothing of it may be in memory.
        disk.detach();
        disk.attach();
        disk
    }

    fn attach(&self) {
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.folder));
    }

    fn detach(&self) {
        succeed(Command::new("umount").arg(&self.folder));
    }

    fn fail(&self) {
        fs::File::options().write(true).open(&self.image).unwrap().set_len(1 << 20).unwrap();
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.folder).status().ok();
    }
}

#[test]
fn a_disk_that_cannot_be_read() {
    let (mut cluster, _link) = start();
    let names = expected(&cluster);
    cluster.kill_agent(VICTIM);
    let disk = FailingDisk::mount(&cluster.path().join("node-5"));
    cluster.start_agent(VICTIM);
    let mut session = Control::login(cluster.frontend.address, "admin");
    eventually("the node is served again", || (list(&mut session).0 == 226).then_some(()));
    disk.fail();
    let (code, content) = session.fetch(&format!("RETR {BIG}"));
    assert!(
        code == 451 && big().starts_with(&content) && content.len() < big().len(),
        "{code}: {}",
        content.len()
    );
    // Folders are read from the disk or from memory: whole, or not at all.
    let (code, listed) = list(&mut session);
    assert!(code == 451 || (code == 226 && listed == names), "{code}: {} names", listed.len());
    assert!([451, 450, 452].contains(&session.store(TARGET, &big())));
    // The others are served as before.
    let other = "/domains/wide.example/users/user-2/folders/1.eml";
    assert_eq!(session.fetch(&format!("RETR {other}")), (226, tree::noise(30_000)));

    // A good disk again.
    cluster.kill_agent(VICTIM);
    drop(disk);
    let (node, copy) = (cluster.path().join("node-5"), cluster.path().join("node-5.copy"));
    fs::remove_dir(&node).unwrap();
    fs::rename(copy, node).unwrap();
    cluster.start_agent(VICTIM);
    recovers(&cluster, &names);
}

/// A network namespace with a pair of interfaces; removed when dropped.
struct Network {
    name: String,
    outside: String,
}

impl Network {
    const INSIDE: &str = "10.231.77.2";

    fn new() -> Self {
        let id = std::process::id();
        let network = Self { name: format!("portolan-{id}"), outside: format!("pt{id}o") };
        let (name, outside, inside) = (&network.name, &network.outside, &format!("pt{id}i"));
        for arguments in [
            format!("netns add {name}"),
            format!("link add {outside} type veth peer name {inside} netns {name}"),
            format!("address add 10.231.77.1/30 dev {outside}"),
            format!("link set {outside} up"),
            format!("-n {name} address add {}/30 dev {inside}", Self::INSIDE),
            format!("-n {name} link set {inside} up"),
        ] {
            succeed(Command::new("ip").args(arguments.split(' ')));
        }
        network
    }

    /// Pulls the plug, or puts it in: nobody is told.
    fn set(&self, state: &str) {
        succeed(Command::new("ip").args(["link", "set", &self.outside, state]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        Command::new("ip").args(["link", "del", &self.outside]).status().ok();
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}

#[test]
fn a_network_whose_plug_is_pulled() {
    let network = Network::new();
    let mut cluster = Cluster::start_many(5, fill);
    cluster.move_agent_into(&network.name, VICTIM, format!("{}:7171", Network::INSIDE).parse().unwrap());
    let names = expected(&cluster);
    assert_eq!(names.len(), 5 * 41);
    let outcome = meanwhile(&mut cluster, |_| network.set("down"));
    assert_sound(&cluster, &outcome, &names, false);
    let shown = succeeded(&cluster.operate(&["status"]));
    assert!(shown.contains("away"), "{shown}");
    network.set("up");
    recovers(&cluster, &names);
    cluster.kill_agent(VICTIM);
}
