//! Portolan: a front end and one agent, as an operator sets them up, with the defaults of their configuration.
//!
//! Who calls it: the list in `servers`, once for each row.
//! What it calls: `portolan` for certificates and the admins file, `portolan-agent`, `portolan-frontend`.
//! What it never does: tune. A key stands in these files only because it has no default.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::packages::said_by;
use super::{Ground, Place, Started, free_address, wait_for_listener};
use crate::Result;
use crate::client::Login;
use crate::data::Sample;
use crate::process::Program;

const USER: &str = "bench";
const PASSWORD: &str = "a password for benchmarks";
const NODE: &str = "mail-1";
const FRONTEND: &str = "front-1";

/// How front end and agent talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hop {
    /// As in production: certificates of `portolan pki init` at both ends.
    MutualTls,
    /// Allowed on loopback; here to show what the encryption costs.
    Plaintext,
}

pub(super) fn start(ground: &mut Ground, place: &Place, engine: &str, hop: Hop) -> Result<Started> {
    let folder = &place.folder;
    if hop == Hop::MutualTls {
        let mut command = Command::new(ground.bin_dir.join("portolan"));
        command.args(["pki", "init", "pki", "--node", NODE, "--frontend", FRONTEND]).current_dir(folder);
        said_by(&mut command)?;
    }
    write_admins(&ground.bin_dir, folder)?;
    let (agent_address, address) = (free_address()?, free_address()?);
    std::fs::write(folder.join("agent.toml"), agent_config(agent_address, place, hop))?;
    let passive_ports = ground.passive_ports();
    std::fs::write(
        folder.join("frontend.toml"),
        frontend_config(address, passive_ports, agent_address, engine, hop),
    )?;
    let run = |name: &str, config: &str| {
        let mut command = Command::new(ground.bin_dir.join(name));
        Program::start(name, command.arg("--config").arg(folder.join(config)), folder)
    };
    let mut agent = run("portolan-agent", "agent.toml")?;
    wait_for_listener(agent_address, &mut agent)?;
    let frontend = run("portolan-frontend", "frontend.toml")?;
    Ok(Started { programs: vec![frontend, agent], login: Login { address, user: USER, password: PASSWORD } })
}

fn write_admins(bin_dir: &Path, folder: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut child = Command::new(bin_dir.join("portolan"))
        .args(["passwd", USER, "--rights", "backup,restore"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start portolan from {}: {error}", bin_dir.display()))?;
    // Taken and dropped: the end of the input follows the password.
    child.stdin.take().ok_or("the input is a pipe")?.write_all(format!("{PASSWORD}\n").as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("portolan passwd: {}", output.status).into());
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(folder.join("admins"))?;
    Ok(file.write_all(&output.stdout)?)
}

fn agent_config(address: SocketAddr, place: &Place, hop: Hop) -> String {
    let security = match hop {
        Hop::MutualTls => format!(
            "certificate = \"pki/{NODE}.pem\"\nkey = \"pki/{NODE}-key.pem\"\nclient_ca = \"pki/ca.pem\"\n"
        ),
        Hop::Plaintext => String::new(),
    };
    let root = place.store.display();
    format!(
        "version = 1\nnode = \"{NODE}\"\n\n[listen]\naddress = \"{address}\"\n{security}\n[store]\nroot = \"{root}\"\n"
    )
}

fn frontend_config(
    address: SocketAddr,
    (first, last): (u16, u16),
    agent: SocketAddr,
    engine: &str,
    hop: Hop,
) -> String {
    let cluster = match hop {
        Hop::MutualTls => format!(
            "[cluster]\nca = \"pki/ca.pem\"\ncertificate = \"pki/{FRONTEND}.pem\"\nkey = \"pki/{FRONTEND}-key.pem\"\n\n"
        ),
        Hop::Plaintext => String::new(),
    };
    format!(
        "version = 1\n\n[control]\nsocket = \"control.sock\"\n\n[[listeners]]\naddress = \"{address}\"\nengine = \"{engine}\"\ntls = \"off\"\n\
         passive_ports = \"{first}-{last}\"\n\n[admins]\nfile = \"admins\"\n\n{cluster}\
         [[nodes]]\nname = \"{NODE}\"\naddress = \"{agent}\"\n\n\
         [[map.domains]]\nname = \"{}\"\nnodes = [\"{NODE}\"]\n",
        Sample::DOMAIN
    )
}
