//! The examples load; each faulty file gives exactly the faults that its first lines name.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use portolan_config::Config;

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g";

/// A folder with the files that the examples name, and the examples of `kind`.
fn folder_with(kind: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("pki")).unwrap();
    fs::create_dir(path.join("store")).unwrap();
    fs::create_dir(path.join("staging")).unwrap();
    for name in ["ca", "front-1", "mail-1"] {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(path.join(format!("pki/{name}.pem")), made.cert.pem()).unwrap();
        write_secret(&path.join(format!("pki/{name}-key.pem")), &made.signing_key.serialize_pem(), 0o600);
    }
    write_secret(&path.join("admins"), &format!("admin:{HASH}:backup,restore:*\n"), 0o600);
    write_secret(&path.join("service-password"), "secret\n", 0o600);
    write_secret(&path.join("empty"), "\n", 0o600);
    write_secret(&path.join("open-admins"), &format!("admin:{HASH}:backup,restore:*\n"), 0o644);
    write_secret(&path.join("bad-admins"), &format!("# two\nadmin:{HASH}:backup:*\nadmin:x\n"), 0o600);
    fs::write(path.join("domain-map.toml"), "[[domains]]\nname = \"example.com\"\nnodes = [\"mail-1\"]\n")
        .unwrap();
    fs::write(
        path.join("bad-map.toml"),
        "[[domains]]\nname = \"x.example\"\nnodes = [\"mail-9\"]\nnode = 1\n",
    )
    .unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(kind);
    let mut copies = Vec::new();
    for example in fs::read_dir(examples).unwrap() {
        let example = example.unwrap().path();
        let copy = path.join(example.file_name().unwrap());
        fs::copy(&example, &copy).unwrap();
        copies.push(copy);
    }
    assert!(!copies.is_empty());
    (folder, copies)
}

fn write_secret(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_examples_load() {
    let (_folder, examples) = folder_with("valid");
    for example in examples {
        let loaded = Config::load(&example);
        assert!(loaded.is_ok(), "{}", loaded.unwrap_err());
    }
}

#[test]
fn configurations_of_earlier_versions_are_read_or_the_key_that_takes_the_place_is_named() {
    let (_folder, examples) = folder_with("earlier");
    for example in examples {
        let text = fs::read_to_string(&example).unwrap();
        if text.lines().any(|line| line.starts_with("# fault ")) {
            assert_faults(&example);
            continue;
        }
        let loaded = Config::load(&example);
        assert!(loaded.is_ok(), "{}", loaded.unwrap_err());
    }
}

#[test]
fn each_faulty_file_gives_all_its_faults_with_their_lines() {
    let (_folder, examples) = folder_with("invalid");
    for example in examples {
        assert_faults(&example);
    }
}

/// The faults of a file are those that it names, and no others.
fn assert_faults(example: &Path) {
    let text = fs::read_to_string(example).unwrap();
    // `# fault LINE KEY: part of the message`, LINE 0 for the whole file.
    let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# fault ")).collect();
    let name = example.file_name().unwrap().to_string_lossy().into_owned();
    let Err(faults) = Config::load(example) else { panic!("{name} loads") };
    let shown: Vec<String> =
        faults.iter().map(|fault| format!("{} {}: {}", fault.line, fault.key, fault.message)).collect();
    assert_eq!(shown.len(), expected.len(), "{name}: {shown:#?}");
    for expected in expected {
        let (place, message) = expected.split_once(": ").unwrap();
        let place = format!("{place}: ");
        let told = shown.iter().any(|shown| shown.starts_with(&place) && shown.contains(message));
        assert!(told, "{name}: {expected} is not among {shown:#?}");
    }
}
