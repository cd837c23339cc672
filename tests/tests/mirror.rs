//! The main job with real clients: backup, a second backup that moves nothing, restore of a lost node.

use std::fs;
use std::path::Path;
use std::process::Command;

use portolan_tests::client::{Control, curl, lftp, succeeded, text};
use portolan_tests::tree::{self, assert_same, modified};
use portolan_tests::{Cluster, PASSWORD, mark};

#[test]
fn lftp_mirrors_the_cluster_byte_for_byte_and_the_second_time_nothing() {
    let cluster = Cluster::start(tree::fill);
    let backup = cluster.path().join("backup");
    let mirror = format!("mirror --parallel=4 / {}", backup.display());
    let first = lftp(&cluster, &mirror);
    assert!(first.status.success(), "{}", text(&first));
    let nodes = tree::read_nodes(cluster.path());
    assert_eq!(nodes.values().flatten().count(), 4 * (5 * 12 + 3) + 3);
    assert_same(&nodes, &tree::read(&backup.join("domains")));
    let path = "one.example/users/alice/folders/Архив/3 .eml";
    assert_eq!(modified(&backup.join("domains").join(path)), modified(&cluster.domains(1).join(path)));

    let second = lftp(&cluster, &format!("mirror --verbose --dry-run --delete / {}", backup.display()));
    assert!(second.status.success(), "{}", text(&second));
    assert_eq!(text(&second).trim(), "", "the second mirror would move something");
}

#[test]
fn lftp_restores_a_wiped_node_byte_for_byte() {
    let mut cluster = Cluster::start(tree::fill);
    let backup = cluster.path().join("backup");
    let before = tree::read_nodes(cluster.path());
    let on_third = tree::read(&cluster.domains(3));
    let saved = lftp(&cluster, &format!("mirror / {}", backup.display()));
    assert!(saved.status.success(), "{}", text(&saved));
    for number in [2, 3] {
        cluster.kill_agent(number);
        fs::remove_dir_all(cluster.path().join(format!("node-{number}"))).unwrap();
        fs::create_dir_all(cluster.domains(number)).unwrap();
        // A new disk, which the operator has to mark.
        mark(&cluster.path().join(format!("node-{number}")), &format!("mail-{number}"));
        cluster.start_agent(number);
        // Nor is it believed to be empty until the operator says so.
        succeeded(&cluster.operate(&["map", "confirm", &format!("mail-{number}")]));
    }
    wait_until_listed(&cluster);
    let restored =
        lftp(&cluster, &format!("mirror --reverse --parallel=4 {}/domains /domains", backup.display()));
    assert!(restored.status.success(), "{}", text(&restored));
    assert_same(&before, &tree::read_nodes(cluster.path()));
    // The map places carol on mail-3; what it does not place went to the home node.
    for path in on_third.keys().filter(|path| path.starts_with("spread.example/users/carol")) {
        assert!(cluster.domains(3).join(path).try_exists().unwrap(), "{}", path.display());
    }
}

/// Waits until all nodes answer again.
fn wait_until_listed(cluster: &Cluster) {
    let mut control = Control::login(cluster.frontend.address, "admin");
    portolan_tests::eventually("all nodes are back", || {
        let listed = ["one", "spread"]
            .iter()
            .all(|name| control.fetch(&format!("LIST /domains/{name}.example")).0 == 226);
        // The second node was wiped whole, so its domain does not exist; that is an answer too.
        (listed && control.fetch("LIST /domains/two.example").0 == 550).then_some(())
    });
}

#[test]
fn curl_uploads_downloads_and_resumes() {
    let cluster = Cluster::start(tree::fill);
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number * 7 % 251) as u8).collect();
    let file = cluster.path().join("big");
    fs::write(&file, &content).unwrap();
    let path = "/domains/spread.example/users/carol/folders/INBOX/big.eml";
    let put = curl(&cluster, &["--upload-file", file.to_str().unwrap()], path);
    assert!(put.status.success(), "{}", text(&put));
    let stored = cluster.domains(3).join("spread.example/users/carol/folders/INBOX/big.eml");
    assert!(fs::read(&stored).unwrap() == content, "the upload lies on the node of the map");

    let part = cluster.path().join("part");
    fs::write(&part, &content[..1_234_567]).unwrap();
    let resumed = curl(&cluster, &["--continue-at", "-", "--output", part.to_str().unwrap()], path);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert!(fs::read(&part).unwrap() == content, "the resumed download is the whole file");
}

#[test]
fn python_ftplib_walks_the_tree() {
    let cluster = Cluster::start(tree::fill);
    let script = r#"
import ftplib, hashlib, ssl, sys
host, port, ca, password = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
ftp = ftplib.FTP_TLS(context=ssl.create_default_context(cafile=ca))
ftp.connect(host, port, timeout=20)
ftp.login("admin", password)
ftp.prot_p()
def walk(path):
    for name, facts in sorted(ftp.mlsd(path)):
        inner = path.rstrip("/") + "/" + name
        if facts["type"] == "dir":
            walk(inner)
        else:
            digest = hashlib.sha256()
            ftp.retrbinary("RETR " + inner, digest.update)
            print(inner, facts["size"], digest.hexdigest())
walk("/")
ftp.quit()
"#;
    let address = cluster.frontend.address;
    let walked = Command::new("python3")
        .args(["-c", script, &address.ip().to_string(), &address.port().to_string()])
        .arg(cluster.authority())
        .arg(PASSWORD)
        .env("PYTHONIOENCODING", "utf-8")
        .output()
        .expect("python3 runs");
    assert!(walked.status.success(), "{}", text(&walked));
    let mut found: Vec<String> =
        String::from_utf8(walked.stdout).unwrap().lines().map(str::to_owned).collect();
    let mut expected: Vec<String> = tree::read_nodes(cluster.path())
        .iter()
        .filter_map(|(path, content)| {
            use sha2::Digest as _;
            let content = content.as_ref()?;
            let digest: String =
                sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("/domains/{} {} {digest}", path.display(), content.len()))
        })
        .collect();
    // What the front end makes itself lies on no node.
    let generated = found.iter().filter(|line| line.starts_with("/cluster/")).count();
    assert_eq!(generated, 2);
    found.retain(|line| !line.starts_with("/cluster/"));
    found.sort();
    expected.sort();
    assert_eq!(expected, found);
}

#[test]
fn a_directory_of_100000_files_is_listed_whole() {
    let cluster = Cluster::start(|folder| {
        let inbox = folder.join("node-1/domains/one.example/users/alice/folders/INBOX");
        fs::create_dir_all(&inbox).unwrap();
        for number in 0..100_000 {
            fs::File::create(inbox.join(format!("{number:06}.eml"))).unwrap();
        }
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    let (code, listing) = control.fetch("MLSD /domains/one.example/users/alice/folders/INBOX");
    assert_eq!(code, 226);
    let mut names: Vec<&[u8]> =
        listing.split(|byte| *byte == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(1)).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 100_000);
    assert_eq!((names[0], names[99_999]), (&b"000000.eml\r"[..], &b"099999.eml\r"[..]));
}

#[test]
fn a_file_of_a_gibibyte_does_not_pile_up_in_memory() {
    let name = "one.example/users/alice/folders/INBOX/huge.eml";
    let cluster = Cluster::start(|folder| {
        let file = folder.join("node-1/domains").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    });
    let before = cluster.agent(1).resident_kib() + cluster.frontend.resident_kib();
    let got = curl(
        &cluster,
        &["--output", "/dev/null", "--write-out", "%{size_download}"],
        &format!("/domains/{name}"),
    );
    assert_eq!(text(&got), (1u64 << 30).to_string());
    let after = cluster.agent(1).resident_kib() + cluster.frontend.resident_kib();
    assert!(after < before + 160 * 1024, "{before} KiB before, {after} KiB after");
}

#[test]
fn a_reader_of_one_domain_sees_and_changes_nothing_else() {
    let cluster = Cluster::start(tree::fill);
    let mut control = Control::login(cluster.frontend.address, "reader");
    let (code, listing) = control.fetch("MLSD /domains");
    let listing = String::from_utf8(listing).unwrap();
    assert_eq!((code, listing.lines().count()), (226, 1), "{listing}");
    assert!(listing.ends_with(" one.example\r\n"));
    let own = "/domains/one.example/domainRegistry.bin";
    let foreign = "/domains/two.example/domainRegistry.bin";
    assert_eq!(control.fetch(&format!("RETR {own}")), (226, b"one.example".to_vec()));
    for command in [
        format!("SIZE {foreign}"),
        format!("MDTM {foreign}"),
        "CWD /domains/two.example".to_owned(),
        format!("DELE {foreign}"),
        format!("DELE {own}"),
        "MKD /domains/one.example/users/new".to_owned(),
        "RMD /domains/one.example".to_owned(),
        "MKD /domains/three.example".to_owned(),
        "CWD /domains/one.example/../two.example".to_owned(),
        "CWD /cluster/../etc".to_owned(),
        "SIZE /.portolan/lock".to_owned(),
    ] {
        assert_eq!(control.ask(&command).0, 550, "{command}");
    }
    // This library prepares the data connection before it asks for the file.
    assert_eq!(final_code(&mut control, &format!("RETR {foreign}")), 550);
    assert_eq!(final_code(&mut control, "LIST /domains/two.example"), 550);
    assert_eq!(control.store("/domains/one.example/new.bin", b"x"), 550);
    assert_eq!(tree::read(&cluster.domains(1)).get(Path::new("one.example/new.bin")), None);
}

fn final_code(control: &mut Control, command: &str) -> u16 {
    control.fetch(command).0
}
