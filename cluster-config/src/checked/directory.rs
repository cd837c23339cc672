//! Directories that admins are looked up in (LDAP, Active Directory), and the grants that follow from them.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use portolan_proto::rights::Rights;

use super::frontend::LOCAL;
use super::tls::{Anchors, Identity};
use super::{Checker, span};
use crate::admins;
use crate::dn::Dn;
use crate::raw::{self, Field};
use crate::secret::{Secret, read_secret_file};

/// One directory; RFC 4511.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Distinct, and not `local`.
    pub name: String,
    pub kind: DirectoryKind,
    /// 1 to 5 addresses, tried in this order.
    pub uris: Vec<LdapUri>,
    /// Begins TLS on `ldap://` connections (RFC 4511 section 4.14).
    pub start_tls: bool,
    /// `None`: the authorities of the system.
    pub ca: Option<Anchors>,
    /// What is shown to a directory that asks for a certificate.
    pub identity: Option<Identity>,
    /// For a connection with its TLS.
    pub connect_timeout: Duration,
    /// For each question.
    pub query_timeout: Duration,
    /// Who asks; `None`: nobody in particular.
    pub service: Option<Service>,
    pub user: UserSearch,
    pub groups: GroupSearch,
    /// Asks the servers that a directory refers to (RFC 4511 section 4.1.10), with the same names and passwords.
    pub follow_referrals: bool,
    /// How long a good password need not be asked for again; zero: not at all.
    pub cache: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryKind {
    OpenLdap,
    ActiveDirectory,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LdapUri {
    /// As it was written.
    pub text: String,
    /// `ldaps://`: TLS from the first byte on.
    pub tls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub dn: String,
    pub password: Secret<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchScope {
    Base,
    OneLevel,
    Subtree,
}

/// How an admin is found and proves its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSearch {
    pub base: String,
    pub scope: SearchScope,
    /// With `{user}` (what was typed), `{local}` and `{domain}` (its parts).
    pub filter: String,
    /// With the same placeholders: binds so before it searches. `None`: searches, then binds as what was found.
    pub bind_as: Option<String>,
    /// What the admin is called from then on.
    pub name_attribute: String,
}

/// How the groups of an admin are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSearch {
    pub base: String,
    pub scope: SearchScope,
    /// Groups that the admin's groups are members of count too.
    pub nested: bool,
}

/// Gives rights to a group or an admin of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRule {
    pub who: Grantee,
    /// `None`: in whichever directory.
    pub directory: Option<String>,
    pub rights: Rights,
    pub domains: GrantedDomains,
    /// Where the tree of such an admin begins, as a path of the wire; `None`: this grant does not say.
    pub root: Option<Vec<u8>>,
}

/// For people: `group "backup admins": backup, restore of all domains`.
impl fmt::Display for GrantRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Grantee::Group(group) => write!(f, "group {group:?}")?,
            Grantee::User(user) => write!(f, "user {user:?}")?,
        }
        if let Some(directory) = &self.directory {
            write!(f, " of directory {directory}")?;
        }
        write!(f, ": {} of {}", self.rights, self.domains)?;
        match &self.root {
            Some(root) => write!(f, "; the tree begins at /{}", portolan_proto::path::display(root)),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// A DN, or the value of its first part.
    Group(String),
    User(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantedDomains {
    pub all: bool,
    pub names: BTreeSet<Vec<u8>>,
    /// Wildcards, such as `*.example.org`.
    pub patterns: Vec<String>,
    /// The domains that this attribute of the admin's entry names.
    pub attribute: Option<String>,
}

/// For people: `all domains`, or names and patterns, of which many are counted.
impl fmt::Display for GrantedDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all {
            return f.write_str("all domains");
        }
        let names = self.names.iter().map(|name| portolan_proto::path::display(name));
        let mut words: Vec<String> = names.chain(self.patterns.iter().cloned()).collect();
        let more = words.len().saturating_sub(SHOWN_MAX);
        words.truncate(SHOWN_MAX);
        if more > 0 {
            words.push(format!("{more} more"));
        }
        let attribute = self.attribute.iter().map(|name| format!("the domains that attribute {name} names"));
        words.extend(attribute);
        f.write_str(if words.is_empty() { "no domain" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

/// Domains that are shown of a set.
const SHOWN_MAX: usize = 20;

impl GrantedDomains {
    /// Is the domain one of those that are named, or that a pattern fits?
    pub fn covers(&self, domain: &[u8]) -> bool {
        self.all
            || self.names.contains(domain)
            || self.patterns.iter().any(|pattern| fast_glob::glob_match(pattern, domain))
    }

    /// Takes in what another set covers.
    pub fn extend(&mut self, other: &Self) {
        self.all |= other.all;
        self.names.extend(other.names.iter().cloned());
        self.patterns.extend(other.patterns.iter().cloned());
    }

    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty() && self.patterns.is_empty()
    }
}

const URIS_MAX: usize = 5;
const PLACEHOLDERS: [&str; 3] = ["{user}", "{local}", "{domain}"];

impl Checker {
    pub(super) fn directories(&mut self, raw: &[raw::Directory]) -> Option<Vec<Directory>> {
        let mut names = BTreeSet::new();
        let mut all = Vec::new();
        for (index, raw) in raw.iter().enumerate() {
            let key = format!("directories[{index}].name");
            let name = self.required(&raw.name, &key).cloned();
            let good = |name: &String| {
                !name.is_empty()
                    && name.len() <= 63
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            };
            if name.as_ref().is_some_and(|name| !good(name) || name == LOCAL) {
                let message =
                    "not a directory's name; allowed: 1 to 63 of a-z, A-Z, 0-9, '-', '_', '.', and not local";
                self.fault(span(&raw.name), &key, message);
            } else if name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
                self.fault(span(&raw.name), &key, "another directory has this name");
            }
            all.push(self.directory(raw, index, name));
        }
        all.into_iter().collect()
    }

    fn directory(&mut self, raw: &raw::Directory, index: usize, name: Option<String>) -> Option<Directory> {
        let prefix = format!("directories[{index}].");
        let key = |name: &str| format!("{prefix}{name}");
        let kinds =
            [("openldap", DirectoryKind::OpenLdap), ("active-directory", DirectoryKind::ActiveDirectory)];
        self.required(&raw.kind, &key("kind"));
        let kind = self.choice(&raw.kind, &key("kind"), &kinds, DirectoryKind::OpenLdap);
        let start_tls = self.optional(&raw.start_tls, &key("start_tls")).copied().unwrap_or(false);
        let uris = self.uris(raw, &key("uris"), start_tls, &prefix);
        let ca = self.anchors(&raw.ca, &key("ca"));
        let identity = self.identity(&raw.certificate, &raw.key, &prefix);
        let service = self.service(raw, &prefix);
        let base = self.required(&raw.base, &key("base")).cloned().unwrap_or_default();
        let scope = self.scope(&raw.scope, &key("scope"));
        let (filter, name_attribute) = match kind {
            DirectoryKind::OpenLdap => ("(uid={user})", "uid"),
            DirectoryKind::ActiveDirectory => (
                "(&(objectCategory=person)(objectClass=user)(|(sAMAccountName={local})(userPrincipalName={user})))",
                "sAMAccountName",
            ),
        };
        let filter = self.template(&raw.filter, &key("filter")).unwrap_or_else(|| filter.to_owned());
        let bind_as = self.template(&raw.bind_as, &key("bind_as"));
        let name_attribute = self
            .optional(&raw.name_attribute, &key("name_attribute"))
            .cloned()
            .unwrap_or_else(|| name_attribute.to_owned());
        let groups = GroupSearch {
            base: self.optional(&raw.group_base, &key("group_base")).cloned().unwrap_or_else(|| base.clone()),
            scope: self.scope(&raw.group_scope, &key("group_scope")),
            nested: self.optional(&raw.nested_groups, &key("nested_groups")).copied().unwrap_or(true),
        };
        let connect_timeout = self.duration(&raw.connect_timeout, &key("connect_timeout"), 1, 60, 3);
        let query_timeout = self.duration(&raw.query_timeout, &key("query_timeout"), 1, 60, 5);
        let cache = self.duration(&raw.cache, &key("cache"), 0, 300, 0);
        let referrals = [("ignore", false), ("follow", true)];
        let follow_referrals = self.choice(&raw.referrals, &key("referrals"), &referrals, false);
        if raw.ca.is_some() && ca.is_none() || raw.certificate.is_some() && identity.is_none() {
            return None;
        }
        Some(Directory {
            name: name?,
            kind,
            uris,
            start_tls,
            ca,
            identity,
            connect_timeout,
            query_timeout,
            service,
            user: UserSearch { base, scope, filter, bind_as, name_attribute },
            groups,
            follow_referrals,
            cache,
        })
    }

    fn uris(&mut self, raw: &raw::Directory, key: &str, start_tls: bool, prefix: &str) -> Vec<LdapUri> {
        let written = self.required(&raw.uris, key).cloned().unwrap_or_default();
        if raw.uris.is_some() && !(1..=URIS_MAX).contains(&written.len()) {
            let message = format!("{} addresses; allowed: 1 to {URIS_MAX}", written.len());
            self.fault(span(&raw.uris), key, message);
        }
        let insecure = self.optional(&raw.insecure, &format!("{prefix}insecure")).copied().unwrap_or(false);
        let mut uris = Vec::new();
        for text in written {
            let parts = text.split_once("://");
            let tls = match parts {
                Some(("ldaps", _)) => true,
                Some(("ldap", _)) => false,
                _ => {
                    let message =
                        format!("{text:?} is not valid; allowed: ldap://HOST[:PORT], ldaps://HOST[:PORT]");
                    self.fault(span(&raw.uris), key, message);
                    continue;
                }
            };
            let authority = parts.map(|(_, rest)| rest.trim_end_matches('/')).unwrap_or_default();
            let with_port = if authority.rsplit(']').next().is_some_and(|end| end.contains(':')) {
                authority.to_owned()
            } else {
                format!("{authority}:{}", if tls { 636 } else { 389 })
            };
            match with_port.parse::<crate::units::HostPort>() {
                Ok(host) => {
                    if !tls && !start_tls && !insecure && !host.is_loopback() {
                        let message = format!(
                            "{text:?} would send passwords in plaintext; allowed: ldaps://, start_tls = true, or \
                             insecure = true"
                        );
                        self.fault(span(&raw.uris), key, message);
                    }
                    let scheme = if tls { "ldaps" } else { "ldap" };
                    uris.push(LdapUri { text: format!("{scheme}://{with_port}"), tls });
                }
                Err(error) => {
                    self.fault(span(&raw.uris), key, format!("{text:?} is not valid; {error}"));
                }
            }
        }
        uris
    }

    fn service(&mut self, raw: &raw::Directory, prefix: &str) -> Option<Service> {
        let key = |name: &str| format!("{prefix}{name}");
        let dn = self.optional(&raw.bind_dn, &key("bind_dn")).cloned();
        let file = self.path(&raw.bind_password_file, &key("bind_password_file"));
        match (raw.bind_dn.is_some(), raw.bind_password_file.is_some()) {
            (true, false) => {
                self.fault(span(&raw.bind_dn), &key("bind_password_file"), "required with bind_dn");
            }
            (false, true) => {
                self.fault(
                    span(&raw.bind_password_file),
                    &key("bind_dn"),
                    "required with bind_password_file",
                );
            }
            _ => {}
        }
        let read = read_secret_file(&file?).and_then(|bytes| {
            let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
            let line = text.lines().next().unwrap_or_default().to_owned();
            if line.is_empty() { Err("its first line is empty".to_owned()) } else { Ok(line) }
        });
        match read {
            Ok(password) => Some(Service { dn: dn?, password: Secret::new(password) }),
            Err(message) => {
                self.fault(span(&raw.bind_password_file), &key("bind_password_file"), message);
                None
            }
        }
    }

    fn scope(&mut self, field: &raw::Text, key: &str) -> SearchScope {
        let scopes = [
            ("subtree", SearchScope::Subtree),
            ("one-level", SearchScope::OneLevel),
            ("base", SearchScope::Base),
        ];
        self.choice(field, key, &scopes, SearchScope::Subtree)
    }

    /// A text with at least one placeholder and no unknown one.
    fn template(&mut self, field: &raw::Text, key: &str) -> Option<String> {
        let text = self.optional(field, key)?.clone();
        let plain = PLACEHOLDERS.iter().fold(text.clone(), |text, placeholder| text.replace(placeholder, ""));
        if plain == text || plain.contains(['{', '}']) {
            let message = format!("{text:?} is not valid; allowed: a text with {}", PLACEHOLDERS.join(", "));
            self.fault(span(field), key, message);
        }
        Some(text)
    }

    pub(super) fn grants(&mut self, raw: &[raw::Grant], directories: &[raw::Directory]) -> Vec<GrantRule> {
        let mut rules = Vec::new();
        for (index, raw) in raw.iter().enumerate() {
            let prefix = format!("grants[{index}]");
            let key = |name: &str| format!("{prefix}.{name}");
            let group = self.optional(&raw.group, &key("group")).cloned();
            let user = self.optional(&raw.user, &key("user")).cloned();
            if let Some(dn) = group.as_ref().filter(|group| group.contains('='))
                && Dn::parse(dn).is_err()
            {
                let message = format!("{dn:?} is not valid; allowed: a name, or a DN by RFC 4514");
                self.fault(span(&raw.group), &key("group"), message);
            }
            if raw.group.is_some() == raw.user.is_some() {
                self.fault(None, &prefix, "either group or user is required, and not both");
            }
            let directory = self.optional(&raw.directory, &key("directory")).cloned();
            let named = |directory: &raw::Directory, name: &str| {
                directory.name.as_ref().is_some_and(|field| field.value.as_deref() == Ok(name))
            };
            if let Some(name) = &directory
                && !directories.iter().any(|one| named(one, name))
            {
                let message = format!("there is no directory {name:?} in [[directories]]");
                self.fault(span(&raw.directory), &key("directory"), message);
            }
            let rights = self.rights(&raw.rights, &key("rights"));
            let domains = self.granted_domains(raw, &prefix);
            let root = self.optional(&raw.root, &key("root")).cloned().and_then(|text| {
                // What an attribute names is known when somebody logs in.
                let covered = |domain: &[u8]| domains.attribute.is_some() || domains.covers(domain);
                let parsed = admins::parse_root(&text, covered);
                parsed.map_err(|message| self.fault(span(&raw.root), &key("root"), message)).ok()
            });
            let who = match (group, user) {
                (Some(group), _) => Grantee::Group(group),
                (None, Some(user)) => Grantee::User(user),
                (None, None) => continue,
            };
            rules.push(GrantRule { who, directory, rights, domains, root });
        }
        rules
    }

    pub(super) fn rights(&mut self, field: &Option<Field<Vec<String>>>, key: &str) -> Rights {
        let words = self.required(field, key).cloned().unwrap_or_default();
        let parsed = Rights::from_words(words.iter().map(String::as_str));
        if field.as_ref().is_some_and(|field| field.value.is_ok()) && (words.is_empty() || parsed.is_err()) {
            let allowed = Rights::WORDS.map(|word| format!("{word:?}")).join(", ");
            let message = format!("{words:?} is not valid; allowed: one or more of {allowed}");
            self.fault(span(field), key, message);
        }
        parsed.unwrap_or_default()
    }

    fn granted_domains(&mut self, raw: &raw::Grant, prefix: &str) -> GrantedDomains {
        let key = format!("{prefix}.domains");
        if raw.domains_attribute.is_none()
            && raw.domains.as_ref().is_none_or(|field| matches!(&field.value, Ok(words) if words.is_empty()))
        {
            self.fault(
                span(&raw.domains),
                &key,
                "domains or domains_attribute is required; [\"*\"] is all domains",
            );
        }
        let attribute =
            self.optional(&raw.domains_attribute, &format!("{prefix}.domains_attribute")).cloned();
        GrantedDomains { attribute, ..self.domains(&raw.domains, &key) }
    }

    /// Names, patterns, or `*`.
    pub(super) fn domains(&mut self, field: &Option<Field<Vec<String>>>, key: &str) -> GrantedDomains {
        let mut domains = GrantedDomains::default();
        for word in self.optional(field, key).cloned().unwrap_or_default() {
            if word == "*" {
                domains.all = true;
            } else if portolan_proto::path::check_component(word.as_bytes()).is_err() {
                self.fault(span(field), key, format!("{word:?} is not a domain's name, or pattern"));
            } else if word.contains(['*', '?', '[', '{']) {
                domains.patterns.push(word);
            } else {
                domains.names.insert(word.into_bytes());
            }
        }
        domains
    }
}
