//! The front end's process: arguments, logging, configuration, signals, exit status. Nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use portolan_agent::process;
use portolan_frontend::Frontend;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves the mail of a whole cluster over FTP: checks admins and routes each path to the node that holds it.
///
/// Exit status: 0 after a drain, 1 when it cannot serve, 64 when arguments or configuration are wrong.
#[derive(Parser)]
#[command(name = "portolan-frontend", version)]
struct Arguments {
    /// The configuration file; its keys are in docs/configuration.md.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/frontend.toml")]
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
    let config = match portolan_config::Frontend::load(&arguments.config) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(process::EXIT_USAGE);
        }
    };
    process::start_log(&config.log);
    process::run(async {
        let frontend = Frontend::bind(config).await?;
        frontend.run(process::shutdown_on_signal()?).await;
        Ok(())
    })
}
