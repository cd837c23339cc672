//! Clients that are interrupted in the middle of an upload, however they are stopped: the old content stays.
//!
//! `PORTOLAN_CUTS` is how often each way is tried; few times in the suite, 200 by hand.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portolan_tests::client::{Protection, lftp_command, text};
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, PASSWORD, eventually};
use rand::RngExt as _;

const FOLDER: &str = "one.example/users/alice/folders/INBOX";
const OLD: &[u8] = b"the old content";
/// What is uploaded; at the rates below it takes seconds.
const CONTENT_BYTES: usize = 20_000_000;
/// Clients at once.
const AT_ONCE: usize = 6;

fn times() -> usize {
    std::env::var("PORTOLAN_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

struct Trial<'a> {
    cluster: &'a Cluster,
    content: PathBuf,
    protection: Protection,
    /// The file on its node, and its name.
    file: PathBuf,
    name: String,
}

impl Trial<'_> {
    fn curl(&self, source: &Path, tls: Option<&str>) -> Command {
        let mut command = Command::new("curl");
        let (scheme, address) = (self.protection.scheme(), self.protection.address(self.cluster));
        command
            .args(["--silent", "--limit-rate", "4M", "--user", &format!("admin:{PASSWORD}")])
            .args((self.protection == Protection::Explicit).then_some("--ssl-reqd"))
            .args(tls.map(|version| ["--tls-max", version]).into_iter().flatten())
            .arg("--cacert")
            .arg(self.cluster.authority())
            .arg("--upload-file")
            .arg(source)
            .arg(format!("{scheme}://{address}/domains/{FOLDER}/{}", self.name));
        command
    }

    fn lftp(&self) -> Command {
        let script = format!(
            "set net:limit-rate 4000000; put {} -o /domains/{FOLDER}/{}",
            self.content.display(),
            self.name
        );
        lftp_command(self.protection, self.cluster, &script)
    }

    fn rclone(&self) -> Command {
        let address = self.protection.address(self.cluster);
        let mut command = Command::new("rclone");
        command
            .args(["--retries", "1", "--low-level-retries", "1", "--bwlimit", "4M", "--ignore-times"])
            .args(["--ftp-no-check-certificate", "--config", "/dev/null"])
            .args(match self.protection {
                Protection::Plain => None,
                Protection::Explicit => Some("--ftp-explicit-tls"),
                Protection::Implicit => Some("--ftp-tls"),
            })
            .arg("copyto")
            .arg(&self.content)
            .arg(format!(
                ":ftp,host={},port={},user=admin,pass={}:domains/{FOLDER}/{}",
                address.ip(),
                address.port(),
                obscured(),
                self.name
            ));
        command
    }
}

/// The password as rclone wants it.
fn obscured() -> String {
    let output = Command::new("rclone").args(["obscure", PASSWORD]).output().expect("rclone runs");
    String::from_utf8(output.stdout).expect("a word").trim().to_owned()
}

/// Runs a client and ends it by a signal, a while after the node has an upload.
fn interrupt(
    trial: &Trial<'_>,
    mut command: Command,
    signal: Option<rustix::process::Signal>,
    after: Duration,
) {
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{:?} does not run ({error}): `tests/run` installs it", command));
    if let Some(signal) = signal {
        eventually("an upload is under way", || (staged(trial.cluster) > 0).then_some(()));
        std::thread::sleep(after);
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("an id");
        rustix::process::kill_process_group(group, signal).ok();
    }
    // What still runs after that (lftp finishes in the background) is ended for good.
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        child.try_wait().expect("our child").is_some()
    });
    if !ended {
        child.kill().ok();
        child.wait().ok();
    }
}

fn staged(cluster: &Cluster) -> usize {
    fs::read_dir(cluster.path().join("node-1/.portolan/staging")).expect("the agent runs").count()
}

/// Tries something many times, several at once, and counts what is on the node at the end.
fn after_cuts(protections: &[Protection], cut: impl Fn(&Trial<'_>, usize, Duration) + Sync) {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with_implicit_tls();
    let content = cluster.path().join("content");
    let new = tree::noise(CONTENT_BYTES);
    fs::write(&content, &new).unwrap();
    let count = times() * protections.len();
    let file = |number: usize| cluster.domains(1).join(FOLDER).join(format!("{number}.eml"));
    for number in 0..count {
        put(&file(number), OLD);
    }
    let next = AtomicUsize::new(0);
    let delays: Vec<Duration> =
        (0..count).map(|_| Duration::from_millis(rand::rng().random_range(100..1_500))).collect();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let trial = Trial {
                        cluster: &cluster,
                        content: content.clone(),
                        protection: protections[number % protections.len()],
                        file: file(number),
                        name: format!("{number}.eml"),
                    };
                    cut(&trial, number / protections.len(), delays[number]);
                }
            });
        }
    });
    eventually("staging is empty", || (staged(&cluster) == 0).then_some(()));
    let mut left = BTreeMap::new();
    for number in 0..count {
        match fs::read(file(number)) {
            // A client that was through before the cut has stored all.
            Ok(present) if present == OLD || present == new => {}
            Ok(present) => drop(left.insert(number, present.len())),
            // rclone 1.60 removes what it could not upload.
            Err(_)
                if cluster
                    .frontend
                    .log()
                    .contains(&format!("\"verb\":\"DELE\",\"path\":\"/domains/{FOLDER}/{number}.eml\"")) => {}
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert!(left.is_empty(), "{} of {count} uploads were kept cut: {left:?}", left.len());
    let broken = cluster.frontend.log().matches("transfer broken off").count();
    assert!(broken * 3 >= count, "only {broken} of {count} uploads were under way when they were cut");
}

const SIGNALS: [rustix::process::Signal; 3] =
    [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::KILL];

#[test]
fn curl_that_runs_into_its_time_limit_leaves_the_old_content() {
    after_cuts(&Protection::ALL, |trial, turn, after| {
        let mut command = trial.curl(&trial.content, [None, Some("1.2")][turn % 2]);
        // The login is part of that time.
        command.args(["--max-time", &format!("{:.2}", 1.0 + after.as_secs_f64())]);
        interrupt(trial, command, None, after);
    });
}

#[test]
fn curl_that_is_stopped_by_a_signal_leaves_the_old_content() {
    after_cuts(&Protection::ALL, |trial, turn, after| {
        let command = trial.curl(&trial.content, [None, Some("1.2")][turn % 2]);
        interrupt(trial, command, Some(SIGNALS[turn % SIGNALS.len()]), after);
    });
}

#[test]
fn lftp_that_is_stopped_by_a_signal_leaves_the_old_content() {
    after_cuts(&Protection::ALL, |trial, turn, after| {
        interrupt(trial, trial.lftp(), Some(SIGNALS[turn % SIGNALS.len()]), after);
    });
}

#[test]
fn rclone_that_is_stopped_by_a_signal_leaves_the_old_content() {
    after_cuts(&Protection::ALL, |trial, turn, after| {
        interrupt(trial, trial.rclone(), Some(SIGNALS[turn % SIGNALS.len()]), after);
    });
}

#[test]
fn a_source_that_ends_early_is_refused_where_its_size_was_announced() {
    after_cuts(&Protection::ALL, |trial, _, _| {
        // curl takes a source that it cannot read on for one that has ended; ALLO says what it should have been.
        let short = trial.content.with_file_name(format!("short-{}", trial.name));
        fs::write(&short, &tree::noise(CONTENT_BYTES)[..CONTENT_BYTES / 4]).unwrap();
        let announced = format!("ALLO {CONTENT_BYTES}");
        let output = trial.curl(&short, None).args(["--quote", &announced]).output().expect("curl runs");
        assert!(!output.status.success(), "{}", text(&output));
        assert_eq!(fs::read(&trial.file).unwrap(), OLD);
    });
}
