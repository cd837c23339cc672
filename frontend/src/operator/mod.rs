//! The control socket: what an operator on this machine sees of the running front end, and does to it.
//!
//! A Unix socket that speaks gRPC (`control.proto`). Only root and the front end's own user may use it: the mode of
//! the socket says so, and the system tells for each connection who is at the other end.
//!
//! Who calls it: `Frontend`; `cli`, as the client.
//! What it calls: `running`, and what it shows.
//! What it never does: show or take a secret.

mod service;

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portolan_config::checked::frontend::Control;
use portolan_proto::control::control_client::ControlClient;
use portolan_proto::control::control_server::ControlServer;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::running::Running;
use service::ControlService;

#[derive(Debug, thiserror::Error)]
#[error("cannot make the control socket {}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The socket, bound.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
}

impl Server {
    /// Binds the socket. `None`: it could not be bound, and the configuration does not name it.
    pub(crate) fn bind(control: &Control) -> Result<Option<Self>, Error> {
        let path = control.socket.clone();
        match bind(&path) {
            Ok(listener) => Ok(Some(Self { path, listener })),
            Err(source) if control.required => Err(Error { path, source }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no control socket; control.socket names another place");
                Ok(None)
            }
        }
    }

    /// Serves until `stop`, and removes the socket.
    pub(crate) async fn run(self, running: Arc<Running>, stop: CancellationToken) {
        let service = ControlServer::new(ControlService::new(running));
        let served = tonic::transport::Server::builder()
            .add_service(tonic::service::interceptor::InterceptedService::new(service, service::authenticate))
            .serve_with_incoming_shutdown(UnixListenerStream::new(self.listener), stop.cancelled());
        if let Err(error) = served.await {
            let cause = portolan_telemetry::chain(&error);
            tracing::error!(cause, "the control socket has failed");
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket was not removed");
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there"));
        }
        // Left by a process that was killed, unless somebody answers.
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another front end uses it"));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sessions in one answer may be many.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Connects to the control socket of a running front end.
pub async fn connect(path: &Path) -> Result<ControlClient<Channel>, tonic::transport::Error> {
    let path = path.to_owned();
    // The address is required and means nothing.
    let endpoint = Endpoint::from_static("http://control");
    let channel = endpoint
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await?;
    Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}
