//! Files that others write to, link or replace while clients read, rename and date them; and entries that are no files.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portolan_tests::Cluster;
use portolan_tests::client::{Control, succeed};
use portolan_tests::tree::{self, modified, put};
use rustix::fs::{CWD, FileType, Mode, mknodat};

const FOLDER: &str = "/domains/one.example/users/alice";

fn start() -> (Cluster, PathBuf, Control) {
    let cluster =
        Cluster::start(|folder| put(&folder.join(format!("node-1{FOLDER}/Registry.bin")), b"alice"));
    let folder = cluster.path().join(format!("node-1{FOLDER}"));
    let control = Control::login(cluster.frontend.address, "admin");
    (cluster, folder, control)
}

/// Downloads a file of which the first bytes have come when something happens to it; the reply and what came.
fn download_while(
    control: &mut Control,
    file: &Path,
    change: impl FnOnce(&Path),
) -> ((u16, String), Vec<u8>) {
    put(file, &tree::noise(32 << 20));
    let mut data = control.passive();
    let name = file.file_name().unwrap().to_str().unwrap();
    assert_eq!(control.ask(&format!("RETR {FOLDER}/{name}")).0, 150);
    let mut content = vec![0; 100_000];
    data.read_exact(&mut content).unwrap();
    change(file);
    data.read_to_end(&mut content).ok();
    (control.reply(), content)
}

/// What happens to a file.
type Change<'a> = &'a dyn Fn(&Path);

#[test]
fn a_download_of_a_file_that_is_written_to_meanwhile_is_451() {
    let (_cluster, folder, mut control) = start();
    let file = folder.join("big.bin");
    let old = tree::noise(32 << 20);
    let writing = |file: &Path| fs::File::options().write(true).open(file).unwrap();
    let changes: [(&str, Change<'_>); 4] = [
        ("rewritten", &|file| fs::write(file, vec![7; 32 << 20]).unwrap()),
        ("one byte", &|file| writing(file).write_all_at(b"x", 31 << 20).unwrap()),
        ("appended", &|file| {
            fs::File::options().append(true).open(file).unwrap().write_all(b"more").unwrap();
        }),
        ("cut", &|file| writing(file).set_len(20 << 20).unwrap()),
    ];
    for (what, change) in changes {
        let ((code, text), content) = download_while(&mut control, &file, change);
        assert_eq!(code, 451, "{what}: {text}");
        assert!(text.contains("while it was read"), "{text}");
        assert!(old.starts_with(&content), "{what}: what came is of another content");
    }
    // The content stays: so does the download.
    let kept: [(&str, Change<'_>); 5] = [
        ("linked", &|file| fs::hard_link(file, file.with_extension("link")).unwrap()),
        ("mode", &|file| fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap()),
        ("renamed", &|file| fs::rename(file, file.with_extension("moved")).unwrap()),
        ("replaced", &|file| {
            fs::write(file.with_extension("new"), "new").unwrap();
            fs::rename(file.with_extension("new"), file).unwrap();
        }),
        ("removed", &|file| fs::remove_file(file).unwrap()),
    ];
    for (what, change) in kept {
        let ((code, text), content) = download_while(&mut control, &file, change);
        assert_eq!(code, 226, "{what}: {text}");
        assert!(content == old, "{what}");
    }
}

/// A process that writes one byte through a memory map each time it is told to.
const MAPPING: &str = "
import mmap, sys
with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as content:
    for number, line in enumerate(sys.stdin):
        content[number] = 0x21
        print(number, flush=True)
";

#[test]
fn a_digest_follows_what_is_written_through_a_memory_map() {
    let (_cluster, folder, mut control) = start();
    let file = folder.join("mapped.bin");
    put(&file, &[b'a'; 5_000]);
    let mut mapping = Command::new("python3")
        .args(["-c", MAPPING])
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) =
        (mapping.stdin.take().unwrap(), BufReader::new(mapping.stdout.take().unwrap()));
    let mut write = || {
        input.write_all(b"\n").unwrap();
        output.read_line(&mut String::new()).unwrap();
    };
    write();
    // What is younger is not remembered.
    std::thread::sleep(Duration::from_millis(2_500));
    let hash = |control: &mut Control| {
        let (code, text) = control.ask(&format!("HASH {FOLDER}/mapped.bin"));
        assert_eq!(code, 213, "{text}");
        text
    };
    let first = hash(&mut control);
    assert_eq!(hash(&mut control), first);
    write();
    assert_ne!(hash(&mut control), first, "the digest is that of the old content");
    drop(input);
    mapping.wait().unwrap();
}

#[test]
fn a_rename_onto_another_name_of_the_file_takes_the_old_name_away() {
    let (_cluster, folder, mut control) = start();
    let mut rename = |from: &str, to: &str| {
        assert_eq!(control.ask(&format!("RNFR {FOLDER}/{from}")).0, 350);
        control.ask(&format!("RNTO {FOLDER}/{to}"))
    };
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    put(&folder.join("cur/one"), b"mail");
    fs::hard_link(folder.join("cur/one"), folder.join("cur/two")).unwrap();
    fs::create_dir(folder.join("new")).unwrap();
    fs::hard_link(folder.join("cur/one"), folder.join("new/three")).unwrap();
    assert_eq!(rename("cur/one", "cur/one").0, 250);
    assert_eq!(names(&folder.join("cur")), ["one", "two"]);
    assert_eq!(rename("cur/one", "cur/two").0, 250);
    assert_eq!(names(&folder.join("cur")), ["two"]);
    assert_eq!(rename("cur/two", "new/three").0, 250);
    assert_eq!((names(&folder.join("cur")).len(), names(&folder.join("new"))), (0, vec!["three".to_owned()]));
    assert_eq!(fs::read(folder.join("new/three")).unwrap(), b"mail");
    assert_eq!(fs::metadata(folder.join("new/three")).unwrap().nlink(), 1);
    // A file takes the place of a file, as ever.
    put(&folder.join("new/four"), b"other");
    assert_eq!(rename("new/four", "new/three").0, 250);
    assert_eq!(fs::read(folder.join("new/three")).unwrap(), b"other");
}

/// Entries that are no files: a link, a link to nothing, a pipe and a socket.
fn put_special(folder: &Path) -> [&'static str; 4] {
    put(&folder.join("special/target"), b"target");
    symlink("target", folder.join("special/link")).unwrap();
    symlink("nothing", folder.join("special/dangling")).unwrap();
    mknodat(CWD, folder.join("special/pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    drop(UnixListener::bind(folder.join("special/socket")).unwrap());
    ["link", "dangling", "pipe", "socket"]
}

#[test]
fn what_is_no_file_is_never_opened_dated_or_replaced_and_can_be_moved_and_removed() {
    let (_cluster, folder, mut control) = start();
    let special = put_special(&folder);
    let at = |name: &str| format!("{FOLDER}/special/{name}");
    // To open a pipe for writing waits for a reader.
    let opened = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (opened, pipe) = (Arc::clone(&opened), folder.join("special/pipe"));
        move || {
            let pipe = fs::File::options().write(true).open(pipe).unwrap();
            opened.store(true, Ordering::Relaxed);
            drop(pipe);
        }
    });
    for name in special {
        let before = fs::symlink_metadata(folder.join("special").join(name)).unwrap();
        assert_eq!(control.fetch(&format!("RETR {}", at(name))).0, 550, "{name}");
        assert_eq!(control.ask(&format!("HASH {}", at(name))).0, 550, "{name}");
        assert_eq!(control.ask(&format!("MFMT 20200101000000 {}", at(name))).0, 550, "{name}");
        assert_eq!(control.store(&at(name), b"mail"), 550, "{name}");
        assert_eq!(control.ask(&format!("RMD {}", at(name))).0, 550, "{name}");
        put(&folder.join("special/mail"), b"mail");
        assert_eq!(control.ask(&format!("RNFR {}", at("mail"))).0, 350);
        let (code, text) = control.ask(&format!("RNTO {}", at(name)));
        assert_eq!(code, 550, "{name}: {text}");
        assert!(fs::exists(folder.join("special/mail")).unwrap(), "{name}");
        let after = fs::symlink_metadata(folder.join("special").join(name)).unwrap();
        let known = |entry: &fs::Metadata| (entry.ino(), entry.mtime(), entry.mode());
        assert_eq!(known(&after), known(&before), "{name}");
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(!opened.load(Ordering::Relaxed), "the pipe was opened");
    fs::File::open(folder.join("special/pipe")).unwrap();
    writer.join().unwrap();
    for name in special {
        // It takes no file's place either.
        assert_eq!(control.ask(&format!("RNFR {}", at(name))).0, 350);
        assert_eq!(control.ask(&format!("RNTO {}", at("mail"))).0, 550, "{name}");
        let moved = format!("{name}-moved");
        assert_eq!(control.ask(&format!("RNFR {}", at(name))).0, 350);
        assert_eq!(control.ask(&format!("RNTO {}", at(&moved))).0, 250, "{name}");
        let entry = fs::symlink_metadata(folder.join("special").join(&moved)).unwrap().file_type();
        assert!(entry.is_symlink() || entry.is_fifo() || entry.is_socket(), "{name}");
        assert_eq!(control.ask(&format!("DELE {}", at(&moved))).0, 250, "{name}");
        assert!(fs::symlink_metadata(folder.join("special").join(&moved)).is_err(), "{name}");
    }
    assert_eq!(fs::read(folder.join("special/target")).unwrap(), b"target");
    assert_eq!(fs::read(folder.join("special/mail")).unwrap(), b"mail");
    // A directory takes the place of nothing.
    fs::create_dir(folder.join("empty")).unwrap();
    for name in ["empty", "Registry.bin"] {
        assert_eq!(control.ask(&format!("RNFR {FOLDER}/special")).0, 350);
        assert_eq!(control.ask(&format!("RNTO {FOLDER}/{name}")).0, 550, "{name}");
    }
}

/// A disk with inodes of the given kind in place of a folder.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path, make: &[&str]) -> Self {
        let image = folder.with_extension("image");
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        succeed(Command::new(make[0]).args(&make[1..]).arg(&image));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(folder));
        Self(folder.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_time_that_the_disk_cannot_hold_is_refused_and_one_that_it_rounds_is_shown() {
    let mut disk = None;
    let cluster = Cluster::start(|folder| {
        // Seconds of 32 bits, and no fractions of them.
        disk = Some(Disk::mount(&folder.join("node-1"), &["mkfs.ext4", "-q", "-F", "-I", "128"]));
        put(&folder.join(format!("node-1{FOLDER}/mail")), b"mail");
    });
    let file = cluster.path().join(format!("node-1{FOLDER}/mail"));
    let mut control = Control::login(cluster.frontend.address, "admin");
    let path = format!("{FOLDER}/mail");
    assert_eq!(
        control.ask(&format!("MFMT 20300102030405 {path}")),
        (213, format!("213 Modify=20300102030405; {path}"))
    );
    let kept = modified(&file);
    for bad in [
        format!("MFMT 20500102030405 {path}"),
        format!("MFF Modify=18500102030405; {path}"),
        format!("SITE UTIME 20500102030405 {path}"),
        format!("MFMT 20500102030405 {FOLDER}"),
    ] {
        let (code, text) = control.ask(&bad);
        assert_eq!(code, 550, "{bad}: {text}");
        assert!(text.contains("cannot hold this time"), "{text}");
        assert_eq!(modified(&file), kept, "{bad}");
    }
    assert_eq!(
        control.ask(&format!("MFMT 20300102030407.5 {path}")),
        (213, format!("213 Modify=20300102030407; {path}"))
    );
    assert_eq!(
        control.ask(&format!("MFF UNIX.mode=0640;Modify=20300102030408.25; {path}")),
        (213, format!("213 UNIX.mode=0640;Modify=20300102030408; {path}"))
    );
    let (code, text) = control.ask(&format!("SITE UTIME 20300102030409 {path}"));
    assert_eq!((code, text.contains("kept")), (200, false), "{text}");
    assert_eq!(control.ask(&format!("MDTM {path}")), (213, "213 20300102030409".to_owned()));
    drop(cluster);
    drop(disk);
}
