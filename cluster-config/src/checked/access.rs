//! Who may connect, how often and how much: access rules, limits, errors, bans, bandwidth.
//!
//! Each stands in up to three scopes: the listener, the service FTP, and global.

use std::fmt;
use std::time::Duration;

use super::{Checker, span};
use crate::raw::{self, Field, Text};
use crate::units::{Addresses, Rate};

/// Where a rule or limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Global,
    Ftp,
    Listener,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Global => "global",
            Scope::Ftp => "ftp",
            Scope::Listener => "listener",
        })
    }
}

/// The rules that decide for a listener: its own, else those of FTP, else the global ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessList {
    pub scope: Scope,
    /// Without one that matches, a client is refused.
    pub rules: Vec<AccessRule>,
}

/// Lets clients in or keeps them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    pub verdict: Verdict,
    pub from: Addresses,
    /// 1 is the highest, 1000 the lowest.
    pub priority: u16,
    /// What an allowing rule counts for itself. Nothing in a denying one.
    pub limits: RuleLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    Allow,
    Deny,
}

impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        };
        write!(f, "{verdict} {} priority {}", self.from, self.priority)
    }
}

/// The priority of a rule that names none.
const PRIORITY: u16 = 500;

/// Limits of connections; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At once.
    pub simultaneous: u32,
    pub simultaneous_per_address: u32,
    /// Within an interval.
    pub new: u32,
    pub new_per_address: u32,
    pub interval: Duration,
}

impl Limits {
    pub const NONE: Self = Self {
        simultaneous: 0,
        simultaneous_per_address: 0,
        new: 0,
        new_per_address: 0,
        interval: Duration::from_secs(60),
    };
}

/// AXIGEN's, which admins of mail servers expect.
impl Default for Limits {
    fn default() -> Self {
        Self { simultaneous: 200, simultaneous_per_address: 20, new: 600, new_per_address: 600, ..Self::NONE }
    }
}

/// The limits of an allowing rule. Its totals hold beside those of the scopes; a limit by address that it
/// names takes the place of theirs, so that one host may be given more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleLimits {
    pub own: Limits,
    pub replaces_simultaneous_per_address: bool,
    pub replaces_new_per_address: bool,
}

impl RuleLimits {
    pub const NONE: Self =
        Self { own: Limits::NONE, replaces_simultaneous_per_address: false, replaces_new_per_address: false };
}

/// How much a session may get wrong; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errors {
    pub wrong_commands_max: u32,
    pub failed_logins_max: u32,
}

/// What failed logins lead to across sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bans {
    /// Failed logins from one address within the window that ban it; 0 bans none.
    pub address_failures: u32,
    /// The same for one name, whose admin may still come from where it has logged in before.
    pub name_failures: u32,
    pub window: Duration,
    pub duration: Duration,
    /// The reply to a failed login comes the later the more have failed, up to this.
    pub delay_max: Duration,
}

/// What may cross connections, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// To clients.
    pub down: Rate,
    /// From clients.
    pub up: Rate,
}

const CONNECTIONS_MAX: u64 = 100_000;
const NEW_MAX: u64 = 1_000_000;

impl Checker {
    pub(crate) fn access(&mut self, raw: &raw::Access, key: &str, scope: Scope) -> Option<AccessList> {
        let written = raw.as_ref()?;
        let rules: Vec<_> = written
            .iter()
            .enumerate()
            .filter_map(|(index, raw)| self.rule(raw, &format!("{key}[{index}]")))
            .collect();
        for (index, rule) in rules.iter().enumerate() {
            let same = |other: &AccessRule| other.to_string() == rule.to_string();
            if rules[..index].iter().any(same) {
                self.fault(None, key, format!("the rule \"{rule}\" stands there twice"));
            }
        }
        if !rules.is_empty() && rules.iter().all(|rule| rule.verdict == Verdict::Deny) {
            let message = "only denying rules: nobody could connect, because what no rule allows is denied; \
                           add { allow = \"all\" } for the others (an empty list denies everybody)";
            self.fault(None, key, message);
        }
        Some(AccessList { scope, rules })
    }

    fn rule(&mut self, raw: &raw::AccessRule, key: &str) -> Option<AccessRule> {
        let allow = self.parse::<Addresses>(&raw.allow, &format!("{key}.allow"));
        let deny = self.parse::<Addresses>(&raw.deny, &format!("{key}.deny"));
        if raw.allow.is_some() == raw.deny.is_some() {
            self.fault(None, key, "either allow or deny is required, and not both");
        }
        let number = self.number(&raw.priority, &format!("{key}.priority"), 1, 1_000, PRIORITY.into());
        let priority = u16::try_from(number).expect("at most 1000");
        let limits = match &raw.limits {
            None => RuleLimits::NONE,
            Some(limits) => RuleLimits {
                own: self.limits(limits, &format!("{key}.limits"), Limits::NONE),
                replaces_simultaneous_per_address: limits.simultaneous_per_address.is_some(),
                replaces_new_per_address: limits.new_per_address.is_some(),
            },
        };
        if raw.deny.is_some() && raw.limits.is_some() {
            self.fault(None, &format!("{key}.limits"), "only a rule that allows has limits");
        }
        let (verdict, from) = match (allow, deny) {
            (Some(from), _) => (Verdict::Allow, from),
            (None, from) => (Verdict::Deny, from?),
        };
        Some(AccessRule { verdict, from, priority, limits })
    }

    pub(crate) fn limits(&mut self, raw: &raw::Limits, key: &str, default: Limits) -> Limits {
        let mut count = |field: &Option<Field<u64>>, name: &str, most, default: u32| {
            let number = self.number(field, &format!("{key}.{name}"), 0, most, default.into());
            u32::try_from(number).expect("at most a million")
        };
        Limits {
            simultaneous: count(&raw.simultaneous, "simultaneous", CONNECTIONS_MAX, default.simultaneous),
            simultaneous_per_address: count(
                &raw.simultaneous_per_address,
                "simultaneous_per_address",
                CONNECTIONS_MAX,
                default.simultaneous_per_address,
            ),
            new: count(&raw.new, "new", NEW_MAX, default.new),
            new_per_address: count(&raw.new_per_address, "new_per_address", NEW_MAX, default.new_per_address),
            interval: self.duration(&raw.interval, &format!("{key}.interval"), 30, 86_400, 60),
        }
    }

    /// A limit that an outer scope never lets be reached is a mistake that nobody would find otherwise.
    pub(crate) fn nested(&mut self, inner: (&raw::Limits, Limits, &str), outer: (Limits, &str)) {
        let (raw, inner, key) = inner;
        let (outer, outer_key) = outer;
        // Over different intervals they cannot be compared.
        let new = |limit: u32| if inner.interval == outer.interval { limit } else { 0 };
        for (written, inner, outer, name) in [
            (&raw.new, inner.new, new(outer.new), "new"),
            (&raw.new_per_address, inner.new_per_address, new(outer.new_per_address), "new_per_address"),
            (&raw.simultaneous, inner.simultaneous, outer.simultaneous, "simultaneous"),
            (
                &raw.simultaneous_per_address,
                inner.simultaneous_per_address,
                outer.simultaneous_per_address,
                "simultaneous_per_address",
            ),
        ] {
            if written.is_some() && outer > 0 && inner > outer {
                let message = format!(
                    "{inner} can never be reached, because {outer_key}.{name} is {outer}; raise that too"
                );
                self.fault(span(written), &format!("{key}.{name}"), message);
            }
        }
    }

    /// `inherited` is what the scope around says.
    pub(crate) fn errors(&mut self, raw: &raw::Errors, key: &str, inherited: Errors) -> Errors {
        let mut count = |field, name: &str, default: u32| {
            let number = self.number(field, &format!("{key}.{name}"), 0, 100, default.into());
            u32::try_from(number).expect("at most 100")
        };
        Errors {
            wrong_commands_max: count(
                &raw.wrong_commands_max,
                "wrong_commands_max",
                inherited.wrong_commands_max,
            ),
            failed_logins_max: count(
                &raw.failed_logins_max,
                "failed_logins_max",
                inherited.failed_logins_max,
            ),
        }
    }

    pub(crate) fn bans(&mut self, raw: &raw::Bans) -> Bans {
        let mut count = |field, name: &str, default| {
            let number = self.number(field, &format!("ftp.bans.{name}"), 0, 10_000, default);
            u32::try_from(number).expect("at most 10000")
        };
        Bans {
            address_failures: count(&raw.address_failures, "address_failures", 10),
            name_failures: count(&raw.name_failures, "name_failures", 50),
            window: self.duration(&raw.window, "ftp.bans.window", 30, 86_400, 600),
            duration: self.duration(&raw.duration, "ftp.bans.duration", 1, 604_800, 900),
            delay_max: self.duration(&raw.delay_max, "ftp.bans.delay_max", 0, 30, 8),
        }
    }

    pub(crate) fn bandwidth(&mut self, raw: &raw::Bandwidth, key: &str) -> Bandwidth {
        let mut rate = |field: &Text, name: &str| {
            self.parse::<Rate>(field, &format!("{key}.{name}")).unwrap_or_default()
        };
        Bandwidth { down: rate(&raw.down, "down"), up: rate(&raw.up, "up") }
    }
}
