//! The gRPC contracts: between front ends and agents, and of a front end with its operator; and the small types
//! that their sides share.
//!
//! Who calls it: portolan-cluster's `nodes`, the front end's `operator`, the operator's command, the agent's `service`.
//! What it calls: prost and tonic.
//! What it never does: I/O. It grants nothing, it only says what each call needs.

#![forbid(unsafe_code)]

pub mod failure;
pub mod id;
pub mod levels;
pub mod mark;
pub mod path;
pub mod rights;

/// Package `portolan.agent.v1`, as generated from `agent.proto`.
#[allow(clippy::all, unreachable_pub, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("portolan.agent.v1");
}

/// Package `portolan.frontend.v1`, as generated from `control.proto`.
#[allow(clippy::all, unreachable_pub, missing_docs, rustdoc::all)]
pub mod control {
    tonic::include_proto!("portolan.frontend.v1");
}

/// Content bytes in one chunk of Read and Write at most. 256 KiB is where bulk throughput peaks.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Encoded size of one gRPC message at most, either way.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Entries in one batch of List at most.
pub const LIST_BATCH_ENTRIES_MAX: usize = 1_000;
/// Sum of name lengths in one batch of List at most, so that a batch stays well below a message.
pub const LIST_BATCH_NAME_BYTES_MAX: usize = 128 * 1024;
/// Changes in one message of WatchHoldings at most.
pub const HOLDINGS_BATCH_CHANGES_MAX: usize = 1_000;
/// Entries in one message of ReadRecord and MergeRecord at most.
pub const RECORD_BATCH_ENTRIES_MAX: usize = 1_000;
/// Sum of keys and values from which on a batch of these takes no further entry, so that it stays well below a message.
pub const RECORD_BATCH_BYTES_MAX: usize = 256 * 1024;
/// HTTP/2 DATA frame that a receiver accepts. Set on both ends, because the receiver decides.
pub const HTTP2_FRAME_BYTES_MAX: u32 = 256 * 1024;
/// HTTP/2 flow-control window of one stream: what one slow reader can pile up in memory.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// HTTP/2 flow-control window of a connection: as many streams as an agent serves at once times their window,
/// so that transfers whose clients are slow never stop the others on the same connection.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// Metadata key of the transfer's id.
pub const TRANSFER_ID_KEY: &str = "portolan-transfer-id";
