//! The verbs of FTP, and all that is to be known of each: one table for both engines, the metrics and the log.
//!
//! Who calls it: the engines; `transfer`, `metrics` and `control`, for labels.
//! What it calls: nothing.
//! What it never does: run a command.

use crate::metrics::Way;

/// What is true of a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Properties {
    name: &'static str,
    access: Access,
    argument: Argument,
    effect: Effect,
    /// The way of its content, where it opens a data connection.
    content: Option<Way>,
}

/// Whether a verb is served before the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Served before the login.
    Open,
    /// Refused before it.
    Needed,
}

/// What follows a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument {
    Needed,
    /// There may be none.
    Free,
    /// There may be none, and it is not written to the log.
    Secret,
    /// Needed; its first word decides what is written to the log.
    Site,
}

/// What a verb does at the path that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It names none, or what it does is of the session.
    Session,
    /// It only looks: nothing is changed there, and nothing that follows depends on it.
    Looks,
    /// What follows is about it.
    Chooses,
    /// What is there changes.
    Changes,
    /// The same, and the name may be new.
    Makes,
}

macro_rules! verbs {
    ($($verb:ident $access:ident $argument:ident $effect:ident $content:expr;)*) => {
        /// A verb that this server knows, by the names of the RFCs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(clippy::upper_case_acronyms)]
        pub enum Verb { $($verb,)* }

        impl Verb {
            pub const ALL: &[Verb] = &[$(Verb::$verb),*];

            const TABLE: &[Properties] = &[$(Properties {
                name: stringify!($verb),
                access: Access::$access,
                argument: Argument::$argument,
                effect: Effect::$effect,
                content: $content,
            }),*];
        }
    };
}

const NONE: Option<Way> = None;
const DOWN: Option<Way> = Some(Way::Download);
const UP: Option<Way> = Some(Way::Upload);
const LISTING: Option<Way> = Some(Way::Listing);

verbs! {
    ABOR Open Free Session NONE;
    ACCT Open Secret Session NONE;
    ALLO Needed Free Session NONE;
    APPE Needed Needed Makes UP;
    AUTH Open Needed Session NONE;
    AVBL Needed Free Looks NONE;
    CCC Open Free Session NONE;
    CDUP Needed Free Session NONE;
    CLNT Open Free Session NONE;
    CSID Open Free Session NONE;
    CWD Needed Needed Chooses NONE;
    DELE Needed Needed Changes NONE;
    EPRT Needed Needed Session NONE;
    EPSV Needed Free Session NONE;
    FEAT Open Free Session NONE;
    HASH Needed Needed Looks NONE;
    HELP Open Free Session NONE;
    HOST Open Needed Session NONE;
    LANG Open Free Session NONE;
    LIST Needed Free Looks LISTING;
    MDTM Needed Needed Looks NONE;
    MFF Needed Needed Changes NONE;
    MFMT Needed Needed Changes NONE;
    MKD Needed Needed Makes NONE;
    MLSD Needed Free Looks LISTING;
    MLST Needed Free Looks NONE;
    MODE Needed Needed Session NONE;
    NLST Needed Free Looks LISTING;
    NOOP Open Free Session NONE;
    OPTS Open Needed Session NONE;
    PASS Open Secret Session NONE;
    PASV Needed Free Session NONE;
    PBSZ Open Needed Session NONE;
    PORT Needed Needed Session NONE;
    PROT Open Needed Session NONE;
    PWD Needed Free Session NONE;
    QUIT Open Free Session NONE;
    RANG Needed Needed Session NONE;
    REIN Open Free Session NONE;
    REST Needed Needed Session NONE;
    RETR Needed Needed Looks DOWN;
    RMD Needed Needed Changes NONE;
    RNFR Needed Needed Chooses NONE;
    RNTO Needed Needed Makes NONE;
    SITE Needed Site Changes NONE;
    SIZE Needed Needed Looks NONE;
    STAT Needed Free Looks NONE;
    STOR Needed Needed Makes UP;
    STOU Needed Free Changes UP;
    STRU Needed Needed Session NONE;
    SYST Open Free Session NONE;
    TYPE Needed Needed Session NONE;
    USER Open Needed Session NONE;
    XCRC Needed Needed Looks NONE;
    XCUP Needed Free Session NONE;
    XCWD Needed Needed Chooses NONE;
    XMD5 Needed Needed Looks NONE;
    XMKD Needed Needed Makes NONE;
    XPWD Needed Free Session NONE;
    XRMD Needed Needed Changes NONE;
    XSHA1 Needed Needed Looks NONE;
    XSHA256 Needed Needed Looks NONE;
    XSHA512 Needed Needed Looks NONE;
}

impl Verb {
    fn properties(self) -> &'static Properties {
        &Self::TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.properties().name
    }

    /// The verb of a name, in any case.
    pub fn of(name: &[u8]) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|verb| verb.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Served before the login.
    pub fn is_open(self) -> bool {
        self.properties().access == Access::Open
    }

    /// Only looks at what its name stands for: nothing is changed there, and nothing that follows depends on it.
    pub fn only_looks(self) -> bool {
        self.properties().effect == Effect::Looks
    }

    /// Makes a name.
    pub fn makes_name(self) -> bool {
        self.properties().effect == Effect::Makes
    }

    /// Changes names, times or permissions, and has no content.
    pub fn changes(self) -> bool {
        let Properties { effect, content, .. } = self.properties();
        matches!(effect, Effect::Changes | Effect::Makes) && content.is_none()
    }

    /// Makes no sense without an argument.
    pub fn wants_argument(self) -> bool {
        matches!(self.properties().argument, Argument::Needed | Argument::Site)
    }

    /// Its argument is made of words and numbers: no name, and no secret.
    pub fn takes_words(self) -> bool {
        let Properties { effect, argument, .. } = self.properties();
        *effect == Effect::Session && *argument != Argument::Secret && self != Verb::USER
    }

    /// The way of its content, where it opens a data connection.
    pub fn content(self) -> Option<Way> {
        self.properties().content
    }

    /// Whether the log may show this argument.
    pub fn shows(self, argument: &[u8]) -> bool {
        match self.properties().argument {
            Argument::Needed | Argument::Free => true,
            Argument::Secret => argument.is_empty(),
            // Elsewhere some words of SITE take passwords, and clients may send them here.
            Argument::Site => SITE_SHOWN.iter().any(|word| begins_with(argument, word)),
        }
    }
}

/// Words of SITE whose arguments are no secrets.
const SITE_SHOWN: [&str; 3] = ["CHMOD", "UTIME", "HELP"];

fn begins_with(argument: &[u8], word: &str) -> bool {
    argument.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}
