//! `portolan auth test USER`: shows what the admins file and the directories answer about a name, and which grants count.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portolan_process::EXIT_USAGE;
use portolan_telemetry::chain;

use portolan_cluster::auth::Admins;
use portolan_cluster::auth::steps::Steps;

/// Test how admins log in.
#[derive(Parser)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Test(Test),
}

/// Show step by step what the admins file and the directories answer about a name, and which grants apply.
///
/// Reads the configuration and asks by itself: a running front end is not involved and counts no failed login. A directory
/// counts a wrong password as always. Exit status 0 when the login would be accepted, 1 when not.
#[derive(Parser)]
struct Test {
    /// The name as an admin would type it.
    user: String,
    /// Ask for the password too (on a terminal without showing it, otherwise from the first line of standard input).
    /// Without it the name is only looked up.
    #[arg(long)]
    password: bool,
    /// The front end's configuration file.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/portolan/frontend.toml")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let Action::Test(test) = &arguments.action;
    let config = match portolan_config::Frontend::load(&test.config) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let password = match test.password.then(super::passwd::read_one).transpose() {
        Ok(password) => password,
        Err(message) => {
            eprintln!("portolan auth test: {message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let explained = runtime.map_err(|error| chain(&error)).and_then(|runtime| {
        let admins = Admins::new(&config).map_err(|error| chain(&error))?;
        let show = Steps::to(&|step| println!("{step}"));
        let explaining = admins.explain(&test.user, password.as_deref(), show);
        Ok(runtime.block_on(explaining))
    });
    match explained {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("portolan auth test: {message}");
            ExitCode::FAILURE
        }
    }
}
