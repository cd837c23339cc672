//! `portolan kick`: ends sessions of a running front end.

use std::process::ExitCode;

use clap::Parser;
use portolan_proto::control::KickRequest;
use portolan_proto::control::kick_request::Who;

use super::Socket;

/// End a session of the running front end, or all of an admin, and abort what is transferred.
///
/// The client gets 421. An upload that is under way is not kept, unless its node is keeping it already. Exit status 1
/// when there is no such session.
#[derive(Parser)]
pub(super) struct Arguments {
    /// The session's id, as `portolan status` and the log show it, such as s17.
    #[arg(value_name = "SESSION", required_unless_present = "admin", conflicts_with = "admin")]
    session: Option<String>,
    /// End all sessions of this admin.
    #[arg(long, value_name = "NAME")]
    admin: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    super::ask(&arguments.socket, |mut client| async move {
        let session = arguments.session.clone().map(Who::Session);
        let who = session.or_else(|| arguments.admin.clone().map(Who::Admin));
        let count = client.kick(KickRequest { who }).await?.into_inner().count;
        Ok(format!("sessions asked to end: {count}\n"))
    })
}
