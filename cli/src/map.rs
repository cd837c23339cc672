//! `portolan map`: the domain map of a running front end.

use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portolan_proto::control::{
    ConfirmMissingRequest, ExplainPathRequest, ListDomainsRequest, MappedDomain, RefreshMapRequest,
};
use portolan_proto::path;

use super::Socket;

/// Print which nodes each domain lies on, by which source, where sources disagree, and what is therefore not shown.
#[derive(Parser)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only domains on which sources disagree, or of which a node holds what clients are not shown.
    #[arg(long)]
    conflicts: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Subcommand)]
enum Action {
    Explain(Explain),
    /// Have the map of the directory read again.
    Refresh,
    Confirm(Confirm),
}

/// Say step by step how a path is routed.
#[derive(Parser)]
struct Explain {
    /// A path of the virtual tree, such as /domains/example.org/users/anna.
    path: std::ffi::OsString,
}

/// Say that what is missing of a node or a domain is meant to be missing, for all front ends.
#[derive(Parser)]
struct Confirm {
    /// A domain or a node, as the reply 450 and the warning name it.
    name: std::ffi::OsString,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.action {
        None => super::ask(&arguments.socket, |mut client| async move {
            let request = ListDomainsRequest { conflicts_only: arguments.conflicts };
            let mut stream = client.list_domains(request).await?.into_inner();
            let mut rows =
                vec![["DOMAIN", "NODES", "SOURCE", "CONFLICTS", "IN DOUBT"].map(str::to_owned).to_vec()];
            while let Some(batch) = stream.message().await? {
                rows.extend(batch.domains.iter().map(row));
            }
            Ok(super::table(&rows))
        }),
        Some(Action::Refresh) => super::ask(&arguments.socket, |mut client| async move {
            let domains = client.refresh_map(RefreshMapRequest {}).await?.into_inner().domains;
            Ok(format!("the directory names {domains} domains\n"))
        }),
        Some(Action::Confirm(confirm)) => super::ask(&arguments.socket, |mut client| async move {
            let what = confirm.name.clone().into_vec();
            let shown = path::display(&what);
            let request = ConfirmMissingRequest { what: what.into() };
            let confirmed = client.confirm_missing(request).await?.into_inner();
            let (kind, count) = (confirmed.kind, confirmed.count);
            Ok(format!("{kind} {shown}: {count} domains and objects are no longer in doubt\n"))
        }),
        Some(Action::Explain(explain)) => super::ask(&arguments.socket, |mut client| async move {
            let path = explain.path.clone().into_vec().into();
            let explained = client.explain_path(ExplainPathRequest { path }).await?.into_inner();
            Ok(explained.steps.join("\n") + "\n")
        }),
    }
}

fn row(domain: &MappedDomain) -> Vec<String> {
    let words = domain.conflicts.iter().map(|word| format!("{}: {}", word.source, word.nodes.join(",")));
    let mut words: Vec<String> = words.collect();
    if !domain.elsewhere.is_empty() {
        words.push(format!("not shown: its part on {}", domain.elsewhere.join(",")));
    }
    words.extend(domain.hidden.iter().map(|one| {
        let shown = if one.shown.is_empty() { "nowhere" } else { &one.shown };
        format!("{} is shown from {shown}, not from {}", path::display(&one.object), one.hidden.join(","))
    }));
    match domain.hidden_count.saturating_sub(domain.hidden.len() as u64) {
        0 => {}
        more => words.push(format!("and {more} more")),
    }
    vec![
        path::display(&domain.domain),
        domain.nodes.join(","),
        domain.source.clone(),
        words.join("; "),
        domain.in_doubt.join(","),
    ]
}
