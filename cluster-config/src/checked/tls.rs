//! Certificates, keys and trust anchors that a configuration names, read and matched.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use portolan_proto::id::NodeId;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Checker, span};
use crate::certificate::{CertificateName, ENDS_SOON, Summary, date, is_signed_by, names};
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
                let (key, chain) = (identity.key_file.display(), identity.chain_file.display());
                let message = format!(
                    "{key} does not belong to the certificate in {chain}, or is not usable ({error}); \
                     take both files from the same renewal"
                );
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
            Ok(identity) => {
                self.dates(&identity, certificate, &certificate_key);
                return Some(identity);
            }
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
        let anchors = Anchors::read(path).map_err(|message| self.fault(span(field), key, message)).ok()?;
        self.authority_dates(&anchors, field, key);
        Some(anchors)
    }

    /// Warns where the identity of a front end or an agent is not one that its own authorities signed: with one authority
    /// for the cluster, the other side refuses it.
    pub(crate) fn same_authority(
        &mut self,
        identity: &Identity,
        anchors: &Anchors,
        field: &Text,
        (key, authority_key): (&str, &str),
    ) {
        if is_signed_by(&identity.chain, &anchors.certificates) {
            return;
        }
        let shown = Shown::of(&identity.chain[0], &identity.chain_file);
        let message = format!(
            "{shown} was not signed by {authority_key}, {}; unless front ends and agents have different authorities, \
             the other side refuses it: take certificate and authority from the same folder of `portolan pki init`",
            anchors.file.display()
        );
        self.warn(span(field), key, message);
    }

    /// Warns where the certificate of an agent does not bear the node's name, or is not that of a server: front ends then take it
    /// for another node, or refuse it.
    pub(crate) fn is_of_node(&mut self, identity: &Identity, node: &NodeId, field: &Text, key: &str) {
        let Some(summary) = Summary::read(&identity.chain[0]) else { return };
        let names = names(&identity.chain[0], CertificateName::Dns);
        let shown = Shown::of(&identity.chain[0], &identity.chain_file);
        if !summary.is_server {
            let message =
                format!("{shown} is not for a server, so front ends refuse it; take that of node {node}");
            self.warn(span(field), key, message);
        } else if !names.iter().any(|name| name.eq_ignore_ascii_case(node.as_str()) || name.starts_with("*."))
        {
            let message = format!(
                "{shown} does not name node {node}, so front ends refuse it; it names: {}",
                if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
            );
            self.warn(span(field), key, message);
        }
    }

    /// Warns where the certificate that a front end shows to agents is not for a client: they refuse it.
    pub(crate) fn is_of_frontend(&mut self, identity: &Identity, field: &Text, key: &str) {
        if Summary::read(&identity.chain[0]).is_some_and(|summary| !summary.is_client) {
            let shown = Shown::of(&identity.chain[0], &identity.chain_file);
            let message = format!(
                "{shown} is for a server alone, as that of a node is, so agents refuse it; take that of a front end"
            );
            self.warn(span(field), key, message);
        }
    }

    /// Warns of the certificate of a chain that ends first, when it has ended or soon will.
    fn dates(&mut self, identity: &Identity, field: &Text, key: &str) {
        let now = SystemTime::now();
        let read = identity.chain.iter().filter_map(|certificate| Summary::read(certificate));
        let Some(first) = read.min_by_key(|summary| summary.not_after) else { return };
        let shown = Shown { name: first.common_name.clone(), file: &identity.chain_file };
        let remedy =
            "renew it (`portolan pki renew`, or who signed it) and replace the files; no restart is needed";
        if first.not_before > now {
            let since = date(first.not_before);
            let message = format!("{shown} is not valid before {since}; set this machine's clock, or wait");
            self.warn(span(field), key, message);
        }
        self.end(&first, &shown, now, remedy, field, key);
    }

    /// Warns of authorities that have all ended, or soon will. One of several may: it is being replaced.
    fn authority_dates(&mut self, anchors: &Anchors, field: &Text, key: &str) {
        let read = anchors.certificates.iter().filter_map(|certificate| Summary::read(certificate));
        let Some(last) = read.max_by_key(|summary| summary.not_after) else { return };
        let shown = Shown { name: last.common_name.clone(), file: &anchors.file };
        let remedy =
            "no certificate that it signed holds after that; put its successor beside it in this file";
        self.end(&last, &shown, SystemTime::now(), remedy, field, key);
    }

    fn end(
        &mut self,
        summary: &Summary,
        shown: &Shown<'_>,
        now: SystemTime,
        remedy: &str,
        field: &Text,
        key: &str,
    ) {
        let day = date(summary.not_after);
        if summary.not_after <= now {
            self.warn(span(field), key, format!("{shown} expired on {day}; {remedy}"));
        } else if summary.not_after <= now + ENDS_SOON {
            let days = summary.days_left(now);
            self.warn(span(field), key, format!("{shown} expires on {day}, in {days} days; {remedy}"));
        }
    }
}

/// A certificate as messages name it: its file, and its common name where it has one.
struct Shown<'a> {
    name: String,
    file: &'a Path,
}

impl<'a> Shown<'a> {
    fn of(certificate: &CertificateDer<'_>, file: &'a Path) -> Self {
        let name = Summary::read(certificate).map(|summary| summary.common_name).unwrap_or_default();
        Self { name, file }
    }
}

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " ({})", self.name) }
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
