//! Certificates, keys and trust anchors that a configuration names, read and matched.

use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Checker, span};
use crate::raw::Text;
use crate::secret::{Secret, read_secret_file};

/// A certificate chain and its private key; the key belongs to the first certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub chain_pem: Vec<u8>,
    pub key_pem: Secret<Vec<u8>>,
}

impl Identity {
    /// The key, parsed again: rustls takes it by value.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.expose())
            .expect("parsed when the configuration was checked")
    }
}

/// Trust anchors, as PEM; at least one certificate.
#[derive(Debug, Clone)]
pub struct Anchors {
    pub pem: Vec<u8>,
}

impl Checker {
    /// The identity of two keys that must be given together. `None` after a fault, or when neither is given.
    pub(crate) fn identity(&mut self, certificate: &Text, key: &Text, prefix: &str) -> Option<Identity> {
        let certificate_key = format!("{prefix}certificate");
        let key_key = format!("{prefix}key");
        let certificate_path = self.path(certificate, &certificate_key);
        let key_path = self.path(key, &key_key);
        match (certificate.is_some(), key.is_some()) {
            (true, false) => self.fault(span(certificate), &key_key, "required with a certificate"),
            (false, true) => self.fault(span(key), &certificate_key, "required with a key"),
            _ => {}
        }
        let chain = certificate_path.and_then(|path| {
            read_chain(&path).map_err(|message| self.fault(span(certificate), &certificate_key, message)).ok()
        });
        let key_pem = key_path.and_then(|path| {
            read_key(&path).map_err(|message| self.fault(span(key), &key_key, message)).ok()
        });
        let ((chain, chain_pem), key_pem) = (chain?, key_pem?);
        let identity = Identity { chain, chain_pem, key_pem: Secret::new(key_pem) };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        match rustls::sign::CertifiedKey::from_der(identity.chain.clone(), identity.key(), &provider) {
            Ok(_) => Some(identity),
            Err(error) => {
                let message = format!("does not belong to the certificate, or is not usable: {error}");
                self.fault(span(key), &key_key, message);
                None
            }
        }
    }

    /// The trust anchors of a key. `None` after a fault, or when it is not given.
    pub(crate) fn anchors(&mut self, field: &Text, key: &str) -> Option<Anchors> {
        let path = self.path(field, key)?;
        match read_chain(&path) {
            Ok((_, pem)) => Some(Anchors { pem }),
            Err(message) => {
                self.fault(span(field), key, message);
                None
            }
        }
    }
}

fn read_chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Vec<u8>), String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{shown} is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err(format!("{shown} holds no certificate; allowed: PEM, one or more CERTIFICATE blocks"));
    }
    Ok((chain, pem))
}

fn read_key(path: &Path) -> Result<Vec<u8>, String> {
    let pem = read_secret_file(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        format!("{} holds no private key; allowed: PEM, PKCS#8, PKCS#1 or SEC1", path.display())
    })?;
    Ok(pem)
}
