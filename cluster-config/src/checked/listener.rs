//! A listener: an address that FTP clients connect to, and all that holds there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::DnsName;

use super::access::{AccessList, Bandwidth, Errors, Limits, Scope};
use super::agent::socket_address;
use super::tls::{Anchors, Identity};
use super::{Checker, span};
use crate::certificate::CertificateName;
use crate::raw;
use crate::units::{Addresses, PortRange};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Distinct; the address, with a number behind it where several let the system choose their port. What a
    /// reload knows it by.
    pub name: String,
    pub address: SocketAddr,
    pub engine: Engine,
    /// The lines of the greeting; at least one.
    pub banner: Vec<String>,
    pub tls: Tls,
    pub session_reuse: SessionReuse,
    pub close_notify: CloseNotify,
    /// Whether PORT and EPRT are served.
    pub active: bool,
    pub ascii: Ascii,
    /// Whether MODE Z is served.
    pub mode_z: bool,
    pub passive_ports: PortRange,
    /// Many sessions wait at each of them at once.
    pub passive_ports_shared: bool,
    /// The address that PASV names; `None`: the one the client connected to.
    pub passive_address: Option<PassiveHost>,
    /// The same for some clients; the first that fits counts.
    pub passive_addresses: Vec<(Addresses, PassiveHost)>,
    pub proxy_protocol: ProxyProtocol,
    pub idle_timeout: Duration,
    /// From the greeting to the login.
    pub login_timeout: Duration,
    /// Of a TLS handshake, and of a header of the PROXY protocol.
    pub handshake_timeout: Duration,
    /// `None`: everybody may connect.
    pub access: Option<AccessList>,
    pub limits: Limits,
    pub errors: Errors,
    /// Of all its sessions together.
    pub bandwidth: Bandwidth,
    pub session_bandwidth: Bandwidth,
}

/// Whether two would listen at the same port of the same address.
pub fn ports_meet((address, ports): (IpAddr, PortRange), (other, others): (IpAddr, PortRange)) -> bool {
    let meet = address == other || address.is_unspecified() || other.is_unspecified();
    meet && ports.overlaps(others)
}

impl Listener {
    /// Both would listen at the same passive ports, and one of them for as long as it is there.
    pub fn competes_with(&self, other: &Self) -> bool {
        let shares = self.passive_ports_shared || other.passive_ports_shared;
        let at = |listener: &Self| (listener.address.ip(), listener.passive_ports);
        shares && ports_meet(at(self), at(other))
    }
}

/// Which implementation of the FTP protocol serves a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Ours.
    Native,
    /// The library's.
    Libunftp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    Off,
    /// AUTH TLS (RFC 4217).
    Explicit(TlsSettings),
    /// TLS from the first byte on; data is protected unless the client says PROT C.
    Implicit(TlsSettings),
}

impl Tls {
    pub fn settings(&self) -> Option<&TlsSettings> {
        match self {
            Tls::Off => None,
            Tls::Explicit(settings) | Tls::Implicit(settings) => Some(settings),
        }
    }

    pub fn settings_mut(&mut self) -> Option<&mut TlsSettings> {
        match self {
            Tls::Off => None,
            Tls::Explicit(settings) | Tls::Implicit(settings) => Some(settings),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// At least one; the first is shown where no name is asked for, or one that none of them has.
    pub identities: Vec<Identity>,
    /// Refuses logins in plaintext. With implicit TLS there are none.
    pub login_required: bool,
    /// Refuses data in plaintext.
    pub data_required: bool,
    pub versions: TlsVersions,
    pub client: ClientCertificate,
    pub certificate_login: CertificateLogin,
    pub certificate_name: CertificateName,
}

/// At least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsVersions {
    pub v1_2: bool,
    pub v1_3: bool,
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificate {
    Off,
    /// One that is shown must be valid.
    Optional(Anchors),
    Required(Anchors),
}

/// What the certificate of a client means for its login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateLogin {
    /// Nothing.
    Off,
    /// It takes the place of the password of the admin that it names.
    OrPassword,
    /// It must name the admin, who gives the password too.
    AndPassword,
    /// It must name the admin, and there are no passwords.
    Alone,
}

/// Whether a data connection must resume the TLS session of its control connection, which proves that both
/// have the same client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionReuse {
    Off,
    /// A client that offers to resume a session must offer one of its own.
    MatchIfOffered,
    Require,
}

/// What the end of an upload over TLS without the closing alert (RFC 8446 section 6.1) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseNotify {
    /// It was cut off: nothing is stored.
    Required,
    /// It is complete, as without TLS.
    Optional,
}

/// What TYPE A does to files, also where the client has said no TYPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ascii {
    /// There is none: files go as TYPE I, or not at all.
    Refuse,
    /// Nothing. A client that converts on its side alters files all the same.
    Verbatim,
    /// Line ends become CR LF on the way out and LF on the way in (RFC 959 section 3.1.1.1).
    Convert,
}

/// What PASV names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PassiveHost {
    Address(Ipv4Addr),
    /// Resolved again and again.
    Name(String),
}

impl std::str::FromStr for PassiveHost {
    type Err = crate::units::Allowed;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = crate::units::Allowed("an IPv4 address that clients can reach, or a DNS name");
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return if address.is_unspecified() { Err(allowed) } else { Ok(Self::Address(address)) };
        }
        // What looks like a broken IPv4 address is not a name.
        if DnsName::try_from(text).is_ok() {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(allowed)
    }
}

/// How a load balancer tells whom it speaks for (HAProxy's PROXY protocol, versions 1 and 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Connections from here begin with a header; all others are the clients' own. Empty: there is none.
    pub trusted: Vec<Addresses>,
    pub data: ProxiedData,
}

/// How the data connections of a client come that is behind a load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxiedData {
    /// From the client itself.
    Direct,
    /// Through the balancer, with a header.
    Header,
    /// Through the balancer, without a header: any client of the balancer could be at the other end.
    Bare,
}

/// What the listeners inherit from the scopes around them.
pub(super) struct Inherited {
    pub(super) access: Option<AccessList>,
    pub(super) limits: Limits,
    pub(super) errors: Errors,
}

const GREETING: &str = "Portolan ready.";
/// Lines of a banner, and bytes of each, at most.
const BANNER_LINES_MAX: usize = 20;
const BANNER_LINE_BYTES_MAX: usize = 500;
/// Entries of the lists of a listener at most.
const LIST_MAX: usize = 1_000;

/// All listeners that are enabled.
pub(super) fn listeners(
    raw: &[raw::Listener],
    checker: &mut Checker,
    inherited: &Inherited,
) -> Option<Vec<Listener>> {
    if raw.is_empty() {
        checker.fault(None, "listeners", "at least one [[listeners]] is required");
    }
    let mut names = BTreeSet::new();
    let mut checked = Vec::new();
    let mut disabled = 0;
    for (index, raw) in raw.iter().enumerate() {
        let enable = checker.optional(&raw.enable, &format!("listeners[{index}].enable"));
        let enable = enable.copied().unwrap_or(true);
        disabled += usize::from(!enable);
        let key = format!("listeners[{index}].address");
        checker.required(&raw.address, &key);
        let address = socket_address(checker, &raw.address, &key);
        let mut name = address.map(|address| address.to_string()).unwrap_or_default();
        if let Some(address) = address
            && !names.insert(name.clone())
        {
            if address.port() != 0 {
                checker.fault(span(&raw.address), &key, "another listener has this address");
            }
            name = format!("{name}#{index}");
        }
        let Some(listener) = listener(raw, index, (name, address), checker, inherited) else { continue };
        if enable {
            if let Some(other) = checked.iter().find(|other: &&Listener| other.competes_with(&listener)) {
                let message = format!(
                    "overlaps with the ports of {}, and one of the two shares them (passive_ports_shared); each needs \
                     ports of its own",
                    other.name
                );
                checker.fault(
                    span(&raw.passive_ports),
                    &format!("listeners[{index}].passive_ports"),
                    message,
                );
            }
            checked.push(listener);
        }
    }
    if !raw.is_empty() && disabled == raw.len() {
        checker.fault(None, "listeners", "none of them is enabled; at least one must be");
    }
    Some(checked)
}

fn listener(
    raw: &raw::Listener,
    index: usize,
    (name, address): (String, Option<SocketAddr>),
    checker: &mut Checker,
    inherited: &Inherited,
) -> Option<Listener> {
    let key = |name: &str| format!("listeners[{index}].{name}");
    let engines = [("native", Engine::Native), ("libunftp", Engine::Libunftp)];
    let engine = checker.choice(&raw.engine, &key("engine"), &engines, Engine::Native);
    let banner = banner(raw, &key("banner"), checker);
    let tls = tls(raw, index, checker, address);
    let reuses = [
        ("off", SessionReuse::Off),
        ("match-if-offered", SessionReuse::MatchIfOffered),
        ("require", SessionReuse::Require),
    ];
    let session_reuse =
        checker.choice(&raw.session_reuse, &key("session_reuse"), &reuses, SessionReuse::MatchIfOffered);
    let notifies = [("required", CloseNotify::Required), ("optional", CloseNotify::Optional)];
    let close_notify =
        checker.choice(&raw.close_notify, &key("close_notify"), &notifies, CloseNotify::Required);
    let mode_z = checker.optional(&raw.mode_z, &key("mode_z")).copied().unwrap_or(false);
    let active = checker.optional(&raw.active, &key("active")).copied().unwrap_or(false);
    let asciis = [("refuse", Ascii::Refuse), ("verbatim", Ascii::Verbatim), ("convert", Ascii::Convert)];
    let ascii = checker.choice(&raw.ascii, &key("ascii"), &asciis, Ascii::Refuse);
    let passive_ports = checker
        .parse::<PortRange>(&raw.passive_ports, &key("passive_ports"))
        .unwrap_or(PortRange { first: 50_000, last: 50_999 });
    let passive_ports_shared =
        checker.optional(&raw.passive_ports_shared, &key("passive_ports_shared")).copied().unwrap_or(false);
    // Empty as a variable of the environment is that says nothing.
    let is_said = |field: &raw::Text| field.as_ref().is_some_and(|field| field.value.as_deref() != Ok(""));
    let passive_address = if is_said(&raw.passive_address) {
        checker.parse::<PassiveHost>(&raw.passive_address, &key("passive_address"))
    } else {
        None
    };
    let passive_addresses = passive_addresses(&raw.passive_addresses, &key("passive_addresses"), checker);
    let proxy_protocol = proxy_protocol(&raw.proxy_protocol, &key("proxy_protocol"), checker);
    if engine == Engine::Libunftp {
        only_native(raw, index, checker, tls.as_ref(), &proxy_protocol);
    }
    if proxy_protocol.data == ProxiedData::Direct
        && raw.proxy_protocol.data.is_some()
        && !is_said(&raw.passive_address)
        && raw.passive_addresses.is_empty()
    {
        let message = "required with proxy_protocol.data = \"direct\": PASV would name the balancer";
        checker.fault(span(&raw.proxy_protocol.data), &key("passive_address"), message);
    }
    if passive_ports_shared
        && proxy_protocol.data == ProxiedData::Bare
        && raw.proxy_protocol.data.is_some()
        && session_reuse != SessionReuse::Require
    {
        let message = "required with passive_ports_shared and proxy_protocol.data = \"bare\": nothing else tells whose a \
                       connection is; allowed: \"require\"";
        checker.fault(span(&raw.session_reuse), &key("session_reuse"), message);
    }
    if passive_ports_shared
        && proxy_protocol.data == ProxiedData::Bare
        && raw.proxy_protocol.data.is_some()
        && !tls.as_ref().is_some_and(|tls| tls.settings().is_some_and(|settings| settings.data_required))
    {
        let message = "true is required with passive_ports_shared and proxy_protocol.data = \"bare\": without TLS nothing \
                       tells whose a connection is";
        checker.fault(span(&raw.tls_data_required), &key("tls_data_required"), message);
    }
    let idle_timeout = checker.duration(&raw.idle_timeout, &key("idle_timeout"), 10, 86_400, 300);
    let login_timeout = checker.duration(&raw.login_timeout, &key("login_timeout"), 5, 600, 60);
    let handshake_timeout = checker.duration(&raw.handshake_timeout, &key("handshake_timeout"), 1, 300, 30);
    let own = checker.access(&raw.access, &key("access"), Scope::Listener);
    let limits = checker.limits(&raw.limits, &key("limits"), Limits::default());
    checker.nested((&raw.limits, limits, &key("limits")), (inherited.limits, "ftp.limits"));
    let errors = checker.errors(&raw.errors, &key("errors"), inherited.errors);
    let bandwidth = checker.bandwidth(&raw.bandwidth, &key("bandwidth"));
    let session_bandwidth = checker.bandwidth(&raw.session_bandwidth, &key("session_bandwidth"));
    Some(Listener {
        name,
        address: address?,
        engine,
        banner,
        tls: tls?,
        session_reuse,
        close_notify,
        active,
        ascii,
        mode_z,
        passive_ports,
        passive_ports_shared,
        passive_address,
        passive_addresses,
        proxy_protocol,
        idle_timeout,
        login_timeout,
        handshake_timeout,
        access: own.or_else(|| inherited.access.clone()),
        limits,
        errors,
        bandwidth,
        session_bandwidth,
    })
}

fn banner(raw: &raw::Listener, key: &str, checker: &mut Checker) -> Vec<String> {
    let Some(text) = checker.optional(&raw.banner, key) else { return vec![GREETING.to_owned()] };
    let lines: Vec<String> = text.trim_end().lines().map(str::to_owned).collect();
    let fits = |line: &String| line.len() <= BANNER_LINE_BYTES_MAX && !line.chars().any(char::is_control);
    if !(1..=BANNER_LINES_MAX).contains(&lines.len()) || !lines.iter().all(fits) {
        let message = format!(
            "not a banner; allowed: 1 to {BANNER_LINES_MAX} lines of at most {BANNER_LINE_BYTES_MAX} bytes, \
             without control characters"
        );
        checker.fault(span(&raw.banner), key, message);
    }
    lines
}

fn passive_addresses(
    raw: &[raw::PassiveAddress],
    key: &str,
    checker: &mut Checker,
) -> Vec<(Addresses, PassiveHost)> {
    let mut all = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let (clients_key, address_key) =
            (format!("{key}[{index}].clients"), format!("{key}[{index}].address"));
        checker.required(&raw.clients, &clients_key);
        checker.required(&raw.address, &address_key);
        let clients = checker.parse::<Addresses>(&raw.clients, &clients_key);
        let address = checker.parse::<PassiveHost>(&raw.address, &address_key);
        all.extend(clients.zip(address));
    }
    if raw.len() > LIST_MAX {
        checker.fault(None, key, format!("{} entries; allowed: {LIST_MAX}", raw.len()));
    }
    all
}

fn proxy_protocol(raw: &raw::ProxyProtocol, key: &str, checker: &mut Checker) -> ProxyProtocol {
    let trusted_key = format!("{key}.trusted");
    let mut trusted = Vec::new();
    for text in checker.optional(&raw.trusted, &trusted_key).into_iter().flatten() {
        match text.parse::<Addresses>() {
            Ok(addresses) if addresses.is_everybody() => {
                let message = format!(
                    "{text:?} would let every client name any address; allowed: the balancers' addresses"
                );
                checker.fault(span(&raw.trusted), &trusted_key, message);
            }
            Ok(addresses) => trusted.push(addresses),
            Err(error) => {
                checker.fault(span(&raw.trusted), &trusted_key, format!("{text:?} is not valid; {error}"));
            }
        }
    }
    let ways =
        [("direct", ProxiedData::Direct), ("header", ProxiedData::Header), ("bare", ProxiedData::Bare)];
    let data_key = format!("{key}.data");
    let data = checker.choice(&raw.data, &data_key, &ways, ProxiedData::Direct);
    match (raw.trusted.is_some(), raw.data.is_some()) {
        (false, true) => checker.fault(span(&raw.data), &data_key, "of no use without trusted"),
        (true, false) => {
            let message = "required with trusted: \"header\", \"bare\" or \"direct\"";
            checker.fault(span(&raw.trusted), &data_key, message);
        }
        _ => {}
    }
    ProxyProtocol { trusted, data }
}

/// What the library cannot do must not be asked of it.
fn only_native(
    raw: &raw::Listener,
    index: usize,
    checker: &mut Checker,
    tls: Option<&Tls>,
    proxy_protocol: &ProxyProtocol,
) {
    let key = |name: &str| format!("listeners[{index}].{name}");
    let message = "engine = \"libunftp\" cannot do this; engine = \"native\" can";
    if let Some(Tls::Implicit { .. }) = tls {
        checker.fault(span(&raw.tls), &key("tls"), message);
    }
    for (text, name) in [
        (&raw.session_reuse, "session_reuse"),
        (&raw.close_notify, "close_notify"),
        (&raw.ascii, "ascii"),
        (&raw.certificate_login, "certificate_login"),
    ] {
        if text.is_some() {
            checker.fault(span(text), &key(name), message);
        }
    }
    for (flag, name) in [
        (&raw.active, "active"),
        (&raw.mode_z, "mode_z"),
        (&raw.passive_ports_shared, "passive_ports_shared"),
    ] {
        if flag.is_some() {
            checker.fault(span(flag), &key(name), message);
        }
    }
    // The library compares a data connection's address with that of its control connection: the balancer's.
    if !proxy_protocol.trusted.is_empty() && proxy_protocol.data != ProxiedData::Bare {
        let message =
            "required to be \"bare\" with engine = \"libunftp\"; engine = \"native\" can do the others";
        checker.fault(span(&raw.proxy_protocol.data), &key("proxy_protocol.data"), message);
    }
    if raw.errors.wrong_commands_max.is_some() {
        let field = &raw.errors.wrong_commands_max;
        checker.fault(span(field), &key("errors.wrong_commands_max"), message);
    }
}

fn tls(raw: &raw::Listener, index: usize, checker: &mut Checker, address: Option<SocketAddr>) -> Option<Tls> {
    let key = |name: &str| format!("listeners[{index}].{name}");
    // Behind a balancer clients come from anywhere, wherever the front end listens.
    let balanced = raw.proxy_protocol.trusted.is_some();
    let loopback = address.is_none_or(|address| address.ip().is_loopback()) && !balanced;
    let modes = [("off", Mode::Off), ("explicit", Mode::Explicit), ("implicit", Mode::Implicit)];
    let mode = checker.choice(&raw.tls, &key("tls"), &modes, Mode::Explicit);
    let identities = identities(raw, index, checker);
    let client = client_certificate(raw, index, checker);
    // A certificate is shown in a handshake only.
    let certified = matches!(client, Some(ClientCertificate::Required(_)));
    let login_required = checker.optional(&raw.tls_required, &key("tls_required")).copied();
    let login_required = login_required.unwrap_or(!loopback || certified);
    let data_required = checker.optional(&raw.tls_data_required, &key("tls_data_required"));
    let data_required = data_required.copied().unwrap_or(login_required);
    for (required, field, name) in [
        (login_required, &raw.tls_required, "tls_required"),
        (data_required, &raw.tls_data_required, "tls_data_required"),
    ] {
        if certified && !required {
            let message = "cannot be false with client_certificate = \"required\"";
            checker.fault(span(field), &key(name), message);
        }
    }
    let versions = versions(raw, &key("tls_versions"), checker);
    let (certificate_login, certificate_name) = certificate_login(raw, index, checker, client.as_ref());
    let insecure = checker.optional(&raw.insecure, &key("insecure")).copied().unwrap_or(false);
    let logins_protected = mode == Mode::Implicit || (mode == Mode::Explicit && login_required);
    let protected = logins_protected && mode != Mode::Off && data_required;
    if !(loopback || insecure || protected) {
        let place = if balanced { "behind a load balancer" } else { "not a loopback address" };
        let message = format!(
            "{place}, so TLS is required (tls = \"explicit\" or \"implicit\", tls_required = true, \
             tls_data_required = true); insecure = true allows passwords and mail in plaintext"
        );
        checker.fault(span(&raw.address), &key("address"), message);
    }
    if mode == Mode::Off {
        let off = "cannot be with tls = \"off\"";
        for (field, name) in
            [(&raw.tls_required, "tls_required"), (&raw.tls_data_required, "tls_data_required")]
        {
            if checker.optional(field, &key(name)).copied() == Some(true) {
                checker.fault(span(field), &key(name), "cannot be true with tls = \"off\"");
            }
        }
        if raw.tls_versions.is_some() {
            checker.fault(span(&raw.tls_versions), &key("tls_versions"), off);
        }
        if client.as_ref().is_some_and(|client| *client != ClientCertificate::Off) {
            checker.fault(span(&raw.client_certificate), &key("client_certificate"), off);
        }
        return Some(Tls::Off);
    }
    if raw.certificate.is_none() && raw.key.is_none() {
        let message = "required with tls = \"explicit\" (the default) and \"implicit\"";
        checker.fault(span(&raw.tls), &key("certificate"), message);
    }
    let identities = identities.filter(|identities| !identities.is_empty())?;
    let settings = TlsSettings {
        identities,
        login_required,
        data_required,
        versions,
        client: client?,
        certificate_login,
        certificate_name,
    };
    Some(if mode == Mode::Implicit { Tls::Implicit(settings) } else { Tls::Explicit(settings) })
}

/// The values of the key `tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Explicit,
    Implicit,
}

fn identities(raw: &raw::Listener, index: usize, checker: &mut Checker) -> Option<Vec<Identity>> {
    let first = checker.identity(&raw.certificate, &raw.key, &format!("listeners[{index}]."));
    let mut all: Vec<_> = if raw.certificate.is_some() || raw.key.is_some() { vec![first] } else { vec![] };
    for (number, files) in raw.more_certificates.iter().enumerate() {
        let prefix = format!("listeners[{index}].more_certificates[{number}].");
        if files.certificate.is_none() && files.key.is_none() {
            checker.required(&files.certificate, &format!("{prefix}certificate"));
        }
        all.push(checker.identity(&files.certificate, &files.key, &prefix));
    }
    all.into_iter().collect()
}

fn versions(raw: &raw::Listener, key: &str, checker: &mut Checker) -> TlsVersions {
    let Some(written) = checker.optional(&raw.tls_versions, key) else {
        return TlsVersions { v1_2: true, v1_3: true };
    };
    let has = |version: &str| written.iter().any(|word| word == version);
    let versions = TlsVersions { v1_2: has("1.2"), v1_3: has("1.3") };
    if written.is_empty() || written.iter().any(|word| word != "1.2" && word != "1.3") {
        let message = format!("{written:?} is not valid; allowed: one or both of \"1.2\", \"1.3\"");
        checker.fault(span(&raw.tls_versions), key, message);
    }
    versions
}

fn certificate_login(
    raw: &raw::Listener,
    index: usize,
    checker: &mut Checker,
    client: Option<&ClientCertificate>,
) -> (CertificateLogin, CertificateName) {
    let key = |name: &str| format!("listeners[{index}].{name}");
    let words = [
        ("off", CertificateLogin::Off),
        ("or-password", CertificateLogin::OrPassword),
        ("and-password", CertificateLogin::AndPassword),
        ("alone", CertificateLogin::Alone),
    ];
    let login =
        checker.choice(&raw.certificate_login, &key("certificate_login"), &words, CertificateLogin::Off);
    let needed = match (login, client) {
        (CertificateLogin::OrPassword, Some(ClientCertificate::Off)) => Some("\"optional\" or \"required\""),
        (
            CertificateLogin::AndPassword | CertificateLogin::Alone,
            Some(ClientCertificate::Off | ClientCertificate::Optional(_)),
        ) => Some("\"required\""),
        _ => None,
    };
    if let Some(needed) = needed {
        let message = format!("needs client_certificate = {needed}");
        checker.fault(span(&raw.certificate_login), &key("certificate_login"), message);
    }
    let places = [
        ("common-name", CertificateName::CommonName),
        ("email", CertificateName::Email),
        ("dns", CertificateName::Dns),
        ("uri", CertificateName::Uri),
    ];
    let name =
        checker.choice(&raw.certificate_name, &key("certificate_name"), &places, CertificateName::CommonName);
    if raw.certificate_name.is_some() && login == CertificateLogin::Off {
        let message = "of no use without certificate_login";
        checker.fault(span(&raw.certificate_name), &key("certificate_name"), message);
    }
    (login, name)
}

fn client_certificate(raw: &raw::Listener, index: usize, checker: &mut Checker) -> Option<ClientCertificate> {
    let key = |name: &str| format!("listeners[{index}].{name}");
    #[derive(Clone, Copy, PartialEq)]
    enum Word {
        Off,
        Optional,
        Required,
    }
    let words = [("off", Word::Off), ("optional", Word::Optional), ("required", Word::Required)];
    let word = checker.choice(&raw.client_certificate, &key("client_certificate"), &words, Word::Off);
    let anchors = checker.anchors(&raw.client_ca, &key("client_ca"));
    match (word, &raw.client_ca) {
        (Word::Off, Some(_)) => {
            let message = "of no use without client_certificate = \"optional\" or \"required\"";
            checker.fault(span(&raw.client_ca), &key("client_ca"), message);
        }
        (Word::Optional | Word::Required, None) => {
            checker.fault(
                span(&raw.client_certificate),
                &key("client_ca"),
                "required with client_certificate",
            );
        }
        _ => {}
    }
    Some(match word {
        Word::Off => ClientCertificate::Off,
        Word::Optional => ClientCertificate::Optional(anchors?),
        Word::Required => ClientCertificate::Required(anchors?),
    })
}
