//! How a collector of OpenTelemetry is reached: gRPC, with TLS where its address says https.

use std::io;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use portolan_config::checked::log::Collector;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Exporters run on a thread of their own, with this.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// What the program is called in traces and logs. `OTEL_RESOURCE_ATTRIBUTES` adds to it.
pub(crate) fn resource(program: &'static str) -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Resource::builder()
        .with_service_name(program)
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build()
}

fn tls(collector: &Collector) -> Option<ClientTlsConfig> {
    if !collector.endpoint.starts_with("https://") {
        return None;
    }
    let mut tls = ClientTlsConfig::new();
    tls = match &collector.ca {
        Some(ca) => tls.ca_certificate(Certificate::from_pem(&ca.pem)),
        None => {
            let system = rustls_native_certs::load_native_certs().certs;
            tls.trust_anchors(anchors(&system))
        }
    };
    if let Some(identity) = &collector.identity {
        tls = tls.identity(Identity::from_pem(&identity.chain_pem, identity.key_pem.expose()));
    }
    Some(tls)
}

fn anchors(
    certificates: &[rustls::pki_types::CertificateDer<'static>],
) -> Vec<rustls::pki_types::TrustAnchor<'static>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    roots.roots
}

pub(crate) fn log_exporter(collector: &Collector) -> io::Result<LogExporter> {
    let mut builder = LogExporter::builder()
        .with_tonic()
        .with_endpoint(&collector.endpoint)
        .with_timeout(collector.timeout);
    if let Some(tls) = tls(collector) {
        builder = builder.with_tls_config(tls);
    }
    builder.build().map_err(io::Error::other)
}

pub(crate) fn span_exporter(collector: &Collector) -> io::Result<SpanExporter> {
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&collector.endpoint)
        .with_timeout(collector.timeout);
    if let Some(tls) = tls(collector) {
        builder = builder.with_tls_config(tls);
    }
    builder.build().map_err(io::Error::other)
}
