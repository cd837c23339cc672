//! What a session learns of its client: how it writes byte 255, and whether it would translate names.
//!
//! Who calls it: the commands, with each argument and with CLNT.
//! What it calls: nothing.
//! What it never does: decide what a name means where both readings are possible; `commands::path` does that.

/// A client, as far as its session knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Client {
    /// It named itself lftp.
    is_lftp: bool,
    /// An argument had a byte 255 that is not doubled.
    sends_plain: bool,
}

/// How a client writes a byte 255 of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// As it is, as most clients do.
    Plain,
    /// Twice, as Telnet has it (RFC 854).
    Doubled,
}

impl Client {
    /// Notes the name of CLNT.
    pub(super) fn is_named(&mut self, name: &[u8]) {
        self.is_lftp = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"lftp"));
    }

    /// Notes how an argument is written.
    pub(super) fn sends(&mut self, argument: &[u8]) {
        self.sends_plain |= runs(argument).any(|length| length % 2 == 1);
    }

    /// `protected`: the control connection speaks TLS. `None`: nothing tells yet.
    pub(super) fn writing(self, protected: bool) -> Option<Writing> {
        match self {
            Client { sends_plain: true, .. } => Some(Writing::Plain),
            // lftp 4.9.2 speaks Telnet in plaintext, and not over TLS.
            Client { is_lftp: true, .. } if protected => Some(Writing::Plain),
            Client { is_lftp: true, .. } => Some(Writing::Doubled),
            Client { .. } => None,
        }
    }

    /// Told that names are UTF-8, lftp 4.9.2 translates them to its locale, and what that lacks to `?`: in the locale
    /// C, which cron has, names of mail fall together. It then also drops the end of listings that come packed.
    pub(super) fn translates_names(self) -> bool {
        self.is_lftp
    }
}

/// The other reading of an argument in which each byte 255 may be doubled; `None` if none is, or not all are.
pub(super) fn undoubled(argument: &[u8]) -> Option<Vec<u8>> {
    let mut lengths = runs(argument).peekable();
    if lengths.peek().is_none() || lengths.any(|length| length % 2 == 1) {
        return None;
    }
    let mut rest = argument;
    let mut undoubled = Vec::with_capacity(argument.len());
    while let [byte, after @ ..] = rest {
        undoubled.push(*byte);
        rest = if *byte == IAC { &after[1..] } else { after };
    }
    Some(undoubled)
}

/// Telnet's "interpret as command".
const IAC: u8 = 255;

/// How many bytes 255 stand together, at each place where some do.
fn runs(argument: &[u8]) -> impl Iterator<Item = usize> {
    argument.chunk_by(|a, b| (*a == IAC) == (*b == IAC)).filter(|run| run[0] == IAC).map(<[u8]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_of_even_length_may_be_doubled() {
        for plain in [&b""[..], b"a", b"\xff", b"a\xff\xff\xff", b"\xff\xff/\xff", b"\xffa\xff\xff"] {
            assert_eq!(undoubled(plain), None, "{}", plain.escape_ascii());
        }
        for (argument, other) in [
            (&b"\xff\xff"[..], &b"\xff"[..]),
            (b"a\xff\xff\xff\xffb", b"a\xff\xffb"),
            (b"\xff\xff/a\xff\xff", b"\xff/a\xff"),
        ] {
            assert_eq!(undoubled(argument).as_deref(), Some(other), "{}", argument.escape_ascii());
        }
    }

    #[test]
    fn a_client_is_known_by_a_single_byte_255_or_by_its_name() {
        let mut client = Client::default();
        client.sends(b"a\xff\xffb");
        assert_eq!(client.writing(false), None);
        client.is_named(b"lftp/4.9.2");
        assert_eq!(
            (client.writing(false), client.writing(true)),
            (Some(Writing::Doubled), Some(Writing::Plain))
        );
        client.sends(b"a\xff\xffb\xff");
        assert_eq!(client.writing(false), Some(Writing::Plain));
        let mut other = Client::default();
        other.is_named(b"lft");
        assert_eq!((other.writing(true), other.translates_names()), (None, false));
    }
}
