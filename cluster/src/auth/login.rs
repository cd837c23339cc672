//! The login desk: decides over a login of any service, counts failures, and writes the audit.
//!
//! Who calls it: the services (`ftp`), with what a client has sent; the front end, for its metrics and bans.
//! What it calls: `auth::Authenticator` and `auth::lockout`.
//! What it never does: know a protocol, or wait after a failure. It states the pause; the service makes it, because
//! only the service knows what may cut it short. The pause ends at a moment that does not depend on how long the
//! directories took: an unknown name is found out by one search, a known one by a bind.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portolan_config::checked::frontend::Frontend as Config;
use portolan_proto::id::SessionId;
use portolan_telemetry::chain;
use portolan_telemetry::log::AUDIT;
use portolan_telemetry::metrics::SECONDS;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tracing::Span;

use super::fold::fold;
use super::lockout::{Ban, Lockout};
use super::{Admin, Admins, Authenticator, Error, Login, Proof};

/// Before the reply that nobody could decide over a login.
const UNDECIDED_PAUSE: Duration = Duration::from_secs(1);
/// A refusal is given at a multiple of this after the password: the first by which the slowest login of late was decided.
const MOMENT_STEP: Duration = Duration::from_millis(250);
/// And not later than this, where it was decided before.
const MOMENT_MAX: Duration = Duration::from_secs(5);
/// How long a slow login counts.
const SLOWEST_LASTS: Duration = Duration::from_secs(600);
/// What a name counts as that has no form to compare it by.
const WITHOUT_FORM: &str = "(cannot be compared)";

/// A login as a service hands it in.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// As it was typed; it is logged.
    pub name: &'a str,
    /// A password, and the names of the client's TLS certificate where the service's rules count those. An error is
    /// the reason why there is nothing to check; that counts as a wrong password.
    pub proof: Result<Proof<'a>, &'static str>,
    /// How the client counts for bans: [`portolan_net::Origin::network`].
    pub network: IpAddr,
    pub session: SessionId,
    /// The span of the connection, to which the audit events belong.
    pub span: &'a Span,
}

/// Why a login was not accepted.
#[derive(Debug)]
pub enum LoginFailure {
    /// The name or the password is wrong, or both.
    Wrong,
    /// It was not even tried.
    Banned(Ban),
    /// It is known who it is, and why that admin may not come in.
    Barred(&'static str),
    /// The directory that would know does not answer.
    Undecided,
}

/// A login that was not accepted.
#[derive(Debug)]
pub struct Denied {
    pub failure: LoginFailure,
    /// The time to wait before the reply; zero for a ban. It grows with the failures before.
    pub pause: Duration,
}

impl Denied {
    fn at_once(failure: LoginFailure) -> Self {
        Self { failure, pause: Duration::ZERO }
    }
}

/// What a login came to, as a label and in the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoginOutcome {
    Accepted,
    Wrong,
    Barred,
    Banned,
    Undecided,
}

impl LoginOutcome {
    const ALL: [Self; 5] = [Self::Accepted, Self::Wrong, Self::Barred, Self::Banned, Self::Undecided];

    fn word(self) -> &'static str {
        match self {
            LoginOutcome::Accepted => "accepted",
            LoginOutcome::Wrong => "wrong",
            LoginOutcome::Barred => "barred",
            LoginOutcome::Banned => "banned",
            LoginOutcome::Undecided => "undecided",
        }
    }
}

#[derive(Debug)]
struct LoginMetrics {
    logins: Family<[(&'static str, &'static str); 1], Counter>,
    seconds: Histogram,
}

impl LoginMetrics {
    fn new() -> Self {
        let logins = Family::<[(&'static str, &'static str); 1], Counter>::default();
        // Alerts are about these: a counter that is not there before it counts does not show its first increase.
        for outcome in LoginOutcome::ALL {
            drop(logins.get_or_create(&[("outcome", outcome.word())]));
        }
        Self { logins, seconds: Histogram::new(SECONDS) }
    }

    fn count(&self, outcome: LoginOutcome, took: Duration) {
        self.logins.get_or_create(&[("outcome", outcome.word())]).inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

/// See the module. One serves all services of a front end, so that failures count across them.
#[derive(Debug)]
pub struct LoginDesk {
    pub authenticator: Authenticator,
    pub lockout: Lockout,
    metrics: LoginMetrics,
    slowest: Slowest,
}

/// The slowest decision of late, by which all refusals are given.
#[derive(Debug, Default)]
struct Slowest(Mutex<Option<(Duration, Instant)>>);

impl Slowest {
    /// Takes in a decision, and gives the moment of its refusal, counted from the password.
    fn moment_of(&self, took: Duration, now: Instant) -> Duration {
        let mut slowest = self.0.lock();
        let taken = took.min(MOMENT_MAX);
        let of_late = slowest.filter(|(_, at)| now.saturating_duration_since(*at) < SLOWEST_LASTS);
        // One that is as slow counts from anew.
        let (longest, at) = of_late.filter(|(longest, _)| *longest > taken).unwrap_or((taken, now));
        *slowest = Some((longest, at));
        let steps = longest.max(took).as_nanos() / MOMENT_STEP.as_nanos() + 1;
        MOMENT_STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
    }
}

impl LoginDesk {
    pub fn new(config: &Config, admins: Admins) -> Self {
        Self {
            authenticator: Authenticator::new(admins),
            lockout: Lockout::new(config.bans, config.ipv6_prefix),
            metrics: LoginMetrics::new(),
            slowest: Slowest::default(),
        }
    }

    /// Takes over what a reload changes. Admins who are logged in stay so.
    pub fn update(&self, config: &Config, admins: Admins) {
        self.authenticator.replace_admins(admins);
        self.lockout.set_rules(config.bans, config.ipv6_prefix);
    }

    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("portolan");
        registry.register("logins", "Logins, by what they came to", self.metrics.logins.clone());
        let help = "From the password to the decision, pauses after failures left out";
        registry.register_with_unit("login_duration", help, Unit::Seconds, self.metrics.seconds.clone());
    }

    /// Checks a name and its proof, and counts failures.
    ///
    /// # Errors
    /// Nobody is logged in; the service replies after the pause.
    pub async fn log_in(&self, attempt: Attempt<'_>) -> Result<Login, Denied> {
        let Attempt { name, proof, network, session, span } = attempt;
        let begun = Instant::now();
        let folded = fold(name);
        let typed = folded.as_deref().unwrap_or(WITHOUT_FORM);
        let proof = if folded.is_some() { proof } else { Err("no directory has such a name") };
        self.refuse_banned(&attempt, typed, begun)?;
        let mut account = None;
        let (cause, failure, outcome) = match proof {
            Ok(proof) => {
                let checked = self.authenticator.login(name, proof).await;
                account = match &checked {
                    Ok(admin) => fold(&admin.name),
                    Err(error) => error.account().and_then(fold),
                }
                .filter(|account| account != typed);
                // Of many guesses at once, those whose check was under way when the ban came are not decided. Nor is one
                // at an account that is banned by another spelling of its name.
                for counted in [Some(typed), account.as_deref()].into_iter().flatten() {
                    self.refuse_banned(&attempt, counted, begun)?;
                }
                match checked {
                    Ok(admin) => {
                        self.accepted(&attempt, &admin, proof, begun);
                        self.slowest.moment_of(begun.elapsed(), Instant::now());
                        let names: Vec<&str> = account.as_deref().into_iter().chain([typed]).collect();
                        self.lockout.succeeded(network, &names);
                        return Ok(Login { admin, session });
                    }
                    // No guess, so it does not count. The pause keeps a client that tries again at once from keeping
                    // the directory busy.
                    Err(error @ Error::Away { .. }) => {
                        let outcome = LoginOutcome::Undecided;
                        self.metrics.count(outcome, begun.elapsed());
                        let (result, cause) = (outcome.word(), chain(&error));
                        tracing::error!(
                            target: AUDIT,
                            parent: span,
                            event = "login", result, name, cause, "login not decided"
                        );
                        return Err(Denied { failure: LoginFailure::Undecided, pause: UNDECIDED_PAUSE });
                    }
                    Err(error @ Error::Barred { reason, .. }) => {
                        (chain(&error), LoginFailure::Barred(reason), LoginOutcome::Barred)
                    }
                    Err(error) => (chain(&error), LoginFailure::Wrong, LoginOutcome::Wrong),
                }
            }
            Err(reason) => (reason.to_owned(), LoginFailure::Wrong, LoginOutcome::Wrong),
        };
        let names: Vec<&str> = [typed].into_iter().chain(account.as_deref()).collect();
        let (pause, bans) = self.lockout.failed(network, &names, Instant::now());
        let moment = self.slowest.moment_of(begun.elapsed(), Instant::now()).max(pause);
        self.metrics.count(outcome, begun.elapsed());
        let result = outcome.word();
        tracing::warn!(target: AUDIT, parent: span, event = "login", result, name, cause, "login refused");
        for ban in bans {
            let until = humantime::format_rfc3339_seconds(ban.until);
            tracing::warn!(
                target: AUDIT,
                parent: span,
                event = "ban", banned = %ban.who, failures = ban.failures, %until, "banned: too many failed logins"
            );
        }
        Err(Denied { failure, pause: moment.saturating_sub(begun.elapsed()) })
    }

    fn refuse_banned(&self, attempt: &Attempt<'_>, counted: &str, begun: Instant) -> Result<(), Denied> {
        let Some(ban) = self.lockout.banned(attempt.network, counted, Instant::now()) else { return Ok(()) };
        let outcome = LoginOutcome::Banned;
        self.metrics.count(outcome, begun.elapsed());
        let (result, name) = (outcome.word(), attempt.name);
        tracing::warn!(
            target: AUDIT,
            parent: attempt.span,
            event = "login", result, name, banned = %ban.who, "login refused: banned"
        );
        Err(Denied::at_once(LoginFailure::Banned(ban)))
    }

    fn accepted(&self, attempt: &Attempt<'_>, admin: &Arc<Admin>, proof: Proof<'_>, begun: Instant) {
        let outcome = LoginOutcome::Accepted;
        self.metrics.count(outcome, begun.elapsed());
        let (result, admin, by) = (outcome.word(), &admin.name, proof.kind());
        tracing::info!(target: AUDIT, parent: attempt.span, event = "login", result, admin, by, "login");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_given_at_one_moment_whatever_they_took() {
        let (slowest, now) = (Slowest::default(), Instant::now());
        let ms = Duration::from_millis;
        for took in [0, 1, 30, 56, 249] {
            assert_eq!(slowest.moment_of(ms(took), now), ms(250), "{took}");
        }
        // One that was slow has all others wait as long.
        assert_eq!(slowest.moment_of(ms(700), now), ms(750));
        assert_eq!(slowest.moment_of(ms(3), now), ms(750));
        assert_eq!(slowest.moment_of(ms(3), now + SLOWEST_LASTS), ms(250));
        // None waits for one that took for ever.
        assert_eq!(slowest.moment_of(ms(60_000), now + SLOWEST_LASTS), ms(60_250));
        assert_eq!(slowest.moment_of(ms(3), now + SLOWEST_LASTS), ms(5_250));
    }
}
