//! Who the client is, and how the connections are protected: USER to HOST (RFC 959, 2228, 4217, 7151).

use std::sync::Arc;

use portolan_config::admins::NAME_BYTES_MAX;
use portolan_config::checked::listener::CertificateLogin;
use portolan_proto::v1::DigestAlgorithm;
use tokio::time::Instant;

use super::{data_requires_tls, login_requires_tls};
use crate::native::arrival::Setup;
use crate::native::command::number;
use crate::native::facts::Facts;
use crate::native::session::{Modes, NextTransfer, Session, Step};
use crate::reply::Reply;
use portolan_cluster::auth::login::LoginFailure;
use portolan_cluster::auth::{Login, Proof};
use portolan_cluster::path::VirtualPath;
use portolan_telemetry::shown_time;

pub(super) async fn user(session: &mut Session, name: &[u8]) -> Step {
    if login_requires_tls(session) && !session.protected {
        return Reply::new(530, "TLS is required here; send AUTH TLS first.").into();
    }
    log_out(session);
    let service = Arc::clone(&session.service);
    let by_certificate =
        service.listener.tls.settings().map_or(CertificateLogin::Off, |tls| tls.certificate_login);
    let named = session.tls.as_ref().map(|tls| tls.client_names()).unwrap_or_default();
    let fits = std::str::from_utf8(name).ok().filter(|name| named.iter().any(|named| named == name));
    let (name, proof) = match (by_certificate, fits) {
        (CertificateLogin::Alone | CertificateLogin::OrPassword, Some(name)) => {
            (name, Ok(Proof::Certificate(&named)))
        }
        (CertificateLogin::Alone, None) => {
            ("(not that of the certificate)", Err("the certificate names another admin, or none"))
        }
        (CertificateLogin::Off | CertificateLogin::AndPassword | CertificateLogin::OrPassword, _) => {
            session.user = Some(name.to_vec());
            return Reply::new(331, "Send the password.").into();
        }
    };
    let decided = service.log_in(&session.control, name, proof).await;
    // RFC 2228 section 3: no password is asked for.
    logged_in(session, 232, decided)
}

pub(super) async fn pass(session: &mut Session, password: &[u8]) -> Step {
    if session.login.is_some() {
        return Reply::new(202, "You are logged in already.").into();
    }
    let Some(name) = session.user.take() else {
        return Reply::new(503, "Send USER first.").into();
    };
    let login_by = session.service.listener.tls.settings().map(|tls| tls.certificate_login);
    let named = session.tls.as_ref().map(|tls| tls.client_names());
    let named = named.filter(|_| login_by == Some(CertificateLogin::AndPassword));
    let (name, password) = match (std::str::from_utf8(&name), std::str::from_utf8(password)) {
        (Ok(name), _) if name.len() > NAME_BYTES_MAX => {
            ("(more than 256 bytes)", Err("no admin has such a name"))
        }
        (Ok(name), Ok("")) => (name, Err("an empty password")),
        (Ok(name), Ok(password)) => (name, Ok(proof(password, named.as_deref()))),
        _ => ("(not UTF-8)", Err("no admin has such a name or password")),
    };
    let service = Arc::clone(&session.service);
    let decided = service.log_in(&session.control, name, password).await;
    logged_in(session, 230, decided)
}

/// A password, with the names of the certificate where that counts too.
fn proof<'a>(password: &'a str, certificate: Option<&'a [String]>) -> Proof<'a> {
    match certificate {
        Some(certificate) => Proof::Both { password, certificate },
        None => Proof::Password(password),
    }
}

/// What a login came to; `code` if somebody is in.
fn logged_in(session: &mut Session, code: u16, decided: Result<Login, LoginFailure>) -> Step {
    let service = Arc::clone(&session.service);
    match decided {
        Ok(login) => {
            let admin = &login.admin;
            if let Some(tls) = &session.tls {
                tls.set_admin(Some(&admin.name));
            }
            session.pace = service.pace_of(&session.throttle, &admin.name);
            let text = format!("Welcome, {}.", admin.name);
            session.cwd = admin.grants.root.clone();
            session.login = Some(login);
            Reply::with(code, text).into()
        }
        Err(LoginFailure::Undecided) => {
            Reply::new(431, "The directory of admins does not answer; try again later.").into()
        }
        Err(LoginFailure::Banned(ban)) => Step::Quit(Reply::with(
            421,
            format!(
                "Too many logins have failed; no more are taken from here until {}.",
                shown_time(ban.until)
            ),
        )),
        Err(failure @ (LoginFailure::Wrong | LoginFailure::Barred(_))) => {
            session.failed_logins += 1;
            let (failures, limit) = (session.failed_logins, service.listener.errors.failed_logins_max);
            if limit == 0 || failures < limit {
                return match failure {
                    LoginFailure::Barred(reason) => {
                        Reply::with(530, format!("Not logged in: {reason}.")).into()
                    }
                    _ => Reply::new(530, "The name or the password is wrong.").into(),
                };
            }
            let from = session.origin.client;
            tracing::warn!(session = %session.id, %from, failures, "session closed: too many failed logins");
            // Not 421, which clients take for leave to try again.
            Step::Quit(Reply::new(530, "Too many logins have failed; closing the connection."))
        }
    }
}

/// Back to before USER. What the connections are protected by stays.
fn log_out(session: &mut Session) {
    session.user = None;
    // A client that never logs in gains no time by trying.
    if session.login.take().is_some() {
        session.control.set_admin(None);
        session.login_by = Instant::now() + session.service.listener.login_timeout;
    }
    session.cwd = VirtualPath::default();
    session.setup = Setup::None;
    session.next = NextTransfer::default();
    if let Some(tls) = &session.tls {
        tls.set_admin(None);
    }
}

/// REIN. RFC 4217 section 11 wants TLS to end here, which cannot be told from an attack on it.
pub(super) fn rein(session: &mut Session) -> Step {
    if session.protected {
        return Reply::new(502, "REIN is not served over TLS; QUIT and connect again.").into();
    }
    log_out(session);
    session.modes = Modes::at_start(false);
    session.facts = Facts::default();
    session.digest = DigestAlgorithm::Sha256;
    session.epsv_only = false;
    session.greeting().into()
}

pub(super) fn auth(session: &mut Session, mechanism: &[u8]) -> Step {
    if session.tls.is_none() {
        return Reply::new(502, "This listener has no TLS.").into();
    }
    if session.protected {
        return Reply::new(503, "TLS is in use already.").into();
    }
    if !mechanism.eq_ignore_ascii_case(b"TLS") && !mechanism.eq_ignore_ascii_case(b"TLS-C") {
        return Reply::new(504, "AUTH type not supported; use AUTH TLS.").into();
    }
    // What was proved in plaintext does not count any more (RFC 4217 section 4).
    log_out(session);
    Step::StartTls(Reply::new(234, "Begin the TLS handshake."))
}

/// PBSZ. TLS has no use for a size, so it is 0 whatever was asked (RFC 4217 section 9).
pub(super) fn pbsz(session: &mut Session, size: &[u8]) -> Step {
    if !session.protected {
        return Reply::new(503, "Send AUTH TLS first.").into();
    }
    if number(size).is_none() {
        return Reply::new(501, "Syntax: PBSZ 0.").into();
    }
    session.modes.sized = true;
    Reply::new(200, "PBSZ=0").into()
}

pub(super) fn prot(session: &mut Session, level: &[u8]) -> Step {
    if !session.protected || !session.modes.sized {
        return Reply::new(503, "Send AUTH TLS and PBSZ 0 first.").into();
    }
    let protected = match level {
        b"P" | b"p" => true,
        b"C" | b"c" if data_requires_tls(session) => {
            return Reply::new(534, "Data in plaintext is not allowed here.").into();
        }
        b"C" | b"c" => false,
        b"S" | b"s" | b"E" | b"e" => return Reply::new(536, "PROT level not supported; use P or C.").into(),
        _ => return Reply::new(504, "PROT level not supported; use P or C.").into(),
    };
    session.modes.protected = protected;
    Reply::with(
        200,
        format!("Data connections are {}.", if protected { "protected" } else { "in plaintext" }),
    )
    .into()
}

/// CCC would leave the names of all mail, and whatever is changed, open to whoever is on the way.
pub(super) fn ccc(session: &Session) -> Step {
    let code = if session.protected { 534 } else { 533 };
    Reply::new(code, "CCC is not allowed; the control connection keeps its protection.").into()
}

/// HOST. There is one tree, whatever its host is called; of several certificates it chooses the one.
pub(super) fn host(session: &Session, name: &[u8]) -> Step {
    if session.login.is_some() || session.user.is_some() {
        return Reply::new(503, "HOST comes before USER.").into();
    }
    if let (Some(tls), Ok(name)) = (&session.tls, std::str::from_utf8(name)) {
        tls.set_host(name);
    }
    session.greeting().into()
}

/// CLNT, CSID: the client's name for itself, for those who read the log, and for what is known of it.
pub(super) fn client(session: &mut Session, name: &[u8]) -> Step {
    session.client.is_named(name);
    let client = portolan_proto::path::display(name);
    tracing::debug!(session = %session.id, client, "client identifies itself");
    Reply::new(200, concat!("Name=Portolan; Version=", env!("CARGO_PKG_VERSION"), ";")).into()
}
