//! What the client says: a path of the virtual tree.

use std::borrow::Cow;
use std::fmt;

use portolan_proto::levels::{DOMAINS, is_container};
use portolan_proto::path::{self, PathFault};

/// The name of the level that is generated.
pub const CLUSTER: &[u8] = b"cluster";

/// An absolute path of the virtual tree, as bytes: resolved, so without `.`, `..` and empty components.
///
/// It knows the root of the admin it was resolved for, which is a directory of the tree or its very root: what is shown
/// of a path begins there, and nothing that is resolved against it leads above.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtualPath {
    /// From the very root on, as on the wire.
    bytes: Vec<u8>,
    /// How many of the bytes are the admin's root.
    root: usize,
}

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
    /// `/cluster`
    Cluster,
    /// `/cluster/<name>`
    ClusterFile { name: &'a [u8] },
    /// Any other name in the root: there is none.
    Nowhere,
}

impl VirtualPath {
    /// The root of an admin whose tree begins at `path`, a path of the wire.
    pub fn root(path: &[u8]) -> Self {
        Self { bytes: path.to_vec(), root: path.len() }
    }

    /// Resolves what a client sent against its working directory. `..` above the root stays at the root, as
    /// with any FTP server; there is nothing above it.
    ///
    /// # Errors
    /// A name or the whole path breaks a limit of the wire.
    pub fn resolve(cwd: &VirtualPath, said: &[u8]) -> Result<Self, PathFault> {
        let mut below: Vec<&[u8]> =
            if said.first() == Some(&b'/') { Vec::new() } else { names(cwd.shown()).collect() };
        for component in said.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    below.pop();
                }
                name => below.push(name),
            }
        }
        let bytes = names(&cwd.bytes[..cwd.root]).chain(below).collect::<Vec<_>>().join(&b'/');
        path::check(&bytes)?;
        Ok(Self { bytes, root: cwd.root })
    }

    /// The path of an entry of this directory.
    ///
    /// # Errors
    /// The name or the whole path breaks a limit of the wire.
    pub fn child(&self, name: &[u8]) -> Result<Self, PathFault> {
        path::check_component(name)?;
        let mut bytes = Vec::with_capacity(self.bytes.len() + 1 + name.len());
        bytes.extend_from_slice(&self.bytes);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if bytes.len() > path::PATH_BYTES_MAX {
            return Err(PathFault::TooLong);
        }
        Ok(Self { bytes, root: self.root })
    }

    /// The path as it goes over the wire: relative, no leading slash, from the very root on.
    pub fn as_wire(&self) -> &[u8] {
        &self.bytes
    }

    /// What the client sees of it, without its leading slash.
    fn shown(&self) -> &[u8] {
        let shown = &self.bytes[self.root..];
        shown.strip_prefix(b"/").unwrap_or(shown)
    }

    /// True where the client's tree begins.
    pub fn is_root(&self) -> bool {
        self.bytes.len() == self.root
    }

    /// The last component of what the client sees; empty for its root.
    pub fn name(&self) -> &[u8] {
        self.shown().rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<VirtualPath> {
        if self.is_root() {
            return None;
        }
        let at = self.bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(VirtualPath { bytes: self.bytes[..at].to_vec(), root: self.root })
    }

    /// The path as the client gets it: absolute, its bytes as they are.
    pub fn to_bytes(&self) -> Vec<u8> {
        [b"/", self.shown()].concat()
    }

    /// The path from the very root on, for operators and logs.
    pub fn in_cluster(&self) -> String {
        format!("/{}", path::display(&self.bytes))
    }

    /// A path that a node shows, from the very root on, as the client of this path sees it.
    pub fn below_root<'a>(&self, shown: &'a str) -> Cow<'a, str> {
        let root = format!("/{}", path::display(&self.bytes[..self.root]));
        match shown.strip_prefix(&root) {
            Some("") if self.root > 0 => "/".into(),
            Some(below) if self.root > 0 && below.starts_with('/') => below.into(),
            _ => shown.into(),
        }
    }

    pub fn place(&self) -> Place<'_> {
        let mut components = names(&self.bytes);
        let Some(first) = components.next() else { return Place::Root };
        if first == CLUSTER {
            return match (components.next(), components.next()) {
                (None, _) => Place::Cluster,
                (Some(name), None) => Place::ClusterFile { name },
                (Some(_), Some(_)) => Place::Nowhere,
            };
        }
        if first != DOMAINS {
            return Place::Nowhere;
        }
        let Some(domain) = components.next() else { return Place::Domains };
        let Some(entry) = components.next() else { return Place::Domain { domain } };
        let below = &self.bytes[DOMAINS.len() + 1 + domain.len() + 1..];
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
        write!(f, "/{}", path::display(self.shown()))
    }
}

/// For logs: the whole path, as [`VirtualPath::in_cluster`].
impl fmt::Debug for VirtualPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_cluster())
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
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
    fn nothing_leads_above_an_admins_own_root() {
        let root = VirtualPath::root(b"domains/a.org");
        let seen = |cwd: &VirtualPath, said: &str| {
            let path = VirtualPath::resolve(cwd, said.as_bytes()).unwrap();
            assert!(path.as_wire().starts_with(b"domains/a.org"), "{said}");
            (path.to_string(), path.in_cluster())
        };
        let users = VirtualPath::resolve(&root, b"users").unwrap();
        for (cwd, said, shown) in [
            (&root, "", "/"),
            (&root, "/", "/"),
            (&root, "../..", "/"),
            (&root, "/../b.org", "/b.org"),
            (&root, "/domains/b.org", "/domains/b.org"),
            (&users, "anna", "/users/anna"),
            (&users, "..", "/"),
            (&users, "../../../..", "/"),
            (&users, "/x/./y//z/..", "/x/y"),
        ] {
            let whole = format!("/domains/a.org{}", shown.trim_end_matches('/'));
            assert_eq!(seen(cwd, said), (shown.to_owned(), whole), "{said} in {cwd}");
        }
        assert_eq!((root.name(), root.parent(), root.is_root()), (&b""[..], None, true));
        assert_eq!((users.name(), users.parent()), (&b"users"[..], Some(root)));
        assert_eq!(users.place(), Place::Container { domain: b"a.org" });
        for (shown, read) in [
            ("/domains/a.org/users/x", "/users/x"),
            ("/domains/a.org", "/"),
            ("/domains/a.org.uk/x", "/domains/a.org.uk/x"),
            ("/domains/b.org/x", "/domains/b.org/x"),
        ] {
            assert_eq!(users.below_root(shown), read);
        }
        assert_eq!(VirtualPath::default().below_root("/domains/a.org"), "/domains/a.org");
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
        assert_eq!(parent.child(b"a"), Ok(path.clone()));
        assert_eq!(root.child(b"domains"), Ok(parent));
        assert_eq!(path.child(b".."), Err(PathFault::NotPlain));
        let long = (0..15).fold(path, |path, _| path.child(&[b'n'; 255]).unwrap());
        assert_eq!(long.child(&[b'n'; 255]), Err(PathFault::TooLong));
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
            ("/cluster", "Cluster"),
            ("/cluster/nodes.cfg", "ClusterFile"),
            ("/cluster/nodes.cfg/x", "Nowhere"),
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
