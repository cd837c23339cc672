//! What the client says: a path of the virtual tree.

use std::fmt;

use portolan_proto::path::{self, DOMAINS, PathFault, is_container};

/// An absolute path of the virtual tree, as bytes: resolved, so without `.`, `..` and empty components.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtualPath(Vec<u8>);

/// Where in the tree a path stands, which decides how it is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// `/`
    Root,
    /// `/domains`
    Domains,
    /// `/domains/<domain>`
    Domain { domain: &'a [u8] },
    /// `/domains/<domain>/<container>`, whose entries may lie on several nodes.
    Container { domain: &'a [u8] },
    /// An object, an entry of a domain's own level, or something below one: lies on one node as a whole.
    /// `object` is its path below the domain (`users/anna`, `domainRegistry.bin`).
    Object { domain: &'a [u8], object: &'a [u8] },
    /// Any other name in the root: there is none.
    Nowhere,
}

impl VirtualPath {
    /// Resolves what a client sent against its working directory. `..` above the root stays at the root, as
    /// with any FTP server; there is nothing above it.
    ///
    /// # Errors
    /// A name or the whole path breaks a limit of the wire.
    pub fn resolve(cwd: &VirtualPath, said: &[u8]) -> Result<Self, PathFault> {
        let mut components: Vec<&[u8]> =
            if said.first() == Some(&b'/') { Vec::new() } else { cwd.components().collect() };
        for component in said.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop();
                }
                name => components.push(name),
            }
        }
        let joined = components.join(&b'/');
        path::check(&joined)?;
        Ok(Self(joined))
    }

    /// The path as it goes over the wire: relative, no leading slash.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<VirtualPath> {
        if self.0.is_empty() {
            return None;
        }
        let at = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(VirtualPath(self.0[..at].to_vec()))
    }

    /// The path as the client gets it: absolute, its bytes as they are.
    pub fn to_bytes(&self) -> Vec<u8> {
        [b"/", &self.0[..]].concat()
    }

    pub fn place(&self) -> Place<'_> {
        let mut components = self.components();
        let Some(first) = components.next() else { return Place::Root };
        if first != DOMAINS {
            return Place::Nowhere;
        }
        let Some(domain) = components.next() else { return Place::Domains };
        let Some(entry) = components.next() else { return Place::Domain { domain } };
        let below = &self.0[DOMAINS.len() + 1 + domain.len() + 1..];
        if !is_container(entry) {
            return Place::Object { domain, object: entry };
        }
        match components.next() {
            None => Place::Container { domain },
            Some(name) => Place::Object { domain, object: &below[..entry.len() + 1 + name.len()] },
        }
    }
}

impl fmt::Display for VirtualPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", path::display(&self.0))
    }
}

impl fmt::Debug for VirtualPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(cwd: &str, said: &str) -> String {
        let cwd = VirtualPath::resolve(&VirtualPath::default(), cwd.as_bytes()).unwrap();
        VirtualPath::resolve(&cwd, said.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn a_path_never_leaves_the_root() {
        assert_eq!(resolve("/", "../../etc/passwd"), "/etc/passwd");
        assert_eq!(resolve("/domains/a", "../../.."), "/");
        assert_eq!(resolve("/domains/a", "/x/./y//z/.."), "/x/y");
        assert_eq!(resolve("/domains/a", ""), "/domains/a");
        assert_eq!(resolve("/domains/a", "users/"), "/domains/a/users");
        let root = VirtualPath::default();
        assert_eq!(VirtualPath::resolve(&root, b"a\0b"), Err(PathFault::ForbiddenByte));
        assert_eq!(VirtualPath::resolve(&root, &[b'a'; 256]), Err(PathFault::ComponentTooLong));
    }

    #[test]
    fn parents_and_names() {
        let root = VirtualPath::default();
        let path = VirtualPath::resolve(&root, b"/domains/a").unwrap();
        assert_eq!((path.name(), &path.to_bytes()[..]), (&b"a"[..], &b"/domains/a"[..]));
        let parent = path.parent().unwrap();
        assert_eq!((parent.name(), parent.to_string()), (&b"domains"[..], "/domains".to_owned()));
        assert_eq!(parent.parent(), Some(root.clone()));
        assert_eq!((root.name(), root.parent()), (&b""[..], None));
    }

    #[test]
    fn places() {
        let root = VirtualPath::default();
        let place = |text: &str| {
            let path = VirtualPath::resolve(&root, text.as_bytes()).unwrap();
            format!("{:?}", path.place()).split(['{', ' ']).next().unwrap().to_owned()
        };
        for (text, expected) in [
            ("/", "Root"),
            ("/domains", "Domains"),
            ("/etc", "Nowhere"),
            ("/domains/a", "Domain"),
            ("/domains/a/users", "Container"),
            ("/domains/a/other", "Object"),
            ("/domains/a/users/anna/folders/INBOX/1", "Object"),
        ] {
            assert_eq!(place(text), expected, "{text}");
        }
        let deep = VirtualPath::resolve(&root, b"/domains/a/users/anna/folders/INBOX/1").unwrap();
        assert_eq!(deep.place(), Place::Object { domain: b"a", object: b"users/anna" });
        let own = VirtualPath::resolve(&root, b"/domains/a/domainRegistry.bin").unwrap();
        assert_eq!(own.place(), Place::Object { domain: b"a", object: b"domainRegistry.bin" });
    }
}
