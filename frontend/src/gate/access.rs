//! Access rules: who may connect. A pure function.

use std::net::IpAddr;

use portolan_config::checked::access::{AccessRule, RuleLimits, Verdict};

/// What a list of rules says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// The place of the rule that decided; `None`: no rule allows the address, so it is denied.
    pub rule: Option<usize>,
    pub limits: RuleLimits,
}

/// Of the rules that fit the address, the best allowing and the best denying one are compared, the first one of
/// several with the same priority. The higher priority (the lower number) wins, a deny wins a tie.
pub fn decide(rules: &[AccessRule], address: IpAddr) -> Decision {
    let best = |verdict| {
        let fitting = rules.iter().enumerate().filter(|(_, rule)| rule.verdict == verdict);
        fitting.filter(|(_, rule)| rule.from.contains(address)).min_by_key(|(_, rule)| rule.priority)
    };
    let denied = |rule: Option<usize>| Decision { verdict: Verdict::Deny, rule, limits: RuleLimits::NONE };
    match (best(Verdict::Allow), best(Verdict::Deny)) {
        (Some((_, allow)), Some((place, deny))) if deny.priority <= allow.priority => denied(Some(place)),
        (Some((place, allow)), _) => {
            Decision { verdict: Verdict::Allow, rule: Some(place), limits: allow.limits }
        }
        (None, deny) => denied(deny.map(|(place, _)| place)),
    }
}

#[cfg(test)]
mod tests {
    use portolan_config::checked::access::Limits;

    use super::*;

    fn rules(text: &str) -> Vec<AccessRule> {
        let rule = |line: &str| {
            let [verdict, from, priority] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            AccessRule {
                verdict: if verdict == "allow" { Verdict::Allow } else { Verdict::Deny },
                from: from.parse().unwrap(),
                priority: priority.parse().unwrap(),
                limits: RuleLimits::NONE,
            }
        };
        text.split(',').filter(|line| !line.trim().is_empty()).map(rule).collect()
    }

    #[test]
    fn the_best_rule_decides() {
        for (list, address, verdict, rule) in [
            ("", "192.0.2.1", Verdict::Deny, None),
            ("allow all 500", "192.0.2.1", Verdict::Allow, Some(0)),
            ("allow all 500", "2001:db8::1", Verdict::Allow, Some(0)),
            ("deny all 500", "192.0.2.1", Verdict::Deny, Some(0)),
            // A tie.
            ("allow all 500, deny all 500", "192.0.2.1", Verdict::Deny, Some(1)),
            // The priority counts, not the place and not how narrow it is.
            ("allow all 499, deny all 500", "192.0.2.1", Verdict::Allow, Some(0)),
            ("allow all 501, deny all 500", "192.0.2.1", Verdict::Deny, Some(1)),
            ("deny 192.0.2.1 500, allow 192.0.0.0/16 1", "192.0.2.1", Verdict::Allow, Some(1)),
            // Best against best: worse ones do not matter.
            (
                "deny all 1000, allow all 500, deny 192.0.2.0/24 2, allow 192.0.2.1 1",
                "192.0.2.1",
                Verdict::Allow,
                Some(3),
            ),
            (
                "deny all 1000, allow all 500, deny 192.0.2.0/24 2, allow 192.0.2.1 1",
                "192.0.2.2",
                Verdict::Deny,
                Some(2),
            ),
            (
                "deny all 1000, allow all 500, deny 192.0.2.0/24 2, allow 192.0.2.1 1",
                "192.0.3.2",
                Verdict::Allow,
                Some(1),
            ),
            // Of equals the first.
            ("allow 192.0.2.1 5, allow all 5", "192.0.2.1", Verdict::Allow, Some(0)),
            ("allow all 5, allow 192.0.2.1 5", "192.0.2.1", Verdict::Allow, Some(0)),
            // What no rule allows.
            ("allow 192.0.2.0-192.0.2.9 1", "192.0.2.10", Verdict::Deny, None),
            ("deny 192.0.2.1 1", "192.0.2.2", Verdict::Deny, None),
            // IPv4 by IPv6, as a socket for both families tells it.
            ("allow 192.0.2.1 1", "::ffff:192.0.2.1", Verdict::Allow, Some(0)),
            ("deny 192.0.2.1 1, allow all 2", "::ffff:192.0.2.1", Verdict::Deny, Some(0)),
            ("allow ::ffff:192.0.2.0/120 1", "192.0.2.9", Verdict::Allow, Some(0)),
            ("allow ::/0 1", "192.0.2.9", Verdict::Deny, None),
            ("allow 0.0.0.0/0 1", "2001:db8::1", Verdict::Deny, None),
            ("allow 2001:db8::/32 1, deny 2001:db8:1::/48 1", "2001:db8:1::1", Verdict::Deny, Some(1)),
        ] {
            let decision = decide(&rules(list), address.parse().unwrap());
            assert_eq!((decision.verdict, decision.rule), (verdict, rule), "{list} {address}");
        }
    }

    #[test]
    fn an_allowing_rule_brings_its_limits() {
        let own = Limits { simultaneous: 7, ..Limits::NONE };
        let limits = RuleLimits { own, replaces_simultaneous_per_address: true, ..RuleLimits::NONE };
        let mut list = rules("allow all 500, allow 192.0.2.1 1");
        list[1].limits = limits;
        assert_eq!(decide(&list, "192.0.2.1".parse().unwrap()).limits, limits);
        assert_eq!(decide(&list, "192.0.2.2".parse().unwrap()).limits, RuleLimits::NONE);
    }
}
