//! An LDAP directory or Active Directory: finds an admin, checks the password by a bind, and finds the groups.
//!
//! Who calls it: `auth::Authenticator`; `ldap_map`, which reads the domain map.
//! What it calls: ldap3.
//! What it never does: bind with an empty password (RFC 4513 section 5.1.2 makes that anonymous), follow a
//! referral unasked, or take a directory that does not answer for one that says no.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ldap3::adapters::{Adapter, EntriesOnly, PagedResults};
use ldap3::{
    Ldap, LdapConnAsync, LdapConnSettings, LdapError, ResultEntry, Scope, SearchEntry, SearchOptions,
};
use parking_lot::Mutex;
use portolan_config::checked::directory::{Directory, DirectoryKind, LdapUri, SearchScope};
use portolan_telemetry::metrics::SECONDS;
use prometheus_client::metrics::histogram::Histogram;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Logins at once; each has a connection of its own.
const LOGINS_AT_ONCE: usize = 32;
/// A server that does not answer is passed over for this long, doubled each time up to the last.
const BREAK_FIRST: Duration = Duration::from_secs(1);
const BREAK_LAST: Duration = Duration::from_secs(30);
/// A service account that is refused is tried again after this long: a directory may lock it for too many attempts.
const PROBE_REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// Groups of groups of groups are followed to this depth, and so many groups at most.
const NESTING_MAX: usize = 10;
const GROUPS_MAX: usize = 1_000;
/// Groups that one question asks about.
const GROUPS_ASKED_MAX: usize = 50;

/// Entries that are asked for at once (RFC 2696). Active Directory gives 1,000 at most.
const PAGE_ENTRIES: i32 = 500;

/// Result codes of RFC 4511 section 4.1.9.
const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
const REFERRAL: u32 = 10;
const NO_SUCH_OBJECT: u32 = 32;
const INVALID_CREDENTIALS: u32 = 49;

/// Servers that one server refers to, one after the other, and referrals in all for one login.
const REFERRALS_MAX: usize = 5;

/// Active Directory's rule for members of members.
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

/// The system's authorities, or those of the configuration, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS to directory {directory} cannot be set up")]
pub struct SetupError {
    directory: String,
    source: rustls::Error,
}

/// Why a directory has not admitted somebody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("there is nobody of that name")]
    Unknown,
    #[error("{0}")]
    Refused(String),
    /// The password was right, so the client may be told.
    #[error("{0}")]
    Barred(&'static str),
    /// Nobody knows: none of its servers has answered.
    #[error("{0}")]
    Away(String),
}

/// Who has proved to be who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// As the directory has it, however it was typed.
    pub(super) name: String,
    /// Of groups, in the form of [`same_form`].
    pub(super) groups: BTreeSet<String>,
    entry: Entry,
}

impl Found {
    /// The values of an attribute of its entry.
    pub(super) fn values(&self, attribute: &str) -> impl Iterator<Item = &str> {
        self.entry.values(attribute)
    }

    /// Is it a member of this group, named by its DN or by the value of the DN's first part?
    pub(super) fn is_member(&self, group: &str) -> bool {
        let wanted = same_form(group);
        if group.contains('=') {
            return self.groups.contains(&wanted);
        }
        self.groups.iter().any(|dn| {
            let first = dn.split(',').next().unwrap_or_default();
            first.split_once('=').is_some_and(|(_, value)| value == wanted)
        })
    }
}

/// Told what happens, step by step, for who asks why.
pub type Trace<'a> = &'a (dyn Fn(String) + Sync);

/// One search of many entries.
#[derive(Debug)]
pub struct Search {
    pub base: String,
    pub filter: String,
    pub attributes: Vec<String>,
}

#[derive(Debug)]
pub struct LdapDirectory {
    directory: Directory,
    /// The attribute of a grant that names domains is asked for with the entry.
    attributes: Vec<String>,
    tls: Arc<ClientConfig>,
    servers: Vec<Server>,
    turns: Semaphore,
    connections: TaskTracker,
    asked: Arc<Asked>,
}

/// How its servers fare, all together.
#[derive(Debug)]
pub struct Asked {
    pub seconds: Histogram,
    pub failures: AtomicU64,
}

#[derive(Debug)]
struct Server {
    uri: LdapUri,
    broken: Mutex<Broken>,
}

/// Where somebody is looked for.
#[derive(Debug, Clone)]
struct Place {
    uri: LdapUri,
    start_tls: bool,
    base: String,
}

/// What a server that was asked came to.
enum Answer {
    Decided(Result<Found, Failure>),
    /// It has not found anybody, and other servers may.
    Elsewhere(Vec<Place>),
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

    /// Whether this is news.
    fn has_failed(&self) -> bool {
        let mut broken = self.broken();
        let news = broken.until.is_none();
        broken.pause = (broken.pause * 2).clamp(BREAK_FIRST, BREAK_LAST);
        broken.until = Some(Instant::now() + broken.pause);
        news
    }

    fn has_answered(&self) -> bool {
        std::mem::take(&mut *self.broken()).until.is_some()
    }
}

/// What was typed, and its parts.
struct Typed<'a> {
    user: &'a str,
    local: &'a str,
    domain: &'a str,
}

impl<'a> Typed<'a> {
    /// `user@domain`, `DOMAIN\user` or a bare name.
    fn new(user: &'a str) -> Self {
        if let Some((local, domain)) = user.rsplit_once('@') {
            return Self { user, local, domain };
        }
        match user.split_once('\\') {
            Some((domain, local)) => Self { user, local, domain },
            None => Self { user, local: user, domain: "" },
        }
    }

    /// Fills a template in; `escape` makes a part harmless where it stands.
    fn fill(&self, template: &str, escape: impl Fn(&str) -> String) -> String {
        // One pass, so that what was typed is never taken for a placeholder.
        let mut filled = String::new();
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            filled.push_str(&rest[..at]);
            let (part, length) = match &rest[at..] {
                text if text.starts_with("{user}") => (self.user, "{user}".len()),
                text if text.starts_with("{local}") => (self.local, "{local}".len()),
                text if text.starts_with("{domain}") => (self.domain, "{domain}".len()),
                _ => ("{", 1),
            };
            filled.push_str(&if length == 1 { part.to_owned() } else { escape(part) });
            rest = &rest[at + length..];
        }
        filled + rest
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    dn: String,
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

    fn bytes(&self, attribute: &str) -> Option<Vec<u8>> {
        let wanted = attribute.to_ascii_lowercase();
        let binary = self.binary.iter().find(|(name, _)| *name == wanted);
        binary
            .and_then(|(_, values)| values.first().cloned())
            .or_else(|| self.values(attribute).next().map(|text| text.as_bytes().to_vec()))
    }
}

/// Ends a connection. A server that does not take the good bye closes it all the same.
async fn say_good_bye(mut ldap: Ldap) {
    drop(tokio::time::timeout(Duration::from_millis(200), ldap.unbind()).await);
}

/// What went wrong on the way to a server: try the next one.
#[derive(Debug, thiserror::Error)]
enum Trouble {
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

impl LdapDirectory {
    pub fn new(directory: &Directory, domain_attributes: &[String]) -> Result<Self, SetupError> {
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
        let mut attributes = vec![directory.user.name_attribute.clone()];
        if directory.kind == DirectoryKind::ActiveDirectory {
            attributes.extend(["primaryGroupID", "objectSid"].map(str::to_owned));
            attributes.extend(["userAccountControl", COMPUTED_CONTROL, "accountExpires"].map(str::to_owned));
        } else {
            attributes.extend(["uid", "pwdAccountLockedTime"].map(str::to_owned));
        }
        attributes.extend(domain_attributes.iter().cloned());
        let server = |uri: &LdapUri| Server { uri: uri.clone(), broken: Mutex::default() };
        Ok(Self {
            servers: directory.uris.iter().map(server).collect(),
            directory: directory.clone(),
            attributes,
            tls: Arc::new(tls),
            turns: Semaphore::new(LOGINS_AT_ONCE),
            connections: TaskTracker::new(),
            asked: Arc::new(Asked { seconds: Histogram::new(SECONDS), failures: AtomicU64::new(0) }),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.directory.name
    }

    /// Its servers, and which of them did not answer when they were asked last.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&str, bool)> {
        self.servers.iter().map(|server| (&*server.uri.text, server.broken().until.is_some()))
    }

    /// Checks a name and a password. `None` in place of the password: only looks, as far as that is possible.
    pub(super) async fn look_up(
        &self,
        typed: &str,
        password: Option<&str>,
        trace: Trace<'_>,
    ) -> Result<Found, Failure> {
        // An empty password would be an anonymous bind, which every directory grants.
        if password == Some("") || typed.contains('\0') {
            return Err(Failure::Refused("an empty password, or a name with NUL".to_owned()));
        }
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        // Those that have failed lately come last: they may be back, and nobody else is left.
        let (broken, good): (Vec<&Server>, Vec<&Server>) =
            self.servers.iter().partition(|server| server.is_broken());
        let mut troubles = Vec::new();
        for server in good.into_iter().chain(broken) {
            let start_tls = self.directory.start_tls && !server.uri.tls;
            let place = Place { uri: server.uri.clone(), start_tls, base: self.directory.user.base.clone() };
            let begun = Instant::now();
            match self.ask(&place, typed, password, trace).await {
                Ok(answer) => {
                    self.told(server, begun, None);
                    return match answer {
                        Answer::Decided(decided) => decided,
                        Answer::Elsewhere(places) => self.follow(places, typed, password, trace).await,
                    };
                }
                Err(trouble) => {
                    self.told(server, begun, Some(&trouble));
                    let cause = portolan_telemetry::chain(&trouble);
                    trace(format!("{}: {cause}", server.uri.text));
                    troubles.push(format!("{}: {cause}", server.uri.text));
                }
            }
        }
        Err(Failure::Away(troubles.join("; ")))
    }

    /// Asks each server whether it is there, as a login would begin: nobody may log in for hours, and then it must be
    /// known already.
    pub(super) async fn probe(&self) {
        for server in &self.servers {
            if server.broken().probe_after.is_some_and(|after| after > Instant::now()) {
                continue;
            }
            let begun = Instant::now();
            let probed = async {
                let mut ldap = self.connect(&server.uri, self.directory.start_tls && !server.uri.tls).await?;
                let bound = self.bind_service(&mut ldap, &|_| {}).await;
                say_good_bye(ldap).await;
                bound
            };
            let trouble = probed.await.err();
            self.told(server, begun, trouble.as_ref());
            if let Some(Trouble::Answer { .. }) = trouble {
                server.broken().probe_after = Some(Instant::now() + PROBE_REFUSED_PAUSE);
            }
        }
    }

    /// Notes how a server has fared, and tells when that is news.
    fn told(&self, server: &Server, begun: Instant, trouble: Option<&Trouble>) {
        self.asked.seconds.observe(begun.elapsed().as_secs_f64());
        let (directory, server_uri) = (self.name(), &*server.uri.text);
        let Some(trouble) = trouble else {
            if server.has_answered() {
                tracing::info!(directory, server = server_uri, "directory server is back");
            }
            return;
        };
        self.asked.failures.fetch_add(1, Ordering::Relaxed);
        if server.has_failed() {
            let cause = portolan_telemetry::chain(trouble);
            tracing::error!(directory, server = server_uri, cause, "directory server does not answer");
        }
    }

    /// Goes on counting where the directory of the same name before a reload has left off.
    pub(super) fn count_on(&mut self, before: &Self) {
        self.asked = Arc::clone(&before.asked);
    }

    pub(super) fn asked(&self) -> Arc<Asked> {
        Arc::clone(&self.asked)
    }

    /// All entries that some searches find, page by page, from the first server that answers all of them; what was taken from
    /// one that breaks off is dropped. `take` is told of which search an entry is.
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
        self.bind_service(ldap, &|_| {}).await?;
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

    async fn connect(&self, uri: &LdapUri, start_tls: bool) -> Result<Ldap, Trouble> {
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

    /// Asks where servers have referred to, until somebody is found.
    async fn follow(
        &self,
        places: Vec<Place>,
        typed: &str,
        password: Option<&str>,
        trace: Trace<'_>,
    ) -> Result<Found, Failure> {
        let mut pending = VecDeque::from(places);
        let mut troubles = Vec::new();
        for _ in 0..REFERRALS_MAX {
            let Some(place) = pending.pop_front() else { break };
            match self.ask(&place, typed, password, trace).await {
                Ok(Answer::Decided(Err(Failure::Unknown))) => {}
                Ok(Answer::Decided(decided)) => return decided,
                Ok(Answer::Elsewhere(more)) => pending.extend(more),
                Err(trouble) => {
                    troubles.push(format!("{}: {}", place.uri.text, portolan_telemetry::chain(&trouble)));
                }
            }
        }
        if !pending.is_empty() {
            troubles.push(format!("more than {REFERRALS_MAX} referrals"));
        }
        if troubles.is_empty() { Err(Failure::Unknown) } else { Err(Failure::Away(troubles.join("; "))) }
    }

    /// Where a referral leads (RFC 4516), never less protected than the directory itself.
    fn referred(&self, url: &str) -> Option<Place> {
        let url = url::Url::parse(url).ok()?;
        let tls = match url.scheme() {
            "ldap" => false,
            "ldaps" => true,
            _ => return None,
        };
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let text = format!("{}://{host}:{}", url.scheme(), url.port().unwrap_or(if tls { 636 } else { 389 }));
        let base = ldap3::get_url_params(&url).ok()?.base.into_owned();
        let base = if base.is_empty() { self.directory.user.base.clone() } else { base };
        let protected = self.directory.start_tls || self.directory.uris.iter().any(|uri| uri.tls);
        Some(Place { uri: LdapUri { text, tls }, start_tls: protected && !tls, base })
    }

    async fn within<T>(&self, asking: impl Future<Output = Result<T, LdapError>>) -> Result<T, Trouble> {
        let limit = self.directory.query_timeout;
        Ok(tokio::time::timeout(limit, asking).await.map_err(|_| Trouble::Slow(limit))??)
    }

    /// Asks one server all that is needed.
    async fn ask(
        &self,
        place: &Place,
        typed: &str,
        password: Option<&str>,
        trace: Trace<'_>,
    ) -> Result<Answer, Trouble> {
        let mut ldap = self.connect(&place.uri, place.start_tls).await?;
        trace(format!("{}: connected", place.uri.text));
        let answer = self.ask_over(&mut ldap, &place.base, typed, password, trace).await;
        say_good_bye(ldap).await;
        answer
    }

    async fn ask_over(
        &self,
        ldap: &mut Ldap,
        base: &str,
        typed: &str,
        password: Option<&str>,
        trace: Trace<'_>,
    ) -> Result<Answer, Trouble> {
        let typed = Typed::new(typed);
        let user = &self.directory.user;
        // Who asks: the service, nobody, or the admin itself.
        let as_user = match (&user.bind_as, password) {
            (Some(template), Some(password)) => {
                let escape = |part: &str| {
                    if template.contains('=') { ldap3::dn_escape(part).into_owned() } else { part.to_owned() }
                };
                let name = typed.fill(template, escape);
                if let Err(failure) = self.bind(ldap, &name, password, trace).await? {
                    return Ok(Answer::Decided(Err(failure)));
                }
                true
            }
            _ => {
                self.bind_service(ldap, trace).await?;
                false
            }
        };
        let filter = typed.fill(&user.filter, |part| ldap3::ldap_escape(part).into_owned());
        let (mut entries, referrals) =
            self.search(ldap, base, user.scope, &filter, &self.attributes, 2).await?;
        if entries.len() > 1 {
            trace(format!("{filter} below {base:?}: more than one entry"));
            let failure = Failure::Refused("more than one entry fits the name".to_owned());
            return Ok(Answer::Decided(Err(failure)));
        }
        let Some(entry) = entries.pop() else {
            trace(format!("{filter} below {base:?}: no entry"));
            for url in &referrals {
                let followed = if self.directory.follow_referrals { "followed" } else { "not followed" };
                trace(format!("referred to {url}: {followed}"));
            }
            let places: Vec<_> = referrals.iter().filter_map(|url| self.referred(url)).collect();
            return Ok(if self.directory.follow_referrals && !places.is_empty() {
                Answer::Elsewhere(places)
            } else {
                Answer::Decided(Err(Failure::Unknown))
            });
        };
        trace(format!("{filter} below {base:?}: {}", entry.dn));
        if let (None, Some(state)) = (password, state_of(&entry)) {
            trace(state.to_owned());
            return Ok(Answer::Decided(Err(Failure::Refused(state.to_owned()))));
        }
        if let (false, Some(password)) = (as_user, password) {
            if let Err(failure) = self.bind(ldap, &entry.dn, password, trace).await? {
                return Ok(Answer::Decided(Err(failure)));
            }
            if self.directory.service.is_some() {
                self.bind_service(ldap, trace).await?;
            }
        }
        // What was typed must not stand in for it: grants and certificates go by this name.
        let Some(name) = entry.values(&user.name_attribute).next().map(str::to_owned) else {
            let reason = format!("the entry has no {}, by which admins are named", user.name_attribute);
            trace(reason.clone());
            return Ok(Answer::Decided(Err(Failure::Refused(reason))));
        };
        let groups = self.groups(ldap, &entry).await?;
        for group in &groups {
            trace(format!("member of {group}"));
        }
        Ok(Answer::Decided(Ok(Found { name, groups, entry })))
    }

    /// Binds as an admin. A wrong password is an answer, not a trouble.
    async fn bind(
        &self,
        ldap: &mut Ldap,
        name: &str,
        password: &str,
        trace: Trace<'_>,
    ) -> Result<Result<(), Failure>, Trouble> {
        let result = self.within(ldap.simple_bind(name, password)).await?;
        match result.rc {
            SUCCESS => {
                trace(format!("bind as {name:?}: accepted"));
                Ok(Ok(()))
            }
            INVALID_CREDENTIALS | NO_SUCH_OBJECT => {
                let (reason, proven) =
                    account_state(&result.text).unwrap_or(("the directory refuses name or password", false));
                trace(format!("bind as {name:?}: refused: {reason}"));
                Ok(Err(if proven { Failure::Barred(reason) } else { Failure::Refused(reason.to_owned()) }))
            }
            code => Err(Trouble::Answer { what: "a bind", code, text: result.text }),
        }
    }

    async fn bind_service(&self, ldap: &mut Ldap, trace: Trace<'_>) -> Result<(), Trouble> {
        let Some(service) = &self.directory.service else { return Ok(()) };
        let result = self.within(ldap.simple_bind(&service.dn, service.password.expose())).await?;
        if result.rc != SUCCESS {
            return Err(Trouble::Answer { what: "the bind of bind_dn", code: result.rc, text: result.text });
        }
        trace(format!("bind as {:?}: accepted", service.dn));
        Ok(())
    }

    /// At most `most` entries, one more where there are more; and the URLs of servers that may know more.
    async fn search(
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

    /// The groups of an admin, with those that they are members of.
    async fn groups(&self, ldap: &mut Ldap, entry: &Entry) -> Result<BTreeSet<String>, Trouble> {
        match self.directory.kind {
            DirectoryKind::OpenLdap => self.groups_step_by_step(ldap, entry).await,
            DirectoryKind::ActiveDirectory => self.groups_in_chain(ldap, entry).await,
        }
    }

    /// Active Directory finds members of members itself; the primary group is not among `member`.
    async fn groups_in_chain(&self, ldap: &mut Ldap, entry: &Entry) -> Result<BTreeSet<String>, Trouble> {
        let groups = &self.directory.groups;
        let mut members = vec![entry.dn.clone()];
        let mut found = BTreeSet::new();
        if let (Some(sid), Some(primary)) = (entry.bytes("objectSid"), entry.values("primaryGroupID").next())
            && let (Some(domain), Ok(relative)) = (sid.len().checked_sub(4), primary.parse::<u32>())
        {
            // A group's SID is that of its domain with its own number at the end.
            let sid = [&sid[..domain], &relative.to_le_bytes()].concat();
            let escaped: String = sid.iter().map(|byte| format!("\\{byte:02x}")).collect();
            let filter = format!("(objectSid={escaped})");
            let (primary, _) =
                self.search(ldap, &groups.base, groups.scope, &filter, &no_attributes(), 1).await?;
            for group in primary {
                found.insert(same_form(&group.dn));
                members.push(group.dn);
            }
        }
        let rule = if groups.nested { format!(":{IN_CHAIN}:") } else { String::new() };
        let parts: String =
            members.iter().map(|dn| format!("(member{rule}={})", ldap3::ldap_escape(dn.as_str()))).collect();
        let filter = format!("(|{parts})");
        let (entries, _) =
            self.search(ldap, &groups.base, groups.scope, &filter, &no_attributes(), GROUPS_MAX).await?;
        found.extend(entries.iter().map(|group| same_form(&group.dn)));
        Ok(found)
    }

    /// Group entries with `member`, `uniqueMember` or `memberUid`; then the groups of those groups, and so on.
    async fn groups_step_by_step(&self, ldap: &mut Ldap, entry: &Entry) -> Result<BTreeSet<String>, Trouble> {
        let groups = &self.directory.groups;
        let mut found: BTreeSet<String> = BTreeSet::new();
        let uid = entry.values("uid").next().map(|uid| format!("(memberUid={})", ldap3::ldap_escape(uid)));
        let mut members = vec![entry.dn.clone()];
        let depth = if groups.nested { NESTING_MAX } else { 1 };
        for level in 0..depth {
            let mut next = Vec::new();
            for some in members.chunks(GROUPS_ASKED_MAX) {
                let mut parts: String = some
                    .iter()
                    .map(|dn| {
                        let dn = ldap3::ldap_escape(dn.as_str());
                        format!("(member={dn})(uniqueMember={dn})")
                    })
                    .collect();
                if level == 0 {
                    parts += uid.as_deref().unwrap_or_default();
                }
                let filter = format!("(|{parts})");
                let (entries, _) = self
                    .search(ldap, &groups.base, groups.scope, &filter, &no_attributes(), GROUPS_MAX)
                    .await?;
                for group in entries {
                    if found.len() < GROUPS_MAX && found.insert(same_form(&group.dn)) {
                        next.push(group.dn);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            members = next;
        }
        Ok(found)
    }
}

/// Asks for no attribute at all (RFC 4511 section 4.5.1.8).
fn no_attributes() -> Vec<String> {
    vec!["1.1".to_owned()]
}

/// DNs in one form: lower case, without blanks around their separators.
fn same_form(dn: &str) -> String {
    let parts = dn.split(',').map(|part| match part.split_once('=') {
        Some((name, value)) => format!("{}={}", name.trim(), value.trim()),
        None => part.trim().to_owned(),
    });
    parts.collect::<Vec<_>>().join(",").to_lowercase()
}

/// The URLs of a reference to other servers (RFC 4511 section 4.5.3).
fn urls(reference: ResultEntry) -> impl Iterator<Item = String> {
    let urls = reference.0.expect_constructed().unwrap_or_default();
    urls.into_iter().filter_map(|url| String::from_utf8(url.expect_primitive()?).ok())
}

/// Flags that Active Directory computes for an account, such as whether it is locked.
const COMPUTED_CONTROL: &str = "msDS-User-Account-Control-Computed";

/// What an entry says against its account, for where no bind asks the directory.
fn state_of(entry: &Entry) -> Option<&'static str> {
    let number = |attribute| entry.values(attribute).next().and_then(|text| text.parse::<i64>().ok());
    let flag = |attribute, flag| number(attribute).is_some_and(|flags| flags & flag != 0);
    // 100 ns since 1601; 0 and the greatest number are never.
    let expires = number("accountExpires").filter(|ticks| !matches!(*ticks, 0 | i64::MAX));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
    if flag("userAccountControl", 0x2) {
        Some("the account is disabled")
    } else if flag(COMPUTED_CONTROL, 0x10) || entry.values("pwdAccountLockedTime").next().is_some() {
        Some("the account is locked")
    } else if expires.is_some_and(|ticks| ticks / 10_000_000 - 11_644_473_600 < now) {
        Some("the account has expired")
    } else {
        None
    }
}

/// Why Active Directory refuses an account, which it says in the text of code 49; and whether it says so only to who
/// knows the password.
fn account_state(text: &str) -> Option<(&'static str, bool)> {
    let code = text.split("data ").nth(1)?.split([',', ' ', '\0']).next()?;
    match code {
        "525" => Some(("there is nobody of that name", false)),
        "52e" => Some(("the password is wrong", false)),
        "530" => Some(("the account may not log in at this hour", true)),
        "531" => Some(("the account may not log in from here", true)),
        "532" => Some(("the password has expired", true)),
        "533" => Some(("the account is disabled", true)),
        "701" => Some(("the account has expired", true)),
        "773" => Some(("the password must be changed first", true)),
        "775" => Some(("the account is locked", false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_is_harmless_in_filters_and_names() {
        let filter =
            |typed| Typed::new(typed).fill("(uid={user})", |part| ldap3::ldap_escape(part).into_owned());
        for (typed, filled) in [
            ("anna", "(uid=anna)"),
            ("*)(uid=*", "(uid=\\2a\\29\\28uid=\\2a)"),
            ("{user}{local}", "(uid={user}{local})"),
            ("a\\b", "(uid=a\\5cb)"),
        ] {
            assert_eq!(filter(typed), filled);
        }
        let name = |typed| {
            Typed::new(typed).fill("uid={local},ou=people", |part| ldap3::dn_escape(part).into_owned())
        };
        assert_eq!(name("anna,ou=admins"), "uid=anna\\2cou\\3dadmins,ou=people");
        assert_eq!(name("EXAMPLE\\anna"), "uid=anna,ou=people");
        assert_eq!(name("anna@example.org"), "uid=anna,ou=people");
    }

    #[test]
    fn groups_are_known_by_dn_and_by_name() {
        let groups = BTreeSet::from([same_form("CN=Backup Admins, OU=Groups,DC=example,DC=org")]);
        let entry = Entry { dn: String::new(), text: Vec::new(), binary: Vec::new() };
        let found = Found { name: "anna".into(), groups, entry };
        for group in ["cn=backup admins,ou=groups,dc=example,dc=org", "Backup Admins", "backup admins"] {
            assert!(found.is_member(group), "{group}");
        }
        for group in
            ["cn=backup admins", "backup", "groups", "", "cn=backup admins,ou=groups,dc=example,dc=net"]
        {
            assert!(!found.is_member(group), "{group}");
        }
    }

    #[test]
    fn states_of_accounts_are_read_from_the_text() {
        let text = "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 533, v1db1";
        assert_eq!(account_state(text), Some(("the account is disabled", true)));
        assert_eq!(account_state("invalid credentials"), None);
    }
}
