//! RETR, STOR and their kin: content between a data connection and the tree.
//!
//! Each is a [`Work`] that the session runs beside its control loop, and drops to abort it.

use std::cmp::Ordering;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portolan_config::checked::listener::Ascii;
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::path::display;

use super::arrival::Setup;
use super::data::{Connection, Plan};
use crate::ControlConnection;
use crate::bandwidth::Direction;
use crate::reply::{self, Action, Reply};
use crate::transfer::{END_GRACE, Transfer};
use portolan_cluster::auth::Login;
use portolan_cluster::path::VirtualPath;
use portolan_cluster::tree::{Begins, Tree};

/// Something that takes its time. It ends in a reply, perhaps after a preliminary one.
pub(super) type Work = Pin<Box<dyn Future<Output = Progress> + Send>>;

pub(super) enum Progress {
    /// A preliminary reply (1yz), and what follows it.
    More(Reply, Work),
    Done(Reply),
    /// Before any preliminary reply: the client may be on its way to this data connection.
    Refused(Reply, Setup),
}

/// What a transfer takes from its session.
pub(super) struct Job {
    pub(super) tree: Arc<Tree>,
    pub(super) login: Login,
    pub(super) control: Arc<ControlConnection>,
    pub(super) plan: Plan,
    pub(super) transfer: Arc<Transfer>,
    /// What TYPE A does; `None` with TYPE I.
    pub(super) ascii: Option<Ascii>,
}

impl Job {
    fn path(&self) -> &VirtualPath {
        &self.transfer.path
    }

    fn converts(&self) -> bool {
        self.ascii == Some(Ascii::Convert)
    }

    /// RETR. The node begins to send while the data connection is opened.
    pub(super) fn retrieve(self, offset: u64, length: Option<u64>) -> Work {
        Box::pin(async move {
            let Self { tree, login, transfer, .. } = &self;
            let mut content = match tree.read(login, self.path(), offset, length, transfer.id).await {
                Ok(content) => content,
                Err(error) => {
                    return Progress::Refused(self.refuse(&error, Action::Read), self.plan.setup);
                }
            };
            transfer.set_node(content.node());
            let text = match content.missing() {
                Some(bytes) => format!("Sending {bytes} bytes of {}.", self.path()),
                None => format!("Sending {}.", self.path()),
            };
            let moving = async move {
                let converts = self.converts();
                let Self { plan, transfer, .. } = self;
                let mut connection = match open(plan, &transfer, Direction::ToClient).await {
                    Ok(connection) => connection,
                    Err(reply) => return Progress::Done(reply),
                };
                loop {
                    let mut chunk = match content.next().await {
                        Ok(Some(chunk)) => chunk,
                        Ok(None) => break,
                        Err(error) => {
                            transfer.failed(&error);
                            return Progress::Done(reply::broken(&error, Action::Read, &transfer.path));
                        }
                    };
                    // What is slow by a limit is seen to move all the same.
                    while !chunk.is_empty() {
                        let piece = chunk.split_to(chunk.len().min(connection.piece_bytes_max()));
                        let count = piece.len();
                        let piece = if converts { to_network_lines(&piece) } else { piece };
                        if let Err(error) = connection.send(piece).await {
                            return Progress::Done(broken(&transfer, &error));
                        }
                        transfer.moved(count);
                    }
                }
                Progress::Done(match connection.finish().await {
                    Ok(()) => {
                        transfer.complete();
                        Reply::new(226, "Transfer complete.")
                    }
                    Err(error) => broken(&transfer, &error),
                })
            };
            Progress::More(Reply::with(150, text), Box::pin(moving))
        })
    }

    /// STOR, STOU, APPE. `declared` is what ALLO announced.
    pub(super) fn store(self, begins: Begins, declared: Option<u64>) -> Work {
        Box::pin(async move {
            let declared = match declared {
                None => None,
                Some(bytes) => match self.present(begins).await {
                    Ok(present) => Some(Declared { bytes, present }),
                    Err(reply) => return Progress::Refused(reply, self.plan.setup),
                },
            };
            let Self { tree, login, transfer, .. } = &self;
            let mut upload = match tree.write(login, self.path(), begins, transfer.id).await {
                Ok(upload) => upload,
                Err(error) => {
                    return Progress::Refused(self.refuse(&error, Action::Write), self.plan.setup);
                }
            };
            transfer.set_node(upload.node());
            // The checksum of what was there is content: from two uploads at other offsets it could be worked out.
            let knows_whole = match begins {
                Begins::New | Begins::Replacing => true,
                Begins::At(_) | Begins::End => Tree::permissions(login, self.path()).read,
            };
            // RFC 1123 section 4.1.2.9: the name that STOU chose is told here.
            let text = match begins {
                Begins::New => format!("FILE: {}", display(self.path().name())),
                Begins::Replacing | Begins::At(_) | Begins::End => format!("Ready to store {}.", self.path()),
            };
            let moving = async move {
                let converts = self.converts();
                let Self { plan, transfer, control, .. } = self;
                let mut connection = match open(plan, &transfer, Direction::FromClient).await {
                    Ok(connection) => connection,
                    Err(reply) => return Progress::Done(reply),
                };
                let mut lines = LocalLines::default();
                loop {
                    let mut chunk = match connection.receive(|count| transfer.moved(count)).await {
                        Ok(chunk) => chunk,
                        Err(error) => return Progress::Done(broken(&transfer, &error)),
                    };
                    let ended = chunk.is_empty();
                    if converts {
                        chunk = lines.convert(&chunk);
                    }
                    // Line ends that were held back make a chunk grow.
                    while !chunk.is_empty() {
                        let piece = chunk.split_to(chunk.len().min(CHUNK_BYTES_MAX));
                        if let Err(error) = upload.send(piece).await {
                            transfer.failed(&error);
                            return Progress::Done(reply::of(&error, Action::Write, &transfer.path));
                        }
                    }
                    if ended {
                        break;
                    }
                }
                let refused = |doubt: Doubt| {
                    transfer.broken_off(&doubt);
                    Progress::Done(Reply::with(426, format!("{doubt}; nothing was changed.")))
                };
                let certain = match declared.map(|declared| declared.compare(transfer.bytes())) {
                    Some(Ordering::Less) => return refused(Doubt::Short),
                    Some(Ordering::Equal) => true,
                    Some(Ordering::Greater) | None => connection.marks_its_end(),
                };
                let grace = tokio::time::sleep(if certain { Duration::ZERO } else { END_GRACE });
                // The node syncs the content meanwhile.
                let (synced, ()) = tokio::join!(upload.finish(), grace);
                if let Err(error) = synced {
                    transfer.failed(&error);
                    return Progress::Done(reply::of(&error, Action::Write, &transfer.path));
                }
                if let Some(doubt) = control_doubt(&control).await {
                    return refused(doubt);
                }
                transfer.set_committing();
                let committed = upload.commit().await;
                connection.acknowledge_end().await;
                match committed {
                    Ok(committed) => {
                        transfer.complete();
                        let (size, crc32) = (committed.size, committed.crc32);
                        Progress::Done(Reply::with(
                            226,
                            if knows_whole {
                                format!("Stored; the file has {size} bytes and CRC-32 {crc32:08x}.")
                            } else {
                                format!("Stored; the file has {size} bytes.")
                            },
                        ))
                    }
                    Err(error) => {
                        transfer.failed(&error);
                        Progress::Done(reply::of(&error, Action::Write, &transfer.path))
                    }
                }
            };
            Progress::More(Reply::with(150, text), Box::pin(moving))
        })
    }

    /// Bytes that the new content takes over from the present one.
    async fn present(&self, begins: Begins) -> Result<u64, Reply> {
        match begins {
            Begins::Replacing | Begins::New => Ok(0),
            Begins::At(offset) => Ok(offset),
            Begins::End => match self.tree.stat(&self.login, self.path()).await {
                Ok(entry) => Ok(entry.size),
                Err(error) if error.is_not_found() => Ok(0),
                Err(error) => Err(self.refuse(&error, Action::Write)),
            },
        }
    }

    fn refuse(&self, error: &portolan_cluster::tree::Error, action: Action) -> Reply {
        self.transfer.failed(error);
        reply::of(error, action, self.path())
    }
}

/// Opens the data connection of a transfer; the reply if there is none.
pub(super) async fn open(plan: Plan, transfer: &Transfer, direction: Direction) -> Result<Connection, Reply> {
    plan.open(direction).await.map_err(|error| {
        transfer.broken_off(&portolan_telemetry::chain(&error));
        error.reply()
    })
}

/// The reply to a data connection that broke.
pub(super) fn broken(transfer: &Transfer, error: &std::io::Error) -> Reply {
    transfer.broken_off(error);
    match error.kind() {
        std::io::ErrorKind::TimedOut => Reply::new(
            426,
            "Nothing moved on the data connection for too long; the transfer is not complete.",
        ),
        std::io::ErrorKind::UnexpectedEof => Reply::new(
            426,
            "The data connection ended before its content did, as if cut off; nothing was changed.",
        ),
        _ => Reply::new(426, "The data connection broke; the transfer is not complete."),
    }
}

/// What ALLO announced: the bytes to come, or those of the whole file with the ones that are there.
struct Declared {
    bytes: u64,
    present: u64,
}

impl Declared {
    /// How what came compares with what was announced.
    fn compare(&self, received: u64) -> Ordering {
        if self.present.saturating_add(received) == self.bytes {
            Ordering::Equal
        } else {
            received.cmp(&self.bytes)
        }
    }
}

/// Why an upload whose data connection ended in order is not kept all the same.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("Fewer bytes came than ALLO announced")]
    Short,
    #[error("The control connection was closed")]
    Closed,
    #[error("Commands on the control connection wait to be read")]
    Unread,
}

/// Commands that have come are read by the session meanwhile; this is far more than that takes.
const READ_MAX: Duration = Duration::from_secs(1);

/// Looks at the control connection when all of an upload is on the node's disk: an ABOR that has come counts, and so
/// does the end of the connection (RFC 959 section 3.2). The session reads commands while this waits, and drops the
/// work on an ABOR and on the end of TLS.
async fn control_doubt(control: &ControlConnection) -> Option<Doubt> {
    // Lets the runtime see what has come.
    tokio::task::yield_now().await;
    let read = async {
        while control.has_unread() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(READ_MAX, read).await.is_err() {
        return Some(Doubt::Unread);
    }
    control.is_closed_by_client().then_some(Doubt::Closed)
}

/// Line ends for the network: LF becomes CR LF.
fn to_network_lines(content: &[u8]) -> Bytes {
    let mut converted = BytesMut::with_capacity(content.len() + content.len() / 16);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                converted.extend_from_slice(line);
                converted.extend_from_slice(b"\r\n");
            }
            None => converted.extend_from_slice(line),
        }
    }
    converted.freeze()
}

/// Line ends of the network back to ours: CR LF becomes LF, also where two chunks meet.
#[derive(Debug, Default)]
struct LocalLines {
    /// The chunk before ended in CR.
    pending: bool,
}

impl LocalLines {
    /// An empty chunk is the end.
    fn convert(&mut self, content: &[u8]) -> Bytes {
        let mut converted = BytesMut::with_capacity(content.len() + 1);
        if content.is_empty() && std::mem::take(&mut self.pending) {
            converted.extend_from_slice(b"\r");
        }
        for byte in content {
            if std::mem::take(&mut self.pending) && *byte != b'\n' {
                converted.extend_from_slice(b"\r");
            }
            if *byte == b'\r' {
                self.pending = true;
            } else {
                converted.extend_from_slice(&[*byte]);
            }
        }
        converted.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_survive_both_ways() {
        let local = b"a\nb\r\nc\rd\r\r\n\n";
        let network = to_network_lines(local);
        assert_eq!(&network[..], b"a\r\nb\r\r\nc\rd\r\r\r\n\r\n");
        for piece in 1..network.len() {
            let mut lines = LocalLines::default();
            let mut back = Vec::new();
            for chunk in network.chunks(piece) {
                back.extend(lines.convert(chunk));
            }
            back.extend(lines.convert(b""));
            assert_eq!(back, local, "{piece}");
        }
        assert_eq!(&LocalLines { pending: true }.convert(b"")[..], b"\r");
    }
}
