//! The content of a client on its way to where it is kept.

use bytes::Bytes;
use portolan_proto::id::NodeId;

use super::Result;
use crate::nodes::{self, Committed};

/// An upload. Dropping it before [`Upload::commit`] aborts it: what was there stays.
#[derive(Debug)]
pub struct Upload {
    target: Target,
}

/// Where the content goes. Archives will go to several nodes.
#[derive(Debug)]
enum Target {
    Node(nodes::Upload),
}

impl Upload {
    pub(super) fn to_node(upload: nodes::Upload) -> Self {
        Self { target: Target::Node(upload) }
    }

    /// The one node that gets it; `None`: there is more than one.
    pub fn node(&self) -> Option<&NodeId> {
        match &self.target {
            Target::Node(upload) => Some(upload.node()),
        }
    }

    /// Sends one chunk, of at most `CHUNK_BYTES_MAX` bytes. Fails as soon as a node has refused.
    pub async fn send(&mut self, chunk: Bytes) -> Result<()> {
        match &mut self.target {
            Target::Node(upload) => Ok(upload.send(chunk).await?),
        }
    }

    /// Reports that everything was sent, and waits until the content is on disk. Nothing is changed before
    /// [`Upload::commit`].
    pub async fn finish(&mut self) -> Result<()> {
        match &mut self.target {
            Target::Node(upload) => Ok(upload.finish().await?),
        }
    }

    /// Puts the content in its place, and waits until that is on disk.
    pub async fn commit(self) -> Result<Committed> {
        match self.target {
            Target::Node(upload) => Ok(upload.commit().await?),
        }
    }
}
