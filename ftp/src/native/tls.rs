//! TLS of one listener's sessions, and the proof that a data connection belongs to its session.
//!
//! A client that resumes, on its data connection, the TLS session of its control connection shows that it is
//! the same client. So whatever a session leaves for resumption carries a random mark of that session: its
//! tickets, and with TLS 1.2 also what is kept here by session id, for clients without tickets such as curl.
//! (The library's own resumption data would do for TLS 1.3, but is not told for TLS 1.2.)

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use portolan_config::certificate;
use portolan_config::checked::listener::SessionReuse;
use rustix::net::sockopt;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bandwidth::Direction;
use crate::tls::{Certificates, ListenerTls};

const MARK_BYTES: usize = 16;
type Mark = [u8; MARK_BYTES];

/// Families of ended sessions that are remembered, in about 32 KiB.
const ENDED_MAX: usize = 1_024;
/// How long a data connection waits for the login of the session whose TLS it has resumed, and how often it looks.
const LOGIN_MAX: Duration = Duration::from_secs(5);
const LOGIN_LOOK: Duration = Duration::from_millis(50);

/// What all sessions of a listener share.
#[derive(Debug)]
pub(crate) struct TlsService {
    tls: ListenerTls,
    /// The live sessions, by the mark in their tickets. They outlive a reload of their listener.
    owners: Arc<Mutex<Owners>>,
}

/// Whose the TLS sessions are, by the marks in what they leave for resumption.
#[derive(Debug, Default)]
struct Owners {
    living: HashMap<Mark, Owner>,
    /// The families of sessions that have ended, the oldest first: their clients may still offer what these have left. Only
    /// of those that were of another session's family.
    ended: VecDeque<(Mark, Mark)>,
}

impl Owners {
    /// A control connection has resumed the TLS session of another: it has proved to be the same client.
    fn join(&mut self, mark: Mark, resumed: Mark) {
        let family = self.family(&resumed);
        if let Some(owner) = self.living.get_mut(&mark) {
            owner.family = family;
        }
    }

    /// The first of the sessions that were resumed one from the other.
    fn family(&self, mark: &Mark) -> Mark {
        if let Some(owner) = self.living.get(mark) {
            return owner.family;
        }
        self.ended.iter().find(|(ended, _)| ended == mark).map_or(*mark, |(_, family)| *family)
    }

    fn end(&mut self, mark: &Mark) {
        if let Some(owner) = self.living.remove(mark)
            && owner.family != *mark
        {
            self.ended.push_back((*mark, owner.family));
            if self.ended.len() > ENDED_MAX {
                self.ended.pop_front();
            }
        }
    }
}

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    address: IpAddr,
    /// `None` before the login.
    admin: Option<String>,
    /// The same for sessions of which one has resumed the other.
    family: Mark,
}

/// Why a data connection has no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the TLS handshake failed")]
    Handshake(#[from] io::Error),
    #[error("the TLS handshake took more than {0:?}")]
    Slow(Duration),
    #[error("the TLS session offered belongs to another client")]
    Foreign,
    #[error("the client's certificate has expired since the TLS session began")]
    Expired,
    #[error("the TLS session of the control connection was not resumed")]
    NotResumed,
}

impl TlsService {
    /// `previous` is that of the same listener before a reload.
    pub(crate) fn new(tls: &ListenerTls, previous: Option<&Self>) -> Self {
        let owners = previous.map(|previous| Arc::clone(&previous.owners)).unwrap_or_default();
        Self { tls: tls.clone(), owners }
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock()
    }
}

/// TLS of one session: its control connection's handshake, then those of its data connections.
#[derive(Debug)]
pub(super) struct SessionTls {
    service: Arc<TlsService>,
    marked: Arc<Marked>,
    names: Arc<SessionCertificates>,
    handshake_max: Duration,
    config: Arc<ServerConfig>,
    /// What the client has shown, DER.
    client_certificate: OnceLock<Vec<u8>>,
    /// As `config`, without tickets after the handshake.
    without_tickets: Arc<ServerConfig>,
}

impl SessionTls {
    pub(super) fn new(service: &Arc<TlsService>, address: IpAddr, handshake_max: Duration) -> Self {
        let listener = &service.tls.config;
        let marked = Arc::new(Marked {
            tickets: Arc::clone(&listener.ticketer),
            kept: Arc::clone(&listener.session_storage),
            service: Arc::clone(service),
            mark: rand::random(),
            read: Mutex::default(),
        });
        let names = Arc::new(SessionCertificates {
            certificates: Arc::clone(&service.tls.certificates),
            host: Mutex::default(),
        });
        let mut config = ServerConfig::clone(listener);
        config.cert_resolver = Arc::clone(&names) as Arc<dyn ResolvesServerCert>;
        config.ticketer = Arc::clone(&marked) as Arc<dyn ProducesTickets>;
        config.session_storage = Arc::clone(&marked) as Arc<dyn StoresServerSessions>;
        service.owners().living.insert(marked.mark, Owner { address, admin: None, family: marked.mark });
        let mut without_tickets = config.clone();
        without_tickets.send_tls13_tickets = 0;
        Self {
            service: Arc::clone(service),
            marked,
            names,
            handshake_max,
            client_certificate: OnceLock::new(),
            config: Arc::new(config),
            without_tickets: Arc::new(without_tickets),
        }
    }

    /// The name of HOST, for clients that name none in their handshake (RFC 7151 section 3.2.2).
    pub(super) fn set_host(&self, host: &str) {
        *self.names.host.lock() = Some(host.to_owned());
    }

    /// An admin has logged in; other sessions of the same admin from the same address are the same client.
    pub(super) fn set_admin(&self, name: Option<&str>) {
        if let Some(owner) = self.service.owners().living.get_mut(&self.marked.mark) {
            owner.admin = name.map(str::to_owned);
        }
    }

    /// The handshake of the control connection. It may resume whatever session this listener has known.
    pub(super) async fn accept_control(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
        let stream = accept(&self.config, stream, self.handshake_max).await?;
        if let Some(mark) = self.offered(&stream) {
            self.service.owners().join(self.marked.mark, mark);
        }
        if let Some([certificate, ..]) = stream.get_ref().1.peer_certificates() {
            // A full handshake has verified it. What was resumed was verified once, and its tickets renew each other.
            if !certificate::holds_now(certificate) {
                return Err(Error::Expired);
            }
            self.client_certificate.set(certificate.to_vec()).ok();
        }
        Ok(stream)
    }

    /// Who the client is by its certificate; nobody if it has shown none, or one that has expired meanwhile.
    pub(super) fn client_names(&self) -> Vec<String> {
        let certificate =
            self.client_certificate.get().filter(|certificate| certificate::holds_now(certificate));
        certificate
            .map(|certificate| certificate::names(certificate, self.service.tls.certificate_name))
            .unwrap_or_default()
    }

    /// What a TLS session says of the client that has resumed it. That of another session which nobody has logged in to says
    /// nothing yet: where that would be a refusal, its login is waited for.
    async fn judge(&self, mark: &Mark, reuse: SessionReuse) -> Offered {
        let deadline = tokio::time::Instant::now() + LOGIN_MAX;
        loop {
            let offered = self.marked.judge(mark);
            let waits = offered == Offered::Nothing
                && reuse == SessionReuse::Require
                && self.service.owners().living.contains_key(mark)
                && tokio::time::Instant::now() < deadline;
            if !waits {
                return offered;
            }
            tokio::time::sleep(LOGIN_LOOK).await;
        }
    }

    /// The mark of the TLS session that a handshake has resumed.
    fn offered(&self, stream: &TlsStream<TcpStream>) -> Option<Mark> {
        let read = self.marked.read().take();
        read.filter(|_| stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// The handshake of a data connection, which must fit the session; true where it has proved that it is this client's.
    pub(super) async fn accept_data(
        &self,
        stream: TcpStream,
        reuse: SessionReuse,
        direction: Option<Direction>,
    ) -> Result<(TlsStream<TcpStream>, bool), Error> {
        let config = match (direction, reuse) {
            // The tickets of TLS 1.3 come after the handshake. A client that only sends, such as Perl's Net::FTP,
            // would close its socket with them unread, and that resets the connection: the upload is lost. Before the
            // command nobody knows the direction.
            (Some(Direction::FromClient) | None, SessionReuse::Off | SessionReuse::MatchIfOffered) => {
                &self.without_tickets
            }
            // A client that must resume may use each ticket once, as curl does, and needs the next one.
            (_, SessionReuse::Require) | (Some(Direction::ToClient), _) => &self.config,
        };
        let stream = accept(config, stream, self.handshake_max).await?;
        let offered = match self.offered(&stream) {
            Some(mark) => self.judge(&mark, reuse).await,
            None => Offered::Nothing,
        };
        match (reuse, offered) {
            (SessionReuse::MatchIfOffered | SessionReuse::Require, Offered::Foreign) => Err(Error::Foreign),
            (SessionReuse::Require, Offered::Nothing) => Err(Error::NotResumed),
            (SessionReuse::Off, offered) => Ok((stream, offered == Offered::Own)),
            (SessionReuse::MatchIfOffered, Offered::Nothing) => Ok((stream, false)),
            (_, Offered::Own) => Ok((stream, true)),
        }
    }
}

pub(super) async fn accept(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
    handshake_max: Duration,
) -> Result<TlsStream<TcpStream>, Error> {
    let mut accept = TlsAcceptor::from(Arc::clone(config)).accept(stream);
    // The client's last messages are small, and each waits until the one before is acknowledged (Nagle's
    // algorithm). After we have sent something, the system would put that off by 40 ms.
    let prompt = std::future::poll_fn(|context| {
        let polled = Pin::new(&mut accept).poll(context);
        if polled.is_pending()
            && let Some(stream) = accept.get_ref()
            && let Err(errno) = sockopt::set_tcp_quickack(stream, true)
        {
            tracing::debug!(%errno, "TCP_QUICKACK could not be set");
        }
        polled
    });
    Ok(tokio::time::timeout(handshake_max, prompt).await.map_err(|_| Error::Slow(handshake_max))??)
}

impl Drop for SessionTls {
    fn drop(&mut self) {
        self.service.owners().end(&self.marked.mark);
    }
}

/// The listener's certificates, and which of them a session has asked for by HOST.
#[derive(Debug)]
struct SessionCertificates {
    certificates: Arc<Certificates>,
    host: Mutex<Option<String>>,
}

impl ResolvesServerCert for SessionCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = self.host.lock();
        self.certificates.choose(hello.server_name().or(host.as_deref()))
    }
}

/// What a TLS session says of the client that offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offered {
    /// Nothing: there was none, or its session has ended or has no admin yet.
    Nothing,
    /// It is a session of this client.
    Own,
    /// It is a session of somebody else.
    Foreign,
}

/// The listener's tickets and kept TLS sessions, with the mark of a session in them.
#[derive(Debug)]
struct Marked {
    tickets: Arc<dyn ProducesTickets>,
    /// By session id; for TLS 1.2 only, because TLS 1.3 uses the tickets.
    kept: Arc<dyn StoresServerSessions>,
    service: Arc<TlsService>,
    mark: Mark,
    /// The mark read last.
    read: Mutex<Option<Mark>>,
}

impl Marked {
    fn read(&self) -> MutexGuard<'_, Option<Mark>> {
        self.read.lock()
    }

    fn add_mark(&self, session: &[u8]) -> Vec<u8> {
        [&self.mark[..], session].concat()
    }

    /// Takes the mark off a TLS session, and notes it.
    fn take_mark(&self, marked: &[u8]) -> Option<Vec<u8>> {
        let (mark, session) = marked.split_first_chunk::<MARK_BYTES>()?;
        *self.read() = Some(*mark);
        Some(session.to_vec())
    }

    fn judge(&self, mark: &Mark) -> Offered {
        if *mark == self.mark {
            return Offered::Own;
        }
        let owners = self.service.owners();
        let is_kin = owners.family(mark) == owners.family(&self.mark);
        let (other, own) = (owners.living.get(mark), owners.living.get(&self.mark));
        if is_kin {
            return Offered::Own;
        }
        let (Some(other), Some(own)) = (other, own) else { return Offered::Nothing };
        if other.address != own.address {
            return Offered::Foreign;
        }
        match &other.admin {
            None => Offered::Nothing,
            admin if *admin == own.admin => Offered::Own,
            Some(_) => Offered::Foreign,
        }
    }
}

impl ProducesTickets for Marked {
    fn enabled(&self) -> bool {
        self.tickets.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.tickets.encrypt(&self.add_mark(plain))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.take_mark(&self.tickets.decrypt(cipher)?)
    }
}

impl StoresServerSessions for Marked {
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        self.kept.put(id, self.add_mark(&session))
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.take_mark(&self.kept.get(id)?)
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.take_mark(&self.kept.take(id)?)
    }

    fn can_cache(&self) -> bool {
        self.kept.can_cache()
    }
}
