//! `portolan kick SESSION`: ends a session of a running front end.

use std::process::ExitCode;

use clap::Parser;
use portolan_proto::control::KickRequest;

use super::Socket;

/// End a session of the running front end, and abort its transfer.
///
/// The client gets 421. An upload that is under way is not kept, unless its node is keeping it already. Exit status 1
/// when there is no such session.
#[derive(Parser)]
pub(super) struct Arguments {
    /// The session's id, as `portolan status` and the log show it, such as s17.
    #[arg(value_name = "SESSION")]
    session: String,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    super::ask(&arguments.socket, |mut client| async move {
        client.kick(KickRequest { session: arguments.session.clone() }).await?;
        Ok(format!("{} is asked to end\n", arguments.session))
    })
}
