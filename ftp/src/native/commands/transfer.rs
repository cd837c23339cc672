//! Transfers: what they need is checked and taken from the session; they run beside it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use portolan_config::checked::listener::{Ascii, ProxiedData};

use super::digest::span;
use super::{bad_name, data_requires_tls, login, named, path};
use crate::native::arrival::Setup;
use crate::native::command::{number, words};
use crate::native::data::Plan;
use crate::native::listing::{self, Asked, Form};
use crate::native::session::{NextTransfer, Session, Step};
use crate::native::work::{Job, Work};
use crate::reply::Reply;
use crate::transfer::Transfer;
use crate::verb::Verb;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::Begins;

/// ALLO (RFC 959 section 4.1.3): the bytes of the next upload; the record size of page structure means nothing here, and is
/// there with or without a number of bytes.
pub(super) fn allo(session: &mut Session, argument: &[u8]) -> Step {
    let declared = match &words(argument)[..] {
        [bytes] => number(bytes),
        [bytes, b"R" | b"r", record] => number(record).and_then(|_| number(bytes)),
        [b"R" | b"r", record] if number(record).is_some() => {
            return Reply::new(202, "Space is not allocated by records.").into();
        }
        _ => None,
    };
    match declared {
        Some(bytes) => {
            session.next.declared = Some(bytes);
            Reply::with(200, format!("The next upload must bring {bytes} bytes.")).into()
        }
        None => Reply::new(501, "Syntax: ALLO bytes, ALLO bytes R record.").into(),
    }
}

pub(super) fn rest(session: &mut Session, argument: &[u8]) -> Step {
    let Some(offset) = number(argument) else {
        return Reply::new(501, "Syntax: REST bytes.").into();
    };
    if offset > 0 && converts(session) {
        return Reply::new(504, "REST is not possible while line ends are converted; use TYPE I.").into();
    }
    session.next.restart = Some(offset);
    session.next.range = None;
    Reply::with(350, format!("The next transfer begins at byte {offset}.")).into()
}

fn converts(session: &Session) -> bool {
    session.modes.ascii() && session.service.listener.ascii == Ascii::Convert
}

/// What the data connection of a transfer needs, taken from the session: it serves one transfer. Where that is refused, what is
/// left in the session is ended behind the reply.
fn plan(session: &mut Session) -> Result<Plan, Reply> {
    if data_requires_tls(session) && !session.modes.protected {
        return Err(Reply::new(521, "Data in plaintext is not allowed here; send PBSZ 0 and PROT P."));
    }
    if let Setup::None = session.setup {
        return Err(Reply::new(425, "Send PASV or EPSV first."));
    }
    let bare = session.service.listener.proxy_protocol.data == ProxiedData::Bare;
    let reuse = session.service.listener.session_reuse;
    Ok(Plan {
        setup: std::mem::take(&mut session.setup),
        origin: session.origin,
        pace: session.pace.clone(),
        tls: session.tls.clone().filter(|_| session.modes.protected).map(|tls| (tls, reuse)),
        close_notify: session.service.listener.close_notify,
        compression: session.modes.deflate.then_some(session.modes.level),
        may_have_header: session.origin.balancer.is_some() && bare,
    })
}

fn job(session: &mut Session, verb: Verb, path: &VirtualPath) -> Result<Job, Reply> {
    let ascii = session.modes.ascii().then_some(session.service.listener.ascii);
    if ascii == Some(Ascii::Refuse) {
        return Err(Reply::new(504, "Send TYPE I first; text mode would alter mail."));
    }
    let plan = plan(session)?;
    let login = login(session);
    Ok(Job {
        tree: Arc::clone(&session.service.shared.tree),
        control: Arc::clone(&session.control),
        plan,
        transfer: Arc::new(Transfer::begin(&session.control, &login, verb, path, ascii.is_some())),
        login,
        ascii,
    })
}

/// The step of a transfer that could be set up, or of the reply why not.
fn step(prepared: Result<(Work, Arc<Transfer>), Reply>) -> Step {
    match prepared {
        Ok((work, transfer)) => Step::Work(work, Some(transfer)),
        Err(reply) => reply.into(),
    }
}

pub(super) async fn retr(session: &mut Session, argument: &[u8]) -> Step {
    let (restart, range) = (session.next.restart.take(), session.next.range.take());
    let path = path(session, Verb::RETR, argument).await;
    let prepared = path.and_then(|path| job(session, Verb::RETR, &path)).map(|job| {
        let (offset, length) = match restart {
            Some(offset) => (offset, None),
            None => span(range),
        };
        let transfer = Arc::clone(&job.transfer);
        (job.retrieve(offset, length), transfer)
    });
    step(prepared)
}

pub(super) async fn stor(session: &mut Session, argument: &[u8]) -> Step {
    let next = std::mem::take(&mut session.next);
    if next.range.is_some() {
        return Reply::new(503, "RANG applies to HASH and RETR; use REST to resume an upload.").into();
    }
    let begins = match next.restart {
        None | Some(0) => Begins::Replacing,
        Some(offset) => Begins::At(offset),
    };
    let path = path(session, Verb::STOR, argument).await;
    let prepared = path.and_then(|path| job(session, Verb::STOR, &path)).map(|job| {
        let transfer = Arc::clone(&job.transfer);
        (job.store(begins, next.declared), transfer)
    });
    step(prepared)
}

/// STOU: a name that is free, in the working directory.
pub(super) fn stou(session: &mut Session) -> Step {
    let NextTransfer { restart, range, declared } = std::mem::take(&mut session.next);
    if range.is_some() || restart.is_some_and(|offset| offset > 0) {
        return Reply::new(503, "STOU cannot follow REST or RANG.").into();
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("{seconds}.{:016x}", rand::random::<u64>());
    let prepared = VirtualPath::resolve(&session.cwd, name.as_bytes())
        .map_err(bad_name)
        .and_then(|path| job(session, Verb::STOU, &path))
        .map(|job| {
            let transfer = Arc::clone(&job.transfer);
            (job.store(Begins::New, declared), transfer)
        });
    step(prepared)
}

pub(super) async fn appe(session: &mut Session, argument: &[u8]) -> Step {
    let NextTransfer { restart, range, declared } = std::mem::take(&mut session.next);
    if range.is_some() || restart.is_some_and(|offset| offset > 0) {
        return Reply::new(503, "APPE cannot follow REST or RANG.").into();
    }
    let path = path(session, Verb::APPE, argument).await;
    let prepared = path.and_then(|path| job(session, Verb::APPE, &path)).map(|job| {
        let transfer = Arc::clone(&job.transfer);
        (job.store(Begins::End, declared), transfer)
    });
    step(prepared)
}

pub(super) async fn list(session: &mut Session, verb: Verb, form: Form, asked: Asked) -> Step {
    // RFC 3659 section 5.3: REST holds for the command that follows.
    (session.next.restart, session.next.range) = (None, None);
    let Asked { recursive, itself, path: said } = asked;
    let prepared = named(session, verb, &said).await.and_then(|(name, path)| {
        let plan = plan(session)?;
        let login = login(session);
        let transfer =
            Arc::new(Transfer::begin(&session.control, &login, verb, &path, session.modes.ascii()));
        let tree = Arc::clone(&session.service.shared.tree);
        let running = Arc::clone(&transfer);
        let job =
            listing::Job { tree, login, plan, transfer, form, recursive, itself, prefix: name.into_owned() };
        Ok((job.run(), running))
    });
    step(prepared)
}
