//! The admins file as a directory: the default where there is no LDAP.

use std::collections::BTreeMap;
use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash};
use portolan_config::admins::AdminsFile;
use portolan_config::secret::Secret;

use super::grants::set_of_line;
use super::{Admin, Grants};
use crate::path::VirtualPath;

#[derive(Debug)]
pub(super) struct LocalDirectory {
    admins: BTreeMap<String, (Arc<Admin>, Secret<String>)>,
    /// Checked where the name is unknown, so that the answer takes as long.
    decoy: Secret<String>,
}

impl LocalDirectory {
    pub(super) fn new(file: &AdminsFile) -> Self {
        let admins = file.admins.iter().map(|line| {
            let grants = Grants {
                backup: set_of_line(line.rights.backup, &line.domains),
                write: set_of_line(line.rights.write, &line.domains),
                delete: set_of_line(line.rights.delete, &line.domains),
                root: line.root.as_deref().map(VirtualPath::root).unwrap_or_default(),
            };
            let admin = Arc::new(Admin { name: line.name.clone(), grants });
            (line.name.clone(), (admin, line.hash.clone()))
        });
        let decoy = hash_password("a password that nobody has").expect("the default parameters are valid");
        Self { admins: admins.collect(), decoy: Secret::new(decoy) }
    }

    /// Blocks for the time of one hash, whether the name is known or not.
    pub(super) fn check(&self, name: &str, password: &str) -> Option<Arc<Admin>> {
        let (admin, hash) = match self.admins.get(name) {
            Some((admin, hash)) => (Some(admin), hash),
            None => (None, &self.decoy),
        };
        let verified = PasswordHash::new(hash.expose())
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
        admin.filter(|_| verified).cloned()
    }

    pub(super) fn admin(&self, name: &str) -> Option<Arc<Admin>> {
        self.admins.get(name).map(|(admin, _)| Arc::clone(admin))
    }
}

/// The argon2id PHC string of a password, with a random salt and the parameters that OWASP names
/// (19 MiB, 2 passes, 1 lane).
pub fn hash_password(password: &str) -> Result<String, argon2::password_hash::Error> {
    Ok(Argon2::default().hash_password(password.as_bytes())?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_config::admins::{self, Domains};
    use portolan_proto::rights::Rights;

    #[test]
    fn only_the_right_password_of_a_known_name_is_accepted() {
        let admin = admins::Admin {
            name: "anna".into(),
            hash: Secret::new(hash_password("right").unwrap()),
            rights: Rights { backup: true, ..Rights::default() },
            domains: Domains::All,
            root: None,
        };
        let directory = LocalDirectory::new(&AdminsFile { admins: vec![admin] });
        assert!(directory.check("anna", "wrong").is_none());
        assert!(directory.check("anna", "").is_none());
        assert!(directory.check("bob", "right").is_none());
        assert!(directory.check("bob", "a password that nobody has").is_none());
        let anna = directory.check("anna", "right").unwrap();
        assert!(
            anna.grants.backup.covers(b"x")
                && !anna.grants.write.covers(b"x")
                && !anna.grants.delete.covers(b"x")
        );
    }
}
