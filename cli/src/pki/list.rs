//! `portolan pki list DIR`: every certificate of the authority's folder, how long it lasts, and what is wrong with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use portolan_config::certificate::{self, AlternativeName, ENDS_SOON, Summary, date};
use portolan_telemetry::chain;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{AUTHORITY, Error, certificate_path, certificates, key_path, names};
use crate::table;

/// List the certificates of an authority's folder.
///
/// One line for each NAME.pem that is no key: name, role (node, frontend, authority), names that it is valid for,
/// first and last day, days left, file, whether NAME-key.pem belongs to it (fits, WRONG, missing), whether the
/// authority (ca.pem) signed it. A certificate that ends within 30 days gets a warning. Exit status 1 when a
/// certificate has expired, is not the authority's, cannot be read, or has another's key.
#[derive(Parser)]
pub(super) struct List {
    /// The authority's folder, made by `portolan pki init`.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn run(arguments: &List) -> ExitCode {
    match list(&arguments.folder, SystemTime::now()) {
        Ok(listed) => {
            print!("{}", table(&listed.rows));
            for line in &listed.warnings {
                eprintln!("portolan pki list: warning: {line}");
            }
            for line in &listed.faults {
                eprintln!("portolan pki list: {line}");
            }
            if listed.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("portolan pki list: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

struct Listed {
    rows: Vec<Vec<String>>,
    warnings: Vec<String>,
    faults: Vec<String>,
}

fn list(folder: &Path, now: SystemTime) -> Result<Listed, Error> {
    let authorities = certificates(&folder.join("ca.pem"))?;
    let heading =
        ["NAME", "ROLE", "VALID FOR", "NOT BEFORE", "NOT AFTER", "DAYS LEFT", "FILE", "KEY", "SIGNED BY CA"];
    let rows = vec![heading.map(str::to_owned).to_vec()];
    let mut listed = Listed { rows, warnings: Vec::new(), faults: Vec::new() };
    for name in names(folder)? {
        let path = certificate_path(folder, &name);
        let chain = match certificates(&path) {
            Ok(chain) => chain,
            Err(error) => {
                listed.faults.push(portolan_telemetry::chain(&error).to_string());
                continue;
            }
        };
        if !certificate::is_signed_by(&chain, &authorities) {
            listed.faults.push(format!("{} was not signed by ca.pem of this folder", path.display()));
        }
        // The authority's file may hold the next authority too; in others the rest of a chain follows.
        let shown = if name == AUTHORITY { chain.len() } else { 1 };
        for (index, certificate) in chain.iter().take(shown).enumerate() {
            let Some(summary) = Summary::read(certificate) else {
                listed.faults.push(format!("{} holds a certificate that cannot be read", path.display()));
                continue;
            };
            listed.dates(folder, &name, &summary, now);
            let key = if index == 0 { listed.key(folder, &name, certificate) } else { "-" };
            let is_signed = certificate::is_signed_by(&chain[index..], &authorities);
            listed.rows.push(vec![
                name.clone(),
                role(&summary).to_owned(),
                valid_for(&summary),
                date(summary.not_before),
                date(summary.not_after),
                summary.days_left(now).to_string(),
                path.display().to_string(),
                key.to_owned(),
                if is_signed { "yes" } else { "NO" }.to_owned(),
            ]);
        }
    }
    Ok(listed)
}

impl Listed {
    /// Reports a certificate that has expired or soon will.
    fn dates(&mut self, folder: &Path, name: &str, summary: &Summary, now: SystemTime) {
        let path = certificate_path(folder, name);
        let (path, last) = (path.display(), date(summary.not_after));
        let remedy = if name == AUTHORITY {
            "put a new authority beside it, see docs/operations.md".to_owned()
        } else {
            format!("renew it: portolan pki renew {} {name}", folder.display())
        };
        if summary.not_after <= now {
            self.faults.push(format!("{path} expired on {last}; {remedy}"));
        } else if summary.not_after <= now + ENDS_SOON {
            let days = summary.days_left(now);
            self.warnings.push(format!("{path} expires on {last}, in {days} days; {remedy}"));
        }
    }

    /// Does the key beside the certificate belong to it? One that is kept elsewhere is no fault.
    fn key(&mut self, folder: &Path, name: &str, certificate: &CertificateDer<'_>) -> &'static str {
        let path = key_path(folder, name);
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "missing",
            Err(source) => {
                self.faults.push(chain(&Error::Read { path, source }).to_string());
                "unreadable"
            }
            Ok(pem) => {
                let key = PrivateKeyDer::from_pem_slice(&pem).ok();
                if key.is_some_and(|key| certificate::is_pair(certificate, key)) {
                    return "fits";
                }
                let file = certificate_path(folder, name);
                self.faults.push(format!("{} does not belong to {}", path.display(), file.display()));
                "WRONG"
            }
        }
    }
}

fn role(summary: &Summary) -> &'static str {
    match (summary.is_authority, summary.is_client, summary.is_server) {
        (true, _, _) => "authority",
        (_, true, true) => "frontend",
        (_, false, true) => "node",
        (_, true, false) => "client",
        (_, false, false) => "other",
    }
}

fn valid_for(summary: &Summary) -> String {
    let names = summary.alternative_names.iter().map(|name| match name {
        AlternativeName::Dns(name) | AlternativeName::Email(name) | AlternativeName::Uri(name) => {
            name.clone()
        }
        AlternativeName::Address(address) => address.to_string(),
        AlternativeName::Other => "?".to_owned(),
    });
    let names: Vec<_> = names.collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}
