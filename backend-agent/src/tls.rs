//! TLS of the agent's port: whom it lets connect, and with which certificate of its own.
//!
//! Certificate files are looked at every few seconds, as by front ends, and taken when they have changed and fit
//! together. Connections that are there go on: a renewal cuts no transfer.
//!
//! Who calls it: `Agent::run`, and `console`, for when certificates end.
//! What it calls: rustls; portolan-config, to read the files again.
//! What it never does: decide what a front end may do, which is for `service`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use portolan_config::checked::tls::{Anchors, Identity};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

/// How often the files are looked at.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// A handshake that takes longer is dropped.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at once; further connections wait in the system's queue.
const HANDSHAKES_MAX: usize = 1_024;
/// Failed handshakes are told this often at most: whoever reaches the port can make them.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Pause after a failed accept, as when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2 (RFC 9113 section 3.2).
const ALPN: &[u8] = b"h2";

/// The certificates do not fit TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("no authority of {0} is usable")]
    Authorities(String),
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// TLS of one port.
#[derive(Debug)]
pub(crate) struct Tls {
    in_force: ArcSwap<Certificates>,
    told: Mutex<Told>,
}

/// What the files held, and what was made of it.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) identity: Identity,
    pub(crate) client_ca: Anchors,
    config: Arc<ServerConfig>,
}

/// What the log has been told.
#[derive(Debug, Default)]
struct Told {
    /// Why new files are not used; empty: they are.
    fault: String,
    failed_handshake: Option<Instant>,
    omitted_handshakes: u64,
}

impl Certificates {
    fn new(identity: Identity, client_ca: Anchors) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(client_ca.certificates.iter().cloned());
        if roots.is_empty() {
            return Err(Error::Authorities(client_ca.file.display().to_string()));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(identity.chain.clone(), identity.key())?;
        config.alpn_protocols.push(ALPN.to_vec());
        // Each connection shows a certificate that holds now. There are few, and they live long.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { identity, client_ca, config: Arc::new(config) })
    }

    /// What the files hold now; `None`: the same.
    fn reread(&self) -> Result<Option<Self>, String> {
        let (identity, client_ca) = (self.identity.reread()?, self.client_ca.reread()?);
        if identity == self.identity && client_ca == self.client_ca {
            return Ok(None);
        }
        Self::new(identity, client_ca).map(Some).map_err(|error| error.to_string())
    }
}

impl Tls {
    pub(crate) fn new(identity: Identity, client_ca: Anchors) -> Result<Self, Error> {
        let certificates = Certificates::new(identity, client_ca)?;
        Ok(Self { in_force: ArcSwap::from_pointee(certificates), told: Mutex::default() })
    }

    pub(crate) fn in_force(&self) -> Arc<Certificates> {
        self.in_force.load_full()
    }

    /// Takes certificates as they are renewed, for ever.
    pub(crate) async fn renew(&self) {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let old = self.in_force();
            let read = tokio::task::spawn_blocking(move || old.reread()).await;
            let fault = match read.map_err(|error| error.to_string()).and_then(|read| read) {
                Ok(None) => String::new(),
                Ok(Some(new)) => {
                    self.in_force.store(Arc::new(new));
                    tracing::info!("the certificates are renewed");
                    String::new()
                }
                Err(fault) => fault,
            };
            let mut told = self.told.lock();
            if !fault.is_empty() && told.fault != fault {
                tracing::warn!(fault, "certificate files have changed and cannot be used; the old ones stay");
            }
            told.fault = fault;
        }
    }

    /// Connections of who has shown a certificate of the authority.
    pub(crate) fn incoming(
        self: Arc<Self>,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
        let handshakes = connections(listener).map(move |(stream, from)| {
            let tls = Arc::clone(&self);
            AbortOnDropHandle::new(tokio::spawn(async move { tls.accept(stream, from).await }))
        });
        let done = handshakes.buffer_unordered(HANDSHAKES_MAX);
        done.filter_map(|accepted| std::future::ready(accepted.ok().flatten().map(Ok)))
    }

    async fn accept(&self, stream: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.in_force.load().config));
        let accepted = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await;
        match accepted.map_err(io::Error::from).and_then(|accepted| accepted) {
            Ok(stream) => Some(stream),
            Err(error) => {
                self.tell_failed_handshake(from, &error);
                None
            }
        }
    }

    fn tell_failed_handshake(&self, from: SocketAddr, error: &io::Error) {
        let mut told = self.told.lock();
        let is_due = told.failed_handshake.is_none_or(|last| last.elapsed() >= TELL_EVERY);
        // Whoever only looks whether the port is open ends like this.
        if error.kind() == io::ErrorKind::UnexpectedEof || !is_due {
            told.omitted_handshakes += 1;
            tracing::debug!(%from, %error, "TLS handshake failed");
            return;
        }
        told.failed_handshake = Some(Instant::now());
        let omitted = std::mem::take(&mut told.omitted_handshakes);
        tracing::warn!(%from, %error, omitted, "TLS handshake failed; omitted counts those that were not logged");
    }
}

/// Connections to a port, for ever.
pub(crate) fn connections(listener: TcpListener) -> impl Stream<Item = (TcpStream, SocketAddr)> {
    futures_util::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%from, %error, "TCP_NODELAY could not be set");
                    }
                    return Some(((stream, from), listener));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
