//! The state of a front end at one moment, as everybody is shown it.
//!
//! Who calls it: `operator` prints it for the operator, `console` as metrics and as health.
//! What it calls: what it collects from: `running`, portolan-cluster, portolan-ftp.
//! What it never does: hold a secret, change anything, or decide how something is shown.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use portolan_cluster::auth::lockout::Ban;
use portolan_cluster::map::conflicts::Conflicts;
use portolan_cluster::map::directory::Known;
use portolan_cluster::nodes::{Health, NodeClient};
use portolan_config::checked::frontend::Frontend as Config;
use portolan_ftp::ControlConnection;
use portolan_proto::id::NodeId;
use portolan_telemetry::http::Readiness;

use super::gates::Gate;
use super::{RefusedReload, Running};
use crate::Phase;
use crate::gate::flow::Usage;

/// See the module.
pub(crate) struct View {
    pub(crate) started: SystemTime,
    pub(crate) phase: Phase,
    pub(crate) phase_since: SystemTime,
    /// The last reload, if it was refused.
    pub(crate) refused_reload: Option<RefusedReload>,
    /// The configuration in force.
    pub(crate) config: Arc<Config>,
    pub(crate) config_read: SystemTime,
    pub(crate) gates: Vec<Arc<Gate>>,
    pub(crate) nodes: Vec<NodeView>,
    /// How full all limits are.
    pub(crate) usages: Vec<Usage>,
    /// The oldest first.
    pub(crate) sessions: Vec<Arc<ControlConnection>>,
    pub(crate) directories: Vec<DirectoryView>,
    /// `None`: no directory is a source of the map.
    pub(crate) directory_map: Option<Known>,
    pub(crate) bans: Vec<Ban>,
    /// What nodes hold and no client is shown.
    pub(crate) conflicts: Conflicts,
    /// Faults of the log and its targets.
    telemetry_warnings: Vec<String>,
}

/// A node that is not taken out.
pub(crate) struct NodeView {
    pub(crate) node: Arc<NodeClient>,
    pub(crate) health: Health,
    /// The node that it stands by for.
    pub(crate) standby_of: Option<NodeId>,
    /// Domains and objects that it announces no longer, which is not believed.
    pub(crate) in_doubt: usize,
}

/// A directory of admins.
pub(crate) struct DirectoryView {
    pub(crate) name: String,
    /// Each server's URI, and whether it did not answer when it was asked last.
    pub(crate) servers: Vec<(String, bool)>,
}

impl Running {
    /// The state at this moment.
    pub(crate) fn view(&self) -> View {
        let config = self.in_force.load();
        let (phase, phase_since) = *self.phase.lock();
        let map = self.members.router().snapshot();
        let nodes = self.members.nodes().list().into_iter().map(|node| {
            let health = node.health().borrow().clone();
            let primary = config.nodes.iter().find(|other| other.standby.contains(node.name()));
            let in_doubt = map.count_in_doubt(node.index());
            NodeView { health, standby_of: primary.map(|primary| primary.name.clone()), in_doubt, node }
        });
        let directories = self.shared.desk.authenticator.directories().into_iter();
        View {
            started: self.started,
            phase,
            phase_since,
            refused_reload: self.refused_reload.lock().clone(),
            config_read: self.in_force.read_at(),
            gates: self.gates.list(),
            nodes: nodes.collect(),
            usages: self.gates.usages(),
            sessions: self.gates.sessions().list(),
            directories: directories.map(|(name, servers)| DirectoryView { name, servers }).collect(),
            directory_map: self.directory_map.known(),
            bans: self.shared.desk.lockout.bans(Instant::now()),
            conflicts: self.router().conflicts(),
            telemetry_warnings: self.telemetry.iter().flat_map(|telemetry| telemetry.warnings()).collect(),
            config,
        }
    }
}

impl View {
    /// Is the front end of use? One node or one directory that is away is a warning: to send clients away for it would
    /// make an outage of a part one of the whole.
    pub(crate) fn readiness(&self) -> Readiness {
        let mut readiness = Readiness::default();
        match self.phase {
            Phase::Serving | Phase::Reloading => {}
            phase @ (Phase::Starting | Phase::Draining | Phase::Stopped) => {
                readiness.reasons.push(format!("the front end is {}", phase.name()));
            }
        }
        let mut up = 0;
        for NodeView { node, health, in_doubt, .. } in &self.nodes {
            if *in_doubt > 0 {
                readiness.warnings.push(format!(
                    "node {} no longer announces {in_doubt} domains and objects; they answer 450 until they come back or somebody runs portolan map confirm",
                    node.name()
                ));
            }
            match health {
                Health::Up => up += 1,
                Health::Away(cause) => {
                    readiness.warnings.push(format!("node {} is away: {cause}", node.name()));
                }
                Health::Unheard => readiness.warnings.push(format!("node {} is not heard yet", node.name())),
            }
        }
        if up == 0 {
            readiness.reasons.push("no node is up".to_owned());
        }
        if let Some(discovery) = &self.config.discovery
            && self.nodes.len() < discovery.nodes_min
        {
            let (found, least) = (self.nodes.len(), discovery.nodes_min);
            readiness.reasons.push(format!("{found} of at least {least} nodes are found"));
        }
        readiness.warnings.extend(self.telemetry_warnings.iter().cloned());
        let mut away = 0;
        for DirectoryView { name, servers } in &self.directories {
            let silent: Vec<&str> =
                servers.iter().filter(|(_, away)| *away).map(|(server, _)| &**server).collect();
            if silent.len() == servers.len() {
                away += 1;
            }
            if !silent.is_empty() {
                readiness.warnings.push(format!("directory {name}: {} does not answer", silent.join(", ")));
            }
        }
        // The admins file, where there is one, always answers.
        if !self.directories.is_empty()
            && away == self.directories.len()
            && self.config.admins.admins.is_empty()
        {
            readiness.reasons.push("no directory of admins answers, so nobody can log in".to_owned());
        }
        if let Some(failure) = self.directory_map.as_ref().and_then(|map| map.failure.as_ref()) {
            readiness.warnings.push(format!("the map of the directory cannot be read: {failure}"));
        }
        let Conflicts { domains, objects } = self.conflicts;
        if domains + objects > 0 {
            readiness.warnings.push(format!(
                "{domains} domains lie on nodes that the map does not name, and {objects} objects on another node than \
                 clients are led to: no backup has that; portolan map --conflicts lists it"
            ));
        }
        if let Some(refused) = &self.refused_reload {
            let first = refused.cause.lines().next().unwrap_or_default().to_owned();
            readiness.warnings.push(format!("the last reload was refused: {first}"));
        }
        readiness
    }
}
