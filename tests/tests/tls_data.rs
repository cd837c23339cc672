//! TLS on data connections: whose session they resume, and what their end means.

use std::fs;
use std::path::PathBuf;

use portolan_tests::client::{curl, script, succeed, succeeded};
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, PASSWORD};

/// TLS 1.3 resumes by tickets, TLS 1.2 by tickets or by ids that the server remembers.
const VERSIONS: [&str; 3] = ["1.2", "1.2-without-tickets", "1.3"];

fn cluster(keys: &str) -> Cluster {
    let mut cluster = Cluster::start(tree::fill);
    if !keys.is_empty() {
        cluster.restart_with(keys);
    }
    cluster
}

/// Does the actions in one session; the final reply code of each.
fn codes(cluster: &Cluster, version: &str, actions: &[&str]) -> Vec<u16> {
    let address = cluster.frontend.address;
    let mut command = script("python3", "tls_data.py");
    command.args([address.ip().to_string(), address.port().to_string()]);
    command.arg(cluster.authority()).args([PASSWORD, version]).args(actions);
    succeed(&mut command).lines().map(|line| line.parse().expect("a reply code")).collect()
}

#[test]
fn with_require_a_data_connection_without_the_session_of_its_control_connection_gets_522() {
    let cluster = cluster("session_reuse = \"require\"");
    let store = "store:/domains/one.example/users/alice/new.eml:mail:ended";
    // Side by side: after one that proves nothing the client's own is waited for.
    std::thread::scope(|scope| {
        for version in VERSIONS {
            let cluster = &cluster;
            scope.spawn(move || {
                let store = store.replace("new.eml", &format!("new-{version}.eml"));
                let actions = ["list:fresh", "noop", "list:foreign", "list:resumed", "list:resumed", &store];
                assert_eq!(codes(cluster, version, &actions), [522, 200, 522, 226, 226, 226], "{version}");
            });
        }
    });
    for version in VERSIONS {
        let path = cluster.domains(1).join(format!("one.example/users/alice/new-{version}.eml"));
        assert_eq!(fs::read(path).unwrap(), b"mail");
    }
}

/// curl takes no tickets with TLS 1.2. (With TLS 1.3 it uses each ticket once, and closes the connection of a small
/// upload before it has read the next: there it may fail where resuming is required.)
#[test]
fn with_require_curl_uploads_file_after_file() {
    let cluster = cluster("session_reuse = \"require\"");
    let names = ["first", "second", "third", "fourth"];
    for name in names {
        fs::write(cluster.path().join(name), name).unwrap();
    }
    let folder = "one.example/users/alice/folders/INBOX";
    let several = format!("{}/{{{}}}", cluster.path().display(), names.join(","));
    let arguments = ["--tls-max", "1.2", "--fail-early", "--upload-file", &several];
    succeeded(&curl(&cluster, &arguments, &format!("/domains/{folder}/")));
    for name in names {
        assert_eq!(fs::read(cluster.domains(1).join(folder).join(name)).unwrap(), name.as_bytes());
    }
}

#[test]
fn with_match_if_offered_only_the_session_of_somebody_else_gets_522() {
    let cluster = cluster("");
    std::thread::scope(|scope| {
        for version in VERSIONS {
            let cluster = &cluster;
            scope.spawn(move || {
                let actions = ["list:foreign", "noop", "list:fresh", "list:resumed"];
                assert_eq!(codes(cluster, version, &actions), [522, 200, 226, 226], "{version}");
            });
        }
    });
}

#[test]
fn with_off_any_session_will_do() {
    let cluster = cluster("session_reuse = \"off\"");
    for version in VERSIONS {
        let actions = ["list:foreign", "list:fresh", "list:resumed"];
        assert_eq!(codes(&cluster, version, &actions), [226, 226, 226], "{version}");
    }
}

#[test]
fn a_failed_handshake_of_a_data_connection_gets_425_and_the_session_goes_on() {
    let cluster = cluster("");
    for version in VERSIONS {
        let actions = ["list:garbage", "noop", "list:fresh"];
        assert_eq!(codes(&cluster, version, &actions), [425, 200, 226], "{version}");
    }
}

#[test]
fn an_upload_cut_without_close_notify_changes_nothing() {
    let cluster = cluster("");
    let (path, file) = kept(&cluster);
    for version in VERSIONS {
        put(&file, b"the old content");
        let (cut, ended) = (format!("store:{path}:half:cut"), format!("store:{path}:whole:ended"));
        assert_eq!(codes(&cluster, version, &[&cut, "noop"]), [426, 200], "{version}");
        assert_eq!(fs::read(&file).unwrap(), b"the old content", "{version}");
        assert_eq!(codes(&cluster, version, &[&cut, &ended]), [426, 226], "{version}");
        assert_eq!(fs::read(&file).unwrap(), b"whole", "{version}");
    }
}

#[test]
fn with_close_notify_optional_an_upload_that_ends_without_it_is_stored() {
    let cluster = cluster("close_notify = \"optional\"");
    let (path, file) = kept(&cluster);
    for version in VERSIONS {
        put(&file, b"the old content");
        let (cut, ended) = (format!("store:{path}:all:cut"), format!("store:{path}:whole:ended"));
        assert_eq!(codes(&cluster, version, &[&cut]), [226], "{version}");
        assert_eq!(fs::read(&file).unwrap(), b"all", "{version}");
        assert_eq!(codes(&cluster, version, &[&ended]), [226], "{version}");
        assert_eq!(fs::read(&file).unwrap(), b"whole", "{version}");
    }
}

/// A file by the names of the client and of the disk.
fn kept(cluster: &Cluster) -> (String, PathBuf) {
    let name = "one.example/users/alice/folders/INBOX/kept.eml";
    (format!("/domains/{name}"), cluster.domains(1).join(name))
}
