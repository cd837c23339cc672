//! Manifests, configurations and units as they are shipped.
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use portolan_tests::client::{succeed, text};
use portolan_tests::{Cluster, program, tree};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Python with the packages that `tests/run` has fetched.
fn python(script: &str) -> Command {
    let packages = program("portolan").ancestors().nth(2).unwrap().join("python");
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages).arg(root().join("k8s").join(script));
    command
}

#[test]
fn manifests_fit_the_schemas_of_kubernetes_and_what_every_pod_must_keep() {
    succeed(python("check.py").arg(root().join("k8s/rendered")));
}

#[test]
fn manifests_that_do_not_fit_together_are_found() {
    // An overlay, one of its objects, what is changed in it, and what is said of that.
    let changes = [
        (
            "lb-per-pod",
            "ConfigMap portolan-agent",
            "0.0.0.0:9122",
            "0.0.0.0:9123",
            "does not ask for /healthz",
        ),
        ("lb-per-pod", "ConfigMap portolan-agent", "0.0.0.0:7171", "0.0.0.0:7172", "they listen at 7172"),
        ("lb-per-pod", "ConfigMap portolan-frontend", "0.0.0.0:2121", "0.0.0.0:2122", "frontend serves"),
        ("lb-per-pod", "ConfigMap portolan-frontend", "29000-29007", "29000-29008", "frontend serves"),
        (
            "lb-per-pod",
            "NetworkPolicy portolan-frontend",
            "- port: 7171",
            "- port: 7170",
            "reach portolan-agent at port",
        ),
        (
            "lb-per-pod",
            "NetworkPolicy portolan-frontend",
            "endPort: 29007",
            "endPort: 29006",
            "at port 29007",
        ),
        ("lb-per-pod", "NetworkPolicy portolan-frontend", "- port: 53\n", "- port: 54\n", "reach dns"),
        (
            "lb-per-pod",
            "NetworkPolicy portolan-agent",
            "component: frontend",
            "component: other",
            "reach portolan-agent",
        ),
        (
            "lb-per-pod",
            "PodDisruptionBudget portolan-agent",
            "component: agent",
            "component: none",
            "is for no pod",
        ),
        ("lb-per-pod", "PodMonitor portolan-agent", "port: agent-http", "port: metrics", "shows its metrics"),
        (
            "lb-per-pod",
            "Certificate portolan-frontend",
            "portolan-frontend-tls",
            "other",
            "nobody makes the Secret",
        ),
        (
            "lb-per-pod",
            "Certificate portolan-ftp",
            "portolan-frontend-1.",
            "portolan-frontend-2.",
            "does not name",
        ),
        (
            "lb-per-pod",
            "StatefulSet portolan-frontend",
            "path: /readyz",
            "path: /ready",
            "does not ask for /readyz",
        ),
        ("lb-per-pod", "StatefulSet portolan-frontend", "replicas: 2", "replicas: 1", "there is no pod"),
        ("lb-per-pod", "StatefulSet portolan-agent", "Seconds: 330", "Seconds: 30", "but gets less"),
        ("lb-per-pod", "StatefulSet portolan-agent", "  replicas: 3", "  replicas: 4", "nodes_min is not 4"),
        (
            "lb-per-pod",
            "Service portolan-agents",
            "clusterIP: None",
            "type: ClusterIP",
            "no headless Service",
        ),
        (
            "host-network",
            "NetworkPolicy portolan-agent",
            "- ipBlock:\n        cidr: 192.0.2.0/24",
            "- podSelector: {}",
            "reach",
        ),
        (
            "proxy-protocol",
            "NetworkPolicy portolan-haproxy",
            "endPort: 29007",
            "endPort: 29006",
            "at port 29007",
        ),
        (
            "proxy-protocol",
            "NetworkPolicy portolan-frontend",
            "component: haproxy",
            "component: x",
            "at port 2121",
        ),
        (
            "daemonset",
            "StatefulSet portolan-frontend",
            "  selector:",
            "  replicas: 2\n  selector:",
            "beside an autoscaler",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (number, (overlay, object, from, to, _)) in changes.iter().enumerate() {
        let (kind, name) = object.split_once(' ').unwrap();
        let text = fs::read_to_string(root().join(format!("k8s/rendered/{overlay}.yaml"))).unwrap();
        let mut changed = 0;
        let objects: Vec<String> = text
            .split("\n---\n")
            .map(|text| {
                let is_it = text.contains(&format!("\nkind: {kind}\n"))
                    || text.starts_with(&format!("kind: {kind}\n"));
                let named = text.lines().any(|line| {
                    let rest = line.strip_prefix("  name: ").and_then(|found| found.strip_prefix(name));
                    // ConfigMaps have a hash behind their name.
                    rest.is_some_and(|rest| rest.is_empty() || (kind == "ConfigMap" && rest.len() == 11))
                });
                if !is_it || !named || !text.contains(from) {
                    return text.to_owned();
                }
                changed += 1;
                text.replacen(from, to, 1)
            })
            .collect();
        assert_eq!(changed, 1, "{overlay} {object}: {from}");
        fs::write(folder.path().join(format!("{number}-{overlay}.yaml")), objects.join("\n---\n")).unwrap();
    }
    let told = text(&python("check.py").arg(folder.path()).output().unwrap());
    for (number, (overlay, object, from, to, expected)) in changes.iter().enumerate() {
        let start = format!("{number}-{overlay}: ");
        let said: Vec<&str> = told.lines().filter(|line| line.starts_with(&start)).collect();
        let is_said = |words: &str| said.iter().any(|line| line.contains(words));
        assert!(is_said(expected), "{object}: {from} -> {to}: {said:#?}");
    }
}

#[test]
fn the_rendered_manifests_are_those_of_the_overlays() {
    // There is no package of a kubectl that is new enough.
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        eprintln!("kubectl is not here: what was rendered last is checked by the other test");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    succeed(python("render.py").arg(folder.path()));
    let read = |folder: &Path| {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let named =
            |path: PathBuf| (path.file_name().unwrap().to_owned(), fs::read_to_string(&path).unwrap());
        files.into_iter().map(named).collect::<Vec<_>>()
    };
    let (rendered, kept) = (read(folder.path()), read(&root().join("k8s/rendered")));
    assert!(rendered.len() >= 6);
    assert!(rendered == kept, "k8s/rendered is old: k8s/render.py k8s/rendered");
}

#[test]
fn the_rules_of_the_operator_are_those_that_are_tested() {
    let read = |name: &str| fs::read_to_string(root().join("monitoring").join(name)).unwrap();
    let rules = read("portolan.rules.yml");
    let groups = &rules[rules.find("groups:").unwrap()..];
    let indented: String = groups
        .lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") })
        .collect();
    assert!(read("prometheusrule.yaml").ends_with(&indented));
}

/// A configuration of the manifests, with its files in a folder.
fn checked(name: &str, variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for name in ["tls", "cluster", "admins", "store", "run"] {
        fs::create_dir(path.join(name)).unwrap();
    }
    succeed(Command::new(program("portolan")).args(["pki", "init", "--frontend=f"]).arg(path.join("pki")));
    for folder in ["tls", "cluster"] {
        for (from, to) in [("f.pem", "tls.crt"), ("f-key.pem", "tls.key"), ("ca.pem", "ca.crt")] {
            fs::copy(path.join("pki").join(from), path.join(folder).join(to)).unwrap();
        }
    }
    fs::write(path.join("admins/admins"), "").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path.join("admins/admins"), fs::Permissions::from_mode(0o440)).unwrap();
    let shipped = fs::read_to_string(root().join("k8s").join(name)).unwrap();
    let here = path.display().to_string();
    let moved = shipped.replace("/etc/portolan", &here).replace("/srv/mail", &format!("{here}/store"));
    let file = path.join("config.toml");
    fs::write(&file, moved).unwrap();
    let mut check = Command::new(program("portolan"));
    let output = check.arg("check").arg(&file).envs(variables.iter().copied()).output().unwrap();
    text(&output)
}

#[test]
fn the_configurations_of_the_manifests_have_no_fault() {
    for file in ["base/frontend.toml", "overlays/proxy-protocol/frontend.toml"] {
        for passive_address in ["192.0.2.1", "ftp.example.org", ""] {
            let told = checked(file, &[("PASSIVE_ADDRESS", passive_address), ("HTTP_HOST", "0.0.0.0")]);
            assert!(told.contains("no faults"), "{file}: {told}");
        }
    }
    let told = checked("base/agent.toml", &[("NODE_NAME", "portolan-agent-0")]);
    assert!(told.contains("no faults"), "{told}");
    assert!(checked("base/agent.toml", &[]).contains("NODE_NAME is not set in the environment"));
}

#[test]
fn the_samples_of_the_package_and_the_balancers_configuration_have_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let init = ["pki", "init", "--node=mail-1", "--node-alias=mail-2", "--frontend=front-1"];
    succeed(Command::new(program("portolan")).args(init).arg(path));
    fs::write(path.join("admins"), "").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path.join("admins"), fs::Permissions::from_mode(0o640)).unwrap();
    for name in ["frontend.toml", "agent.toml"] {
        let sample = fs::read_to_string(root().join(format!("packaging/etc/{name}.sample"))).unwrap();
        fs::write(path.join(name), sample.replace("/srv/mail", &path.to_string_lossy())).unwrap();
        let told = succeed(Command::new(program("portolan")).arg("check").arg(path.join(name)));
        assert!(told.contains("no faults"), "{name}: {told}");
    }
    // Agents that share a certificate each find their name in it.
    let shown = ["x509", "-noout", "-ext", "subjectAltName", "-in"];
    let names = succeed(Command::new("openssl").args(shown).arg(path.join("mail-1.pem")));
    assert!(names.contains("DNS:mail-1, DNS:mail-2"), "{names}");
    let mut haproxy = Command::new("haproxy");
    haproxy.env("POD_NAMESPACE", "mail").arg("-c").arg("-f");
    succeed(haproxy.arg(root().join("k8s/overlays/proxy-protocol/haproxy.cfg")));
}

#[test]
fn each_program_has_a_manual_page_and_the_package_is_made_of_files_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    succeed(Command::new(program("portolan")).arg("manual").arg(folder.path()));
    let pages = fs::read_dir(folder.path()).unwrap().count();
    assert!(pages > 10, "{pages}");
    for name in ["portolan-frontend", "portolan-agent"] {
        let page = succeed(Command::new(program(name)).arg("--manual"));
        assert!(page.contains(".TH") && page.contains("config"), "{page}");
    }
    for script in ["postinst", "postrm"] {
        succeed(Command::new("sh").arg("-n").arg(root().join("packaging/debian").join(script)));
    }
    let manifest = fs::read_to_string(root().join("cli/Cargo.toml")).unwrap();
    let (_, package) = manifest.split_once("[package.metadata.deb]").unwrap();
    let sources = package.lines().filter_map(|line| line.trim().strip_prefix("[\"../")?.split('"').next());
    let kept = sources.filter(|source| !source.starts_with("target/") && !source.contains('*'));
    let mut count = 0;
    for source in kept {
        assert!(root().join(source).is_file(), "{source}");
        count += 1;
    }
    assert!(count > 4, "{count}");
}

#[test]
fn an_agent_tells_the_service_manager_that_it_serves_and_that_it_stops() {
    let cluster = Cluster::start(tree::fill);
    let path = cluster.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let config = fs::read_to_string(cluster.path().join("agent-1.toml")).unwrap();
    fs::create_dir_all(cluster.path().join("other/domains")).unwrap();
    let config = config.replace("root = \"node-1\"", "root = \"other\"");
    fs::write(cluster.path().join("other.toml"), config).unwrap();
    let mut agent = Command::new(program("portolan-agent"));
    agent.arg("--config").arg(cluster.path().join("other.toml")).env("NOTIFY_SOCKET", &path);
    let mut agent = agent.stderr(Stdio::null()).spawn().unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(told().contains("READY=1"));
    let id = rustix::process::Pid::from_raw(i32::try_from(agent.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(told().contains("STOPPING=1"));
    assert!(agent.wait().unwrap().success());
}

#[test]
fn units_are_valid_and_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let programs = program("portolan");
    let programs = programs.parent().unwrap().display();
    for (name, exposure_max) in [("portolan-frontend.service", 2.0), ("portolan-agent.service", 2.0)] {
        let unit = root().join("packaging/systemd").join(name);
        let shipped = fs::read_to_string(&unit).unwrap();
        // The programs where they are now; no manual page is installed.
        let here: String = shipped
            .lines()
            .filter(|line| !line.starts_with("Documentation="))
            .map(|line| line.replace("=/usr/bin/", &format!("={programs}/")) + "\n")
            .collect();
        let copy = folder.path().join(name);
        fs::write(&copy, here).unwrap();
        let told = text(&Command::new("systemd-analyze").arg("verify").arg(&copy).output().unwrap());
        assert!(!told.contains(name), "{told}");
        let security =
            Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(&copy).output();
        let told = text(&security.unwrap());
        let overall = told.lines().find(|line| line.contains("Overall exposure level")).unwrap();
        let exposure: f64 = overall.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(exposure <= exposure_max, "{overall}");
    }
}
