//! One admin who asks for much and waits for nothing: what it leaves behind is bounded, and others are served meanwhile.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_tests::client::Control;
use portolan_tests::disk::MemoryDisk;
use portolan_tests::tree::{self, put};
use portolan_tests::{Cluster, Server, eventually};

/// Enough names that gathering them takes longer than asking for it.
const NAMES: usize = 200_000;
const HUGE: &str = "/domains/one.example/users/alice/folders/huge";
const MAIL: &str = "/domains/one.example/users/alice/folders/INBOX/small.eml";
/// Asked for and given up in each way.
const ROUNDS: usize = 300;
/// Sessions that do so at once.
const SESSIONS: usize = 6;

fn start(names: usize) -> (MemoryDisk, Cluster) {
    // No disk is measured.
    let mut memory = None;
    let cluster = Cluster::start(|folder: &Path| {
        memory = Some(MemoryDisk::mount(folder.join("node-1"), "1g"));
        let huge = folder.join(format!("node-1{HUGE}"));
        fs::create_dir_all(&huge).unwrap();
        for number in 0..names {
            fs::File::create(huge.join(format!("{number}.M1P2.host,S=3:2,"))).unwrap();
        }
        put(&folder.join(format!("node-1{MAIL}")), &tree::noise(20_000));
    });
    (memory.unwrap(), cluster)
}

fn threads(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().count()
}

/// Makes the calls of an ordinary session, and notes how long each took.
fn serve(control: &mut Control, may_write: bool, took: &mut Vec<Duration>) {
    let mut timed = |call: &mut dyn FnMut(&mut Control)| {
        let begun = Instant::now();
        call(control);
        took.push(begun.elapsed());
    };
    timed(&mut |control| assert_eq!(control.ask(&format!("SIZE {MAIL}")).0, 213));
    timed(&mut |control| assert_eq!(control.fetch(&format!("RETR {MAIL}")), (226, tree::noise(20_000))));
    timed(&mut |control| {
        assert_eq!(control.fetch("MLSD /domains/one.example/users/alice/folders/INBOX").0, 226);
    });
    if may_write {
        timed(&mut |control| assert_eq!(control.ask(&format!("MFMT 20200101000000 {MAIL}")).0, 213));
    }
}

/// How long calls took.
struct Took {
    median: Duration,
    /// 90 of 100 took no longer.
    nearly_all: Duration,
    worst: Duration,
}

impl Took {
    fn of(mut took: Vec<Duration>) -> Self {
        took.sort();
        let last = took.len() - 1;
        Self { median: took[last / 2], nearly_all: took[last * 90 / 100], worst: took[last] }
    }
}

/// How a listing is given up.
#[derive(Debug, Clone, Copy)]
enum GivenUp {
    Abor,
    DataClosed,
    SessionClosed,
}

/// Asks for listings and gives them up, all of one admin.
fn give_up(address: SocketAddr, verb: &str, how: GivenUp, rounds: usize) {
    let mut session = None;
    for round in 0..rounds {
        let mut control = session.take().unwrap_or_else(|| Control::login(address, "reader"));
        let data = control.passive();
        // Some of the listings are given up when they have begun, the others before.
        let ask = format!("{verb} {HUGE}\r\n");
        control.send(ask.as_bytes()).unwrap();
        if round % 3 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        match how {
            GivenUp::Abor => {
                control.send(b"ABOR\r\n").unwrap();
                while control.reply().0 != 226 {}
                session = Some(control);
            }
            GivenUp::DataClosed => {
                assert_eq!(control.reply().0, 150);
                drop(data);
                assert_eq!(control.reply().0, 426);
                session = Some(control);
            }
            GivenUp::SessionClosed => drop(control),
        }
    }
}

#[test]
fn listings_that_are_given_up_leave_nothing_behind_and_hold_up_nobody() {
    let (_memory, cluster) = start(NAMES);
    let address = cluster.frontend.address;
    let agent = cluster.agent(1);
    let (mut other, mut own) = (Control::login(address, "admin"), Control::login(address, "reader"));
    serve(&mut other, true, &mut Vec::new());
    let before = agent.resident_kib();
    let mut first_kib = None;
    for (verb, how) in [
        ("LIST", GivenUp::Abor),
        ("MLSD", GivenUp::Abor),
        ("NLST", GivenUp::SessionClosed),
        ("MLSD", GivenUp::DataClosed),
    ] {
        let rounds = match how {
            GivenUp::Abor => ROUNDS,
            // One waits for each listing to begin, the other logs in each time.
            GivenUp::DataClosed | GivenUp::SessionClosed => ROUNDS / 10,
        };
        let done = AtomicBool::new(false);
        let (mut others, mut own_took, mut most_threads, mut most_kib) = (Vec::new(), Vec::new(), 0, 0);
        std::thread::scope(|scope| {
            let givers: Vec<_> = (0..SESSIONS)
                .map(|_| scope.spawn(move || give_up(address, verb, how, rounds / SESSIONS)))
                .collect();
            scope.spawn(|| {
                givers.into_iter().for_each(|giver| giver.join().unwrap());
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                serve(&mut other, true, &mut others);
                serve(&mut own, false, &mut own_took);
                most_threads = most_threads.max(threads(agent));
                most_kib = most_kib.max(agent.resident_kib());
            }
        });
        for (who, took) in [("another admin", others), ("the same admin", own_took)] {
            let Took { median, nearly_all, worst } = Took::of(took);
            println!("{verb} {how:?}: {who}: median {median:?}, 90 % {nearly_all:?}, worst {worst:?}");
            assert!(nearly_all < Duration::from_millis(100), "{verb} {how:?}: {who}: {nearly_all:?}");
            assert!(worst < Duration::from_secs(2), "{verb} {how:?}: {who}: {worst:?}");
        }
        println!("{verb} {how:?}: {most_threads} threads, {before} to {most_kib} KiB");
        assert!(most_threads < 40, "{verb} {how:?}: {most_threads} threads");
        // Threads keep what they once used: some 7 MiB each. The number of listings that were given up adds nothing.
        let first = *first_kib.get_or_insert(most_kib);
        assert!(most_kib < first + 48 * 1024, "{verb} {how:?}: {first} to {most_kib} KiB");
        assert!(most_kib < before + 160 * 1024, "{verb} {how:?}: {before} to {most_kib} KiB");
    }
    // Nothing goes on for those who have left.
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    eventually("the agent is at rest", || {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(300));
        (ticks() - before < 5).then_some(())
    });
    let listed = own.fetch(&format!("NLST {HUGE}"));
    assert_eq!((listed.0, listed.1.iter().filter(|byte| **byte == b'\n').count()), (226, NAMES));
}

#[test]
fn downloads_and_uploads_that_are_given_up_hold_up_nobody() {
    let (_memory, cluster) = start(1);
    let address = cluster.frontend.address;
    let big = "/domains/one.example/users/alice/big.bin";
    put(&cluster.path().join(format!("node-1{big}")), &tree::noise(64 << 20));
    let (mut other, mut own) = (Control::login(address, "admin"), Control::login(address, "admin"));
    let agent = cluster.agent(1);
    let done = AtomicBool::new(false);
    let (mut took, mut most_threads) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let givers: Vec<_> = ["RETR", "HASH", "STOR", "RETR"]
            .map(|verb| {
                scope.spawn(move || {
                    let mut control = Control::login(address, "admin");
                    for _ in 0..40 {
                        let mut data = (verb != "HASH").then(|| control.passive());
                        let name =
                            if verb == "STOR" { "/domains/one.example/users/alice/new.bin" } else { big };
                        control.send(format!("{verb} {name}\r\n").as_bytes()).unwrap();
                        if verb == "STOR" {
                            assert_eq!(control.reply().0, 150);
                            data.as_mut().unwrap().write_all(&tree::noise(300_000)).ok();
                        }
                        control.send(b"ABOR\r\n").unwrap();
                        while control.reply().0 != 226 {}
                    }
                })
            })
            .into();
        scope.spawn(|| {
            givers.into_iter().for_each(|giver| giver.join().unwrap());
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            serve(&mut other, true, &mut took);
            serve(&mut own, true, &mut took);
            most_threads = most_threads.max(threads(agent));
        }
    });
    let Took { median, nearly_all, worst } = Took::of(took);
    println!("median {median:?}, 90 % {nearly_all:?}, worst {worst:?}, {most_threads} threads");
    assert!(nearly_all < Duration::from_millis(100), "{nearly_all:?}");
    assert!(most_threads < 60, "{most_threads} threads");
    assert!(!fs::exists(cluster.domains(1).join("one.example/users/alice/new.bin")).unwrap());
    eventually("no staging file is left", || {
        let staging = cluster.path().join("node-1/.portolan/staging");
        (fs::read_dir(staging).unwrap().count() == 0).then_some(())
    });
}
