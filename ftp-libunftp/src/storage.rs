//! Our tree, in the library's words.
//!
//! The library hands over paths as text, so names that are not UTF-8 cannot be asked for; it takes a listing
//! as a whole; it tells an error by its kind alone, so its fixed texts replace our sentences.

use std::fmt::{self, Debug};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::path::PathFault;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::Instrument as _;
use unftp_core::storage::{
    self, ErrorKind, FEATURE_RESTART, Fileinfo, Metadata, Permissions, StorageBackend,
};

use super::accounts::FtpUser;
use super::{Life, NoteEnd};
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{self, Begins, Changed, Entry, Kind, Tree};
use portolan_ftp::bandwidth::{Direction, Pace, Throttle};
use portolan_ftp::transfer::{END_GRACE, Transfer, changed, command_failed, in_time};
use portolan_ftp::verb::Verb;
use portolan_ftp::{ControlConnection, Service, reply};

/// What the library writes about an entry of a listing beside its name, about.
const LINE_BYTES: usize = 60;

/// The tree as one session's storage.
#[derive(Clone)]
pub(super) struct TreeStorage {
    service: Arc<Service>,
    tree: Arc<Tree>,
    /// How fast content of this session may go, but for the limit of its admin.
    throttle: Arc<Throttle>,
    control: Arc<ControlConnection>,
    life: Arc<Life>,
    memory: Arc<Mutex<Memory>>,
}

/// What a session must remember because the library does not.
#[derive(Debug, Default)]
struct Memory {
    /// The offset of a transfer that failed. The library keeps it, and would begin the next file there.
    stale_offset: Option<u64>,
    /// A path whose stat failed although it may exist. APPE takes that for an empty file and would replace
    /// what is there by what is appended.
    unknown_size: Option<PathBuf>,
}

impl TreeStorage {
    pub(super) fn new(service: Arc<Service>, control: Arc<ControlConnection>, life: Arc<Life>) -> Self {
        let (tree, throttle) = (Arc::clone(&service.shared.tree), service.session_throttle());
        Self { service, tree, throttle, control, life, memory: Arc::default() }
    }

    fn pace(&self, user: &FtpUser) -> Pace {
        self.service.pace_of(&self.throttle, &user.0.admin.name)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock()
    }

    /// Refuses a transfer that the library would begin at an offset, or on a size, that nobody gave it. The
    /// session is closed where a client could not tell what it gets; a new one begins clean.
    fn check_memory(&self, path: &Path, offset: u64, appends: bool) -> storage::Result<()> {
        let mut memory = self.memory();
        if offset > 0 && memory.stale_offset == Some(offset) {
            let why = "the offset may be left over from a transfer that failed";
            tracing::warn!(path = %path.display(), offset, why, "transfer refused and session closed");
            self.control.close();
            return Err(broken_off(why));
        }
        memory.stale_offset = None;
        if appends && offset == 0 && memory.unknown_size.take().is_some_and(|unknown| unknown == path) {
            let why = "the present size of the file is not known";
            tracing::warn!(path = %path.display(), why, "upload refused");
            return Err(storage::Error::new(ErrorKind::TransientFileNotAvailable, why));
        }
        Ok(())
    }

    fn remember<T>(&self, offset: u64, done: storage::Result<T>) -> storage::Result<T> {
        if done.is_err() && offset > 0 {
            self.memory().stale_offset = Some(offset);
        }
        done
    }
}

impl Debug for TreeStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeStorage").field("control", &self.control).finish_non_exhaustive()
    }
}

/// An entry as the library takes it.
#[derive(Debug)]
pub(super) struct Shown(Entry);

impl Metadata for Shown {
    fn len(&self) -> u64 {
        self.0.size
    }

    fn is_dir(&self) -> bool {
        self.0.kind == Kind::Directory
    }

    fn is_file(&self) -> bool {
        self.0.kind == Kind::File
    }

    // A special file is shown as a file whose download fails, not as a link that a client would re-create.
    fn is_symlink(&self) -> bool {
        false
    }

    fn modified(&self) -> storage::Result<SystemTime> {
        Ok(self.0.modified)
    }

    fn gid(&self) -> u32 {
        0
    }

    fn uid(&self) -> u32 {
        0
    }

    fn permissions(&self) -> Permissions {
        Permissions(self.0.unix_mode)
    }
}

/// The library has put U+FFFD in the place of bytes that are not UTF-8. Two names that differ only there look
/// the same to us, so neither is touched.
fn resolve(user: &FtpUser, path: &Path) -> Result<VirtualPath, tree::Error> {
    let bytes = path.as_os_str().as_bytes();
    if String::from_utf8_lossy(bytes).contains(char::REPLACEMENT_CHARACTER) {
        return Err(PathFault::Refused.into());
    }
    Ok(VirtualPath::resolve(&user.0.admin.grants.root, bytes)?)
}

/// The library's kind that leads to the same reply code.
fn kind(error: &tree::Error) -> ErrorKind {
    match reply::code(error) {
        450 => ErrorKind::TransientFileNotAvailable,
        452 => ErrorKind::InsufficientStorageSpaceError,
        550 if matches!(error, tree::Error::NotGranted { .. } | tree::Error::Fixed { .. }) => {
            ErrorKind::PermissionDenied
        }
        // 502: the library has no 504.
        504 => ErrorKind::CommandNotImplemented,
        550 => ErrorKind::PermanentFileNotAvailable,
        552 => ErrorKind::ExceededStorageAllocationError,
        553 => ErrorKind::FileNameNotAllowedError,
        _ => ErrorKind::LocalError,
    }
}

fn broken_off(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> storage::Error {
    storage::Error::new(ErrorKind::ConnectionClosed, what)
}

/// A name as the library can write it into a listing: text on one line. What had to be replaced is seen, and
/// its download fails aloud.
fn in_one_line(name: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(name).replace(['\r', '\n'], "?"))
}

impl TreeStorage {
    fn refused(&self, user: &FtpUser, verb: Verb, path: &Path, error: tree::Error) -> storage::Error {
        let shown = resolve(user, path).unwrap_or_default();
        command_failed(&self.control, &user.0, verb, (&shown, None), &error);
        storage::Error::new(kind(&error), error)
    }

    /// Changes what stands at a path, and tells of it.
    async fn change(
        &self,
        user: &FtpUser,
        verb: Verb,
        path: &Path,
        to: Option<&Path>,
        work: impl AsyncFnOnce(&Tree, &VirtualPath, &VirtualPath) -> tree::Result<Changed>,
    ) -> storage::Result<()> {
        let done = async {
            let (from, to) = (resolve(user, path)?, to.map(|to| resolve(user, to)).transpose()?);
            let made = work(&self.tree, &from, to.as_ref().unwrap_or(&from)).await?;
            changed(&self.control, &user.0, verb, &from, to.as_ref(), &made);
            Ok(())
        };
        done.await.map_err(|error| self.refused(user, verb, path, error))
    }

    async fn entries(&self, user: &FtpUser, path: &VirtualPath) -> tree::Result<Vec<Entry>> {
        let mut listing = match self.tree.list(&user.0, path).await {
            Ok(listing) => listing,
            // LIST of a file shows the file (RFC 959 section 4.1.3).
            Err(error) if error.is_not_a_directory() => {
                return Ok(vec![self.tree.stat(&user.0, path).await?]);
            }
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        while let Some(batch) = listing.next_batch().await? {
            entries.extend(batch);
        }
        Ok(entries)
    }

    /// Runs a transfer as part of the session: counted and shown while it lasts, and ended with it, unless the node is
    /// keeping it already.
    async fn within_session<T>(
        &self,
        transfer: &Arc<Transfer>,
        work: impl Future<Output = storage::Result<T>>,
    ) -> storage::Result<T> {
        let _under_way = self.control.begin_transfer(Some(Arc::clone(transfer)));
        // Dropped first: who waits for the end of the transfer finds it noted.
        let _ended = NoteEnd(&self.life);
        tokio::pin!(work);
        tokio::select! {
            worked = &mut work => return worked,
            () = self.life.over.cancelled() => {}
        }
        if transfer.is_committing() {
            return work.await;
        }
        let why = "the session has ended";
        transfer.broken_off(&why);
        Err(broken_off(why))
    }

    async fn send<W>(
        &self,
        user: &FtpUser,
        path: &VirtualPath,
        offset: u64,
        output: &mut W,
        transfer: &Transfer,
    ) -> storage::Result<u64>
    where
        W: AsyncWrite + Unpin + Sync + Send + ?Sized,
    {
        let pace = self.pace(user);
        let failed = |error: tree::Error| {
            transfer.failed(&error);
            storage::Error::new(kind(&error), error)
        };
        let content = self.tree.read(&user.0, path, offset, None, transfer.id).await;
        let mut content = content.map_err(failed)?;
        transfer.set_node(content.node());
        loop {
            let mut chunk = match content.next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => return Err(failed(error)),
            };
            while !chunk.is_empty() {
                let piece = chunk.split_to(chunk.len().min(pace.piece_bytes_max(Direction::ToClient)));
                pace.take(Direction::ToClient, piece.len()).await;
                if let Err(error) = in_time(output.write_all(&piece)).await {
                    transfer.broken_off(&error);
                    return Err(error.into());
                }
                transfer.moved(piece.len());
            }
        }
        transfer.complete();
        Ok(transfer.bytes())
    }

    async fn receive<R>(
        &self,
        user: &FtpUser,
        path: &VirtualPath,
        offset: u64,
        mut input: R,
        transfer: &Transfer,
    ) -> storage::Result<u64>
    where
        R: AsyncRead + Send + Sync + Unpin,
    {
        let pace = self.pace(user);
        let failed = |error: tree::Error| {
            transfer.failed(&error);
            storage::Error::new(kind(&error), error)
        };
        let begins = if offset > 0 { Begins::At(offset) } else { Begins::Replacing };
        let upload = self.tree.write(&user.0, path, begins, transfer.id).await;
        let mut upload = upload.map_err(failed)?;
        transfer.set_node(upload.node());
        loop {
            let chunk = match next_chunk(&mut input, &pace).await {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => chunk,
                Err(error) => {
                    transfer.broken_off(&error);
                    return Err(broken_off(error));
                }
            };
            transfer.moved(chunk.len());
            upload.send(chunk).await.map_err(failed)?;
        }
        // The library takes any end of the data connection for a complete file. A client that died has lost
        // its control connection too, perhaps a moment later, and that is an abort.
        let (synced, ()) = tokio::join!(upload.finish(), tokio::time::sleep(END_GRACE));
        synced.map_err(failed)?;
        if self.control.is_closed_by_client() {
            let why = "the control connection is closed, so the upload counts as aborted";
            transfer.broken_off(&why);
            return Err(broken_off(why));
        }
        transfer.set_committing();
        upload.commit().await.map_err(failed)?;
        transfer.complete();
        Ok(transfer.bytes())
    }
}

/// A chunk that is full, or the last one; empty at the end.
async fn next_chunk(input: &mut (impl AsyncRead + Unpin), pace: &Pace) -> std::io::Result<Bytes> {
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES_MAX);
    while chunk.len() < CHUNK_BYTES_MAX {
        let room = pace.piece_bytes_max(Direction::FromClient).min(CHUNK_BYTES_MAX - chunk.len());
        let count = in_time(input.read_buf(&mut bytes::BufMut::limit(&mut chunk, room))).await?;
        if count == 0 {
            break;
        }
        pace.take(Direction::FromClient, count).await;
    }
    Ok(chunk.freeze())
}

#[async_trait]
impl StorageBackend<FtpUser> for TreeStorage {
    type Metadata = Shown;

    fn supported_features(&self) -> u32 {
        FEATURE_RESTART
    }

    async fn metadata<P: AsRef<Path> + Send + Debug>(
        &self,
        user: &FtpUser,
        path: P,
    ) -> storage::Result<Shown> {
        let path = path.as_ref();
        let stat = async { self.tree.stat(&user.0, &resolve(user, path)?).await };
        let stat = stat.await.map_err(|error| self.refused(user, Verb::STAT, path, error));
        let absent = |error: &storage::Error| error.kind() == ErrorKind::PermanentFileNotAvailable;
        let known = stat.as_ref().err().is_none_or(absent);
        self.memory().unknown_size = (!known).then(|| path.to_owned());
        stat.map(Shown)
    }

    async fn list<P: AsRef<Path> + Send + Debug>(
        &self,
        user: &FtpUser,
        path: P,
    ) -> storage::Result<Vec<Fileinfo<PathBuf, Shown>>> {
        let path = path.as_ref();
        let entries = async { self.entries(user, &resolve(user, path)?).await };
        let entries = entries.await.map_err(|error| self.refused(user, Verb::LIST, path, error))?;
        // The library writes the lines; this is about what they take.
        let bytes = entries.iter().map(|entry| entry.name.len() + LINE_BYTES).sum();
        self.pace(user).take(Direction::ToClient, bytes).await;
        Ok(entries
            .into_iter()
            .map(|entry| Fileinfo { path: in_one_line(&entry.name), metadata: Shown(entry) })
            .collect())
    }

    async fn get_into<'a, P, W: ?Sized>(
        &self,
        user: &FtpUser,
        path: P,
        start_pos: u64,
        output: &'a mut W,
    ) -> storage::Result<u64>
    where
        W: AsyncWrite + Unpin + Sync + Send,
        P: AsRef<Path> + Send + Debug,
    {
        let path = path.as_ref();
        self.check_memory(path, start_pos, false)?;
        let sent = match resolve(user, path) {
            Ok(resolved) => {
                let span = self.control.command_span(Verb::RETR);
                let begin = || Transfer::begin(&self.control, &user.0, Verb::RETR, &resolved, false);
                let transfer = Arc::new(span.in_scope(begin));
                let sending = self.send(user, &resolved, start_pos, output, &transfer);
                self.within_session(&transfer, sending).instrument(span).await
            }
            Err(error) => Err(self.refused(user, Verb::RETR, path, error)),
        };
        self.remember(start_pos, sent)
    }

    /// Only SITE MD5 would come here, which needs a feature that is not announced; RETR uses `get_into`.
    async fn get<P: AsRef<Path> + Send + Debug>(
        &self,
        _user: &FtpUser,
        _path: P,
        _start_pos: u64,
    ) -> storage::Result<Box<dyn AsyncRead + Send + Sync + Unpin>> {
        Err(storage::Error::from(ErrorKind::CommandNotImplemented))
    }

    async fn put<P: AsRef<Path> + Send + Debug, R: AsyncRead + Send + Sync + Unpin + 'static>(
        &self,
        user: &FtpUser,
        input: R,
        path: P,
        start_pos: u64,
    ) -> storage::Result<u64> {
        let path = path.as_ref();
        self.check_memory(path, start_pos, true)?;
        let received = match resolve(user, path) {
            Ok(resolved) => {
                let span = self.control.command_span(Verb::STOR);
                let begin = || Transfer::begin(&self.control, &user.0, Verb::STOR, &resolved, false);
                let transfer = Arc::new(span.in_scope(begin));
                let receiving = self.receive(user, &resolved, start_pos, input, &transfer);
                self.within_session(&transfer, receiving).instrument(span).await
            }
            Err(error) => Err(self.refused(user, Verb::STOR, path, error)),
        };
        self.remember(start_pos, received)
    }

    async fn del<P: AsRef<Path> + Send + Debug>(&self, user: &FtpUser, path: P) -> storage::Result<()> {
        let path = path.as_ref();
        self.change(user, Verb::DELE, path, None, async |tree, path, _| tree.remove(&user.0, path).await)
            .await
    }

    async fn mkd<P: AsRef<Path> + Send + Debug>(&self, user: &FtpUser, path: P) -> storage::Result<()> {
        let path = path.as_ref();
        self.change(user, Verb::MKD, path, None, async |tree, path, _| {
            tree.make_directory(&user.0, path).await
        })
        .await
    }

    async fn rename<P: AsRef<Path> + Send + Debug>(
        &self,
        user: &FtpUser,
        from: P,
        to: P,
    ) -> storage::Result<()> {
        let (path, to) = (from.as_ref(), to.as_ref());
        self.change(user, Verb::RNTO, path, Some(to), async |tree, from, to| {
            tree.rename(&user.0, from, to).await
        })
        .await
    }

    async fn rmd<P: AsRef<Path> + Send + Debug>(&self, user: &FtpUser, path: P) -> storage::Result<()> {
        let path = path.as_ref();
        self.change(user, Verb::RMD, path, None, async |tree, path, _| {
            tree.remove_directory(&user.0, path).await
        })
        .await
    }

    async fn cwd<P: AsRef<Path> + Send + Debug>(&self, user: &FtpUser, path: P) -> storage::Result<()> {
        let path = path.as_ref();
        let stat = async { self.tree.stat(&user.0, &resolve(user, path)?).await };
        let entry = stat.await.map_err(|error| self.refused(user, Verb::CWD, path, error))?;
        if entry.kind == Kind::Directory {
            return Ok(());
        }
        Err(storage::Error::from(ErrorKind::PermanentDirectoryNotAvailable))
    }
}
