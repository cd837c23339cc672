//! Who is measured, and the ground they run on: ports, folders, packages.
//!
//! Who calls it: `main` starts them one by one, `measure` and `report` use them.
//! What it calls: one file for each kind of server; `process` and `client` to start it and see it answer.
//! What it never does: give one server what another does not get: each has its own store, ports and log.

mod packages;
mod portolan;
mod proftpd;
mod vsftpd;

use std::any::Any;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::client::{Login, Session};
use crate::data::Sample;
use crate::process::Program;
use crate::{Result, interrupt};
use packages::Packages;

/// The one hop that all others are compared with.
pub(crate) const FLOOR: &str = "vsftpd";

/// A server has this long to let the first session in.
const START_MAX: Duration = Duration::from_secs(20);
const START_STEP: Duration = Duration::from_millis(50);

/// Passive ports: below the kernel's ephemeral ones, where the client's own ports lie; as many for each server.
const PASSIVE_FIRST: u16 = 20_000;
const PASSIVE_PORTS: u16 = 2_000;

/// A row of the table. Another engine of Portolan or another peer is one more of these.
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    /// What stands in brackets behind the name.
    pub(crate) shape: &'static str,
    /// Debian packages that it runs from.
    pub(crate) packages: &'static [&'static str],
    start: fn(&mut Ground, &Place) -> Result<Started>,
}

/// In the order of the table.
pub(crate) const ENTRANTS: &[Entrant] = &[
    Entrant { name: FLOOR, shape: "one hop", packages: &["vsftpd"], start: vsftpd::start },
    Entrant {
        name: "proftpd",
        shape: "mod_proxy > vsftpd",
        packages: &["vsftpd", "proftpd-core", "proftpd-mod-crypto", "proftpd-mod-proxy"],
        start: proftpd::start,
    },
    Entrant {
        name: "portolan",
        shape: "native, mTLS to the agent",
        packages: &[],
        start: |ground, place| portolan::start(ground, place, "native", portolan::Hop::MutualTls),
    },
    Entrant {
        name: "portolan-silent",
        shape: "the same, critical messages only",
        packages: &[],
        start: |ground, place| portolan::start_watched(ground, place, portolan::Watched::Silent),
    },
    Entrant {
        name: "portolan-logged",
        shape: "the same, protocol log, audit and xferlog in files, scraped each second",
        packages: &[],
        start: |ground, place| portolan::start_watched(ground, place, portolan::Watched::Logged),
    },
    Entrant {
        name: "portolan-sampled",
        shape: "as logged, log and 1 in 100 traces to a collector",
        packages: &[],
        start: |ground, place| {
            portolan::start_watched(ground, place, portolan::Watched::Traced { ratio: 0.01 })
        },
    },
    Entrant {
        name: "portolan-traced",
        shape: "as logged, log and all traces to a collector",
        packages: &[],
        start: |ground, place| {
            portolan::start_watched(ground, place, portolan::Watched::Traced { ratio: 1.0 })
        },
    },
    Entrant {
        name: "portolan-plain",
        shape: "native, plaintext to the agent",
        packages: &[],
        start: |ground, place| portolan::start(ground, place, "native", portolan::Hop::Plaintext),
    },
    Entrant {
        name: "portolan-libunftp",
        shape: "libunftp, mTLS to the agent",
        packages: &[],
        start: |ground, place| portolan::start(ground, place, "libunftp", portolan::Hop::MutualTls),
    },
    Entrant {
        name: "portolan-libunftp-plain",
        shape: "libunftp, plaintext to the agent",
        packages: &[],
        start: |ground, place| portolan::start(ground, place, "libunftp", portolan::Hop::Plaintext),
    },
];

pub(crate) fn names() -> Vec<&'static str> {
    ENTRANTS.iter().map(|entrant| entrant.name).collect()
}

/// What one server gets.
struct Place {
    /// For its configuration, its logs and what else it writes.
    folder: PathBuf,
    /// Its copy of the files: what clients see as `/`.
    store: PathBuf,
}

/// What a server's file hands back: its processes, and how to log in.
struct Started {
    programs: Vec<Program>,
    login: Login,
    /// Who watches it, and goes with it.
    watchers: Vec<Box<dyn Any>>,
}

/// A server that runs and answers. Stopped when dropped.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) shape: &'static str,
    pub(crate) login: Login,
    pub(crate) store: PathBuf,
    programs: Vec<Program>,
    _watchers: Vec<Box<dyn Any>>,
}

impl Server {
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.programs.iter().map(Program::cpu_seconds).sum()
    }

    /// An error with the server's name before it and the ends of its logs behind.
    pub(crate) fn with_logs(&self, error: Box<dyn Error + Send + Sync>) -> Box<dyn Error + Send + Sync> {
        let logs: String = self.programs.iter().map(Program::log_end).collect();
        format!("{}: {error}{logs}", self.name).into()
    }
}

/// What the servers share.
pub(crate) struct Ground {
    folder: PathBuf,
    bin_dir: PathBuf,
    packages: Packages,
    passive_next: u16,
}

impl Ground {
    pub(crate) fn new(folder: &Path, bin_dir: PathBuf, packages: &[&str]) -> Result<Self> {
        let packages = Packages::fetch(&folder.join("packages"), packages)?;
        Ok(Self { folder: folder.to_owned(), bin_dir, packages, passive_next: PASSIVE_FIRST })
    }

    /// Name and version of each package that runs here.
    pub(crate) fn versions(&self) -> &[String] {
        self.packages.versions()
    }

    /// Starts a server on the files of `sample` and waits until it lets a session in.
    pub(crate) fn start(&mut self, entrant: &Entrant, sample: &Sample) -> Result<Server> {
        let failed = |error| format!("{}: {error}", entrant.name);
        let folder = self.folder.join(entrant.name);
        let place = Place { store: folder.join("store"), folder };
        std::fs::create_dir_all(&place.store)?;
        sample.link_into(&place.store)?;
        let Started { programs, login, watchers } = (entrant.start)(self, &place).map_err(failed)?;
        let mut server = Server {
            name: entrant.name,
            shape: entrant.shape,
            login,
            store: place.store,
            programs,
            _watchers: watchers,
        };
        let begin = Instant::now();
        loop {
            interrupt::check()?;
            server.programs.iter_mut().try_for_each(Program::check_alive).map_err(failed)?;
            match Session::open(&server.login).and_then(Session::quit) {
                Ok(()) => return Ok(server),
                Err(error) if begin.elapsed() > START_MAX => return Err(server.with_logs(error)),
                Err(_) => std::thread::sleep(START_STEP),
            }
        }
    }

    /// The next passive ports, first and last.
    fn passive_ports(&mut self) -> (u16, u16) {
        let first = self.passive_next;
        self.passive_next += PASSIVE_PORTS;
        (first, self.passive_next - 1)
    }
}

/// An address of loopback with a port that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Waits until somebody listens there.
fn wait_for_listener(address: SocketAddr, program: &mut Program) -> Result<()> {
    let begin = Instant::now();
    while let Err(error) = TcpStream::connect_timeout(&address, START_STEP) {
        program.check_alive()?;
        if begin.elapsed() > START_MAX {
            return Err(format!("nobody listens on {address}: {error}{}", program.log_end()).into());
        }
        std::thread::sleep(START_STEP);
    }
    Ok(())
}
