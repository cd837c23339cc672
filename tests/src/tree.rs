//! Sample trees, and their comparison.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Content of each file, and `None` for each directory, by path.
pub type Contents = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Writes a file and its folders, with an old time.
pub fn put(path: &Path, content: &[u8]) {
    put_at(path, content, 1_600_000_000);
}

/// Writes a file and its folders, with a time in seconds.
pub fn put_at(path: &Path, content: &[u8], seconds: u64) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("our folder");
    fs::write(path, content).expect("our file");
    let file = fs::File::options().write(true).open(path).expect("our file");
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).expect("our file");
}

/// Names that clients and servers get wrong: what a shell, a listing, an address or a quoted reply would alter.
const AWKWARD_NAMES: [&str; 27] = [
    "plain.eml",
    " leading space.eml",
    "with space.eml",
    "two  spaces.eml",
    "trailing space ",
    "quote\"double.eml",
    "quote'single.eml",
    ".dot",
    "..dots.eml",
    ".hidden/inner.eml",
    "brackets[1].eml",
    "[x]/{y}(z).eml",
    "Ünïcode é.eml",
    "受信箱/Привет.eml",
    "back\\slash.eml",
    "star*.eml",
    "question?.eml",
    "semi;colon,comma=.eml",
    "hash#percent%&amp.eml",
    "-dash.eml",
    "~tilde.eml",
    "arrow -> target.eml",
    "plus+at@colon:.eml",
    "$dollar`tick.eml",
    "sub/deeper/deepest/inner.eml",
    "INBOX/1.eml",
    "INBOX/plain.eml",
];

/// A small tree of awkward names, each file with a time of its own, an empty file and an empty folder. The same
/// at each call.
pub fn fill_awkward(folder: &Path) {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut seconds = 1_000_000_001;
    for name in AWKWARD_NAMES {
        let mut content = vec![0; random.random_range(1..40_000)];
        random.fill_bytes(&mut content);
        // Years and odd seconds, from 2001 to 2010.
        seconds += 11_111_117;
        put_at(&folder.join(name), &content, seconds);
    }
    put_at(&folder.join("empty.eml"), b"", seconds + 7);
    fs::create_dir_all(folder.join("Empty folder")).expect("our folder");
}

/// Some content without a pattern.
pub fn noise(count: usize) -> Vec<u8> {
    let mut content = vec![0; count];
    ChaCha8Rng::seed_from_u64(13).fill_bytes(&mut content);
    content
}

/// The mail of a small cluster: names in several scripts, an empty folder, an empty file, spaces and dots.
pub fn fill(folder: &Path) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let users = [
        (1, "one.example", "alice"),
        (2, "two.example", "bob"),
        (3, "spread.example", "carol"),
        (1, "spread.example", "erin"),
    ];
    for (node, domain, user) in users {
        let base = folder.join(format!("node-{node}/domains/{domain}"));
        for mailbox in ["INBOX", "INBOX/Übersicht 2026", "Архив", "受信箱", ".hidden"] {
            for number in 0..12 {
                let mut content = vec![0; random.random_range(1..60_000)];
                random.fill_bytes(&mut content);
                put(&base.join(format!("users/{user}/folders/{mailbox}/{number} .eml")), &content);
            }
        }
        put(&base.join(format!("users/{user}/Registry.bin")), &[0, 255, 13, 10, 26]);
        put(&base.join(format!("users/{user}/folders/INBOX/empty.eml")), b"");
        fs::create_dir_all(base.join(format!("users/{user}/folders/Trash"))).expect("our folder");
        put(&base.join(format!("maillists/list-of-{user}/Registry.bin")), user.as_bytes());
    }
    for (node, domain) in [(1, "one.example"), (2, "two.example"), (1, "spread.example")] {
        put(&folder.join(format!("node-{node}/domains/{domain}/domainRegistry.bin")), domain.as_bytes());
    }
}

/// Everything below a folder, by path from it.
pub fn read(folder: &Path) -> Contents {
    let mut contents = Contents::new();
    add(folder, folder, &mut contents);
    contents
}

/// The union of all nodes' `domains`.
pub fn read_nodes(folder: &Path) -> Contents {
    let mut contents = Contents::new();
    for number in 1..=3 {
        let domains = folder.join(format!("node-{number}/domains"));
        add(&domains, &domains, &mut contents);
    }
    contents
}

fn add(base: &Path, folder: &Path, contents: &mut Contents) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let entry = entry.expect("a readable folder");
        let path = entry.path();
        let name = path.strip_prefix(base).expect("below the base").to_owned();
        if entry.file_type().expect("a type").is_dir() {
            contents.insert(name, None);
            add(base, &path, contents);
        } else {
            contents.insert(name, Some(fs::read(&path).expect("a readable file")));
        }
    }
}

/// Modification time of each file below a folder, in seconds.
pub fn times(folder: &Path) -> BTreeMap<PathBuf, i64> {
    let files = read(folder).into_iter().filter(|(_, content)| content.is_some());
    files.map(|(path, _)| (path.clone(), modified(&folder.join(path)))).collect()
}

/// Fails with the paths that differ, not with megabytes of content.
pub fn assert_same(expected: &Contents, found: &Contents) {
    let differing: Vec<_> = expected
        .keys()
        .chain(found.keys())
        .filter(|path| expected.get(*path) != found.get(*path))
        .map(|path| String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned())
        .collect();
    assert!(differing.is_empty(), "{} of {} differ: {differing:?}", differing.len(), expected.len());
}

/// Modification time in seconds.
pub fn modified(path: &Path) -> i64 {
    fs::metadata(path).expect("the file is there").mtime()
}
