//! The content of a file on its way to a client, whoever it comes from.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use portolan_proto::id::{NodeId, TransferId};
use portolan_proto::v1;

use super::cluster::Generated;
use super::{Error, Result, standby};
use crate::nodes::{self, NodeClient};

/// See the module.
#[derive(Debug)]
pub struct Content {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Node(Box<FromNodes>),
    Generated { text: Generated, size: u64, skip: u64, missing: u64 },
}

/// Where a node fails in the middle, its standbys go on, if they have the same file.
#[derive(Debug)]
struct FromNodes {
    content: nodes::Content,
    /// Who it comes from.
    node: Arc<NodeClient>,
    /// Who else has it.
    others: VecDeque<Arc<NodeClient>>,
    request: Request,
    /// Offset of the last byte wanted, and one.
    end: u64,
}

/// What it takes to ask for it again.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) caller: v1::Caller,
    pub(super) path: Vec<u8>,
    pub(super) transfer: TransferId,
}

impl Content {
    /// Opens a file on the first of `nodes` that does not fail.
    pub(super) async fn open(
        nodes: Vec<Arc<NodeClient>>,
        request: Request,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Self> {
        let mut others = VecDeque::from(nodes);
        let mut failure: Option<(Arc<NodeClient>, nodes::Error)> = None;
        while let Some(node) = others.pop_front() {
            let Request { caller, path, transfer } = &request;
            match node.read(caller.clone(), path, offset, length, *transfer).await {
                Ok(content) => {
                    if let Some((away, error)) = &failure {
                        standby::report(away, &node, error);
                    }
                    let end = offset + content.missing();
                    let source = Source::Node(Box::new(FromNodes { content, node, others, request, end }));
                    return Ok(Self { source });
                }
                Err(error) if error.is_of_the_node() => {
                    failure.get_or_insert((node, error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let (_, error) = failure.expect("there is one node at least");
        Err(error.into())
    }

    /// A file that no node has.
    pub(super) fn generated(text: Generated, size: u64, offset: u64, length: Option<u64>) -> Result<Self> {
        let Some(rest) = size.checked_sub(offset) else {
            return Err(Error::OffsetBeyondEnd { path: text.path().to_string() });
        };
        let missing = length.map_or(rest, |length| rest.min(length));
        Ok(Self { source: Source::Generated { text, size, skip: offset, missing } })
    }

    /// Who sends it; `None`: nobody, it is generated.
    pub fn node(&self) -> Option<&NodeId> {
        match &self.source {
            Source::Node(from) => Some(from.node.name()),
            Source::Generated { .. } => None,
        }
    }

    /// Size of the whole file when it was opened; `None`: it is known at the end only.
    pub fn size(&self) -> Option<u64> {
        match &self.source {
            Source::Node(from) => Some(from.content.size()),
            Source::Generated { size, .. } => Some(*size),
        }
    }

    /// Bytes still to come; `None`: not known before the end.
    pub fn missing(&self) -> Option<u64> {
        match &self.source {
            Source::Node(from) => Some(from.content.missing()),
            Source::Generated { missing, .. } => Some(*missing),
        }
    }

    /// Nanoseconds since 1970, when it was opened.
    pub fn modified_ns(&self) -> i64 {
        match &self.source {
            Source::Node(from) => from.content.modified_ns(),
            Source::Generated { text, .. } => text.modified_ns(),
        }
    }

    /// The next bytes; `None` when all have come. Its future must be polled to its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match &mut self.source {
            Source::Node(from) => from.next().await,
            Source::Generated { text, skip, missing, .. } => {
                while *missing > 0
                    && let Some(mut piece) = text.next()?
                {
                    let skipped =
                        piece.split_to(usize::try_from(*skip).unwrap_or(usize::MAX).min(piece.len()));
                    *skip -= skipped.len() as u64;
                    piece.truncate(usize::try_from(*missing).unwrap_or(usize::MAX));
                    *missing -= piece.len() as u64;
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Ok(None)
            }
        }
    }
}

impl FromNodes {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.content.next().await {
                Err(error) if error.is_of_the_node() => {
                    if !self.resume(&error).await {
                        return Err(error.into());
                    }
                }
                next => return Ok(next?),
            }
        }
    }

    /// Goes on with the next node that has the same file, of which size and modification time tell.
    async fn resume(&mut self, failure: &nodes::Error) -> bool {
        let rest = self.content.missing();
        let offset = self.end - rest;
        while let Some(other) = self.others.pop_front() {
            let Request { caller, path, transfer } = &self.request;
            let opened = other.read(caller.clone(), path, offset, Some(rest), *transfer).await;
            let (path, cause) = (portolan_proto::path::display(path), portolan_telemetry::chain(failure));
            let (node, standby) = (self.node.name(), other.name());
            match opened {
                Ok(content)
                    if content.size() == self.content.size()
                        && content.modified_ns() == self.content.modified_ns() =>
                {
                    tracing::warn!(%transfer, path, %node, %standby, offset, cause, "a standby goes on with a download");
                    self.content = content;
                    self.node = other;
                    return true;
                }
                Ok(_) => {
                    tracing::warn!(%transfer, path, %node, %standby, "a standby has another file and cannot go on with a download");
                }
                Err(error) => {
                    let error = portolan_telemetry::chain(&error);
                    tracing::warn!(%transfer, path, %node, %standby, error, "a standby cannot go on with a download");
                }
            }
        }
        false
    }
}
