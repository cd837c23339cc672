//! A collector of OpenTelemetry that keeps what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

/// What has come, with the name of the service that sent it.
#[derive(Debug, Default)]
pub struct Received {
    pub spans: Vec<(String, Span)>,
    pub logs: Vec<(String, LogRecord)>,
}

/// It ends with this.
pub struct Collector {
    pub received: Arc<Mutex<Received>>,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    /// Listens at an address of loopback, and keeps what comes.
    pub fn start(address: SocketAddr) -> Self {
        Self::listen(address, true)
    }

    /// Takes what comes, and forgets it.
    pub fn forgetting(address: SocketAddr) -> Self {
        Self::listen(address, false)
    }

    fn listen(address: SocketAddr, keeps: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let received = Arc::new(Mutex::new(Received::default()));
        let (traces, logs) = (
            Keeper { received: Arc::clone(&received), keeps },
            Keeper { received: Arc::clone(&received), keeps },
        );
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(traces))
                .add_service(LogsServiceServer::new(logs));
            server.serve(address).await.expect("the port is free");
        });
        Self { received, _runtime: runtime }
    }

    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().expect("nobody panics while it is held")
    }
}

/// The text of an attribute.
pub fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.as_ref()?;
    Some(match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => format!("{other:?}"),
    })
}

struct Keeper {
    received: Arc<Mutex<Received>>,
    keeps: bool,
}

fn service(resource: Option<&opentelemetry_proto::tonic::resource::v1::Resource>) -> String {
    resource.and_then(|resource| attribute(&resource.attributes, "service.name")).unwrap_or_default()
}

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.received.lock().expect("nobody panics while it is held");
        for resource in request.into_inner().resource_spans.into_iter().filter(|_| self.keeps) {
            let name = service(resource.resource.as_ref());
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.spans.extend(spans.map(|span| (name.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Keeper {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut received = self.received.lock().expect("nobody panics while it is held");
        for resource in request.into_inner().resource_logs.into_iter().filter(|_| self.keeps) {
            let name = service(resource.resource.as_ref());
            let logs = resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            received.logs.extend(logs.map(|log| (name.clone(), log)));
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
