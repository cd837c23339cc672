//! How a collector of OpenTelemetry is reached: gRPC, with TLS where its address says https.

use std::collections::VecDeque;
use std::io;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use portolan_config::checked::log::Collector;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Items of one message, and bytes of them: collectors take 4 MiB, unless told otherwise.
const BATCH_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Items that are refused one after the other, before the collector is taken for one that fails.
const DOUBTFUL_MAX: usize = 8;

/// Exports batch by batch. A batch that the collector refuses for what it is, is tried again in halves. An item that it
/// refuses alone is given up if it takes others: it would hold up all that come after it. A collector that takes nothing is
/// one that fails.
pub(crate) fn deliver<T>(
    items: &mut VecDeque<T>,
    refused: &mut u64,
    bytes: impl Fn(&T) -> usize,
    mut export: impl FnMut(&mut dyn Iterator<Item = &T>) -> OTelSdkResult,
) -> io::Result<()> {
    let (mut most, mut takes_others) = (BATCH_MAX, false);
    let mut doubtful = VecDeque::new();
    let ended = loop {
        if items.is_empty() {
            break Ok(());
        }
        let mut size = 0;
        let fits = |item: &&T| {
            size += bytes(item);
            size <= BATCH_BYTES_MAX
        };
        let count = items.iter().take(most).take_while(fits).count().max(1);
        match export(&mut items.iter().take(count)) {
            Ok(()) => {
                items.drain(..count);
                most = BATCH_MAX.min(most * 2);
                takes_others = true;
            }
            Err(error) if !is_refusal(&error.to_string()) => break Err(io::Error::other(error)),
            Err(_) if count > 1 => most = count / 2,
            Err(error) => {
                doubtful.extend(items.pop_front());
                if !takes_others && doubtful.len() == DOUBTFUL_MAX {
                    break Err(io::Error::other(error));
                }
            }
        }
    };
    if takes_others {
        *refused += doubtful.len() as u64;
        return ended;
    }
    let is_empty = doubtful.is_empty();
    doubtful.append(items);
    *items = doubtful;
    match ended {
        Ok(()) if !is_empty => Err(io::Error::other("the collector refuses what it is sent")),
        ended => ended,
    }
}

/// Whether it is of no use to try the same again (OTLP specification, failures of OTLP/gRPC). The library tells the code in
/// words only.
fn is_refusal(error: &str) -> bool {
    ["InvalidArgument", "ResourceExhausted", "OutOfRange"].iter().any(|code| error.contains(code))
}

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

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn one_item_that_is_refused_does_not_hold_up_the_others() {
        let mut items: VecDeque<u32> = (0..2_000).collect();
        let (mut taken, mut refused, mut largest) = (Vec::new(), 0, 0);
        let mut export = |batch: &mut dyn Iterator<Item = &u32>| {
            let batch: Vec<u32> = batch.copied().collect();
            largest = largest.max(batch.len());
            if batch.contains(&700) {
                let message = "TonicLogsClient export failed with gRPC code: ResourceExhausted";
                return Err(OTelSdkError::InternalFailure(message.to_owned()));
            }
            taken.extend(batch);
            Ok(())
        };
        deliver(&mut items, &mut refused, |_| 4_096, &mut export).unwrap();
        assert_eq!(refused, 1);
        assert_eq!(largest, 256);
        assert_eq!(taken, (0..2_000).filter(|item| *item != 700).collect::<Vec<_>>());
        // One that is away is tried again later.
        let mut items: VecDeque<u32> = [1].into();
        let away = |_: &mut dyn Iterator<Item = &u32>| {
            Err(OTelSdkError::InternalFailure("gRPC code: Unavailable".to_owned()))
        };
        assert!(deliver(&mut items, &mut refused, |_| 1, away).is_err());
        assert_eq!((items.len(), refused), (1, 1));
        // One that refuses everything fails, and what it was sent stays, in its order.
        let mut items: VecDeque<u32> = (0..2_000).collect();
        let mut asked = 0;
        let never = |_: &mut dyn Iterator<Item = &u32>| {
            asked += 1;
            Err(OTelSdkError::InternalFailure("gRPC code: ResourceExhausted".to_owned()))
        };
        assert!(deliver(&mut items, &mut refused, |_| 1, never).is_err());
        assert_eq!((items, refused), ((0..2_000).collect(), 1));
        assert!(asked < 30, "{asked}");
    }
}
