//! The end of downloads: a 226 says that the client's system has acknowledged all, whatever else the client does with its
//! data connection.

use portolan_tests::client::{script, succeed};
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, PASSWORD};

/// In plaintext and with TLS.
const VERSIONS: [&str; 3] = ["plain", "1.2", "1.3"];
const SIZES: [usize; 4] = [0, 1, 100_000, 3 << 20];

fn cluster() -> Cluster {
    Cluster::start(|folder| {
        for size in SIZES.into_iter().chain([1 << 20]) {
            let file = folder.join(format!("node-1/domains/one.example/{size}"));
            put(&file, &tree::noise(size));
        }
    })
}

/// Does the actions in one session; what came of each.
fn outcomes(cluster: &Cluster, version: &str, actions: &[String]) -> Vec<String> {
    let address = cluster.frontend.address;
    let mut command = script("python3", "data_end.py");
    command.args([address.ip().to_string(), address.port().to_string()]);
    command.arg(cluster.authority()).args([PASSWORD, version]).args(actions);
    succeed(&mut command).lines().map(str::to_owned).collect()
}

#[test]
fn a_client_that_ends_its_own_side_early_or_sends_what_nobody_expects_gets_all() {
    let cluster = cluster();
    for version in VERSIONS {
        for how in ["whole", "late", "early", "stray", "stray_between"] {
            let actions = SIZES.map(|size| format!("{how}:/domains/one.example/{size}"));
            let expected = SIZES.map(|size| format!("226 {size}"));
            assert_eq!(outcomes(&cluster, version, &actions), expected, "{version} {how}");
        }
    }
}

#[test]
fn a_client_that_closes_right_after_the_last_byte_has_all() {
    let cluster = cluster();
    for version in VERSIONS {
        // It is gone before, while, or after the end is on its way.
        for size in [1, 100_000] {
            let actions = vec![format!("swift:/domains/one.example/{size}"); 50];
            let expected = vec![format!("226 {size}"); actions.len()];
            assert_eq!(outcomes(&cluster, version, &actions), expected, "{version}");
        }
    }
}

#[test]
fn a_client_that_is_gone_before_it_has_all_gets_no_226() {
    let cluster = cluster();
    for version in VERSIONS {
        for how in ["gone", "reset"] {
            // The first fits into the buffers of the server, so that it is told by what is acknowledged.
            let actions = [1 << 20, 3 << 20].map(|size| format!("{how}:/domains/one.example/{size}"));
            for outcome in outcomes(&cluster, version, &actions) {
                assert!(outcome.starts_with("426 "), "{version} {how}: {outcome}");
            }
        }
    }
}

#[test]
fn a_226_waits_until_the_client_has_taken_all() {
    let cluster = cluster();
    for version in VERSIONS {
        let size = 1 << 20;
        let actions = [format!("held:/domains/one.example/{size}")];
        assert_eq!(outcomes(&cluster, version, &actions), [format!("226 {size} silent")], "{version}");
    }
}
