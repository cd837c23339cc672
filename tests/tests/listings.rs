//! Listings: what they cost other sessions, whether they are whole, and what they show of links and special files.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, curl, lftp, succeeded};
use portolan_tests::{Cluster, PASSWORD, http, tree};
use rustix::fs::{FileType, Mode, OFlags};

/// What another session may wait for the reply to a NOOP while listings are under way. On a machine that has other work
/// too, one in fifty may take longer, but none [`NOOP_LATE_MAX`].
const NOOP_MAX: Duration = Duration::from_millis(100);
const NOOP_LATE_MAX: Duration = Duration::from_secs(1);

/// The times of NOOPs, the longest last, while `work` runs in as many sessions; each has its number.
fn noops_beside(
    cluster: &Cluster,
    sessions: usize,
    work: impl Fn(&mut Control, usize) + Sync,
) -> Vec<Duration> {
    let address = cluster.frontend.address;
    let mut watching = Control::login(address, "admin");
    let controls: Vec<Control> = (0..sessions).map(|_| Control::login(address, "admin")).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let noops = scope.spawn(|| {
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let started = Instant::now();
                assert_eq!(watching.ask("NOOP").0, 200);
                times.push(started.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            times.sort();
            times
        });
        let work = &work;
        let workers: Vec<_> = controls
            .into_iter()
            .enumerate()
            .map(|(number, mut control)| scope.spawn(move || work(&mut control, number)))
            .collect();
        let worked: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(worked.iter().all(Result::is_ok), "all sessions do their work");
        noops.join().expect("NOOPs are answered")
    })
}

#[test]
fn no_pattern_and_no_large_folder_keeps_another_session_waiting() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with("access = [{ allow = \"all\", limits = { simultaneous_per_address = 25 } }]");
    let folder = cluster.domains(1).join("one.example/users/alice/folders/large");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..20_000 {
        fs::write(folder.join(format!("{number}{}", "a".repeat(60))), "").unwrap();
    }
    // Backtracking needs years for it.
    let groups = "{*a,*a,*a,*a}".repeat(19) + "b";
    assert!(groups.len() < 255);
    let mut other = Control::login(cluster.frontend.address, "admin");
    assert_eq!(other.ask("CWD /domains/one.example/users/alice/folders/large").0, 250);
    let started = Instant::now();
    assert_eq!(other.fetch(&format!("LIST {groups}")), (226, Vec::new()));
    println!("one listing by the worst pattern: {:?}", started.elapsed());
    let (code, names) = other.fetch("NLST 1999{8,[9]}?*a");
    assert_eq!((code, names.iter().filter(|byte| **byte == b'\n').count()), (226, 2));

    let nested = "{*a,".repeat(49) + "b" + &"}".repeat(49);
    let commands = [
        format!("LIST {groups}"),
        format!("NLST {nested}"),
        "LIST".to_owned(),
        "MLSD".to_owned(),
        "LIST -R".to_owned(),
    ];
    let times = noops_beside(&cluster, 20, |control, number| {
        assert_eq!(control.ask("CWD /domains/one.example/users/alice/folders/large").0, 250);
        let (code, _) = control.fetch(&commands[number % commands.len()]);
        assert_eq!(code, 226);
    });
    let (usual, slowest) = (times[times.len() * 49 / 50], times[times.len() - 1]);
    println!("{} NOOPs beside 20 listings: {usual:?}, the slowest {slowest:?}", times.len());
    assert!(usual < NOOP_MAX && slowest < NOOP_LATE_MAX, "{usual:?}, {slowest:?}");
}

/// A listing by a pattern that is dropped in its middle leaves nothing that goes on.
#[test]
fn a_listing_by_pattern_that_is_aborted_stops() {
    let cluster = Cluster::start(tree::fill);
    let folder = cluster.domains(1).join("one.example/users/alice/folders/large");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..5_000 {
        fs::write(folder.join(format!("{number}{}", "a".repeat(240))), "").unwrap();
    }
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask("CWD /domains/one.example/users/alice/folders/large").0, 250);
    let mut data = control.passive();
    control.send(format!("LIST {}\r\n", "*a".repeat(100) + "b").as_bytes()).unwrap();
    assert_eq!(control.reply().0, 150);
    let started = Instant::now();
    control.send(b"ABOR\r\n").unwrap();
    assert_eq!((control.reply().0, control.reply().0), (426, 226));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(data.read_to_end(&mut Vec::new()).is_err(), "the data connection is reset");
}

/// The folder of mail of a user on the first node, and its path for clients.
const FOLDERS: &str = "one.example/users/alice/folders";

/// Names of files in what NLST -R or LIST -R has sent.
fn files(listing: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(listing);
    let last = |line: &str| line.rsplit(['/', ' ']).next().unwrap_or_default().to_owned();
    text.lines().map(last).filter(|name| name.ends_with(".eml")).collect()
}

#[test]
fn a_tree_of_70_levels_is_listed_and_fetched_whole() {
    let cluster = Cluster::start(tree::fill);
    let mut folder = cluster.domains(1).join(FOLDERS).join("deep");
    for level in 0..70 {
        folder = folder.join(format!("d{level}"));
        tree::put(&folder.join(format!("{level}.eml")), b"mail");
    }
    let mut control = Control::login(cluster.frontend.address, "admin");
    for command in ["LIST -R", "NLST -R"] {
        let (code, listing) = control.fetch(&format!("{command} /domains/{FOLDERS}/deep"));
        assert_eq!((code, files(&listing).len()), (226, 70), "{command}");
    }
    let found = succeeded(&lftp(&cluster, &format!("find /domains/{FOLDERS}/deep")));
    assert_eq!(files(found.as_bytes()).len(), 70);
    let expected = tree::read(&cluster.domains(1).join(FOLDERS).join("deep"));
    let address = cluster.frontend.address;
    let copy = cluster.path().join("copy");
    let mirrored = lftp(&cluster, &format!("mirror /domains/{FOLDERS}/deep {}", copy.display()));
    succeeded(&mirrored);
    tree::assert_same(&expected, &tree::read(&copy));
    let fetched = |program: &str, arguments: &[&str]| {
        let folder = cluster.path().join(program);
        fs::create_dir(&folder).unwrap();
        let mut command = std::process::Command::new("timeout");
        let output = command.args(["60", program]).args(arguments).current_dir(&folder).output().unwrap();
        succeeded(&output);
        tree::assert_same(&expected, &tree::read(&folder.join("deep")));
    };
    let url = format!("ftp://admin:{PASSWORD}@{address}/domains/{FOLDERS}/deep/");
    fetched("wget", &["-q", "-r", "-l", "inf", "-nH", "--cut-dirs=5", "--no-parent", &url]);
}

#[test]
fn a_folder_that_no_path_can_name_fails_only_the_listing_that_would_hold_it() {
    let cluster = Cluster::start(tree::fill);
    let folders = cluster.domains(1).join(FOLDERS);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut open = rustix::fs::open(&folders, flags, Mode::empty()).unwrap();
    let mut names = Vec::new();
    for level in 10..27 {
        let name = format!("{level}{}", "d".repeat(248));
        rustix::fs::mkdirat(&open, &name, Mode::RWXU).unwrap();
        open = rustix::fs::openat(&open, &name, flags, Mode::empty()).unwrap();
        names.push(name);
    }
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask("CWD /domains/one.example/users/alice/folders").0, 250);
    for name in &names[..15] {
        assert_eq!(control.ask(&format!("CWD {name}")).0, 250);
    }
    // Its last folder has a path of more than 4,096 bytes; the folder above shows it.
    let (code, listing) = control.fetch("LIST");
    assert_eq!(code, 226);
    assert!(String::from_utf8_lossy(&listing).contains(&names[15]));
    for command in ["LIST -R /domains/one.example", "NLST -R"] {
        let mut data = control.passive();
        assert_eq!(control.ask(command).0, 150, "{command}");
        data.read_to_end(&mut Vec::new()).ok();
        let (code, text) = control.reply();
        assert_eq!(code, 553, "{text}");
        assert!(text.contains("cannot be listed: the path is longer than 4096 bytes"), "{text}");
    }
    let log = cluster.frontend.wait_for_log("cannot be listed");
    assert!(log.contains(&names[15]), "the log names it");
    let (code, listing) = control.fetch("LIST -R /domains/two.example");
    assert_eq!((code, files(&listing).is_empty()), (226, false));
}

#[test]
fn folders_that_are_renamed_or_removed_during_a_recursive_listing_are_not_missed() {
    let cluster = Cluster::start(tree::fill);
    let folders = cluster.domains(1).join(FOLDERS).join("busy");
    // What is sent first, and fills the buffers until it is read.
    let large = folders.join("a");
    fs::create_dir_all(&large).unwrap();
    for number in 0..20_000 {
        fs::write(large.join(format!("{number}{}", "n".repeat(245))), "").unwrap();
    }
    for name in ["b-removed", "c", "d/deeper", "e", "f", "g", "h/inner"] {
        let folder = folders.join(name);
        tree::put(&folder.join(format!("{}.eml", name.replace('/', "-"))), b"mail");
    }
    let mut control = Control::login(cluster.frontend.address, "admin");
    let mut data = control.passive();
    rustix::net::sockopt::set_socket_recv_buffer_size(&data, 64 * 1024).unwrap();
    assert_eq!(control.ask(&format!("NLST -R /domains/{FOLDERS}/busy")).0, 150);
    let mut listing = vec![0; 4_096];
    data.read_exact(&mut listing).unwrap();
    fs::remove_dir_all(folders.join("b-removed")).unwrap();
    let rename = |from: &str, to: &str| fs::rename(folders.join(from), folders.join(to)).unwrap();
    rename("c", "c-renamed");
    rename("d", "z");
    // Two change places, and one goes into another.
    rename("e", "swap");
    rename("f", "e");
    rename("swap", "f");
    rename("g", "a/g");
    rename("h/inner", "inner");
    data.read_to_end(&mut listing).unwrap();
    assert_eq!(control.reply().0, 226);
    let expected = ["c", "d-deeper", "e", "f", "g", "h-inner"].map(|name| format!("{name}.eml"));
    assert_eq!(files(&listing), BTreeSet::from(expected));
    let text = String::from_utf8_lossy(&listing);
    for name in
        ["c-renamed/c.eml", "z/deeper/d-deeper.eml", "e/f.eml", "f/e.eml", "a/g/g.eml", "/inner/h-inner.eml"]
    {
        assert_eq!(text.lines().filter(|line| line.ends_with(name)).count(), 1, "{name}");
    }
}

#[test]
fn recursive_listings_while_folders_are_renamed_all_the_time_are_whole_or_fail() {
    let cluster = Cluster::start(tree::fill);
    let folders = cluster.domains(1).join(FOLDERS).join("busy");
    let homes = ["one", "two"].map(|home| folders.join(home));
    for number in 0..60 {
        tree::put(&homes[number % 2].join(format!("f{number}/sub/{number}.eml")), b"mail");
    }
    let done = AtomicBool::new(false);
    let (mut whole, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..60).cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let from = homes[number % 2].join(format!("f{number}"));
                // Under another name, and every third time in another folder.
                let home = if number % 3 == 0 { &homes[(number + 1) % 2] } else { &homes[number % 2] };
                let to = home.join(format!("g{number}"));
                fs::rename(&from, &to).unwrap();
                std::thread::sleep(Duration::from_millis(10));
                fs::rename(&to, &from).unwrap();
            }
        });
        let mut control = Control::login(cluster.frontend.address, "admin");
        for round in 0..25 {
            let command = if round % 2 == 0 { "LIST -R" } else { "NLST -R" };
            let (code, listing) = control.fetch(&format!("{command} /domains/{FOLDERS}/busy"));
            match code {
                226 => {
                    whole += 1;
                    assert_eq!(files(&listing).len(), 60, "{command}");
                }
                code => {
                    failed += 1;
                    assert!([426, 450].contains(&code), "{code}");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{whole} listings were whole, {failed} failed");
    assert!(whole > 0);
}

/// A folder with one mail, links and special files; what MLSD says of the type, LIST as first letter, and of what name.
fn special_folder(cluster: &Cluster) -> Vec<(&'static str, char, String)> {
    let folder = cluster.domains(1).join(FOLDERS).join("special");
    tree::put(&folder.join("mail.eml"), b"mail");
    let mut expected = vec![("file", '-', "mail.eml".to_owned())];
    for number in 0..40 {
        let name = format!("link{number}.eml");
        std::os::unix::fs::symlink("mail.eml", folder.join(&name)).expect("our folder");
        expected.push(("OS.unix=symlink", 'l', name));
    }
    std::os::unix::fs::symlink("..", folder.join("up")).expect("our folder");
    std::os::unix::fs::symlink("/etc/passwd", folder.join("away")).expect("our folder");
    expected.extend([("OS.unix=symlink", 'l', "up".to_owned()), ("OS.unix=symlink", 'l', "away".to_owned())]);
    let directory = fs::File::open(&folder).expect("our folder");
    rustix::fs::mknodat(&directory, "pipe", FileType::Fifo, Mode::RWXU, 0).expect("our folder");
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).expect("our folder");
    expected.extend([("OS.unix=other", 'p', "pipe".to_owned()), ("OS.unix=other", 's', "socket".to_owned())]);
    expected
}

#[test]
fn links_and_special_files_are_listed_as_what_they_are_and_never_fetched() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| config + http::TABLE);
    let expected = special_folder(&cluster);
    let special = expected.len() - 1;
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask(&format!("CWD /domains/{FOLDERS}/special")).0, 250);
    let mut fetch = |command: &str| {
        let (code, listing) = control.fetch(command);
        assert_eq!(code, 226, "{command}");
        let mut lines: Vec<String> = String::from_utf8(listing).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines.len(), expected.len(), "{command}");
        lines
    };
    let facts = fetch("MLSD");
    let (list, names) = (fetch("LIST"), fetch("NLST"));
    for (kind, letter, name) in &expected {
        let line = facts.iter().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        assert!(line.starts_with(&format!("type={kind};")), "{line}");
        assert_eq!(line.contains("size="), *kind == "file", "{line}");
        let target = match name.as_str() {
            "up" => " -> ..",
            "away" => " -> /etc/passwd",
            _ if *letter == 'l' => " -> mail.eml",
            _ => "",
        };
        let end = format!(" {name}{target}");
        assert!(list.iter().any(|line| line.starts_with(*letter) && line.ends_with(&end)), "{end}: {list:?}");
        assert!(names.contains(name));
        let (code, text) = control.ask(&format!("MLST {name}"));
        assert!(code == 250 && text.contains(&format!("type={kind};")), "{text}");
        let (code, content) = control.fetch(&format!("RETR {name}"));
        assert_eq!(code, if *kind == "file" { 226 } else { 550 }, "{name}");
        assert_eq!(content.is_empty(), *kind != "file");
        let code = control.ask(&format!("SIZE {name}")).0;
        assert_eq!(code, if *kind == "file" { 213 } else { 550 }, "{name}");
    }
    let (code, text) = control.ask("STAT up");
    assert!(code == 213 && text.contains("up -> .."), "{text}");
    control.ask("QUIT");
    let log = cluster.frontend.wait_for_log("session ended");
    assert_eq!(log.matches("a listing has entries that no client can fetch").count(), 3);
    assert!(log.contains(&format!("\"special\":{},", special * 3)), "{log}");
    let counted = http::metric(http::address(&cluster.frontend), "portolan_special_entries_total");
    assert_eq!(counted, Some((special * 3) as f64));
}

#[test]
fn clients_make_no_file_of_a_link_and_those_that_ask_for_it_fail() {
    let cluster = Cluster::start(tree::fill);
    special_folder(&cluster);
    let copy = |name: &str| cluster.path().join(name);
    let only_mail = |name: &str| {
        let names: Vec<_> =
            fs::read_dir(copy(name)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["mail.eml"], "{name}");
        assert_eq!(fs::read(copy(name).join("mail.eml")).unwrap(), b"mail");
    };
    let mirrored = lftp(&cluster, &format!("mirror /domains/{FOLDERS}/special {}", copy("lftp").display()));
    succeeded(&mirrored);
    only_mail("lftp");
    // What is restored from there makes nothing of a link, and removes none.
    let back = format!("mirror -R {} /domains/{FOLDERS}/restored", copy("lftp").display());
    succeeded(&lftp(&cluster, &back));
    let restored = tree::read(&cluster.domains(1).join(FOLDERS).join("restored"));
    assert_eq!(restored.len(), 1);

    let address = cluster.frontend.address;
    let run = |program: &str, arguments: &[&str]| {
        fs::create_dir_all(copy(program)).unwrap();
        let mut command = std::process::Command::new("timeout");
        command.args(["60", program]).args(arguments).current_dir(copy(program)).output().unwrap()
    };
    let secret = succeeded(&run("rclone", &["obscure", PASSWORD]));
    let remote = format!(
        ":ftp,host={},port={},user=admin,pass={}:domains/{FOLDERS}/special",
        address.ip(),
        address.port(),
        secret.trim()
    );
    for verb in ["copy", "sync"] {
        let copied = run("rclone", &["--config", "/dev/null", "--retries", "1", verb, &remote, "."]);
        assert!(!copied.status.success(), "rclone {verb} says that not all was copied");
        only_mail("rclone");
    }
    let url = format!("ftp://admin:{PASSWORD}@{address}/domains/{FOLDERS}/special/");
    let fetched = run("wget", &["-nv", "-r", "-nH", "--cut-dirs=6", "--no-parent", &url]);
    // wget names each of them, and ends with 0 all the same.
    let missing = String::from_utf8_lossy(&fetched.stderr).matches("No such file").count();
    assert!(missing >= 42, "{missing}");
    only_mail("wget");
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let remote = format!("/domains/{FOLDERS}/special");
    let fetched =
        run("ncftpget", &["-V", "-R", "-u", "admin", "-p", PASSWORD, "-P", &port, &host, ".", &remote]);
    succeeded(&fetched);
    assert_eq!(fs::read_dir(copy("ncftpget/special")).unwrap().count(), 1);
    let fetched = curl(&cluster, &["--output", "link"], &format!("/domains/{FOLDERS}/special/link0.eml"));
    assert!(!fetched.status.success());
    let listed = succeeded(&curl(&cluster, &[], &format!("/domains/{FOLDERS}/special/")));
    assert_eq!(listed.lines().filter(|line| line.ends_with(" -> mail.eml")).count(), 40);
}

#[test]
fn followed_links_are_read_as_their_files_and_never_changed() {
    let mut cluster = Cluster::start(tree::fill);
    special_folder(&cluster);
    let folder = cluster.domains(1).join(FOLDERS).join("special");
    std::os::unix::fs::symlink("../../../../../spread.example/domainRegistry.bin", folder.join("other"))
        .unwrap();
    cluster.restart_agent(1, |config| config.replace("[log]", "links = \"follow\"\n[log]"));
    let mut control = Control::login(cluster.frontend.address, "admin");
    let path = format!("/domains/{FOLDERS}/special");
    portolan_tests::eventually("the agent is there again", || {
        (control.ask(&format!("CWD {path}")).0 == 250).then_some(())
    });
    let (code, listing) = control.fetch("MLSD");
    let listing = String::from_utf8(listing).unwrap();
    assert_eq!(
        (code, listing.lines().filter(|line| line.starts_with("type=file;size=4;")).count()),
        (226, 41)
    );
    for name in ["up", "away", "other"] {
        let line = listing.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        assert!(line.starts_with("type=OS.unix=symlink;"), "{line}");
        assert_eq!(control.fetch(&format!("RETR {name}")).0, 550, "{name}");
    }
    assert_eq!(control.fetch("RETR link7.eml"), (226, b"mail".to_vec()));
    assert_eq!(control.ask("SIZE link7.eml").1, "213 4");
    assert_eq!(control.store("link7.eml", b"new"), 550);
    for command in ["DELE link7.eml", "MFMT 20200101000000 link7.eml", "SITE CHMOD 600 link7.eml"] {
        assert_eq!(control.ask(command).0, 550, "{command}");
    }
    for (from, to) in [("link7.eml", "new.eml"), ("mail.eml", "link7.eml")] {
        assert_eq!(control.ask(&format!("RNFR {from}")).0, 350);
        assert_eq!(control.ask(&format!("RNTO {to}")).0, 550, "{from} to {to}");
    }
    assert_eq!(fs::read_link(folder.join("link7.eml")).unwrap(), std::path::Path::new("mail.eml"));
    assert_eq!(fs::read(folder.join("mail.eml")).unwrap(), b"mail");
    assert_eq!(control.fetch("LIST -R").0, 226);
}
