//! Measures a front end over many agents: processes, gRPC with mutual TLS, stores on disk, a client over FTP.
//!
//! Who calls it: people, for docs/scale.md.
//! What it calls: the built programs, as the tests do.
//! What it never does: listen beyond loopback, or leave anything behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use portolan_tests::client::{Control, succeed};
use portolan_tests::{Server, admin_line, mark, program, start_agent_with, start_frontend};

/// Measure a front end over many agents, each a process of its own.
#[derive(Parser)]
struct Arguments {
    /// Agents.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
    agents: u32,
    /// Domains, each on one node.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    domains: u32,
    /// Users of each domain.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    users: u32,
    /// Where the stores are made: a file system with inodes for three times the domains and all users.
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    folder: PathBuf,
}

/// Calls of one kind that are measured.
const CALLS: u32 = 201;
/// As long as the first listing may take.
const HEARD_MAX: Duration = Duration::from_secs(300);

fn domain(number: u32) -> String {
    format!("domain-{number:07}.example.org")
}

fn node(number: u32) -> String {
    format!("mail-{number}")
}

fn fill(folder: &Path, arguments: &Arguments) {
    for number in 0..arguments.domains {
        let node = node(number % arguments.agents);
        let domain = folder.join(node).join("domains").join(domain(number));
        for user in 0..arguments.users {
            fs::create_dir_all(domain.join(format!("users/user-{user:06}"))).expect("room in the folder");
        }
        fs::create_dir_all(&domain).expect("room in the folder");
        fs::write(domain.join("domainRegistry.bin"), "domain").expect("room in the folder");
    }
}

fn agents(folder: &Path, arguments: &Arguments) -> Vec<Server> {
    let start = |number| {
        let name = node(number);
        let config = folder.join(format!("{name}.toml"));
        fs::create_dir_all(folder.join(&name).join("domains")).expect("our folder");
        let text = format!(
            "version = 1\nnode = \"{name}\"\n[listen]\naddress = \"127.0.0.1:0\"\ncertificate = \"pki/{name}.pem\"\n\
             key = \"pki/{name}-key.pem\"\nclient_ca = \"pki/ca.pem\"\n[store]\nroot = \"{name}\"\nrescan_interval = \"1h\"\n\
             [log]\nformat = \"json\"\n"
        );
        fs::write(&config, text).expect("our folder");
        mark(&folder.join(&name), &name);
        start_agent_with(&config)
    };
    (0..arguments.agents).map(start).collect()
}

fn configure(folder: &Path, agents: &[Server], domains: Option<u32>) {
    use std::os::unix::fs::PermissionsExt as _;
    let admins = folder.join("admins");
    fs::write(&admins, admin_line(&["admin", "--rights=backup,restore"])).expect("our folder");
    fs::set_permissions(&admins, fs::Permissions::from_mode(0o600)).expect("our file");
    let mut text =
        "version = 1\n[control]\nsocket = \"control.sock\"\n[[listeners]]\naddress = \"127.0.0.1:0\"\n\
                    tls = \"off\"\npassive_ports = \"20000-29999\"\n[admins]\nfile = \"admins\"\n[cluster]\n\
                    ca = \"pki/ca.pem\"\ncertificate = \"pki/front-1.pem\"\nkey = \"pki/front-1-key.pem\"\n\
                    [log]\nformat = \"json\"\n"
            .to_owned();
    for (number, agent) in agents.iter().enumerate() {
        text += &format!("[[nodes]]\nname = \"mail-{number}\"\naddress = \"{}\"\n", agent.address);
    }
    if let Some(domains) = domains {
        text += "[map]\nfile = \"map.toml\"\n";
        let count = u32::try_from(agents.len()).expect("few");
        let row = |number| {
            format!("[[domains]]\nname = \"{}\"\nnodes = [\"{}\"]\n", domain(number), node(number % count))
        };
        fs::write(folder.join("map.toml"), (0..domains).map(row).collect::<String>()).expect("our folder");
    }
    fs::write(folder.join("frontend.toml"), text).expect("our folder");
}

fn median(rounds: u32, mut round: impl FnMut(u32)) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|number| {
            let started = Instant::now();
            round(number);
            started.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Starts a front end and prints a row.
fn measure(folder: &Path, arguments: &Arguments, map: &str) {
    let started = Instant::now();
    let frontend = start_frontend(folder);
    let mut session = Control::login(frontend.address, "admin");
    let list = |session: &mut Control| session.fetch("NLST /domains");
    let mut listed = list(&mut session);
    while listed.0 != 226 && started.elapsed() < HEARD_MAX {
        std::thread::sleep(Duration::from_millis(50));
        listed = list(&mut session);
    }
    let heard = started.elapsed();
    let lines = listed.1.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!((listed.0, lines), (226, arguments.domains as usize), "each domain is listed once");
    let memory = frontend.resident_kib();
    let listing = median(5, |_| assert_eq!(list(&mut session).0, 226));
    let path = |round: u32| format!("/domains/{}", domain(round.wrapping_mul(7_919) % arguments.domains));
    let lookup = median(CALLS, |round| {
        assert_eq!(session.ask(&format!("SIZE {}/domainRegistry.bin", path(round))).0, 213);
    });
    let users =
        median(CALLS, |round| assert_eq!(session.fetch(&format!("NLST {}/users", path(round))).0, 226));
    let change = median(CALLS, |round| {
        assert_eq!(session.ask(&format!("MKD {}/users/{map}-{round}", path(round))).0, 257);
    });
    let Arguments { agents, domains, users: each, .. } = arguments;
    println!(
        "| {agents} | {domains} | {} | {map} | {:.1} s | {} MiB | {} B | {:.0} ms | {:.2} ms | {:.2} ms | {:.2} ms |",
        u64::from(*domains) * u64::from(*each),
        heard.as_secs_f64(),
        memory >> 10,
        memory * 1024 / u64::from(*domains),
        listing.as_secs_f64() * 1e3,
        lookup.as_secs_f64() * 1e3,
        users.as_secs_f64() * 1e3,
        change.as_secs_f64() * 1e3,
    );
}

fn main() -> ExitCode {
    let arguments = match portolan_process::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    let folder = tempfile::Builder::new().prefix("portolan-bench-").tempdir_in(&arguments.folder);
    let folder = folder.expect("the folder can be written to");
    let path = folder.path();
    fill(path, &arguments);
    let mut pki = Command::new(program("portolan"));
    pki.args(["pki", "init"]).arg(path.join("pki")).args(["--frontend=front-1", "--alias=127.0.0.1"]);
    succeed(pki.args((0..arguments.agents).map(|number| format!("--node={}", node(number)))));
    let started = Instant::now();
    let agents = agents(path, &arguments);
    println!(
        "{} agents have read their stores after {:.1} s\n",
        agents.len(),
        started.elapsed().as_secs_f64()
    );
    println!(
        "| agents | domains | users | map | heard | memory | a domain | NLST /domains | SIZE | NLST users | MKD |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    configure(path, &agents, None);
    measure(path, &arguments, "announced");
    configure(path, &agents, Some(arguments.domains));
    measure(path, &arguments, "static");
    ExitCode::SUCCESS
}
