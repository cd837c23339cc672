//! What the answer of a directory to a bind as an admin means: the account's trouble, or the server's.
//!
//! | code (RFC 4511 section 4.1.9) | of the bind as an admin |
//! |---|---|
//! | 0 | the password is right; barred where the password policy says that it must be changed first |
//! | 49, 32, 34, 48, 16 | wrong name or password; what Active Directory and password policies say of it beside |
//! | 19, 53, 50 | the account is locked, disabled or restricted: 389 Directory Server, FreeIPA, eDirectory |
//! | 7, 8, 10, 13, 51, 52 | the server has not looked at the password; the next one may |
//! | all others | not decided, and not tried again elsewhere: the directory may have counted it as a failure |
//!
//! Of the service account's bind every code but 0 is the server's trouble. Of a search as the service account 1, 8, 13, 50
//! to 53 are: it may not search, or the server does not want to; what else `LdapClient::search` does not take for an
//! answer is about what was searched for, and only that login is not decided.
//!
//! Who calls it: `login`.
//! What it calls: `active_directory`, for the text of code 49.
//! What it never does: take a code that only one account gets for the state of a server.

use ldap3::LdapResult;
use ldap3::controls::{Control, RawControl};

use super::active_directory::account_state;
use crate::ldap::{INSUFFICIENT_ACCESS, INVALID_CREDENTIALS, NO_SUCH_OBJECT, REFERRAL, SUCCESS, UNWILLING};

const OPERATIONS_ERROR: u32 = 1;
const AUTH_METHOD_NOT_SUPPORTED: u32 = 7;
const STRONGER_AUTH_REQUIRED: u32 = 8;
const CONFIDENTIALITY_REQUIRED: u32 = 13;
const NO_SUCH_ATTRIBUTE: u32 = 16;
const CONSTRAINT_VIOLATION: u32 = 19;
const INVALID_DN_SYNTAX: u32 = 34;
const INAPPROPRIATE_AUTHENTICATION: u32 = 48;
const BUSY: u32 = 51;
const UNAVAILABLE: u32 = 52;

/// The control of password policies (draft-behera-ldap-password-policy-11 section 6.1 and 6.2).
const PASSWORD_POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";
/// Netscape's "the password has expired", which 389 Directory Server sends with code 0 and 49.
const PASSWORD_EXPIRED: &str = "2.16.840.1.113730.3.4.4";

/// Asks for the state of the account with the answer. A server that does not know it passes it over.
pub(super) fn policy_request() -> RawControl {
    RawControl { ctype: PASSWORD_POLICY.to_owned(), crit: false, val: None }
}

/// What a server says of a bind as an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Proven,
    /// Counts as a wrong password: the password may be one.
    Refused(String),
    /// The password is right, and the account may not come in all the same.
    Barred(&'static str),
    /// The server has not looked at the password.
    Elsewhere,
    /// It may have looked, and counted.
    Unclear,
}

pub(super) fn verdict(result: &LdapResult) -> Verdict {
    match result.rc {
        // Everything but a change of the password is refused from here on, with codes that depend on the server.
        SUCCESS => policy_state(&result.ctrls).map_or(Verdict::Proven, |(reason, _)| Verdict::Barred(reason)),
        INVALID_CREDENTIALS
        | NO_SUCH_OBJECT
        | INVALID_DN_SYNTAX
        | INAPPROPRIATE_AUTHENTICATION
        | NO_SUCH_ATTRIBUTE => match account_state(&result.text).or_else(|| policy_state(&result.ctrls)) {
            Some((reason, true)) => Verdict::Barred(reason),
            Some((reason, false)) => Verdict::Refused(reason.to_owned()),
            None => Verdict::Refused("the directory refuses name or password".to_owned()),
        },
        code @ (CONSTRAINT_VIOLATION | UNWILLING | INSUFFICIENT_ACCESS) => Verdict::Refused(format!(
            "the directory does not let the account in: locked, disabled or restricted (code {code}: {})",
            result.text.trim()
        )),
        AUTH_METHOD_NOT_SUPPORTED
        | STRONGER_AUTH_REQUIRED
        | REFERRAL
        | CONFIDENTIALITY_REQUIRED
        | BUSY
        | UNAVAILABLE => Verdict::Elsewhere,
        _ => Verdict::Unclear,
    }
}

/// Is this code of a search about the service account or its server, and not about what is searched for?
pub(super) fn is_of_service(code: u32) -> bool {
    matches!(
        code,
        OPERATIONS_ERROR
            | STRONGER_AUTH_REQUIRED
            | CONFIDENTIALITY_REQUIRED
            | INSUFFICIENT_ACCESS
            | BUSY
            | UNAVAILABLE
            | UNWILLING
    )
}

/// What the controls with an answer say of the account; and whether only who knows the password is told so.
fn policy_state(controls: &[Control]) -> Option<(&'static str, bool)> {
    let sent = |ctype| {
        controls.iter().find(|Control(_, control)| control.ctype == ctype).map(|Control(_, sent)| sent)
    };
    let policy = sent(PASSWORD_POLICY).and_then(|control| policy_error(control.val.as_deref()?));
    match policy {
        Some(0) => Some(("the password has expired", true)),
        Some(1) => Some(("the account is locked", false)),
        Some(2) => Some(("the password must be changed first", true)),
        _ => sent(PASSWORD_EXPIRED).map(|_| ("the password has expired or must be changed first", true)),
    }
}

/// The error of a password policy: `SEQUENCE { warning [0] ... OPTIONAL, error [1] ENUMERATED OPTIONAL }`.
fn policy_error(value: &[u8]) -> Option<u8> {
    let (0x30, mut rest, _) = element(value)? else { return None };
    while let Some((tag, content, more)) = element(rest) {
        if let (0x81, [error]) = (tag, content) {
            return Some(*error);
        }
        rest = more;
    }
    None
}

/// The first element of some BER (X.690 section 8.1): its tag, its content, and what follows. 389 Directory Server writes
/// short lengths in the long form.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = bytes else { return None };
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if length.len() > 4 {
            return None;
        }
        (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(rc: u32, text: &str, ctrls: Vec<Control>) -> Verdict {
        let (matched, refs) = (String::new(), Vec::new());
        verdict(&LdapResult { rc, matched, text: text.to_owned(), refs, ctrls })
    }

    fn control(ctype: &str, val: Option<&[u8]>) -> Vec<Control> {
        vec![Control(None, RawControl { ctype: ctype.to_owned(), crit: false, val: val.map(<[u8]>::to_vec) })]
    }

    #[test]
    fn no_answer_about_an_account_is_taken_for_the_state_of_a_server() {
        assert_eq!(answered(0, "", vec![]), Verdict::Proven);
        for rc in [16, 19, 32, 34, 48, 49, 50, 53] {
            assert!(matches!(answered(rc, "", vec![]), Verdict::Refused(_)), "{rc}");
        }
        for rc in [7, 8, 10, 13, 51, 52] {
            assert_eq!(answered(rc, "", vec![]), Verdict::Elsewhere, "{rc}");
        }
        for rc in [1, 2, 3, 11, 54, 80, 118, 4_096] {
            assert_eq!(answered(rc, "", vec![]), Verdict::Unclear, "{rc}");
        }
        let text = "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 775, v1db1";
        assert_eq!(answered(49, text, vec![]), Verdict::Refused("the account is locked".to_owned()));
        assert_eq!(
            answered(49, &text.replace("775", "532"), vec![]),
            Verdict::Barred("the password has expired")
        );
    }

    #[test]
    fn password_policies_bar_also_who_knows_the_password() {
        let policy = |value: &[u8]| control(PASSWORD_POLICY, Some(value));
        let changing = Verdict::Barred("the password must be changed first");
        assert_eq!(answered(0, "", policy(&[0x30, 3, 0x81, 1, 2])), changing);
        // With a warning before it: so many seconds to the end of the password.
        assert_eq!(answered(0, "", policy(&[0x30, 8, 0xa0, 3, 0x80, 1, 60, 0x81, 1, 2])), changing);
        assert_eq!(answered(0, "", policy(&[0x30, 0x84, 0, 0, 0, 3, 0x81, 1, 2])), changing);
        assert_eq!(answered(0, "", policy(&[0x30, 5, 0xa0, 3, 0x80, 1, 60])), Verdict::Proven);
        let expired = Verdict::Barred("the password has expired");
        assert_eq!(answered(49, "", policy(&[0x30, 3, 0x81, 1, 0])), expired);
        let locked = Verdict::Refused("the account is locked".to_owned());
        assert_eq!(answered(49, "", policy(&[0x30, 3, 0x81, 1, 1])), locked);
        assert!(matches!(answered(0, "", control(PASSWORD_EXPIRED, Some(b"0"))), Verdict::Barred(_)));
        for broken in [
            &b""[..],
            &[0x30],
            &[0x30, 9],
            &[0x30, 3, 0x81, 9, 1],
            &[0x30, 2, 0x81, 1],
            &[4, 1, 0],
            &[0x30, 0x88, 1],
        ] {
            assert_eq!(answered(0, "", policy(broken)), Verdict::Proven, "{broken:?}");
        }
    }
}
