//! What every program of the project does around its work: arguments, log, signals, exit status.
//!
//! Who calls it: the `main.rs` of each program.
//! What it calls: clap, tracing-subscriber, tokio.
//! What it never does: anything that a library caller or a test would have to undo.

use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use portolan_config::checked::{Log, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

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

/// Starts logging to stderr. `PORTOLAN_LOG` overrides the level, in the syntax of tracing's EnvFilter; a value
/// that is not valid ends the process with the status for wrong arguments.
pub fn start_log(log: &Log) {
    // libunftp logs what a client breaks off as its own errors, but the front end logs the cause once; rustls
    // warns of every client that connects to an IP address.
    let quiet = "libunftp=off,rustls=error,h2=warn,hyper=warn";
    let wanted = std::env::var("PORTOLAN_LOG").unwrap_or_else(|_| log.level.to_owned());
    let filter = EnvFilter::try_new(format!("{quiet},{wanted}")).unwrap_or_else(|error| {
        eprintln!("PORTOLAN_LOG: {wanted:?} is not valid: {error}; allowed: a level, or TARGET=LEVEL,...");
        std::process::exit(i32::from(EXIT_USAGE));
    });
    let text = match log.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if text {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        builder.json().init();
    }
}

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        for asked in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked > 0 {
                tracing::warn!("second signal: stopping at once");
                std::process::exit(1);
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// Runs a program's work. A failure is logged with its causes and gives exit status 1.
pub fn run(work: impl Future<Output = Result<(), Box<dyn std::error::Error>>>) -> ExitCode {
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(work));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&*error), "stopped by a failure");
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
