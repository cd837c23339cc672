//! The servers of one LDAP directory: connections, fail-over, searches.
//!
//! Who calls it: `auth::directory`, for logins; `map::directory`, which reads the domain map.
//! What it calls: ldap3.
//! What it never does: follow a referral by itself, or take a directory that does not answer for one that says no.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ldap3::adapters::{Adapter, EntriesOnly, PagedResults};
use ldap3::{
    Ldap, LdapConnAsync, LdapConnSettings, LdapError, ResultEntry, Scope, SearchEntry, SearchOptions,
};
use parking_lot::Mutex;
use portolan_config::checked::directory::{Directory, DirectoryKind, LdapUri, SearchScope};
use portolan_telemetry::metrics::SECONDS;
use prometheus_client::metrics::histogram::Histogram;
use rustls::{ClientConfig, RootCertStore};
use tokio_util::task::TaskTracker;

/// A server that does not answer is passed over for this long, doubled each time up to the last.
const BREAK_FIRST: Duration = Duration::from_secs(1);
const BREAK_LAST: Duration = Duration::from_secs(30);
/// A service account that is refused is tried again after this long: a directory may lock it for too many attempts.
const PROBE_REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// Entries that are asked for at once (RFC 2696). Active Directory gives 1,000 at most.
const PAGE_ENTRIES: i32 = 500;

/// Result codes of RFC 4511 section 4.1.9.
pub(crate) const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
pub(crate) const REFERRAL: u32 = 10;
pub(crate) const NO_SUCH_OBJECT: u32 = 32;
pub(crate) const INVALID_CREDENTIALS: u32 = 49;
pub(crate) const INSUFFICIENT_ACCESS: u32 = 50;
pub(crate) const UNWILLING: u32 = 53;

/// Referrals of one search that are kept, and that one login follows in all.
pub(crate) const REFERRALS_MAX: usize = 5;

/// The system's authorities, or those of the configuration, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS to directory {directory} cannot be set up")]
pub struct SetupError {
    directory: String,
    source: rustls::Error,
}

/// One search of many entries.
#[derive(Debug)]
pub struct Search {
    pub base: String,
    pub filter: String,
    pub attributes: Vec<String>,
}

/// A directory, as one of its clients.
#[derive(Debug)]
pub struct LdapClient {
    pub(crate) directory: Directory,
    tls: Arc<ClientConfig>,
    servers: Vec<Server>,
    connections: TaskTracker,
    asked: Arc<Asked>,
}

/// How its servers fare, all together.
#[derive(Debug)]
pub struct Asked {
    pub seconds: Histogram,
    pub failures: AtomicU64,
}

/// One server of a directory.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) uri: LdapUri,
    broken: Mutex<Broken>,
}

#[derive(Debug, Default)]
struct Broken {
    until: Option<Instant>,
    pause: Duration,
    /// It has refused a probe, which is not repeated before.
    probe_after: Option<Instant>,
}

impl Server {
    fn broken(&self) -> parking_lot::MutexGuard<'_, Broken> {
        self.broken.lock()
    }

    fn is_broken(&self) -> bool {
        self.broken().until.is_some_and(|until| until > Instant::now())
    }

    /// Passes it over for a while; whether that is news.
    fn note_failure(&self) -> bool {
        let mut broken = self.broken();
        let news = broken.until.is_none();
        broken.pause = (broken.pause * 2).clamp(BREAK_FIRST, BREAK_LAST);
        broken.until = Some(Instant::now() + broken.pause);
        news
    }

    /// Takes it back into use; whether that is news.
    fn note_answer(&self) -> bool {
        std::mem::take(&mut *self.broken()).until.is_some()
    }
}

/// An entry that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub(crate) dn: String,
    /// Values that are text, by attribute in lower case.
    text: Vec<(String, Vec<String>)>,
    binary: Vec<(String, Vec<Vec<u8>>)>,
}

impl Entry {
    fn new(found: SearchEntry) -> Self {
        let lower = |(name, values): (String, _)| (name.to_ascii_lowercase(), values);
        let text =
            found.attrs.into_iter().map(|(name, values)| (name.to_ascii_lowercase(), values)).collect();
        Self { dn: found.dn, text, binary: found.bin_attrs.into_iter().map(lower).collect() }
    }

    /// The values of an attribute that are text.
    pub fn values(&self, attribute: &str) -> impl Iterator<Item = &str> {
        let wanted = attribute.to_ascii_lowercase();
        let found = self.text.iter().find(move |(name, _)| *name == wanted);
        found.into_iter().flat_map(|(_, values)| values.iter().map(String::as_str))
    }

    pub(crate) fn bytes(&self, attribute: &str) -> Option<Vec<u8>> {
        let wanted = attribute.to_ascii_lowercase();
        let binary = self.binary.iter().find(|(name, _)| *name == wanted);
        binary
            .and_then(|(_, values)| values.first().cloned())
            .or_else(|| self.values(attribute).next().map(|text| text.as_bytes().to_vec()))
    }
}

/// Ends a connection. A server that does not take the good bye closes it all the same.
pub(crate) async fn say_good_bye(mut ldap: Ldap) {
    drop(tokio::time::timeout(Duration::from_millis(200), ldap.unbind()).await);
}

/// What went wrong on the way to a server: try the next one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Ldap(#[from] LdapError),
    #[error("no answer in {0:?}")]
    Slow(Duration),
    #[error(
        "its size limit is less than the map has; it must let bind_dn read all (slapd: limits ... size.prtotal)"
    )]
    Limited,
    #[error("a part of it lies elsewhere, at {0}, and the map would lack that")]
    Elsewhere(String),
    #[error("it answers {what} with code {code}: {text}")]
    Answer { what: &'static str, code: u32, text: String },
}

impl LdapClient {
    pub fn new(directory: &Directory) -> Result<Self, SetupError> {
        let setup = |source| SetupError { directory: directory.name.clone(), source };
        let mut roots = RootCertStore::empty();
        match &directory.ca {
            Some(anchors) => {
                for certificate in &anchors.certificates {
                    roots.add(certificate.clone()).map_err(setup)?;
                }
            }
            // Those that the system cannot read are as good as absent.
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(setup)?
            .with_root_certificates(roots);
        let tls = match &directory.identity {
            Some(identity) => {
                builder.with_client_auth_cert(identity.chain.clone(), identity.key()).map_err(setup)?
            }
            None => builder.with_no_client_auth(),
        };
        let server = |uri: &LdapUri| Server { uri: uri.clone(), broken: Mutex::default() };
        Ok(Self {
            servers: directory.uris.iter().map(server).collect(),
            directory: directory.clone(),
            tls: Arc::new(tls),
            connections: TaskTracker::new(),
            asked: Arc::new(Asked { seconds: Histogram::new(SECONDS), failures: AtomicU64::new(0) }),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.directory.name
    }

    /// Its servers, and which of them did not answer when they were asked last.
    pub(crate) fn servers(&self) -> impl Iterator<Item = (&str, bool)> {
        self.servers.iter().map(|server| (&*server.uri.text, server.broken().until.is_some()))
    }

    /// All servers in the order to ask them. Those that have failed lately come last: they may be back, and nobody
    /// else is left.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &Server> {
        let (broken, good): (Vec<&Server>, Vec<&Server>) =
            self.servers.iter().partition(|server| server.is_broken());
        good.into_iter().chain(broken)
    }

    /// Asks each server whether it is there, as a login would begin: nobody may log in for hours, and then it must be
    /// known already.
    pub(crate) async fn probe(&self) {
        for server in &self.servers {
            if server.broken().probe_after.is_some_and(|after| after > Instant::now()) {
                continue;
            }
            let begun = Instant::now();
            let probed = async {
                let mut ldap = self.connect(&server.uri, self.directory.start_tls && !server.uri.tls).await?;
                let bound = self.bind_service(&mut ldap).await.map(drop);
                say_good_bye(ldap).await;
                bound
            };
            let trouble = probed.await.err();
            self.note(server, begun, trouble.as_ref());
            if let Some(Trouble::Answer { .. }) = trouble {
                server.broken().probe_after = Some(Instant::now() + PROBE_REFUSED_PAUSE);
            }
        }
    }

    /// Counts a login that was not decided, which says nothing of the server.
    pub(crate) fn count_undecided(&self) {
        self.asked.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how a server has fared, and logs it when that is news. Only what its service account met counts, never the
    /// account of somebody who logs in.
    pub(crate) fn note(&self, server: &Server, begun: Instant, trouble: Option<&Trouble>) {
        self.asked.seconds.observe(begun.elapsed().as_secs_f64());
        let (directory, server_uri) = (self.name(), &*server.uri.text);
        let Some(trouble) = trouble else {
            if server.note_answer() {
                tracing::info!(directory, server = server_uri, "directory server is back");
            }
            return;
        };
        self.asked.failures.fetch_add(1, Ordering::Relaxed);
        if server.note_failure() {
            let cause = portolan_telemetry::chain(trouble);
            tracing::error!(directory, server = server_uri, cause, "directory server does not answer");
        }
    }

    /// Goes on counting where the directory of the same name before a reload has left off.
    pub(crate) fn count_on(&mut self, before: &Self) {
        self.asked = Arc::clone(&before.asked);
    }

    pub(crate) fn asked(&self) -> Arc<Asked> {
        Arc::clone(&self.asked)
    }

    /// All entries that some searches find, page by page, from the first server that answers all of them; what was
    /// taken from one that breaks off is dropped. `take` gets the index of the search with each entry.
    pub async fn read_all<T: Default>(
        &self,
        searches: &[Search],
        take: impl Fn(&mut T, usize, &Entry),
    ) -> Result<T, String> {
        let mut troubles = Vec::new();
        for server in &self.servers {
            let uri = &server.uri;
            let trouble = match self.connect(uri, self.directory.start_tls && !uri.tls).await {
                Ok(mut ldap) => {
                    let read = self.read_pages(&mut ldap, searches, &take).await;
                    say_good_bye(ldap).await;
                    match read {
                        Ok(read) => return Ok(read),
                        Err(trouble) => trouble,
                    }
                }
                Err(trouble) => trouble,
            };
            troubles.push(format!("{}: {}", uri.text, portolan_telemetry::chain(&trouble)));
        }
        Err(troubles.join("; "))
    }

    async fn read_pages<T: Default>(
        &self,
        ldap: &mut Ldap,
        searches: &[Search],
        take: &impl Fn(&mut T, usize, &Entry),
    ) -> Result<T, Trouble> {
        self.bind_service(ldap).await?;
        let mut read = T::default();
        for (which, Search { base, filter, attributes }) in searches.iter().enumerate() {
            let adapters: Vec<Box<dyn Adapter<'_, _, _>>> =
                vec![Box::new(EntriesOnly::new()), Box::new(PagedResults::new(PAGE_ENTRIES))];
            let begin =
                ldap.streaming_search_with(adapters, base, Scope::Subtree, filter, attributes.clone());
            let mut stream = self.within(begin).await?;
            while let Some(found) = self.within(stream.next()).await? {
                take(&mut read, which, &Entry::new(SearchEntry::construct(found)));
            }
            let result = self.within(async { Ok(stream.finish().await) }).await?;
            // A limit of the directory is no end: the map would lack what follows.
            if result.rc == SIZE_LIMIT_EXCEEDED {
                return Err(Trouble::Limited);
            }
            if result.rc != SUCCESS {
                return Err(Trouble::Answer { what: "a search", code: result.rc, text: result.text });
            }
            // Active Directory refers to parts of itself at the top of each domain.
            if !result.refs.is_empty() && self.directory.kind == DirectoryKind::OpenLdap {
                return Err(Trouble::Elsewhere(result.refs.join(", ")));
            }
        }
        Ok(read)
    }

    pub(crate) async fn connect(&self, uri: &LdapUri, start_tls: bool) -> Result<Ldap, Trouble> {
        let limit = self.directory.connect_timeout;
        let settings = LdapConnSettings::new().set_config(Arc::clone(&self.tls)).set_starttls(start_tls);
        let connecting = LdapConnAsync::with_settings(settings, &uri.text);
        let (connection, ldap) =
            tokio::time::timeout(limit, connecting).await.map_err(|_| Trouble::Slow(limit))??;
        // Ends when `ldap` is dropped.
        self.connections.spawn(async move {
            if let Err(error) = connection.drive().await {
                tracing::debug!(%error, "a connection to a directory ended");
            }
        });
        Ok(ldap)
    }

    pub(crate) async fn within<T>(
        &self,
        asking: impl Future<Output = Result<T, LdapError>>,
    ) -> Result<T, Trouble> {
        let limit = self.directory.query_timeout;
        Ok(tokio::time::timeout(limit, asking).await.map_err(|_| Trouble::Slow(limit))??)
    }

    /// Binds with the account of the configuration, where there is one; its DN.
    pub(crate) async fn bind_service(&self, ldap: &mut Ldap) -> Result<Option<&str>, Trouble> {
        let Some(service) = &self.directory.service else { return Ok(None) };
        let result = self.within(ldap.simple_bind(&service.dn, service.password.expose())).await?;
        if result.rc != SUCCESS {
            return Err(Trouble::Answer { what: "the bind of bind_dn", code: result.rc, text: result.text });
        }
        Ok(Some(&service.dn))
    }

    /// At most `most` entries, one more where there are more; and the URLs of servers that may know more.
    pub(crate) async fn search(
        &self,
        ldap: &mut Ldap,
        base: &str,
        scope: SearchScope,
        filter: &str,
        attributes: &[String],
        most: usize,
    ) -> Result<(Vec<Entry>, Vec<String>), Trouble> {
        let scope = match scope {
            SearchScope::Base => Scope::Base,
            SearchScope::OneLevel => Scope::OneLevel,
            SearchScope::Subtree => Scope::Subtree,
        };
        let options = SearchOptions::new().sizelimit(i32::try_from(most).unwrap_or(i32::MAX));
        let searching = async {
            let mut stream = ldap
                .with_search_options(options)
                .streaming_search(base, scope, filter, attributes.to_vec())
                .await?;
            let (mut entries, mut referrals) = (Vec::new(), Vec::new());
            while let Some(found) = stream.next().await? {
                if found.is_ref() {
                    referrals.extend(urls(found).take(REFERRALS_MAX - referrals.len().min(REFERRALS_MAX)));
                } else if !found.is_intermediate() && entries.len() <= most {
                    entries.push(Entry::new(SearchEntry::construct(found)));
                }
            }
            Ok((entries, referrals, stream.finish().await))
        };
        let (entries, mut referrals, result) = self.within(searching).await?;
        match result.rc {
            SUCCESS | SIZE_LIMIT_EXCEEDED => Ok((entries, referrals)),
            NO_SUCH_OBJECT => Ok((Vec::new(), Vec::new())),
            REFERRAL if self.directory.follow_referrals => {
                referrals.extend(result.refs.into_iter().take(REFERRALS_MAX));
                Ok((entries, referrals))
            }
            code => Err(Trouble::Answer { what: "a search", code, text: result.text }),
        }
    }
}

/// The URLs of a reference to other servers (RFC 4511 section 4.5.3).
fn urls(reference: ResultEntry) -> impl Iterator<Item = String> {
    let urls = reference.0.expect_constructed().unwrap_or_default();
    urls.into_iter().filter_map(|url| String::from_utf8(url.expect_primitive()?).ok())
}
