//! The agent's process: arguments, logging, configuration, signals, exit status. Nothing else.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use portolan_agent::Agent;
use portolan_process as process;
use portolan_telemetry::Telemetry;
use sd_notify::NotifyState;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves one mail node's part of the virtual tree to Portolan's front ends, over gRPC.
///
/// SIGTERM or SIGINT: refuse new calls, let those under way finish, exit. A second one: exit at once. SIGHUP: read
/// the log's part of the configuration again.
///
/// Exit status: 0 after a drain, 1 when it cannot serve or does not end in time, 64 when arguments or configuration are wrong.
#[derive(Parser)]
#[command(name = "portolan-agent", version)]
struct Arguments {
    /// The configuration file; its keys are in docs/configuration.md.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/agent.toml")]
    config: PathBuf,
    #[command(flatten)]
    instead: process::Instead,
}

fn main() -> ExitCode {
    serve().unwrap_or_else(|status| status)
}

fn serve() -> Result<ExitCode, ExitCode> {
    let arguments = process::server_arguments(|arguments: &Arguments| &arguments.instead)?;
    let config = process::loaded(portolan_config::Agent::load(&arguments.config))?;
    let telemetry = process::start_telemetry(&config.log, config.tracing.as_ref(), "portolan-agent")?;
    process::raise_open_files();
    let limit = process::DrainLimit::default();
    limit.set(config.drain_timeout);
    let (reloaded, shown) = (Arc::clone(&telemetry), Arc::clone(&telemetry));
    let status = process::run(None, async {
        process::on_hang_up(move || reload_log(&arguments.config, &reloaded))?;
        let agent = Agent::bind(config).await?.with_telemetry(shown);
        let shutdown = process::shutdown_on_signal(limit)?;
        // The port is bound, and calls wait there until they are served.
        tell_service_manager(NotifyState::Ready);
        let stopping = shutdown.clone();
        let tell_stopping = async {
            stopping.cancelled().await;
            tell_service_manager(NotifyState::Stopping);
            Ok(())
        };
        // Both to their ends: an agent that has nothing to do ends in the moment it is asked to.
        tokio::try_join!(tell_stopping, agent.run(shutdown))?;
        Ok(())
    });
    telemetry.stop();
    Ok(status)
}

/// Tells systemd where the agent is in its life, sd_notify(3). Without systemd it does nothing.
fn tell_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be notified");
    }
}

/// Reads the configuration again for its log. What else has changed in it takes a restart.
fn reload_log(file: &Path, telemetry: &Telemetry) {
    let loaded = portolan_config::Agent::load(file).map_err(|faults| faults.to_string());
    let set = loaded.and_then(|config| telemetry.set_log(&config.log).map_err(|error| error.to_string()));
    match set {
        Ok(()) => tracing::info!("log reloaded; other changes take a restart"),
        Err(cause) => tracing::error!(cause, "the new configuration is refused; the old one stays in force"),
    }
}
