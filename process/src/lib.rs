//! What every program of the project does around its work: arguments, log, signals, exit status.
//!
//! Who calls it: the `main.rs` of each program.
//! What it calls: clap, tokio, portolan-telemetry.
//! What it never does: anything that a library caller or a test would have to undo.

#![forbid(unsafe_code)]

use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use parking_lot::Mutex;
use portolan_config::checked::log::{Log, Tracing};
use portolan_telemetry::log::CRITICAL;
use portolan_telemetry::{Telemetry, chain};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Wrong arguments or configuration (EX_USAGE of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// The program's arguments; otherwise the help, version or fault is printed and the exit status returned.
pub fn arguments<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        // A terminal that is gone is no reason to change the status.
        error.print().ok();
        if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
    })
}

/// What every server program can be asked for in place of serving.
#[derive(clap::Args)]
pub struct Instead {
    /// Print a completion script for this shell and exit.
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,
    /// Print the manual page, in roff, and exit.
    #[arg(long)]
    manual: bool,
}

/// The arguments of a server program that is to serve; otherwise what was asked for is printed and the exit status
/// returned.
pub fn server_arguments<T: Parser>(instead: impl Fn(&T) -> &Instead) -> Result<T, ExitCode> {
    let given = arguments::<T>()?;
    let Instead { completions, manual } = instead(&given);
    if let Some(shell) = *completions {
        print_completions::<T>(shell);
        return Err(ExitCode::SUCCESS);
    }
    if *manual { Err(print_manual::<T>()) } else { Ok(given) }
}

/// The configuration; otherwise its faults are printed and the exit status returned.
pub fn loaded<T, E: std::fmt::Display>(config: Result<T, E>) -> Result<T, ExitCode> {
    config.map_err(|faults| {
        eprintln!("{faults}");
        ExitCode::from(EXIT_USAGE)
    })
}

/// Prints a completion script.
pub fn print_completions<T: clap::CommandFactory>(shell: clap_complete::Shell) {
    let mut command = T::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
}

/// Prints the manual page.
pub fn print_manual<T: clap::CommandFactory>() -> ExitCode {
    match clap_mangen::Man::new(T::command()).render(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the manual page cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts logging and traces; otherwise the fault is printed and the exit status returned.
pub fn start_telemetry(
    log: &Log,
    tracing: Option<&Tracing>,
    program: &'static str,
) -> Result<Arc<Telemetry>, ExitCode> {
    Telemetry::start(log, tracing, program).map(Arc::new).map_err(|error| {
        eprintln!("{error}");
        match error {
            portolan_telemetry::Error::Levels(_) => ExitCode::from(EXIT_USAGE),
            portolan_telemetry::Error::Start(_) => ExitCode::FAILURE,
        }
    })
}

/// How long a drain may take by the present configuration. Unset, a drain has no limit.
#[derive(Debug, Clone, Default)]
pub struct DrainLimit(Arc<Mutex<Option<Duration>>>);

impl DrainLimit {
    pub fn set(&self, drain_timeout: Duration) {
        *self.0.lock() = Some(drain_timeout);
    }

    fn is(&self) -> Option<Duration> {
        *self.0.lock()
    }
}

/// The signals that a process receives.
#[derive(Debug)]
pub struct Signals {
    /// The first SIGTERM or SIGINT: stop, and let what is under way finish.
    pub drain: CancellationToken,
    /// The second: stop at once. A third ends the process.
    pub cut: CancellationToken,
    /// SIGHUP: read the configuration again.
    pub reload: mpsc::Receiver<()>,
}

impl Signals {
    /// For what is stopped by a token, and by no signal.
    pub fn by_token(drain: CancellationToken) -> Self {
        let (_, reload) = mpsc::channel(1);
        Self { drain, cut: CancellationToken::new(), reload }
    }

    /// Listens for the signals. A process that does not end by itself is ended: [`CUT_MAX`] after the second signal,
    /// [`DRAIN_GRACE`] after the limit of the drain.
    pub fn listen(limit: DrainLimit) -> std::io::Result<Self> {
        let (drain, cut) = listen_for_stop(limit, SecondSignal::Cuts)?;
        let mut hang_up = signal(SignalKind::hangup())?;
        // One that waits stands for all that come meanwhile.
        let (sender, reload) = mpsc::channel(1);
        tokio::spawn(
            async move { while hang_up.recv().await.is_some() && is_wanted(sender.try_send(())) {} },
        );
        Ok(Self { drain, cut, reload })
    }
}

fn is_wanted(sent: Result<(), mpsc::error::TrySendError<()>>) -> bool {
    !matches!(sent, Err(mpsc::error::TrySendError::Closed(())))
}

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once, and so does a drain that lasts
/// [`DRAIN_GRACE`] longer than its limit.
pub fn shutdown_on_signal(limit: DrainLimit) -> std::io::Result<CancellationToken> {
    let (drain, _) = listen_for_stop(limit, SecondSignal::Ends)?;
    Ok(drain)
}

/// Runs something at each SIGHUP, by which a service manager asks for a reload. On a terminal that is closed the signal
/// still ends the process.
pub fn on_hang_up(work: impl Fn() + Send + 'static) -> std::io::Result<()> {
    if std::io::stderr().is_terminal() {
        return Ok(());
    }
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            work();
        }
    });
    Ok(())
}

/// What the second SIGTERM or SIGINT does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecondSignal {
    /// It cuts what is under way, and the process ends in order.
    Cuts,
    /// It ends the process.
    Ends,
}

/// How long a process may take to end in order after the second signal: its blocked threads, its log and its traces
/// have 5 s together.
pub const CUT_MAX: Duration = Duration::from_secs(6);
/// How much longer than its limit a drain may take: what is cut has to end, and then what [`CUT_MAX`] allows.
pub const DRAIN_GRACE: Duration = Duration::from_secs(10);
/// The log's own thread writes the last record within this time, unless its target hangs.
const LAST_RECORD: Duration = Duration::from_millis(200);

/// Tokens that the first and the second SIGTERM or SIGINT cancel.
///
/// The signals are received by a thread that does nothing else: they are obeyed also while every worker of the
/// program's runtime is blocked.
fn listen_for_stop(
    limit: DrainLimit,
    second: SecondSignal,
) -> std::io::Result<(CancellationToken, CancellationToken)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _within = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let mut signalled = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (drain, cut) = (CancellationToken::new(), CancellationToken::new());
    let tokens = (drain.clone(), cut.clone());
    let stopping = async move {
        signalled().await;
        drain.cancel();
        let late = async {
            match limit.is() {
                Some(drain_timeout) => tokio::time::sleep(drain_timeout.saturating_add(DRAIN_GRACE)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = signalled() => tracing::warn!("second signal: stopping at once"),
            () = late => return "the drain has passed its time limit; the process is ended",
        }
        cut.cancel();
        if second == SecondSignal::Cuts {
            tokio::select! {
                () = signalled() => return "third signal: the process is ended",
                () = tokio::time::sleep(CUT_MAX) => {}
            }
        }
        "the process does not end in order after the second signal; it is ended"
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let cause = runtime.block_on(stopping);
        tracing::error!(target: CRITICAL, cause, "stopped by force");
        std::thread::sleep(LAST_RECORD);
        std::process::exit(1);
    })?;
    Ok(tokens)
}

/// How long threads that block may keep a process that is done.
const BLOCKED_MAX: Duration = Duration::from_secs(2);

/// Threads of a runtime. Workers are as many as there are cores, from `min` to `max`; for what blocks there are
/// `max` more at most.
#[derive(Debug, Clone, Copy)]
pub struct Threads {
    pub min: usize,
    pub max: usize,
}

/// Runs a program's work, on as many threads as the runtime finds right unless told otherwise. A failure is logged
/// with its causes and gives exit status 1.
pub fn run(
    threads: Option<Threads>,
    work: impl Future<Output = Result<(), Box<dyn std::error::Error>>>,
) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all();
    if let Some(Threads { min, max }) = threads {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads(cores.clamp(min, max)).max_blocking_threads(max);
    }
    let done = builder.build().map_err(Into::into).and_then(|runtime| {
        let done = runtime.block_on(work);
        // A name that is being looked up, or a disk that hangs, does not keep the process.
        runtime.shutdown_timeout(BLOCKED_MAX);
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: CRITICAL, error = chain(&*error), "stopped by a failure");
            ExitCode::FAILURE
        }
    }
}

/// Raises the limit of open files as far as the system allows: each session takes four while it transfers.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%errno, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// Tells the program below what it is to be: the drain's limit in seconds.
    const LIMIT: &str = "PORTOLAN_TEST_DRAIN_LIMIT";
    const READY: &str = "all workers are blocked";

    /// No test of its own: the program that the tests below start. Its only worker is blocked, and its end needs it.
    #[test]
    fn program_with_blocked_workers() {
        let Ok(limit) = std::env::var(LIMIT) else { return };
        let drain_limit = DrainLimit::default();
        drain_limit.set(Duration::from_secs(limit.parse().unwrap()));
        let _never = run(Some(Threads { min: 1, max: 1 }), async {
            let signals = Signals::listen(drain_limit)?;
            tokio::spawn(async {
                eprintln!("{READY}");
                std::thread::sleep(Duration::from_secs(600));
            });
            signals.drain.cancelled().await;
            tokio::spawn(async {}).await?;
            Ok(())
        });
    }

    /// Killed when dropped.
    struct Blocked(Child);

    impl Blocked {
        fn start(limit: u64) -> Self {
            use std::io::{BufRead as _, BufReader};
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "tests::program_with_blocked_workers"])
                .env(LIMIT, limit.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains(READY)));
            // Its later words are not to fail.
            std::thread::spawn(move || lines.for_each(drop));
            Self(child)
        }

        fn terminate(&self) {
            let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).unwrap();
            kill_process(id, Signal::TERM).unwrap();
        }

        /// The exit status, and the time until then.
        fn end(&mut self) -> (Option<i32>, Duration) {
            let started = Instant::now();
            loop {
                if let Some(status) = self.0.try_wait().unwrap() {
                    return (status.code(), started.elapsed());
                }
                assert!(started.elapsed() < Duration::from_secs(30), "the program does not end");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    impl Drop for Blocked {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn a_second_signal_ends_a_program_whose_workers_are_blocked() {
        let mut program = Blocked::start(600);
        program.terminate();
        std::thread::sleep(Duration::from_millis(300));
        assert!(program.0.try_wait().unwrap().is_none(), "the first signal waits for the drain");
        program.terminate();
        let (status, took) = program.end();
        assert_eq!(status, Some(1));
        assert!(took <= CUT_MAX + Duration::from_secs(3), "{took:?}");
    }

    #[test]
    fn a_third_signal_ends_it_at_once() {
        let mut program = Blocked::start(600);
        for _ in 0..3 {
            program.terminate();
            std::thread::sleep(Duration::from_millis(300));
        }
        let (status, took) = program.end();
        assert_eq!(status, Some(1));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_drain_past_its_limit_ends_a_program_whose_workers_are_blocked() {
        let mut program = Blocked::start(1);
        program.terminate();
        let (status, took) = program.end();
        assert_eq!(status, Some(1));
        assert!(took > DRAIN_GRACE, "{took:?}");
        assert!(took < DRAIN_GRACE + Duration::from_secs(4), "{took:?}");
    }
}
