//! What a certificate says of who shows it.
//!
//! Who calls it: the agent for front ends, the FTP engines for admins; both with certificates that TLS has verified.
//! What it calls: x509-parser.
//! What it never does: verify anything.

use std::time::{Duration, SystemTime};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

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
