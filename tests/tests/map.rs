//! The domain map: listed whole, explained, followed as domains move.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::path::PathBuf;

use portolan_tests::client::{Control, succeeded};
use portolan_tests::{Cluster, eventually, http, tree};

fn domain(cluster: &Cluster, node: u32, name: &str) -> PathBuf {
    cluster.path().join(format!("node-{node}/domains/{name}"))
}

fn shown(cluster: &Cluster, arguments: &[&str]) -> String {
    succeeded(&cluster.operate(arguments))
}

#[test]
fn the_map_shows_where_domains_lie_and_where_sources_disagree() {
    let cluster = Cluster::start(tree::fill);
    let map = shown(&cluster, &["map"]);
    let line = |map: &str, name: &str| {
        let line = map.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line(&map, "one.example"), "one.example mail-1 static");
    assert_eq!(line(&map, "spread.example"), "spread.example mail-1,mail-3 static");
    assert_eq!(shown(&cluster, &["map", "--conflicts"]).lines().count(), 1, "the heading alone");

    // Somebody else has some of it too: the order decides, and the conflict is seen.
    fs::create_dir_all(domain(&cluster, 2, "one.example").join("users/stray")).unwrap();
    let conflict = eventually("the conflict is seen", || {
        let map = shown(&cluster, &["map", "--conflicts"]);
        map.contains("one.example").then_some(map)
    });
    assert_eq!(
        line(&conflict, "one.example"),
        "one.example mail-1 static announced: mail-1,mail-2; not shown: its part on mail-2"
    );
    cluster.frontend.wait_for_log("the static map places a domain elsewhere than a node announces");

    let explained = shown(&cluster, &["map", "explain", "/domains/one.example/users/x"]);
    for step in [
        "path: /domains/one.example/users/x",
        "source static: mail-1",
        "source announced: mail-1, mail-2",
        "the domain lies on: mail-1 (by static)",
        "conflict: announced says mail-1, mail-2",
        "asked: mail-1",
    ] {
        assert!(explained.contains(step), "{step}: {explained}");
    }
    let missing = shown(&cluster, &["map", "explain", "/domains/none.example"]);
    assert!(missing.contains("not routed: no such domain"), "{missing}");
    assert!(!cluster.operate(&["map", "explain", &"x".repeat(300)]).status.success());
}

/// Also where the sources of the map agree: copies of one object, and objects beside the place that the map gives them.
#[test]
fn what_no_client_is_shown_is_seen_wherever_an_operator_looks() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_frontend(|config| config + http::TABLE);
    let metrics = http::address(&cluster.frontend);
    let count = |kind: &str| http::metric(metrics, &format!("portolan_map_conflicts{{kind=\"{kind}\"}}"));
    assert_eq!((count("domain"), count("object")), (Some(0.0), Some(0.0)));
    let put = |node, path: &str| tree::put(&domain(&cluster, node, path), b"mail");
    put(1, "spread.example/users/gina/mail");
    put(3, "spread.example/users/gina/mail");
    // The map has carol on mail-3.
    put(1, "spread.example/users/carol/mail");
    put(2, "one.example/users/stray/mail");
    eventually("both kinds are counted", || {
        ((count("domain"), count("object")) == (Some(1.0), Some(2.0))).then_some(())
    });
    let conflicts = shown(&cluster, &["map", "--conflicts"]);
    for text in [
        "not shown: its part on mail-2",
        "users/carol is shown from mail-3, not from mail-1",
        "users/gina is shown from mail-1, not from mail-3",
    ] {
        assert!(conflicts.contains(text), "{text}: {conflicts}");
    }
    let (status, ready) = http::get(metrics, "/readyz");
    assert_eq!(status, 200);
    let told = "1 domains lie on nodes that the map does not name, and 2 objects on another node than clients are led to";
    assert!(ready.contains(told), "{ready}");
    let status = shown(&cluster, &["status"]);
    assert!(status.contains("not shown to clients: parts of 1 domains, copies of 2 objects"), "{status}");
    cluster.frontend.wait_for_log("nodes hold what no client is shown");
    fs::remove_dir_all(domain(&cluster, 1, "spread.example/users/carol")).unwrap();
    fs::remove_dir_all(domain(&cluster, 3, "spread.example/users/gina")).unwrap();
    fs::remove_dir_all(domain(&cluster, 2, "one.example")).unwrap();
    eventually("all is shown", || {
        ((count("domain"), count("object")) == (Some(0.0), Some(0.0))).then_some(())
    });
}

#[test]
fn a_domain_that_moves_is_followed_while_sessions_are_open() {
    let cluster = Cluster::start(tree::fill);
    let file = |node| domain(&cluster, node, "moving.example");
    fs::create_dir_all(file(1)).unwrap();
    fs::write(file(1).join("domainRegistry.bin"), "moving").unwrap();
    let mut session = Control::login(cluster.frontend.address, "admin");
    let read = |session: &mut Control| {
        let (code, content) = session.fetch("RETR /domains/moving.example/domainRegistry.bin");
        (code == 226).then_some(content)
    };
    assert_eq!(eventually("it is there", || read(&mut session)), b"moving");
    let on = |node: &str| {
        eventually("the map follows", || {
            let explained =
                shown(&cluster, &["map", "explain", "/domains/moving.example/domainRegistry.bin"]);
            explained.contains(&format!("the domain lies on: {node} (by announced)")).then_some(())
        });
    };
    on("mail-1");
    fs::rename(file(1), file(3)).unwrap();
    // Every node that is there is asked, so the move is followed before it is announced.
    assert_eq!(eventually("it is found again", || read(&mut session)), b"moving");
    on("mail-3");
    let listing = String::from_utf8(session.fetch("NLST /domains").1).unwrap();
    assert_eq!(listing.matches("moving.example").count(), 1, "{listing}");
}

/// More domains than one batch has, on several nodes, some on two of them.
#[test]
fn the_list_of_domains_is_whole_and_in_order_whatever_its_length() {
    let cluster = Cluster::start(tree::fill);
    let name = |number: u32| format!("bulk-{number:05}.example");
    for number in 0..3_500 {
        fs::create_dir(domain(&cluster, number % 3 + 1, &name(number))).unwrap();
        if number % 50 == 0 {
            fs::create_dir(domain(&cluster, (number + 1) % 3 + 1, &name(number))).unwrap();
        }
    }
    let mut session = Control::login(cluster.frontend.address, "admin");
    let listed = eventually("all are announced", || {
        let (code, listing) = session.fetch("NLST /domains");
        assert_eq!(code, 226);
        let listing = String::from_utf8(listing).unwrap();
        (listing.matches("bulk-").count() >= 3_500).then_some(listing)
    });
    let bulk: Vec<&str> = listed.lines().filter(|line| line.contains("bulk-")).collect();
    let expected: Vec<String> = (0..3_500).map(|number| format!("/domains/{}", name(number))).collect();
    assert_eq!(bulk, expected);
    assert_eq!(listed.lines().count(), 3_503);
    // Who may see a few of them only sees those.
    let mut reader = Control::login(cluster.frontend.address, "reader");
    assert_eq!(reader.fetch("NLST /domains").1, b"/domains/one.example\r\n");
}

#[test]
fn what_rebuilds_the_routing_is_there_for_who_may_back_up_all() {
    let mut cluster = Cluster::start(|folder| {
        tree::fill(folder);
        for number in 0..450 {
            fs::create_dir(folder.join(format!("node-3/domains/spread.example/users/user-{number:03}")))
                .unwrap();
        }
        fs::create_dir(folder.join("node-2/domains/quote\".example")).unwrap();
    });
    let mut session = Control::login(cluster.frontend.address, "admin");
    let (code, listing) = session.fetch("MLSD /cluster");
    let listing = String::from_utf8(listing).unwrap();
    assert_eq!((code, listing.lines().count()), (226, 2), "{listing}");
    let (code, map) = session.fetch("RETR /cluster/domain-map.cfg");
    assert_eq!(code, 226);
    let (said, text) = session.ask("SIZE /cluster/domain-map.cfg");
    assert_eq!((said, text), (213, format!("213 {}", map.len())));
    assert!(listing.contains(&format!("size={};", map.len())), "{listing}");
    assert_eq!(session.ask("REST 100").0, 350);
    assert_eq!(session.fetch("RETR /cluster/domain-map.cfg"), (226, map[100..].to_vec()));
    let text = String::from_utf8(map.clone()).unwrap();
    assert!(
        text.contains("\"users/user-449\" = \"mail-3\"") && text.contains("\"users/erin\" = \"mail-1\""),
        "{text}"
    );
    let nodes = String::from_utf8(session.fetch("RETR /cluster/nodes.cfg").1).unwrap();
    for number in 1..=3 {
        let node =
            format!("[[nodes]]\nname = \"mail-{number}\"\naddress = \"{}\"\n", cluster.agent(number).address);
        assert!(nodes.contains(&node), "{nodes}");
    }

    // Nothing of it is changed, and others do not know of it.
    assert_eq!(session.store("/cluster/nodes.cfg", b"x"), 550);
    for refused in [
        "DELE /cluster/nodes.cfg",
        "MKD /cluster/x",
        "RMD /cluster",
        "CWD /cluster/other",
        "HASH /cluster/nodes.cfg",
    ] {
        assert_eq!(session.ask(refused).0, 550, "{refused}");
    }
    let mut reader = Control::login(cluster.frontend.address, "reader");
    assert_eq!(reader.fetch("NLST /"), (226, b"/domains\r\n".to_vec()));
    for hidden in ["CWD /cluster", "SIZE /cluster/nodes.cfg", "MLST /cluster"] {
        assert_eq!(reader.ask(hidden).0, 550, "{hidden}");
    }
    assert_eq!(reader.fetch("RETR /cluster/nodes.cfg"), (550, Vec::new()));

    // The map is one that a front end takes, and says the same.
    fs::write(cluster.path().join("domain-map.cfg"), &map).unwrap();
    let rows = shown(&cluster, &["map"]);
    cluster.restart_frontend(|config| {
        let (rest, tables) = config.split_once("[[map.domains]]").unwrap();
        let nodes = &tables[tables.find("[[nodes]]").unwrap()..];
        rest.replace("placement =", "file = \"domain-map.cfg\"\nplacement =") + nodes
    });
    let places = |rows: &str| {
        let words = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
        rows.lines().skip(1).map(words).collect::<Vec<_>>()
    };
    assert_eq!(places(&shown(&cluster, &["map"])), places(&rows));
    // While a node was never heard, nobody knows the map.
    cluster.kill_agent(3);
    cluster.restart_frontend(|config| config);
    let mut session = Control::login(cluster.frontend.address, "admin");
    assert_eq!(session.fetch("RETR /cluster/domain-map.cfg"), (450, Vec::new()));
    assert_eq!(session.fetch("RETR /cluster/nodes.cfg").0, 226);
}
