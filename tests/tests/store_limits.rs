//! What a node's disk can do, and how much of it an agent may take: file systems without the flags of rename, staging folders
//! that are removed, room and speed that are left to the mail server, stores that are read-only, domains that cannot be read.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, succeed};
use portolan_tests::disk::MemoryDisk;
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, eventually, free_port, http, program};

const ALICE: &str = "one.example/users/alice";

/// A mount that ends when it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        succeed(Command::new("mount").args(arguments).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

/// Serves the store of node 1 from elsewhere, or with other keys.
fn restart_with(cluster: &mut Cluster, root: &Path, keys: &str) {
    let root = format!("root = \"{}\"\n{keys}", root.display());
    cluster.restart_agent(1, |config| config.replace("root = \"node-1\"", &root));
    is_back(cluster);
}

fn is_back(cluster: &Cluster) {
    let mut control = Control::login(cluster.frontend.address, "admin");
    eventually("the node is heard", || {
        (control.fetch(&format!("NLST /domains/{ALICE}")).0 == 226).then_some(())
    });
}

fn login(cluster: &Cluster) -> Control {
    Control::login(cluster.frontend.address, "admin")
}

fn staged(root: &Path) -> usize {
    fs::read_dir(root.join(".portolan/staging")).map_or(0, Iterator::count)
}

#[test]
fn a_file_system_without_flags_of_rename_loses_and_replaces_nothing() {
    let mut cluster = Cluster::start(tree::fill);
    let (real, mounted) = (cluster.path().join("node-1"), cluster.path().join("fuse"));
    fs::create_dir(&mounted).unwrap();
    cluster.kill_agent(1);
    succeed(Command::new("bindfs").arg(&real).arg(&mounted));
    let _mount = Mount(mounted.clone());
    restart_with(&mut cluster, &mounted, "");
    cluster.agent(1).wait_for_log("cannot rename without replacing");
    let mut control = login(&cluster);
    let at = |name: &str| format!("/domains/{ALICE}/{name}");
    let disk = real.join("domains").join(ALICE);
    assert_eq!(control.store(&at("a.eml"), b"first"), 226);
    assert_eq!(control.store(&at("a.eml"), b"second"), 226);
    assert_eq!(control.upload(&format!("APPE {}", at("a.eml")), b"+more"), 226);
    assert_eq!(control.upload(&format!("APPE {}", at("new.eml")), b"appended"), 226);
    assert_eq!(control.ask(&format!("CWD {}", at(""))).0, 250);
    assert_eq!(control.upload("STOU", b"unique"), 226);
    assert_eq!(fs::read(disk.join("a.eml")).unwrap(), b"second+more");
    assert_eq!(fs::read(disk.join("new.eml")).unwrap(), b"appended");
    let rename = |control: &mut Control, from: &str, to: &str| {
        assert_eq!(control.ask(&format!("RNFR {}", at(from))).0, 350, "{from}");
        control.ask(&format!("RNTO {}", at(to))).0
    };
    for folder in ["dir", "taken"] {
        assert_eq!(control.ask(&format!("MKD {}", at(folder))).0, 257);
    }
    assert_eq!(control.store(&at("dir/inside.eml"), b"inside"), 226);
    // A directory replaces nothing, not even an empty one, and does not go into itself.
    assert_eq!(rename(&mut control, "dir", "taken"), 550);
    assert_eq!(rename(&mut control, "dir", "a.eml"), 550);
    assert_eq!(rename(&mut control, "dir", "dir/below"), 553);
    assert!(!disk.join("dir/below").try_exists().unwrap());
    assert_eq!(rename(&mut control, "dir", "moved"), 250);
    assert_eq!(fs::read(disk.join("moved/inside.eml")).unwrap(), b"inside");
    assert!(!disk.join("dir").try_exists().unwrap() && disk.join("taken").is_dir());
    assert_eq!(rename(&mut control, "a.eml", "new.eml"), 250);
    assert_eq!(fs::read(disk.join("new.eml")).unwrap(), b"second+more");
    // Links and second names go the same ways.
    std::os::unix::fs::symlink("new.eml", disk.join("link")).unwrap();
    assert_eq!(rename(&mut control, "link", "new.eml"), 550);
    assert_eq!(rename(&mut control, "link", "link-2"), 250);
    assert!(disk.join("link-2").is_symlink() && !disk.join("link").is_symlink());
    fs::hard_link(disk.join("new.eml"), disk.join("second.eml")).unwrap();
    assert_eq!(rename(&mut control, "second.eml", "new.eml"), 250);
    assert!(!disk.join("second.eml").try_exists().unwrap());
    assert_eq!(fs::read(disk.join("new.eml")).unwrap(), b"second+more");
    let (code, said) = control.ask(&format!("MFMT 20200101000000 {}", at("new.eml")));
    assert_eq!(code, 213, "{said}\n{}", cluster.agent(1).log());
    assert_eq!(staged(&real), 0);
    cluster.kill_agent(1);
}

#[test]
fn a_staging_folder_that_is_removed_is_made_again() {
    let cluster = Cluster::start(tree::fill);
    let own = cluster.path().join("node-1/.portolan");
    let mut control = login(&cluster);
    let path = format!("/domains/{ALICE}/a.eml");
    // Without its mark the store would not be served at all.
    let remove_own = || {
        let mark = fs::read(own.join("mark")).unwrap();
        fs::remove_dir_all(&own).unwrap();
        put(&own.join("mark"), &mark);
    };
    let remove_staging = || fs::remove_dir_all(own.join("staging")).unwrap();
    for (content, remove) in [("staging", &remove_staging as &dyn Fn()), ("all", &remove_own)] {
        remove();
        assert_eq!(control.store(&path, content.as_bytes()), 226, "{content}");
        let stored = fs::read(cluster.domains(1).join(ALICE).join("a.eml")).unwrap();
        assert_eq!(stored, content.as_bytes());
    }
    cluster.agent(1).wait_for_log("the staging folder in .portolan was gone and is made again");
    // Without its lock file too the root is taken.
    let second = Command::new(program("portolan-agent"))
        .arg("--config")
        .arg(cluster.path().join("agent-1.toml"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process serves"), "{second:?}");
    // Something else in its place is a fault of the node, which the client may wait for.
    let outside = tempfile::tempdir().unwrap();
    fs::remove_dir_all(own.join("staging")).unwrap();
    fs::write(own.join("staging"), "a file").unwrap();
    assert_eq!(control.store(&path, b"x"), 451);
    fs::remove_file(own.join("staging")).unwrap();
    std::os::unix::fs::symlink(outside.path(), own.join("staging")).unwrap();
    assert_eq!(control.store(&path, b"x"), 451);
    let log = cluster.agent(1).wait_for_log("the staging folder /.portolan/staging cannot be used");
    assert!(log.lines().any(|line| line.contains("\"ERROR\"") || line.contains("\"error\"")), "{log}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    fs::remove_file(own.join("staging")).unwrap();
    assert_eq!(control.store(&path, b"back"), 226);
    // Removed under an upload that runs: the client learns it, and the old file stays.
    let mut data = control.passive();
    assert_eq!(control.ask(&format!("STOR {path}")).0, 150);
    std::io::Write::write_all(&mut data, b"half").unwrap();
    eventually("the upload has begun", || (staged(&cluster.path().join("node-1")) == 1).then_some(()));
    remove_own();
    drop(data);
    assert_eq!(control.reply().0, 451);
    assert_eq!(fs::read(cluster.domains(1).join(ALICE).join("a.eml")).unwrap(), b"back");
    assert_eq!(control.store(&path, b"again"), 226);
}

#[test]
fn one_domain_that_cannot_be_read_hides_no_other() {
    let mut cluster = Cluster::start(tree::fill);
    let domains = cluster.domains(1);
    // An agent that is not root, for which a mode is a wall.
    succeed(Command::new("chown").args(["-R", "4711:4711"]).arg(cluster.path()));
    fs::set_permissions(cluster.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let http = free_port();
    let start = |cluster: &mut Cluster| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=4711", "--regid=4711", "--clear-groups"]).arg(program("portolan-agent"));
        cluster.restart_agent_by(1, command, |config| {
            format!("{config}[http]\naddress = \"127.0.0.1:{http}\"\n")
        });
    };
    start(&mut cluster);
    is_back(&cluster);
    let spread = domains.join("spread.example");
    fs::set_permissions(&spread, fs::Permissions::from_mode(0o000)).unwrap();
    // A start over it.
    for restarted in [false, true] {
        if restarted {
            start(&mut cluster);
            is_back(&cluster);
        }
        cluster.agent(1).wait_for_log("a domain cannot be read");
        // The others are followed.
        put(&domains.join(format!("one.example/users/new-{restarted}/Registry.bin")), b"x");
        let mut control = login(&cluster);
        eventually("a new object of another domain is announced", || {
            let (code, _) =
                control.ask(&format!("SIZE /domains/one.example/users/new-{restarted}/Registry.bin"));
            (code == 213).then_some(())
        });
        let (code, names) = control.fetch("NLST /domains");
        assert!(code == 226 && String::from_utf8(names).unwrap().contains("spread.example"), "{code}");
        let (code, _) = control.fetch("NLST /domains/spread.example/users");
        assert!(code >= 400, "a listing without a part of it: {code}");
        let (code, _) = control.ask("SIZE /domains/spread.example/users/erin/Registry.bin");
        assert!(code >= 400, "{code}");
        let shown = eventually("the metric shows it", || {
            let (_, page) = http::get(format!("127.0.0.1:{http}").parse().unwrap(), "/metrics");
            page.contains("portolan_agent_unreadable_domains 1").then_some(page)
        });
        assert!(shown.contains("portolan_agent_holdings_failing 0"), "{shown}");
        let (status, page) = http::get(format!("127.0.0.1:{http}").parse().unwrap(), "/readyz");
        assert!(status == 200 && page.contains("spread.example"), "{status} {page}");
    }
    fs::set_permissions(&spread, fs::Permissions::from_mode(0o755)).unwrap();
    cluster.agent(1).wait_for_log("a domain can be read again");
    let mut control = login(&cluster);
    eventually("all of it is there again", || {
        (control.fetch("NLST /domains/spread.example/users").0 == 226).then_some(())
    });
}

#[test]
fn uploads_leave_room_to_the_mail_server() {
    let mut cluster = Cluster::start(tree::fill);
    let disk = cluster.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let _mount = MemoryDisk::mount(disk.clone(), "64m");
    put(&disk.join("domains").join(ALICE).join("a.eml"), b"old");
    portolan_tests::mark(&disk, "mail-1");
    restart_with(&mut cluster, &disk, "free_min = \"24MiB\"");
    let free = || {
        let disk = rustix::fs::statvfs(&disk).unwrap();
        disk.f_bavail * disk.f_frsize
    };
    let at = |name: &str| format!("/domains/{ALICE}/{name}");
    let mut control = login(&cluster);
    assert_eq!(control.store(&at("first.eml"), &tree::noise(16 << 20)), 226);
    // Cut while it goes on, all at once: together they do not pass the limit.
    let replies: Vec<u16> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..6)
            .map(|number| {
                let (address, path) = (cluster.frontend.address, at(&format!("big-{number}.eml")));
                scope.spawn(move || Control::login(address, "admin").store(&path, &tree::noise(16 << 20)))
            })
            .collect();
        let watching = scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(2);
            let mut least = u64::MAX;
            while Instant::now() < until {
                least = least.min(free());
                std::thread::sleep(Duration::from_millis(2));
            }
            least
        });
        let replies = uploads.into_iter().map(|upload| upload.join().unwrap()).collect();
        let least = watching.join().unwrap();
        assert!(least >= 23 << 20, "only {least} bytes were left");
        replies
    });
    assert!(replies.iter().all(|code| [226, 452].contains(code)) && replies.contains(&452), "{replies:?}");
    // What was refused takes no room.
    let stored = 1 + replies.iter().filter(|code| **code == 226).count() as u64;
    eventually("the room is free again", || (free() >= (63 - 16 * stored) << 20).then_some(()));
    // A small one fits still; at the limit nothing begins, and the client is told before it sends.
    assert_eq!(control.store(&at("small.eml"), b"small"), 226);
    fs::write(disk.join("others"), vec![7; usize::try_from(free() - (20 << 20)).unwrap()]).unwrap();
    for verb in ["STOR", "APPE"] {
        let _data = control.passive();
        assert_eq!(control.ask(&format!("{verb} {}", at("a.eml"))).0, 452, "{verb}");
    }
    let (code, room) = control.ask(&format!("AVBL {}", at("")));
    assert_eq!((code, room.split(' ').nth(1)), (213, Some("0")), "{room}");
    assert_eq!(fs::read(disk.join("domains").join(ALICE).join("a.eml")).unwrap(), b"old");
    assert_eq!(control.ask(&format!("DELE {}", at("first.eml"))).0, 250, "what makes room is not refused");
    assert_eq!(staged(&disk), 0);
    cluster.kill_agent(1);
}

#[test]
fn a_limit_of_speed_holds_for_all_transfers_together() {
    let mut cluster = Cluster::start(tree::fill);
    let content = tree::noise(2 << 20);
    for number in 0..3 {
        put(&cluster.domains(1).join(ALICE).join(format!("{number}.eml")), &content);
    }
    cluster.restart_agent_with(1, "[limits]\nread_rate = \"4MiB\"\nwrite_rate = \"2MiB\"");
    is_back(&cluster);
    let address = cluster.frontend.address;
    let each = |work: &(dyn Fn(usize) + Sync)| {
        let started = Instant::now();
        let ends: Vec<f64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|number| {
                    scope.spawn(move || {
                        work(number);
                        started.elapsed().as_secs_f64()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        println!("{ends:?}");
        // Shared in equal parts, so they end together.
        let (least, most) =
            ends.iter().fold((f64::MAX, 0.0), |(a, b): (f64, f64), end| (a.min(*end), b.max(*end)));
        assert!(most - least < most / 2.0, "{ends:?}");
        most
    };
    let reading = each(&|number| {
        let (code, got) =
            Control::login(address, "admin").fetch(&format!("RETR /domains/{ALICE}/{number}.eml"));
        assert!(code == 226 && got == content);
    });
    assert!((1.3..5.0).contains(&reading), "6 MiB at 4 MiB/s took {reading} s");
    let writing = each(&|number| {
        let path = format!("/domains/{ALICE}/new-{number}.eml");
        assert_eq!(Control::login(address, "admin").store(&path, &content), 226);
    });
    assert!((2.6..9.0).contains(&writing), "6 MiB at 2 MiB/s took {writing} s");
    for number in 0..3 {
        assert_eq!(
            fs::read(cluster.domains(1).join(ALICE).join(format!("new-{number}.eml"))).unwrap(),
            content
        );
    }
}

#[test]
fn a_read_only_store_is_served_and_not_touched() {
    let mut cluster = Cluster::start(tree::fill);
    let image = cluster.path().join("ext4");
    fs::write(&image, "").unwrap();
    fs::File::options().write(true).open(&image).unwrap().set_len(16 << 20).unwrap();
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&image));
    let (filled, snapshot) = (cluster.path().join("filled"), cluster.path().join("snapshot"));
    {
        let _mount = Mount::new(&["-o", "loop", image.to_str().unwrap()], &filled);
        put(&filled.join("domains").join(ALICE).join("a.eml"), b"of the snapshot");
        portolan_tests::mark(&filled, "mail-1");
    }
    let _mount = Mount::new(&["-o", "loop,ro,noload", image.to_str().unwrap()], &snapshot);
    fs::create_dir_all(cluster.path().join("state")).unwrap();
    // Without the key too, since the file system says it.
    for keys in ["", "read_only = true", "read_only = true\nstate_dir = \"state\""] {
        restart_with(&mut cluster, &snapshot, keys);
        let mut control = login(&cluster);
        let at = |name: &str| format!("/domains/{ALICE}/{name}");
        assert_eq!(control.fetch(&format!("RETR {}", at("a.eml"))), (226, b"of the snapshot".to_vec()));
        assert_eq!(control.ask(&format!("CWD {}", at(""))).0, 250);
        for command in ["STOR a.eml", "APPE a.eml", "STOU"] {
            let _data = control.passive();
            let (code, said) = control.ask(command);
            assert!(code == 550 && said.contains("read-only"), "{command}: {said}");
        }
        for command in ["DELE", "MKD", "MFMT 20200101000000", "SITE CHMOD 600"] {
            let name = if command == "MKD" { "new" } else { "a.eml" };
            let (code, said) = control.ask(&format!("{command} {}", at(name)));
            assert!(code == 550 && said.contains("read-only"), "{command}: {said}");
        }
        assert_eq!(control.ask(&format!("RNFR {}", at("a.eml"))).0, 350);
        assert_eq!(control.ask(&format!("RNTO {}", at("b.eml"))).0, 550);
        assert_eq!(fs::read_dir(snapshot.join(".portolan")).unwrap().count(), 1, "the mark alone");
        let config = cluster.path().join("agent-1.toml");
        let second = Command::new(program("portolan-agent")).arg("--config").arg(&config).output().unwrap();
        assert!(String::from_utf8_lossy(&second.stderr).contains("another process serves"), "{second:?}");
        cluster.kill_agent(1);
    }
    // What could be written to is not touched either.
    let plain = cluster.path().join("plain");
    put(&plain.join("domains").join(ALICE).join("a.eml"), b"x");
    portolan_tests::mark(&plain, "mail-1");
    restart_with(&mut cluster, &plain, "read_only = true");
    assert_eq!(login(&cluster).store(&format!("/domains/{ALICE}/a.eml"), b"y"), 550);
    assert_eq!(fs::read_dir(&plain).unwrap().count(), 2, "domains and the mark's folder");
    assert_eq!(fs::read_dir(plain.join(".portolan")).unwrap().count(), 1, "the mark alone");
    cluster.kill_agent(1);
}

#[test]
fn uploads_may_be_staged_elsewhere_on_the_same_file_system() {
    let mut cluster = Cluster::start(tree::fill);
    let (root, staging) = (cluster.path().join("node-1"), cluster.path().join("elsewhere"));
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("of-others"), "x").unwrap();
    fs::write(staging.join("99-1"), "of a crash").unwrap();
    restart_with(&mut cluster, &root, &format!("staging = \"{}\"", staging.display()));
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["of-others"], "what is not the agent's stays");
    let mut control = login(&cluster);
    let path = format!("/domains/{ALICE}/a.eml");
    let mut data = control.passive();
    assert_eq!(control.ask(&format!("STOR {path}")).0, 150);
    std::io::Write::write_all(&mut data, b"elsewhere").unwrap();
    eventually("it is written there", || (names().len() == 2).then_some(()));
    assert_eq!(staged(&root), 0);
    drop(data);
    assert_eq!(control.reply().0, 226);
    assert_eq!(fs::read(cluster.domains(1).join(ALICE).join("a.eml")).unwrap(), b"elsewhere");
    assert_eq!(names(), ["of-others"]);
    // Another mount of the same file system looks like it, and renames do not work.
    let bound = cluster.path().join("bound");
    let _mount = Mount::new(&["--bind", staging.to_str().unwrap()], &bound);
    cluster.kill_agent(1);
    let config = cluster.path().join("agent-1.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("elsewhere", "bound")).unwrap();
    let refused = Command::new(program("portolan-agent")).arg("--config").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("files cannot be renamed from store.staging"),
        "{said}"
    );
    assert_eq!(names(), ["of-others"]);
}

#[test]
fn an_object_of_a_large_domain_is_announced_without_reading_all_of_it() {
    let mut cluster = Cluster::start(tree::fill);
    let users = cluster.domains(1).join("one.example/users");
    for number in 0..20_000 {
        fs::create_dir(users.join(format!("user-{number}"))).unwrap();
    }
    // The whole is read at the start alone.
    cluster.restart_agent(1, |config| config.replace("rescan_interval = \"1s\"", "rescan_interval = \"1h\""));
    is_back(&cluster);
    let ticks = |cluster: &Cluster| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", cluster.agent(1).id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let mut control = login(&cluster);
    let before = ticks(&cluster);
    for number in 0..30 {
        let path = format!("/domains/one.example/users/new-{number}");
        assert_eq!(control.ask(&format!("MKD {path}")).0, 257);
        assert_eq!(control.ask(&format!("RMD /domains/one.example/users/user-{number}")).0, 250);
        std::thread::sleep(Duration::from_millis(120));
    }
    let took = ticks(&cluster) - before;
    println!("{took} ticks of CPU for 60 changes in a domain of 20,000 objects");
    let (code, names) = control.fetch("NLST /domains/one.example/users");
    let names = String::from_utf8(names).unwrap();
    assert!(code == 226 && names.contains("new-29") && !names.contains("user-29\r"), "{code}");
    // By the map of the front end, which follows what the agent announces.
    eventually("all changes are announced", || {
        let shown = portolan_tests::client::succeeded(&cluster.operate(&[
            "map",
            "explain",
            "/domains/one.example/users/new-29",
        ]));
        shown.contains("mail-1").then_some(())
    });
    assert!(took < 100, "{took} ticks");
}

#[test]
fn what_lies_beside_the_domains_is_not_content() {
    let cluster = Cluster::start(tree::fill);
    let root = cluster.path().join("node-1");
    for name in ["lost+found", ".snapshot", "other"] {
        put(&root.join(name).join("file"), b"x");
    }
    let mut control = login(&cluster);
    let (code, names) = control.fetch("NLST /");
    let names = String::from_utf8(names).unwrap();
    assert_eq!(code, 226);
    for name in ["lost+found", ".snapshot", ".portolan", "other"] {
        assert!(!names.contains(name), "{names}");
        assert_eq!(control.fetch(&format!("RETR /{name}/file")).0, 550, "{name}");
        assert_eq!(control.store(&format!("/{name}/new"), b"x"), 550, "{name}");
        assert_eq!(control.ask(&format!("CWD /{name}")).0, 550, "{name}");
    }
}
