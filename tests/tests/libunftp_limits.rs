//! What the libunftp engine cannot do. These tests hold its limits down, so that an upgrade of the library
//! tells us when one is gone.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use portolan_tests::Cluster;
use portolan_tests::client::{Control, lftp, text};
use portolan_tests::tree::{self, put};

/// A cluster whose front end serves with the library.
fn libunftp(fill: impl FnOnce(&Path)) -> Cluster {
    let mut cluster = Cluster::start(fill);
    cluster.restart_with("engine = \"libunftp\"");
    cluster
}

#[test]
fn a_name_that_is_not_utf8_is_shown_and_its_download_fails_aloud() {
    let name = OsStr::from_bytes(b"caf\xe9.eml");
    let cluster = libunftp(|folder| {
        tree::fill(folder);
        put(&folder.join("node-1/domains/one.example/users/alice/folders/Latin").join(name), b"latin-1");
    });
    let folder = "/domains/one.example/users/alice/folders/Latin";
    let mut control = Control::login(cluster.frontend.address, "admin");
    let (code, listing) = control.fetch(&format!("MLSD {folder}"));
    assert_eq!(code, 226);
    assert!(String::from_utf8(listing).unwrap().ends_with("caf\u{fffd}.eml\r\n"));
    // A mirror reports the failure and exits with it: the mail is not skipped in silence.
    let backup = cluster.path().join("backup");
    let mirrored = lftp(&cluster, &format!("mirror {folder} {}", backup.display()));
    assert!(!mirrored.status.success() && text(&mirrored).contains("553"), "{}", text(&mirrored));
    let (_, names) = control.fetch(&format!("NLST {folder}"));
    assert_eq!(String::from_utf8(names).unwrap(), "caf\u{fffd}.eml\r\n");
    // Its own bytes do not reach it either: the library turns them into the replacement character. Two names
    // that differ in such bytes would be one, so nothing is done at either.
    let upload = [b"STOR ", folder.as_bytes(), b"/caf\xe8.eml\r\n"].concat();
    let data = control.passive();
    control.send(&upload).unwrap();
    assert_eq!(control.reply().0, 150);
    drop(data);
    assert_eq!(control.reply().0, 553);
    control.send(&[b"SIZE ", folder.as_bytes(), b"/caf\xe9.eml\r\n"].concat()).unwrap();
    assert_eq!(control.reply().0, 553);
}

#[test]
fn an_offset_left_over_from_a_failed_transfer_never_shortens_the_next_file() {
    let cluster = libunftp(tree::fill);
    let address = cluster.frontend.address;
    let file = "/domains/one.example/domainRegistry.bin";
    let mut control = Control::login(address, "admin");
    assert_eq!(control.ask("REST 3").0, 350);
    assert_eq!(control.fetch("RETR /domains/one.example/missing").0, 550);
    // The library would send the file from byte 3 on and say 226. The session ends instead.
    let (code, data) = control.fetch(&format!("RETR {file}"));
    assert!(code != 226 && data.is_empty(), "{code} {data:?}");
    let mut control = Control::login(address, "admin");
    assert_eq!(control.fetch(&format!("RETR {file}")), (226, b"one.example".to_vec()));
    assert_eq!(control.ask("REST 4").0, 350);
    assert_eq!(control.fetch(&format!("RETR {file}")), (226, b"example".to_vec()));
    assert_eq!(control.fetch(&format!("RETR {file}")), (226, b"one.example".to_vec()));
}

#[test]
fn a_name_with_a_line_break_is_shown_and_cannot_be_asked_for() {
    let cluster = libunftp(|folder| {
        tree::fill(folder);
        put(&folder.join("node-1/domains/one.example/users/alice/a\nb.eml"), b"x");
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    let (code, listing) = control.fetch("MLSD /domains/one.example/users/alice");
    let listing = String::from_utf8(listing).unwrap();
    assert_eq!(code, 226);
    assert!(listing.contains(" a?b.eml\r\n"), "{listing}");
    assert_eq!(control.fetch("RETR /domains/one.example/users/alice/a?b.eml").0, 550);
}

#[test]
fn names_listed_alone_fail_for_good_where_a_node_is_away() {
    let mut cluster = libunftp(tree::fill);
    cluster.kill_agent(2);
    cluster.wait_until_away(2);
    let mut control = Control::login(cluster.frontend.address, "admin");
    // 550 instead of 450; but never a short list.
    assert_eq!(control.fetch("NLST /domains/two.example/users"), (550, Vec::new()));
    assert_eq!(control.fetch("LIST /domains/two.example/users"), (450, Vec::new()));
}

#[test]
fn commands_that_it_does_not_know() {
    let cluster = libunftp(tree::fill);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let file = "/domains/one.example/domainRegistry.bin";
    for command in [
        format!("MFMT 20200101000000 {file}"),
        format!("HASH {file}"),
        "HOST x".into(),
        "EPRT |1|127.0.0.1|1|".into(),
    ] {
        let (code, reply) = control.ask(&command);
        assert!((500..505).contains(&code), "{command}: {code} {reply}");
    }
    assert_eq!(control.ask("NOOP").0, 200);
}

#[test]
fn a_data_connection_that_ends_early_counts_as_complete_while_the_control_connection_stands() {
    let cluster = libunftp(tree::fill);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let mut data = control.passive();
    assert_eq!(control.ask("STOR /domains/one.example/users/alice/half.eml").0, 150);
    data.write_all(b"half of").unwrap();
    drop(data);
    // Nothing in RFC 959's stream mode tells this from the end of the file.
    assert_eq!(control.reply().0, 226);
}

/// A cluster over the library's engine, and what comes of bytes sent at once over a raw connection.
fn conversation(cluster: &Cluster, bytes: &[u8]) -> String {
    let mut control = Control::connect(cluster.frontend.address);
    control.send(bytes).expect("the connection stands");
    let mut said = String::new();
    loop {
        let (code, text) = control.reply();
        said += &format!("{text}\n");
        if matches!(code, 0 | 234 | 421 | 221) {
            return said;
        }
    }
}

#[test]
fn what_comes_in_plaintext_behind_auth_is_never_run() {
    let cluster = libunftp(tree::fill);
    let injected =
        format!("USER admin\r\nPASS {}\r\nMKD /domains/one.example/evil\r\n", portolan_tests::PASSWORD);
    for auth in ["AUTH TLS\r\n", "auth tls\r\n", "NOOP\r\nAUTH TLS\r\n", "AUTH TLS\n"] {
        for _ in 0..10 {
            let said = conversation(&cluster, format!("{auth}{injected}").as_bytes());
            assert!(
                said.contains("421 Data received between AUTH") && !said.contains("234"),
                "{auth}: {said}"
            );
        }
        // A part of a line, too.
        let said = conversation(&cluster, format!("{auth}U").as_bytes());
        assert!(said.contains("421 Data received between AUTH") && !said.contains("234"), "{auth}: {said}");
        assert!(conversation(&cluster, auth.as_bytes()).contains("234"));
    }
    assert!(!cluster.domains(1).join("one.example/evil").is_dir());
    cluster.frontend.wait_for_log("commands were sent after AUTH and before TLS");
    // An AUTH that is refused holds up nothing.
    let said = conversation(&cluster, b"AUTH SSL\r\nNOOP\r\nQUIT\r\n");
    assert!(said.contains("504") && said.contains("200") && said.contains("221"), "{said}");
    // And TLS works, with data.
    let mirrored = lftp(&cluster, "cat /domains/one.example/domainRegistry.bin");
    assert!(mirrored.status.success() && text(&mirrored).contains("one.example"), "{}", text(&mirrored));
}

#[test]
fn its_lines_are_bounded_in_plaintext() {
    let cluster = libunftp(tree::fill);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let longest = format!("NOOP{}\r\n", "x".repeat(5_000));
    control.send(longest.as_bytes()).unwrap();
    assert_eq!(control.reply().0, 500);
    assert_eq!(control.ask("PWD").0, 257);
    cluster.refuses_a_line_without_an_end();
}

#[test]
fn its_last_failed_login_is_answered() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with("engine = \"libunftp\"\nerrors = { failed_logins_max = 2 }");
    let mut control = Control::connect(cluster.frontend.address);
    for _ in 0..2 {
        control.ask("USER admin");
        assert_eq!(control.ask("PASS wrong").0, 530);
    }
    assert_eq!(control.reply().0, 0);
}

#[test]
fn its_data_connections_come_from_the_client_alone_and_a_cut_stays_one() {
    let cluster = libunftp(tree::fill);
    let address = cluster.frontend.address;
    let mut control = Control::login(address, "admin");
    let (_, place) = control.ask("EPSV");
    let port: u16 = place.split('|').nth(3).unwrap().parse().unwrap();
    let place = std::net::SocketAddr::new(address.ip(), port);
    drop(portolan_tests::client::connect_from([127, 0, 0, 9].into(), place).unwrap());
    let mut data = std::net::TcpStream::connect(place).unwrap();
    assert_eq!(control.ask("RETR /domains/one.example/domainRegistry.bin").0, 150);
    let mut content = String::new();
    std::io::Read::read_to_string(&mut data, &mut content).unwrap();
    assert_eq!((&content[..], control.reply().0), ("one.example", 226));
    let path = "one.example/users/alice/cut.eml";
    let mut data = control.passive();
    assert_eq!(control.ask(&format!("STOR /domains/{path}")).0, 150);
    data.write_all(b"half of").unwrap();
    rustix::net::sockopt::set_socket_linger(&data, Some(std::time::Duration::ZERO)).unwrap();
    drop(data);
    assert_eq!(control.reply().0, 426);
    assert!(!cluster.domains(1).join(path).is_file());
}
