//! The rounds: first every byte is checked, then time and CPU time are taken, server by server in turn.
//!
//! Who calls it: `main`.
//! What it calls: `client` for the transfers, `process` for the CPU time.
//! What it never does: measure a server whose content it has not compared, or average a failure away.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Session, Sink};
use crate::data::{Sample, SampleFile, checksum_of};
use crate::servers::Server;
use crate::{Result, interrupt, machine, progress};

/// A small file that takes this long met a timer: Nagle's algorithm against a delayed acknowledgement is 40 ms.
pub(crate) const SLOW: Duration = Duration::from_millis(40);

/// Before each measurement, others may take this much of one core, looked at for this long.
const QUIET_CORES_MAX: f64 = 0.15;
const QUIET_STEP: Duration = Duration::from_millis(300);
/// A whole run waits for that no longer than this.
const PATIENCE_MAX: Duration = Duration::from_secs(240);

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    /// Of the large file.
    pub(crate) bytes: u64,
    /// Small ones.
    pub(crate) files: u32,
    pub(crate) sessions: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    Download,
    Upload,
    SmallFiles,
}

impl Workload {
    pub(crate) const ALL: [Self; 3] = [Self::Download, Self::Upload, Self::SmallFiles];
}

/// One workload, once, on one server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    /// User and system time of all processes of the server.
    pub(crate) cpu_seconds: f64,
    /// Small files that took [`SLOW`] or longer.
    pub(crate) slow_files: usize,
    /// Times that PASV was refused and asked again.
    pub(crate) pasv_refused: usize,
    /// CPU time that anything but the server and this program took meanwhile.
    pub(crate) others_seconds: f64,
}

/// Outcomes of one server, of each workload by its place in [`Workload::ALL`], round by round.
pub(crate) type Series = [Vec<Outcome>; Workload::ALL.len()];

/// Transfers everything once and compares the content.
pub(crate) fn verify(server: &Server, sample: &Sample, plan: &Plan) -> Result<()> {
    let mut session = Session::open(&server.login)?;
    check_content(&mut session, &sample.large)?;
    session.stor(&format!("/{}", Sample::UPLOAD), &sample.open_large()?, sample.large.bytes)?;
    let stored = server.store.join(Sample::UPLOAD);
    if checksum_of(&stored)? != sample.large.checksum {
        return Err("the uploaded file differs from what was sent".into());
    }
    std::fs::remove_file(stored)?;
    session.quit()?;
    let mut sessions = open_sessions(server, plan)?;
    each_small_file(&mut sessions, sample, check_content)?;
    sessions.into_iter().try_for_each(Session::quit)
}

fn check_content(session: &mut Session, file: &SampleFile) -> Result<()> {
    let checksum = session.retr(&format!("/{}", file.path), file.bytes, Sink::Checksum)?;
    if checksum == file.checksum {
        return Ok(());
    }
    Err(format!("RETR /{}: answered 226, but the content is not the file's", file.path).into())
}

/// All rounds over all servers.
pub(crate) fn rounds(servers: &[Server], sample: &Sample, plan: &Plan) -> Result<Vec<Series>> {
    let mut results: Vec<Series> = servers.iter().map(|_| Series::default()).collect();
    let mut patience = PATIENCE_MAX;
    for round in 0..plan.rounds {
        for (place, workload) in Workload::ALL.into_iter().enumerate() {
            for step in 0..servers.len() {
                // Each round begins with another server, so that none always follows the same one.
                let at = (step + round as usize) % servers.len();
                let server = &servers[at];
                wait_for_quiet(&mut patience)?;
                let outcome =
                    measure(server, workload, sample, plan).map_err(|error| server.with_logs(error))?;
                progress(format_args!(
                    "round {} of {}: {workload:?} {}: {:.3} s",
                    round + 1,
                    plan.rounds,
                    server.name,
                    outcome.seconds
                ));
                results[at][place].push(outcome);
            }
        }
    }
    Ok(results)
}

/// Waits until nothing else keeps the machine busy, as long as there is patience left. After that the run goes
/// on, and the report says how much CPU time others took.
fn wait_for_quiet(patience: &mut Duration) -> Result<()> {
    while *patience > Duration::ZERO {
        interrupt::check()?;
        let before = machine::busy_seconds();
        std::thread::sleep(QUIET_STEP);
        if machine::busy_seconds() - before <= QUIET_STEP.as_secs_f64() * QUIET_CORES_MAX {
            return Ok(());
        }
        *patience = patience.saturating_sub(QUIET_STEP);
    }
    Ok(())
}

fn measure(server: &Server, workload: Workload, sample: &Sample, plan: &Plan) -> Result<Outcome> {
    match workload {
        Workload::Download => {
            let mut sessions = [Session::open(&server.login)?];
            let path = format!("/{}", sample.large.path);
            let outcome = timed(server, &mut sessions, |sessions| {
                sessions[0].retr(&path, sample.large.bytes, Sink::Drop).map(|_| 0)
            })?;
            sessions.into_iter().try_for_each(Session::quit)?;
            Ok(outcome)
        }
        Workload::Upload => {
            let mut sessions = [Session::open(&server.login)?];
            let file = sample.open_large()?;
            sample.warm_memory()?;
            let outcome = timed(server, &mut sessions, |sessions| {
                sessions[0].stor(&format!("/{}", Sample::UPLOAD), &file, sample.large.bytes).map(|()| 0)
            })?;
            sessions.into_iter().try_for_each(Session::quit)?;
            let stored = server.store.join(Sample::UPLOAD);
            let bytes =
                std::fs::metadata(&stored).map_err(|error| format!("no upload is there: {error}"))?.len();
            if bytes != sample.large.bytes {
                return Err(format!("the upload has {bytes} of {} bytes", sample.large.bytes).into());
            }
            std::fs::remove_file(stored)?;
            Ok(outcome)
        }
        Workload::SmallFiles => {
            let mut sessions = open_sessions(server, plan)?;
            let outcome = timed(server, &mut sessions, |sessions| {
                each_small_file(sessions, sample, |session, file| {
                    session.retr(&format!("/{}", file.path), file.bytes, Sink::Drop).map(drop)
                })
            })?;
            sessions.into_iter().try_for_each(Session::quit)?;
            Ok(outcome)
        }
    }
}

/// Sessions are opened before the clock starts: logins are not what is measured.
fn open_sessions(server: &Server, plan: &Plan) -> Result<Vec<Session>> {
    (0..plan.sessions).map(|_| Session::open(&server.login)).collect()
}

/// Time and CPU time of `work`, while the sessions (and so a forking server's processes) are still there.
fn timed(
    server: &Server,
    sessions: &mut [Session],
    work: impl FnOnce(&mut [Session]) -> Result<usize>,
) -> Result<Outcome> {
    let others = || machine::busy_seconds() - machine::own_seconds();
    let (others_before, cpu_before) = (others(), server.cpu_seconds());
    let begin = Instant::now();
    let slow_files = work(sessions)?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu_seconds = server.cpu_seconds() - cpu_before;
    Ok(Outcome {
        seconds,
        cpu_seconds,
        slow_files,
        pasv_refused: sessions.iter().map(|session| session.pasv_refused).sum(),
        // Clocks of one hundredth of a second may disagree a little.
        others_seconds: (others() - others_before - cpu_seconds).max(0.0),
    })
}

/// Hands the small files, in their order, to whichever session is free. The first failure stops all sessions.
/// Returns how many files took [`SLOW`] or longer.
fn each_small_file(
    sessions: &mut [Session],
    sample: &Sample,
    work: impl Fn(&mut Session, &SampleFile) -> Result<()> + Sync,
) -> Result<usize> {
    let (next, slow, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for session in sessions {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some(file) = sample.small.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let begin = Instant::now();
                    if let Err(error) = work(session, file) {
                        stop.store(true, Ordering::Relaxed);
                        failure.lock().expect("no holder panics").get_or_insert(error);
                    }
                    if begin.elapsed() >= SLOW {
                        slow.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failure.into_inner().expect("no holder panics") {
        Some(error) => Err(error),
        None => Ok(slow.into_inner()),
    }
}
