//! The agent's process: arguments, logging, configuration, signals, exit status. Nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use portolan_agent::{Agent, process};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves one mail node's part of the virtual tree to Portolan's front ends, over gRPC.
///
/// SIGTERM or SIGINT: refuse new calls, let those under way finish, exit. A second one: exit at once. SIGHUP changes
/// nothing.
///
/// Exit status: 0 after a drain, 1 when it cannot serve, 64 when arguments or configuration are wrong.
#[derive(Parser)]
#[command(name = "portolan-agent", version)]
struct Arguments {
    /// The configuration file; its keys are in docs/configuration.md.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/agent.toml")]
    config: PathBuf,
    /// Print a completion script for this shell and exit.
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,
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
    let config = match portolan_config::Agent::load(&arguments.config) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(process::EXIT_USAGE);
        }
    };
    process::start_log(&config.log);
    process::raise_open_files();
    process::run(None, async {
        process::survive_hang_up()?;
        let agent = Agent::bind(config).await?;
        agent.run(process::shutdown_on_signal()?).await?;
        Ok(())
    })
}
