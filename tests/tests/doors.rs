//! Honest clients are let in: what they do in another order, or less exactly, than the RFCs have it.
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, script, succeed};
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, PASSWORD, free_port};

const INBOX: &str = "/domains/one.example/users/alice/folders/INBOX";

fn cluster(keys: &str) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::start(|folder| {
        tree::fill(folder);
        put(&folder.join("node-1").join(&INBOX[1..]).join("kept.eml"), b"the old content");
    });
    if !keys.is_empty() {
        cluster.restart_with(keys);
    }
    let folder = cluster.path().join("node-1").join(&INBOX[1..]);
    (cluster, folder)
}

fn standing(cluster: &Cluster) -> Control {
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask(&format!("CWD {INBOX}")).0, 250);
    control
}

/// Does the actions of `doors.py`; its lines.
fn over_tls(cluster: &Cluster, version: &str, actions: &[&str]) -> String {
    let address = cluster.frontend.address;
    let mut command = script("python3", "doors.py");
    command.args([address.ip().to_string(), address.port().to_string()]);
    command.arg(cluster.authority()).args([PASSWORD, version, INBOX]).args(actions);
    succeed(&mut command)
}

/// Where the passive port is.
fn port(control: &mut Control, address: SocketAddr) -> SocketAddr {
    let (code, text) = control.ask("EPSV");
    assert_eq!(code, 229, "{text}");
    SocketAddr::new(address.ip(), text.split('|').nth(3).unwrap().parse().unwrap())
}

/// Verbs that are refused before their 150.
const REFUSED: [&str; 7] = [
    "RETR missing.eml",
    "STOR /domains/one.example",
    "APPE /cluster/nodes.cfg",
    "LIST missing",
    "NLST missing",
    "MLSD missing",
    "MLSD kept.eml",
];

#[test]
fn the_data_connection_of_a_refused_transfer_ends_in_order_behind_the_reply() {
    let (cluster, folder) = cluster("");
    let mut control = standing(&cluster);
    for verb in REFUSED {
        let mut data = control.passive();
        let (code, text) = control.ask(verb);
        assert!((500..600).contains(&code), "{verb}: {text}");
        let ended = data.read(&mut [0; 10]);
        assert_eq!(ended.unwrap_or_else(|error| panic!("{verb}: {error}")), 0);
    }
    // What the session refuses by itself, too.
    let mut text_mode = Control::connect(cluster.frontend.address);
    text_mode.ask("USER admin");
    text_mode.ask(&format!("PASS {PASSWORD}"));
    for verb in ["RETR /x", "STOR /x", "APPE /x"] {
        let mut data = text_mode.passive();
        assert_eq!(text_mode.ask(verb).0, 504);
        assert_eq!(data.read(&mut [0; 10]).unwrap(), 0, "{verb}");
    }
    // What such a client sends is read away, and nothing is stored.
    let mut data = control.passive();
    control.send(b"STOR /domains/one.example\r\n").unwrap();
    data.write_all(&[b'x'; 100_000]).unwrap();
    assert_eq!(control.reply().0, 550);
    assert_eq!(data.read(&mut [0; 10]).unwrap(), 0);
    drop(data);
    // It served that transfer, and no other.
    assert_eq!(control.ask("RETR kept.eml").0, 425);
    assert_eq!(fs::read(folder.join("kept.eml")).unwrap(), b"the old content");
    let kept = (226, b"the old content".to_vec());
    assert_eq!(control.fetch("RETR kept.eml"), kept);
}

#[test]
fn a_client_that_does_not_come_for_a_refused_transfer_delays_nobody() {
    let (mut cluster, _) = cluster("");
    let first = 10_000 + free_port() % 10_000;
    cluster.restart_frontend(|config| config.replace("20000-29999", &format!("{first}-{first}")));
    let mut control = standing(&cluster);
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(control.ask("EPSV").0, 229);
        assert_eq!(control.ask("RETR missing.eml").0, 550);
    }
    // One that has come and says nothing does not keep the port either.
    let silent = control.passive();
    assert_eq!(control.ask("RETR missing.eml").0, 550);
    assert_eq!(control.fetch("RETR kept.eml").0, 226);
    drop(silent);
    assert_eq!(control.ask("EPSV").0, 229);
    assert_eq!(control.ask("RETR missing.eml").0, 550);
    // Another session has the port a moment later.
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(standing(&cluster).fetch("RETR kept.eml").0, 226);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn handshakes_begin_when_the_connection_comes_and_refused_transfers_end_in_order_over_tls() {
    for (keys, shared) in
        [("", false), ("session_reuse = \"require\"", false), ("passive_ports_shared = true", true)]
    {
        let (mut cluster, folder) = cluster("");
        let first = 10_000 + free_port() % 10_000;
        cluster.restart_frontend(|config| {
            let ports =
                format!("passive_ports = \"{first}-{}\"\n{keys}", first + if shared { 3 } else { 200 });
            config.replace("passive_ports = \"20000-29999\"", &ports)
        });
        for version in ["1.2", "1.3"] {
            let verbs = ["RETR kept.eml", "LIST", "MLSD", "STOR new.eml"];
            let early: Vec<String> = verbs.iter().map(|verb| format!("early:{verb}")).collect();
            let refused: Vec<String> = REFUSED.iter().map(|verb| format!("refused:{verb}")).collect();
            let mut actions: Vec<&str> = early.iter().chain(&refused).map(String::as_str).collect();
            actions.extend(["rapid:RETR missing.eml", "rapid:STOR /domains/one.example", "notify"]);
            let shown = over_tls(&cluster, version, &actions);
            for action in &early {
                let content = !action.contains("STOR");
                let content = if content { "True" } else { "False" };
                assert!(
                    shown.contains(&format!("{action} = 150 226 {content}\n")),
                    "{keys} {version}: {shown}"
                );
            }
            for action in &refused {
                let code = if action.ends_with("MLSD kept.eml") { 501 } else { 550 };
                let expected = format!("{action} = 150 226 {code}\n");
                assert!(shown.contains(&expected), "{keys} {version}: {shown}");
            }
            assert!(shown.contains("rapid:RETR missing.eml = 550\n"), "{keys} {version}: {shown}");
            assert!(shown.contains("rapid:STOR /domains/one.example = 550\n"), "{keys} {version}: {shown}");
            assert!(shown.contains("notify = answered"), "{shown}");
            assert_eq!(fs::read(folder.join("new.eml")).unwrap(), b"stored early");
        }
    }
}

#[test]
fn a_stranger_is_closed_and_the_client_is_served() {
    let (cluster, _) = cluster("");
    let address = cluster.frontend.address;
    let mut control = standing(&cluster);
    for before in [true, false] {
        let place = port(&mut control, address);
        let strange = || {
            let stranger = connect_from(IpAddr::from([127, 0, 0, 9]), place).unwrap();
            stranger.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut stranger = stranger;
            assert!(!matches!(stranger.read(&mut [0; 1]), Ok(1)));
        };
        if before {
            strange();
        }
        control.send(b"RETR kept.eml\r\n").unwrap();
        assert_eq!(control.reply().0, 150);
        strange();
        std::thread::sleep(Duration::from_millis(300));
        let mut data = TcpStream::connect(place).unwrap();
        let mut content = Vec::new();
        data.read_to_end(&mut content).unwrap();
        assert_eq!((&content[..], control.reply().0), (&b"the old content"[..], 226));
    }
    // The reply at the deadline names it.
    let place = port(&mut control, address);
    drop(connect_from(IpAddr::from([127, 0, 0, 9]), place).unwrap());
    let begun = Instant::now();
    let (code, text) = control.into_patient(Duration::from_secs(40), |control| {
        assert_eq!(control.ask("RETR kept.eml").0, 150);
        control.reply()
    });
    assert!(code == 425 && text.contains("127.0.0.9"), "{text}");
    assert!((28..35).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[test]
fn where_sessions_must_be_resumed_strangers_and_second_connections_keep_nobody_out() {
    for shared in [false, true] {
        let (mut cluster, _) = cluster("");
        let first = 10_000 + free_port() % 10_000;
        cluster.restart_frontend(|config| {
            let keys =
                format!("session_reuse = \"require\"\npassive_ports_shared = {shared}\npassive_ports = ");
            let ports = format!("\"{first}-{}\"", first + 7);
            config.replace("passive_ports = ", &keys).replace("\"20000-29999\"", &ports)
        });
        for version in ["1.2", "1.3"] {
            let shown = over_tls(&cluster, version, &["stranger", "kin"]);
            assert!(shown.contains("stranger = 3 150 the old content 226\n"), "{shared} {version}: {shown}");
            assert!(shown.contains("kin = 150 226 150 226\n"), "{shared} {version}: {shown}");
        }
    }
}

#[test]
fn blanks_behind_words_are_nothing_and_in_names_they_count() {
    let (cluster, folder) = cluster("");
    let mut control = standing(&cluster);
    for (line, code) in [
        ("TYPE I ", 200),
        ("TYPE  I", 200),
        ("TYPE A N ", 200),
        ("type i", 200),
        ("MODE S ", 200),
        ("MODE  S", 200),
        ("STRU F ", 200),
        ("REST 0 ", 350),
        ("REST  0", 350),
        ("EPSV 1 ", 229),
        ("EPSV  ", 229),
        ("PASV ", 227),
        ("PASV  ", 227),
        ("ALLO 1 ", 200),
        ("ALLO 5 R 7", 200),
        ("ALLO R 7", 202),
        ("ALLO 0", 200),
        ("ALLO 5 X 7", 501),
        ("ALLO 5 R x", 501),
        ("ALLO ", 501),
        ("RANG 1 0 ", 350),
        ("OPTS UTF8 ON ", 200),
        ("LANG EN ", 200),
        ("NOOP ", 200),
        ("SYST ", 215),
        ("FEAT ", 211),
        ("HELP NOOP ", 214),
        ("STAT ", 211),
        ("SITE HELP ", 214),
        ("CDUP ", 250),
        ("PWD ", 257),
        ("MDTM ", 501),
        ("TYPE  ", 501),
        ("PBSZ 0 ", 503),
        ("PROT P ", 503),
        // No active mode here; what is no address is wrong all the same.
        ("PORT 127, 0, 0, 1, 200, 200 ", 502),
        ("EPRT |1|127.0.0.1|50000| ", 502),
        ("EPRT ||||", 501),
        ("EPRT |x|127.0.0.1|50000|", 501),
        ("EPRT |3|127.0.0.1|50000|", 522),
        ("EPSV x", 501),
        ("EPSV 7", 522),
    ] {
        let (found, text) = control.ask(line);
        assert_eq!(found, code, "{line:?}: {text}");
    }
    control.ask("ALLO 0");
    assert_eq!(control.ask(&format!("CWD {INBOX}")).0, 250);
    assert_eq!(control.store("trailing ", b"x"), 226);
    assert!(folder.join("trailing ").is_file());
    assert_eq!(control.ask("SIZE trailing").0, 550);
    assert_eq!(control.ask("SIZE trailing ").0, 213);
    assert_eq!(control.ask("MKD  lead").0, 257);
    assert!(folder.join(" lead").is_dir());
    assert_eq!(control.ask("QUIT ").0, 221);
    // AUTH, and a name that is not trimmed.
    let mut other = Control::connect(cluster.frontend.address);
    assert_eq!(other.ask("USER admin ").0, 331);
    assert_eq!(other.ask(&format!("PASS {PASSWORD}")).0, 530);
    assert_eq!(other.ask("AUTH TLS ").0, 234);
}

#[test]
fn stat_takes_the_options_and_wildcards_of_list() {
    let (cluster, folder) = cluster("");
    for name in ["a1.eml", "a2.eml", "b.txt"] {
        fs::write(folder.join(name), name).unwrap();
    }
    let mut control = standing(&cluster);
    for (argument, code, has, lacks) in [
        ("-l a1.eml", 213, vec!["a1.eml"], vec!["a2.eml"]),
        (&format!("-la {INBOX}")[..], 212, vec!["a1.eml", "b.txt"], vec![]),
        ("*.eml", 212, vec!["a1.eml", "a2.eml", "kept.eml"], vec!["b.txt"]),
        ("-l a?.eml", 212, vec!["a1.eml", "a2.eml"], vec!["kept.eml", "b.txt"]),
        ("none*", 212, vec!["nothing to show"], vec!["a1.eml"]),
        (&format!("-d {INBOX}")[..], 212, vec!["INBOX"], vec!["a1.eml"]),
        ("-R .", 504, vec!["LIST -R"], vec![]),
        ("missing", 550, vec![], vec![]),
    ] {
        let (found, text) = control.ask(&format!("STAT {argument}"));
        assert_eq!(found, code, "{argument}: {text}");
        assert!(has.iter().all(|name| text.contains(name)), "{argument}: {text}");
        assert!(!lacks.iter().any(|name| text.contains(name)), "{argument}: {text}");
    }
    for number in 0..1_001 {
        fs::write(folder.join(format!("many{number}")), b"").unwrap();
    }
    assert_eq!(control.ask("STAT many*").0, 504);
    assert_eq!(control.ask("STAT *.txt").0, 212);
}

#[test]
fn a_literal_wildcard_gives_the_directory_or_the_entry_and_all_matches() {
    let (cluster, folder) = cluster("");
    for name in ["[1].lit", "1.lit", "*.lit", "what?", "whats", "a{b,c}", "ab"] {
        fs::write(folder.join(name), b"x").unwrap();
    }
    fs::create_dir(folder.join("di*")).unwrap();
    fs::write(folder.join("di*/inside"), b"x").unwrap();
    fs::create_dir(folder.join("dir")).unwrap();
    let mut control = standing(&cluster);
    let mut listed = |argument: &str| {
        let (code, names) = control.fetch(&format!("NLST {argument}"));
        assert_eq!(code, 226, "{argument}");
        let mut names: Vec<String> = String::from_utf8(names).unwrap().lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(listed("[1].lit"), ["1.lit", "[1].lit"]);
    assert_eq!(listed("*.lit"), ["*.lit", "1.lit", "[1].lit"]);
    assert_eq!(listed("what?"), ["what?", "whats"]);
    assert_eq!(listed("a{b,c}"), ["ab", "a{b,c}"]);
    assert_eq!(listed("di*"), ["di*/inside"]);
    assert_eq!(listed("-d di*"), ["di*", "dir"]);
    assert_eq!(listed(&format!("{INBOX}/what?")), [format!("{INBOX}/what?"), format!("{INBOX}/whats")]);
    let (code, text) = control.ask("STAT what?");
    assert!(code == 212 && text.contains("what?") && text.contains("whats"), "{text}");
    assert_eq!(control.fetch("RETR what?"), (226, b"x".to_vec()));
}

#[test]
fn quit_during_a_download_that_nobody_reads_is_answered_and_one_that_is_read_comes_whole() {
    let (cluster, folder) = cluster("");
    fs::write(folder.join("large.eml"), vec![b'm'; 50_000_000]).unwrap();
    // Read to its end: the replies keep their order.
    let mut control = standing(&cluster);
    let mut data = control.passive();
    control.send(b"RETR large.eml\r\nQUIT\r\n").unwrap();
    assert_eq!(control.reply().0, 150);
    let mut content = Vec::new();
    data.read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 50_000_000);
    assert_eq!([control.reply().0, control.reply().0, control.reply().0], [226, 221, 0]);
    // Not read.
    let mut control = standing(&cluster);
    let mut data = control.passive();
    assert_eq!(control.ask("RETR large.eml").0, 150);
    data.read_exact(&mut [0; 10]).unwrap();
    let begun = Instant::now();
    assert_eq!(control.ask("QUIT").0, 221);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(control);
    // It closes its control connection then, and the rest is a cut.
    assert!(data.read_to_end(&mut Vec::new()).is_err());
    // Whoever reads on after all has the whole, and both replies.
    let mut control = standing(&cluster);
    let mut data = control.passive();
    assert_eq!(control.ask("RETR large.eml").0, 150);
    assert_eq!(control.ask("QUIT").0, 221);
    let mut content = Vec::new();
    data.read_to_end(&mut content).unwrap();
    assert_eq!((content.len(), control.reply().0, control.reply().0), (50_000_000, 226, 0));
    // An upload keeps its order: nothing is said before it is stored, and what is cut is not.
    let mut control = standing(&cluster);
    let mut data = control.passive();
    assert_eq!(control.ask("STOR kept.eml").0, 150);
    data.write_all(b"half").unwrap();
    control.send(b"QUIT\r\n").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    drop(control);
    std::thread::sleep(Duration::from_millis(300));
    drop(data);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(fs::read(folder.join("kept.eml")).unwrap(), b"the old content");
}

#[test]
fn telnet_commands_before_a_verb_with_and_without_their_mark() {
    let (cluster, folder) = cluster("");
    fs::write(folder.join("large.eml"), vec![b'm'; 50_000_000]).unwrap();
    let mut control = standing(&cluster);
    for before in [&b"\xff\xf4\xff\xf2"[..], b"\xf4\xf2", b"\xf4\xff", b"\xff\xf4\xf2", b"\xf2", b"\xff\xf2"]
    {
        control.send(&[before, b"ABOR\r\n"].concat()).unwrap();
        assert_eq!(control.reply().0, 226, "{}", before.escape_ascii());
        for urgent in [false, true] {
            let mut data = control.passive();
            assert_eq!(control.ask("RETR large.eml").0, 150);
            data.read_exact(&mut [0; 10]).unwrap();
            let (last, first) = before.split_last().unwrap();
            control.send(first).unwrap();
            if urgent {
                control.send_urgent(*last);
            } else {
                control.send(&[*last]).unwrap();
            }
            assert_eq!(control.ask("ABOR").0, 426, "{}", before.escape_ascii());
            assert_eq!(control.reply().0, 226);
        }
    }
    assert_eq!(control.ask("NOOP").0, 200);
}

#[test]
fn the_perm_fact_claims_only_what_is_permitted() {
    let (cluster, _) = cluster("");
    let mut control = standing(&cluster);
    let perm = |control: &mut Control, path: &str| {
        let (code, text) = control.ask(&format!("MLST {path}"));
        assert_eq!(code, 250, "{text}");
        text.split("perm=").nth(1).unwrap().split(';').next().unwrap().to_owned()
    };
    for (path, expected) in [
        ("/", "el"),
        ("/domains", "el"),
        ("/domains/one.example", "cdelmp"),
        ("/domains/one.example/users", "cdelmp"),
        ("/domains/one.example/users/alice", "cdeflmp"),
        ("/domains/one.example/domainRegistry.bin", "adfrw"),
    ] {
        assert_eq!(perm(&mut control, path), expected, "{path}");
        let (fixed, renamed) = (!expected.contains('f'), control.ask(&format!("RNFR {path}")).0);
        if fixed && renamed == 350 {
            assert_eq!(control.ask(&format!("RNTO {path}-other")).0, 550, "{path}");
        }
    }
    // The same in a listing, where entries of one directory differ.
    let (_, listing) = control.fetch("MLSD /domains/one.example");
    let listing = String::from_utf8(listing).unwrap();
    let line = |name: &str| listing.lines().find(|line| line.ends_with(name)).unwrap().to_owned();
    assert!(line(" users").contains("perm=cdelmp;"), "{listing}");
    assert!(line(" domainRegistry.bin").contains("perm=adfrw;"), "{listing}");
}

#[test]
fn names_with_characters_that_are_not_seen_are_escaped_in_the_log_and_a_line_break_is_refused() {
    let (cluster, folder) = cluster("");
    let mut control = standing(&cluster);
    assert_eq!(control.store("a\u{202e}lme.b\u{2028}c\u{feff}", b"x"), 226);
    assert!(folder.join("a\u{202e}lme.b\u{2028}c\u{feff}").is_file());
    let log = cluster.frontend.wait_for_log("202e");
    assert!(!log.contains(['\u{202e}', '\u{2028}', '\u{feff}']), "{log}");
    // Who logs in is written as it was typed.
    let mut other = Control::connect(cluster.frontend.address);
    other.ask("USER evil\u{202e}name");
    assert_eq!(other.ask("PASS wrong").0, 530);
    let log = cluster.frontend.wait_for_log("evil");
    assert!(!log.contains('\u{202e}'), "{log}");
    for line in ["STOR cr\rx", "APPE cr\rx", "MKD cr\rx", "RNFR cr\rx"] {
        let _data = control.passive();
        let (code, text) = control.ask(line);
        assert_eq!(code, 553, "{line:?}: {text}");
    }
    assert_eq!(
        fs::read_dir(&folder)
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name().to_string_lossy().contains('\r') })
            .count(),
        0
    );
}

#[test]
fn rare_wrong_commands_do_not_end_a_long_session() {
    let (cluster, _) = cluster("");
    let mut control = standing(&cluster);
    for _ in 0..60 {
        assert_eq!(control.ask("XYZZY").0, 500);
        assert_eq!(control.ask("NOOP").0, 200);
    }
    // Transfers count, and what is refused for other reasons does not.
    for _ in 0..10 {
        assert_eq!(control.ask("XYZZY").0, 500);
        assert_eq!(control.fetch("RETR kept.eml").0, 226);
    }
    let ended = (0..40).find(|_| {
        control.ask("SIZE missing");
        control.ask("XYZZY").0 == 421
    });
    assert!(ended.is_some());
}
