//! The error path, row by row: what a store says, over the wire, to the reply that an FTP client reads.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portolan_agent::Agent;
use portolan_agent::service::status;
use portolan_agent::store::error::Damage;
use portolan_agent::store::tree::TreeStore;
use portolan_agent::store::{
    Begin, Content, Directory, Entry, Error, Holdings, ListOptions, Listing, Permissions, Result, Store,
    StorePath, Upload, Usage, Version,
};
use portolan_config::checked::agent::{Links, Modes};
use portolan_frontend::{Frontend, Host};
use portolan_proto::path::PathFault;
use portolan_proto::v1::agent_client::AgentClient;
use portolan_proto::v1::{Caller, Grant, RemoveRequest};
use portolan_tests::client::Control;
use portolan_tests::prepare;
use portolan_tests::tree::put;
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// A tree store whose next calls do as the test wants: `None` works, `Some` fails.
struct FaultStore {
    tree: TreeStore,
    faults: Arc<Mutex<VecDeque<Option<Error>>>>,
}

impl FaultStore {
    fn next(&self) -> Result<()> {
        let next = self.faults.lock().expect("no panic").pop_front();
        next.flatten().map_or(Ok(()), Err)
    }
}

impl Store for FaultStore {
    fn kind(&self) -> &'static str {
        "fault"
    }
    fn usage(&self) -> Result<Usage> {
        self.tree.usage()
    }
    fn holdings(&self, previous: &Holdings, only: Option<&BTreeSet<Vec<u8>>>) -> Result<Holdings> {
        self.tree.holdings(previous, only)
    }
    fn rescan_interval(&self) -> Duration {
        self.tree.rescan_interval()
    }
    fn stat(&self, path: &StorePath) -> Result<Entry> {
        self.next()?;
        self.tree.stat(path)
    }
    fn list(
        &self,
        path: &StorePath,
        options: ListOptions,
        stop: &CancellationToken,
    ) -> Result<Box<dyn Listing>> {
        self.next()?;
        let listing = self.tree.list(path, options, stop)?;
        Ok(Box::new(FaultListing { listing, fault: self.next().err() }))
    }
    fn read(&self, path: &StorePath) -> Result<Box<dyn Content>> {
        self.next()?;
        let content = self.tree.read(path)?;
        Ok(Box::new(FaultContent { content, fault: self.next().err() }))
    }
    fn write(&self, path: &StorePath, begin: Begin) -> Result<Box<dyn Upload>> {
        self.next()?;
        self.tree.write(path, begin)
    }
    fn make_directory(&self, path: &StorePath) -> Result<()> {
        self.next()?;
        self.tree.make_directory(path)
    }
    fn remove(&self, path: &StorePath) -> Result<()> {
        self.next()?;
        self.tree.remove(path)
    }
    fn remove_directory(&self, path: &StorePath) -> Result<()> {
        self.next()?;
        self.tree.remove_directory(path)
    }
    fn rename(&self, from: &StorePath, to: &StorePath) -> Result<()> {
        self.next()?;
        self.tree.rename(from, to)
    }
    fn set_times(&self, path: &StorePath, modified_ns: i64) -> Result<i64> {
        self.next()?;
        self.tree.set_times(path, modified_ns)
    }
    fn set_mode(&self, path: &StorePath, permissions: Permissions) -> Result<()> {
        self.next()?;
        self.tree.set_mode(path, permissions)
    }
}

/// Gives one batch, then fails.
struct FaultListing {
    listing: Box<dyn Listing>,
    fault: Option<Error>,
}

impl Listing for FaultListing {
    fn directory(&self) -> Directory {
        self.listing.directory()
    }

    fn next_batch(&mut self, entries_max: usize) -> Result<Vec<Entry>> {
        let batch = self.listing.next_batch(entries_max)?;
        match self.fault.take() {
            Some(fault) if batch.is_empty() => Err(fault),
            fault => {
                self.fault = fault;
                Ok(batch)
            }
        }
    }
}

/// Gives one chunk, then fails.
struct FaultContent {
    content: Box<dyn Content>,
    fault: Option<Error>,
}

impl Content for FaultContent {
    fn size(&self) -> u64 {
        self.content.size()
    }
    fn modified_ns(&self) -> i64 {
        self.content.modified_ns()
    }
    fn version(&self) -> Version {
        self.content.version()
    }
    fn version_now(&self) -> Result<Version> {
        self.content.version_now()
    }
    fn settle(&mut self) -> bool {
        self.content.settle()
    }
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        match self.fault.take() {
            Some(fault) if offset > 0 => Err(fault),
            fault => {
                self.fault = fault;
                self.content.read_at(buffer, offset)
            }
        }
    }
}

/// Every error of a store with its gRPC code and FTP reply. A new variant belongs into this table: the match
/// in `service/status.rs` does not compile without it either.
fn rows() -> Vec<(Error, Code, u16)> {
    let path = || "/domains/one.example/x".to_owned();
    let source = || io::Error::other("simulated");
    vec![
        (Error::NoSpace { path: path(), source: source() }, Code::ResourceExhausted, 452),
        (Error::QuotaExceeded { path: path(), source: source() }, Code::ResourceExhausted, 552),
        (Error::NotFound { path: path() }, Code::NotFound, 550),
        (Error::AlreadyExists { path: path() }, Code::AlreadyExists, 550),
        (Error::PermissionDenied { path: path(), source: source() }, Code::PermissionDenied, 550),
        (Error::NotADirectory { path: path() }, Code::FailedPrecondition, 550),
        (Error::IsADirectory { path: path() }, Code::FailedPrecondition, 550),
        (Error::NotEmpty { path: path() }, Code::FailedPrecondition, 550),
        (Error::NotAFile { path: path() }, Code::FailedPrecondition, 550),
        (Error::OffsetBeyondEnd { path: path(), size: 1, offset: 2 }, Code::FailedPrecondition, 550),
        (Error::CrossesFileSystems { path: path() }, Code::FailedPrecondition, 550),
        (Error::BadName(PathFault::TooLong), Code::InvalidArgument, 553),
        (Error::DiskFault { path: path(), source: source() }, Code::Internal, 451),
        (Error::Damaged { path: path(), what: Damage::Checksum }, Code::DataLoss, 451),
        (Error::Shrunk { path: path() }, Code::DataLoss, 451),
        (Error::Rewritten { path: path() }, Code::DataLoss, 451),
        (Error::TimeNotKept { path: path() }, Code::PermissionDenied, 550),
        (Error::Stopped, Code::Unavailable, 450),
        (Error::Changing { path: path() }, Code::Unavailable, 450),
    ]
}

/// One agent over a store with faults and a front end, in this process.
struct Site {
    ftp: std::net::SocketAddr,
    agent: std::net::SocketAddr,
    faults: Arc<Mutex<VecDeque<Option<Error>>>>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        prepare(path);
        let root = path.join("node");
        put(&root.join("domains/one.example/users/anna/mail.eml"), &vec![b'm'; 600_000]);
        for number in 0..1_500 {
            put(&root.join(format!("domains/one.example/users/anna/many/{number}")), b"");
        }
        let agent_file = path.join("agent.toml");
        let text =
            "version = 1\nnode = \"mail-1\"\n[listen]\naddress = \"127.0.0.1:0\"\n[store]\nroot = \"node\"\n";
        std::fs::write(&agent_file, text).expect("our file");
        let faults = Arc::default();
        let store = FaultStore {
            tree: TreeStore::open(&root, Duration::from_secs(3_600), Modes::default(), Links::Show)
                .expect("a new store"),
            faults: Arc::clone(&faults),
        };
        let config = portolan_config::Agent::load(&agent_file).expect("a good configuration");
        let agent = Agent::bind_store(config, Arc::new(store)).await.expect("a free port");
        let agent_address = agent.local_addr();
        let frontend =
            Frontend::bind(frontend_config(path, agent_address), Host::default()).await.expect("a free port");
        let ftp = frontend.local_addrs()[0];
        let shutdown = CancellationToken::new();
        tokio::spawn(agent.run(shutdown.clone()));
        tokio::spawn(frontend.run(portolan_process::Signals::by_token(shutdown.clone())));
        Self { ftp, agent: agent_address, faults, shutdown, _folder: folder }
    }

    fn fail_next(&self, fault: Error) {
        self.faults.lock().expect("no panic").push_back(Some(fault));
    }

    /// The next listing or reading begins well and fails after its first batch or chunk.
    fn fail_in_the_middle(&self, fault: Error) {
        self.faults.lock().expect("no panic").extend([None, Some(fault)]);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn frontend_config(folder: &Path, agent: std::net::SocketAddr) -> portolan_config::Frontend {
    let file = folder.join("frontend.toml");
    let text = format!(
        "version = 1\n[[listeners]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\n\
         [admins]\nfile = \"admins\"\n[[nodes]]\nname = \"mail-1\"\naddress = \"{agent}\"\n"
    );
    std::fs::write(&file, text).expect("our file");
    portolan_config::Frontend::load(&file).expect("a good configuration")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_from_the_store_to_the_reply() {
    let site = Site::start().await;
    let mut agent = AgentClient::connect(format!("http://{}", site.agent)).await.unwrap();
    let path = "/domains/one.example/x";
    for (error, code, _) in rows() {
        let shown = error.to_string();
        assert_eq!(status::of(&error).code(), code, "{shown}");
        site.fail_next(error);
        let grant = Some(Grant { backup: true, restore: true, domain: None });
        let caller = Some(Caller { admin: "test".into(), session_id: "s1".into(), grant });
        let request = RemoveRequest { caller, path: path.as_bytes()[1..].to_vec().into() };
        let status = agent.remove(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, &*shown));
    }
    let ftp = site.ftp;
    tokio::task::spawn_blocking(move || {
        let mut control = Control::login(ftp, "admin");
        for (error, _, reply) in rows() {
            let shown = error.to_string();
            site.fail_next(error);
            assert_eq!(control.ask(&format!("DELE {path}")).0, reply, "{shown}");
        }
        assert_eq!(control.ask("NOOP").0, 200, "the session goes on");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_in_the_middle_is_never_a_short_answer() {
    let site = Site::start().await;
    let ftp = site.ftp;
    tokio::task::spawn_blocking(move || {
        let fault = || Error::DiskFault { path: "/domains/x".into(), source: io::Error::other("simulated") };
        let mut control = Control::login(ftp, "admin");
        let many = "/domains/one.example/users/anna/many";
        assert_eq!(control.fetch(&format!("MLSD {many}")).0, 226);
        for command in ["MLSD", "LIST"] {
            site.fail_in_the_middle(fault());
            // What came before the fault has been sent; the reply says that it is not known to be all.
            assert_eq!(control.fetch(&format!("{command} {many}")).0, 451, "{command}");
        }
        site.fail_in_the_middle(fault());
        let (code, data) = control.fetch("RETR /domains/one.example/users/anna/mail.eml");
        assert_eq!(code, 451);
        assert!(data.len() < 600_000);
        assert_eq!(control.fetch("RETR /domains/one.example/users/anna/mail.eml").1.len(), 600_000);
    })
    .await
    .unwrap();
}
