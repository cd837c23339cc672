//! The front end's process: arguments, logging, configuration, signals, the service manager, exit status. Nothing
//! else.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use portolan_agent::process;
use portolan_frontend::{Frontend, Host, Phase};
use sd_notify::NotifyState;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves the mail of a whole cluster over FTP: checks admins and routes each path to the node that holds it.
///
/// SIGTERM or SIGINT: stop letting clients in, let transfers finish, exit. A second one: cut transfers, exit. SIGHUP:
/// read the configuration again; `portolan reload` does the same and tells the outcome.
///
/// Exit status: 0 after a drain, 1 when it cannot serve or does not end in time, 64 when arguments or configuration are wrong.
#[derive(Parser)]
#[command(name = "portolan-frontend", version)]
struct Arguments {
    /// The configuration file; its keys are in docs/configuration.md.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/frontend.toml")]
    config: PathBuf,
    /// Print a completion script for this shell and exit.
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,
    /// Print the manual page, in roff, and exit.
    #[arg(long)]
    manual: bool,
}

fn main() -> ExitCode {
    let arguments = match process::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    if let Some(shell) = arguments.completions {
        process::print_completions::<Arguments>(shell);
        return ExitCode::SUCCESS;
    }
    if arguments.manual {
        return process::print_manual::<Arguments>();
    }
    let config = match portolan_config::Frontend::load(&arguments.config) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(process::EXIT_USAGE);
        }
    };
    let started = process::start_telemetry(&config.log, config.tracing.as_ref(), "portolan-frontend");
    let telemetry = match started {
        Ok(telemetry) => telemetry,
        Err(status) => return status,
    };
    process::raise_open_files();
    let threads = process::Threads { min: config.threads.min, max: config.threads.max };
    let host_telemetry = Some(Arc::clone(&telemetry));
    let status = process::run(Some(threads), async {
        let drain_limit = process::DrainLimit::default();
        drain_limit.set(config.drain_timeout);
        let signals = process::Signals::listen(drain_limit.clone())?;
        let sockets = inherited_sockets()?;
        let host = Host { sockets, telemetry: host_telemetry, drain_limit, tell: tell_service_manager };
        Frontend::bind(config, host).await?.run(signals).await;
        Ok(())
    });
    telemetry.stop();
    status
}

/// The sockets of systemd's socket activation, sd_listen_fds(3).
fn inherited_sockets() -> std::io::Result<Vec<TcpListener>> {
    let mut given = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        sockets.extend(given.take_tcp_listener(index)?);
    }
    Ok(sockets)
}

/// Tells systemd where the front end is in its life, sd_notify(3). Without systemd it does nothing.
fn tell_service_manager(phase: Phase) {
    let told = match phase {
        Phase::Starting => Ok(()),
        Phase::Serving => sd_notify::notify(&[NotifyState::Ready]),
        Phase::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Phase::Draining | Phase::Stopped => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
