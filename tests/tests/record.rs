//! Names that a node no longer announces, and where things were last seen: what a mirror keeps, what an operator confirms,
//! and what two front ends agree on.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use portolan_tests::client::{Control, lftp, succeed, succeeded, text};
use portolan_tests::{Cluster, PASSWORD, Server, eventually, http, program, tree};

const DOUBTED: &str = "a node no longer announces much of what it held";

fn mail(folder: &Path, node: usize, domain: &str, user: &str) {
    let path = folder.join(format!("node-{node}/domains/{domain}/users/{user}/cur/1:2,S"));
    tree::put(&path, format!("mail of {user}@{domain}").as_bytes());
}

/// Domains that the agents alone announce.
fn fill(folder: &Path) {
    for n in 0..20 {
        mail(folder, 2, "big.example", &format!("u{n}"));
    }
    // So much that the node as a whole is not in doubt.
    for n in 0..40 {
        mail(folder, 2, "keep.example", &format!("k{n}"));
    }
    mail(folder, 2, "small.example", "only");
    mail(folder, 1, "other.example", "fine");
    for n in 0..8 {
        mail(folder, 1, "both.example", &format!("a{n}"));
        mail(folder, 3, "both.example", &format!("b{n}"));
    }
}

fn start(keys: &str) -> Cluster {
    let mut cluster = Cluster::start(fill);
    cluster.restart_frontend(|config| keys.to_owned() + &config + "[http]\naddress = \"127.0.0.1:0\"\n");
    cluster.frontend.wait_for_log("metrics and health are served");
    cluster
}

/// A second front end over the same agents.
fn second(cluster: &Cluster, keys: &str) -> Server {
    let config = fs::read_to_string(cluster.path().join("frontend.toml")).unwrap();
    let config = config.replace("control.sock", "second.sock").replace("state_dir", "# state_dir");
    let path = cluster.path().join("second.toml");
    fs::write(&path, keys.to_owned() + &config).unwrap();
    Server::spawn(Command::new(program("portolan-frontend")), "portolan-frontend", &path)
}

fn names(server: &Server, path: &str) -> BTreeSet<String> {
    let (code, listing) = Control::login(server.address, "admin").fetch(&format!("NLST {path}"));
    assert_eq!(code, 226, "{path}");
    let listing = String::from_utf8(listing).unwrap();
    listing.lines().map(|line| line.rsplit('/').next().unwrap().to_owned()).collect()
}

fn entering(server: &Server, path: &str) -> (u16, String) {
    Control::login(server.address, "admin").ask(&format!("CWD {path}"))
}

fn remove(cluster: &Cluster, node: usize, path: &str) {
    fs::remove_dir_all(cluster.domains(node).join(path)).unwrap();
}

/// The front end knows what lies in a domain, and every agent has the record of it.
fn until_recorded(cluster: &Cluster, domain: &str) {
    eventually("the agents keep the record", || {
        let kept = |number: usize| {
            let record = cluster.path().join(format!("node-{number}/.portolan/record"));
            let content = fs::read(record).unwrap_or_default();
            content.windows(domain.len()).any(|window| window == domain.as_bytes())
        };
        (1..=3).all(kept).then_some(())
    });
}

#[test]
fn what_vanishes_from_a_node_stays_in_every_mirror_until_somebody_confirms() {
    let cluster = start("state_dir = \"state\"\n");
    let local = cluster.path().join("backup");
    let mirror = format!("mirror --delete /domains {}", local.display());
    succeeded(&lftp(&cluster, &mirror));
    let rcloned = cluster.path().join("rcloned");
    let secret = succeed(Command::new("rclone").args(["obscure", PASSWORD]));
    let sync = || {
        let address = cluster.frontend.address;
        let remote = format!(
            ":ftp,host={},port={},user=admin,pass={}:domains",
            address.ip(),
            address.port(),
            secret.trim()
        );
        let arguments = ["60", "rclone", "--config", "/dev/null", "--retries", "1", "sync"];
        Command::new("timeout").args(arguments).arg(remote).arg(&rcloned).output().unwrap()
    };
    succeeded(&sync());
    let (whole, rclone_whole) = (tree::read(&local), tree::read(&rcloned));
    assert_eq!(whole.values().flatten().count(), 78);

    for n in 0..10 {
        remove(&cluster, 2, &format!("big.example/users/u{n}"));
    }
    remove(&cluster, 2, "small.example");
    cluster.frontend.wait_for_log(DOUBTED);
    eventually("all of it is in doubt", || {
        succeeded(&cluster.operate(&["status"])).contains("mail-2 no longer announces 12 ").then_some(())
    });

    assert!(names(&cluster.frontend, "/domains").contains("small.example"));
    assert_eq!(names(&cluster.frontend, "/domains/big.example/users").len(), 20);
    for (path, name) in [
        ("/domains/big.example/users/u3", "big.example"),
        ("/domains/big.example/users/u3/cur", "big.example"),
        ("/domains/small.example/users", "small.example"),
        ("/domains/small.example", "small.example"),
    ] {
        let (code, reply) = entering(&cluster.frontend, path);
        assert_eq!(code, 450, "{path}: {reply}");
        assert!(reply.contains("mail-2 no longer has it"), "{reply}");
        assert!(reply.contains(&format!("portolan map confirm {name}")), "{reply}");
    }
    assert_eq!(entering(&cluster.frontend, "/domains/big.example/users/u15/cur").0, 250);
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.store("/domains/big.example/users/u3/cur/new", b"x"), 450);
    assert_eq!(control.fetch("RETR /domains/other.example/users/fine/cur/1:2,S").0, 226);

    // Whatever they say, they delete nothing.
    assert!(!lftp(&cluster, &mirror).status.success());
    assert!(!sync().status.success());
    tree::assert_same(&whole, &tree::read(&local));
    tree::assert_same(&rclone_whole, &tree::read(&rcloned));

    let address = http::address(&cluster.frontend);
    let (code, body) = http::get(address, "/readyz");
    assert_eq!(code, 200, "{body}");
    assert!(body.contains("mail-2 no longer announces 12 domains and objects"), "{body}");
    assert_eq!(http::metric(address, "portolan_node_in_doubt{node=\"mail-2\"}"), Some(12.0));
    assert_eq!(http::metric(address, "portolan_node_in_doubt{node=\"mail-1\"}"), Some(0.0));
    let map = succeeded(&cluster.operate(&["map"]));
    let line = map.lines().find(|line| line.starts_with("big.example")).unwrap().trim_end().to_owned();
    assert!(line.ends_with("mail-2"), "{map}");

    // Some come back, one domain is confirmed.
    mail(cluster.path(), 2, "small.example", "only");
    eventually("it is believed again", || {
        (entering(&cluster.frontend, "/domains/small.example/users/only").0 == 250).then_some(())
    });
    let refused = cluster.operate(&["map", "confirm", "other.example"]);
    assert!(
        !refused.status.success() && text(&refused).contains("nothing is in doubt"),
        "{}",
        text(&refused)
    );
    let confirmed = succeeded(&cluster.operate(&["map", "confirm", "big.example"]));
    assert_eq!(confirmed, "domain big.example: 10 domains and objects are no longer in doubt\n");
    cluster.frontend.wait_for_log("an operator has confirmed");
    assert_eq!(names(&cluster.frontend, "/domains/big.example/users").len(), 10);
    succeeded(&lftp(&cluster, &mirror));
    assert_eq!(tree::read(&local).values().flatten().count(), 68);
}

#[test]
fn a_node_that_comes_back_empty_is_not_believed_by_any_front_end_in_whatever_order_they_start() {
    let mut cluster = start("state_dir = \"state\"\n");
    until_recorded(&cluster, "big.example");
    cluster.kill_agent(2);
    cluster.wait_until_away(2);
    let (domains, aside) = (cluster.domains(2), cluster.path().join("aside"));
    fs::rename(&domains, &aside).unwrap();
    fs::create_dir(&domains).unwrap();
    cluster.start_agent(2);
    cluster.frontend.wait_for_log(DOUBTED);
    let expected = names(&cluster.frontend, "/domains");
    assert!(
        expected.is_superset(&["big.example", "small.example"].map(str::to_owned).into()),
        "{expected:?}"
    );

    // Without a file of its own it comes from the agents, also where this one's file is damaged.
    let other = second(&cluster, "");
    let agreed = |server: &Server| {
        eventually("it is in doubt here too", || {
            (entering(server, "/domains/big.example/users/u1").0 == 450).then_some(())
        });
        assert_eq!(names(server, "/domains"), expected);
    };
    agreed(&other);
    fs::write(cluster.path().join("state/record"), "garbage").unwrap();
    cluster.restart_frontend(|config| config);
    cluster.frontend.wait_for_log("the record in state_dir was damaged");
    agreed(&cluster.frontend);
    drop(other);
    cluster.restart_frontend(|config| config.replace("state_dir = \"state\"\n", ""));
    agreed(&cluster.frontend);

    // A confirmation on one holds for the other, and for one that starts later.
    let other = second(&cluster, "");
    agreed(&other);
    succeeded(&cluster.operate(&["map", "confirm", "mail-2"]));
    let gone = |server: &Server| {
        eventually("it is confirmed here too", || {
            (!names(server, "/domains").contains("big.example")).then_some(())
        });
    };
    gone(&cluster.frontend);
    gone(&other);
    drop(other);
    cluster.restart_frontend(|config| config);
    gone(&cluster.frontend);

    // What is restored comes to the node that it was on, not to the home node of another.
    let mut control = Control::login(cluster.frontend.address, "admin");
    for level in ["", "/users", "/users/u1", "/users/u1/cur"] {
        let (code, reply) = control.ask(&format!("MKD /domains/big.example{level}"));
        assert_eq!(code, 257, "{level}: {reply}");
    }
    assert_eq!(control.store("/domains/big.example/users/u1/cur/1:2,S", b"restored"), 226);
    assert_eq!(fs::read(domains.join("big.example/users/u1/cur/1:2,S")).unwrap(), b"restored");
    cluster.frontend.wait_for_log("placed on the node where it was last seen");
}

#[test]
fn one_user_who_is_lost_is_restored_to_the_node_that_had_it() {
    let mut cluster = start("");
    until_recorded(&cluster, "both.example");
    remove(&cluster, 3, "both.example/users/b3");
    let users = "/domains/both.example/users";
    eventually("its loss is believed", || {
        let map = succeeded(&cluster.operate(&["map", "explain", &format!("{users}/b3")]));
        map.contains("searched for on").then_some(())
    });
    assert!(!names(&cluster.frontend, users).contains("b3"));
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask(&format!("MKD {users}/b3")).0, 257);
    assert_eq!(control.ask(&format!("MKD {users}/b3/cur")).0, 257);
    assert_eq!(control.store(&format!("{users}/b3/cur/m"), b"back"), 226);
    assert_eq!(fs::read(cluster.domains(3).join("both.example/users/b3/cur/m")).unwrap(), b"back");
    // One that nobody has seen goes by the placement.
    assert_eq!(control.ask(&format!("MKD {users}/new")).0, 257);
    let at_home = |node| cluster.domains(node).join("both.example/users/new").is_dir();
    assert_eq!((at_home(1), at_home(3)), (true, false));

    // The node that had it is away: nowhere else.
    remove(&cluster, 3, "both.example/users/b4");
    eventually("its loss is believed", || {
        let map = succeeded(&cluster.operate(&["map", "explain", &format!("{users}/b4")]));
        map.contains("searched for on").then_some(())
    });
    cluster.kill_agent(3);
    cluster.wait_until_away(3);
    let (code, reply) = control.ask(&format!("MKD {users}/b4"));
    assert_eq!(code, 450, "{reply}");
    assert!(reply.contains("mail-3"), "{reply}");
    assert!(!cluster.domains(1).join("both.example/users/b4").is_dir());
}

#[test]
fn what_is_removed_through_one_front_end_or_moves_to_another_node_is_in_doubt_nowhere() {
    let cluster = start("state_dir = \"state\"\n");
    let other = second(&cluster, "");
    until_recorded(&cluster, "big.example");
    let removed = lftp(&cluster, "rm -r /domains/big.example");
    succeeded(&removed);
    for n in 0..8 {
        let user = format!("both.example/users/a{n}");
        fs::rename(cluster.domains(1).join(&user), cluster.domains(3).join(&user)).unwrap();
    }
    for server in [&cluster.frontend, &other] {
        eventually("both are known", || {
            let gone = !names(server, "/domains").contains("big.example");
            let all = names(server, "/domains/both.example/users").len() == 16;
            let open =
                (0..8).all(|n| entering(server, &format!("/domains/both.example/users/a{n}/cur")).0 == 250);
            (gone && all && open).then_some(())
        });
    }
    let status = succeeded(&cluster.operate(&["status"]));
    assert!(!status.contains("which is not believed"), "{status}");
}

#[test]
fn an_agent_that_cannot_keep_the_record_serves_all_the_same() {
    let mut cluster = start("");
    until_recorded(&cluster, "big.example");
    cluster.kill_agent(1);
    let record = cluster.path().join("node-1/.portolan/record");
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    cluster.start_agent(1);
    let log = cluster.agent(1).wait_for_log("the store cannot keep the record of the front ends");
    assert_eq!(log.matches("cannot keep the record").count(), 1);
    eventually("it serves", || {
        (entering(&cluster.frontend, "/domains/other.example/users/fine").0 == 250).then_some(())
    });
    // A torn end costs that end alone.
    cluster.kill_agent(3);
    let record = cluster.path().join("node-3/.portolan/record");
    let content = fs::read(&record).unwrap();
    fs::write(&record, &content[..content.len() - 3]).unwrap();
    cluster.start_agent(3);
    cluster.agent(3).wait_for_log("the record was damaged");
}

#[test]
fn what_has_vanished_since_its_node_counted_last_is_not_told_as_gone() {
    let mut cluster = start("state_dir = \"state\"\n");
    // It counts at its start, and no more.
    cluster.restart_agent(2, |config| config.replace("rescan_interval = \"1s\"", "rescan_interval = \"1h\""));
    let cluster = cluster;
    let users = |domain: &str| names(&cluster.frontend, &format!("/domains/{domain}/users"));
    eventually("node 2 is back", || {
        (entering(&cluster.frontend, "/domains/big.example/users/u0").0 == 250).then_some(())
    });
    let local = cluster.path().join("backup");
    let mirror = format!("mirror --delete /domains {}", local.display());
    succeeded(&lftp(&cluster, &mirror));
    let whole = tree::read(&local);

    // One user, half of a domain, a container, a domain; so few and so many.
    remove(&cluster, 2, "keep.example/users/k7");
    for n in 0..10 {
        remove(&cluster, 2, &format!("big.example/users/u{n}"));
    }
    remove(&cluster, 2, "small.example");
    assert_eq!((users("keep.example").len(), users("big.example").len()), (40, 20));
    assert_eq!(users("small.example"), BTreeSet::from(["only".to_owned()]));
    let (_, listed) =
        Control::login(cluster.frontend.address, "admin").fetch("MLSD /domains/keep.example/users");
    assert_eq!(String::from_utf8(listed).unwrap().matches(" k7\r\n").count(), 1);
    for path in ["keep.example/users/k7", "big.example/users/u3", "small.example/users/only"] {
        let (code, told) = entering(&cluster.frontend, &format!("/domains/{path}"));
        assert!(code == 450 && told.contains("mail-2 had it a moment ago"), "{path}: {code} {told}");
        let (code, _) =
            Control::login(cluster.frontend.address, "admin").ask(&format!("MLST /domains/{path}"));
        assert_eq!(code, 450, "{path}");
    }
    assert!(!lftp(&cluster, &mirror).status.success());
    tree::assert_same(&whole, &tree::read(&local));

    // Of what a client removes everybody knows at once.
    let mut control = Control::login(cluster.frontend.address, "admin");
    for name in ["cur/1:2,S", "cur", ""] {
        let verb = if name.ends_with('S') { "DELE" } else { "RMD" };
        let (code, told) = control.ask(&format!("{verb} /domains/keep.example/users/k9/{name}"));
        assert_eq!(code, 250, "{name}: {told}");
    }
    assert_eq!(entering(&cluster.frontend, "/domains/keep.example/users/k9").0, 550);
    assert!(!users("keep.example").contains("k9"));
    assert_eq!(users("keep.example").len(), 39);
    // And what is made is there once.
    assert_eq!(control.ask("MKD /domains/keep.example/users/k9").0, 257);
    assert_eq!(users("keep.example").len(), 40);
}
