//! Which right each call needs: the rule that front end and agent both check.
//!
//! Who calls it: `tree` on the front end, `service` on the agent, which also asks what the front end itself may do.
//! What it calls: nothing.
//! What it never does: know who has a right.

use crate::v1;

/// What somebody wants to do at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// See names, sizes and times: either right will do.
    Look,
    /// See content.
    Read,
    /// Write, rename, remove.
    Change,
}

impl Need {
    /// Do these rights suffice?
    pub fn is_met_by(self, backup: bool, restore: bool) -> bool {
        match self {
            Need::Look => backup || restore,
            Need::Read => backup,
            Need::Change => restore,
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
    RemoveRequest.path: Change;
    RemoveDirectoryRequest.path: Change, true;
    RenameRequest.from: Change;
    SetTimesRequest.path: Change;
    SetModeRequest.path: Change;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_right_gives_what_it_says_and_no_more() {
        for (need, nothing, backup, restore) in [
            (Need::Look, false, true, true),
            (Need::Read, false, true, false),
            (Need::Change, false, false, true),
        ] {
            assert_eq!(need.is_met_by(false, false), nothing, "{need:?}");
            assert_eq!(need.is_met_by(true, false), backup, "{need:?}");
            assert_eq!(need.is_met_by(false, true), restore, "{need:?}");
            assert!(need.is_met_by(true, true), "{need:?}");
        }
    }
}
