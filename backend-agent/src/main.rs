//! The agent's process: arguments, logging, configuration, signals, exit status; and the command that marks a store. Nothing
//! else.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use portolan_agent::Agent;
use portolan_agent::store::disk::mark::{self, Written};
use portolan_config::checked::agent::MarkRule;
use portolan_process as process;
use portolan_proto::id::NodeId;
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
#[command(name = "portolan-agent", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file; its keys are in docs/configuration.md.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/agent.toml")]
    config: PathBuf,
    #[command(flatten)]
    instead: process::Instead,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    Mark(Mark),
}

/// Marks a store as that of a node, once: an agent serves no store without its mark, which an empty mount point lacks.
///
/// See that the volume is mounted first. Nothing else is ever to run this: it would mark the mount point too.
///
/// Exit status: 0 when the store carries the node's mark, 1 when it was not marked, 64 when arguments or configuration are
/// wrong.
#[derive(clap::Args)]
struct Mark {
    /// The folder that holds, or will hold, domains/<domain>/...: store.root of the node's agent.
    root: PathBuf,
    /// The node's name [default: that of the configuration].
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    node: Option<NodeId>,
    /// The agent's configuration, which says whose mark the store is to carry.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/agent.toml")]
    config: PathBuf,
    /// The store is meant to be empty, and to be on the file system of the folder around it.
    #[arg(long)]
    empty: bool,
}

fn main() -> ExitCode {
    started().unwrap_or_else(|status| status)
}

fn started() -> Result<ExitCode, ExitCode> {
    let arguments = process::server_arguments(|arguments: &Arguments| &arguments.instead)?;
    match arguments.task {
        Some(Task::Mark(asked)) => mark_store(&asked),
        None => serve(arguments),
    }
}

fn mark_store(asked: &Mark) -> Result<ExitCode, ExitCode> {
    let node = match &asked.node {
        Some(node) => node.clone(),
        None => {
            let config = process::loaded(portolan_config::Agent::load(&asked.config))?;
            match config.mark {
                MarkRule::Of(node) => node,
                MarkRule::Unchecked => config.node,
            }
        }
    };
    let root = asked.root.display();
    match mark::write(&asked.root, &node, asked.empty) {
        Ok(Written::New(id)) => println!("{root} is marked for node {node}, as store {id}"),
        Ok(Written::Already(id)) => {
            println!("{root} is marked for node {node} already, as store {id}; nothing was changed");
        }
        Err(error) => {
            eprintln!("{root} was not marked: {}", portolan_telemetry::chain(&error));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(arguments: Arguments) -> Result<ExitCode, ExitCode> {
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
