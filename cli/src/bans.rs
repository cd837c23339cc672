//! `portolan bans`: lists and lifts the bans of a running front end.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portolan_proto::control::{Ban, LiftBansRequest, ListBansRequest, ban::Who};

use super::Socket;
use portolan_telemetry::shown_time;

/// List the addresses and names that are banned after failed logins, or lift bans.
#[derive(Parser)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Subcommand)]
enum Action {
    Lift(Lift),
}

/// Lift the ban of an address or a name, or all bans, and forget their failed logins, also where they are no ban yet.
#[derive(Parser)]
struct Lift {
    /// An address, a network or a name, as `portolan bans` shows it.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    who: Option<String>,
    /// Lift all bans.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.action {
        None => super::ask(&arguments.socket, |mut client| async move {
            let mut stream = client.list_bans(ListBansRequest {}).await?.into_inner();
            let mut bans = Vec::new();
            while let Some(batch) = stream.message().await? {
                bans.extend(batch.bans);
            }
            Ok(if bans.is_empty() { "nobody is banned\n".to_owned() } else { table(&bans) })
        }),
        Some(Action::Lift(lift)) => super::ask(&arguments.socket, |mut client| async move {
            let lifted = client.lift_bans(LiftBansRequest { who: lift.who.clone() }).await?.into_inner();
            Ok(format!("{} lifted\n", lifted.count))
        }),
    }
}

fn table(bans: &[Ban]) -> String {
    let mut rows = vec![["KIND", "WHO", "UNTIL", "FAILED LOGINS"].map(str::to_owned).to_vec()];
    rows.extend(bans.iter().map(|ban| {
        let (kind, who) = match &ban.who {
            Some(Who::Address(address)) => ("address", address.clone()),
            Some(Who::Name(name)) => ("name", name.clone()),
            None => ("-", String::new()),
        };
        vec![kind.to_owned(), who, shown_time(super::time(ban.until_ns)), ban.failures.to_string()]
    }));
    super::table(&rows)
}
