//! What the kernel knows of a socket and no safe interface shows: how much the peer has not acknowledged.
//!
//! Who calls it: `data`, at the end of what was sent.
//! What it calls: ioctl(2). It is the only place with unsafe code in this project, because no crate that is in use has a
//! safe call for it.
//! What it never does: wait.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// SIOCOUTQ of tcp(7), which has the number of TIOCOUTQ. Spelled out because it is the same on x86-64, aarch64 and riscv64.
const SIOCOUTQ: Opcode = 0x5411;

/// Bytes that were written and that the peer's system has not acknowledged. The end of the stream (FIN) counts as one.
/// After a reset the count stays what it was: the acknowledgement that a reset carries is not taken.
pub(super) fn unacknowledged(socket: impl AsFd) -> rustix::io::Result<usize> {
    // SAFETY: on a socket SIOCOUTQ writes one int to where its argument points, which is what the getter has room for; on
    // another file descriptor it fails, or writes one int too (tty_ioctl(4)).
    let count: c_int = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}
