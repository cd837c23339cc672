//! A line of the control connection, taken apart: which command, and what it is applied to.

use portolan_telemetry::log::PROTOCOL;

/// A command as the client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) verb: Verb,
    /// What follows the verb and one space, as it is: names may begin and end with spaces.
    pub(super) argument: Vec<u8>,
}

macro_rules! verbs {
    ($($verb:ident)*) => {
        /// The commands that this engine knows, by the names of the RFCs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(clippy::upper_case_acronyms)]
        pub(super) enum Verb { $($verb,)* }

        impl Verb {
            pub(super) const ALL: &[Verb] = &[$(Verb::$verb),*];

            pub(super) fn name(self) -> &'static str {
                match self { $(Verb::$verb => stringify!($verb),)* }
            }
        }
    };
}

verbs! {
    ABOR ACCT ALLO APPE AUTH AVBL CCC CDUP CLNT CSID CWD DELE EPRT EPSV FEAT HASH HELP HOST LANG LIST MDTM MFF
    MFMT MKD MLSD MLST MODE NLST NOOP OPTS PASS PASV PBSZ PORT PROT PWD QUIT RANG REIN REST RETR RMD RNFR RNTO
    SITE SIZE STAT STOR STOU STRU SYST TYPE USER XCRC XCUP XCWD XMD5 XMKD XPWD XRMD XSHA1 XSHA256 XSHA512
}

impl Verb {
    /// The command of a name, in any case.
    pub(super) fn of(name: &[u8]) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|verb| verb.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Served before the login.
    pub(super) fn is_open(self) -> bool {
        use Verb::{ABOR, ACCT, AUTH, CCC, CLNT, CSID, FEAT, HELP, HOST, LANG};
        use Verb::{NOOP, OPTS, PASS, PBSZ, PROT, QUIT, REIN, SYST, USER};
        matches!(
            self,
            ABOR | ACCT
                | AUTH
                | CCC
                | CLNT
                | CSID
                | FEAT
                | HELP
                | HOST
                | LANG
                | NOOP
                | OPTS
                | PASS
                | PBSZ
                | PROT
                | QUIT
                | REIN
                | SYST
                | USER
        )
    }

    /// Only looks at what its name stands for: nothing is changed there, and nothing that follows depends on it.
    pub(super) fn only_looks(self) -> bool {
        use Verb::{
            AVBL, HASH, LIST, MDTM, MLSD, MLST, NLST, RETR, SIZE, STAT, XCRC, XMD5, XSHA1, XSHA256, XSHA512,
        };
        matches!(
            self,
            AVBL | HASH
                | LIST
                | MDTM
                | MLSD
                | MLST
                | NLST
                | RETR
                | SIZE
                | STAT
                | XCRC
                | XMD5
                | XSHA1
                | XSHA256
                | XSHA512
        )
    }

    /// Makes a name.
    pub(super) fn makes_name(self) -> bool {
        matches!(self, Verb::APPE | Verb::MKD | Verb::RNTO | Verb::STOR | Verb::XMKD)
    }

    /// Makes no sense without an argument.
    pub(super) fn wants_argument(self) -> bool {
        use Verb::{ABOR, ACCT, ALLO, AVBL, CCC, CDUP, CLNT, CSID, EPSV, FEAT, HELP, LANG, LIST, MLSD, MLST};
        use Verb::{NLST, NOOP, PASS, PASV, PWD, QUIT, REIN, STAT, STOU, SYST, XCUP, XPWD};
        !matches!(
            self,
            ABOR | ACCT
                | ALLO
                | AVBL
                | CCC
                | CDUP
                | CLNT
                | CSID
                | EPSV
                | FEAT
                | HELP
                | LANG
                | LIST
                | MLSD
                | MLST
                | NLST
                | NOOP
                | PASS
                | PASV
                | PWD
                | QUIT
                | REIN
                | STAT
                | STOU
                | SYST
                | XCUP
                | XPWD
        )
    }
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Unknown,
    /// The command needs an argument.
    Bare(Verb),
}

impl Command {
    pub(super) fn parse(line: &[u8]) -> Result<Self, Fault> {
        let (verb, argument) = match line.iter().position(|byte| *byte == b' ') {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &[][..]),
        };
        let verb = Verb::of(verb).ok_or(Fault::Unknown)?;
        if argument.is_empty() && verb.wants_argument() {
            return Err(Fault::Bare(verb));
        }
        Ok(Self { verb, argument: argument.to_vec() })
    }

    /// Tells the log of the conversation, but for passwords.
    pub(super) fn log(&self) {
        let shown = || match self.verb {
            Verb::PASS | Verb::ACCT if !self.argument.is_empty() => "***".to_owned(),
            // Elsewhere some of them take passwords, and clients may think so here.
            Verb::SITE if !SITE_SHOWN.iter().any(|name| begins_with(&self.argument, name)) => {
                "***".to_owned()
            }
            _ => portolan_proto::path::display(&self.argument).to_string(),
        };
        tracing::debug!(target: PROTOCOL, command = self.verb.name(), argument = shown(), "the client says");
    }
}

/// Those of SITE whose arguments are no secrets.
const SITE_SHOWN: [&str; 3] = ["CHMOD", "UTIME", "HELP"];

fn begins_with(argument: &[u8], word: &str) -> bool {
    argument.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

/// The words of an argument, for commands whose argument is no name.
pub(super) fn words(argument: &[u8]) -> Vec<&[u8]> {
    argument.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).collect()
}

/// A decimal number.
pub(super) fn number(word: &[u8]) -> Option<u64> {
    let digits =
        std::str::from_utf8(word).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        for bad in [&b""[..], b" NOOP", b"NOOPE", b"GET / HTTP/1.1", b"\x16\x03\x01"] {
            assert_eq!(Command::parse(bad), Err(Fault::Unknown));
        }
        assert_eq!(Command::parse(b"RETR"), Err(Fault::Bare(Verb::RETR)));
        assert_eq!(Command::parse(b"retr "), Err(Fault::Bare(Verb::RETR)));
        let named = Command::parse(b"retr  a \xff ").unwrap();
        assert_eq!((named.verb, &named.argument[..]), (Verb::RETR, &b" a \xff "[..]));
        assert_eq!(Command::parse(b"noop").unwrap().verb, Verb::NOOP);
    }

    #[test]
    fn numbers_are_plain() {
        for bad in [&b""[..], b"-1", b"+1", b"1x", b"18446744073709551616", b" 1"] {
            assert_eq!(number(bad), None);
        }
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
    }
}
