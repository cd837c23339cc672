//! What a certificate says of who shows it, and what an operator is shown of a certificate.
//!
//! Who calls it: the agent for front ends, the FTP engines for admins, both with certificates that TLS has verified;
//! `portolan check` and `portolan pki` for the operator.
//! What it calls: x509-parser, and rustls for signatures.
//! What it never does: decide who may connect. That is TLS's.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A certificate that ends within this time gets a warning.
pub const ENDS_SOON: Duration = Duration::from_secs(30 * 86_400);

/// Where a name stands in a certificate (RFC 5280 sections 4.1.2.6 and 4.2.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateName {
    /// CN of the subject.
    CommonName,
    /// rfc822Name of the subjectAltName.
    Email,
    /// dNSName of the subjectAltName.
    Dns,
    /// uniformResourceIdentifier of the subjectAltName.
    Uri,
}

/// Is the certificate, DER, within its time? A resumed TLS session tells who has shown it once, not that it still holds.
pub fn holds_now(certificate: &[u8]) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| certificate.validity().is_valid())
}

/// When the certificate, DER, ends; `None` for one that cannot be read.
pub fn ends(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The names at one place of a certificate, DER. One that cannot be read, which TLS would not have let in, has none.
pub fn names(certificate: &[u8], place: CertificateName) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    if place == CertificateName::CommonName {
        let names = certificate.subject().iter_common_name();
        return names.filter_map(|name| name.as_str().ok().map(str::to_owned)).collect();
    }
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match (place, name) {
        (CertificateName::Email, GeneralName::RFC822Name(name))
        | (CertificateName::Dns, GeneralName::DNSName(name))
        | (CertificateName::Uri, GeneralName::URI(name)) => Some((*name).to_owned()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// The day of a point in time, UTC, such as `2026-01-31`.
pub fn date(time: SystemTime) -> String {
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate("2026-01-31".len());
    text
}

/// What an operator is shown of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// CN of the subject; empty where there is none.
    pub common_name: String,
    pub alternative_names: Vec<AlternativeName>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub is_authority: bool,
    /// Extended key usage allows the TLS client's side; also without that extension.
    pub is_client: bool,
    /// The same for the TLS server's side.
    pub is_server: bool,
}

/// One name of the subjectAltName.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    Dns(String),
    Address(IpAddr),
    Email(String),
    Uri(String),
    /// Of a kind that Portolan does not use.
    Other,
}

impl Summary {
    /// Whole days until the certificate ends; 0 for one that has ended.
    pub fn days_left(&self, now: SystemTime) -> u64 {
        self.not_after.duration_since(now).map_or(0, |left| left.as_secs() / 86_400)
    }

    /// Reads a certificate, DER; `None` for one that cannot be read.
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let common_name = names(certificate, CertificateName::CommonName).into_iter().next();
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let alternative = certificate.subject_alternative_name().ok()?;
        let alternative_names = alternative
            .map(|extension| extension.value.general_names.iter().map(alternative_name).collect::<Vec<_>>());
        let usage = certificate.extended_key_usage().ok()?.map(|extension| extension.value);
        Some(Self {
            common_name: common_name.unwrap_or_default(),
            alternative_names: alternative_names.unwrap_or_default(),
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
            is_authority: certificate.is_ca(),
            is_client: usage.is_none_or(|usage| usage.any || usage.client_auth),
            is_server: usage.is_none_or(|usage| usage.any || usage.server_auth),
        })
    }
}

fn alternative_name(name: &GeneralName<'_>) -> AlternativeName {
    match name {
        GeneralName::DNSName(name) => AlternativeName::Dns((*name).to_owned()),
        GeneralName::RFC822Name(name) => AlternativeName::Email((*name).to_owned()),
        GeneralName::URI(name) => AlternativeName::Uri((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let sixteen = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            four.or(sixteen).map_or(AlternativeName::Other, AlternativeName::Address)
        }
        _ => AlternativeName::Other,
    }
}

/// Did one of the authorities sign the chain's first certificate, or a certificate of the chain that leads there? Looks at
/// names and signatures, not at times or usages.
pub fn is_signed_by(chain: &[CertificateDer<'_>], authorities: &[CertificateDer<'_>]) -> bool {
    let Some((mut current, mut rest)) = chain.split_first() else { return false };
    loop {
        if authorities.iter().any(|authority| authority == current || signed(current, authority)) {
            return true;
        }
        match rest.split_first() {
            Some((next, others)) if signed(current, next) => (current, rest) = (next, others),
            _ => return false,
        }
    }
}

fn signed(certificate: &[u8], authority: &[u8]) -> bool {
    let certificate = X509Certificate::from_der(certificate);
    let (Ok((_, certificate)), Ok((_, authority))) = (certificate, X509Certificate::from_der(authority))
    else {
        return false;
    };
    let key: &[u8] = &authority.public_key().subject_public_key.data;
    let content: &[u8] = certificate.tbs_certificate.as_ref();
    let signature: &[u8] = &certificate.signature_value.data;
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    // An algorithm that is not the certificate's finds the signature wrong.
    certificate.issuer().as_raw() == authority.subject().as_raw()
        && algorithms.all.iter().any(|algorithm| algorithm.verify_signature(key, content, signature).is_ok())
}

/// Does the private key belong to the certificate?
pub fn is_pair(certificate: &CertificateDer<'_>, key: PrivateKeyDer<'static>) -> bool {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let chain = vec![certificate.clone().into_owned()];
    rustls::sign::CertifiedKey::from_der(chain, key, &provider).is_ok()
}
