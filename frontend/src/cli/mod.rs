//! The operator's command `portolan`: one file a subcommand.
//!
//! Who calls it: `bin/portolan.rs`.
//! What it calls: configuration, the front end and the agent (for the demo).
//! What it never does: change a running service.

mod check;
mod demo;
mod passwd;
mod pki;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portolan_agent::process;

/// Set up, check and try Portolan.
///
/// Exit status: 0 done, 1 failed, 64 wrong arguments or a faulty configuration.
#[derive(Parser)]
#[command(name = "portolan", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Arguments),
    Passwd(passwd::Arguments),
    Pki(pki::Arguments),
    Demo(demo::Arguments),
    Completions(Completions),
}

/// Print a completion script for a shell.
#[derive(Parser)]
struct Completions {
    shell: clap_complete::Shell,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = match process::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    match arguments.command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Passwd(arguments) => passwd::run(&arguments),
        Command::Pki(arguments) => pki::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Completions(arguments) => {
            process::print_completions::<Arguments>(arguments.shell);
            ExitCode::SUCCESS
        }
    }
}
