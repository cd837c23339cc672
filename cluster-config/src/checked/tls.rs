//! Certificates, keys and trust anchors that a configuration names, read and matched.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Checker, span};
use crate::raw::Text;
use crate::secret::{Secret, read_secret_file};

/// A certificate chain and its private key; the key belongs to the first certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub chain_pem: Vec<u8>,
    pub key_pem: Secret<Vec<u8>>,
    pub chain_file: PathBuf,
    pub key_file: PathBuf,
}

/// Which of the two files of an identity is at fault, and why.
enum IdentityFault {
    Chain(String),
    Key(String),
}

impl Identity {
    /// The key, parsed again: rustls takes it by value.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.expose())
            .expect("parsed when the configuration was checked")
    }

    /// What the files hold now.
    ///
    /// # Errors
    /// A sentence; the files may be in the middle of being replaced.
    pub fn reread(&self) -> Result<Self, String> {
        Self::read(self.chain_file.clone(), self.key_file.clone()).map_err(|faults| {
            let words = faults.into_iter().map(|fault| match fault {
                IdentityFault::Chain(message) | IdentityFault::Key(message) => message,
            });
            words.collect::<Vec<_>>().join("; ")
        })
    }

    fn read(chain_file: PathBuf, key_file: PathBuf) -> Result<Self, Vec<IdentityFault>> {
        let (chain, key_pem) = (read_chain(&chain_file), read_key(&key_file));
        let ((chain, chain_pem), key_pem) = match (chain, key_pem) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => {
                let chain = chain.err().map(IdentityFault::Chain);
                return Err(chain.into_iter().chain(key.err().map(IdentityFault::Key)).collect());
            }
        };
        let identity = Self { chain, chain_pem, key_pem: Secret::new(key_pem), chain_file, key_file };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        match rustls::sign::CertifiedKey::from_der(identity.chain.clone(), identity.key(), &provider) {
            Ok(_) => Ok(identity),
            Err(error) => {
                let key = identity.key_file.display();
                let message = format!("{key} does not belong to the certificate, or is not usable: {error}");
                Err(vec![IdentityFault::Key(message)])
            }
        }
    }
}

/// Trust anchors, as PEM; at least one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchors {
    pub pem: Vec<u8>,
    pub certificates: Vec<CertificateDer<'static>>,
    pub file: PathBuf,
}

impl Anchors {
    /// What the file holds now.
    ///
    /// # Errors
    /// A sentence.
    pub fn reread(&self) -> Result<Self, String> {
        Self::read(self.file.clone())
    }

    fn read(file: PathBuf) -> Result<Self, String> {
        let (certificates, pem) = read_chain(&file)?;
        Ok(Self { pem, certificates, file })
    }
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
        let faults = match Identity::read(certificate_path?, key_path?) {
            Ok(identity) => return Some(identity),
            Err(faults) => faults,
        };
        for fault in faults {
            match fault {
                IdentityFault::Chain(message) => self.fault(span(certificate), &certificate_key, message),
                IdentityFault::Key(message) => self.fault(span(key), &key_key, message),
            }
        }
        None
    }

    /// The trust anchors of a key. `None` after a fault, or when it is not given.
    pub(crate) fn anchors(&mut self, field: &Text, key: &str) -> Option<Anchors> {
        let path = self.path(field, key)?;
        Anchors::read(path).map_err(|message| self.fault(span(field), key, message)).ok()
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
