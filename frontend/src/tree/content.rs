//! The content of a file on its way to a client, whoever it comes from.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use portolan_proto::id::TransferId;
use portolan_proto::v1;

use super::{Result, standby};
use crate::node_client::{self, NodeClient};

/// Where a node fails in the middle, its standbys go on, if they have the same file.
#[derive(Debug)]
pub struct Content {
    content: node_client::Content,
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
        let mut failure: Option<(Arc<NodeClient>, node_client::Error)> = None;
        while let Some(node) = others.pop_front() {
            let Request { caller, path, transfer } = &request;
            match node.read(caller.clone(), path, offset, length, *transfer).await {
                Ok(content) => {
                    if let Some((away, error)) = &failure {
                        standby::report(away, &node, error);
                    }
                    let end = offset + content.missing();
                    return Ok(Self { content, node, others, request, end });
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

    /// Size of the whole file when it was opened.
    pub fn size(&self) -> u64 {
        self.content.size()
    }

    /// Bytes still to come.
    pub fn missing(&self) -> u64 {
        self.content.missing()
    }

    /// Nanoseconds since 1970, when it was opened.
    pub fn modified_ns(&self) -> i64 {
        self.content.modified_ns()
    }

    /// The next bytes; `None` when all have come. Its future must be polled to its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
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
    async fn resume(&mut self, failure: &node_client::Error) -> bool {
        let rest = self.content.missing();
        let offset = self.end - rest;
        while let Some(other) = self.others.pop_front() {
            let Request { caller, path, transfer } = &self.request;
            let opened = other.read(caller.clone(), path, offset, Some(rest), *transfer).await;
            let (path, cause) =
                (portolan_proto::path::display(path), portolan_agent::process::chain(failure));
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
                    let error = portolan_agent::process::chain(&error);
                    tracing::warn!(%transfer, path, %node, %standby, error, "a standby cannot go on with a download");
                }
            }
        }
        false
    }
}
