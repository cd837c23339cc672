//! Where the client stands, and changes of names: CWD to RNTO (RFC 959, RFC 1123 section 4.1.3.1).

use super::{asked, asked_to_change, login, path};
use crate::native::session::{Session, Step};
use crate::reply::{Action, Reply};
use crate::transfer::changed;
use crate::verb::Verb;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{Changed, Kind, Tree};

pub(super) async fn cwd(session: &mut Session, argument: &[u8]) -> Step {
    let path = match path(session, Verb::CWD, argument).await {
        Ok(path) => path,
        Err(reply) => return reply.into(),
    };
    let login = login(session);
    let stat = session.service.shared.tree.stat(&login, &path);
    match asked(session, Verb::CWD, &path, Action::Look, stat).await {
        Ok(entry) if entry.kind == Kind::Directory => {
            let text = format!("You are in {path}.");
            session.cwd = path;
            Reply::with(250, text).into()
        }
        Ok(_) => Reply::with(550, format!("{path} is not a directory.")).into(),
        Err(reply) => reply.into(),
    }
}

pub(super) fn pwd(session: &Session) -> Step {
    Reply::with(257, [quoted(&session.cwd), b" is the current directory.".to_vec()].concat()).into()
}

/// A path in quotation marks, those within it doubled (RFC 959 appendix II).
fn quoted(path: &VirtualPath) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in path.to_bytes() {
        if byte == b'"' {
            quoted.push(b'"');
        }
        quoted.push(byte);
    }
    quoted.push(b'"');
    quoted
}

pub(super) async fn mkd(session: &Session, argument: &[u8]) -> Step {
    let done = change(session, Verb::MKD, argument, None, async |tree, login, path| {
        tree.make_directory(login, path).await
    });
    match done.await {
        Ok(path) => Reply::with(257, [quoted(&path), b" was made.".to_vec()].concat()).into(),
        Err(reply) => reply.into(),
    }
}

pub(super) async fn rmd(session: &Session, argument: &[u8]) -> Step {
    let done = change(session, Verb::RMD, argument, None, async |tree, login, path| {
        tree.remove_directory(login, path).await
    });
    removed(done.await)
}

pub(super) async fn dele(session: &Session, argument: &[u8]) -> Step {
    let done =
        change(session, Verb::DELE, argument, None, async |tree, login, path| tree.remove(login, path).await);
    removed(done.await)
}

fn removed(done: Result<VirtualPath, Reply>) -> Step {
    match done {
        Ok(path) => Reply::with(250, format!("{path} was removed.")).into(),
        Err(reply) => reply.into(),
    }
}

/// Changes what stands at a name; the path of it. `from` is where a rename begins.
async fn change(
    session: &Session,
    verb: Verb,
    argument: &[u8],
    from: Option<&VirtualPath>,
    work: impl AsyncFnOnce(
        &Tree,
        &portolan_cluster::auth::Login,
        &VirtualPath,
    ) -> portolan_cluster::tree::Result<Changed>,
) -> Result<VirtualPath, Reply> {
    let path = path(session, verb, argument).await?;
    let login = login(session);
    // A drain waits for its reply.
    let _under_way = session.control.begin_transfer(None);
    let doing = work(&session.service.shared.tree, &login, &path);
    let (at, to) = from.map_or((&path, None), |from| (from, Some(&path)));
    let made = asked_to_change(session, &login, verb, (at, to), doing).await?;
    changed(&session.control, &login, verb, at, to, &made);
    Ok(path)
}

pub(super) async fn rnfr(session: &mut Session, argument: &[u8]) -> Step {
    let path = match path(session, Verb::RNFR, argument).await {
        Ok(path) => path,
        Err(reply) => return reply.into(),
    };
    let login = login(session);
    let stat = session.service.shared.tree.stat(&login, &path);
    match asked(session, Verb::RNFR, &path, Action::Look, stat).await {
        Ok(_) => {
            session.rename_from = Some(path);
            Reply::new(350, "Send RNTO with the new name.").into()
        }
        Err(reply) => reply.into(),
    }
}

pub(super) async fn rnto(session: &mut Session, argument: &[u8]) -> Step {
    let Some(from) = session.rename_from.take() else {
        return Reply::new(503, "Send RNFR first.").into();
    };
    let done = change(session, Verb::RNTO, argument, Some(&from), async |tree, login, path| {
        tree.rename(login, &from, path).await
    });
    match done.await {
        Ok(path) => Reply::with(250, format!("{from} is now {path}.")).into(),
        Err(reply) => reply.into(),
    }
}
