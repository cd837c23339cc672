//! What a file has beside its content: lists, groups, modes. Told by the system's own tools; most of it takes root.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use portolan_tests::client::{Control, succeed};
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, eventually, program};

const INBOX: &str = "one.example/users/alice/folders/INBOX";

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    succeed(Command::new(program).args(arguments).arg(path))
}

/// The lines of getfacl without its comments.
fn acl(path: &Path) -> Vec<String> {
    let told = run("getfacl", &["--absolute-names", "--omit-header", "--numeric"], path);
    told.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

#[test]
fn a_folders_default_list_decides_what_new_files_and_folders_have() {
    let mut cluster = Cluster::start(tree::fill);
    // A new domain has a place.
    cluster.restart_frontend(|config| config.replace("home-node", "least-used"));
    let inbox = cluster.domains(1).join(INBOX);
    run(
        "setfacl",
        &["--modify", "default:user:1234:rwX,default:user::rwX,default:group::r-X,default:other::---"],
        &inbox,
    );
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.store(&format!("/domains/{INBOX}/new.eml"), b"new"), 226);
    let born = inbox.join("beside");
    fs::write(&born, "what the system makes there").unwrap();
    let expected = ["user::rw-", "user:1234:rwx", "group::r-x", "mask::rw-", "other::---"];
    let effective: Vec<String> =
        acl(&inbox.join("new.eml")).iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
    assert_eq!(effective, expected);
    assert_eq!(acl(&inbox.join("new.eml")), acl(&born));
    assert_eq!(control.ask(&format!("MKD /domains/{INBOX}/folder")).0, 257);
    fs::create_dir(inbox.join("folder beside")).unwrap();
    assert_eq!(acl(&inbox.join("folder")), acl(&inbox.join("folder beside")));
    assert_eq!(control.store(&format!("/domains/{INBOX}/folder/new.eml"), b"new"), 226);
    assert_eq!(acl(&inbox.join("folder/new.eml")), acl(&born));
    // A domain that an upload makes, with all levels, inherits from the folder above.
    for node in 1..=3 {
        let domains = cluster.domains(node);
        run("setfacl", &["--modify", "default:user:1234:rwX,default:other::---"], &domains);
    }
    assert_eq!(control.store("/domains/fresh.example/users/Registry.bin", b"new"), 226);
    let domains =
        (1..=3).map(|node| cluster.domains(node)).find(|domains| domains.join("fresh.example").is_dir());
    let domains = domains.expect("a node has it");
    fs::write(domains.join("fresh.example/users/beside"), "").unwrap();
    let new = domains.join("fresh.example/users/Registry.bin");
    assert_eq!(acl(&new), acl(&domains.join("fresh.example/users/beside")));
    assert!(acl(&new).iter().any(|line| line.starts_with("user:1234:")), "{:?}", acl(&new));
}

#[test]
fn a_replaced_file_keeps_its_owner_mode_list_and_attributes() {
    let cluster = Cluster::start(tree::fill);
    let inbox = cluster.domains(1).join(INBOX);
    run("setfacl", &["--modify", "default:user:1234:rwX"], &inbox);
    let (listed, plain) = (inbox.join("listed.eml"), inbox.join("plain.eml"));
    put(&listed, b"old");
    put(&plain, b"old");
    run("setfacl", &["--remove-all"], &plain);
    set_mode(&plain, 0o604);
    run("setfacl", &["--modify", "user:4321:r--,group::---,mask::r--"], &listed);
    run("setfattr", &["--name=user.note", "--value=kept"], &listed);
    run("chown", &["1234:4321"], &listed);
    let before = (acl(&listed), acl(&plain));
    let mut control = Control::login(cluster.frontend.address, "admin");
    for name in ["listed.eml", "plain.eml"] {
        assert_eq!(control.store(&format!("/domains/{INBOX}/{name}"), b"new"), 226);
    }
    assert_eq!(fs::read(&listed).unwrap(), b"new");
    assert_eq!((acl(&listed), acl(&plain)), before);
    assert_eq!(mode(&plain), 0o604);
    let metadata = fs::metadata(&listed).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321));
    assert!(run("getfattr", &["--absolute-names", "--name=user.note"], &listed).contains("kept"));
}

#[test]
fn a_group_is_passed_on_and_kept_by_chmod() {
    let cluster = Cluster::start(tree::fill);
    let inbox = cluster.domains(1).join(INBOX);
    run("chown", &["1234:4321"], &inbox);
    set_mode(&inbox, 0o3770);
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.store(&format!("/domains/{INBOX}/new.eml"), b"new"), 226);
    assert_eq!(control.ask(&format!("MKD /domains/{INBOX}/folder")).0, 257);
    for name in ["new.eml", "folder"] {
        let metadata = fs::metadata(inbox.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321), "{name}");
    }
    assert_eq!((mode(&inbox.join("new.eml")), mode(&inbox.join("folder"))), (0o600, 0o2700));
    // lftp's mirror -R does this to each folder.
    assert_eq!(control.ask(&format!("SITE CHMOD 755 /domains/{INBOX}")).0, 200);
    assert_eq!(control.ask(&format!("MFF UNIX.mode=0750; /domains/{INBOX}/folder")).0, 213);
    assert_eq!((mode(&inbox), mode(&inbox.join("folder"))), (0o3755, 0o2750));
}

#[test]
fn modes_of_what_is_new_are_private_or_as_configured() {
    let mut cluster = Cluster::start(tree::fill);
    let inbox = cluster.domains(1).join(INBOX);
    let make = |cluster: &Cluster, name: &str| {
        let mut control = Control::login(cluster.frontend.address, "admin");
        eventually("the node is there", || {
            (control.store(&format!("/domains/{INBOX}/{name}.eml"), b"new") == 226).then_some(())
        });
        assert_eq!(control.ask(&format!("MKD /domains/{INBOX}/{name}")).0, 257);
        (mode(&inbox.join(format!("{name}.eml"))), mode(&inbox.join(name)))
    };
    assert_eq!(make(&cluster, "private"), (0o600, 0o700));
    cluster.restart_agent(1, |config| {
        config.replace("rescan_interval", "file_mode = \"0640\"\ndirectory_mode = \"0751\"\nrescan_interval")
    });
    assert_eq!(make(&cluster, "shared"), (0o640, 0o751));
}

#[test]
fn permissions_that_change_during_an_upload_survive_it() {
    let cluster = Cluster::start(|folder| {
        tree::fill(folder);
        put(&folder.join("node-1/domains").join(INBOX).join("kept.eml"), b"old");
    });
    let file = cluster.domains(1).join(INBOX).join("kept.eml");
    set_mode(&file, 0o640);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let mut other = Control::login(cluster.frontend.address, "admin");
    let mut data = control.passive();
    assert_eq!(control.ask(&format!("STOR /domains/{INBOX}/kept.eml")).0, 150);
    data.write_all(b"new").unwrap();
    assert_eq!(other.ask(&format!("SITE CHMOD 604 /domains/{INBOX}/kept.eml")).0, 200);
    drop(data);
    assert_eq!(control.reply().0, 226);
    assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"new".to_vec(), 0o604));
}

#[test]
fn an_agent_without_roots_rights_undoes_modes_that_it_cannot_read() {
    let mut cluster = Cluster::start(tree::fill);
    let (path, root) = (cluster.path().to_owned(), cluster.path().join("node-1"));
    // Nobody's agent in a folder of root's.
    run("chown", &["--recursive", "65534:65534"], &root);
    run("chmod", &["o+x"], &path);
    run("chown", &["--recursive", "65534:65534"], &path.join("pki"));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program("portolan-agent"));
    cluster.restart_agent_by(1, command, |config| config);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let name = format!("/domains/{INBOX}/mine.eml");
    eventually("the node is there", || (control.store(&name, b"mine") == 226).then_some(()));
    let file = cluster.domains(1).join(INBOX).join("mine.eml");
    for (bits, expected) in [("000", 0o000), ("200", 0o200), ("644", 0o644)] {
        assert_eq!(control.ask(&format!("SITE CHMOD {bits} {name}")).0, 200, "{bits}");
        assert_eq!(mode(&file), expected);
    }
    let folder = format!("/domains/{INBOX}");
    for (bits, expected) in [("000", 0o000), ("750", 0o750)] {
        assert_eq!(control.ask(&format!("SITE CHMOD {bits} {folder}")).0, 200, "{bits}");
        assert_eq!(mode(&cluster.domains(1).join(INBOX)), expected);
    }
    // A file of a group that this agent is not in: the new one's group may do no more than everybody.
    let other = cluster.domains(1).join(INBOX).join("other.eml");
    put(&other, b"old");
    run("chown", &["1234:4321"], &other);
    set_mode(&other, 0o664);
    assert_eq!(control.store(&format!("{folder}/other.eml"), b"new"), 226);
    assert_eq!((fs::read(&other).unwrap(), mode(&other)), (b"new".to_vec(), 0o644));
}

#[test]
fn a_file_system_without_nameless_files_does_as_well() {
    let behind = tempfile::tempdir().unwrap();
    let mount = Bind::mount(behind.path());
    let root = mount.path.path().to_owned();
    let cluster = Cluster::start(move |folder| {
        fs::remove_dir_all(folder.join("node-1")).unwrap();
        std::os::unix::fs::symlink(&root, folder.join("node-1")).unwrap();
        tree::fill(folder);
        put(&root.join("domains").join(INBOX).join("kept.eml"), b"old");
    });
    let inbox = cluster.domains(1).join(INBOX);
    set_mode(&inbox.join("kept.eml"), 0o604);
    let mut control = Control::login(cluster.frontend.address, "admin");
    for name in ["kept.eml", "new.eml"] {
        assert_eq!(control.store(&format!("/domains/{INBOX}/{name}"), b"new"), 226);
        assert_eq!(fs::read(inbox.join(name)).unwrap(), b"new");
    }
    assert_eq!((mode(&inbox.join("kept.eml")), mode(&inbox.join("new.eml"))), (0o604, 0o600));
    drop(cluster);
}

/// A bindfs mount, which knows no O_TMPFILE. Unmounted when dropped.
struct Bind {
    path: tempfile::TempDir,
}

impl Bind {
    fn mount(behind: &Path) -> Self {
        let path = tempfile::tempdir().unwrap();
        let mounted = Command::new("bindfs").arg(behind).arg(path.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounting bindfs needs root and FUSE");
        Self { path }
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
