//! A reload: reads the whole configuration, and makes everything that can fail before it changes anything. A new
//! configuration is in force as a whole or not at all. No session and no transfer ends by it.
//!
//! Who calls it: `Frontend` for SIGHUP, `operator` for `portolan reload`.
//! What it calls: `running::gates`, portolan-cluster, portolan-ftp.
//! What it never does: take a half of a configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use portolan_cluster::auth::Admins;
use portolan_config::Faults;
use portolan_config::checked::frontend::{Frontend as Config, Security};
use portolan_ftp::metrics::Outcome;
use portolan_telemetry::chain;
use portolan_telemetry::log::AUDIT;

use super::Running;
use super::gates::Gate;
use crate::{Error, Phase};

/// Why a reload was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("{0}")]
    Faults(Faults),
    #[error("{keys}: changed, which takes a restart; change it back to reload the rest")]
    NeedsRestart { keys: String },
    #[error(transparent)]
    Setup(#[from] Error),
    #[error("the front end is {}, not serving", .0.name())]
    NotServing(Phase),
    #[error("the log cannot be changed")]
    Log(#[source] std::io::Error),
    #[error("the configuration could not be read")]
    Broken(#[from] tokio::task::JoinError),
}

/// A reload that was refused.
#[derive(Debug, Clone)]
pub struct RefusedReload {
    pub at: SystemTime,
    pub cause: String,
}

impl Running {
    /// Reads the configuration again and puts it into force. What has changed, one sentence each.
    ///
    /// # Errors
    /// Nothing has changed.
    pub async fn reload(&self) -> Result<Vec<String>, ReloadError> {
        let reloaded = {
            let _one_at_a_time = self.in_force.change().await;
            self.enter_from(Phase::Serving, Phase::Reloading)?;
            let reloaded = self.reload_once().await;
            // A drain may have begun meanwhile.
            self.enter_from(Phase::Reloading, Phase::Serving).ok();
            reloaded
        };
        self.refresh_names().await;
        match &reloaded {
            Ok(changes) => {
                *self.refused_reload.lock() = None;
                self.shared.metrics.reloaded(Outcome::Complete);
                tracing::info!(target: AUDIT, event = "reload", result = "complete", ?changes, "configuration reloaded");
            }
            Err(error) => {
                let cause = chain(error);
                let refused = RefusedReload { at: SystemTime::now(), cause: cause.clone() };
                *self.refused_reload.lock() = Some(refused);
                self.shared.metrics.reloaded(Outcome::Refused);
                tracing::error!(
                    target: AUDIT,
                    event = "reload",
                    result = "refused",
                    cause,
                    "the new configuration is refused; the old one stays in force"
                );
            }
        }
        reloaded
    }

    async fn reload_once(&self) -> Result<Vec<String>, ReloadError> {
        let old = self.config();
        let file = old.file.clone();
        let load = move || {
            let config = portolan_config::Frontend::load(&file).map_err(ReloadError::Faults)?;
            let admins = Admins::new(&config).map_err(Error::from)?;
            Ok::<_, ReloadError>((config, admins))
        };
        let (new, admins) = tokio::task::spawn_blocking(load).await??;
        let keys = needs_restart(&old, &new);
        if !keys.is_empty() {
            return Err(ReloadError::NeedsRestart { keys: keys.join(", ") });
        }
        // All that can fail.
        let mut updated = Vec::new();
        let mut added = Vec::new();
        let open: BTreeMap<String, Arc<Gate>> =
            self.gates.list().into_iter().map(|gate| (gate.name().to_owned(), gate)).collect();
        for listener in &new.listeners {
            match open.get(&listener.name) {
                Some(gate) => {
                    updated
                        .push((Arc::clone(gate), self.gates.make_service(listener, Some(&gate.service()))?));
                }
                None => added.push(self.gates.bind(listener, &mut Vec::new())?),
            }
        }
        let members = self.members.prepare(&new, old.cluster != new.cluster).map_err(Error::from)?;
        let mut changes = changes(&old, &new);
        // The last that can fail.
        changes.extend(self.set_log(&old, &new)?);
        let routes_anew = old.map != new.map || old.nodes != new.nodes || old.discovery != new.discovery;
        self.members.apply(members, &new, routes_anew);
        if old.map.ldap.as_ref().map(|ldap| &ldap.directory)
            != new.map.ldap.as_ref().map(|ldap| &ldap.directory)
        {
            self.directory_map.forget();
        }
        self.shared.update(&new, admins);
        self.gates.set_limits(&new);
        for (gate, service) in updated {
            self.gates.update(&gate, service, new.ipv6_prefix);
        }
        // The operator is told when nobody is let in any more and the addresses are free.
        self.gates.close_removed(&new).await;
        self.drain_limit.set(new.drain_timeout);
        let ipv6_prefix = new.ipv6_prefix;
        self.in_force.replace(new);
        // Who wakes up by these reads the configuration: it has to be the new one.
        self.directory_map.want();
        self.discovery.want();
        for bound in added {
            self.gates.open(bound, ipv6_prefix);
        }
        Ok(changes)
    }

    /// Takes other log targets; what to tell the operator.
    fn set_log(&self, old: &Config, new: &Config) -> Result<Option<String>, ReloadError> {
        let Some(telemetry) = self.telemetry.as_ref().filter(|_| old.log != new.log) else { return Ok(None) };
        telemetry.set_log(&new.log).map_err(ReloadError::Log)?;
        let overridden =
            if telemetry.is_overridden() { ", but for levels, which PORTOLAN_LOG overrides" } else { "" };
        Ok(Some(format!("the log is changed{overridden}")))
    }
}

/// What differs, for the operator.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    for listener in &new.listeners {
        match old.listeners.iter().find(|other| other.name == listener.name) {
            None => changes.push(format!("listener {} is added", listener.name)),
            Some(other) if other != listener => {
                changes.push(format!("listener {} is changed", listener.name));
            }
            Some(_) => {}
        }
    }
    for listener in &old.listeners {
        if !new.listeners.iter().any(|other| other.name == listener.name) {
            changes.push(format!("listener {} is removed; its sessions go on", listener.name));
        }
    }
    // Without `..`: a new part of the configuration decides here what the operator is shown.
    let Config {
        global_limits,
        ipv6_prefix,
        ftp_limits,
        bans,
        admin_bandwidth,
        admins,
        directories,
        order,
        grants,
        nodes,
        discovery,
        map,
        cluster,
        drain_timeout,
        // One by one, above.
        listeners: _,
        // What is changed is for `set_log` to say.
        log: _,
        // The same file, or a change that takes a restart: `needs_restart`.
        file: _,
        state_dir: _,
        threads: _,
        control: _,
        tracing: _,
        http: _,
    } = old;
    for (differs, what) in [
        (*global_limits != new.global_limits, "the global limits are changed"),
        (*ipv6_prefix != new.ipv6_prefix, "the prefix that IPv6 clients count by is changed"),
        (*ftp_limits != new.ftp_limits, "the limits of FTP are changed"),
        (*bans != new.bans, "the rules of bans are changed"),
        (*admin_bandwidth != new.admin_bandwidth, "the bandwidth of admins is changed"),
        (*admins != new.admins, "the admins are changed; who is logged in stays so"),
        (*directories != new.directories || *order != new.order, "the directories of admins are changed"),
        (*grants != new.grants, "the grants are changed; who is logged in keeps those of the login"),
        (*nodes != new.nodes, "the nodes are changed"),
        (*discovery != new.discovery, "the discovery of nodes is changed"),
        (*map != new.map, "the map is changed"),
        (*cluster != new.cluster, "the certificates of the cluster are changed"),
        (*drain_timeout != new.drain_timeout, "the drain timeout is changed"),
    ] {
        if differs {
            changes.push(what.to_owned());
        }
    }
    changes
}

/// Keys that differ and hold for the life of a process.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let kind = |security: &Security| matches!(security, Security::Plain);
    // Sessions of before would keep the ports from those that come.
    let shares_otherwise = new.listeners.iter().any(|listener| {
        let before = old.listeners.iter().find(|other| other.name == listener.name);
        match before {
            Some(before) if before.passive_ports_shared == listener.passive_ports_shared => {
                listener.passive_ports_shared && before.passive_ports != listener.passive_ports
            }
            _ => old.listeners.iter().any(|other| other.competes_with(listener)),
        }
    });
    [
        (kind(&old.cluster) != kind(&new.cluster), "cluster"),
        (shares_otherwise, "passive ports that are shared"),
        (old.state_dir != new.state_dir, "state_dir"),
        (old.threads != new.threads, "threads"),
        (old.control != new.control, "control"),
        (old.tracing != new.tracing, "tracing"),
        (old.http != new.http, "http"),
    ]
    .into_iter()
    .filter_map(|(differs, key)| differs.then_some(key))
    .collect()
}
