//! The calls of `control.proto`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use portolan_config::checked::listener::{Engine, Tls};
use portolan_config::checked::map::MapSource;
use portolan_proto::control::control_server::Control;
use portolan_proto::control::{self as v1, ban, kick_request};
use portolan_telemetry::log::AUDIT;
use tokio_stream::Stream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::gate::flow::Usage;
use crate::running::Running;
use crate::running::view::{DirectoryView, NodeView};
use portolan_cluster::auth::lockout::{Ban, Banned};
use portolan_cluster::map::conflicts::Hidden;
use portolan_cluster::map::{self, MapRow, NodeIndex, Snapshot};
use portolan_cluster::nodes::Health;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::record::{Confirmed, now_ns};
use portolan_ftp::ControlConnection;

/// Sessions or bans in one message at most.
const BATCH_MAX: usize = 1_000;

/// Refuses who is neither root nor the user that the front end runs as.
// The type of the error is the interceptor's.
#[allow(clippy::result_large_err)]
pub(super) fn authenticate(request: Request<()>) -> Result<Request<()>, Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let own = rustix::process::geteuid().as_raw();
    match caller.map(|caller| caller.uid()) {
        Some(user) if user == 0 || user == own => Ok(request),
        user => {
            tracing::warn!(?user, "a user who may not use the control socket was refused");
            Err(Status::permission_denied("only root and the front end's own user may do this"))
        }
    }
}

pub(super) struct ControlService {
    running: Arc<Running>,
}

impl ControlService {
    pub(super) fn new(running: Arc<Running>) -> Self {
        Self { running }
    }
}

type Batches<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn batches<T, U>(all: Vec<T>, message: impl Fn(Vec<T>) -> U + Send + 'static) -> Response<Batches<U>>
where
    T: Clone + Send + 'static,
    U: Send + 'static,
{
    let batches: Vec<Vec<T>> = all.chunks(BATCH_MAX).map(<[T]>::to_vec).collect();
    let messages = batches.into_iter().map(move |batch| Ok(message(batch)));
    Response::new(Box::pin(tokio_stream::iter(messages)))
}

#[tonic::async_trait]
impl Control for ControlService {
    type ListSessionsStream = Batches<v1::ListSessionsResponse>;
    type ListBansStream = Batches<v1::ListBansResponse>;
    type ListDomainsStream = Batches<v1::ListDomainsResponse>;

    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let view = self.running.view();
        let listeners = view.gates.iter().map(|gate| {
            let service = &gate.service().service;
            let (engine, tls) = (service.listener.engine, &service.listener.tls);
            v1::Listener {
                name: gate.name().to_owned(),
                address: gate.address().to_string(),
                engine: match engine {
                    Engine::Native => "native",
                    Engine::Libunftp => "libunftp",
                }
                .to_owned(),
                tls: match tls {
                    Tls::Off => "off",
                    Tls::Explicit(_) => "explicit",
                    Tls::Implicit(_) => "implicit",
                }
                .to_owned(),
            }
        });
        let nodes = view.nodes.iter().map(|NodeView { node, health, standby_of, in_doubt }| {
            let (health, cause) = match health {
                Health::Up => ("up", String::new()),
                Health::Away(cause) => ("away", cause.clone()),
                Health::Unheard => ("unheard", String::new()),
            };
            let name = node.name().to_string();
            let address = node.address().map(|address| address.to_string()).unwrap_or_default();
            let standby_of = standby_of.as_ref().map(|primary| primary.to_string()).unwrap_or_default();
            let in_doubt = *in_doubt as u64;
            v1::Node { name, address, health: health.to_owned(), cause, standby_of, in_doubt }
        });
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(v1::DescribeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process_id: std::process::id(),
            started_ns: nanoseconds(view.started),
            phase: view.phase.name().to_owned(),
            phase_since_ns: nanoseconds(view.phase_since),
            refused_reload: view.refused_reload.as_ref().map(|refused| v1::RefusedReload {
                at_ns: nanoseconds(refused.at),
                cause: refused.cause.clone(),
            }),
            config_file: view.config.file.display().to_string(),
            config_read_ns: nanoseconds(view.config_read),
            listeners: listeners.collect(),
            nodes: nodes.collect(),
            usages: view.usages.iter().map(usage).collect(),
            sessions: count(view.sessions.len()),
            directories: view
                .directories
                .into_iter()
                .map(|DirectoryView { name, servers }| v1::Directory {
                    name,
                    servers: servers
                        .into_iter()
                        .map(|(uri, away)| v1::DirectoryServer { uri, away })
                        .collect(),
                })
                .collect(),
            directory_map: view.directory_map.map(|map| v1::DirectoryMap {
                directory: view
                    .config
                    .map
                    .ldap
                    .as_ref()
                    .map(|ldap| ldap.directory.clone())
                    .unwrap_or_default(),
                read_ns: map.read.map(nanoseconds),
                domains: map.domains as u64,
                failure: map.failure.unwrap_or_default(),
            }),
            bans: count(view.bans.len()),
            conflicting_domains: view.conflicts.domains as u64,
            conflicting_objects: view.conflicts.objects as u64,
        }))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        let sessions = self.running.sessions().list();
        let all: Vec<_> = sessions.iter().map(|control| session(control)).collect();
        Ok(batches(all, |sessions| v1::ListSessionsResponse { sessions }))
    }

    async fn kick(&self, request: Request<v1::KickRequest>) -> Result<Response<v1::KickResponse>, Status> {
        let sessions = self.running.sessions();
        let (kicked, missing) = match request.into_inner().who {
            Some(kick_request::Who::Session(id)) => {
                (sessions.kick(|control| control.id.to_string() == id), format!("there is no session {id:?}"))
            }
            Some(kick_request::Who::Admin(name)) => (
                sessions.kick(|control| control.shown().admin.as_deref() == Some(&name)),
                format!("{name:?} has no session"),
            ),
            None => return Err(Status::invalid_argument("a session or an admin is required")),
        };
        if kicked == 0 {
            return Err(Status::not_found(missing));
        }
        Ok(Response::new(v1::KickResponse { count: u32::try_from(kicked).unwrap_or(u32::MAX) }))
    }

    async fn list_bans(
        &self,
        _: Request<v1::ListBansRequest>,
    ) -> Result<Response<Self::ListBansStream>, Status> {
        let all: Vec<_> = self.running.lockout().bans(Instant::now()).iter().map(banned).collect();
        Ok(batches(all, |bans| v1::ListBansResponse { bans }))
    }

    async fn lift_bans(
        &self,
        request: Request<v1::LiftBansRequest>,
    ) -> Result<Response<v1::LiftBansResponse>, Status> {
        let who = request.into_inner().who;
        let Some(lifted) = self.running.lockout().lift(who.as_deref(), Instant::now()) else {
            let who = who.unwrap_or_default();
            return Err(Status::not_found(format!("nothing is known of {who:?}: no ban, no failed login")));
        };
        for ban in &lifted {
            tracing::warn!(banned = %ban.who, "ban lifted by the operator");
        }
        let count = u32::try_from(lifted.len()).unwrap_or(u32::MAX);
        let shown = lifted.iter().take(BATCH_MAX).map(banned).collect();
        Ok(Response::new(v1::LiftBansResponse { lifted: shown, count }))
    }

    async fn list_domains(
        &self,
        request: Request<v1::ListDomainsRequest>,
    ) -> Result<Response<Self::ListDomainsStream>, Status> {
        let only = request.into_inner().conflicts_only;
        let map = self.running.router().snapshot();
        // One state of the map, batch by batch as the client takes them.
        let messages =
            futures_util::stream::unfold((map, Some(None::<Vec<u8>>)), move |(map, after)| async move {
                let after = after?;
                let batch = map.domains_after(after.as_deref(), BATCH_MAX);
                match batch.and_then(|names| mapped(&map, &names, only).map(|domains| (names, domains))) {
                    Ok((names, domains)) => {
                        let next = names.last().cloned()?;
                        Some((Ok(v1::ListDomainsResponse { domains }), (map, Some(Some(next)))))
                    }
                    Err(error) => Some((Err(Status::unavailable(error.to_string())), (map, None))),
                }
            });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn refresh_map(
        &self,
        _: Request<v1::RefreshMapRequest>,
    ) -> Result<Response<v1::RefreshMapResponse>, Status> {
        match self.running.directory_map().refresh().await {
            Ok(Some(domains)) => Ok(Response::new(v1::RefreshMapResponse { domains: domains as u64 })),
            Ok(None) => Err(Status::failed_precondition("no directory is a source of the map")),
            Err(error) => Err(Status::unavailable(portolan_telemetry::chain(&error))),
        }
    }

    async fn explain_path(
        &self,
        request: Request<v1::ExplainPathRequest>,
    ) -> Result<Response<v1::ExplainPathResponse>, Status> {
        let path = VirtualPath::resolve(&VirtualPath::default(), &request.into_inner().path);
        let path = path.map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        let steps = self.running.router().snapshot().explain(&path);
        Ok(Response::new(v1::ExplainPathResponse { steps }))
    }

    async fn confirm_missing(
        &self,
        request: Request<v1::ConfirmMissingRequest>,
    ) -> Result<Response<v1::ConfirmMissingResponse>, Status> {
        let user = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let by = user.map_or_else(|| "an operator".to_owned(), |user| format!("user {}", user.uid()));
        let what = request.into_inner().what;
        let (router, nodes) = (self.running.router(), self.running.members().nodes().list());
        let map = router.snapshot();
        let node = nodes.iter().find(|node| node.name().as_str().as_bytes() == &what[..]);
        let kind = match node {
            Some(_) => Confirmed::Node,
            None => Confirmed::Domain,
        };
        let in_doubt = match node {
            Some(node) => node.is_away() || map.count_in_doubt(node.index()) > 0,
            None => map.primaries().any(|node| map.doubts(node).contains_key(&what[..])),
        };
        let shown = portolan_proto::path::display(&what);
        if !in_doubt {
            return Err(Status::not_found(format!("nothing is in doubt of a node or domain {shown}")));
        }
        let count = router.change_record(|record| record.confirm(kind, &what, &by, now_ns()));
        tracing::warn!(
            target: AUDIT,
            event = "confirm",
            result = "complete",
            kind = kind.name(),
            what = shown,
            by,
            count,
            "an operator has confirmed that what is missing is meant to be missing"
        );
        Ok(Response::new(v1::ConfirmMissingResponse { count: count as u64, kind: kind.name().to_owned() }))
    }

    async fn reload(&self, _: Request<v1::ReloadRequest>) -> Result<Response<v1::ReloadResponse>, Status> {
        let running = Arc::clone(&self.running);
        // A client that goes away must not leave the reload half done.
        let reloaded = tokio::spawn(async move { running.reload().await }).await;
        let reloaded = reloaded.map_err(|error| Status::internal(error.to_string()))?;
        match reloaded {
            Ok(changes) => Ok(Response::new(v1::ReloadResponse { changes })),
            Err(error) => Err(Status::failed_precondition(portolan_telemetry::chain(&error))),
        }
    }
}

/// Domains as the map has them.
fn mapped(
    map: &Snapshot,
    names: &[Vec<u8>],
    conflicts_only: bool,
) -> Result<Vec<v1::MappedDomain>, map::Error> {
    let named = |nodes: &[NodeIndex]| -> Vec<String> {
        nodes.iter().map(|node| map.name(*node).to_string()).collect()
    };
    let mut domains = Vec::new();
    for name in names {
        let MapRow { domain, source, nodes, conflicts, unresolved } = map.row(name)?;
        let Hidden { elsewhere, objects, objects_count } = map.hidden(&domain, &nodes);
        let agreed = conflicts.is_empty() && elsewhere.is_empty() && objects_count == 0;
        if conflicts_only && agreed && unresolved.is_none() {
            continue;
        }
        let word = |(source, nodes): &(MapSource, Vec<NodeIndex>)| v1::SourceWord {
            source: source.to_string(),
            nodes: named(nodes),
        };
        let conflicts = conflicts.iter().map(word).collect();
        let mut nodes = named(&nodes);
        nodes.extend(unresolved.map(|word| format!("?{word}")));
        let doubting = map.primaries().filter(|node| map.doubts(*node).contains_key(&name[..]));
        let in_doubt = named(&doubting.collect::<Vec<_>>());
        let (domain, source) = (domain.into(), source.to_string());
        let hidden = objects.into_iter().map(|object| v1::HiddenObject {
            object: object.object.into(),
            shown: object.shown.map(|node| map.name(node).to_string()).unwrap_or_default(),
            hidden: named(&object.hidden),
        });
        domains.push(v1::MappedDomain {
            domain,
            source,
            nodes,
            conflicts,
            elsewhere: named(&elsewhere),
            hidden: hidden.collect(),
            hidden_count: objects_count as u64,
            in_doubt,
        });
    }
    Ok(domains)
}

fn session(control: &ControlConnection) -> v1::Session {
    let shown = control.shown();
    let transfer = shown.transfer.map(|transfer| v1::Transfer {
        id: transfer.id.to_string(),
        verb: transfer.verb.name().to_owned(),
        path: transfer.path.in_cluster(),
        bytes: transfer.bytes(),
        elapsed_ms: u64::try_from(transfer.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    v1::Session {
        id: control.id.to_string(),
        admin: shown.admin,
        client: control.origin.client.to_string(),
        balancer: control.origin.balancer.map(|balancer| balancer.to_string()),
        listener: control.listener.to_string(),
        since_ns: nanoseconds(control.since),
        transfer,
    }
}

fn usage(usage: &Usage) -> v1::Usage {
    let limits = usage.limits;
    v1::Usage {
        scope: usage.place.to_string(),
        simultaneous: usage.simultaneous,
        simultaneous_max: limits.simultaneous,
        simultaneous_of_one_address: usage.simultaneous_of_one,
        simultaneous_per_address_max: limits.simultaneous_per_address,
        new: usage.new,
        new_max: limits.new,
        new_per_address_max: limits.new_per_address,
        interval_seconds: u32::try_from(limits.interval.as_secs()).unwrap_or(u32::MAX),
        addresses: usage.addresses as u64,
        new_by_one_address: usage.new_by_one,
    }
}

fn banned(ban: &Ban) -> v1::Ban {
    let who = match &ban.who {
        Banned::Address(address) => ban::Who::Address(address.clone()),
        Banned::Name(name) => ban::Who::Name(name.clone()),
    };
    v1::Ban { who: Some(who), until_ns: nanoseconds(ban.until), failures: ban.failures }
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
