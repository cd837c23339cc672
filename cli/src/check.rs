//! `portolan check FILE...`: all faults of configuration files, before a service meets them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use portolan_config::Config;
use portolan_process::EXIT_USAGE;

/// Check configuration files of front ends and agents, and the files they name.
///
/// Prints every fault of every file, with its line and what is allowed. Exit status 64 when there is one. Warnings, for what
/// the programs start with all the same, do not change the exit status: a certificate that has expired or expires within
/// 30 days, that is not valid yet, or that the authority beside it did not sign; a store without `domains`, or
/// whose `domains` is on another file system.
#[derive(Parser)]
pub(super) struct Arguments {
    /// Configuration files, of front ends or agents in any mixture.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let mut faulty = false;
    for file in &arguments.files {
        let (config, warnings) = Config::check(file);
        for warning in &warnings {
            eprintln!("warning: {warning}");
        }
        let found = match warnings.len() {
            0 => "no faults".to_owned(),
            1 => "no faults, 1 warning".to_owned(),
            count => format!("no faults, {count} warnings"),
        };
        match config {
            Ok(Config::Agent(agent)) => {
                println!("{}: agent of node {}, {found}", file.display(), agent.node);
            }
            Ok(Config::Frontend(frontend)) => {
                let (listeners, nodes) = (frontend.listeners.len(), frontend.nodes.len());
                println!(
                    "{}: front end with {listeners} listeners and {nodes} nodes, {found}",
                    file.display()
                );
            }
            Err(faults) => {
                eprintln!("{faults}");
                faulty = true;
            }
        }
    }
    if faulty { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}
