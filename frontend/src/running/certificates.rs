//! Renewal of certificates: files that have changed are taken without a reload.
//!
//! Who calls it: `running`, every few seconds.
//! What it calls: portolan-config for the files; `running::gates` and the nodes with what they hold now.
//! What it never does: take files that do not fit together.

use std::sync::Arc;

use portolan_config::checked::frontend::{Frontend as Config, Security};
use portolan_config::checked::listener::{ClientCertificate, Listener, TlsSettings};
use portolan_telemetry::chain;

use super::Running;
use crate::{Error, Phase};

impl Running {
    /// Reads the certificate files again and takes those that have changed. Files that do not fit together may be in the
    /// middle of being replaced: the old ones stay meanwhile.
    pub(super) async fn renew_certificates(&self) {
        let _one_at_a_time = self.in_force.change().await;
        if self.phase() != Phase::Serving {
            return;
        }
        let old = self.config();
        let reading = Arc::clone(&old);
        let read = tokio::task::spawn_blocking(move || with_certificates_of_now(&reading)).await;
        let fault = match read.map_err(|error| error.to_string()).and_then(|read| read) {
            Ok(None) => String::new(),
            Ok(Some(new)) => {
                self.take_certificates(&old, new).err().map(|error| chain(&error)).unwrap_or_default()
            }
            Err(fault) => fault,
        };
        let mut logged = self.logged.lock();
        if !fault.is_empty() && *logged != fault {
            tracing::warn!(fault, "certificate files have changed and cannot be used; the old ones stay");
        }
        *logged = fault;
    }

    fn take_certificates(&self, old: &Config, new: Config) -> Result<(), Error> {
        let mut updated = Vec::new();
        for gate in self.gates.list() {
            let named = |listener: &&Listener| listener.name == gate.name();
            let (Some(before), Some(after)) =
                (old.listeners.iter().find(named), new.listeners.iter().find(named))
            else {
                continue;
            };
            if before != after {
                let service = self.gates.make_service(after, Some(&gate.service()))?;
                updated.push((gate, service));
            }
        }
        if old.cluster != new.cluster {
            let change = self.members.prepare(&new, true)?;
            self.members.apply(change, &new, false);
            tracing::info!("the certificates of the cluster are renewed");
        }
        for (gate, service) in updated {
            tracing::info!(listener = gate.name(), "the certificates of a listener are renewed");
            self.gates.update(&gate, service, new.ipv6_prefix);
        }
        self.in_force.renew(new);
        Ok(())
    }
}

/// The same configuration with what its certificate files hold now; `None`: they have not changed.
fn with_certificates_of_now(old: &Config) -> Result<Option<Config>, String> {
    let mut new = old.clone();
    for settings in new.listeners.iter_mut().filter_map(|listener| listener.tls.settings_mut()) {
        let TlsSettings { identities, client, .. } = settings;
        for identity in identities {
            *identity = identity.reread()?;
        }
        match client {
            ClientCertificate::Off => {}
            ClientCertificate::Optional(anchors) | ClientCertificate::Required(anchors) => {
                *anchors = anchors.reread()?;
            }
        }
    }
    if let Security::Mutual { identity, ca } = &mut new.cluster {
        *identity = identity.reread()?;
        *ca = ca.reread()?;
    }
    let same = new.cluster == old.cluster && new.listeners == old.listeners;
    Ok((!same).then_some(new))
}
