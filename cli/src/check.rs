//! `portolan check FILE...`: all faults of configuration files, before a service meets them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use portolan_config::Config;
use portolan_process::EXIT_USAGE;

/// Check configuration files of front ends and agents, and the files they name.
///
/// Prints every fault of every file, with its line and what is allowed. Exit status 64 when there is one.
#[derive(Parser)]
pub(super) struct Arguments {
    /// Configuration files, of front ends or agents in any mixture.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let mut faulty = false;
    for file in &arguments.files {
        match Config::load(file) {
            Ok(Config::Agent(agent)) => {
                println!("{}: agent of node {}, no faults", file.display(), agent.node);
            }
            Ok(Config::Frontend(frontend)) => {
                let (listeners, nodes) = (frontend.listeners.len(), frontend.nodes.len());
                println!(
                    "{}: front end with {listeners} listeners and {nodes} nodes, no faults",
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
