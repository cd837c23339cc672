//! The programs' own faces: `portolan check`, `passwd`, `pki`, `demo`, help, versions, exit statuses.

use std::fs;
use std::process::{Command, Output};

use portolan_tests::{prepare, program};

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
        format!("{frontend}:2: listeners_: unknown key"),
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
    use std::os::unix::fs::PermissionsExt as _;
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
