//! LIST, NLST and MLSD: directories over a data connection, batch by batch.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use portolan_proto::path::domain_of;

use super::data::{Connection, Plan};
use super::facts::{Facts, list_line, on_one_line};
use super::pattern::{Pattern, is_pattern};
use super::transfer::{Outcome, Work, broken, open};
use crate::auth::Login;
use crate::ftp::bandwidth::Direction;
use crate::ftp::reply::{self, Action, Reply};
use crate::ftp::transfer::Transfer;
use crate::tree::{self, Entry, Kind, Listing, Permissions, Tree, VirtualPath};

/// Bytes that `-R` may spend on remembering directories that it has seen and not yet entered.
const REMEMBERED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Steps of work, of some nanoseconds each, after which a listing lets other sessions have its thread.
const TURN_STEPS: usize = 50_000;
/// Steps that an entry costs.
const ENTRY_STEPS: usize = 500;

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
                    return Outcome::Done(if is_file { Reply { code: 501, ..reply } } else { reply });
                }
            };
            let text = format!("Listing {}.", self.transfer.path);
            let moving = async move {
                let Self { tree, login, plan, transfer, form, recursive, .. } = self;
                let connection = match open(plan, &transfer, Direction::ToClient).await {
                    Ok(connection) => connection,
                    Err(reply) => return Outcome::Done(reply),
                };
                let mut sending = Sending { login, connection, transfer, form, now: SystemTime::now() };
                let sent = sending.all(&tree, source, path, prefix, recursive).await;
                let Sending { connection, transfer, .. } = sending;
                Outcome::Done(match sent {
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
                        Reply::new(451, "There are too many directories for -R; list them one by one.")
                    }
                })
            };
            Outcome::More(Reply::with(150, text), Box::pin(moving))
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

/// Directories that are still to be listed.
#[derive(Debug, Default)]
struct Pending {
    /// Those found in the directory being listed, in its order.
    found: Vec<(VirtualPath, Vec<u8>)>,
    /// Those found before, the next one last.
    older: Vec<(VirtualPath, Vec<u8>)>,
    bytes: usize,
}

impl Pending {
    fn cost((path, said): &(VirtualPath, Vec<u8>)) -> usize {
        path.as_wire().len() + said.len() + size_of::<(VirtualPath, Vec<u8>)>()
    }

    fn add(&mut self, path: VirtualPath, said: Vec<u8>) -> Result<(), Error> {
        let directory = (path, said);
        self.bytes += Self::cost(&directory);
        self.found.push(directory);
        if self.bytes > REMEMBERED_BYTES_MAX { Err(Error::TooWide) } else { Ok(()) }
    }

    fn next(&mut self) -> Option<(VirtualPath, Vec<u8>)> {
        self.older.extend(self.found.drain(..).rev());
        let next = self.older.pop()?;
        self.bytes -= Self::cost(&next);
        Some(next)
    }
}

enum Error {
    Tree(tree::Error),
    Data(std::io::Error),
    TooWide,
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
        // Directories that are still to be listed, the next one last.
        let mut pending = recursive.then(Pending::default);
        self.one(source, &path, &prefix, pending.as_mut()).await?;
        let Some(mut pending) = pending else { return Ok(()) };
        while let Some((path, prefix)) = pending.next() {
            let listing = match tree.list(&self.login, &path).await {
                Ok(listing) => listing,
                // Removed since it was seen.
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            if self.form == Form::List {
                let heading = [&b"\r\n"[..], &on_one_line(&prefix[..prefix.len() - 1]), b":\r\n"].concat();
                self.send(heading).await?;
            }
            self.one(Source::Directory(listing), &path, &prefix, Some(&mut pending)).await?;
        }
        Ok(())
    }

    /// Sends one directory, and notes the directories in it.
    async fn one(
        &mut self,
        source: Source,
        path: &VirtualPath,
        prefix: &[u8],
        mut directories: Option<&mut Pending>,
    ) -> Result<(), Error> {
        let (mut listing, mut pattern) = match source {
            Source::Single(entry) => {
                let mut lines = Vec::new();
                let permissions = permissions(&self.login, path, &entry);
                self.write(&mut lines, &entry, prefix, permissions);
                return self.send(lines).await;
            }
            Source::Directory(listing) => (listing, None),
            Source::Matching(listing, pattern) => (listing, Some(pattern)),
        };
        let mut turn = Turn::default();
        // Only the levels down to the containers allow different things to different entries.
        let mut shared = None;
        while let Some(batch) = listing.next_batch().await? {
            let mut lines = Vec::with_capacity(batch.len() * 96);
            for entry in batch {
                turn.take(ENTRY_STEPS).await;
                if let Some(pattern) = &mut pattern {
                    let fits = pattern.matches(&entry.name);
                    turn.take(pattern.take_work()).await;
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
                self.write(&mut lines, &entry, prefix, permissions);
                if let Some(directories) = &mut directories
                    && entry.kind == Kind::Directory
                    && let Ok(path) = VirtualPath::resolve(path, &entry.name)
                {
                    directories.add(path, [prefix, &entry.name, b"/"].concat())?;
                }
            }
            self.send(lines).await?;
        }
        Ok(())
    }

    fn write(&self, lines: &mut Vec<u8>, entry: &Entry, prefix: &[u8], permissions: Permissions) {
        match self.form {
            Form::List => list_line(lines, entry, &entry.name, self.now),
            Form::Names => {
                lines.extend_from_slice(&on_one_line(prefix));
                lines.extend_from_slice(&on_one_line(&entry.name));
            }
            Form::Facts(facts) => {
                facts.write(lines, entry, permissions);
                lines.extend_from_slice(&on_one_line(&entry.name));
            }
        }
        lines.extend_from_slice(b"\r\n");
    }

    async fn send(&mut self, lines: Vec<u8>) -> Result<(), Error> {
        let count = lines.len();
        self.connection.send(Bytes::from(lines)).await.map_err(Error::Data)?;
        self.transfer.moved(count);
        Ok(())
    }
}

/// What an admin may do with an entry of a directory.
fn permissions(login: &Login, directory: &VirtualPath, entry: &Entry) -> Permissions {
    match VirtualPath::resolve(directory, &entry.name) {
        Ok(path) => Tree::permissions(login, &path),
        // A name that no command can say.
        Err(_) => Permissions { read: false, change: false },
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
