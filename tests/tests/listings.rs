//! Listings: what they cost other sessions, whether they are whole, and what they show of links and special files.

use std::fs;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_tests::client::Control;
use portolan_tests::{Cluster, tree};

/// What another session may wait for the reply to a NOOP while listings are under way. On a machine that has other work
/// too, one in fifty may take longer, but none [`NOOP_LATE_MAX`].
const NOOP_MAX: Duration = Duration::from_millis(100);
const NOOP_LATE_MAX: Duration = Duration::from_secs(1);

/// The times of NOOPs, the longest last, while `work` runs in as many sessions; each has its number.
fn noops_beside(
    cluster: &Cluster,
    sessions: usize,
    work: impl Fn(&mut Control, usize) + Sync,
) -> Vec<Duration> {
    let address = cluster.frontend.address;
    let mut watching = Control::login(address, "admin");
    let controls: Vec<Control> = (0..sessions).map(|_| Control::login(address, "admin")).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let noops = scope.spawn(|| {
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let started = Instant::now();
                assert_eq!(watching.ask("NOOP").0, 200);
                times.push(started.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            times.sort();
            times
        });
        let work = &work;
        let workers: Vec<_> = controls
            .into_iter()
            .enumerate()
            .map(|(number, mut control)| scope.spawn(move || work(&mut control, number)))
            .collect();
        let worked: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(worked.iter().all(Result::is_ok), "all sessions do their work");
        noops.join().unwrap()
    })
}

#[test]
fn no_pattern_and_no_large_folder_keeps_another_session_waiting() {
    let mut cluster = Cluster::start(tree::fill);
    cluster.restart_with("access = [{ allow = \"all\", limits = { simultaneous_per_address = 25 } }]");
    let folder = cluster.domains(1).join("one.example/users/alice/folders/large");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..20_000 {
        fs::write(folder.join(format!("{number}{}", "a".repeat(60))), "").unwrap();
    }
    // Backtracking needs years for it.
    let groups = "{*a,*a,*a,*a}".repeat(19) + "b";
    assert!(groups.len() < 255);
    let mut other = Control::login(cluster.frontend.address, "admin");
    assert_eq!(other.ask("CWD /domains/one.example/users/alice/folders/large").0, 250);
    let started = Instant::now();
    assert_eq!(other.fetch(&format!("LIST {groups}")), (226, Vec::new()));
    println!("one listing by the worst pattern: {:?}", started.elapsed());
    let (code, names) = other.fetch("NLST 1999{8,[9]}?*a");
    assert_eq!((code, names.iter().filter(|byte| **byte == b'\n').count()), (226, 2));

    let nested = "{*a,".repeat(49) + "b" + &"}".repeat(49);
    let commands = [
        format!("LIST {groups}"),
        format!("NLST {nested}"),
        "LIST".to_owned(),
        "MLSD".to_owned(),
        "LIST -R".to_owned(),
    ];
    let times = noops_beside(&cluster, 20, |control, number| {
        assert_eq!(control.ask("CWD /domains/one.example/users/alice/folders/large").0, 250);
        let (code, _) = control.fetch(&commands[number % commands.len()]);
        assert_eq!(code, 226);
    });
    let (usual, slowest) = (times[times.len() * 49 / 50], times[times.len() - 1]);
    println!("{} NOOPs beside 20 listings: {usual:?}, the slowest {slowest:?}", times.len());
    assert!(usual < NOOP_MAX && slowest < NOOP_LATE_MAX, "{usual:?}, {slowest:?}");
}

/// A listing by a pattern that is dropped in its middle leaves nothing that goes on.
#[test]
fn a_listing_by_pattern_that_is_aborted_stops() {
    let cluster = Cluster::start(tree::fill);
    let folder = cluster.domains(1).join("one.example/users/alice/folders/large");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..5_000 {
        fs::write(folder.join(format!("{number}{}", "a".repeat(240))), "").unwrap();
    }
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.ask("CWD /domains/one.example/users/alice/folders/large").0, 250);
    let mut data = control.passive();
    control.send(format!("LIST {}\r\n", "*a".repeat(100) + "b").as_bytes()).unwrap();
    assert_eq!(control.reply().0, 150);
    let started = Instant::now();
    control.send(b"ABOR\r\n").unwrap();
    assert_eq!((control.reply().0, control.reply().0), (426, 226));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(data.read_to_end(&mut Vec::new()).is_err(), "the data connection is reset");
}
