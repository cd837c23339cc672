//! The handlers of commands, in groups. Each checks its argument, does its part, and says what it comes to.

mod digest;
mod entry;
mod login;
mod name;
mod option;
mod port;
mod transfer;

use std::borrow::Cow;
use std::future::Future;

use portolan_proto::path::{PathFault, display};
use portolan_proto::v1::DigestAlgorithm;

use super::client::{Writing, undoubled};
use super::command::Command;
use super::listing::{Asked, Form};
use super::session::{Session, Step};
use crate::reply::{self, Action, Reply};
use crate::transfer::{Transfer, Unanswered, command_failed};
use crate::verb::Verb;
use portolan_cluster::auth::Login;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{self};

/// Runs a command.
pub(super) async fn run(session: &mut Session, command: Command) -> Step {
    let Command { verb, argument } = command;
    let argument = &argument[..];
    session.client.sends(argument);
    // RFC 959 section 5.4: RNTO follows RNFR at once.
    if verb != Verb::RNTO && verb != Verb::NOOP {
        session.rename_from = None;
    }
    if !verb.is_open() && session.login.is_none() {
        return Reply::new(530, "Log in first, with USER and PASS.").into();
    }
    match verb {
        Verb::USER => login::user(session, argument).await,
        Verb::PASS => login::pass(session, argument).await,
        Verb::ACCT => Reply::new(202, "No account is needed.").into(),
        Verb::REIN => login::rein(session),
        Verb::QUIT => Step::Quit(good_bye()),
        Verb::AUTH => login::auth(session, argument),
        Verb::PBSZ => login::pbsz(session, argument),
        Verb::PROT => login::prot(session, argument),
        Verb::CCC => login::ccc(session),
        Verb::HOST => login::host(session, argument),
        Verb::CLNT | Verb::CSID => login::client(session, argument),

        Verb::NOOP => noop().into(),
        Verb::ABOR => Reply::new(226, "No transfer in progress.").into(),
        Verb::SYST => Reply::new(215, "UNIX Type: L8").into(),
        Verb::HELP => option::help(argument),
        Verb::FEAT => option::feat(session),
        Verb::OPTS => option::opts(session, argument),
        Verb::LANG => option::lang(session, argument),
        Verb::TYPE => option::data_type(session, argument),
        Verb::MODE => option::mode(session, argument),
        Verb::STRU => option::structure(argument),

        Verb::PASV => port::pasv(session).await,
        Verb::EPSV => port::epsv(session, argument).await,
        Verb::PORT => port::port(session, argument),
        Verb::EPRT => port::eprt(session, argument),

        Verb::CWD | Verb::XCWD => name::cwd(session, argument).await,
        Verb::CDUP | Verb::XCUP => name::cwd(session, b"..").await,
        Verb::PWD | Verb::XPWD => name::pwd(session),
        Verb::MKD | Verb::XMKD => name::mkd(session, argument).await,
        Verb::RMD | Verb::XRMD => name::rmd(session, argument).await,
        Verb::DELE => name::dele(session, argument).await,
        Verb::RNFR => name::rnfr(session, argument).await,
        Verb::RNTO => name::rnto(session, argument).await,

        Verb::SIZE => entry::size(session, argument).await,
        Verb::MDTM => entry::mdtm(session, argument).await,
        Verb::MFMT => entry::mfmt(session, argument).await,
        Verb::MFF => entry::mff(session, argument).await,
        Verb::MLST => entry::mlst(session, argument).await,
        Verb::AVBL => entry::avbl(session, argument).await,
        Verb::STAT if argument.is_empty() => status(session, None).into(),
        Verb::STAT => entry::stat(session, Asked::parse(argument)).await,
        Verb::SITE => entry::site(session, argument).await,

        Verb::RANG => digest::rang(session, argument),
        Verb::HASH => digest::hash(session, argument).await,
        Verb::XCRC => digest::x(session, verb, DigestAlgorithm::Crc32, argument).await,
        Verb::XMD5 => digest::x(session, verb, DigestAlgorithm::Md5, argument).await,
        Verb::XSHA1 => digest::x(session, verb, DigestAlgorithm::Sha1, argument).await,
        Verb::XSHA256 => digest::x(session, verb, DigestAlgorithm::Sha256, argument).await,
        Verb::XSHA512 => digest::x(session, verb, DigestAlgorithm::Sha512, argument).await,

        Verb::ALLO => transfer::allo(session, argument),
        Verb::REST => transfer::rest(session, argument),
        Verb::RETR => transfer::retr(session, argument).await,
        Verb::STOR => transfer::stor(session, argument).await,
        Verb::STOU => transfer::stou(session),
        Verb::APPE => transfer::appe(session, argument).await,
        Verb::LIST => transfer::list(session, verb, Form::List, Asked::parse(argument)).await,
        Verb::NLST => transfer::list(session, verb, Form::Names, Asked::parse(argument)).await,
        Verb::MLSD => {
            let asked = Asked { path: argument.to_vec(), ..Asked::default() };
            transfer::list(session, verb, Form::Facts(session.facts), asked).await
        }
    }
}

pub(super) fn noop() -> Reply {
    Reply::new(200, "OK.")
}

pub(super) fn good_bye() -> Reply {
    Reply::new(221, "Good bye.")
}

/// STAT without a name (RFC 959 section 4.1.3): the session, and the transfer under way.
pub(super) fn status(session: &Session, transfer: Option<&Transfer>) -> Reply {
    let login = session.login.as_ref().map_or("nobody", |login| &login.admin.name);
    let tls = |protected| if protected { "TLS" } else { "plaintext" };
    let modes = &session.modes;
    let mut body = vec![
        format!("Session {} of {login} from {}", session.id, session.origin.client.ip()),
        format!("Control connection: {}; data connections: {}", tls(session.protected), tls(modes.protected)),
        format!(
            "TYPE {}, MODE {}, STRU F",
            if modes.ascii() { "A" } else { "I" },
            if modes.deflate { "Z" } else { "S" }
        ),
    ];
    body.push(match transfer {
        None => "No transfer in progress".to_owned(),
        Some(transfer) => {
            let (bytes, seconds) = (transfer.bytes(), transfer.elapsed().as_secs());
            format!("{} {}: {bytes} bytes in {seconds} s", transfer.verb.name(), transfer.path)
        }
    });
    let body = body.into_iter().map(String::into_bytes).collect();
    Reply { body, ..Reply::new(211, "Status of Portolan:") }
}

/// The login that the dispatch has made sure of.
fn login(session: &Session) -> Login {
    session.login.clone().expect("only commands that need no login are served before it")
}

/// The path of an argument; the reply if it is none.
async fn path(session: &Session, verb: Verb, argument: &[u8]) -> Result<VirtualPath, Reply> {
    named(session, verb, argument).await.map(|(_, path)| path)
}

/// The name that an argument means, and its path; the reply if it is none.
async fn named<'a>(
    session: &Session,
    verb: Verb,
    argument: &'a [u8],
) -> Result<(Cow<'a, [u8]>, VirtualPath), Reply> {
    if argument.contains(&b'\r') {
        return Err(Reply::new(553, "A name with a line break cannot be used in a command."));
    }
    let name = match undoubled(argument) {
        Some(undoubled) => meant(session, verb, argument, undoubled).await?,
        None => Cow::Borrowed(argument),
    };
    let path = VirtualPath::resolve(&session.cwd, &name).map_err(bad_name)?;
    Ok((name, path))
}

/// Which name a client means that writes one with two bytes 255 in a row: that one, or, if it doubles such bytes
/// (RFC 854), the other. As long as that is not known, commands that only look find what exists if it is one of the
/// two; all others are refused, so that none ever changes, makes, or goes to, another name than the client's.
async fn meant<'a>(
    session: &Session,
    verb: Verb,
    argument: &'a [u8],
    undoubled: Vec<u8>,
) -> Result<Cow<'a, [u8]>, Reply> {
    match session.client.writing(session.protected) {
        Some(Writing::Plain) => return Ok(argument.into()),
        Some(Writing::Doubled) => return Ok(undoubled.into()),
        None if verb.only_looks() => {}
        None => {
            let code = if verb.makes_name() { 553 } else { 550 };
            let text =
                "The name has two bytes 255 in a row, and it is not known whether the client doubles them.";
            return Err(Reply::new(code, text));
        }
    }
    let found = (exists(session, verb, argument).await?, exists(session, verb, &undoubled).await?);
    let (one, other) = (display(argument), display(&undoubled));
    match found {
        (true, false) => Ok(argument.into()),
        (false, true) => Ok(undoubled.into()),
        (false, false) => Err(Reply::with(550, format!("Neither {one} nor {other} exists."))),
        (true, true) => {
            let text = format!(
                "Both {one} and {other} exist, and it is not known whether the client doubles byte 255."
            );
            Err(Reply::with(550, text))
        }
    }
}

async fn exists(session: &Session, verb: Verb, name: &[u8]) -> Result<bool, Reply> {
    let Ok(path) = VirtualPath::resolve(&session.cwd, name) else { return Ok(false) };
    let login = login(session);
    let looking = async {
        match session.service.shared.tree.stat(&login, &path).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() || error.is_not_a_directory() => Ok(false),
            Err(error) => Err(error),
        }
    };
    asked(session, verb, &path, Action::Look, looking).await
}

fn bad_name(fault: PathFault) -> Reply {
    reply::of(&fault.into(), Action::Look, &VirtualPath::default())
}

/// What a question to the tree came to.
async fn asked<T>(
    session: &Session,
    verb: Verb,
    path: &VirtualPath,
    action: Action,
    asking: impl Future<Output = tree::Result<T>>,
) -> Result<T, Reply> {
    asking.await.map_err(|error| {
        if let Some(login) = &session.login {
            command_failed(&session.control, login, verb, (path, None), &error);
        }
        reply::of(&error, action, path)
    })
}

/// What a change came to. `to` is the new name of what is renamed.
async fn asked_to_change<T>(
    session: &Session,
    login: &Login,
    verb: Verb,
    (path, to): (&VirtualPath, Option<&VirtualPath>),
    asking: impl Future<Output = tree::Result<T>>,
) -> Result<T, Reply> {
    let control = &session.control;
    let unanswered = Unanswered { control, login, verb, path, to };
    let answered = asking.await;
    unanswered.is_answered();
    answered.map_err(|error| {
        command_failed(control, login, verb, (path, to), &error);
        reply::of(&error, Action::Change, to.unwrap_or(path))
    })
}

/// True where this listener demands TLS for logins.
fn login_requires_tls(session: &Session) -> bool {
    session.service.listener.tls.settings().is_some_and(|tls| tls.login_required)
}

/// True where this listener demands TLS for data.
fn data_requires_tls(session: &Session) -> bool {
    session.service.listener.tls.settings().is_some_and(|tls| tls.data_required)
}
