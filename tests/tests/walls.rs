//! The walls between the crates, as ARCHITECTURE.md names them: which crate never depends on which, and what the sources of
//! a crate never name.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Each package with those that it depends on when it is built for use, by cargo's own resolution.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let host = Command::new(env!("CARGO")).args(["--version", "--verbose"]).output().unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let names: BTreeMap<String, String> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let from = edges.entry(names[&text(&node["id"])].clone()).or_default();
        for to in node["deps"].as_array().unwrap() {
            // `null` is the kind of a dependency that is neither for tests nor for build scripts.
            if to["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null()) {
                from.insert(names[&text(&to["pkg"])].clone());
            }
        }
    }
    edges
}

/// All that `package` needs, near and far, each with the one that asks for it.
fn reached(edges: &BTreeMap<String, BTreeSet<String>>, package: &str) -> BTreeMap<String, String> {
    let mut reached = BTreeMap::new();
    let mut waiting = vec![package.to_owned()];
    while let Some(from) = waiting.pop() {
        for to in &edges[&from] {
            if !reached.contains_key(to) {
                reached.insert(to.clone(), from.clone());
                waiting.push(to.clone());
            }
        }
    }
    reached
}

const BELOW_FTP: [&str; 7] = [
    "portolan-proto",
    "portolan-config",
    "portolan-telemetry",
    "portolan-process",
    "portolan-net",
    "portolan-cluster",
    "portolan-agent",
];

#[test]
fn no_crate_depends_on_one_behind_a_wall() {
    let edges = dependencies();
    let mut forbidden: Vec<(&str, &str)> = Vec::new();
    let all = BELOW_FTP.into_iter().chain(["portolan-ftp", "portolan-ftp-libunftp", "portolan-frontend"]);
    for package in all {
        // The operator's command, the tests, and what only they need: clients, progress, an authority.
        for client in ["portolan", "portolan-tests", "suppaftp", "indicatif", "rcgen"] {
            forbidden.push((package, client));
        }
    }
    for package in BELOW_FTP {
        for upper in ["portolan-ftp", "portolan-ftp-libunftp", "portolan-frontend", "libunftp", "unftp-core"]
        {
            forbidden.push((package, upper));
        }
    }
    forbidden.extend([
        ("portolan-ftp", "libunftp"),
        ("portolan-ftp", "unftp-core"),
        ("portolan-ftp", "portolan-frontend"),
        ("portolan-ftp-libunftp", "portolan-frontend"),
        ("portolan-frontend", "portolan-agent"),
        ("portolan-agent", "portolan-cluster"),
        ("portolan-agent", "ldap3"),
        ("portolan-net", "portolan-cluster"),
        ("portolan-net", "tonic"),
        ("portolan-proto", "portolan-config"),
        ("portolan-telemetry", "portolan-process"),
    ]);
    let mut broken = Vec::new();
    for (from, to) in forbidden {
        assert!(edges.contains_key(from), "no package {from}");
        if let Some(by) = reached(&edges, from).get(to) {
            broken.push(format!("{from} depends on {to}, by {by}"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    // The look itself: an edge that must be there is seen, near and far.
    assert!(reached(&edges, "portolan-frontend").contains_key("portolan-net"));
    assert!(reached(&edges, "portolan").contains_key("suppaftp"));
}

/// Lines of code below `place`: without comments and without what follows `#[cfg(test)]`.
fn code(place: &str) -> Vec<(PathBuf, usize, String)> {
    let place = root().join(place);
    let mut waiting = vec![place.clone()];
    let mut lines = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
            let code = code.filter(|(_, line)| !line.trim_start().starts_with("//"));
            lines.extend(code.map(|(number, line)| (path.clone(), number + 1, line.to_owned())));
        }
    }
    assert!(!lines.is_empty(), "no code at {}", place.display());
    lines
}

#[test]
fn no_source_names_what_stands_behind_a_wall() {
    let rules: [(&str, &[&str]); 10] = [
        ("cluster/src", &["ftp", "Ftp", "FTP"]),
        ("net/src", &["ftp", "Ftp", "FTP", "portolan_cluster"]),
        ("process/src", &["ftp", "Ftp", "FTP", "portolan_cluster"]),
        // A node is a name here; where it is, and how it is reached, the cluster knows.
        (
            "ftp/src",
            &[
                "tonic",
                "HostPort",
                "NodeClient",
                "nodes::discovery",
                "nodes::members",
                "ldap",
                "portolan_frontend",
            ],
        ),
        ("ftp-libunftp/src", &["tonic", "HostPort", "NodeClient", "ldap", "portolan_frontend"]),
        ("frontend/src/gate", &["portolan_ftp", "220", "421"]),
        ("cluster/src/path.rs", &["crate::"]),
        ("cluster/src/auth", &["crate::tree", "crate::map", "crate::nodes"]),
        ("cluster/src/map/snapshot.rs", &["crate::nodes", "tokio", "async "]),
        ("backend-agent/src/store", &["tonic", "portolan_proto::v1", "crate::service", "crate::holdings"]),
    ];
    let mut broken = Vec::new();
    for (place, words) in rules {
        for (path, number, line) in code(place) {
            for word in words.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{number}: {word:?} in {}", path.display(), line.trim()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
