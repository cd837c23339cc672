//! Nodes that DNS names, by dnsmasq: who they are their certificates say.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use portolan_tests::client::{Control, lftp, succeeded, text};
use portolan_tests::tree::{self, assert_same};
use portolan_tests::{Cluster, eventually, free_port, mark, start_agent_with};

/// A name server; stopped when dropped.
struct NameServer(Child);

impl NameServer {
    /// Names agents by the last number of their address.
    fn start(port: u16, agents: u16, numbers: &[u8]) -> Self {
        let mut command = Command::new("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--local-ttl=1",
        ]);
        command.args([
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--local=/test/",
            "--user=root",
            "--pid-file",
        ]);
        command.arg(format!("--port={port}"));
        for number in numbers {
            command.arg(format!("--host-record=agents.test,127.0.0.{number}"));
            command.arg(format!("--host-record=mail-{number}.test,127.0.0.{number}"));
            command.arg(format!("--srv-host=_portolan._tcp.test,mail-{number}.test,{agents}"));
        }
        Self(command.stderr(Stdio::null()).spawn().expect("`tests/run` installs dnsmasq"))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn at(number: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, number], port))
}

/// Agents at addresses of their own, and a front end that is told of none of them.
fn start(query: &str, dns: u16, agents: u16) -> Cluster {
    let mut cluster = Cluster::start(tree::fill);
    for number in 1..=3 {
        cluster.move_agent(number, at(10 + number as u8, agents));
    }
    cluster.restart_frontend(|config| {
        let rest = config.split("[[map.domains]]").next().unwrap();
        format!(
            "{rest}\n[discovery]\n{query}\nnodes_min = 3\ninterval = \"1s\"\nservers = [\"127.0.0.1:{dns}\"]\n"
        )
    });
    cluster
}

fn status(cluster: &Cluster) -> String {
    let text = succeeded(&cluster.operate(&["status"]));
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

fn whole(cluster: &Cluster) {
    let backup = tempfile::tempdir().unwrap();
    succeeded(&lftp(cluster, &format!("mirror /domains {}", backup.path().display())));
    assert_same(&tree::read_nodes(cluster.path()), &tree::read(backup.path()));
}

#[test]
fn nodes_are_found_by_their_addresses_and_none_is_forgotten() {
    let (dns, agents) = (free_port(), free_port());
    let server = NameServer::start(dns, agents, &[11, 12, 13]);
    let mut cluster = start(&format!("addresses = \"agents.test:{agents}\""), dns, agents);
    for number in 1..=3 {
        let line = format!("mail-{number} 127.0.0.1{number}:{agents} up\n");
        assert!(status(&cluster).contains(&line), "{}", status(&cluster));
    }
    whole(&cluster);

    // DNS forgets a node: it stays, and when it is away that is an error.
    drop(server);
    let server = NameServer::start(dns, agents, &[11, 12]);
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    whole(&cluster);
    cluster.kill_agent(3);
    cluster.wait_until_away(3);
    let mut session = Control::login(cluster.frontend.address, "admin");
    assert_eq!(session.fetch("MLSD /domains/spread.example/users"), (450, Vec::new()));

    // It comes back elsewhere, as a pod does.
    cluster.move_agent(3, at(14, agents));
    drop(server);
    let server = NameServer::start(dns, agents, &[11, 12, 14]);
    eventually("the node is found at its new address", || {
        (session.fetch("MLSD /domains/spread.example/users").0 == 226).then_some(())
    });
    whole(&cluster);

    // An agent that claims another's name, with a certificate of its own.
    fs::create_dir_all(cluster.path().join("node-5/domains/evil.example")).unwrap();
    mark(&cluster.path().join("node-5"), "mail-2");
    let config = fs::read_to_string(cluster.path().join("agent-1.toml")).unwrap();
    let config = config.replace("node = \"mail-1\"", "node = \"mail-2\"").replace("node-1", "node-5");
    let file = cluster.path().join("agent-5.toml");
    fs::write(&file, config.replace("127.0.0.11", "127.0.0.15").replace("mail-1", "mail-5")).unwrap();
    let _claimant = start_agent_with(&file);
    drop(server);
    let server = NameServer::start(dns, agents, &[11, 12, 14, 15]);
    cluster.frontend.wait_for_log("which its certificate does not bear out");
    assert!(!text(&cluster.operate(&["map"])).contains("evil.example"));

    // A front end that starts while a node is missing does not take the others for all.
    drop(server);
    let _server = NameServer::start(dns, agents, &[11, 12]);
    cluster.restart_frontend(|config| config);
    let mut session = Control::login(cluster.frontend.address, "admin");
    let (code, said) = session.ask("CWD /domains/none.example");
    assert!(code == 450 && said.contains("nly 2 of at least 3 nodes were found"), "{code} {said}");
    assert_eq!(session.fetch("NLST /domains"), (450, Vec::new()));
}

#[test]
fn nodes_are_found_by_services() {
    let (dns, agents) = (free_port(), free_port());
    let _server = NameServer::start(dns, agents, &[11, 12, 13]);
    let cluster = start("services = \"_portolan._tcp.test\"", dns, agents);
    whole(&cluster);
    // A node that is written down is one of them, with what is said of it.
    cluster.edit_config(|config| config + "[[nodes]]\nname = \"mail-2\"\n[[nodes]]\nname = \"mail-4\"\n");
    cluster.reload();
    let shown = status(&cluster);
    assert!(
        shown.contains("mail-4 away discovery has not found it") || shown.contains("mail-4 unheard"),
        "{shown}"
    );
    let mut session = Control::login(cluster.frontend.address, "admin");
    assert_eq!(session.fetch("NLST /domains"), (450, Vec::new()));
    cluster.edit_config(|config| config.replace("[[nodes]]\nname = \"mail-4\"\n", ""));
    let changes = cluster.reload();
    assert!(changes.contains("the nodes are changed"), "{changes}");
    assert_eq!(session.fetch("NLST /domains").0, 226);
    whole(&cluster);

    // What a backup has of the routing is taken as it is. Addresses that were found are not part of it: they change.
    let mut generated = |name: &str| {
        let (code, content) = session.fetch(&format!("RETR /cluster/{name}"));
        assert_eq!(code, 226);
        String::from_utf8(content).unwrap()
    };
    let (nodes, map) = (generated("nodes.cfg"), generated("domain-map.cfg"));
    assert!(nodes.contains("# Discovery has found it at 127.0.0.1"), "{nodes}");
    assert!(!nodes.contains("address ="), "{nodes}");
    fs::write(cluster.path().join("domain-map.cfg"), map).unwrap();
    cluster.edit_config(|config| {
        let config = config.replace("[[nodes]]\nname = \"mail-2\"\n", "");
        let file = "[map]\nfile = \"domain-map.cfg\"\nsources = [\"static\", \"announced\"]\n";
        config.replace("[map]\n", file) + &nodes
    });
    let changes = cluster.reload();
    assert!(changes.contains("the map is changed"), "{changes}");
    let explained = text(&cluster.operate(&["map"]));
    assert!(explained.contains("static"), "{explained}");
    whole(&cluster);
}
