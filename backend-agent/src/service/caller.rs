//! For whom a call is made, and whether that person may.
//!
//! The front end has checked already; this is the second lock. A front end that was taken over still cannot
//! name a path outside the tree, nor go past the grant it states for the audit.

use std::sync::Arc;

use portolan_proto::failure::status;
use portolan_proto::levels::{CLUSTER_LEVELS, DOMAINS, domain_of, is_container};
use portolan_proto::rights::{Need, OnPath, Rights};
use portolan_proto::v1::{Caller, Grant, Reason};
use tonic::Status;

use super::policy::Permission;
use super::status;
use crate::store::{Error, StorePath};

/// Bytes of an admin's name at most.
const ADMIN_BYTES_MAX: usize = 256;
/// Characters of a session's id at most.
const SESSION_CHARACTERS_MAX: usize = 64;

/// A request whose caller may make it.
pub(super) struct Checked<R> {
    pub(super) permission: Arc<Permission>,
    pub(super) request: R,
    /// What the request is about.
    pub(super) path: StorePath,
}

impl<R: OnPath> Checked<R> {
    /// Checks who makes the request, and for whom.
    ///
    /// # Errors
    /// Those of [`authorize`].
    pub(super) fn new(permission: Arc<Permission>, request: R) -> Result<Self, Status> {
        let path = authorize(&permission, request.caller(), request.path(), R::NEED)?;
        refuse_fixed::<R>(&path)?;
        Ok(Self { permission, request, path })
    }

    /// Another path of the same request, which needs the same right.
    pub(super) fn also(&self, path: &[u8]) -> Result<StorePath, Status> {
        let path = authorize(&self.permission, self.request.caller(), path, R::NEED)?;
        refuse_fixed::<R>(&path)?;
        Ok(path)
    }

    /// May the caller see the content at the path too, whatever the request does there?
    pub(super) fn may_read(&self) -> bool {
        let (grant, path) =
            (self.request.caller().and_then(|caller| caller.grant.as_ref()), self.request.path());
        grant.is_some_and(|grant| is_granted(grant, path, Need::Read))
            && self.permission.covers(Need::Read, domain_of(path))
    }

    /// Whose share the call belongs to: the front end's name, and the admin's.
    pub(super) fn whose(&self) -> (&str, &str) {
        (self.permission.frontend(), self.request.caller().map_or("", |caller| &caller.admin))
    }
}

/// Domains and containers are levels of the cluster, of which several nodes may have a part: they are made and removed, and
/// nothing else is done to them. Front ends refuse the same.
fn refuse_fixed<R: OnPath>(path: &StorePath) -> Result<(), Status> {
    let depth = path.depth();
    let is_level = depth < CLUSTER_LEVELS
        || depth == CLUSTER_LEVELS && path.split_last().is_some_and(|(_, name)| is_container(name));
    if R::NEED.changes() && !R::MAKES_LEVELS && is_level {
        tracing::warn!(%path, "call refused: a fixed level of the tree");
        return Err(status(Reason::NotGranted, format!("{path} is a fixed level of the tree")));
    }
    Ok(())
}

/// The path of a call, after its caller, its grant and what its front end may do were checked. Its failure is logged as
/// it may be an attack.
fn authorize(
    permission: &Permission,
    caller: Option<&Caller>,
    path: &[u8],
    need: Need,
) -> Result<StorePath, Status> {
    let bad = |what: &str| Err(status(Reason::BadRequest, what));
    let Some(caller) = caller else { return bad("the call names no caller") };
    if caller.admin.is_empty() || caller.admin.len() > ADMIN_BYTES_MAX {
        return bad("the call names no admin, or one of more than 256 bytes");
    }
    let session = &caller.session_id;
    if session.is_empty() || session.len() > SESSION_CHARACTERS_MAX || !session.is_ascii() {
        return bad("the call names no session, or one of more than 64 characters");
    }
    let store_path = StorePath::new(path).map_err(|fault| status::of(Error::BadName(fault)))?;
    // Only what lies below `domains` is content; the root also holds the agent's own folder.
    if store_path.components().next() != Some(DOMAINS) {
        return Err(status(Reason::NotFound, format!("{store_path} does not exist")));
    }
    let grant = caller.grant.clone().unwrap_or_default();
    // The levels above a domain's content are made and removed with it, never written into.
    let fixed = need.changes() && domain_of(path).is_none();
    if !is_granted(&grant, path, need) || fixed {
        tracing::warn!(
            admin = caller.admin,
            session = caller.session_id,
            path = %store_path,
            ?need,
            "call refused: the grant does not cover it"
        );
        return Err(status(Reason::NotGranted, format!("no right to do this at {store_path}")));
    }
    if !permission.covers(need, domain_of(path)) {
        tracing::warn!(
            frontend = permission.frontend(),
            admin = caller.admin,
            session = caller.session_id,
            path = %store_path,
            ?need,
            "call refused: no rule allows it to this front end"
        );
        return Err(status(Reason::NotGranted, format!("this front end may not do this at {store_path}")));
    }
    Ok(store_path)
}

/// Does a grant that a call states suffice at `path`?
fn is_granted(grant: &Grant, path: &[u8], need: Need) -> bool {
    let in_domain = grant.domain.as_deref().is_none_or(|domain| domain_of(path) == Some(domain));
    in_domain && need.is_met_by(Rights::of(grant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_proto::failure::reason_of;

    fn caller(backup: bool, restore: bool, domain: Option<&str>) -> Caller {
        let domain = domain.map(|name| name.as_bytes().to_vec().into());
        Caller {
            admin: "anna".into(),
            session_id: "s1".into(),
            grant: Some(Grant { backup, restore, domain, delete: None }),
        }
    }

    /// Of a front end that knows the right to delete.
    fn deleting(restore: bool, delete: bool) -> Caller {
        let mut caller = caller(false, restore, None);
        caller.grant.as_mut().unwrap().delete = Some(delete);
        caller
    }

    fn refusal(caller: Option<&Caller>, path: &str, need: Need) -> Option<Reason> {
        authorize(&Permission::unlimited(), caller, path.as_bytes(), need)
            .err()
            .map(|status| reason_of(&status).unwrap())
    }

    #[test]
    fn a_fixed_level_is_made_and_removed_and_nothing_else() {
        use portolan_proto::v1;
        let path = |text: &str| StorePath::new(text.as_bytes()).unwrap();
        for level in ["domains", "domains/a", "domains/a/users", "domains/a/publicFolder"] {
            let refused = [
                refuse_fixed::<v1::SetModeRequest>(&path(level)),
                refuse_fixed::<v1::SetTimesRequest>(&path(level)),
                refuse_fixed::<v1::RenameRequest>(&path(level)),
                refuse_fixed::<v1::RemoveRequest>(&path(level)),
                refuse_fixed::<v1::WriteBegin>(&path(level)),
            ];
            for refused in refused {
                assert_eq!(reason_of(&refused.unwrap_err()), Some(Reason::NotGranted), "{level}");
            }
            assert!(refuse_fixed::<v1::MakeDirectoryRequest>(&path(level)).is_ok());
            assert!(refuse_fixed::<v1::RemoveDirectoryRequest>(&path(level)).is_ok());
            assert!(refuse_fixed::<v1::ListRequest>(&path(level)).is_ok());
        }
        for below in ["domains/a/registry.bin", "domains/a/users/anna", "domains/a/other"] {
            assert!(refuse_fixed::<v1::SetModeRequest>(&path(below)).is_ok(), "{below}");
            assert!(refuse_fixed::<v1::RenameRequest>(&path(below)).is_ok(), "{below}");
        }
    }

    #[test]
    fn a_call_past_its_grant_is_refused() {
        let own = "domains/a/users";
        let table = [
            (caller(false, false, None), own, Need::Look, Some(Reason::NotGranted)),
            (caller(true, false, None), own, Need::Read, None),
            (caller(true, false, None), own, Need::Change, Some(Reason::NotGranted)),
            (caller(false, true, None), own, Need::Read, Some(Reason::NotGranted)),
            (caller(false, true, None), own, Need::Look, None),
            (caller(false, true, None), own, Need::Change, None),
            (caller(false, true, None), own, Need::Delete, None),
            (caller(true, false, None), own, Need::Delete, Some(Reason::NotGranted)),
            (deleting(true, false), own, Need::Delete, Some(Reason::NotGranted)),
            (deleting(true, false), own, Need::Change, None),
            (deleting(false, true), own, Need::Delete, None),
            (deleting(false, true), own, Need::Look, None),
            (deleting(false, true), own, Need::Change, Some(Reason::NotGranted)),
            (deleting(false, true), own, Need::Read, Some(Reason::NotGranted)),
            (deleting(false, true), "domains", Need::Delete, Some(Reason::NotGranted)),
            (caller(false, true, None), "domains", Need::Change, Some(Reason::NotGranted)),
            (caller(true, true, Some("a")), own, Need::Change, None),
            (caller(true, true, Some("a")), "domains/ab", Need::Look, Some(Reason::NotGranted)),
            (caller(true, true, Some("a")), "domains", Need::Look, Some(Reason::NotGranted)),
            (caller(true, true, None), "domains/../x", Need::Look, Some(Reason::BadName)),
            (caller(true, true, None), ".portolan/staging", Need::Look, Some(Reason::NotFound)),
            (caller(true, true, None), "", Need::Look, Some(Reason::NotFound)),
        ];
        for (caller, path, need, expected) in table {
            assert_eq!(refusal(Some(&caller), path, need), expected, "{path} {need:?} {caller:?}");
        }
        assert_eq!(refusal(None, own, Need::Look), Some(Reason::BadRequest));
        let nameless = Caller { admin: String::new(), ..caller(true, true, None) };
        assert_eq!(refusal(Some(&nameless), own, Need::Look), Some(Reason::BadRequest));
        let without_grant = Caller { grant: None, ..caller(true, true, None) };
        assert_eq!(refusal(Some(&without_grant), own, Need::Look), Some(Reason::NotGranted));
    }
}
