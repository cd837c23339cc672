//! FTP clients of the system, and a bare control connection for what they would not do.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::{Cluster, PASSWORD};

/// How a client protects its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    Plain,
    /// AUTH TLS.
    Explicit,
    /// TLS from the first byte on; the front end needs [`Cluster::restart_with_implicit_tls`].
    Implicit,
}

impl Protection {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Explicit, Self::Implicit];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Explicit => "explicit",
            Self::Implicit => "implicit",
        }
    }

    pub fn scheme(self) -> &'static str {
        if self == Self::Implicit { "ftps" } else { "ftp" }
    }

    pub fn address(self, cluster: &Cluster) -> SocketAddr {
        let addresses = &cluster.frontend.addresses;
        if self == Self::Implicit { addresses[1] } else { addresses[0] }
    }
}

/// Runs an lftp script as `admin` over explicit TLS. lftp gives up after one try.
pub fn lftp(cluster: &Cluster, script: &str) -> Output {
    lftp_over(Protection::Explicit, cluster, script)
}

pub fn lftp_over(protection: Protection, cluster: &Cluster, script: &str) -> Output {
    run(&mut lftp_command(protection, cluster, script))
}

/// The same with lftp's own settings: only where the front end is, whether TLS is allowed, and whom to trust.
pub fn lftp_as_it_comes(protection: Protection, cluster: &Cluster, script: &str) -> Command {
    let settings = format!(
        "set ssl:ca-file {}; set ftp:ssl-allow {}; open -u admin,{PASSWORD} {}://{}; {script}",
        cluster.authority().display(),
        protection != Protection::Plain,
        protection.scheme(),
        protection.address(cluster)
    );
    let mut command = Command::new("timeout");
    command.args(["60", "lftp", "-c", &settings]).env("HOME", cluster.path());
    command
}

/// The same, to be run later.
pub fn lftp_command(protection: Protection, cluster: &Cluster, script: &str) -> Command {
    let tls = protection != Protection::Plain;
    let settings = format!(
        "set ssl:ca-file {}; set ftp:ssl-allow {tls}; set ftp:ssl-force {tls}; set ftp:ssl-protect-data true; \
         set net:max-retries 1; set net:timeout 20; set net:persist-retries 0; \
         set net:reconnect-interval-base 1; set cmd:fail-exit true; \
         open -u admin,{PASSWORD} {}://{}; {script}",
        cluster.authority().display(),
        protection.scheme(),
        protection.address(cluster)
    );
    let mut command = Command::new("timeout");
    command.args(["120", "lftp", "-c", &settings]).env("HOME", cluster.path());
    command
}

/// Runs curl as `admin` over explicit TLS, with `path` of the tree appended to the address.
pub fn curl(cluster: &Cluster, arguments: &[&str], path: &str) -> Output {
    curl_over(Protection::Explicit, cluster, arguments, path)
}

pub fn curl_over(protection: Protection, cluster: &Cluster, arguments: &[&str], path: &str) -> Output {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "60", "--user", &format!("admin:{PASSWORD}")])
        .args((protection == Protection::Explicit).then_some("--ssl-reqd"))
        .arg("--cacert")
        .arg(cluster.authority())
        .args(arguments)
        .arg(format!("{}://{}{path}", protection.scheme(), protection.address(cluster)));
    run(&mut command)
}

/// A script of `tests/clients/`, to be run by `program`.
pub fn script(program: &str, name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["120", program]).arg(format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR")));
    // Names are UTF-8, whatever the machine's locale says.
    command.env("PYTHONUTF8", "1").env("NODE_PATH", node_modules());
    command
}

/// Where `tests/run` installs what npm brings.
fn node_modules() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own executable");
    let target = own.ancestors().nth(3).expect("tests lie in target/<profile>/deps");
    target.join("clients/node_modules")
}

/// Runs a client that must succeed; what it printed.
pub fn succeed(command: &mut Command) -> String {
    succeeded(&run(command))
}

/// What a client printed, which must have succeeded.
pub fn succeeded(output: &Output) -> String {
    let text = text(output);
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Runs a client that is told what to do by lines on its standard input; what it printed.
pub fn converse(command: &mut Command, lines: &str) -> String {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| not_there(command, &error));
    let mut input = child.stdin.take().expect("stdin is piped");
    input.write_all(lines.as_bytes()).expect("the client reads its commands");
    drop(input);
    succeeded(&child.wait_with_output().expect("the client ends"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| not_there(command, &error))
}

fn not_there(command: &Command, error: &io::Error) -> ! {
    panic!("{} does not run ({error}): `tests/run` installs it", command.get_program().display())
}

/// What a program printed, both ways.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Connects from an address of this machine.
pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::new(source, 0))?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

/// A plain control connection, for replies and half-done things.
pub struct Control {
    reader: BufReader<TcpStream>,
}

impl Control {
    /// Connects and reads the greeting.
    pub fn connect(address: SocketAddr) -> Self {
        let mut control = Self::over(TcpStream::connect(address).expect("the front end listens"));
        assert_eq!(control.reply().0, 220);
        control
    }

    /// Takes a connection, of which nothing is read.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self { reader: BufReader::new(stream) }
    }

    /// Connects and logs in.
    pub fn login(address: SocketAddr, name: &str) -> Self {
        let mut control = Self::connect(address);
        control.log_in(name);
        control
    }

    pub fn log_in(&mut self, name: &str) {
        assert_eq!(self.ask(&format!("USER {name}")).0, 331);
        assert_eq!(self.ask(&format!("PASS {PASSWORD}")).0, 230);
        assert_eq!(self.ask("TYPE I").0, 200);
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends one byte as urgent data.
    pub fn send_urgent(&mut self, byte: u8) {
        let flags = rustix::net::SendFlags::OOB;
        rustix::net::send(self.reader.get_ref(), &[byte], flags).expect("the connection stands");
    }

    /// Does something that may take so long until its next reply.
    pub fn into_patient<T>(self, deadline: Duration, work: impl FnOnce(&mut Self) -> T) -> T {
        let mut patient = self;
        patient.reader.get_ref().set_read_timeout(Some(deadline)).expect("a socket");
        work(&mut patient)
    }

    /// Gives the connection up.
    pub fn into_stream(self) -> TcpStream {
        self.reader.into_inner()
    }

    /// The next reply: code and text; code 0 when the connection is closed.
    pub fn reply(&mut self) -> (u16, String) {
        let mut whole = String::new();
        loop {
            let mut line = Vec::new();
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return (0, whole),
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            whole += &line;
            if let Some(code) =
                line.get(..4).and_then(|start| start.strip_suffix(' ')).and_then(|code| code.parse().ok())
            {
                return (code, whole);
            }
            whole.push('\n');
        }
    }

    /// Sends a command and reads its reply.
    pub fn ask(&mut self, command: &str) -> (u16, String) {
        self.send(format!("{command}\r\n").as_bytes()).expect("the connection stands");
        self.reply()
    }

    /// A passive data connection.
    pub fn passive(&mut self) -> TcpStream {
        let (code, text) = self.ask("EPSV");
        assert_eq!(code, 229, "{text}");
        let port = text.split('|').nth(3).and_then(|port| port.parse().ok()).expect("229 names a port");
        let control = self.reader.get_ref();
        let host = control.peer_addr().expect("connected").ip();
        let own = control.local_addr().expect("connected").ip();
        let stream = connect_from(own, SocketAddr::new(host, port)).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        stream
    }

    /// Runs a command that sends data here; the final code and the data.
    pub fn fetch(&mut self, command: &str) -> (u16, Vec<u8>) {
        let mut stream = self.passive();
        let (code, _) = self.ask(command);
        let mut data = Vec::new();
        if code != 150 && code != 125 {
            return (code, data);
        }
        let read = stream.read_to_end(&mut data);
        let code = self.reply().0;
        // A transfer that failed ends in a reset, so that nobody takes what came for the whole; 0: the session ended with it.
        assert!(read.is_ok() || code >= 400 || code == 0, "{code}: {read:?}");
        (code, data)
    }

    /// Runs STOR with content; the final code.
    pub fn store(&mut self, path: &str, content: &[u8]) -> u16 {
        self.upload(&format!("STOR {path}"), content)
    }

    /// Runs a command that takes data from here; the final code.
    pub fn upload(&mut self, command: &str, content: &[u8]) -> u16 {
        let mut stream = self.passive();
        let (code, _) = self.ask(command);
        if code != 150 {
            return code;
        }
        // A server that refuses early may close the connection before it has read everything.
        stream.write_all(content).ok();
        drop(stream);
        self.reply().0
    }
}
