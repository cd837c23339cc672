//! Portolan: a front end and one agent, as an operator sets them up, with the defaults of their configuration.
//!
//! Who calls it: the list in `servers`, once for each row.
//! What it calls: `portolan` for certificates and the admins file, `portolan-agent`, `portolan-frontend`.
//! What it never does: tune. A key stands in these files only because it has no default.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use portolan_tests::collector::Collector;
use portolan_tests::http;

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

/// How closely it is watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Watched {
    Silent,
    Logged,
    /// Beside that: the log, and so many of the traces, to a collector.
    Traced {
        ratio: f64,
    },
}

pub(super) fn start_watched(ground: &mut Ground, place: &Place, watched: Watched) -> Result<Started> {
    let scraped = free_address()?;
    let files = "[http]\naddress = \"SCRAPED\"\n[[log.targets]]\nkind = \"file\"\npath = \"log\"\nlevel = \"protocol\"\n\
                 [[log.targets]]\nkind = \"file\"\npath = \"audit\"\nrecords = \"audit\"\n\
                 [[log.targets]]\nkind = \"file\"\npath = \"xferlog\"\nrecords = \"transfers\"\n"
        .replace("SCRAPED", &scraped.to_string());
    let silent = "[log]\nlevel = \"critical\"\n".to_owned();
    match watched {
        Watched::Silent => start_with(ground, place, "native", Hop::MutualTls, (&silent, &silent)),
        Watched::Logged => {
            let mut started = start_with(ground, place, "native", Hop::MutualTls, (&files, ""))?;
            started.watchers.push(Box::new(Scraper::start(scraped)));
            Ok(started)
        }
        Watched::Traced { ratio } => {
            let address = free_address()?;
            let collector = Collector::forgetting(address);
            let traces = format!("[tracing]\nendpoint = \"http://{address}\"\nratio = {ratio}\n");
            let otlp = format!("[[log.targets]]\nkind = \"otlp\"\nendpoint = \"http://{address}\"\n");
            let tables = files + &otlp + &traces;
            let mut started = start_with(ground, place, "native", Hop::MutualTls, (&tables, &traces))?;
            started.watchers.push(Box::new(collector));
            started.watchers.push(Box::new(Scraper::start(scraped)));
            Ok(started)
        }
    }
}

/// Asks for the metrics each second, as nobody does, to see what it costs at the worst.
struct Scraper {
    stop: std::sync::mpsc::SyncSender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Scraper {
    fn start(address: SocketAddr) -> Self {
        let (stop, stopped) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let second = std::time::Duration::from_secs(1);
            let mut lost = 0.0;
            while stopped
                .recv_timeout(second)
                .is_err_and(|end| end == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                // It may not be up yet.
                if std::net::TcpStream::connect(address).is_ok() {
                    let (_, metrics) = http::get(address, "/metrics");
                    let counts =
                        metrics.lines().filter(|line| line.starts_with("portolan_telemetry_dropped_total"));
                    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
                    lost = counts.sum();
                }
            }
            if lost > 0.0 {
                eprintln!(
                    "portolan-bench: {lost} lines and spans found no room in the queue of their target"
                );
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.stop.try_send(()).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

pub(super) fn start(ground: &mut Ground, place: &Place, engine: &str, hop: Hop) -> Result<Started> {
    start_with(ground, place, engine, hop, ("", ""))
}

/// With more tables for the front end and for the agent.
fn start_with(
    ground: &mut Ground,
    place: &Place,
    engine: &str,
    hop: Hop,
    (frontend_tables, agent_tables): (&str, &str),
) -> Result<Started> {
    let folder = &place.folder;
    if hop == Hop::MutualTls {
        let mut command = Command::new(ground.bin_dir.join("portolan"));
        command.args(["pki", "init", "pki", "--node", NODE, "--frontend", FRONTEND]).current_dir(folder);
        said_by(&mut command)?;
    }
    write_admins(&ground.bin_dir, folder)?;
    let (agent_address, address) = (free_address()?, free_address()?);
    std::fs::write(folder.join("agent.toml"), agent_config(agent_address, place, hop) + agent_tables)?;
    let passive_ports = ground.passive_ports();
    std::fs::write(
        folder.join("frontend.toml"),
        frontend_config(address, passive_ports, agent_address, engine, hop) + frontend_tables,
    )?;
    let run = |name: &str, config: &str| {
        let mut command = Command::new(ground.bin_dir.join(name));
        Program::start(name, command.arg("--config").arg(folder.join(config)), folder)
    };
    let mut command = Command::new(ground.bin_dir.join("portolan-agent"));
    said_by(command.arg("mark").arg(&place.store).args(["--node", NODE, "--empty"]))?;
    let mut agent = run("portolan-agent", "agent.toml")?;
    wait_for_listener(agent_address, &mut agent)?;
    let frontend = run("portolan-frontend", "frontend.toml")?;
    let login = Login { address, user: USER, password: PASSWORD };
    Ok(Started { programs: vec![frontend, agent], login, watchers: Vec::new() })
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
