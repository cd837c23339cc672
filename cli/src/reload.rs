//! `portolan reload`: has a running front end read its configuration again.

use std::process::ExitCode;

use clap::Parser;
use portolan_proto::control::ReloadRequest;

use super::Socket;

/// Have the running front end read its configuration again.
///
/// Prints what has changed. A configuration with faults is refused as a whole: the faults are printed, the old one
/// stays in force, and the exit status is 1. No session and no transfer ends by it. `nodes`, `threads`, `control`,
/// `log.format`, and whether `cluster` is plaintext, take a restart.
#[derive(Parser)]
pub(super) struct Arguments {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    super::ask(&arguments.socket, |mut client| async move {
        let changes = client.reload(ReloadRequest {}).await?.into_inner().changes;
        if changes.is_empty() {
            return Ok("reloaded; nothing has changed\n".to_owned());
        }
        Ok(changes.into_iter().map(|change| change + "\n").collect())
    })
}
