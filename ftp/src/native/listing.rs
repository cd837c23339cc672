//! LIST, NLST and MLSD: directories over a data connection, batch by batch.
//!
//! With `-R` directories may be renamed while they are listed, so they are known by what they are (node, device, inode)
//! and not by their path alone. After the walk they are looked at once more, until a look finds none that was not
//! listed: what is there all the time is listed, or the listing fails.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use portolan_proto::levels::domain_of;
use portolan_proto::path::{PathFault, display};

use super::data::{Connection, Plan};
use super::facts::{Facts, list_line, on_one_line, shown};
use super::pattern::{Pattern, is_pattern};
use super::work::{Progress, Work, broken, open};
use crate::bandwidth::Direction;
use crate::reply::{self, Action, Reply};
use crate::transfer::Transfer;
use portolan_cluster::auth::Login;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{self, Entry, Identity, Kind, Listing, Permissions, Tree};

/// Bytes that `-R` may spend on remembering directories that it has seen and not yet entered.
const REMEMBERED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Directories that `-R` may list, which are remembered in up to 5 MiB.
const DIRECTORIES_MAX: usize = 220_000;
/// Looks for directories that were moved while they were listed. Where nothing moves, one is enough.
const LOOKS_MAX: usize = 8;
/// Directories that are opened at once for a look.
const LOOKS_AT_ONCE: usize = 4;
/// Pause between two looks: time stamps of file systems are coarse.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Steps of work, of some nanoseconds each, after which a listing lets other sessions have its thread.
const TURN_STEPS: usize = 50_000;
/// Steps that an entry counts for.
const ENTRY_STEPS: usize = 250;

/// How entries are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As `ls -l`.
    List,
    /// Names alone.
    Names,
    Facts(Facts),
}

/// What LIST and NLST were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) recursive: bool,
    /// `-d`: the directory itself in place of its entries.
    pub(super) itself: bool,
    /// As the client said it; empty is the working directory.
    pub(super) path: Vec<u8>,
}

impl Asked {
    /// Takes the options of `ls` off an argument. Only `-R` and `-d` mean something: all entries are always
    /// shown, those with a leading dot too.
    pub(super) fn parse(argument: &[u8]) -> Self {
        let mut asked = Self::default();
        let mut rest = argument;
        loop {
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let Some(letters) = word.strip_prefix(b"-") else { break };
            if letters.is_empty() || !letters.iter().all(u8::is_ascii_alphanumeric) {
                break;
            }
            asked.recursive |= letters.contains(&b'R');
            asked.itself |= letters.contains(&b'd');
            rest = after.strip_prefix(b" ").unwrap_or(after);
        }
        asked.path = rest.to_vec();
        asked
    }
}

/// A listing to be sent.
pub(super) struct Job {
    pub(super) tree: Arc<Tree>,
    pub(super) login: Login,
    pub(super) plan: Plan,
    pub(super) transfer: Arc<Transfer>,
    pub(super) form: Form,
    pub(super) recursive: bool,
    pub(super) itself: bool,
    /// What stands before each name: a name of NLST must do as the argument of another command as it is
    /// (RFC 1123 section 4.1.2.7).
    pub(super) prefix: Vec<u8>,
}

/// Where the entries come from.
enum Source {
    Directory(Listing),
    /// The entries of a directory whose names fit a pattern.
    Matching(Listing, Pattern),
    Single(Entry),
}

impl Job {
    pub(super) fn run(self) -> Work {
        Box::pin(async move {
            let (source, path, prefix) = match self.find().await {
                Ok(found) => found,
                Err(error) => {
                    self.transfer.failed(&error);
                    let reply = reply::of(&error, Action::List, &self.transfer.path);
                    let is_file = matches!(self.form, Form::Facts(_)) && error.is_not_a_directory();
                    // RFC 3659 section 7.2.1: what is no directory is an error in the parameter.
                    return Progress::Done(if is_file { Reply { code: 501, ..reply } } else { reply });
                }
            };
            let text = format!("Listing {}.", self.transfer.path);
            let moving = async move {
                let Self { tree, login, plan, transfer, form, recursive, .. } = self;
                let connection = match open(plan, &transfer, Direction::ToClient).await {
                    Ok(connection) => connection,
                    Err(reply) => return Progress::Done(reply),
                };
                let mut sending = Sending {
                    login,
                    connection,
                    transfer,
                    form,
                    now: SystemTime::now(),
                    turn: Turn::default(),
                };
                let sent = sending.all(&tree, source, path, prefix, recursive).await;
                let Sending { connection, transfer, .. } = sending;
                Progress::Done(match sent {
                    Ok(()) => match connection.finish().await {
                        Ok(()) => {
                            transfer.complete();
                            Reply::new(226, "Transfer complete.")
                        }
                        Err(error) => broken(&transfer, &error),
                    },
                    Err(Error::Tree(error)) => {
                        transfer.failed(&error);
                        reply::broken(&error, Action::List, &transfer.path)
                    }
                    Err(Error::Data(error)) => broken(&transfer, &error),
                    Err(Error::TooWide) => {
                        transfer.broken_off(&"too many directories for a recursive listing");
                        Reply::new(451, "Too many directories for -R; list them separately.")
                    }
                    Err(Error::Moving) => {
                        transfer.broken_off(&"directories were moved or removed while they were listed");
                        Reply::new(
                            426,
                            "Directories were moved or removed while they were listed; the listing is not whole, try again.",
                        )
                    }
                    Err(Error::Unnamed { path, fault }) => {
                        let path = display(&path);
                        transfer.broken_off(&format!("/{path} cannot be listed: {fault}"));
                        let name = path.rsplit('/').next().unwrap_or_default();
                        Reply::with(553, format!("The directory {name} cannot be listed: {fault}."))
                    }
                })
            };
            Progress::More(Reply::with(150, text), Box::pin(moving))
        })
    }

    /// The entries asked for, the directory that they are in, and what stands before their names.
    async fn find(&self) -> tree::Result<(Source, VirtualPath, Vec<u8>)> {
        let Self { tree, login, form, .. } = self;
        let path = &self.transfer.path;
        if self.itself {
            let entry = tree.stat(login, path).await?;
            return Ok((Source::Single(entry), path.clone(), without_name(&self.prefix)));
        }
        let missing = match tree.list(login, path).await {
            Ok(listing) => {
                return Ok((Source::Directory(listing), path.clone(), with_slash(&self.prefix)));
            }
            Err(error) if matches!(form, Form::Facts(_)) => return Err(error),
            // LIST of a file shows the file (RFC 959 section 4.1.3).
            Err(error) if error.is_not_a_directory() => {
                let entry = tree.stat(login, path).await?;
                return Ok((Source::Single(entry), path.clone(), without_name(&self.prefix)));
            }
            Err(error) => error,
        };
        // What does not exist may be a pattern. Only the last name of a path can be one.
        let pattern = path.name();
        if !missing.is_not_found() || !is_pattern(pattern) {
            return Err(missing);
        }
        let Some(parent) = path.parent() else { return Err(missing) };
        let Some(pattern) = Pattern::new(pattern) else { return Err(missing) };
        let listing = tree.list(login, &parent).await?;
        Ok((Source::Matching(listing, pattern), parent, without_name(&self.prefix)))
    }
}

/// `a/b` is `a/`, `b` is nothing.
fn without_name(said: &[u8]) -> Vec<u8> {
    let said = said.strip_suffix(b"/").unwrap_or(said);
    said.iter().rposition(|byte| *byte == b'/').map_or_else(Vec::new, |at| said[..=at].to_vec())
}

fn with_slash(said: &[u8]) -> Vec<u8> {
    if said.is_empty() || said.ends_with(b"/") { said.to_vec() } else { [said, b"/"].concat() }
}

/// The work that a listing has done since it last let others have its thread: sizes of folders and patterns are
/// for clients to choose.
#[derive(Debug, Default)]
struct Turn {
    steps: usize,
}

impl Turn {
    /// Accounts for work.
    async fn take(&mut self, steps: usize) {
        self.steps = self.steps.saturating_add(steps);
        if self.steps >= TURN_STEPS {
            self.steps = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// A directory that is still to be listed.
#[derive(Debug)]
struct Place {
    path: VirtualPath,
    /// What stands before the names in it.
    said: Vec<u8>,
    /// `None`: it lies on several nodes, or on no disk, and is known by its path.
    identity: Option<Identity>,
}

impl Place {
    fn cost(&self) -> usize {
        self.path.as_wire().len() + self.said.len() + size_of::<Self>()
    }

    /// An entry of the directory at `path`; `shown` is its name in a listing.
    fn below(
        path: &VirtualPath,
        said: &[u8],
        name: &[u8],
        shown: &[u8],
        identity: Option<Identity>,
    ) -> Result<Self, Error> {
        let unnamed = |fault| Error::Unnamed { path: [path.as_wire(), b"/", name].concat(), fault };
        let path = path.child(name).map_err(unnamed)?;
        Ok(Self { path, said: [said, shown, b"/"].concat(), identity })
    }
}

/// Directories that are still to be listed.
#[derive(Debug, Default)]
struct Pending {
    /// Those found in the directory being listed, in its order.
    found: Vec<Place>,
    /// Those found before, the next one last.
    older: Vec<Place>,
    bytes: usize,
}

impl Pending {
    fn add(&mut self, place: Place) -> Result<(), Error> {
        self.bytes += place.cost();
        self.found.push(place);
        if self.bytes > REMEMBERED_BYTES_MAX { Err(Error::TooWide) } else { Ok(()) }
    }

    fn next(&mut self) -> Option<Place> {
        self.older.extend(self.found.drain(..).rev());
        let next = self.older.pop()?;
        self.bytes -= next.cost();
        Some(next)
    }
}

/// The directories of a recursive listing, by the hashes of what they are.
#[derive(Debug, Default)]
struct Walk {
    hasher: RandomState,
    /// Those that were listed, with the last look that met them.
    listed: HashMap<u64, usize>,
    /// Those that were to be listed and were not found again.
    lost: HashSet<u64>,
    look: usize,
}

impl Walk {
    fn key(&self, identity: Option<Identity>, path: &VirtualPath) -> u64 {
        match identity {
            Some(identity) => self.hasher.hash_one(identity),
            None => self.hasher.hash_one(path.as_wire()),
        }
    }

    /// Notes a directory that is about to be listed.
    fn add(&mut self, key: u64) -> Result<(), Error> {
        self.lost.remove(&key);
        self.listed.insert(key, self.look);
        self.check()
    }

    fn lose(&mut self, key: u64) -> Result<(), Error> {
        self.lost.insert(key);
        self.check()
    }

    fn check(&self) -> Result<(), Error> {
        if self.listed.len() + self.lost.len() > DIRECTORIES_MAX { Err(Error::TooWide) } else { Ok(()) }
    }
}

/// Where a recursive listing begins.
struct Start {
    path: VirtualPath,
    said: Vec<u8>,
    /// Only these entries are listed.
    pattern: Option<Pattern>,
}

/// What a look at all directories came to.
struct Seen {
    /// Each was found at its place, and had been listed.
    is_whole: bool,
    /// Equal for two looks between which no directory had its entries changed.
    state: u64,
}

enum Error {
    Tree(tree::Error),
    Data(std::io::Error),
    TooWide,
    /// Directories are renamed or removed faster than they are found again.
    Moving,
    /// No path can name a directory, so nothing can be listed below it.
    Unnamed {
        path: Vec<u8>,
        fault: PathFault,
    },
}

impl From<tree::Error> for Error {
    fn from(error: tree::Error) -> Self {
        Error::Tree(error)
    }
}

struct Sending {
    login: Login,
    connection: Connection,
    transfer: Arc<Transfer>,
    form: Form,
    now: SystemTime,
    turn: Turn,
}

impl Sending {
    /// Sends `source`, and with `recursive` all directories below it, each under a heading as `ls -R` does.
    async fn all(
        &mut self,
        tree: &Tree,
        source: Source,
        path: VirtualPath,
        prefix: Vec<u8>,
        recursive: bool,
    ) -> Result<(), Error> {
        let pattern = match &source {
            Source::Matching(_, pattern) => Some(pattern.clone()),
            Source::Directory(_) => None,
            Source::Single(_) => return self.one(tree, source, &path, &prefix, None).await,
        };
        if !recursive {
            return self.one(tree, source, &path, &prefix, None).await;
        }
        let mut walk = Walk::default();
        if let Source::Directory(listing) = &source {
            walk.add(walk.key(listing.directory().map(|directory| directory.identity), &path))?;
        }
        let mut pending = Pending::default();
        self.one(tree, source, &path, &prefix, Some(&mut pending)).await?;
        self.below(tree, &mut walk, pending).await?;
        let start = Start { path, said: prefix, pattern };
        let mut before = None;
        for _ in 0..LOOKS_MAX {
            let seen = self.look(tree, &mut walk, &start).await?;
            // A directory that is lost was removed if it was nowhere at one moment: two looks saw the same, and no
            // directory had a change between them.
            if seen.is_whole && (walk.lost.is_empty() || before == Some(seen.state)) {
                return Ok(());
            }
            before = seen.is_whole.then_some(seen.state);
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Err(Error::Moving)
    }

    /// Sends these directories and all below them, but for those that were listed already.
    async fn below(&mut self, tree: &Tree, walk: &mut Walk, mut pending: Pending) -> Result<(), Error> {
        while let Some(place) = pending.next() {
            let key = walk.key(place.identity, &place.path);
            if walk.listed.contains_key(&key) {
                continue;
            }
            let (place, Some(listing)) = self.open(tree, place, false).await? else {
                walk.lose(key)?;
                continue;
            };
            walk.add(key)?;
            if self.form == Form::List {
                let heading = &place.said[..place.said.len() - 1];
                self.send([&b"\r\n"[..], &on_one_line(heading), b":\r\n"].concat()).await?;
            }
            self.one(tree, Source::Directory(listing), &place.path, &place.said, Some(&mut pending)).await?;
        }
        Ok(())
    }

    /// Meets all directories once more, and sends those that were not listed.
    async fn look(&mut self, tree: &Tree, walk: &mut Walk, start: &Start) -> Result<Seen, Error> {
        walk.look += 1;
        let mut seen = Seen { is_whole: true, state: 0 };
        let mut pattern = start.pattern.clone();
        let place = Place { path: start.path.clone(), said: start.said.clone(), identity: None };
        let mut next = vec![place];
        let mut pending = Pending::default();
        loop {
            while next.len() < LOOKS_AT_ONCE
                && let Some(place) = pending.next()
            {
                next.push(place);
            }
            if next.is_empty() {
                return Ok(seen);
            }
            let opened = join_all(next.drain(..).map(|place| self.open(tree, place, true))).await;
            for opened in opened {
                let (place, Some(mut listing)) = opened? else {
                    seen.is_whole = false;
                    continue;
                };
                let directory = listing.directory();
                let identity = place.identity.or(directory.map(|directory| directory.identity));
                let key = walk.key(identity, &place.path);
                let changed = directory.map(|directory| directory.changed_ns);
                seen.state = seen.state.wrapping_add(walk.hasher.hash_one((key, changed)));
                let pattern = pattern.take();
                match walk.listed.get_mut(&key) {
                    // It is there under two names: renamed meanwhile, or mounted twice.
                    Some(look) if *look == walk.look => continue,
                    Some(look) => *look = walk.look,
                    // The directory of a pattern is not listed itself.
                    None if pattern.is_some() => {}
                    None => {
                        seen.is_whole = false;
                        let mut new = Pending::default();
                        new.add(Place { identity, ..place })?;
                        self.below(tree, walk, new).await?;
                        continue;
                    }
                }
                let mut pattern = pattern;
                while let Some(batch) = listing.next_batch().await? {
                    for entry in batch.iter().filter(|entry| entry.kind == Kind::Directory) {
                        self.turn.take(ENTRY_STEPS + place.path.as_wire().len()).await;
                        if let Some(pattern) = &mut pattern {
                            let fits = pattern.matches(&entry.name);
                            self.turn.take(pattern.take_work()).await;
                            if !fits {
                                continue;
                            }
                        }
                        let name = shown(tree, &self.login, &place.path, &entry.name).await?;
                        let below =
                            Place::below(&place.path, &place.said, &entry.name, &name, entry.identity)?;
                        pending.add(below)?;
                    }
                }
            }
        }
    }

    /// Opens a directory, under the name that it has by now; no listing: it is in its parent no more.
    async fn open(
        &self,
        tree: &Tree,
        mut place: Place,
        directories_only: bool,
    ) -> Result<(Place, Option<Listing>), Error> {
        let listed = tree.list_again(&self.login, &place.path, place.identity, directories_only).await;
        let listing = match listed {
            Ok(listing) => listing,
            Err(error) if error.is_gone() => return Ok((place, None)),
            Err(error) => return Err(error.into()),
        };
        if let (Some(identity), Some(directory)) = (place.identity, listing.directory()) {
            // Of an agent that knows no identities.
            if directory.identity != identity {
                return Ok((place, None));
            }
            if directory.name != place.path.name()
                && !directory.name.is_empty()
                && let Some(parent) = place.path.parent()
            {
                // The name that it has got in its parent.
                let name = shown(tree, &self.login, &parent, directory.name).await?;
                let said = without_name(&place.said);
                place = Place::below(&parent, &said, directory.name, &name, place.identity)?;
            }
        }
        Ok((place, Some(listing)))
    }

    /// Sends one directory, and notes the directories in it.
    async fn one(
        &mut self,
        tree: &Tree,
        source: Source,
        path: &VirtualPath,
        prefix: &[u8],
        mut directories: Option<&mut Pending>,
    ) -> Result<(), Error> {
        let (mut listing, mut pattern) = match source {
            Source::Single(entry) => {
                let mut lines = Vec::new();
                let permissions = permissions(&self.login, path, &entry);
                self.write(&mut lines, &entry, &entry.name, prefix, permissions);
                self.transfer.met_special(usize::from(entry.kind.is_special()));
                return self.send(lines).await;
            }
            Source::Directory(listing) => (listing, None),
            Source::Matching(listing, pattern) => (listing, Some(pattern)),
        };
        // Only the levels down to the containers allow different things to different entries.
        let mut shared = None;
        while let Some(batch) = listing.next_batch().await? {
            let mut lines = Vec::with_capacity(batch.len() * 96);
            let mut special = 0;
            for entry in batch {
                self.turn.take(ENTRY_STEPS).await;
                if let Some(pattern) = &mut pattern {
                    let fits = pattern.matches(&entry.name);
                    self.turn.take(pattern.take_work()).await;
                    if !fits {
                        continue;
                    }
                }
                let permissions = match shared {
                    Some(permissions) => permissions,
                    None => permissions(&self.login, path, &entry),
                };
                if domain_of(path.as_wire()).is_some() {
                    shared = Some(permissions);
                }
                let name = shown(tree, &self.login, path, &entry.name).await?;
                self.write(&mut lines, &entry, &name, prefix, permissions);
                special += usize::from(entry.kind.is_special());
                if let Some(directories) = &mut directories
                    && entry.kind == Kind::Directory
                {
                    self.turn.take(path.as_wire().len()).await;
                    directories.add(Place::below(path, prefix, &entry.name, &name, entry.identity)?)?;
                }
            }
            self.transfer.met_special(special);
            self.send(lines).await?;
        }
        Ok(())
    }

    /// `name` is that of the entry as it is shown.
    fn write(
        &self,
        lines: &mut Vec<u8>,
        entry: &Entry,
        name: &[u8],
        prefix: &[u8],
        permissions: Permissions,
    ) {
        match self.form {
            Form::List => list_line(lines, entry, name, self.now),
            Form::Names => {
                lines.extend_from_slice(&on_one_line(prefix));
                lines.extend_from_slice(&on_one_line(name));
            }
            Form::Facts(facts) => {
                facts.write(lines, entry, permissions);
                lines.extend_from_slice(&on_one_line(name));
            }
        }
        lines.extend_from_slice(b"\r\n");
    }

    async fn send(&mut self, lines: Vec<u8>) -> Result<(), Error> {
        let count = lines.len();
        self.connection.send_lines(Bytes::from(lines)).await.map_err(Error::Data)?;
        self.transfer.moved(count);
        Ok(())
    }
}

/// What an admin may do with an entry of a directory.
fn permissions(login: &Login, directory: &VirtualPath, entry: &Entry) -> Permissions {
    match directory.child(&entry.name) {
        Ok(path) => Tree::permissions(login, &path),
        // A name that no command can say.
        Err(_) => Permissions { read: false, change: false, delete: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_off_and_names_are_not() {
        let asked = |argument: &[u8]| {
            let Asked { recursive, itself, path } = Asked::parse(argument);
            (recursive, itself, String::from_utf8(path).unwrap())
        };
        for (argument, expected) in [
            (&b""[..], (false, false, "")),
            (b"-la", (false, false, "")),
            (b"-lRa", (true, false, "")),
            (b"-a -l  b c ", (false, false, " b c ")),
            (b"-ld /x", (false, true, "/x")),
            (b"-weird.eml", (false, false, "-weird.eml")),
            (b"-", (false, false, "-")),
        ] {
            let (recursive, itself, path) = expected;
            assert_eq!(asked(argument), (recursive, itself, path.to_owned()));
        }
    }

    #[test]
    fn names_of_nlst_do_as_arguments() {
        assert_eq!(without_name(b"a/b"), b"a/");
        assert_eq!(without_name(b"b"), b"");
        assert_eq!(without_name(b"/b"), b"/");
        assert_eq!(with_slash(b""), b"");
        assert_eq!(with_slash(b"/"), b"/");
        assert_eq!(with_slash(b"a"), b"a/");
    }
}
