//! A session: what a client has said and done so far, and what a command comes to.
//!
//! Who calls it: `conversation`, which makes it; `commands`, which read and change it.
//! What it calls: nothing that waits.
//! What it never does: read or write a connection.

use std::sync::Arc;

use portolan_cluster::auth::Login;
use portolan_cluster::path::VirtualPath;
use portolan_net::Origin;
use portolan_proto::id::SessionId;
use portolan_proto::v1::DigestAlgorithm;
use tokio::time::Instant;
use tracing::Span;

use super::arrival::{Parting, Setup};
use super::client::Client;
use super::facts::Facts;
use super::tls::SessionTls;
use super::work::Work;
use crate::bandwidth::{Pace, Throttle};
use crate::reply::Reply;
use crate::transfer::Transfer;
use crate::verb::Verb;
use crate::{ControlConnection, Service};

/// The level of MODE Z unless OPTS MODE Z LEVEL says another.
const COMPRESSION_LEVEL: u32 = 6;

/// What a client has said and done so far.
pub(super) struct Session {
    pub(super) service: Arc<Service>,
    pub(super) id: SessionId,
    pub(super) control: Arc<ControlConnection>,
    pub(super) origin: Origin,
    /// `None`: this listener has no TLS.
    pub(super) tls: Option<Arc<SessionTls>>,
    /// The control connection speaks TLS.
    pub(super) protected: bool,
    pub(super) client: Client,
    /// The name of USER, until PASS.
    pub(super) user: Option<Vec<u8>>,
    pub(super) login: Option<Login>,
    /// When a session without a login ends.
    pub(super) login_by: Instant,
    pub(super) failed_logins: u32,
    pub(super) wrong_commands: WrongCommands,
    /// How fast its data may go; the second is with the limits of its admin.
    pub(super) throttle: Arc<Throttle>,
    pub(super) pace: Pace,
    pub(super) cwd: VirtualPath,
    /// The name of RNFR, for the RNTO that must follow.
    pub(super) rename_from: Option<VirtualPath>,
    pub(super) next: NextTransfer,
    pub(super) modes: Modes,
    pub(super) setup: Setup,
    /// The data connection of a transfer that was refused.
    pub(super) parting: Option<Parting>,
    /// After EPSV ALL no other way of opening data connections is served (RFC 2428 section 4).
    pub(super) epsv_only: bool,
    pub(super) digest: DigestAlgorithm,
    pub(super) facts: Facts,
}

/// What was said for the next transfer only.
#[derive(Debug, Default)]
pub(super) struct NextTransfer {
    /// REST.
    pub(super) restart: Option<u64>,
    /// RANG: the first and the last byte.
    pub(super) range: Option<(u64, u64)>,
    /// ALLO.
    pub(super) declared: Option<u64>,
}

/// What the client has said of its content (RFC 959 section 3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataType {
    /// Nothing: it may take TYPE A for agreed on, or never think of it.
    Unsaid,
    Ascii,
    Image,
}

/// What holds for all transfers until changed.
#[derive(Debug)]
pub(super) struct Modes {
    pub(super) data_type: DataType,
    /// MODE Z.
    pub(super) deflate: bool,
    pub(super) level: u32,
    /// PBSZ was said.
    pub(super) sized: bool,
    /// PROT P.
    pub(super) protected: bool,
}

impl Modes {
    /// What counts as TYPE A.
    pub(super) fn ascii(&self) -> bool {
        match self.data_type {
            DataType::Unsaid | DataType::Ascii => true,
            DataType::Image => false,
        }
    }

    /// `protected` is for data connections.
    pub(super) fn at_start(protected: bool) -> Self {
        Self {
            data_type: DataType::Unsaid,
            deflate: false,
            level: COMPRESSION_LEVEL,
            sized: protected,
            protected,
        }
    }
}

/// What a command comes to.
pub(super) enum Step {
    Reply(Reply),
    /// Runs beside the control loop; of a transfer, with its state.
    Work(Work, Option<Arc<Transfer>>),
    /// The reply, then the TLS handshake.
    StartTls(Reply),
    /// The reply, then the end.
    Quit(Reply),
}

/// Wrong commands, less those that were accepted since: a long session is not ended by rare mistakes.
#[derive(Debug, Default)]
pub(super) struct WrongCommands(u32);

impl WrongCommands {
    /// Counts a last reply; how many wrong commands there are after one more.
    pub(super) fn count(&mut self, code: u16) -> Option<u32> {
        match code {
            500 | 501 | 503 => {
                self.0 += 1;
                Some(self.0)
            }
            ..400 => {
                self.0 = self.0.saturating_sub(1);
                None
            }
            _ => None,
        }
    }
}

impl From<Reply> for Step {
    fn from(reply: Reply) -> Self {
        Step::Reply(reply)
    }
}

impl Session {
    /// A session whose client has said nothing yet. `protected`: its control connection speaks TLS.
    pub(super) fn new(
        service: Arc<Service>,
        control: &Arc<ControlConnection>,
        tls: Option<Arc<SessionTls>>,
        protected: bool,
    ) -> Self {
        Self {
            id: control.id,
            control: Arc::clone(control),
            origin: control.origin,
            tls,
            protected,
            client: Client::default(),
            user: None,
            login: None,
            login_by: Instant::now() + service.listener.login_timeout,
            failed_logins: 0,
            wrong_commands: WrongCommands::default(),
            pace: Pace::new(Vec::new()),
            throttle: service.session_throttle(),
            cwd: VirtualPath::default(),
            rename_from: None,
            next: NextTransfer::default(),
            modes: Modes::at_start(protected),
            setup: Setup::None,
            parting: None,
            epsv_only: false,
            digest: DigestAlgorithm::Sha256,
            facts: Facts::default(),
            service,
        }
    }

    /// Counts a command that has its last reply.
    pub(super) fn answered(&self, verb: Verb, span: &Span, code: u16) {
        span.record("reply", code);
        self.service.shared.metrics.command(verb, code);
    }

    /// The 220 of the beginning (RFC 959 section 5.4).
    pub(super) fn greeting(&self) -> Reply {
        let mut lines = self.service.listener.banner.iter().map(|line| line.as_bytes().to_vec());
        let first = lines.next().unwrap_or_default();
        Reply { body: lines.collect(), ..Reply::with(220, first) }
    }
}
