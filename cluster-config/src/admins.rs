//! The admins file: one line an admin, `NAME:HASH:RIGHTS:DOMAINS[:ROOT]`, made by `portolan passwd`.
//!
//! `HASH` is a PHC string of argon2id, `RIGHTS` are words of [`Rights::WORDS`] with commas between, `DOMAINS` is `*` or
//! domain names with commas between, `ROOT` is the directory where the admin's tree begins. Blank lines and lines that
//! begin with `#` are skipped.

use std::collections::BTreeSet;
use std::path::Path;

use portolan_proto::rights::Rights;
use portolan_proto::{levels, path};

use crate::error::{Fault, Faults};
use crate::secret::{Secret, read_secret_file};

/// The admins of a file; names are distinct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminsFile {
    pub admins: Vec<Admin>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    pub name: String,
    /// PHC string, `$argon2id$v=19$m=...$salt$hash`.
    pub hash: Secret<String>,
    pub rights: Rights,
    pub domains: Domains,
    /// Where the admin's tree begins, as a path of the wire; `None`: at the very root.
    pub root: Option<Vec<u8>>,
}

/// The domains a grant covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domains {
    All,
    Named(BTreeSet<Vec<u8>>),
}

impl Domains {
    pub fn covers(&self, domain: &[u8]) -> bool {
        match self {
            Domains::All => true,
            Domains::Named(names) => names.contains(domain),
        }
    }
}

/// Characters of an admin's name at most.
pub const NAME_BYTES_MAX: usize = 256;

impl AdminsFile {
    pub fn read(path: &Path) -> Result<Self, Faults> {
        let fault = |line, message| Fault { file: path.to_owned(), line, key: String::new(), message };
        let bytes = read_secret_file(path).map_err(|message| fault(0, message))?;
        let text = String::from_utf8(bytes).map_err(|_| fault(0, "it is not UTF-8 text".to_owned()))?;
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        let mut admins = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            match parse(line) {
                Ok(admin) if !seen.insert(admin.name.clone()) => {
                    faults.push(fault(index + 1, format!("{:?} stands in the file twice", admin.name)));
                }
                Ok(admin) => admins.push(admin),
                Err(message) => faults.push(fault(index + 1, message)),
            }
        }
        Faults::none_or(faults)?;
        Ok(Self { admins })
    }
}

/// Checks a name: no colon, no control character, 1 to 256 bytes.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(|c| c == ':' || c.is_control()) {
        return Err(
            "not an admin's name; allowed: 1 to 256 bytes without ':' and control characters".to_owned()
        );
    }
    Ok(())
}

/// Rights by their words, with commas between.
pub fn parse_rights(text: &str) -> Result<Rights, String> {
    let parsed = Rights::from_words(text.split(',').map(str::trim));
    parsed.map_err(|word| format!("{word:?} is not a right; allowed: {}", Rights::WORDS.join(", ")))
}

/// `*`, or names with commas between.
pub fn parse_domains(text: &str) -> Result<Domains, String> {
    if text.trim() == "*" {
        return Ok(Domains::All);
    }
    let mut names = BTreeSet::new();
    for name in text.split(',').map(str::trim) {
        path::check_component(name.as_bytes())
            .map_err(|fault| format!("{name:?} is not a domain's name: {fault}; allowed: * or names"))?;
        names.insert(name.as_bytes().to_vec());
    }
    Ok(Domains::Named(names))
}

/// An absolute path at or below `/domains`, in a domain that is `covered`; as a path of the wire.
pub fn parse_root(text: &str, covered: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, String> {
    let bad =
        |what: &str| format!("{text:?} is not a root: {what}; allowed: a path such as /domains/example.org");
    let wire = text.strip_prefix('/').ok_or_else(|| bad("it does not begin with '/'"))?.as_bytes();
    let wire = wire.strip_suffix(b"/").unwrap_or(wire);
    path::check(wire).map_err(|fault| bad(&fault.to_string()))?;
    match levels::domain_of(wire) {
        None if wire != levels::DOMAINS => Err(bad("it is not in /domains")),
        Some(domain) if !covered(domain) => Err(bad("the domain in it is not granted")),
        _ => Ok(wire.to_vec()),
    }
}

// The messages never repeat the line: it holds a hash.
fn parse(line: &str) -> Result<Admin, String> {
    let parts: Vec<&str> = line.splitn(5, ':').collect();
    let (name, hash, rights, domains, root) = match parts[..] {
        [name, hash, rights, domains] => (name, hash, rights, domains, None),
        [name, hash, rights, domains, root] => (name, hash, rights, domains, Some(root)),
        _ => return Err(format!("{} parts; allowed: NAME:HASH:RIGHTS:DOMAINS[:ROOT]", parts.len())),
    };
    check_name(name)?;
    if !hash.starts_with("$argon2id$") || hash.split('$').count() != 6 {
        return Err(format!("the hash of {name:?} is not argon2id; `portolan passwd` makes a line"));
    }
    let rights = parse_rights(rights)?;
    let domains = parse_domains(domains)?;
    let root = root.map(|root| parse_root(root, |domain| domains.covers(domain))).transpose()?;
    Ok(Admin { name: name.to_owned(), hash: Secret::new(hash.to_owned()), rights, domains, root })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g";

    #[test]
    fn wrong_lines_are_refused_without_repeating_the_hash() {
        for bad in [
            "a".to_owned(),
            format!("a:{HASH}"),
            format!(":{HASH}:backup:*"),
            format!("a:{HASH}:read:*"),
            format!("a:{HASH}:backup,Delete:*"),
            format!("a:{HASH}::*"),
            format!("a:{HASH}:backup:"),
            format!("a:{HASH}:backup:a/b"),
            "a:$2b$12$secretsecret:backup:*".to_owned(),
            format!("a:{HASH}:backup:*:more"),
            format!("a:{HASH}:backup:*:/etc"),
            format!("a:{HASH}:backup:*:/domains/../x"),
            format!("a:{HASH}:backup:a.org:/domains/b.org"),
        ] {
            let message = parse(&bad).unwrap_err();
            assert!(!message.contains("secret") && !message.contains("c2FsdH"), "{message}");
        }
    }

    #[test]
    fn a_line_gives_rights_and_domains() {
        let admin = parse(&format!("anna:{HASH}:backup,restore:example.org, example.net")).unwrap();
        assert_eq!(admin.rights.to_string(), "backup, restore");
        let Domains::Named(names) = admin.domains else { panic!("named") };
        assert_eq!((names.len(), admin.root), (2, None));
        for (words, rights) in
            [("restore", "restore"), ("write, backup", "backup, write"), ("delete", "delete")]
        {
            let admin = parse(&format!("anna:{HASH}:{words}:*")).unwrap();
            assert_eq!(admin.rights.to_string(), rights);
        }
        let admin = parse(&format!("anna:{HASH}:backup:*:/domains/a.org/users:x/")).unwrap();
        assert_eq!(admin.root.as_deref(), Some(&b"domains/a.org/users:x"[..]));
        assert_eq!(format!("{:?}", admin.hash), "***");
    }
}
