//! The same sessions with both engines: what they answer alike, and where and why they differ.

use portolan_tests::Cluster;
use portolan_tests::client::Control;
use portolan_tests::tree::{self, put};

const INBOX: &str = "/domains/one.example/users/alice/folders/INBOX";

/// One step of a session.
enum Step {
    /// A command with one reply.
    Ask(&'static str),
    /// A command that sends data.
    Fetch(&'static str),
    /// A command that takes data.
    Store(&'static str, &'static [u8]),
}
use Step::{Ask, Fetch, Store};

/// Codes are compared, and data where both engines send it in the same form.
const SESSION: &[Step] = &[
    Ask("SYST"),
    Ask("FEAT"),
    Ask("HELP"),
    Ask("NOOP"),
    Ask("PWD"),
    Ask("CWD /domains/one.example/users/alice/folders/INBOX"),
    Ask("CWD missing"),
    Ask("CWD kept.eml"),
    Ask("PWD"),
    Ask("SIZE kept.eml"),
    Ask("SIZE missing"),
    Ask("SIZE ."),
    Ask("MDTM kept.eml"),
    Ask("MDTM missing"),
    Fetch("RETR kept.eml"),
    Fetch("RETR missing"),
    Fetch("RETR ."),
    Ask("REST 4"),
    Fetch("RETR kept.eml"),
    Ask("REST 99"),
    Fetch("RETR kept.eml"),
    Fetch("NLST"),
    Fetch("NLST below"),
    Fetch("NLST missing"),
    Fetch("LIST missing"),
    Fetch("MLSD missing"),
    Ask("MLST kept.eml"),
    Ask("MLST missing"),
    Store("STOR new.eml", b"new"),
    Fetch("RETR new.eml"),
    Store("STOR new.eml", b""),
    Fetch("RETR new.eml"),
    Store("STOR missing/new.eml", b"x"),
    Store("STOR below", b"x"),
    Store("APPE new.eml", b"tail"),
    Fetch("RETR new.eml"),
    Ask("REST 2"),
    Store("STOR new.eml", b"XY"),
    Fetch("RETR new.eml"),
    Ask("MKD made"),
    Ask("MKD made"),
    Ask("MKD missing/made"),
    Ask("RNFR new.eml"),
    Ask("RNTO made/new.eml"),
    Ask("RNFR missing"),
    Ask("RNTO x"),
    Ask("RMD made"),
    Ask("DELE made"),
    Ask("DELE made/new.eml"),
    Ask("DELE missing"),
    Ask("RMD made"),
    Ask("RMD missing"),
    Ask("RMD /domains"),
    Ask("CDUP"),
    Ask("PWD"),
    Ask("CWD .."),
    Ask("TYPE A"),
    Ask("TYPE I"),
    Ask("MODE S"),
    Ask("STRU F"),
    Ask("ALLO 5"),
    Ask("OPTS UTF8 ON"),
    Ask("STAT"),
    Ask("ABOR"),
    Ask("NONSENSE"),
    Ask("HOST x"),
    Ask("MFMT 20200101000000 /domains/one.example/domainRegistry.bin"),
    Ask("HASH /domains/one.example/domainRegistry.bin"),
    Ask("XCRC /domains/one.example/domainRegistry.bin"),
    Ask("AVBL"),
    Ask("EPRT |1|127.0.0.1|1|"),
    Ask("LANG EN"),
    Ask("CSID x"),
    Ask("SITE HELP"),
    Ask("REIN"),
    Ask("QUIT"),
];

/// Where the engines differ: the step, what the native engine and what libunftp answers, and why.
const DIFFERENCES: &[(&str, u16, u16, &str)] = &[
    ("SIZE .", 550, 213, "a directory has no content (RFC 3659 section 4.2)"),
    (
        "NLST below (data)",
        226,
        226,
        "names do as arguments (RFC 1123 section 4.1.2.7), not only in their folder",
    ),
    ("MLST kept.eml", 250, 550, "the library resolves the name against the root, not the working directory"),
    ("STOR new.eml", 226, 0, "the library keeps REST after a failed transfer; our guard ends the session"),
    ("RETR new.eml", 226, 550, "follows from the line before"),
    (
        "RNTO x",
        503,
        450,
        "without RNFR the sequence is bad (RFC 959 section 5.4), and trying again does not help",
    ),
    ("ALLO 5", 200, 202, "the native engine holds the client to it"),
    ("HOST x", 503, 500, "the library has no HOST; after the login it is too late (RFC 7151 section 3.1)"),
    ("MFMT 20200101000000 /domains/one.example/domainRegistry.bin", 213, 500, "the library cannot set times"),
    ("HASH /domains/one.example/domainRegistry.bin", 213, 500, "the library has no digests"),
    ("XCRC /domains/one.example/domainRegistry.bin", 250, 500, "the library has no digests"),
    ("AVBL", 213, 500, "the library has no AVBL"),
    ("EPRT |1|127.0.0.1|1|", 502, 500, "known and not configured, against unknown"),
    ("LANG EN", 200, 500, "the library has no LANG"),
    ("CSID x", 200, 500, "the library has no CSID"),
    ("SITE HELP", 214, 502, "the library has no SITE command that we could serve"),
    ("REIN", 220, 500, "the library has no REIN"),
];

/// What a step came to: its name, the code, and the data.
fn play(keys: &str) -> Vec<(String, u16, Vec<u8>)> {
    let mut cluster = Cluster::start(|folder| {
        tree::fill(folder);
        let inbox = folder.join("node-1").join(&INBOX[1..]);
        put(&inbox.join("kept.eml"), b"the old content");
        put(&inbox.join("below/deep.eml"), b"deep");
    });
    cluster.restart_with(keys);
    let login = || Control::login(cluster.frontend.address, "admin");
    let mut control = login();
    let mut played = Vec::new();
    for step in SESSION {
        let (name, code, data) = match step {
            Ask(command) => (*command, control.ask(command).0, Vec::new()),
            Fetch(command) => {
                let (code, mut data) = control.fetch(command);
                if command.starts_with("NLST") {
                    // The order of names is the disk's.
                    let mut lines: Vec<&[u8]> = data.split_inclusive(|byte| *byte == b'\n').collect();
                    lines.sort_unstable();
                    data = lines.concat();
                }
                (*command, code, data)
            }
            Store(command, content) => (*command, control.upload(command, content), Vec::new()),
        };
        played.push((name.to_owned(), code, data));
        if code == 0 {
            // The engine has ended the session.
            control = login();
            control.ask(&format!("CWD {INBOX}"));
        }
    }
    played
}

#[test]
fn the_engines_differ_only_where_it_is_written_down() {
    let native = play("engine = \"native\"");
    let library = play("engine = \"libunftp\"");
    let mut found = Vec::new();
    for ((step, ours, data), (_, theirs, other)) in native.into_iter().zip(library) {
        if ours != theirs {
            found.push((step, ours, theirs));
        } else if data != other {
            found.push((format!("{step} (data)"), ours, theirs));
        }
    }
    let expected: Vec<_> =
        DIFFERENCES.iter().map(|(step, ours, theirs, _)| ((*step).to_owned(), *ours, *theirs)).collect();
    assert_eq!(found, expected);
}
