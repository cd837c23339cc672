//! `portolan pki renew DIR NAME...`: the same names, a new key, more time.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use portolan_config::certificate::{self, AlternativeName, Summary, date};
use portolan_process::EXIT_USAGE;
use portolan_proto::id::NodeId;
use portolan_telemetry::chain;
use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;

use super::{AUTHORITY, DAYS, Error, authority, certificate_path, certificates, key_path, names, params};

/// Renew certificates of an authority's folder.
///
/// Each new certificate has the names and usages of the old one, a new key, and the same authority's signature.
/// It replaces NAME.pem and NAME-key.pem in one step each; the old ones stay beside them as NAME.pem.old and
/// NAME-key.pem.old. Nothing is replaced when one of the names cannot be renewed. Copy the new files to their
/// machine: front ends and agents take them within 5 s, without a restart. The authority itself is not renewed.
#[derive(Parser)]
pub(super) struct Renew {
    /// The authority's folder, made by `portolan pki init`, with ca.pem and ca-key.pem.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Nodes and front ends whose certificates are renewed.
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<NodeId>,
    /// Renew every certificate of the folder that its authority signed.
    #[arg(long)]
    all: bool,
    /// Days that the new certificates are valid.
    #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
}

/// A certificate that is signed and not yet written.
struct Signed {
    name: String,
    certificate_pem: String,
    key_pem: String,
    not_after: SystemTime,
}

pub(super) fn run(arguments: &Renew) -> ExitCode {
    if let Some(name) =
        arguments.names.iter().find(|name| name.as_str() == AUTHORITY || name.as_str().ends_with("-key"))
    {
        eprintln!("portolan pki renew: {name} is no node or front end; the authority is not renewed");
        return ExitCode::from(EXIT_USAGE);
    }
    match renew(arguments, SystemTime::now()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portolan pki renew: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn renew(arguments: &Renew, now: SystemTime) -> Result<(), Error> {
    let folder = &arguments.folder;
    // `authority` makes one where there is none; here that would be another one than the certificates'.
    let authorities = certificates(&folder.join("ca.pem"))?;
    let key_file = folder.join("ca-key.pem");
    let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|error| {
        let source = io::Error::other(error.to_string());
        Error::Read { path: key_file, source }
    })?;
    if !certificate::is_pair(&authorities[0], key) {
        return Err(Error::MixedAuthority);
    }
    let ends = Summary::read(&authorities[0]).map_or(SystemTime::UNIX_EPOCH, |summary| summary.not_after);
    if ends <= now {
        return Err(Error::ExpiredAuthority);
    }
    let issuer = authority(folder, &mut Vec::new())?;
    let mut names_to_sign: Vec<String> = arguments.names.iter().map(ToString::to_string).collect();
    names_to_sign.sort();
    names_to_sign.dedup();
    if arguments.all {
        names_to_sign = names(folder)?;
        names_to_sign.retain(|name| name != AUTHORITY);
    }
    let mut signed = Vec::new();
    for name in names_to_sign {
        match sign(folder, &name, &authorities[..1], &issuer, arguments.days) {
            Ok(one) => signed.push(one),
            // Other certificates may lie beside the authority's.
            Err(error @ (Error::Foreign { .. } | Error::NoCertificate { .. })) if arguments.all => {
                eprintln!("portolan pki renew: left out: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    if signed.is_empty() {
        return Err(Error::Nothing { folder: folder.clone() });
    }
    for one in &signed {
        replace(folder, one)?;
        let file = certificate_path(folder, &one.name);
        println!("{}: valid until {}", file.display(), date(one.not_after));
    }
    if signed.iter().any(|one| one.not_after > ends) {
        let last = date(ends);
        eprintln!(
            "portolan pki renew: warning: the authority expires on {last}, and no certificate holds after that; \
             put a new authority beside it, see docs/operations.md"
        );
    }
    Ok(())
}

fn sign(
    folder: &Path,
    name: &str,
    authorities: &[rustls::pki_types::CertificateDer<'_>],
    issuer: &Issuer<'static, KeyPair>,
    days: u64,
) -> Result<Signed, Error> {
    let path = certificate_path(folder, name);
    let old = certificates(&path)?;
    let summary = Summary::read(&old[0]).ok_or_else(|| Error::NoCertificate { path: path.clone() })?;
    if summary.is_authority || !certificate::is_signed_by(&old[..1], authorities) {
        return Err(Error::Foreign { path });
    }
    let failed = |source| Error::Certificate { name: name.to_owned(), source };
    let mut alternative_names = Vec::new();
    for name in &summary.alternative_names {
        alternative_names.push(match name {
            AlternativeName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            AlternativeName::Address(address) => SanType::IpAddress(*address),
            AlternativeName::Email(name) => SanType::Rfc822Name(name.as_str().try_into().map_err(failed)?),
            AlternativeName::Uri(name) => SanType::URI(name.as_str().try_into().map_err(failed)?),
            AlternativeName::Other => return Err(Error::Name { path }),
        });
    }
    let usages = [
        summary.is_client.then_some(ExtendedKeyUsagePurpose::ClientAuth),
        summary.is_server.then_some(ExtendedKeyUsagePurpose::ServerAuth),
    ];
    let usages: Vec<_> = usages.into_iter().flatten().collect();
    let params = params(&summary.common_name, &usages, alternative_names, days);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    let not_after = Summary::read(certificate.der()).expect("just made").not_after;
    Ok(Signed {
        name: name.to_owned(),
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        not_after,
    })
}

/// Replaces certificate and key. Between the two steps they do not fit, which the programs wait out.
fn replace(folder: &Path, signed: &Signed) -> Result<(), Error> {
    let (certificate, key) = (certificate_path(folder, &signed.name), key_path(folder, &signed.name));
    let new_certificate = staged(&certificate, &signed.certificate_pem, 0o644)?;
    let new_key = staged(&key, &signed.key_pem, 0o600)?;
    // After a renewal that a crash cut in two, the pair that is worth keeping is kept already.
    if is_pair(&certificate, &key) || !is_pair(&old(&certificate), &old(&key)) {
        keep(&certificate)?;
        keep(&key)?;
    }
    for (new, path) in [(new_key, &key), (new_certificate, &certificate)] {
        let written = new.persist(path).map_err(|error| error.error);
        written.map_err(|source| Error::Write { path: path.clone(), source })?;
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::Write { path: folder.to_owned(), source })
}

fn is_pair(certificate: &Path, key: &Path) -> bool {
    let certificates = certificates(certificate).unwrap_or_default();
    let key = PrivateKeyDer::from_pem_file(key);
    certificates.first().zip(key.ok()).is_some_and(|(first, key)| certificate::is_pair(first, key))
}

/// The new content in a file beside `path`, on the disk, with mode and owner of the one that it will replace.
fn staged(path: &Path, text: &str, mode: u32) -> Result<tempfile::NamedTempFile, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let old = match path.metadata() {
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    let mode = old.as_ref().map_or(mode, |old| old.mode() & 0o777);
    let staged = tempfile::Builder::new().prefix(".renewed-").tempfile_in(folder);
    let staged = staged.and_then(|mut staged| {
        staged.write_all(text.as_bytes())?;
        give(staged.as_file(), old.as_ref())?;
        staged.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        staged.as_file().sync_all()?;
        Ok(staged)
    });
    staged.map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// A program that read the old file as its owner or group must be able to read the new one.
fn give(file: &File, old: Option<&Metadata>) -> io::Result<()> {
    let new = file.metadata()?;
    match old {
        Some(old) if (old.uid(), old.gid()) != (new.uid(), new.gid()) => {
            fchown(file, Some(old.uid()), Some(old.gid()))
        }
        _ => Ok(()),
    }
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    name.into()
}

/// Makes `path` known as `path.old` too, in place of an older one, which stays if this fails.
fn keep(path: &Path) -> Result<(), Error> {
    let old = old(path);
    let mut between = old.clone().into_os_string();
    between.push(".new");
    let between = PathBuf::from(between);
    let failed = |source| Error::Write { path: old.clone(), source };
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    };
    gone(std::fs::remove_file(&between))?;
    match std::fs::hard_link(path, &between) {
        // A key that is kept elsewhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        linked => linked.map_err(failed)?,
    }
    std::fs::rename(&between, &old).map_err(failed)?;
    // Between two names of one file a rename does nothing.
    gone(std::fs::remove_file(&between))
}
