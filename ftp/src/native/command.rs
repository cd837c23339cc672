//! A line of the control connection, taken apart: which command, and what it is applied to.

use portolan_telemetry::log::PROTOCOL;

use crate::verb::Verb;

/// A command as the client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) verb: Verb,
    /// What follows the verb and one space, as it is: names may begin and end with spaces.
    pub(super) argument: Vec<u8>,
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
        // Devices and old scripts send blanks behind their words. In a name they are a part of it.
        let argument = if verb.takes_words() { argument.trim_ascii() } else { argument };
        if argument.is_empty() && verb.wants_argument() {
            return Err(Fault::Bare(verb));
        }
        Ok(Self { verb, argument: argument.to_vec() })
    }

    /// Logs it as part of the conversation, without passwords.
    pub(super) fn log(&self) {
        let shown = || match self.verb.shows(&self.argument) {
            true => portolan_proto::path::display(&self.argument).to_string(),
            false => "***".to_owned(),
        };
        tracing::debug!(target: PROTOCOL, command = self.verb.name(), argument = shown(), "command received");
    }
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
        for (line, argument) in [
            (&b"TYPE I "[..], &b"I"[..]),
            (b"TYPE  I", b"I"),
            (b"PASV  ", b""),
            (b"STOR a ", b"a "),
            (b"USER  a ", b" a "),
            (b"PASS  a ", b" a "),
        ] {
            assert_eq!(Command::parse(line).unwrap().argument, argument, "{}", line.escape_ascii());
        }
        assert_eq!(Command::parse(b"TYPE  "), Err(Fault::Bare(Verb::TYPE)));
    }

    #[test]
    fn numbers_are_plain() {
        for bad in [&b""[..], b"-1", b"+1", b"1x", b"18446744073709551616", b" 1"] {
            assert_eq!(number(bad), None);
        }
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
    }
}
