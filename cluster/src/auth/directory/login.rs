//! One look-up of an admin in a directory: bind, search, bind; and where the servers refer to.

use std::collections::VecDeque;
use std::time::Instant;

use ldap3::Ldap;
use portolan_config::checked::directory::LdapUri;

use super::active_directory::state_of;
use super::result::{Verdict, is_of_service, policy_request, verdict};
use super::{AdminDirectory, Failure, Found};
use crate::auth::steps::{Entries, Step, Steps};
use crate::ldap::{INSUFFICIENT_ACCESS, LdapClient, REFERRALS_MAX, Trouble, UNWILLING, say_good_bye};

/// Where an admin is looked for.
#[derive(Debug, Clone)]
struct Server {
    uri: LdapUri,
    start_tls: bool,
    base: String,
}

/// What a server that was asked came to.
enum Answer {
    Decided(Result<Found, Failure>),
    /// It has not found anybody, and other servers may.
    Elsewhere(Vec<Server>),
}

/// Why one server did not answer about an admin.
enum Stop {
    /// The server, or what the service account may do there: it is passed over for a while.
    Server(Trouble),
    /// This login alone.
    Login {
        trouble: Trouble,
        /// Nobody has counted it yet, so another server may be asked.
        again: bool,
    },
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Stop::Server(trouble)
    }
}

impl Stop {
    /// Of a search about somebody, made as the admin or as the service account.
    fn of_search(trouble: Trouble, as_user: bool) -> Self {
        match trouble {
            Trouble::Answer { code, .. } if as_user || !is_of_service(code) => {
                Stop::Login { trouble, again: true }
            }
            trouble => Stop::Server(trouble),
        }
    }
}

/// What is asked, and of which directory.
pub(super) struct Lookup<'a> {
    pub(super) directory: &'a AdminDirectory,
    pub(super) typed: &'a str,
    /// `None`: only looks.
    pub(super) password: Option<&'a str>,
    pub(super) steps: Steps<'a>,
}

impl Lookup<'_> {
    pub(super) fn client(&self) -> &LdapClient {
        &self.directory.client
    }

    /// Asks the servers until one answers.
    pub(super) async fn run(&self) -> Result<Found, Failure> {
        let client = self.client();
        let mut troubles = Vec::new();
        for server in client.in_order() {
            let start_tls = client.directory.start_tls && !server.uri.tls;
            let base = client.directory.user.base.clone();
            let place = Server { uri: server.uri.clone(), start_tls, base };
            let begun = Instant::now();
            match self.ask(&place).await {
                Ok(answer) => {
                    client.note(server, begun, None);
                    return match answer {
                        Answer::Decided(decided) => decided,
                        Answer::Elsewhere(places) => self.follow(places).await,
                    };
                }
                Err(stop) => {
                    let (trouble, again) = match &stop {
                        Stop::Server(trouble) => {
                            client.note(server, begun, Some(trouble));
                            (trouble, true)
                        }
                        Stop::Login { trouble, again } => {
                            if let Trouble::Answer { .. } = trouble {
                                client.note(server, begun, None);
                            }
                            client.count_undecided();
                            (trouble, *again)
                        }
                    };
                    let (uri, cause) = (&server.uri.text, portolan_telemetry::chain(trouble));
                    self.steps.show(&Step::ServerFailed { uri, cause: &cause });
                    troubles.push(format!("{uri}: {cause}"));
                    if !again {
                        break;
                    }
                }
            }
        }
        Err(Failure::Away(troubles.join("; ")))
    }

    /// Asks where servers have referred to, until somebody is found.
    async fn follow(&self, places: Vec<Server>) -> Result<Found, Failure> {
        let mut pending = VecDeque::from(places);
        let mut troubles = Vec::new();
        for _ in 0..REFERRALS_MAX {
            let Some(place) = pending.pop_front() else { break };
            match self.ask(&place).await {
                Ok(Answer::Decided(Err(Failure::Unknown))) => {}
                Ok(Answer::Decided(decided)) => return decided,
                Ok(Answer::Elsewhere(more)) => pending.extend(more),
                Err(Stop::Server(trouble) | Stop::Login { trouble, again: true }) => {
                    troubles.push(format!("{}: {}", place.uri.text, portolan_telemetry::chain(&trouble)));
                }
                Err(Stop::Login { trouble, again: false }) => {
                    troubles.push(format!("{}: {}", place.uri.text, portolan_telemetry::chain(&trouble)));
                    return Err(Failure::Away(troubles.join("; ")));
                }
            }
        }
        if !pending.is_empty() {
            troubles.push(format!("more than {REFERRALS_MAX} referrals"));
        }
        if troubles.is_empty() { Err(Failure::Unknown) } else { Err(Failure::Away(troubles.join("; "))) }
    }

    /// Where a referral leads (RFC 4516), never less protected than the directory itself.
    fn referred(&self, url: &str) -> Option<Server> {
        let directory = &self.client().directory;
        let url = url::Url::parse(url).ok()?;
        let tls = match url.scheme() {
            "ldap" => false,
            "ldaps" => true,
            _ => return None,
        };
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let text = format!("{}://{host}:{}", url.scheme(), url.port().unwrap_or(if tls { 636 } else { 389 }));
        let base = ldap3::get_url_params(&url).ok()?.base.into_owned();
        let base = if base.is_empty() { directory.user.base.clone() } else { base };
        let protected = directory.start_tls || directory.uris.iter().any(|uri| uri.tls);
        Some(Server { uri: LdapUri { text, tls }, start_tls: protected && !tls, base })
    }

    /// Asks one server all that is needed.
    async fn ask(&self, place: &Server) -> Result<Answer, Stop> {
        let mut ldap = self.client().connect(&place.uri, place.start_tls).await?;
        self.steps.show(&Step::Connected { uri: &place.uri.text });
        let answer = self.ask_over(&mut ldap, &place.base).await;
        say_good_bye(ldap).await;
        answer
    }

    async fn ask_over(&self, ldap: &mut Ldap, base: &str) -> Result<Answer, Stop> {
        let refused = |failure| Ok(Answer::Decided(Err(failure)));
        let typed = Typed::new(self.typed);
        let directory = &self.client().directory;
        let user = &directory.user;
        // Who asks: the service, nobody, or the admin itself.
        let as_user = match (&user.bind_as, self.password) {
            (Some(template), Some(password)) => {
                let escape = |part: &str| {
                    if template.contains('=') { ldap3::dn_escape(part).into_owned() } else { part.to_owned() }
                };
                let name = typed.fill(template, escape);
                if let Err(failure) = self.bind(ldap, &name, password, None).await? {
                    return refused(failure);
                }
                true
            }
            _ => {
                self.bind_service(ldap).await?;
                false
            }
        };
        let filter = &*typed.fill(&user.filter, |part| ldap3::ldap_escape(part).into_owned());
        let attributes = &self.directory.attributes;
        let searched = self.client().search(ldap, base, user.scope, filter, attributes, 2).await;
        let (mut entries, referrals) = match searched {
            Err(Trouble::Answer { code: INSUFFICIENT_ACCESS | UNWILLING, .. }) if as_user => {
                let reason = "the directory lets the account do nothing";
                self.steps.show(&Step::EntryRefused(reason));
                return refused(Failure::Barred { reason, entry: None });
            }
            searched => searched.map_err(|trouble| Stop::of_search(trouble, as_user))?,
        };
        if entries.len() > 1 {
            self.steps.show(&Step::Searched { filter, base, found: Entries::Several });
            let reason = "more than one entry fits the name".to_owned();
            return refused(Failure::Refused { reason, entry: None });
        }
        let Some(entry) = entries.pop() else {
            self.steps.show(&Step::Searched { filter, base, found: Entries::None });
            return Ok(self.elsewhere(&referrals));
        };
        self.steps.show(&Step::Searched { filter, base, found: Entries::One(&entry.dn) });
        if let (None, Some(state)) = (self.password, state_of(&entry)) {
            self.steps.show(&Step::EntryRefused(state));
            return refused(Failure::Refused { reason: state.to_owned(), entry: None });
        }
        // What was typed must not stand in for it: grants, certificates and the audit go by this name.
        let name = entry.values(&user.name_attribute).next().map(str::to_owned);
        let counted = name.clone().unwrap_or_else(|| entry.dn.clone());
        if let (false, Some(password)) = (as_user, self.password) {
            if let Err(failure) = self.bind(ldap, &entry.dn, password, Some(&counted)).await? {
                return refused(failure);
            }
            if directory.service.is_some() {
                self.bind_service(ldap).await?;
            }
        }
        let Some(name) = name else {
            let reason = format!("the entry has no {}, by which admins are named", user.name_attribute);
            self.steps.show(&Step::EntryRefused(&reason));
            return refused(Failure::Refused { reason, entry: Some(counted) });
        };
        let groups = self.groups(ldap, &entry).await.map_err(|trouble| Stop::of_search(trouble, as_user))?;
        for group in &groups {
            self.steps.show(&Step::MemberOf(group.as_str()));
        }
        Ok(Answer::Decided(Ok(Found { name, groups, entry })))
    }

    /// What it comes to that a server has found nobody.
    fn elsewhere(&self, referrals: &[String]) -> Answer {
        let followed = self.client().directory.follow_referrals;
        for url in referrals {
            self.steps.show(&Step::Referral { url, followed });
        }
        let places: Vec<_> = referrals.iter().filter_map(|url| self.referred(url)).collect();
        if followed && !places.is_empty() {
            Answer::Elsewhere(places)
        } else {
            Answer::Decided(Err(Failure::Unknown))
        }
    }

    /// Binds as an admin, who is called `entry` where that is known already. A refusal is an answer, not a trouble; `result`
    /// has the codes.
    async fn bind(
        &self,
        ldap: &mut Ldap,
        name: &str,
        password: &str,
        entry: Option<&str>,
    ) -> Result<Result<(), Failure>, Stop> {
        let binding = ldap.with_controls(policy_request()).simple_bind(name, password);
        let result = match self.client().within(binding).await {
            Ok(result) => result,
            // A server that has gone has counted nothing that lasts; of one that is slow nobody knows.
            Err(trouble) => {
                let again = !matches!(trouble, Trouble::Slow(_));
                return Err(Stop::Login { trouble, again });
            }
        };
        let entry = entry.map(str::to_owned);
        let (reason, failure) = match verdict(&result) {
            Verdict::Proven => {
                self.steps.show(&Step::Bound { name });
                return Ok(Ok(()));
            }
            Verdict::Refused(reason) => (reason.clone(), Failure::Refused { reason, entry }),
            Verdict::Barred(reason) => (reason.to_owned(), Failure::Barred { reason, entry }),
            decided @ (Verdict::Elsewhere | Verdict::Unclear) => {
                let (code, text) = (result.rc, result.text);
                let trouble = Trouble::Answer { what: "the bind of who logs in", code, text };
                return Err(Stop::Login { trouble, again: decided == Verdict::Elsewhere });
            }
        };
        self.steps.show(&Step::BindRefused { name, reason: &reason });
        Ok(Err(failure))
    }

    async fn bind_service(&self, ldap: &mut Ldap) -> Result<(), Trouble> {
        if let Some(name) = self.client().bind_service(ldap).await? {
            self.steps.show(&Step::Bound { name });
        }
        Ok(())
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
}
