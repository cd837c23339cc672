//! Asks an agent at an address who it is.

use std::sync::Arc;

use portolan_config::certificate::{self, CertificateName};
use portolan_config::checked::frontend::Security;
use portolan_config::units::HostPort;
use portolan_proto::id::NodeId;
use portolan_proto::v1::DescribeRequest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;

use super::{CALL_MAX, CONNECT_MAX, SetupError, prepare};

#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    #[error("cannot connect")]
    Connect(#[from] std::io::Error),
    #[error("it did not answer in time")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("its certificate cannot be asked for")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("it does not say who it is")]
    Call(#[from] Status),
    #[error("its certificate names no node")]
    Nameless,
    #[error(
        "it says that it is node {claimed}, which its certificate does not bear out; the certificate is of {certified:?}"
    )]
    Claim { claimed: String, certified: Vec<String> },
}

/// The node at an address: as the agent says, borne out by its certificate. Without TLS there is only the agent's word.
pub async fn identify(address: &HostPort, security: &Security) -> Result<NodeId, IdentifyError> {
    let certified = match security {
        Security::Plain => None,
        Security::Mutual { .. } => Some(certified_names(address, security).await?),
    };
    let spoken_to = match &certified {
        None => "any".parse().ok(),
        Some(names) => names.iter().find_map(|name| name.parse::<NodeId>().ok()),
    };
    let spoken_to = spoken_to.ok_or(IdentifyError::Nameless)?;
    let mut client = prepare(&spoken_to, address, security)?.0.client;
    let described = tokio::time::timeout(CALL_MAX, client.describe(DescribeRequest {})).await??.into_inner();
    let claimed = described.node;
    let borne_out = certified.as_ref().is_none_or(|names| names.contains(&claimed));
    match claimed.parse() {
        Ok(name) if borne_out => Ok(name),
        _ => Err(IdentifyError::Claim { claimed, certified: certified.unwrap_or_default() }),
    }
}

/// The DNS names of the certificate at an address, which our authority has signed.
async fn certified_names(address: &HostPort, security: &Security) -> Result<Vec<String>, IdentifyError> {
    let Security::Mutual { identity, ca } = security else { return Ok(Vec::new()) };
    let mut roots = RootCertStore::empty();
    for certificate in &ca.certificates {
        roots.add(certificate.clone())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyName { roots, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain.clone(), identity.key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No name is asked for, so no name is sent.
    config.enable_sni = false;
    let connecting = async {
        let stream = TcpStream::connect(address.to_string()).await?;
        let unnamed = ServerName::try_from("any.invalid").expect("a DNS name");
        let stream = TlsConnector::from(Arc::new(config)).connect(unnamed, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        Ok::<_, std::io::Error>(shown.map(|shown| certificate::names(shown, CertificateName::Dns)))
    };
    let names = tokio::time::timeout(CONNECT_MAX, connecting).await??;
    names.filter(|names| !names.is_empty()).ok_or(IdentifyError::Nameless)
}

/// Verifies all of a certificate but its name, which is what is to be found out.
#[derive(Debug)]
struct AnyName {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
