//! Five agents on volumes, and two mirrors with deletion that run all the time: whatever happens to a volume, nothing
//! disappears from a backup.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, succeed, succeeded, text};
use portolan_tests::tree::{self, put};
use portolan_tests::volumes::Volumes;
use portolan_tests::{Cluster, PASSWORD, eventually, http, mark};

const NODES: usize = 5;
/// Users of each node's own domain; of the domain that all share a node has a few.
const USERS: usize = 8;
/// As many of them get lost: enough to be in doubt.
const LOST: usize = 5;
/// Users of a node in the domain that all share.
const SHARED: usize = 2;
/// How long a mirror may take to come round twice.
const ROUND_MAX: Duration = Duration::from_secs(180);

fn fill_user(domains: &Path, domain: &str, user: &str) {
    let folder = domains.join(format!("{domain}/users/{user}"));
    put(&folder.join("Registry.bin"), format!("registry of {user}@{domain}").as_bytes());
    put(&folder.join("1.eml"), format!("mail of {user}@{domain}").as_bytes());
}

/// What the domain of a node is called.
fn domain(node: usize) -> String {
    format!("n{node}.example")
}

/// One client that copies all of the cluster again and again and removes what it finds gone.
struct Mirror {
    name: &'static str,
    backup: PathBuf,
    /// Rounds that are over, and those of them that reported a failure.
    rounds: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Mirror {
    /// `command` makes the client that runs one round. After the first round, which must be whole, nothing may be missing after
    /// any.
    fn start(name: &'static str, backup: &Path, command: impl Fn() -> Command + Send + 'static) -> Self {
        succeed(&mut command());
        let whole = tree::read(backup);
        assert!(whole.values().flatten().count() > 2 * NODES * USERS, "{name} has copied all");
        let (rounds, failures, stop) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let thread = {
            let (rounds, failures, stop) = (Arc::clone(&rounds), Arc::clone(&failures), Arc::clone(&stop));
            let backup = backup.to_owned();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let told: Output = command().output().unwrap();
                    let now = tree::read(&backup);
                    if let Some((path, _)) =
                        whole.iter().find(|(path, content)| now.get(*path) != Some(*content))
                    {
                        return Err(format!("{} is gone from the backup: {}", path.display(), text(&told)));
                    }
                    failures.fetch_add(usize::from(!told.status.success()), Ordering::Relaxed);
                    rounds.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(300));
                }
                Ok(())
            })
        };
        Self { name, backup: backup.to_owned(), rounds, failures, stop, thread: Some(thread) }
    }

    /// Waits until a round that began from now on is over, whose client said that not all was copied.
    fn fails(&mut self) {
        let (rounds, failures) = (self.rounds.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed));
        self.wait(|rounds_now, failures_now| rounds_now > rounds + 1 && failures_now > failures);
    }

    /// Waits until a round that began from now on was whole.
    fn succeeds(&mut self) {
        let (rounds, failures) = (self.rounds.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed));
        self.wait(|rounds_now, failures_now| rounds_now - rounds > failures_now - failures + 1);
    }

    fn wait(&mut self, condition: impl Fn(usize, usize) -> bool) {
        let begun = Instant::now();
        loop {
            if condition(self.rounds.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed)) {
                return;
            }
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                let lost = self.thread.take().unwrap().join().unwrap();
                panic!("{} into {}: {lost:?}", self.name, self.backup.display());
            }
            assert!(begun.elapsed() < ROUND_MAX, "{} does not come round", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(lost)) = self.thread.take().map(|thread| thread.join().unwrap())
            && !std::thread::panicking()
        {
            panic!("{}: {lost}", self.name);
        }
    }
}

/// Where clients go, also after a restart.
type Address = Arc<Mutex<SocketAddr>>;

fn lftp(address: &Address, folder: &Path) -> impl Fn() -> Command + Send + 'static {
    let (address, folder) = (Arc::clone(address), folder.to_owned());
    move || {
        let script = format!(
            "set ftp:ssl-allow false; set net:max-retries 1; set net:timeout 20; \
             set net:reconnect-interval-base 1; open -u admin,{PASSWORD} ftp://{}; mirror --delete /domains {}",
            address.lock().unwrap(),
            folder.join("lftp").display()
        );
        let mut command = Command::new("timeout");
        command.args(["60", "lftp", "-c", &script]).env("HOME", &folder);
        command
    }
}

fn rclone(address: &Address, folder: &Path) -> impl Fn() -> Command + Send + 'static {
    let secret = succeed(Command::new("rclone").args(["obscure", PASSWORD])).trim().to_owned();
    let (address, folder) = (Arc::clone(address), folder.to_owned());
    move || {
        let address = *address.lock().unwrap();
        let (host, port) = (address.ip(), address.port());
        let remote = format!(":ftp,host={host},port={port},user=admin,pass={secret}:/domains");
        let mut command = Command::new("timeout");
        command
            .args(["60", "rclone", "--config", "/dev/null", "--retries", "1", "--low-level-retries", "1"])
            .args(["--checkers", "2", "--transfers", "2", "sync", "--create-empty-src-dirs", &remote])
            .arg(folder.join("rclone"));
        command
    }
}

/// The volumes go first when it is dropped.
struct Site {
    mirrors: Vec<Mirror>,
    volumes: Volumes,
    cluster: Cluster,
    address: Address,
}

impl Site {
    /// Five marked volumes, and of the fourth a snapshot that lacks half of the users.
    fn start() -> Self {
        let mut volumes = None;
        let mut cluster = Cluster::start_many(NODES, |place| {
            let mut made = Volumes::new(place);
            for node in 1..=NODES {
                fs::remove_dir(made.root(node).join("domains")).unwrap();
                made.make(&node.to_string());
                made.mount(&node.to_string(), node);
                let domains = made.root(node).join("domains");
                for user in 0..USERS {
                    fill_user(&domains, &domain(node), &format!("u{user}"));
                }
                for user in 0..SHARED {
                    fill_user(&domains, "shared.example", &format!("s{node}-{user}"));
                }
                fill_user(&domains, &format!("only-{node}.example"), "one");
                mark(&made.root(node), &format!("mail-{node}"));
            }
            made.make("snapshot");
            let (from, to) = (made.volume("4"), made.volume("snapshot"));
            succeed(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to));
            for user in 0..LOST {
                fs::remove_dir_all(to.join(format!("domains/{}/users/u{user}", domain(4)))).unwrap();
            }
            fs::remove_dir_all(to.join("domains/only-4.example")).unwrap();
            made.make("empty");
            volumes = Some(made);
        });
        cluster.restart_frontend(|config| {
            let (before, rest) = config.split_once("[[map.domains]]").unwrap();
            let (_, nodes) = rest.split_once("[[nodes]]").unwrap();
            let limits =
                "[global.limits]\nnew_per_address = 0\nnew = 0\n[ftp.limits]\nnew_per_address = 0\nnew = 0\n";
            let before =
                before.replace("passive_ports", "limits = { new = 0, new_per_address = 0 }\npassive_ports");
            format!("state_dir = \"state\"\n{before}[[nodes]]{nodes}{limits}{}", http::TABLE)
        });
        let address = Arc::new(Mutex::new(cluster.frontend.address));
        let mut site = Self { mirrors: Vec::new(), volumes: volumes.unwrap(), cluster, address };
        site.wait_until_whole();
        let folder = site.cluster.path().to_owned();
        site.mirrors = vec![
            Mirror::start("lftp", &folder.join("lftp"), lftp(&site.address, &folder)),
            Mirror::start("rclone", &folder.join("rclone"), rclone(&site.address, &folder)),
        ];
        site
    }

    /// All that there is can be read.
    fn wait_until_whole(&self) {
        let mut control = Control::login(self.cluster.frontend.address, "admin");
        let mut users = |domain: &str, count: usize| {
            let (code, names) = control.fetch(&format!("NLST /domains/{domain}/users"));
            let names = String::from_utf8(names).unwrap();
            let enter = |name: &str| {
                let name = name.rsplit('/').next().unwrap();
                control.ask(&format!("CWD /domains/{domain}/users/{name}")).0 == 250
            };
            code == 226 && names.lines().count() == count && names.lines().all(enter)
        };
        eventually("all is served", || {
            let own = (1..=NODES)
                .all(|node| users(&domain(node), USERS) && users(&format!("only-{node}.example"), 1));
            (own && users("shared.example", SHARED * NODES)).then_some(())
        });
    }

    fn wait_until_away(&self, node: usize, why: &str) {
        let name = format!("mail-{node} ");
        eventually(why, || {
            let status = succeeded(&self.cluster.operate(&["status"]));
            let line = status.lines().find(|line| line.starts_with(&name))?.to_owned();
            (line.contains("away") && line.contains(why)).then_some(())
        });
    }

    /// This many domains and objects of a node are in doubt.
    fn wait_until_in_doubt(&self, node: usize, count: usize) {
        let doubt = format!("mail-{node} no longer announces {count} ");
        eventually(&doubt, || succeeded(&self.cluster.operate(&["status"])).contains(&doubt).then_some(()));
    }

    /// Each mirror came round, said that not all was copied, and removed nothing.
    fn mirrors_fail(&mut self) {
        self.mirrors.iter_mut().for_each(Mirror::fails);
    }

    fn heals(&mut self) {
        self.wait_until_whole();
        self.mirrors.iter_mut().for_each(Mirror::succeeds);
    }

    fn restart_frontend(&mut self) {
        self.cluster.restart_frontend(|config| config);
        *self.address.lock().unwrap() = self.cluster.frontend.address;
    }
}

#[test]
fn whatever_happens_to_a_volume_mirrors_with_deletion_lose_nothing() {
    let mut site = Site::start();

    // One is unmounted under its agent, and an empty one is mounted over another.
    site.volumes.unmount(2);
    site.volumes.mount("empty", 3);
    site.wait_until_away(2, "carries no mark");
    site.wait_until_away(3, "carries no mark");
    site.mirrors_fail();
    // Neither is there at the next start of its agent.
    for node in [2, 3] {
        site.cluster.kill_agent(node);
        site.cluster.start_agent(node);
        site.wait_until_away(node, "carries no mark");
    }
    site.mirrors_fail();
    site.volumes.mount("2", 2);
    site.volumes.unmount(3);
    site.heals();

    // Swapped between two nodes.
    for node in [1, 2] {
        site.cluster.kill_agent(node);
        site.volumes.unmount(node);
    }
    site.volumes.mount("1", 2);
    site.volumes.mount("2", 1);
    for node in [1, 2] {
        site.cluster.start_agent(node);
    }
    site.wait_until_away(1, "is marked for node mail-2");
    site.wait_until_away(2, "is marked for node mail-1");
    site.mirrors_fail();
    for node in [1, 2] {
        site.volumes.unmount(node);
    }
    site.volumes.mount("1", 1);
    site.volumes.mount("2", 2);
    site.heals();

    // A snapshot over the volume carries the mark, and lacks a domain with its user, and some users of another. Of another volume
    // as many users are deleted.
    site.volumes.mount("snapshot", 4);
    let (volume, aside) = (site.volumes.volume("5"), site.volumes.volume("5").join("aside"));
    fs::create_dir(&aside).unwrap();
    let users = volume.join(format!("domains/{}/users", domain(5)));
    succeed(Command::new("cp").arg("-a").arg(&users).arg(aside.join("rest")));
    for number in 0..LOST {
        fs::remove_dir_all(aside.join(format!("rest/u{number}"))).unwrap();
    }
    fs::rename(&users, aside.join("users")).unwrap();
    fs::rename(aside.join("rest"), &users).unwrap();
    site.cluster.agent(4).wait_for_log("another volume carries the mark");
    let in_doubt = |site: &Site| {
        site.wait_until_in_doubt(4, 2 + LOST);
        site.wait_until_in_doubt(5, LOST);
    };
    in_doubt(&site);
    site.mirrors_fail();
    // No program that starts anew takes it for the truth.
    site.restart_frontend();
    in_doubt(&site);
    for node in [4, 5] {
        site.cluster.kill_agent(node);
        site.cluster.start_agent(node);
    }
    in_doubt(&site);
    site.mirrors_fail();
    site.volumes.unmount(4);
    fs::rename(&users, aside.join("rest")).unwrap();
    fs::rename(aside.join("users"), &users).unwrap();
    site.heals();

    // All of it deleted, and the mark left.
    fs::rename(volume.join("domains"), aside.join("domains")).unwrap();
    fs::create_dir(volume.join("domains")).unwrap();
    site.wait_until_in_doubt(5, 3 + USERS + SHARED + 1);
    site.mirrors_fail();
    fs::remove_dir(volume.join("domains")).unwrap();
    fs::rename(aside.join("domains"), volume.join("domains")).unwrap();
    site.heals();

    // What somebody confirms is removed from the backups, and nothing else is.
    let backup = site.mirrors.iter().map(|mirror| mirror.backup.clone()).collect::<Vec<_>>();
    site.mirrors.clear();
    fs::remove_dir_all(volume.join("domains/only-5.example")).unwrap();
    site.wait_until_in_doubt(5, 2);
    succeeded(&site.cluster.operate(&["map", "confirm", "only-5.example"]));
    let folder = site.cluster.path().to_owned();
    let before: Vec<_> = backup.iter().map(|backup| tree::read(backup)).collect();
    succeed(&mut lftp(&site.address, &folder)());
    succeed(&mut rclone(&site.address, &folder)());
    for (backup, before) in backup.iter().zip(before) {
        let mut expected = before;
        expected.retain(|path, _| !path.starts_with("only-5.example"));
        tree::assert_same(&expected, &tree::read(backup));
    }
}
