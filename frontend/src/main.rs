//! The front end's process: arguments, logging, configuration, signals, the service manager, exit status. Nothing
//! else.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use portolan_frontend::{Frontend, Host, Phase};
use portolan_process as process;
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
    #[command(flatten)]
    instead: process::Instead,
}

fn main() -> ExitCode {
    serve().unwrap_or_else(|status| status)
}

fn serve() -> Result<ExitCode, ExitCode> {
    let arguments = process::server_arguments(|arguments: &Arguments| &arguments.instead)?;
    let config = process::loaded(portolan_config::Frontend::load(&arguments.config))?;
    let telemetry = process::start_telemetry(&config.log, config.tracing.as_ref(), "portolan-frontend")?;
    process::raise_open_files();
    let threads = process::Threads { min: config.threads.min, max: config.threads.max };
    let host_telemetry = Some(Arc::clone(&telemetry));
    let status = process::run(Some(threads), async {
        let drain_limit = process::DrainLimit::default();
        drain_limit.set(config.drain_timeout);
        let signals = process::Signals::listen(drain_limit.clone())?;
        let sockets = inherited_sockets()?;
        let host = Host { sockets, telemetry: host_telemetry, drain_limit, on_phase: report_phase };
        Frontend::bind(config, host).await?.run(signals).await;
        Ok(())
    });
    telemetry.stop();
    Ok(status)
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

/// Reports to systemd where the front end is in its life, sd_notify(3). Without systemd it does nothing.
fn report_phase(phase: Phase) {
    let reported = match phase {
        Phase::Starting => Ok(()),
        Phase::Serving => sd_notify::notify(&[NotifyState::Ready]),
        Phase::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Phase::Draining | Phase::Stopped => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = reported {
        tracing::warn!(%error, "the service manager cannot be notified");
    }
}
