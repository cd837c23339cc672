//! The demo's servers: three agents and a front end, configured by files as at a real site.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use portolan_agent::Agent;
use portolan_agent::store::disk::mark;
use portolan_process::Signals;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Error, sample};
use crate::pki;
use portolan_cluster::auth::local::hash_password;
use portolan_frontend::{Frontend, Host};

pub(super) const ADMIN: &str = "admin";
/// The demo listens on loopback only, for as long as it runs.
pub(super) const PASSWORD: &str = "portolan-demo";

const NODES: [&str; 3] = ["mail-1", "mail-2", "mail-3"];
const FRONTEND: &str = "front-1";

/// The servers, running.
pub(super) struct Cluster {
    /// Of the FTP listener.
    pub(super) address: SocketAddr,
    /// The certificate that a client needs to trust.
    pub(super) authority: PathBuf,
    /// The front end, then the agents: each with its token and its tasks.
    stages: [(CancellationToken, TaskTracker); 2],
}

impl Cluster {
    pub(super) async fn start(folder: &Path, port: u16) -> Result<Self, Error> {
        let pki_folder = folder.join("pki");
        pki::init(&pki::Init {
            folder: pki_folder.clone(),
            nodes: NODES.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
            node_aliases: Vec::new(),
            frontends: vec![FRONTEND.parse()?],
            aliases: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
            days: 1,
        })?;
        write_admins(&folder.join("admins"))?;
        let stages: [(CancellationToken, TaskTracker); 2] = Default::default();
        let [(stop_frontend, frontends), (stop_agents, agents)] = &stages;
        let mut addresses = Vec::new();
        for node in NODES {
            let path = folder.join(format!("{node}.toml"));
            fs::write(&path, agent_config(node))?;
            mark::write(&folder.join("nodes").join(node), &node.parse()?, true)?;
            let agent = Agent::bind(portolan_config::Agent::load(&path)?).await?;
            addresses.push((node, agent.local_addr()));
            let stop = stop_agents.clone();
            agents.spawn(async move {
                if let Err(error) = agent.run(stop).await {
                    tracing::error!(error = portolan_telemetry::chain(&error), node, "agent failed");
                }
            });
        }
        let path = folder.join("frontend.toml");
        fs::write(&path, frontend_config(port, &addresses))?;
        let frontend = Frontend::bind(portolan_config::Frontend::load(&path)?, Host::default()).await?;
        let address = frontend.local_addrs()[0];
        frontends.spawn(frontend.run(Signals::by_token(stop_frontend.clone())));
        Ok(Self { address, authority: pki_folder.join("ca.pem"), stages })
    }

    /// Drains and ends all servers, the front end while its nodes are still there.
    pub(super) async fn stop(self) {
        for (stop, servers) in self.stages {
            stop.cancel();
            servers.close();
            servers.wait().await;
        }
    }
}

fn write_admins(path: &Path) -> Result<(), Error> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let hash = hash_password(PASSWORD).map_err(|error| error.to_string())?;
    writeln!(file, "{ADMIN}:{hash}:backup,restore:*")?;
    Ok(())
}

fn agent_config(node: &str) -> String {
    format!(
        r#"version = 1
node = "{node}"
drain_timeout = "1s"

[listen]
address = "127.0.0.1:0"
certificate = "pki/{node}.pem"
key = "pki/{node}-key.pem"
client_ca = "pki/ca.pem"

[store]
root = "nodes/{node}"
"#
    )
}

fn frontend_config(port: u16, nodes: &[(&str, SocketAddr)]) -> String {
    let mut text = format!(
        r#"version = 1
drain_timeout = "1s"

[control]
socket = "control.sock"

[[listeners]]
address = "127.0.0.1:{port}"
tls = "explicit"
tls_required = true
certificate = "pki/{FRONTEND}.pem"
key = "pki/{FRONTEND}-key.pem"

[admins]
file = "admins"

[cluster]
ca = "pki/ca.pem"
certificate = "pki/{FRONTEND}.pem"
key = "pki/{FRONTEND}-key.pem"
"#
    );
    for (node, address) in nodes {
        text += &format!("\n[[nodes]]\nname = \"{node}\"\naddress = \"{address}\"\n");
    }
    let spread = sample::SPREAD_DOMAIN;
    text += &format!("\n[[map.domains]]\nname = \"{spread}\"\nnodes = [\"mail-2\", \"mail-3\"]\n");
    text += "[map.domains.objects]\n";
    for (user, node) in sample::spread_users() {
        text += &format!("\"users/{user}\" = \"{node}\"\n");
    }
    text
}
