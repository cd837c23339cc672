//! Which events a target takes: levels, and rules by module.

use portolan_config::checked::log::{Level, Levels, Records};
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{AUDIT, CRITICAL, PROTOCOL};

/// Libraries whose words are ours already, or that would log what logging does.
const QUIET: [(&str, LevelFilter); 9] = [
    // It logs what a client breaks off as its own errors, but the front end logs the cause once.
    ("libunftp", LevelFilter::OFF),
    // It warns of every client that connects to an IP address.
    ("rustls", LevelFilter::ERROR),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    ("hyper_util", LevelFilter::WARN),
    ("tonic", LevelFilter::WARN),
    ("tower", LevelFilter::WARN),
    ("opentelemetry", LevelFilter::WARN),
    ("ldap3", LevelFilter::WARN),
];

fn least(level: Level) -> LevelFilter {
    match level {
        Level::Critical => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warning => LevelFilter::WARN,
        Level::Info | Level::Protocol => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// The filter of a target.
pub(super) fn filter(records: Records, levels: &Levels) -> Targets {
    if records != Records::Log {
        return Targets::new().with_target(AUDIT, LevelFilter::INFO);
    }
    let default = least(levels.level);
    let quiet = QUIET.into_iter().map(|(name, most)| (name, most.min(default)));
    let protocol = if levels.level >= Level::Protocol { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let rules = levels.modules.iter().map(|(module, level)| (module.as_str(), least(*level)));
    Targets::new()
        .with_default(default)
        .with_targets(quiet)
        .with_target(CRITICAL, LevelFilter::ERROR)
        .with_target(PROTOCOL, protocol)
        .with_targets(rules)
}

#[cfg(test)]
mod tests {
    use tracing::Level as L;

    use super::*;

    fn levels(level: Level) -> Levels {
        Levels { level, modules: Default::default() }
    }

    #[test]
    fn each_level_takes_what_is_above_it() {
        let words =
            [Level::Critical, Level::Error, Level::Warning, Level::Info, Level::Protocol, Level::Debug];
        let module = "portolan_frontend::gate";
        let events = [
            (CRITICAL, L::ERROR),
            (module, L::ERROR),
            (module, L::WARN),
            (module, L::INFO),
            (PROTOCOL, L::DEBUG),
            (module, L::DEBUG),
        ];
        for (place, level) in words.into_iter().enumerate() {
            let filter = filter(Records::Log, &levels(level));
            for (index, (target, event)) in events.iter().enumerate() {
                assert_eq!(filter.would_enable(target, event), index <= place, "{level:?} {target} {event}");
            }
        }
    }

    #[test]
    fn a_rule_of_a_module_counts_before_the_level() {
        let mut levels = levels(Level::Warning);
        levels.modules.insert("portolan_frontend::gate".to_owned(), Level::Debug);
        levels.modules.insert("hyper".to_owned(), Level::Info);
        let filter = filter(Records::Log, &levels);
        assert!(filter.would_enable("portolan_frontend::gate::flow", &L::DEBUG));
        assert!(!filter.would_enable("portolan_frontend::ftp", &L::INFO));
        assert!(filter.would_enable("hyper::proto", &L::INFO));
    }

    #[test]
    fn the_audit_has_its_own_events_whatever_the_level() {
        let filter = filter(Records::Audit, &levels(Level::Critical));
        assert!(filter.would_enable(AUDIT, &L::INFO) && filter.would_enable(AUDIT, &L::WARN));
        assert!(!filter.would_enable("portolan_frontend::ftp", &L::ERROR));
    }
}
