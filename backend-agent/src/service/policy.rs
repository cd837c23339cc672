//! What each front end may do on this node at most, known by the name in its certificate.
//!
//! The third lock, behind the front end's own check and the grant that it states: a front end that was taken over, or that
//! is for backups only, cannot go past it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use portolan_config::certificate::{self, CertificateName};
use portolan_config::checked::agent::AllowRule;
use portolan_config::checked::directory::GrantedDomains;
use portolan_proto::failure::status;
use portolan_proto::rights::{Need, Rights};
use portolan_proto::v1::Reason;
use tonic::{Request, Status};

/// Certificates whose names are remembered at most.
const REMEMBERED_MAX: usize = 256;

/// The rules of the configuration.
#[derive(Debug)]
pub(super) struct Policy {
    /// `None`: every front end may do everything.
    rules: Option<Vec<AllowRule>>,
    /// By certificate, so that it is read once and not for each file.
    known: Mutex<HashMap<Vec<u8>, Arc<Permission>>>,
}

/// What one front end may do.
#[derive(Debug, Default)]
pub(super) struct Permission {
    unlimited: bool,
    /// For the log.
    frontend: String,
    backup: GrantedDomains,
    write: GrantedDomains,
    delete: GrantedDomains,
}

impl Permission {
    /// Of every front end, where there are no rules.
    pub(super) fn unlimited() -> Self {
        Self { unlimited: true, ..Self::default() }
    }

    /// May it do this in a domain, or, without one, at the levels above?
    pub(super) fn covers(&self, need: Need, domain: Option<&[u8]>) -> bool {
        let has = |set: &GrantedDomains| match domain {
            Some(domain) => set.covers(domain),
            None => !set.is_empty(),
        };
        let rights = Rights { backup: has(&self.backup), write: has(&self.write), delete: has(&self.delete) };
        self.unlimited || need.is_met_by(rights)
    }

    /// May it do anything at all?
    fn is_some(&self) -> bool {
        self.covers(Need::Look, None)
    }

    pub(super) fn frontend(&self) -> &str {
        &self.frontend
    }
}

impl Policy {
    pub(super) fn new(rules: Option<Vec<AllowRule>>) -> Self {
        Self { rules, known: Mutex::default() }
    }

    /// What the caller of a request may do.
    ///
    /// # Errors
    /// It may do nothing at all.
    pub(super) fn of<T>(&self, request: &Request<T>) -> Result<Arc<Permission>, Status> {
        let certificates = request.peer_certs();
        let Some(certificate) = certificates.as_ref().and_then(|chain| chain.first()) else {
            return match self.rules {
                None => Ok(Arc::new(Permission::unlimited())),
                Some(_) => Err(status(Reason::NotGranted, "the caller shows no certificate")),
            };
        };
        let mut known = self.known.lock();
        let permission = match known.get(certificate.as_ref()) {
            Some(permission) => Arc::clone(permission),
            None => {
                if known.len() >= REMEMBERED_MAX {
                    known.clear();
                }
                let names = certificate::names(certificate, CertificateName::Dns);
                let permission = Arc::new(permission(self.rules.as_deref(), &names));
                known.insert(certificate.to_vec(), Arc::clone(&permission));
                permission
            }
        };
        if !permission.is_some() {
            tracing::warn!(frontend = permission.frontend, "call refused: no rule allows this front end");
            return Err(status(Reason::NotGranted, "this front end may do nothing on this node"));
        }
        Ok(permission)
    }
}

fn permission(rules: Option<&[AllowRule]>, names: &[String]) -> Permission {
    let (unlimited, frontend) = (rules.is_none(), names.join(","));
    let mut permission = Permission { unlimited, frontend, ..Permission::default() };
    for rule in rules.unwrap_or_default().iter().filter(|rule| names.contains(&rule.frontend)) {
        let Rights { backup, write, delete } = rule.rights;
        let Permission { backup: to_read, write: to_write, delete: to_delete, .. } = &mut permission;
        for (given, set) in [(backup, to_read), (write, to_write), (delete, to_delete)] {
            if given {
                set.extend(&rule.domains);
            }
        }
    }
    permission
}
