//! What every program of the project does around its work: arguments, log, signals, exit status.
//!
//! Who calls it: the `main.rs` of each program.
//! What it calls: clap, tokio, portolan-telemetry.
//! What it never does: anything that a library caller or a test would have to undo.

use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use portolan_config::checked::log::{Log, Tracing};
use portolan_telemetry::Telemetry;
use portolan_telemetry::log::CRITICAL;
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

/// What a process is told by signals.
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

    /// Listens for the signals.
    pub fn listen() -> std::io::Result<Self> {
        let (drain, cut) = listen_for_stop()?;
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

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let (drain, cut) = listen_for_stop()?;
    tokio::spawn(async move {
        cut.cancelled().await;
        std::process::exit(1);
    });
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

/// Tokens that the first and the second SIGTERM or SIGINT cancel. The third ends the process at once.
fn listen_for_stop() -> std::io::Result<(CancellationToken, CancellationToken)> {
    let (drain, cut) = (CancellationToken::new(), CancellationToken::new());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tokens = [drain.clone(), cut.clone()];
    tokio::spawn(async move {
        for asked in 0_usize.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match tokens.get(asked) {
                Some(token) => token.cancel(),
                None => std::process::exit(1),
            }
            if asked > 0 {
                tracing::warn!("second signal: stopping at once");
            }
        }
    });
    Ok((drain, cut))
}

/// How long threads that block may keep a process that is done.
const BLOCKED_MAX: std::time::Duration = std::time::Duration::from_secs(2);

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

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
