//! The operator's command `portolan`: one file a subcommand.
//!
//! Who calls it: an operator.
//! What it calls: configuration, the control socket of a running front end, the front end and the agent (for the
//! demo).
//! What it never does: change a running service otherwise than over its control socket.

#![forbid(unsafe_code)]

mod auth;
mod bans;
mod check;
mod demo;
mod kick;
mod map;
mod passwd;
mod pki;
mod reload;
mod status;

use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use portolan_config::checked::frontend::CONTROL_SOCKET;
use portolan_process as process;
use portolan_proto::control::control_client::ControlClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A front end that does not answer by then is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Set up, check, watch and try Portolan.
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
    Auth(auth::Arguments),
    Status(status::Arguments),
    Kick(kick::Arguments),
    Bans(bans::Arguments),
    Map(map::Arguments),
    Reload(reload::Arguments),
    Demo(demo::Arguments),
    Completions(Completions),
    Manual(Manual),
}

/// Print a completion script for a shell.
#[derive(Parser)]
struct Completions {
    shell: clap_complete::Shell,
}

/// Write the manual pages, in roff: portolan.1 and one for each subcommand.
#[derive(Parser)]
struct Manual {
    /// Folder for the files; it must be there.
    folder: PathBuf,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match process::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    match arguments.command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Passwd(arguments) => passwd::run(&arguments),
        Command::Pki(arguments) => pki::run(&arguments),
        Command::Auth(arguments) => auth::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Kick(arguments) => kick::run(&arguments),
        Command::Bans(arguments) => bans::run(&arguments),
        Command::Map(arguments) => map::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Completions(arguments) => {
            process::print_completions::<Arguments>(arguments.shell);
            ExitCode::SUCCESS
        }
        Command::Manual(arguments) => {
            match clap_mangen::generate_to(<Arguments as clap::CommandFactory>::command(), &arguments.folder)
            {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("portolan: {}: {error}", arguments.folder.display());
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Where the front end is that a command is for.
#[derive(Parser)]
struct Socket {
    /// The control socket of the front end: control.socket of its configuration.
    #[arg(long, global = true, value_name = "PATH", default_value = CONTROL_SOCKET)]
    socket: PathBuf,
}

/// Asks a running front end something over its control socket, and prints the answer. Exit status 1 when it does not
/// answer or refuses.
fn ask<F>(socket: &Socket, question: impl FnOnce(ControlClient<Channel>) -> F) -> ExitCode
where
    F: Future<Output = Result<String, Status>>,
{
    let asking = async {
        let path = &socket.socket;
        let client = portolan_frontend::operator::connect(path).await.map_err(|error| {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |cause| cause.source());
            let cause = causes.last().map(ToString::to_string).unwrap_or_default();
            format!(
                "no front end answers at {}: {cause}; run this as root or as the front end's user, where the \
                 front end runs, and name its control.socket by --socket",
                path.display()
            )
        })?;
        question(client).await.map_err(|status| match status.code() {
            Code::Unimplemented => "the front end is of an older version, which cannot do this".to_owned(),
            _ => status.message().to_owned(),
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answered = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let in_time = async { tokio::time::timeout(ANSWER_MAX, asking).await };
        runtime.block_on(in_time).unwrap_or_else(|_| Err(format!("no answer within {ANSWER_MAX:?}")))
    });
    match answered {
        // A reader that is gone, such as `head`, is no failure.
        Ok(text) => {
            std::io::stdout().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("portolan: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A point in time of the control socket.
fn time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

/// Columns as wide as they must be, two blanks between them; the first row is the heading.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}
