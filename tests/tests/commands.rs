//! The programs' own faces: `portolan check`, `passwd`, `pki`, `demo`, help, versions, exit statuses.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use portolan_tests::{mark, prepare, program};

fn run(name: &str, arguments: &[&str]) -> Output {
    Command::new(program(name)).args(arguments).output().expect("the program runs")
}

fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_program_has_help_a_version_and_completions() {
    for name in ["portolan", "portolan-frontend", "portolan-agent"] {
        let help = run(name, &["--help"]);
        assert!(help.status.success());
        assert!(String::from_utf8_lossy(&help.stdout).contains("Usage:"));
        let version = run(name, &["--version"]);
        assert_eq!(
            String::from_utf8_lossy(&version.stdout).trim(),
            format!("{name} {}", env!("CARGO_PKG_VERSION"))
        );
        let completions =
            if name == "portolan" { vec!["completions", "bash"] } else { vec!["--completions", "bash"] };
        assert!(String::from_utf8_lossy(&run(name, &completions).stdout).contains("complete"));
        let wrong = run(name, &["--no-such-thing"]);
        assert_eq!(wrong.status.code(), Some(64), "{}", error_text(&wrong));
    }
}

#[test]
fn faults_of_all_files_are_told_at_once_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let frontend = folder.path().join("frontend.toml");
    let agent = folder.path().join("agent.toml");
    fs::write(
        &frontend,
        "version = 1\nlisteners_ = 1\n[[listeners]]\naddress = \"nowhere\"\ncertificate = \"gone.pem\"\n\
         key = \"pki/front-1-key.pem\"\n[admins]\nfile = \"admins\"\n\
         [[nodes]]\nname = \"mail-1\"\naddress = \"127.0.0.1:1\"\n[[nodes]]\nname = \"mail-1\"\naddress = \"127.0.0.1:2\"\n",
    )
    .unwrap();
    fs::write(&agent, "version = 1\nnode = \"mail-1\"\n[listen]\naddress = \"127.0.0.1:0\"\n").unwrap();
    let (frontend, agent) = (frontend.to_str().unwrap(), agent.to_str().unwrap());
    let checked = run("portolan", &["check", frontend, agent]);
    assert_eq!(checked.status.code(), Some(64));
    let told = error_text(&checked);
    for line in [
        format!("{frontend}:2: listeners_: unknown key; did you mean \"listeners\"?"),
        format!("{frontend}:4: listeners[0].address: \"nowhere\" is not an address"),
        format!("{frontend}:5: listeners[0].certificate: cannot read"),
        format!("{frontend}:13: nodes[1].name: another node has this name"),
        "4 faults in the configuration".to_owned(),
        format!("{agent}: store.root: this key is required"),
    ] {
        assert!(told.contains(&line), "{line} is not in\n{told}");
    }
    // The services refuse the same way.
    for (name, file) in [("portolan-frontend", frontend), ("portolan-agent", agent)] {
        let refused = run(name, &["--config", file]);
        assert_eq!(refused.status.code(), Some(64), "{}", error_text(&refused));
        assert!(error_text(&refused).contains(file));
    }
}

#[test]
fn certificates_are_never_overwritten_and_nodes_can_be_added() {
    let folder = tempfile::tempdir().unwrap();
    let pki = folder.path().join("pki");
    let pki = pki.to_str().unwrap();
    assert!(run("portolan", &["pki", "init", pki, "--node", "mail-1"]).status.success());
    let key = fs::read(folder.path().join("pki/mail-1-key.pem")).unwrap();
    let again = run("portolan", &["pki", "init", pki, "--node", "mail-2", "--node", "mail-1"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(error_text(&again).contains("is not overwritten"));
    assert!(!folder.path().join("pki/mail-2.pem").try_exists().unwrap(), "nothing was half done");
    assert!(run("portolan", &["pki", "init", pki, "--node", "mail-2"]).status.success());
    assert_eq!(fs::read(folder.path().join("pki/mail-1-key.pem")).unwrap(), key);
    let mode = fs::metadata(folder.path().join("pki/mail-2-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(run("portolan", &["pki", "init", pki]).status.code(), Some(64));
    for bad in [
        &["--node", "Bad Name"][..],
        &["--node", "ca"],
        &["--node", "x-key"],
        &["--node", "y", "--frontend", "y"],
    ] {
        let refused = run("portolan", &[&["pki", "init", pki], bad].concat());
        assert_eq!(refused.status.code(), Some(64), "{bad:?}: {}", error_text(&refused));
    }
}

/// A certificate of the folder's authority whose dates lie `from` and `to` days from now, with its key.
fn certify(pki: &Path, name: &str, from: i64, to: i64) {
    let day = |days: i64| {
        let seconds = Duration::from_secs(days.unsigned_abs() * 86_400);
        if days < 0 { SystemTime::now() - seconds } else { SystemTime::now() + seconds }
    };
    let read = |name: &str| fs::read_to_string(pki.join(name)).unwrap();
    let authority = rcgen::KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let authority = rcgen::Issuer::from_ca_cert_pem(&read("ca.pem"), authority).unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = (day(from).into(), day(to).into());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    fs::write(pki.join(format!("{name}.pem")), certificate.pem()).unwrap();
    let key_file = pki.join(format!("{name}-key.pem"));
    fs::write(&key_file, key.serialize_pem()).unwrap();
    fs::set_permissions(key_file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The line of a table that begins with this name.
fn row(output: &Output, name: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    lines
        .find(|words| words.first().is_some_and(|word| word == name))
        .unwrap_or_else(|| panic!("{name}: {text}"))
}

#[test]
fn a_mistyped_key_and_the_other_programs_file_are_recognized() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    fs::create_dir_all(folder.path().join("store/domains")).unwrap();
    let (frontend, agent) = (folder.path().join("frontend.toml"), folder.path().join("agent.toml"));
    let frontend_text = "version = 1\n[[listeners]]\naddress = \"127.0.0.1:0\"\ncertificate = \"pki/front-1.pem\"\n\
         key = \"pki/front-1-key.pem\"\nmax-sessoins = 5\npassive-ports = \"10000-10009\"\n[admins]\nfile = \"admins\"\n\
         [[nodes]]\nname = \"mail-1\"\naddress = \"127.0.0.1:1\"\n";
    fs::write(&frontend, frontend_text).unwrap();
    let agent_text = "version = 1\nnode = \"mail-1\"\nlisten.address = \"127.0.0.1:0\"\n[store]\nroot = \"store\"\nlink = \"show\"\n";
    fs::write(&agent, agent_text).unwrap();
    let (frontend, agent) = (frontend.to_str().unwrap(), agent.to_str().unwrap());
    let checked = run("portolan", &["check", frontend, agent]);
    let told = error_text(&checked);
    assert_eq!(checked.status.code(), Some(64), "{told}");
    for line in [
        // Nothing is near: no guess.
        format!("{frontend}:6: listeners[0].max-sessoins: unknown key; docs/configuration.md lists the keys"),
        format!("{frontend}:7: listeners[0].passive-ports: unknown key; did you mean \"passive_ports\"?"),
        format!("{agent}:6: store.link: unknown key; did you mean \"links\"?"),
    ] {
        assert!(told.contains(&line), "{line} is not in\n{told}");
    }
    // One sentence, not a fault for each key.
    for (name, file, sentence) in [
        ("portolan-frontend", agent, "2: node: this is an agent's configuration, which portolan-agent reads"),
        (
            "portolan-agent",
            frontend,
            "2: listeners: this is a front end's configuration, which portolan-frontend reads",
        ),
    ] {
        let refused = run(name, &["--config", file]);
        let told = error_text(&refused);
        assert_eq!(refused.status.code(), Some(64), "{told}");
        assert!(told.contains(&format!("{file}:{sentence}")), "{told}");
        assert!(told.contains("1 fault in the configuration"), "{told}");
    }
}

#[test]
fn the_list_of_certificates_shows_dates_keys_and_who_signed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let pki = path.to_str().unwrap();
    let init = ["pki", "init", pki, "--node=mail-1", "--node=mail-2", "--frontend=front-1"];
    assert!(
        run("portolan", &[&init[..], &["--alias=192.0.2.1", "--alias=ftp.example"]].concat())
            .status
            .success()
    );
    let listed = run("portolan", &["pki", "list", pki]);
    assert_eq!((listed.status.code(), error_text(&listed)), (Some(0), String::new()));
    let file = |name: &str| path.join(name).display().to_string();
    let front = row(&listed, "front-1");
    assert_eq!(front[1..3], ["frontend", "front-1,192.0.2.1,ftp.example"]);
    assert_eq!(front[5..], ["824".to_owned(), file("front-1.pem"), "fits".to_owned(), "yes".to_owned()]);
    assert_eq!(row(&listed, "mail-1")[1..3], ["node", "mail-1"]);
    assert_eq!(row(&listed, "ca")[1], "authority");

    // A month is soon, and no failure.
    certify(&path, "mail-1", -1, 12);
    fs::remove_file(path.join("mail-2-key.pem")).unwrap();
    let listed = run("portolan", &["pki", "list", pki]);
    assert_eq!(listed.status.code(), Some(0), "{}", error_text(&listed));
    assert!(error_text(&listed).contains(&format!("{} expires on ", file("mail-1.pem"))));
    assert!(error_text(&listed).contains(&format!("in 11 days; renew it: portolan pki renew {pki} mail-1")));
    assert_eq!(row(&listed, "mail-2")[7], "missing");

    // All that is wrong at once.
    certify(&path, "mail-2", -20, -10);
    fs::copy(path.join("mail-1-key.pem"), path.join("front-1-key.pem")).unwrap();
    let foreign = folder.path().join("foreign");
    assert!(run("portolan", &["pki", "init", foreign.to_str().unwrap(), "--node=mail-9"]).status.success());
    fs::copy(foreign.join("mail-9.pem"), path.join("mail-9.pem")).unwrap();
    fs::write(path.join("notes.pem"), "no certificate\n").unwrap();
    let listed = run("portolan", &["pki", "list", pki]);
    assert_eq!(listed.status.code(), Some(1));
    for line in [
        format!("{} expired on ", file("mail-2.pem")),
        format!("{} does not belong to {}", file("front-1-key.pem"), file("front-1.pem")),
        format!("{} was not signed by ca.pem", file("mail-9.pem")),
        format!("{} holds no certificate", file("notes.pem")),
    ] {
        assert!(error_text(&listed).contains(&line), "{line} is not in\n{}", error_text(&listed));
    }
    assert_eq!(row(&listed, "front-1")[7], "WRONG");
    assert_eq!(row(&listed, "mail-9")[8], "NO");
    assert_eq!(run("portolan", &["pki", "list", folder.path().to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn a_renewed_certificate_has_the_old_names_a_new_key_and_the_old_pair_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let pki = path.to_str().unwrap();
    let init = ["pki", "init", pki, "--node=mail-1", "--node=mail-2", "--frontend=front-1"];
    let aliases = ["--alias=192.0.2.1", "--alias=ftp.example", "--node-alias=mail-3", "--days=20"];
    assert!(run("portolan", &[&init[..], &aliases].concat()).status.success());
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    let all = [
        "ca.pem",
        "ca-key.pem",
        "mail-1.pem",
        "mail-1-key.pem",
        "mail-2.pem",
        "front-1.pem",
        "front-1-key.pem",
    ];
    let before = all.map(read);
    let shown = run("portolan", &["pki", "list", pki]);
    fs::set_permissions(path.join("mail-1-key.pem"), fs::Permissions::from_mode(0o640)).unwrap();

    // One name that cannot be renewed: none is.
    let refused = run("portolan", &["pki", "renew", pki, "mail-1", "mail-7"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error_text(&refused).contains("cannot read"), "{}", error_text(&refused));
    assert_eq!(all.map(read), before);
    for bad in [&[] as &[&str], &["ca"], &["mail-1", "--all"], &["mail-1", "--days=0"], &["../x"]] {
        let refused = run("portolan", &[&["pki", "renew", pki], bad].concat());
        assert_eq!(refused.status.code(), Some(64), "{bad:?}: {}", error_text(&refused));
    }

    let renewed = run("portolan", &["pki", "renew", pki, "mail-1", "front-1", "--days", "100"]);
    assert!(renewed.status.success(), "{}", error_text(&renewed));
    assert_eq!(error_text(&renewed), "");
    let (old, now) = (before, all.map(read));
    for (index, name) in all.iter().enumerate() {
        let is_renewed = name.starts_with("mail-1") || name.starts_with("front-1");
        assert_eq!(now[index] != old[index], is_renewed, "{name}");
        if is_renewed {
            assert_eq!(read(&format!("{name}.old")), old[index], "{name}");
        }
    }
    let listed = run("portolan", &["pki", "list", pki]);
    for (name, days) in [("mail-1", "99"), ("front-1", "99"), ("mail-2", "19")] {
        let (was, is) = (row(&shown, name), row(&listed, name));
        assert_eq!(is[1..3], was[1..3], "role and names of {name}");
        assert_eq!([&*is[5], &*is[7], &*is[8]], [days, "fits", "yes"], "{name}");
    }
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("mail-1-key.pem"), mode("front-1-key.pem"), mode("mail-1.pem")), (0o640, 0o600, 0o644));
    assert!(
        fs::read_dir(&path).unwrap().all(|entry| !entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with('.'))
    );

    // All: what another authority signed is left alone.
    let foreign = folder.path().join("foreign");
    assert!(run("portolan", &["pki", "init", foreign.to_str().unwrap(), "--node=mail-9"]).status.success());
    fs::copy(foreign.join("mail-9.pem"), path.join("mail-9.pem")).unwrap();
    let renewed = run("portolan", &["pki", "renew", pki, "--all"]);
    assert!(renewed.status.success(), "{}", error_text(&renewed));
    assert!(error_text(&renewed).contains("mail-9.pem was not signed by this folder's authority"));
    assert_eq!(read("mail-9.pem"), fs::read(foreign.join("mail-9.pem")).unwrap());
    assert_ne!(read("mail-2.pem"), old[4]);
    // The key of another authority would make certificates that nobody accepts.
    fs::copy(foreign.join("ca-key.pem"), path.join("ca-key.pem")).unwrap();
    let refused = run("portolan", &["pki", "renew", pki, "--all"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        error_text(&refused).contains("ca-key.pem does not belong to ca.pem"),
        "{}",
        error_text(&refused)
    );
}

#[test]
fn a_check_warns_of_certificates_that_will_fail() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let pki = folder.path().join("pki");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir_all(folder.path().join("store/domains")).unwrap();
    mark(&folder.path().join("store"), "mail-1");
    fs::write(
        folder.path().join("agent.toml"),
        "version = 1\nnode = \"mail-1\"\n[listen]\naddress = \"127.0.0.1:0\"\ncertificate = \"pki/mail-1.pem\"\n\
         key = \"pki/mail-1-key.pem\"\nclient_ca = \"pki/ca.pem\"\n[store]\nroot = \"store\"\n",
    )
    .unwrap();
    fs::write(
        folder.path().join("frontend.toml"),
        "version = 1\n[[listeners]]\naddress = \"127.0.0.1:0\"\ncertificate = \"pki/mail-2.pem\"\n\
         key = \"pki/mail-2-key.pem\"\npassive_ports = \"10000-10009\"\n[admins]\nfile = \"admins\"\n\
         [cluster]\nca = \"pki/ca.pem\"\ncertificate = \"pki/front-1.pem\"\nkey = \"pki/front-1-key.pem\"\n\
         [[nodes]]\nname = \"mail-1\"\naddress = \"127.0.0.1:1\"\n",
    )
    .unwrap();
    let (agent, frontend) = (path("agent.toml"), path("frontend.toml"));
    let check = || run("portolan", &["check", &agent, &frontend]);
    let checked = check();
    assert_eq!((checked.status.code(), error_text(&checked)), (Some(0), String::new()));

    // Swapped: each has what the other's is for.
    let swapped = |file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(file).unwrap();
        fs::write(file, text.replace(&format!("pki/{from}"), &format!("pki/{to}"))).unwrap();
    };
    swapped(&agent, "mail-1", "mail-2");
    swapped(&frontend, "front-1", "mail-1");
    let checked = check();
    let told = error_text(&checked);
    assert_eq!(checked.status.code(), Some(0), "{told}");
    assert!(
        told.contains("(mail-2) does not name node mail-1, so front ends refuse it; it names: mail-2"),
        "{told}"
    );
    assert!(
        told.contains("(mail-1) is for a server alone") && told.contains(":11: cluster.certificate: "),
        "{told}"
    );
    swapped(&agent, "mail-2", "front-1");
    assert!(error_text(&check()).contains("(front-1) does not name node mail-1"), "{}", error_text(&check()));
    swapped(&agent, "front-1", "mail-1");
    swapped(&frontend, "mail-1", "front-1");

    // It starts with these, so they are no faults.
    certify(&pki, "mail-1", -10, -2);
    certify(&pki, "mail-2", -1, 20);
    let foreign = folder.path().join("foreign");
    let made = ["pki", "init", foreign.to_str().unwrap(), "--frontend=front-1"];
    assert!(run("portolan", &made).status.success());
    for name in ["front-1.pem", "front-1-key.pem"] {
        fs::copy(foreign.join(name), pki.join(name)).unwrap();
    }
    let checked = check();
    let told = error_text(&checked);
    assert_eq!(checked.status.code(), Some(0), "{told}");
    for line in [
        format!("warning: {agent}:5: listen.certificate: {}", path("pki/mail-1.pem")),
        " expired on 20".to_owned(),
        format!("warning: {frontend}:4: listeners[0].certificate: {}", path("pki/mail-2.pem")),
        ", in 19 days; renew it (`portolan pki renew`".to_owned(),
        format!(
            "warning: {frontend}:11: cluster.certificate: {} (front-1) was not signed by",
            path("pki/front-1.pem")
        ),
    ] {
        assert!(told.contains(&line), "{line} is not in\n{told}");
    }
    let summary = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        summary.contains("no faults, 1 warning\n") && summary.contains("no faults, 2 warnings\n"),
        "{summary}"
    );

    // A key of another certificate is a fault, as ever; warnings are shown beside it.
    fs::copy(pki.join("mail-3-key.pem"), pki.join("mail-2-key.pem")).unwrap();
    let checked = check();
    let told = error_text(&checked);
    assert_eq!(checked.status.code(), Some(64), "{told}");
    let line = format!(
        "{frontend}:5: listeners[0].key: {} does not belong to the certificate in {}",
        path("pki/mail-2-key.pem"),
        path("pki/mail-2.pem")
    );
    assert!(told.contains(&line) && told.contains("(front-1) was not signed by"), "{line} is not in\n{told}");
}

#[test]
fn a_check_says_what_a_store_must_hold() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent.toml");
    let text =
        "version = 1\nnode = \"mail-1\"\n[listen]\naddress = \"127.0.0.1:0\"\n[store]\nroot = \"store\"\n";
    fs::write(&agent, text).unwrap();
    let (store, elsewhere) = (folder.path().join("store"), folder.path().join("elsewhere"));
    let check = |status: i32, line: &str| {
        let checked = run("portolan", &["check", agent.to_str().unwrap()]);
        let told = error_text(&checked);
        assert_eq!(checked.status.code(), Some(status), "{told}");
        assert!(told.contains(line) && told.contains(":6: store.root: "), "{line} is not in\n{told}");
    };
    check(64, "store is not a folder: nothing is there; expected: a folder that holds domains/<domain>/...");
    fs::create_dir(&store).unwrap();
    check(0, "store/domains is missing, so this node holds no domains; expected: domains/<domain>/...");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, store.join("domains")).unwrap();
    check(64, "store/domains is a link, and the agent follows none there");
    fs::remove_file(store.join("domains")).unwrap();
    fs::write(store.join("domains"), "").unwrap();
    check(64, "store/domains is not a folder");
    // A mount at `domains`, in a mount namespace of its own, which ends with the command.
    fs::remove_file(store.join("domains")).unwrap();
    fs::create_dir(store.join("domains")).unwrap();
    let mounted = |then: &str| {
        let script = format!("mount -t tmpfs none \"$1\" && {then}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(store.join("domains"));
        command.arg(program("portolan")).arg(&agent).output().unwrap()
    };
    if !mounted("true").status.success() {
        eprintln!("left out: this user may not mount");
        return;
    }
    let checked = mounted("exec \"$2\" check \"$3\"");
    let told = error_text(&checked);
    assert_eq!(checked.status.code(), Some(0), "{told}");
    assert!(told.contains("store/domains lies on another file system than store.root"), "{told}");
}

#[test]
fn a_running_cluster_takes_renewed_certificates() {
    let cluster = portolan_tests::Cluster::start(|_| {});
    let pki = cluster.path().join("pki");
    let renewed = run("portolan", &["pki", "renew", pki.to_str().unwrap(), "--all"]);
    assert!(renewed.status.success(), "{}", error_text(&renewed));
    cluster.frontend.wait_for_log("the certificates of the cluster are renewed");
    for number in 1..=3 {
        cluster.agent(number).wait_for_log("the certificates are renewed");
    }
    // The new ones fit each other: a front end that starts meets agents only by them.
    let mut cluster = cluster;
    cluster.restart_frontend(|config| config);
    let status = String::from_utf8_lossy(&cluster.operate(&["status"]).stdout).into_owned();
    assert!(!status.contains("away"), "{status}");
}

#[test]
fn a_second_agent_is_kept_away_from_a_store() {
    let cluster = portolan_tests::Cluster::start(|_| {});
    let second = cluster.path().join("second.toml");
    let text = fs::read_to_string(cluster.path().join("agent-1.toml")).unwrap();
    let address = cluster.agent(1).address.to_string();
    fs::write(&second, text.replace(&address, "127.0.0.1:0")).unwrap();
    let refused = run("portolan-agent", &["--config", second.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error_text(&refused).contains("another process serves the store"), "{}", error_text(&refused));
}

#[test]
fn the_demo_backs_up_verifies_and_restores() {
    let demo = run("portolan", &["demo", "--once", "--messages", "300", "--sessions", "20"]);
    assert!(demo.status.success(), "{}", error_text(&demo));
    let told = String::from_utf8_lossy(&demo.stdout);
    for word in ["backup ", "verify ", "loss ", "restore ", "files/s", "all are the same"] {
        assert!(told.contains(word), "{word} is not in\n{told}");
    }
    assert_eq!(error_text(&demo), "", "a pipe gets no progress bar");
    assert_eq!(run("portolan", &["demo", "--once", "--messages", "1"]).status.code(), Some(64));
}
