//! Real clients, each in all ways that it knows: plaintext, explicit TLS, implicit TLS.
//!
//! The sample has names that a shell, a listing or a quoted reply would alter. What a client itself cannot do
//! with them is said at its test.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_tests::client::{
    Protection, converse, curl_over, lftp_as_it_comes, lftp_over, script, succeed, succeeded,
};
use portolan_tests::tree::{self, Contents, assert_same, fill_awkward, noise, put, times};
use portolan_tests::{Cluster, PASSWORD};

/// Where the sample lies.
const SAMPLE: &str = "/domains/one.example/users/alice/folders";
/// Where it is copied to.
const COPY: &str = "/domains/one.example/users/bob/folders";

/// A cluster with the sample on mail-1, and once more in the folder `original` of the client.
struct Setup {
    cluster: Cluster,
}

impl Setup {
    fn start() -> Self {
        let mut cluster = Cluster::start(|folder| {
            fill_awkward(&folder.join("original"));
            fill_awkward(&on_node(folder, SAMPLE));
            fs::create_dir_all(on_node(folder, "/domains/one.example/users/bob")).expect("our folder");
        });
        cluster.restart_with_implicit_tls();
        Self { cluster }
    }

    /// A file or folder of the client.
    fn local(&self, name: &str) -> PathBuf {
        self.cluster.path().join(name)
    }

    fn stored(&self, path: &str) -> PathBuf {
        on_node(self.cluster.path(), path)
    }

    fn original(&self) -> Contents {
        tree::read(&self.local("original"))
    }

    fn assert_downloaded(&self) {
        assert_same(&self.original(), &tree::read(&self.local("down")));
    }

    fn assert_uploaded(&self) {
        assert_same(&self.original(), &tree::read(&self.stored(COPY)));
    }

    /// The times of a copy are those of the sample, to the second.
    fn assert_times(&self, copy: &Path) {
        assert_eq!(times(&self.local("original")), times(copy));
    }

    /// Makes room for the next way of protection.
    fn wipe(&self) {
        fs::remove_dir_all(self.local("down")).expect("downloaded before");
        fs::remove_dir_all(self.stored(COPY)).expect("uploaded before");
    }
}

fn on_node(folder: &Path, path: &str) -> PathBuf {
    folder.join("node-1").join(path.trim_start_matches('/'))
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("our own names are UTF-8")
}

#[test]
fn lftp_mirrors_both_ways_and_keeps_times() {
    let setup = Setup::start();
    let (down, original) = (setup.local("down"), setup.local("original"));
    for protection in Protection::ALL {
        let lftp = |script: &str| succeeded(&lftp_over(protection, &setup.cluster, script));
        lftp(&format!("mirror --parallel=3 {SAMPLE} {}", down.display()));
        setup.assert_downloaded();
        setup.assert_times(&down);
        // The user is lost on the node, and comes back from the backup.
        fs::remove_dir_all(setup.stored(SAMPLE)).unwrap();
        lftp(&format!("mirror --reverse --parallel=3 {} {SAMPLE}", down.display()));
        assert_same(&setup.original(), &tree::read(&setup.stored(SAMPLE)));
        setup.assert_times(&setup.stored(SAMPLE));
        let again = lftp(&format!("mirror --verbose --dry-run --delete {SAMPLE} {}", down.display()));
        assert_eq!(again.trim(), "", "the second mirror would move something");
        let again =
            lftp(&format!("mirror --reverse --verbose --dry-run --delete {} {COPY}", original.display()));
        assert!(again.contains("INBOX"), "a copy that is not there would be made: {again}");
        lftp(&format!("mirror --reverse {} {COPY}", original.display()));
        setup.assert_uploaded();
        setup.assert_times(&setup.stored(COPY));
        setup.wipe();
    }
}

#[test]
fn lftp_fetches_in_segments_and_resumes_both_ways() {
    let setup = Setup::start();
    let content = noise(3_000_000);
    let (big, stored) = (setup.local("big"), setup.stored(&format!("{SAMPLE}/big")));
    fs::write(&big, &content).unwrap();
    let part = setup.local("part");
    for protection in Protection::ALL {
        let lftp = |script: &str| succeeded(&lftp_over(protection, &setup.cluster, script));
        fs::write(&stored, &content[..1_000_000]).unwrap();
        lftp(&format!("put -c {} -o {SAMPLE}/big", big.display()));
        assert!(fs::read(&stored).unwrap() == content, "{protection:?}: the rest was put");
        fs::write(&part, &content[..1_234_567]).unwrap();
        lftp(&format!("get -c {SAMPLE}/big -o {}", part.display()));
        assert!(fs::read(&part).unwrap() == content, "{protection:?}: the rest was got");
        fs::remove_file(&part).unwrap();
        lftp(&format!("pget -n 4 {SAMPLE}/big -o {}", part.display()));
        assert!(fs::read(&part).unwrap() == content, "{protection:?}: four segments are the whole");
    }
}

#[test]
fn curl_transfers_resumes_lists_and_makes_directories() {
    let setup = Setup::start();
    let content = noise(3_000_000);
    let (big, part) = (setup.local("big"), setup.local("part"));
    fs::write(&big, &content).unwrap();
    for protection in Protection::ALL {
        // TLS 1.2 resumes in a way of its own.
        for version in ["1.2", "1.3"] {
            let tls = ["--tls-max", version];
            let curl = |arguments: &[&str], path: &str| {
                let arguments = [&tls, arguments].concat();
                succeeded(&curl_over(protection, &setup.cluster, &arguments, path))
            };
            let folder = format!("{COPY}/new/{} {version}", protection.name()).replace(' ', "%20");
            let stored = setup.stored(&format!("{COPY}/new/{} {version}/big", protection.name()));
            curl(&["--upload-file", utf8(&big), "--ftp-create-dirs"], &format!("{folder}/big"));
            assert!(fs::read(&stored).unwrap() == content, "{protection:?} {version}");
            fs::write(&stored, &content[..1_000_000]).unwrap();
            curl(&["--continue-at", "-", "--upload-file", utf8(&big)], &format!("{folder}/big"));
            assert!(fs::read(&stored).unwrap() == content, "{protection:?} {version}: the rest was put");
            fs::write(&part, &content[..1_234_567]).unwrap();
            curl(&["--continue-at", "-", "--output", utf8(&part)], &format!("{folder}/big"));
            assert!(fs::read(&part).unwrap() == content, "{protection:?} {version}: the rest was got");
            curl(&["--quote", &format!("MKD {COPY}/new/by hand {version}")], "/");
            let listed = curl(&["--list-only"], &format!("{COPY}/new/"));
            assert!(listed.lines().any(|name| name == format!("by hand {version}")), "{listed}");
            // Several files over one session, each with a data connection of its own.
            let down = setup.local("down");
            fs::create_dir(&down).unwrap();
            curl(
                &["--output", &format!("{}/#1", utf8(&down))],
                &format!("{SAMPLE}/{{plain.eml,.dot,empty.eml}}"),
            );
            for name in ["plain.eml", ".dot", "empty.eml"] {
                let original = fs::read(setup.local("original").join(name)).unwrap();
                assert!(fs::read(down.join(name)).unwrap() == original, "{protection:?} {version}: {name}");
            }
            fs::remove_dir_all(&down).unwrap();
        }
        fs::remove_dir_all(setup.stored(COPY)).unwrap();
    }
}

/// ncftp knows no TLS.
#[test]
fn ncftp_copies_folders_both_ways_and_keeps_times() {
    let setup = Setup::start();
    let ncftp = |program: &str, arguments: &[&OsStr]| {
        let address = setup.cluster.frontend.address;
        let mut command = Command::new("timeout");
        command.args(["120", program, "-V", "-R", "-u", "admin", "-p", PASSWORD, "-P"]);
        command.arg(address.port().to_string()).env("HOME", setup.cluster.path());
        succeed(command.arg(address.ip().to_string()).args(arguments));
    };
    // It names what it copies by itself: both ways the last folder stays.
    let down = setup.local("ncftp");
    fs::create_dir(&down).unwrap();
    ncftp("ncftpget", &[down.as_os_str(), SAMPLE.as_ref()]);
    assert_same(&setup.original(), &tree::read(&down.join("folders")));
    setup.assert_times(&down.join("folders"));
    ncftp("ncftpput", &["/domains/one.example/users/bob".as_ref(), down.join("folders").as_os_str()]);
    setup.assert_uploaded();
    setup.assert_times(&setup.stored(COPY));
}

/// These two come from one ancestor, and know no TLS and no folders.
#[test]
fn tnftp_and_inetutils_ftp_do_what_scripts_of_old_ask_for() {
    let setup = Setup::start();
    let content = noise(300_000);
    fs::write(setup.local("big"), &content).unwrap();
    // What a shell's `*` means: no folders, nothing hidden.
    let names: Vec<PathBuf> = setup
        .original()
        .into_iter()
        .filter(|(name, content)| {
            content.is_some() && name.components().count() == 1 && !utf8(name).starts_with('.')
        })
        .map(|(name, _)| name)
        .collect();
    for (program, options) in
        [("tnftp", &["-n", "-i", "-v", "-p"][..]), ("inetutils-ftp", &["-n", "-i", "-v", "-p"])]
    {
        let down = setup.local("down");
        fs::create_dir(&down).unwrap();
        fs::write(down.join("part"), &content[..100_000]).unwrap();
        fs::write(down.join("rest"), &content[..200_000]).unwrap();
        let address = setup.cluster.frontend.address;
        let lines = format!(
            "open {} {}\nuser admin {PASSWORD}\nbinary\nmkdir {COPY}\ncd {COPY}\n\
             lcd {}\nput big\nsize big\n\
             lcd {}\nreget big part\nrestart 200000\nget big rest\n\
             rename big \"renamed file\"\nget \"renamed file\" whole\ndelete \"renamed file\"\n\
             lcd {}\nmput *\nlcd {}\nmget *\nmodtime plain.eml\npwd\nls\nquit\n",
            address.ip(),
            address.port(),
            setup.cluster.path().display(),
            down.display(),
            setup.local("original").display(),
            down.display(),
        );
        let mut command = Command::new("timeout");
        let said = converse(command.args(["60", program]).args(options).current_dir(&down), &lines);
        assert!(said.contains("\t300000") || said.contains("213 300000"), "{program}: {said}");
        for name in ["part", "rest", "whole"] {
            assert!(fs::read(down.join(name)).unwrap() == content, "{program}: {name}: {said}");
        }
        for name in &names {
            let original = fs::read(setup.local("original").join(name)).unwrap();
            let stored = setup.stored(COPY).join(name);
            assert!(
                fs::read(&stored).is_ok_and(|found| found == original),
                "{program}: {name:?} was put: {said}"
            );
            assert!(
                fs::read(down.join(name)).is_ok_and(|found| found == original),
                "{program}: {name:?} was got: {said}"
            );
        }
        assert!(!setup.stored(COPY).join("renamed file").try_exists().unwrap());
        setup.wipe();
    }
}

/// wget drops spaces in front of a name in a listing, and then does not find the file.
#[test]
fn wget_fetches_a_tree_whole() {
    let setup = Setup::start();
    let lost = Path::new(" leading space.eml");
    fs::remove_file(setup.stored(SAMPLE).join(lost)).unwrap();
    let mut expected = setup.original();
    assert!(expected.remove(lost).is_some());
    for protection in Protection::ALL {
        let down = setup.local("down");
        fs::create_dir(&down).unwrap();
        // ftps: is explicit TLS for wget, unless told otherwise.
        let scheme = if protection == Protection::Plain { "ftp" } else { "ftps" };
        let mut command = Command::new("timeout");
        command
            .args(["120", "wget", "--no-verbose", "--tries=1", "--recursive", "--level=inf"])
            .args(["--no-host-directories", "--cut-dirs=4", "--restrict-file-names=nocontrol"])
            .args((protection == Protection::Implicit).then_some("--ftps-implicit"))
            .args(["--user=admin", &format!("--password={PASSWORD}")])
            .arg(format!("--ca-certificate={}", setup.cluster.authority().display()))
            .arg(format!("{scheme}://{}{SAMPLE}/", protection.address(&setup.cluster)))
            .current_dir(&down);
        succeed(&mut command);
        assert_same(&expected, &tree::read(&down.join("folders")));
        fs::remove_dir_all(&down).unwrap();
    }
}

#[test]
fn rclone_copies_and_checks_and_the_second_time_moves_nothing() {
    let setup = Setup::start();
    let (down, original) = (setup.local("down"), setup.local("original"));
    let secret = succeed(Command::new("rclone").args(["obscure", PASSWORD]));
    for protection in Protection::ALL {
        let address = protection.address(&setup.cluster);
        // By default rclone stores names that end in a space under others.
        let remote = format!(
            ":ftp,host={},port={},user=admin,pass={},explicit_tls={},tls={},encoding=Slash:",
            address.ip(),
            address.port(),
            secret.trim(),
            protection == Protection::Explicit,
            protection == Protection::Implicit,
        );
        let rclone = |arguments: &[&str]| {
            let mut command = Command::new("timeout");
            command
                .args(["120", "rclone", "--config", "/dev/null", "--retries", "1"])
                .args(["--low-level-retries", "1", "--transfers", "4"])
                .args(arguments)
                .env("SSL_CERT_FILE", setup.cluster.authority());
            succeed(&mut command)
        };
        let (sample, copy) = (format!("{remote}{SAMPLE}"), format!("{remote}{COPY}"));
        rclone(&["copy", "--create-empty-src-dirs", &sample, utf8(&down)]);
        setup.assert_downloaded();
        setup.assert_times(&down);
        rclone(&["copy", "--create-empty-src-dirs", utf8(&original), &copy]);
        setup.assert_uploaded();
        setup.assert_times(&setup.stored(COPY));
        let checked = rclone(&["check", "--download", utf8(&original), &copy]);
        assert!(checked.contains(" 0 differences found"), "{checked}");
        for (from, to) in [(&sample[..], utf8(&down)), (utf8(&original), &copy[..])] {
            let again = rclone(&["copy", "--dry-run", "--stats-one-line", "-v", from, to]);
            assert!(!again.contains("Skipped copy"), "the second copy would move something: {again}");
        }
        setup.wipe();
    }
}

/// Runs a script of `tests/clients/` in all ways; `after` looks at what it has done.
fn in_all_ways(program: &str, name: &str, after: impl Fn(&Setup)) {
    let setup = Setup::start();
    for protection in Protection::ALL {
        let address = protection.address(&setup.cluster);
        let mut command = script(program, name);
        command.args([&address.ip().to_string(), &address.port().to_string(), protection.name()]);
        command.arg(setup.cluster.authority()).arg(PASSWORD).arg(setup.cluster.path()).args([SAMPLE, COPY]);
        succeed(&mut command);
        setup.assert_downloaded();
        setup.assert_uploaded();
        after(&setup);
        setup.wipe();
    }
}

#[test]
fn python_ftplib_copies_both_ways_keeps_times_and_aborts() {
    in_all_ways("python3", "ftplib_all.py", |setup| {
        setup.assert_times(&setup.local("down"));
        setup.assert_times(&setup.stored(COPY));
    });
}

#[test]
fn perl_net_ftp_copies_both_ways() {
    in_all_ways("perl", "net_ftp_all.pl", |setup| setup.assert_times(&setup.local("down")));
}

#[test]
fn node_basic_ftp_copies_both_ways() {
    in_all_ways("node", "basic_ftp_all.js", |_| {});
}

/// lftp uses MODE Z whenever it is offered.
#[test]
fn lftp_as_it_comes_lists_and_mirrors_all_of_a_long_folder() {
    let mut cluster = Cluster::start(|folder| {
        for (name, files) in [("Long", 2_000_u64), ("Longest", 20_000)] {
            let folder = on_node(folder, SAMPLE).join(name);
            fs::create_dir_all(&folder).unwrap();
            for number in 0..files {
                let name = format!(
                    "{}.M{}P7V000000000000001I{number:016x}_0.mail-1,S=9:2,S",
                    1_600_000_000 + number,
                    number * 7
                );
                fs::write(folder.join(name), number.to_string()).unwrap();
            }
        }
    });
    let empty = cluster.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for number in 0..200 {
        fs::write(empty.join(format!("{number}.eml")), b"").unwrap();
    }
    for mode_z in [false, true] {
        if mode_z {
            cluster.restart_with("mode_z = true");
        }
        for protection in [Protection::Plain, Protection::Explicit] {
            let lftp = |script: &str| succeed(&mut lftp_as_it_comes(protection, &cluster, script));
            let down = cluster.path().join("down");
            for command in ["ls", "nlist", "cls -1", "mirror --script=-"] {
                let listed = lftp(&format!("{command} {SAMPLE}/Longest"));
                let names = listed.lines().filter(|line| line.contains("_0.mail-1,S=9:2,S")).count();
                assert_eq!(names, 20_000, "{command} {protection:?} mode_z = {mode_z}");
            }
            if mode_z && protection == Protection::Explicit {
                lftp(&format!("mirror --parallel=4 {SAMPLE}/Long {}", down.display()));
                assert_same(&tree::read(&on_node(cluster.path(), SAMPLE).join("Long")), &tree::read(&down));
                fs::remove_dir_all(&down).unwrap();
            }
            if !mode_z {
                let started = Instant::now();
                lftp(&format!("mirror --reverse {} {COPY}", empty.display()));
                assert_eq!(fs::read_dir(on_node(cluster.path(), COPY)).unwrap().count(), 200);
                assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
                fs::remove_dir_all(on_node(cluster.path(), COPY)).unwrap();
            }
        }
    }
}

/// In the locale C, as cron has it, lftp would translate names, if it were told that they are UTF-8.
#[test]
fn lftp_as_it_comes_keeps_names_that_are_no_text_of_its_locale() {
    const NAMES: [&[u8]; 8] = [
        b"\xff.eml",
        b"\xff\xff.eml",
        b"\xff\xff\xff.eml",
        b"\xe9.eml",
        b"\xe8.eml",
        b"?.eml",
        "\u{e9}.eml".as_bytes(),
        "Привет".as_bytes(),
    ];
    let cluster = Cluster::start(|folder| {
        for name in NAMES {
            put(&on_node(folder, SAMPLE).join(OsStr::from_bytes(name)), &[b"content of ", name].concat());
        }
        fs::create_dir_all(on_node(folder, "/domains/one.example/users/bob")).unwrap();
    });
    let (down, sample) = (cluster.path().join("down"), tree::read(&on_node(cluster.path(), SAMPLE)));
    for locale in ["C", "C.UTF-8"] {
        for protection in [Protection::Plain, Protection::Explicit] {
            let script = format!("mirror {SAMPLE} {}; mirror --reverse {0} {COPY}", down.display(),);
            succeed(lftp_as_it_comes(protection, &cluster, &script).env("LC_ALL", locale));
            assert_same(&sample, &tree::read(&down));
            assert_same(&sample, &tree::read(&on_node(cluster.path(), COPY)));
            fs::remove_dir_all(&down).unwrap();
            fs::remove_dir_all(on_node(cluster.path(), COPY)).unwrap();
        }
    }
}

/// These convert line ends themselves, and say TYPE A or nothing at all.
#[test]
fn clients_in_text_mode_are_refused_and_in_binary_mode_keep_every_byte() {
    let setup = Setup::start();
    let (local, content) = (setup.local("mixed"), b"a\r\nb\nc\r\xff\0\r\n");
    fs::write(&local, content).unwrap();
    let folder = setup.stored(COPY);
    for (program, name) in [("perl", "text_mode.pl"), ("php", "text_mode.php"), ("ruby", "text_mode.rb")] {
        put(&folder.join("kept.eml"), b"kept\n");
        let address = setup.cluster.frontend.address;
        let mut command = script(program, name);
        command.args([&address.ip().to_string(), &address.port().to_string(), PASSWORD]);
        let printed = succeed(command.arg(&local).arg(COPY));
        let expected = "listed: 1\ntext get: refused, 504\ntext put: refused, 504\nsaid text put: refused, 504\n\
                        binary put: done\nbinary get: done\n";
        assert_eq!(printed, expected, "{program}");
        for (path, expected) in [
            (folder.join("kept.eml"), &b"kept\n"[..]),
            (folder.join("copy.eml"), content),
            (setup.local("mixed.back"), content),
        ] {
            assert_eq!(fs::read(&path).unwrap(), expected, "{program}: {}", path.display());
        }
        fs::remove_dir_all(&folder).unwrap();
        fs::remove_file(setup.local("mixed.back")).unwrap();
    }
}
