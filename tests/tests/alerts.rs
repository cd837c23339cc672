//! Each alert fires in a real Prometheus when that which it speaks of really happens, and none fires before.
//!
//! The rules are those that are shipped, with their waits cut short.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, succeed};
use portolan_tests::disk::MemoryDisk;
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, DEADLINE, eventually, free_port, http, program};
use serde_json::Value;

/// An alert that fires: its name, and its instance and node where it has them.
type Firing = BTreeSet<(String, String)>;

/// Prometheus with the shipped rules. Killed when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(folder: &Path, targets: &[SocketAddr]) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring/portolan.rules.yml");
        let rules: Vec<String> = fs::read_to_string(shipped).unwrap().lines().map(sooner).collect();
        fs::write(folder.join("rules.yml"), rules.join("\n")).unwrap();
        let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\nscrape_configs:\n\
             - job_name: portolan\n  static_configs: [{{ targets: [{}] }}]\n",
            targets.join(", ")
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Self { child, address };
        eventually("Prometheus is ready", || {
            std::net::TcpStream::connect(address).ok()?;
            (http::get(address, "/-/ready").0 == 200).then_some(())
        });
        prometheus
    }

    fn ask(&self, path: &str, query: &[&str]) -> Value {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--get"]).arg(format!("http://{}{path}", self.address)).args(query);
        serde_json::from_str(&succeed(&mut curl)).unwrap()
    }

    fn firing(&self) -> Firing {
        let answer = self.ask("/api/v1/alerts", &[]);
        let alerts = answer["data"]["alerts"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        firing
            .map(|alert| {
                let labels = &alert["labels"];
                let of = ["node", "directory", "limit", "target", "file"].map(|label| text(&labels[label]));
                (text(&labels["alertname"]), of.concat())
            })
            .collect()
    }

    /// Waits until an alert fires, for something whose name holds `of`.
    fn fires(&self, alert: &str, of: &str) {
        let begun = Instant::now();
        while !self.firing().iter().any(|(name, what)| name == alert && what.contains(of)) {
            assert!(begun.elapsed() < 2 * DEADLINE, "{alert} does not fire for {of:?}: {:?}", self.firing());
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("{alert} {of}: {:?}", begun.elapsed());
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A line of the rules with a wait of a second or two in place of minutes. What is counted, and over what time, stays.
fn sooner(line: &str) -> String {
    match line.split_once("for: ") {
        Some((before, _)) => format!("{before}for: 2s"),
        None => line
            .replace("> 1800", "> 1")
            .replace("[26h]", "[30s]")
            .replace("[1h] offset 25h", "[10s] offset 20s")
            .replace(
                "increase(portolan_telemetry_delivered_total[15m])",
                "increase(portolan_telemetry_delivered_total[5s])",
            ),
    }
}

fn listener_certificate(folder: &Path, name: &str, days: u32) {
    let mut init = Command::new(program("portolan"));
    init.args(["pki", "init"]).arg(folder.join(name)).args(["--frontend=front-1", "--alias=127.0.0.1"]);
    succeed(init.arg(format!("--days={days}")));
}

#[test]
fn each_alert_fires_when_what_it_speaks_of_happens_and_none_before() {
    let mut disk = None;
    let mut cluster = Cluster::start(|folder| {
        disk = Some(MemoryDisk::mount(folder.join("node-2"), "4m"));
        tree::fill(folder);
    });
    for number in 1..=2 {
        cluster.restart_agent_with(number, http::TABLE);
    }
    // One for which a mode is a wall.
    let mut walled = Command::new("setpriv");
    walled.arg("--bounding-set=-dac_override,-dac_read_search").arg(program("portolan-agent"));
    cluster.restart_agent_by(3, walled, |config| config + http::TABLE);
    let nobody = free_port();
    cluster.restart_frontend(|config| {
        config.replace("passive_ports", "limits = { simultaneous = 8 }\npassive_ports")
            + "[ftp.bans]\naddress_failures = 3\n"
            + http::TABLE
    });
    let agents = (1..=3).map(|number| cluster.agent(number));
    let targets: Vec<_> = agents.chain([&cluster.frontend]).map(http::address).collect();
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(folder.path(), &targets);
    let ups = ["--data-urlencode", "query=count(up == 1) and count(portolan_node_up == 1) == 3"];
    eventually("all are scraped", || {
        (prometheus.ask("/api/v1/query", &ups)["data"]["result"][0]["value"][1] == "4").then_some(())
    });
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(prometheus.firing(), Firing::new());

    // A disk that is full.
    let before = control.ask("SIZE /domains/two.example/domainRegistry.bin");
    assert_eq!(control.store("/domains/two.example/big", &tree::noise(8 << 20)), 452);
    assert_eq!(control.ask("SIZE /domains/two.example/domainRegistry.bin"), before);
    prometheus.fires("PortolanNodeFails", "mail-2");
    prometheus.fires("PortolanTransfersFail", "");
    // As much as there is room for.
    fs::write(cluster.path().join("node-2/filler"), tree::noise(4 << 20)).unwrap_err();
    prometheus.fires("PortolanStoreFull", "");

    // What no backup sees, and what it cannot read.
    put(&cluster.domains(1).join("one.example/users/twice/Registry.bin"), b"one");
    put(&cluster.domains(3).join("one.example/users/twice/Registry.bin"), b"another");
    let unreadable = cluster.domains(3).join("spread.example");
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000)).unwrap();
    prometheus.fires("PortolanDomainUnreadable", "");
    prometheus.fires("PortolanMapConflicts", "");
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o755)).unwrap();

    // What no backup fetches.
    std::os::unix::fs::symlink("elsewhere", cluster.domains(1).join("one.example/link")).unwrap();
    assert_eq!(control.fetch("MLSD /domains/one.example").0, 226);
    prometheus.fires("PortolanSpecialEntries", "");

    // A client that breaks off.
    put(&cluster.domains(1).join("one.example/long"), &tree::noise(64 << 20));
    let data = control.passive();
    control.send(b"RETR /domains/one.example/long\r\n").unwrap();
    assert_eq!(control.reply().0, 150);
    drop(data);
    assert_eq!(control.reply().0, 426);
    prometheus.fires("PortolanTransfersAborted", "");

    // Somebody who guesses.
    for _ in 0..80 {
        let Ok(stream) = connect_from([127, 0, 0, 9].into(), cluster.frontend.address) else { continue };
        let mut guess = Control::over(stream);
        if guess.reply().0 == 220 {
            guess.ask("USER admin");
            guess.ask("PASS wrong-wrong");
        }
    }
    prometheus.fires("PortolanLoginsRefused", "");

    let held: Vec<_> = (0..7).map(|_| Control::connect(cluster.frontend.address)).collect();
    prometheus.fires("PortolanLimitNear", "simultaneous");
    drop(held);

    cluster.edit_config(|config| config + "nonsense = 1\n");
    assert_eq!(cluster.operate(&["reload"]).status.code(), Some(1));
    prometheus.fires("PortolanReloadRefused", "");
    cluster.edit_config(|config| config.replace("nonsense = 1\n", ""));

    // A directory that is away, and its map; a collector that is away; a certificate that ends; a log that is stuck.
    listener_certificate(cluster.path(), "short", 10);
    listener_certificate(cluster.path(), "shorter", 2);
    let stuck = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let syslog = stuck.local_addr().unwrap();
    cluster.edit_config(|config| {
        config.replacen("pki/front-1", "short/front-1", 2)
            + &format!(
                "[[directories]]\nname = \"corp\"\nkind = \"openldap\"\nuris = [\"ldap://127.0.0.1:{nobody}\"]\n\
                 base = \"dc=example\"\nfilter = \"(uid={{user}})\"\n\
                 [[grants]]\nuser = \"x\"\nrights = [\"backup\"]\ndomains = [\"*\"]\n\
                 [map.ldap]\ndirectory = \"corp\"\ndomain_base = \"dc=example\"\nuser_base = \"dc=example\"\n\
                 [[log.targets]]\nkind = \"stderr\"\n\
                 [[log.targets]]\nkind = \"syslog\"\naddress = \"tcp://{syslog}\"\nlevel = \"trace\"\n\
                 [[log.targets]]\nkind = \"otlp\"\nendpoint = \"http://127.0.0.1:{nobody}\"\n"
            )
    });
    cluster.reload();
    prometheus.fires("PortolanCertificateEnds", "short/front-1.pem");
    cluster.edit_config(|config| config.replace("short/", "shorter/"));
    cluster.reload();
    prometheus.fires("PortolanCertificateEndsSoon", "shorter/front-1.pem");
    let mut stranger = Control::connect(cluster.frontend.address);
    stranger.ask("USER x");
    assert_eq!(stranger.ask("PASS whatever").0, 431);
    prometheus.fires("PortolanLoginsUndecided", "");
    prometheus.fires("PortolanDirectoryAway", "corp");
    prometheus.fires("PortolanDirectoryServerAway", "corp");
    prometheus.fires("PortolanMapStale", "");
    prometheus.fires("PortolanTelemetryFails", "otlp");
    eventually("the log target that is stuck loses lines", || {
        for _ in 0..50 {
            control.send("NOOP\r\n".repeat(40).as_bytes()).unwrap();
            (0..40).for_each(|_| assert_eq!(control.reply().0, 200));
        }
        prometheus.firing().iter().any(|(name, _)| name == "PortolanTelemetryDropped").then_some(())
    });

    // Nobody has fetched anything for a while; a domain that is gone from its node; a store without its mark.
    prometheus.fires("PortolanNoBackup", "");
    fs::rename(cluster.domains(2).join("two.example"), cluster.path().join("node-2/gone")).unwrap();
    prometheus.fires("PortolanNodeInDoubt", "mail-2");
    fs::rename(cluster.path().join("node-2/.portolan/mark"), cluster.path().join("node-2/mark")).unwrap();
    prometheus.fires("PortolanStoreNotMarked", "");

    // A store that cannot be read, then nodes that are not there, one and all; then nobody.
    let domains = cluster.domains(3);
    fs::rename(&domains, domains.with_file_name("elsewhere")).unwrap();
    fs::write(&domains, "no folder").unwrap();
    prometheus.fires("PortolanHoldingsFailing", "");
    cluster.kill_agent(1);
    prometheus.fires("PortolanNodeAway", "mail-1");
    prometheus.fires("PortolanDown", "");
    cluster.kill_agent(2);
    cluster.kill_agent(3);
    prometheus.fires("PortolanNotReady", "");
    cluster.frontend.signal(rustix::process::Signal::KILL);
    prometheus.fires("PortolanNoFrontend", "");
}
