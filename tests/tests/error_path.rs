//! The error path, row by row: what a store says, over the wire, to the reply that an FTP client reads.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portolan_agent::Agent;
use portolan_agent::service::status;
use portolan_agent::store::error::Damage;
use portolan_agent::store::tree::TreeStore;
use portolan_agent::store::{Error, Operation, Unserved};
use portolan_config::checked::agent::{Links, Modes};
use portolan_frontend::{Frontend, Host};
use portolan_proto::path::PathFault;
use portolan_proto::v1::agent_client::AgentClient;
use portolan_proto::v1::{Caller, Grant, Reason, RemoveRequest};
use portolan_tests::client::Control;
use portolan_tests::fault_store::{FaultStore, Faults};
use portolan_tests::prepare;
use portolan_tests::tree::put;
use tokio_util::sync::CancellationToken;
use tonic::Code;

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
        (Error::ReadOnly { path: path() }, Code::PermissionDenied, 550),
        (Error::Unsupported { path: path(), operation: Operation::Remove }, Code::Unimplemented, 504),
        (Error::Stopped, Code::Unavailable, 450),
        (Error::Changing { path: path() }, Code::Unavailable, 450),
        (
            Error::Unserved(Unserved::NotMarked { node: "mail-1".parse().expect("a name") }),
            Code::Unavailable,
            450,
        ),
    ]
}

/// One agent over a store with faults and a front end, in this process.
struct Site {
    ftp: std::net::SocketAddr,
    agent: std::net::SocketAddr,
    faults: Faults,
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
        let tree = TreeStore::open(&root, Duration::from_secs(3_600), Modes::default(), Links::Show);
        let (store, faults) = FaultStore::over(Arc::new(tree.expect("a new store")));
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
    for ((error, code, _), (again, ..)) in std::iter::zip(rows(), rows()) {
        let shown = error.to_string();
        assert_eq!(status::of(again).code(), code, "{shown}");
        site.fail_next(error);
        let grant = Some(Grant { backup: true, restore: true, domain: None, delete: None });
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

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_the_longest_path_is_still_that_failure() {
    let site = Site::start().await;
    let mut agent = AgentClient::connect(format!("http://{}", site.agent)).await.unwrap();
    // Text for people takes up to four bytes for one of a path, and its form on the wire more again.
    for name in [vec![0xff; 250], "\u{e9}".repeat(125).into_bytes(), vec![b'x'; 250]] {
        let path = [&b"domains/one.example"[..], &[&b"/"[..], &name].concat().repeat(16)].concat();
        assert!(path.len() > 4_000);
        let grant = Some(Grant { backup: true, restore: true, domain: None, delete: None });
        let caller = Some(Caller { admin: "test".into(), session_id: "s1".into(), grant });
        let status = agent.remove(RemoveRequest { caller, path: path.into() }).await.unwrap_err();
        assert_eq!(portolan_proto::failure::reason_of(&status), Some(Reason::NotFound), "{status:?}");
    }
}
