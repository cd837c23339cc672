//! Which right each call needs: the rule that front end and agent both check.
//!
//! Who calls it: `tree` on the front end, `service` on the agent, which also asks what the front end itself may do.
//! What it calls: nothing.
//! What it never does: know who has a right.

use std::fmt;

use crate::v1;

/// What somebody may do somewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    /// List and read.
    pub backup: bool,
    /// List, write, replace, rename, set times and modes.
    pub write: bool,
    /// List and remove.
    pub delete: bool,
}

impl Rights {
    /// The words of a configuration.
    pub const WORDS: [&'static str; 4] = ["backup", "restore", "write", "delete"];

    /// The rights that some of [`Rights::WORDS`] give together. `restore` is `write` and `delete`, as it was before there
    /// were these two.
    ///
    /// # Errors
    /// The first word that is not one of them.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut rights = Self::default();
        for word in words {
            match word {
                "backup" => rights.backup = true,
                "restore" => (rights.write, rights.delete) = (true, true),
                "write" => rights.write = true,
                "delete" => rights.delete = true,
                other => return Err(other),
            }
        }
        Ok(rights)
    }

    /// Those of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            backup: self.backup || other.backup,
            write: self.write || other.write,
            delete: self.delete || other.delete,
        }
    }

    /// Those that a call states. A front end of before the right to delete does not state it: there `restore` has it.
    pub fn of(grant: &v1::Grant) -> Self {
        let delete = grant.delete.unwrap_or(grant.restore);
        Self { backup: grant.backup, write: grant.restore, delete }
    }
}

/// By the words of a configuration: `backup, restore`.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self { backup: false, write: false, delete: false } => "nothing",
            Self { backup: true, write: false, delete: false } => "backup",
            Self { backup: false, write: true, delete: false } => "write",
            Self { backup: false, write: false, delete: true } => "delete",
            Self { backup: true, write: true, delete: false } => "backup, write",
            Self { backup: true, write: false, delete: true } => "backup, delete",
            Self { backup: false, write: true, delete: true } => "restore",
            Self { backup: true, write: true, delete: true } => "backup, restore",
        };
        f.write_str(words)
    }
}

/// What somebody wants to do at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// See names, sizes and times: any right will do.
    Look,
    /// See content.
    Read,
    /// Write, replace, rename.
    Change,
    /// Remove.
    Delete,
}

impl Need {
    /// Do these rights suffice?
    pub fn is_met_by(self, rights: Rights) -> bool {
        let Rights { backup, write, delete } = rights;
        match self {
            Need::Look => backup || write || delete,
            Need::Read => backup,
            Need::Change => write,
            Need::Delete => delete,
        }
    }

    /// Does it change what is there?
    pub fn changes(self) -> bool {
        match self {
            Need::Look | Need::Read => false,
            Need::Change | Need::Delete => true,
        }
    }
}

/// A request about a path, made for somebody.
pub trait OnPath {
    /// What it does there.
    const NEED: Need;
    /// It makes or removes a directory, which may be a level of the cluster.
    const MAKES_LEVELS: bool;
    fn caller(&self) -> Option<&v1::Caller>;
    /// As it came. Of a rename, the present path.
    fn path(&self) -> &[u8];
}

macro_rules! on_path {
    ($($request:ident . $path:ident: $need:ident $(, $levels:literal)?;)*) => {$(
        impl OnPath for v1::$request {
            const NEED: Need = Need::$need;
            const MAKES_LEVELS: bool = false $(|| $levels)?;
            fn caller(&self) -> Option<&v1::Caller> {
                self.caller.as_ref()
            }
            fn path(&self) -> &[u8] {
                &self.$path
            }
        }
    )*};
}
on_path! {
    StatRequest.path: Look;
    ListRequest.path: Look;
    ReadRequest.path: Read;
    DigestRequest.path: Read;
    WriteBegin.path: Change;
    MakeDirectoryRequest.path: Change, true;
    RemoveRequest.path: Delete;
    RemoveDirectoryRequest.path: Delete, true;
    RenameRequest.from: Change;
    SetTimesRequest.path: Change;
    SetModeRequest.path: Change;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_right_gives_what_it_says_and_no_more() {
        for (words, look, read, change, delete) in [
            ("", false, false, false, false),
            ("backup", true, true, false, false),
            ("write", true, false, true, false),
            ("delete", true, false, false, true),
            ("restore", true, false, true, true),
            ("write delete", true, false, true, true),
            ("backup write", true, true, true, false),
            ("backup restore", true, true, true, true),
        ] {
            let rights = Rights::from_words(words.split_whitespace()).unwrap();
            let met = [Need::Look, Need::Read, Need::Change, Need::Delete].map(|need| need.is_met_by(rights));
            assert_eq!(met, [look, read, change, delete], "{words}");
            let shown = rights.to_string();
            if shown != "nothing" {
                assert_eq!(Rights::from_words(shown.split(", ")), Ok(rights), "{words}");
            }
        }
        assert_eq!(Rights::from_words(["backup", "Delete"]), Err("Delete"));
    }

    #[test]
    fn a_front_end_that_does_not_know_the_right_to_delete_has_it_with_restore_and_no_other() {
        for (restore, delete, expected) in
            [(true, None, true), (false, None, false), (true, Some(false), false), (false, Some(true), true)]
        {
            let grant = v1::Grant { restore, delete, ..v1::Grant::default() };
            assert_eq!(Rights::of(&grant).delete, expected, "{restore} {delete:?}");
        }
    }
}
