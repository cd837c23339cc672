//! `portolan pki`: an authority and certificates for a cluster's front ends and nodes; their dates, their renewal.
//!
//! Who calls it: an operator, on the machine that has the authority's key; the demo.
//! What it calls: rcgen; the configuration's reading of certificates.
//! What it never does: replace a certificate without keeping the old one beside it.

mod list;
mod renew;

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};
use portolan_process::EXIT_USAGE;
use portolan_proto::id::NodeId;
use portolan_telemetry::chain;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Make certificates for the connections between front ends and agents.
#[derive(Parser)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(Init),
    List(list::List),
    Renew(renew::Renew),
}

/// Make an authority and certificates for front ends and nodes.
///
/// Writes ca.pem, ca-key.pem and, for each name, NAME.pem and NAME-key.pem. A node's certificate serves only,
/// a front end's calls nodes and also serves FTPS clients. Existing files are never overwritten. An authority
/// that is there already signs the new certificates, so a node can be added later.
#[derive(Parser)]
pub(super) struct Init {
    /// Folder for the files; made if missing.
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,
    /// A node's name; may be given more than once.
    #[arg(long = "node", value_name = "NAME")]
    pub(super) nodes: Vec<NodeId>,
    /// Another name in the certificate of the node, for agents that share it as those of a StatefulSet do; may be given more
    /// than once. Goes into the certificate of each node that is made.
    #[arg(long = "node-alias", value_name = "NAME")]
    pub(super) node_aliases: Vec<NodeId>,
    /// A front end's name; may be given more than once.
    #[arg(long = "frontend", value_name = "NAME")]
    pub(super) frontends: Vec<NodeId>,
    /// Another DNS name or IP address that clients reach the front ends by; may be given more than once.
    #[arg(long = "alias", value_name = "NAME")]
    pub(super) aliases: Vec<String>,
    /// Days that certificates of nodes and front ends are valid.
    #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(super) days: u64,
}

/// Days that certificates of nodes and front ends are valid unless the operator decides otherwise.
const DAYS: u64 = 825;
/// The name of the authority among the certificates of a folder.
const AUTHORITY: &str = "ca";
/// Days that the authority is valid.
const CA_DAYS: u64 = 3_650;
/// Certificates begin this much in the past, for clocks that are slow.
const CLOCK_SLACK: Duration = Duration::from_secs(3_600);

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{path} is there already and is not overwritten")]
    Taken { path: PathBuf },
    #[error("{path} is missing beside the other half of the authority")]
    Half { path: PathBuf },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot make the certificate of {name}")]
    Certificate { name: String, source: rcgen::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("ca-key.pem does not belong to ca.pem, so it cannot sign")]
    MixedAuthority,
    #[error("the authority has expired; make a new one, see docs/operations.md")]
    ExpiredAuthority,
    #[error("{path} was not signed by this folder's authority, so it is not renewed here")]
    Foreign { path: PathBuf },
    #[error("{path} has a name of a kind that cannot be written again; only DNS, IP, e-mail and URI can")]
    Name { path: PathBuf },
    #[error("{folder} has no certificate that its authority signed")]
    Nothing { folder: PathBuf },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Init(arguments) => run_init(arguments),
        Command::List(arguments) => list::run(arguments),
        Command::Renew(arguments) => renew::run(arguments),
    }
}

fn run_init(arguments: &Init) -> ExitCode {
    if let Err(message) = check_names(arguments) {
        eprintln!("portolan pki init: {message}");
        return ExitCode::from(EXIT_USAGE);
    }
    match init(arguments) {
        Ok(written) => {
            for path in written {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("portolan pki init: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Each name gives files of its own, and none of them is the authority's.
fn check_names(arguments: &Init) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in arguments.nodes.iter().chain(&arguments.frontends) {
        if name.as_str() == AUTHORITY || name.as_str().ends_with("-key") {
            return Err(format!("{name} is not allowed: its files would be taken for others"));
        }
        if !seen.insert(name) {
            return Err(format!("{name} is named twice"));
        }
    }
    if seen.is_empty() { Err("name at least one --node or --frontend".to_owned()) } else { Ok(()) }
}

/// Makes the files; returns the paths written.
pub(super) fn init(arguments: &Init) -> Result<Vec<PathBuf>, Error> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
    let names = arguments.nodes.iter().chain(&arguments.frontends);
    let targets =
        names.flat_map(|name| [certificate_path(folder, name.as_str()), key_path(folder, name.as_str())]);
    // Nothing is written when anything would be overwritten.
    for path in targets {
        let taken = path.try_exists().map_err(|source| Error::Read { path: path.clone(), source })?;
        if taken {
            return Err(Error::Taken { path });
        }
    }
    let mut written = Vec::new();
    let authority = authority(folder, &mut written)?;
    let mut sign = |name: &str, usages: &[ExtendedKeyUsagePurpose], aliases: &[String]| {
        let failed = |source| Error::Certificate { name: name.to_owned(), source };
        let names = std::iter::once(name).chain(aliases.iter().map(String::as_str)).map(san);
        let names = names.collect::<Result<_, _>>().map_err(failed)?;
        let params = params(name, usages, names, arguments.days);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &authority).map_err(failed)?;
        write(&certificate_path(folder, name), &certificate.pem(), 0o644, &mut written)?;
        write(&key_path(folder, name), &key.serialize_pem(), 0o600, &mut written)
    };
    let aliases: Vec<_> = arguments.node_aliases.iter().map(ToString::to_string).collect();
    for node in &arguments.nodes {
        sign(node.as_str(), &[ExtendedKeyUsagePurpose::ServerAuth], &aliases)?;
    }
    for frontend in &arguments.frontends {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        sign(frontend.as_str(), &usages, &arguments.aliases)?;
    }
    Ok(written)
}

pub(super) fn certificate_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pem"))
}

pub(super) fn key_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-key.pem"))
}

fn san(name: &str) -> Result<SanType, rcgen::Error> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

fn params(
    common_name: &str,
    usages: &[ExtendedKeyUsagePurpose],
    names: Vec<SanType>,
    days: u64,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, days);
    params
}

fn valid_for(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + Duration::from_secs(days * 86_400)).into();
}

/// The authority of the folder, made when it is not there.
fn authority(folder: &Path, written: &mut Vec<PathBuf>) -> Result<Issuer<'static, KeyPair>, Error> {
    let failed = |source| Error::Certificate { name: "the authority".to_owned(), source };
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca-key.pem"));
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    };
    match (read(&certificate)?, read(&key)?) {
        (Some(certificate), Some(key)) => {
            let key = KeyPair::from_pem(&key).map_err(failed)?;
            Issuer::from_ca_cert_pem(&certificate, key).map_err(failed)
        }
        (None, None) => {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "Portolan cluster authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            valid_for(&mut params, CA_DAYS);
            let signing_key = KeyPair::generate().map_err(failed)?;
            let signed = params.self_signed(&signing_key).map_err(failed)?;
            write(&certificate, &signed.pem(), 0o644, written)?;
            write(&key, &signing_key.serialize_pem(), 0o600, written)?;
            Ok(Issuer::new(params, signing_key))
        }
        (Some(_), None) => Err(Error::Half { path: key }),
        (None, Some(_)) => Err(Error::Half { path: certificate }),
    }
}

fn write(path: &Path, text: &str, mode: u32, written: &mut Vec<PathBuf>) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })
    .map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Taken { path: path.to_owned() },
        _ => Error::Write { path: path.to_owned(), source },
    })?;
    written.push(path.to_owned());
    Ok(())
}

/// All certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let read = read.ok().filter(|certificates| !certificates.is_empty());
    read.ok_or_else(|| Error::NoCertificate { path: path.to_owned() })
}

/// The names of the folder's certificates, sorted, the authority first: NAME of each NAME.pem that is not a key.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".pem"));
        names
            .extend(name.filter(|name| !name.ends_with("-key") && !name.starts_with('.')).map(str::to_owned));
    }
    names.sort_by(|a, b| (a != AUTHORITY, a).cmp(&(b != AUTHORITY, b)));
    Ok(names)
}
