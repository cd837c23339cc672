//! A missing node is an error, never an absence.

use std::time::Instant;

use portolan_tests::client::{Control, lftp, text};
use portolan_tests::tree::{self, assert_same};
use portolan_tests::{Cluster, eventually};

#[test]
fn a_stopped_node_is_an_error_and_no_listing_is_short() {
    let mut cluster = Cluster::start(tree::fill);
    let backup = cluster.path().join("backup");
    let saved = lftp(&cluster, &format!("mirror / {}", backup.display()));
    assert!(saved.status.success(), "{}", text(&saved));
    let before = tree::read(&backup);

    cluster.kill_agent(3);
    cluster.wait_until_away(3);
    let mut control = Control::login(cluster.frontend.address, "admin");
    // The map and the last announcements know the domains.
    let (code, domains) = control.fetch("MLSD /domains");
    let domains = String::from_utf8(domains).unwrap();
    assert_eq!((code, domains.lines().count()), (226, 3), "{domains}");
    // What lies on the node, wholly or in part, is told to be missing for now.
    assert_eq!(control.ask("CWD /domains/spread.example").0, 450);
    for path in
        ["/domains/spread.example", "/domains/spread.example/users", "/domains/spread.example/users/carol"]
    {
        let (code, data) = control.fetch(&format!("MLSD {path}"));
        assert_eq!((code, data.len()), (450, 0), "{path}");
        assert_eq!(control.fetch(&format!("LIST {path}")), (450, Vec::new()), "{path}");
    }
    let (code, _) = control.fetch("RETR /domains/spread.example/users/carol/Registry.bin");
    assert_eq!(code, 450);
    assert_eq!(control.store("/domains/spread.example/users/carol/Registry.bin", b"new"), 450);
    // What lies on the others is served.
    assert_eq!(control.fetch("RETR /domains/spread.example/users/erin/Registry.bin").0, 226);
    assert_eq!(control.fetch("MLSD /domains/one.example/users").0, 226);
    // An unknown user of the spread domain may lie on the node that is away.
    assert_eq!(control.fetch("RETR /domains/spread.example/users/nobody/Registry.bin").0, 450);

    let mirrored =
        lftp(&cluster, &format!("set cmd:fail-exit false; mirror --delete / {}; exit 0", backup.display()));
    assert!(text(&mirrored).contains("450"), "{}", text(&mirrored));
    assert_same(&before, &tree::read(&backup));

    cluster.start_agent(3);
    let back = Instant::now();
    eventually("the node is served again", || {
        (control.ask("CWD /domains/spread.example/users/carol").0 == 250).then_some(())
    });
    assert!(back.elapsed().as_secs() < 5, "it took {:?}", back.elapsed());
}

#[test]
fn a_frozen_node_is_noticed_within_the_stated_deadlines() {
    let cluster = Cluster::start(tree::fill);
    let mut control = Control::login(cluster.frontend.address, "admin");
    cluster.agent(2).freeze();
    let started = Instant::now();
    let (code, text) = control.ask("CWD /domains/two.example");
    assert_eq!(code, 450, "{text}");
    // A call gets 20 s, a connection without an answer to pings 5 s + 5 s.
    assert!(started.elapsed().as_secs() < 21, "{:?}", started.elapsed());
    assert_eq!(control.ask("CWD /domains/one.example").0, 250);
    cluster.agent(2).signal(rustix::process::Signal::CONT);
    eventually("the node is served again", || {
        (control.ask("CWD /domains/two.example").0 == 250).then_some(())
    });
}

#[test]
fn before_all_nodes_were_heard_the_list_of_domains_is_refused() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.kill_agent(2);
    cluster.restart_frontend(|config| config);
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.fetch("MLSD /domains"), (450, Vec::new()));
    // The static map alone is enough for what it places.
    assert_eq!(control.ask("CWD /domains/one.example").0, 250);
    assert_eq!(control.ask("CWD /domains/unknown.example").0, 450);
    cluster.start_agent(2);
    eventually("all nodes were heard", || (control.fetch("MLSD /domains").0 == 226).then_some(()));
    assert_eq!(control.ask("CWD /domains/unknown.example").0, 550);
}

#[test]
fn an_agent_that_claims_another_name_is_not_used() {
    let mut cluster = Cluster::start(tree::fill);
    // The certificate is what counts: the front end dials mail-2 at the address of mail-1.
    let one = cluster.agent(1).address.to_string();
    let two = cluster.agent(2).address.to_string();
    cluster.restart_frontend(|config| {
        config.replace(&one, "127.0.0.1:1").replace(&two, &one).replace("127.0.0.1:1\"", &format!("{two}\""))
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask("CWD /domains/one.example").0, 450);
    assert_eq!(control.ask("CWD /domains/two.example").0, 450);
}

#[test]
fn where_that_is_configured_known_names_stay_in_the_listing_while_their_node_is_away() {
    let mut cluster = Cluster::start(|folder| {
        tree::fill(folder);
        let lists = folder.join("node-3/domains/spread.example/maillists");
        (0..2_500).for_each(|number| {
            std::fs::create_dir_all(lists.join(format!("list-{number:04}"))).expect("our folder")
        });
    });
    cluster
        .restart_frontend(|config| config.replace("placement =", "partial_listings = \"mark\"\nplacement ="));
    let list = |control: &mut Control, path: &str| {
        let (code, names) = control.fetch(&format!("NLST {path}"));
        let mut names: Vec<_> = String::from_utf8(names).unwrap().lines().map(str::to_owned).collect();
        names.sort();
        (code, names)
    };
    let mut control = Control::login(cluster.frontend.address, "admin");
    let paths = ["", "/users", "/maillists"].map(|below| format!("/domains/spread.example{below}"));
    let mut before = paths.each_ref().map(|path| list(&mut control, path));
    assert_eq!(before[2].1.len(), 2_502);
    // Whom the static map names is listed, though he has no mail.
    before[1].1.insert(1, "/domains/spread.example/users/dave".to_owned());

    cluster.kill_agent(3);
    cluster.wait_until_away(3);
    assert!(paths.each_ref().map(|path| list(&mut control, path)) == before);
    // Clients that go there first.
    assert_eq!(control.ask("CWD /domains/spread.example/users").0, 250);
    assert_eq!(control.ask("MLST /domains/spread.example/maillists").0, 250);
    // Entering them, and what the node alone has, is an error all the same.
    for path in ["/domains/spread.example/users/carol", "/domains/spread.example/maillists/list-0001"] {
        let (code, said) = control.ask(&format!("CWD {path}"));
        assert!(code == 450 && said.contains("mail-3"), "{said}");
        assert_eq!(control.fetch(&format!("MLSD {path}")), (450, Vec::new()));
    }
    // A node that holds everything of its domain.
    cluster.kill_agent(2);
    cluster.wait_until_away(2);
    assert_eq!(control.fetch("NLST /domains/two.example/users"), (450, Vec::new()));

    // A front end that never heard the node knows of its part what the static map says: users, and no lists.
    cluster.restart_frontend(|config| config);
    let mut control = Control::login(cluster.frontend.address, "admin");
    let (code, domains) = list(&mut control, "/domains");
    assert_eq!((code, domains.len()), (226, 3));
    let (code, users) = list(&mut control, "/domains/spread.example/users");
    assert_eq!((code, users.len()), (226, 3), "dave is in the map, though he has no mail: {users:?}");
}
