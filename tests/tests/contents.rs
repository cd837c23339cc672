//! Files that others write to, link or replace while clients read them.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use portolan_tests::Cluster;
use portolan_tests::client::Control;
use portolan_tests::tree::{self, put};

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

#[test]
fn a_download_of_a_file_that_is_written_to_meanwhile_is_451() {
    let (_cluster, folder, mut control) = start();
    let file = folder.join("big.bin");
    let old = tree::noise(32 << 20);
    let writing = |file: &Path| fs::File::options().write(true).open(file).unwrap();
    let changes: [(&str, &dyn Fn(&Path)); 4] = [
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
    let kept: [(&str, &dyn Fn(&Path)); 5] = [
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
