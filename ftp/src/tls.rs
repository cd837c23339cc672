//! TLS of a listener, for either engine: what its handshakes offer and demand.

use std::fmt;
use std::sync::Arc;

use portolan_config::certificate::CertificateName;
use portolan_config::checked::listener::{ClientCertificate, TlsSettings};
use portolan_config::checked::tls::{Anchors, Identity};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{
    ClientHello, ParsedCertificate, ResolvesServerCert, ServerSessionMemoryCache, VerifierBuilderError,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version};

/// TLS sessions remembered for resumption with TLS 1.2; TLS 1.3 uses tickets.
const TLS_SESSIONS_MAX: usize = 4_096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the certificate cannot be used")]
    Certificate(#[from] rustls::Error),
    #[error("client_ca cannot be used")]
    ClientAuthority(#[from] VerifierBuilderError),
}

/// TLS of one listener.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    pub config: Arc<ServerConfig>,
    pub certificates: Arc<Certificates>,
    /// What a kept TLS session was made under. It must not outlive a change of these.
    client: ClientCertificate,
    pub certificate_name: CertificateName,
}

impl ListenerTls {
    /// `previous` is the TLS of this listener before a reload: what clients keep for resumption stays valid where
    /// they would be let in by a full handshake all the same.
    pub fn new(settings: &TlsSettings, previous: Option<&Self>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut versions = Vec::new();
        versions.extend(settings.versions.v1_3.then_some(&version::TLS13));
        versions.extend(settings.versions.v1_2.then_some(&version::TLS12));
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions)?;
        let builder = match &settings.client {
            ClientCertificate::Off => builder.with_no_client_auth(),
            ClientCertificate::Optional(anchors) => builder
                .with_client_cert_verifier(verifier(anchors, &provider)?.allow_unauthenticated().build()?),
            ClientCertificate::Required(anchors) => {
                builder.with_client_cert_verifier(verifier(anchors, &provider)?.build()?)
            }
        };
        let certificates = Arc::new(Certificates::new(&settings.identities, &provider)?);
        let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        match previous.filter(|previous| previous.client == settings.client) {
            Some(previous) => {
                config.session_storage = Arc::clone(&previous.config.session_storage);
                config.ticketer = Arc::clone(&previous.config.ticketer);
            }
            None => {
                config.session_storage = ServerSessionMemoryCache::new(TLS_SESSIONS_MAX);
                config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
            }
        }
        Ok(Self {
            config: Arc::new(config),
            certificates,
            client: settings.client.clone(),
            certificate_name: settings.certificate_name,
        })
    }
}

fn verifier(
    anchors: &Anchors,
    provider: &Arc<CryptoProvider>,
) -> Result<rustls::server::ClientCertVerifierBuilder, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in &anchors.certificates {
        roots.add(certificate.clone())?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)))
}

/// The certificates of a listener.
pub struct Certificates {
    /// At least one; the first is shown where no name fits.
    keys: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    fn new(identities: &[Identity], provider: &CryptoProvider) -> Result<Self, rustls::Error> {
        let keys = identities
            .iter()
            .map(|identity| CertifiedKey::from_der(identity.chain.clone(), identity.key(), provider))
            .map(|key| key.map(Arc::new));
        Ok(Self { keys: keys.collect::<Result<_, _>>()? })
    }

    /// The first one that is made out for `name`, wildcards included (RFC 6125), or the first of all.
    pub fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let first = || self.keys.first().cloned();
        let Some(name) = name.filter(|_| self.keys.len() > 1) else { return first() };
        let Ok(name) = ServerName::try_from(name) else { return first() };
        let fits = |key: &&Arc<CertifiedKey>| {
            let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
            parsed.is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
        };
        self.keys.iter().find(fits).cloned().or_else(first)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("keys", &self.keys.len()).finish()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}
