//! Runs the built programs for the tests: agents and a front end as processes, with files of configuration.
//!
//! Who calls it: the files of `tests/`.
//! What it calls: the programs beside the test's own executable, and clients of the system.
//! What it never does: reach beyond loopback, or wait for time where it can wait for a condition.

#![forbid(unsafe_code)]

pub mod client;
pub mod collector;
pub mod conformance;
pub mod disk;
pub mod fault_store;
pub mod http;
pub mod link;
pub mod tree;
pub mod volumes;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use link::FaultLink;

/// The password of every admin of a test.
pub const PASSWORD: &str = "test-password";
/// As many agents a cluster has at most.
pub const NODES_MAX: usize = 6;
/// How long a condition may take to come true.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A program of this project, from the folder that the test's own executable was built into.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own executable");
    let folder = own.parent().expect("an executable lies in a folder");
    // Tests lie in target/<profile>/deps, benchmarks beside the programs.
    let folder = if folder.ends_with("deps") { folder.parent().expect("target/<profile>") } else { folder };
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `tests/run`, or `cargo build --workspace` first",
        path.display()
    );
    path
}

/// A port of all loopback addresses that nobody has.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// Waits until `condition` gives a value.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "this did not come true in {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process of ours with its log. Killed when dropped.
pub struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    /// The first one.
    pub address: SocketAddr,
    /// All of them, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
}

impl Server {
    /// Starts a program with a configuration file and waits until it says which addresses it serves.
    fn start(name: &str, config: &Path) -> Self {
        Self::spawn(Command::new(program(name)), name, config)
    }

    /// The same by another command, which the arguments are added to.
    pub fn spawn(mut command: Command, name: &str, config: &Path) -> Self {
        let text = fs::read_to_string(config).expect("our file");
        // An agent has one address, which is no [[listeners]].
        let count = text.matches("[[listeners]]").count().max(1);
        let mut child = command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let (sender, receiver) = std::sync::mpsc::sync_channel(count);
        let copy = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(address) = serves(&line) {
                    sender.try_send(address).ok();
                }
                let mut log = copy.lock().expect("no test panics while it holds the log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let addresses: Vec<SocketAddr> = (0..count)
            .map(|_| {
                let address = receiver.recv_timeout(DEADLINE);
                address.unwrap_or_else(|_| panic!("{name} does not serve: {}", log.lock().expect("log")))
            })
            .collect();
        Self { child, log, address: addresses[0], addresses }
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no test panics while it holds the log").clone()
    }

    /// Waits until the log has a text; the log.
    pub fn wait_for_log(&self, text: &str) -> String {
        eventually(text, || Some(self.log()).filter(|log| log.contains(text)))
    }

    /// The exit status, when the program ends by itself.
    pub fn wait(&mut self) -> Option<i32> {
        eventually("the program ends", || self.child.try_wait().expect("our child")).code()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.expect("a process id"), signal).expect("our child can be signalled");
    }

    /// Stops it without ending it. The signal takes a moment to reach all threads, which may answer meanwhile.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        let stopped = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"));
        eventually("all threads have stopped", || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("our child");
            let mut stats = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("stat")));
            stats.all(|stat| stat.is_ok_and(stopped)).then_some(())
        });
    }

    /// Ends it at once. It may be gone already.
    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that the process itself has taken, in KiB: not the pages of its program file.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("our child runs");
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it");
            line.trim().trim_end_matches("kB").trim().parse().expect("a number")
        };
        field("RssAnon:") + field("RssShmem:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address in a line such as `{..."message":"agent serves","address":"127.0.0.1:1"...}`.
fn serves(line: &str) -> Option<SocketAddr> {
    if !line.contains("agent serves") && !line.contains("front end serves") {
        return None;
    }
    line.split("\"address\":\"").nth(1)?.split('"').next()?.parse().ok()
}

/// Agents, three unless more are asked for, and a front end. `one.example` lies on mail-1, `two.example` on mail-2, `spread.example` on
/// mail-1 (home) and mail-3.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    /// By number from 1; `None` while stopped.
    agents: Vec<Option<Server>>,
    addresses: Vec<SocketAddr>,
    pub frontend: Server,
}

impl Cluster {
    /// Starts over the nodes that `fill` makes in `<folder>/node-1` and so on.
    pub fn start(fill: impl FnOnce(&Path)) -> Self {
        Self::start_many(3, fill)
    }

    /// The same with more agents, up to [`NODES_MAX`], whose nodes no map names.
    pub fn start_many(count: usize, fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::Builder::new().prefix("portolan-test-").tempdir().expect("a temporary folder");
        let path = folder.path();
        for number in 1..=count {
            fs::create_dir_all(path.join(format!("node-{number}/domains"))).expect("a new folder");
        }
        fill(path);
        for number in 1..=count {
            mark(&path.join(format!("node-{number}")), &format!("mail-{number}"));
        }
        prepare(path);
        let agents: Vec<_> =
            (1..=count).map(|number| Some(start_agent(path, number, "127.0.0.1:0", ""))).collect();
        let addresses: Vec<_> = agents.iter().flatten().map(|agent| agent.address).collect();
        fs::write(path.join("frontend.toml"), frontend_config(&addresses)).expect("a new file");
        let frontend = start_frontend(path);
        Self { folder, agents, addresses, frontend }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The `domains` folder of a node.
    pub fn domains(&self, number: usize) -> PathBuf {
        self.path().join(format!("node-{number}/domains"))
    }

    pub fn agent(&self, number: usize) -> &Server {
        self.agents[number - 1].as_ref().expect("the agent runs")
    }

    pub fn kill_agent(&mut self, number: usize) {
        drop(self.agents[number - 1].take());
    }

    /// Starts a stopped agent again, on its old port.
    pub fn start_agent(&mut self, number: usize) {
        let address = self.addresses[number - 1].to_string();
        self.agents[number - 1] = Some(start_agent(self.folder.path(), number, &address, ""));
    }

    /// Stops an agent, if it runs, and starts it at another address.
    pub fn move_agent(&mut self, number: usize, address: SocketAddr) {
        self.kill_agent(number);
        self.addresses[number - 1] = address;
        self.start_agent(number);
    }

    /// Moves an agent to an address in a network namespace.
    pub fn move_agent_into(&mut self, namespace: &str, number: usize, address: SocketAddr) {
        self.kill_agent(number);
        let config = write_agent_config(self.folder.path(), number, &address.to_string(), "");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program("portolan-agent"));
        let agent = Server::spawn(command, "portolan-agent", &config);
        let (old, new) = (self.addresses[number - 1].to_string(), agent.address.to_string());
        self.addresses[number - 1] = agent.address;
        self.agents[number - 1] = Some(agent);
        self.restart_frontend(|config| config.replace(&old, &new));
    }

    /// Restarts an agent with more tables in its configuration.
    pub fn restart_agent_with(&mut self, number: usize, tables: &str) {
        self.kill_agent(number);
        let address = self.addresses[number - 1].to_string();
        self.agents[number - 1] = Some(start_agent(self.folder.path(), number, &address, tables));
    }

    /// Restarts an agent with another configuration, made from the usual one.
    pub fn restart_agent(&mut self, number: usize, change: impl FnOnce(String) -> String) {
        self.restart_agent_by(number, Command::new(program("portolan-agent")), change);
    }

    /// The same by another command, which the arguments are added to.
    pub fn restart_agent_by(
        &mut self,
        number: usize,
        command: Command,
        change: impl FnOnce(String) -> String,
    ) {
        self.kill_agent(number);
        let address = self.addresses[number - 1].to_string();
        let config = write_agent_config(self.folder.path(), number, &address, "");
        let text = change(fs::read_to_string(&config).expect("written just now"));
        fs::write(&config, text).expect("our file");
        self.agents[number - 1] = Some(Server::spawn(command, "portolan-agent", &config));
    }

    /// Restarts the front end with another configuration, made from the present one.
    pub fn restart_frontend(&mut self, change: impl FnOnce(String) -> String) {
        self.edit_config(change);
        self.frontend.kill();
        self.frontend = start_frontend(self.folder.path());
    }

    /// Restarts the front end with more keys on its listener.
    pub fn restart_with(&mut self, keys: &str) {
        self.restart_frontend(|config| config.replace("passive_ports", &format!("{keys}\npassive_ports")));
    }

    /// Restarts the front end with a second listener, for implicit TLS.
    pub fn restart_with_implicit_tls(&mut self) {
        self.restart_frontend(|config| {
            config
                + "[[listeners]]\naddress = \"127.0.0.1:0\"\ntls = \"implicit\"\n\
                   certificate = \"pki/front-1.pem\"\nkey = \"pki/front-1-key.pem\"\n\
                   passive_ports = \"10000-19999\"\n"
        });
    }

    /// Restarts the front end with more keys for one of its nodes.
    pub fn restart_with_node(&mut self, number: usize, keys: &str) {
        let name = format!("name = \"mail-{number}\"\naddress");
        self.restart_frontend(|config| {
            assert!(config.contains(&name));
            config.replace(&name, &format!("name = \"mail-{number}\"\n{keys}\naddress"))
        });
    }

    /// Puts a link that can fail between the front end, which is restarted, and an agent.
    pub fn link(&mut self, number: usize) -> FaultLink {
        let agent = self.addresses[number - 1];
        let link = FaultLink::to(agent);
        self.restart_frontend(|config| config.replace(&agent.to_string(), &link.address.to_string()));
        link
    }

    /// Runs the operator's command against the control socket of the front end.
    pub fn operate(&self, arguments: &[&str]) -> Output {
        let socket = self.path().join("control.sock");
        let mut command = Command::new(program("portolan"));
        command.args(arguments).arg("--socket").arg(socket).output().expect("portolan runs")
    }

    /// Has the front end read its configuration again; what the operator is told.
    pub fn reload(&self) -> String {
        client::succeeded(&self.operate(&["reload"]))
    }

    /// Changes the configuration file of the front end, which goes on with the old one.
    pub fn edit_config(&self, change: impl FnOnce(String) -> String) {
        let path = self.path().join("frontend.toml");
        let text = change(fs::read_to_string(&path).expect("written at the start"));
        fs::write(&path, text).expect("our file");
    }

    /// Waits until the front end has noticed that a node is away.
    pub fn wait_until_away(&self, number: usize) {
        let line = format!("\"node\":\"mail-{number}\"");
        eventually("the front end notices the node's absence", || {
            self.frontend
                .log()
                .lines()
                .any(|text| text.contains("node is away") && text.contains(&line))
                .then_some(())
        });
    }

    /// Sends a line that never ends: its session ends soon, and it costs the front end no memory.
    pub fn refuses_a_line_without_an_end(&self) {
        let before = self.frontend.resident_kib();
        let mut flood = client::Control::connect(self.frontend.address);
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..200).find(|_| flood.send(&piece).is_err());
        assert!(refused.is_some_and(|sent| sent < 50), "the server goes on reading");
        assert!(self.frontend.resident_kib() < before + 4 * 1024);
    }

    /// The file that clients need to trust.
    pub fn authority(&self) -> PathBuf {
        self.path().join("pki/ca.pem")
    }
}

/// A front end over a folder that [`Cluster::start`] has prepared.
pub fn start_frontend(folder: &Path) -> Server {
    Server::start("portolan-frontend", &folder.join("frontend.toml"))
}

/// Certificates and admins: `admin` may do all, `reader` may back up one.example.
pub fn prepare(folder: &Path) {
    let made = Command::new(program("portolan"))
        .args(["pki", "init"])
        .arg(folder.join("pki"))
        .args((1..=NODES_MAX).map(|number| format!("--node=mail-{number}")))
        .args(["--frontend=front-1", "--alias=127.0.0.1"])
        .output()
        .expect("portolan runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut admins = String::new();
    admins += &admin_line(&["admin", "--rights=backup,restore"]);
    admins += &admin_line(&["reader", "--rights=backup", "--domains=one.example"]);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(folder.join("admins"))
        .expect("a new file");
    file.write_all(admins.as_bytes()).expect("room on the disk");
}

/// A line of the admins file, with the password of every admin.
pub fn admin_line(arguments: &[&str]) -> String {
    let mut child = Command::new(program("portolan"))
        .arg("passwd")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("portolan runs");
    let mut input = child.stdin.take().expect("stdin is piped");
    writeln!(input, "{PASSWORD}").expect("passwd reads its input");
    drop(input);
    let output = child.wait_with_output().expect("passwd ends");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("a line of text")
}

/// Marks a store as an operator does, also an empty one. A store that is marked already stays as it is.
pub fn mark(root: &Path, node: &str) {
    let node = node.parse().expect("a node's name");
    portolan_agent::store::disk::mark::write(root, &node, true).expect("a store that can be marked");
}

/// An agent with a configuration file of its own, whose store is marked.
pub fn start_agent_with(config: &Path) -> Server {
    Server::start("portolan-agent", config)
}

fn start_agent(folder: &Path, number: usize, address: &str, tables: &str) -> Server {
    start_agent_with(&write_agent_config(folder, number, address, tables))
}

fn write_agent_config(folder: &Path, number: usize, address: &str, tables: &str) -> PathBuf {
    let config = folder.join(format!("agent-{number}.toml"));
    let text = format!(
        r#"version = 1
node = "mail-{number}"
drain_timeout = "5s"
[listen]
address = "{address}"
certificate = "pki/mail-{number}.pem"
key = "pki/mail-{number}-key.pem"
client_ca = "pki/ca.pem"
[store]
root = "node-{number}"
rescan_interval = "1s"
[log]
format = "json"
{tables}"#
    );
    fs::write(&config, text).expect("our file");
    config
}

fn frontend_config(nodes: &[SocketAddr]) -> String {
    let mut text = r#"version = 1
drain_timeout = "5s"
[control]
socket = "control.sock"
[[listeners]]
address = "127.0.0.1:0"
certificate = "pki/front-1.pem"
key = "pki/front-1-key.pem"
passive_ports = "20000-29999"
[admins]
file = "admins"
[cluster]
ca = "pki/ca.pem"
certificate = "pki/front-1.pem"
key = "pki/front-1-key.pem"
[log]
format = "json"
[map]
placement = "home-node"
[[map.domains]]
name = "one.example"
nodes = ["mail-1"]
[[map.domains]]
name = "two.example"
nodes = ["mail-2"]
[[map.domains]]
name = "spread.example"
nodes = ["mail-1", "mail-3"]
[map.domains.objects]
"users/carol" = "mail-3"
"users/dave" = "mail-3"
"#
    .to_owned();
    for (index, address) in nodes.iter().enumerate() {
        text += &format!("[[nodes]]\nname = \"mail-{}\"\naddress = \"{address}\"\n", index + 1);
    }
    text
}
