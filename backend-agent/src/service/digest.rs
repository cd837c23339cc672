//! Digest: what a file's content adds up to, computed here and remembered while the file stays as it is.
//!
//! The file's version is compared before and after, so a digest never mixes two contents. A digest holds a
//! core; few are computed at once, and one that nobody waits for any more stops at the next chunk.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use portolan_proto::CHUNK_BYTES_MAX;
use portolan_proto::failure::status;
use portolan_proto::v1::{self, DigestAlgorithm, Reason};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::AgentService;
use super::caller::Checked;
use super::content::Range;
use super::share::Work;
use crate::store::{self, Error, Version};

/// Digests computed at once; each holds a core and a blocking thread. The others wait.
const AT_ONCE: usize = 4;

/// Digests of whole files that are remembered at most, in some 12 MiB.
const KNOWN_MAX: usize = 65_536;

/// The digests of one agent: whose turn it is, and those that are known.
#[derive(Debug)]
pub(super) struct Digests {
    turns: Arc<Semaphore>,
    known: Mutex<Known>,
}

impl Digests {
    pub(super) fn new() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), known: Mutex::default() }
    }

    fn find(&self, key: &Key) -> Option<Bytes> {
        self.known.lock().find(key)
    }

    pub(super) fn remember(&self, key: Key, digest: Bytes) {
        self.known.lock().insert(key, digest);
    }
}

/// A whole file as it was, and what was computed of it.
pub(super) type Key = (Version, DigestAlgorithm);

/// Two generations, so that what was not asked for in a whole one is forgotten.
#[derive(Debug, Default)]
struct Known {
    young: HashMap<Key, Bytes>,
    old: HashMap<Key, Bytes>,
}

impl Known {
    fn find(&mut self, key: &Key) -> Option<Bytes> {
        if let Some(digest) = self.young.get(key) {
            return Some(digest.clone());
        }
        let digest = self.old.remove(key)?;
        self.insert(*key, digest.clone());
        Some(digest)
    }

    fn insert(&mut self, key: Key, digest: Bytes) {
        if self.young.len() >= KNOWN_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, digest);
    }
}

/// Adds up the rest of a range; `None` when it was told to stop.
type Sum = fn(&mut Range, &CancellationToken) -> store::Result<Option<Bytes>>;

/// How an algorithm is computed; `None` for none.
fn sum_of(algorithm: DigestAlgorithm) -> Option<Sum> {
    match algorithm {
        DigestAlgorithm::Unspecified => None,
        DigestAlgorithm::Sha256 => Some(hash::<sha2::Sha256>),
        DigestAlgorithm::Sha512 => Some(hash::<sha2::Sha512>),
        DigestAlgorithm::Sha1 => Some(hash::<sha1::Sha1>),
        DigestAlgorithm::Md5 => Some(hash::<md5::Md5>),
        DigestAlgorithm::Crc32 => Some(crc32),
    }
}

/// One digest, with its file open.
struct Job {
    range: Range,
    algorithm: DigestAlgorithm,
    sum: Sum,
}

impl Job {
    /// What the digest is remembered by; `None` for a part of a file.
    fn key(&self) -> Option<Key> {
        self.range.is_whole().then(|| (self.range.content.version(), self.algorithm))
    }

    /// The digest; `None` when it was told to stop.
    fn compute(&mut self, digests: &Digests, stop: &CancellationToken) -> store::Result<Option<Bytes>> {
        // Only what its version will stand for is remembered.
        let settled = self.range.is_whole() && self.range.content.settle();
        // The range moves on while it is read.
        let key = self.key().filter(|_| settled);
        let before = self.range.content.version();
        let changing = |path| Error::Changing { path };
        let digest = match (self.sum)(&mut self.range, stop) {
            Ok(Some(digest)) => digest,
            Ok(None) => return Ok(None),
            Err(Error::Shrunk { path }) => return Err(changing(path)),
            Err(error) => return Err(error),
        };
        if self.range.content.version_now()? != before {
            return Err(changing(self.range.path.to_string()));
        }
        if let Some(key) = key {
            digests.remember(key, digest.clone());
        }
        Ok(Some(digest))
    }
}

pub(super) async fn digest(
    service: &AgentService,
    request: Request<v1::DigestRequest>,
) -> Result<Response<v1::DigestResponse>, Status> {
    let asked = service.checked(request)?;
    let call = service.stream(asked.whose(), service.admit()?)?;
    let Checked { request, path, .. } = asked;
    let algorithm = request.algorithm();
    let sum = sum_of(algorithm)
        .ok_or_else(|| status(Reason::BadRequest, "the digest's algorithm is not set or not known"))?;
    let (offset, length) = (request.offset, request.length);
    let mut job = call
        .on_store(Work::Short, move |store, _| {
            Ok(Job { range: Range::open(store, path, offset, length)?, algorithm, sum })
        })
        .await?;
    let (size, modified_ns) = (job.range.content.size(), job.range.content.modified_ns());
    let answer = |digest, length| Response::new(v1::DigestResponse { digest, length, size, modified_ns });
    if let Some(known) = job.key().and_then(|key| service.digests.find(&key)) {
        return Ok(answer(known, size));
    }
    let stopping = || status(Reason::Draining, "the agent is stopping");
    let turn = tokio::select! {
        turn = call.digest_turn(&service.digests.turns) => turn,
        () = call.stop().cancelled() => return Err(stopping()),
    };
    let digests = Arc::clone(&service.digests);
    let computed = call.run_now(turn, move |stop| {
        let digest = job.compute(&digests, stop)?;
        Ok(digest.map(|digest| (digest, job.range.at - offset)))
    });
    computed.await?.map(|(digest, length)| answer(digest, length)).ok_or_else(stopping)
}

fn hash<D: sha2::Digest>(range: &mut Range, stop: &CancellationToken) -> store::Result<Option<Bytes>> {
    let mut digest = D::new();
    let read = each_chunk(range, stop, |chunk| digest.update(chunk))?;
    Ok(read.then(|| Bytes::copy_from_slice(&digest.finalize())))
}

fn crc32(range: &mut Range, stop: &CancellationToken) -> store::Result<Option<Bytes>> {
    let mut sum = crc32fast::Hasher::new();
    let read = each_chunk(range, stop, |chunk| sum.update(chunk))?;
    Ok(read.then(|| Bytes::copy_from_slice(&sum.finalize().to_be_bytes())))
}

/// Reads the rest of a range; false when it was told to stop before its end.
fn each_chunk(
    range: &mut Range,
    stop: &CancellationToken,
    mut take: impl FnMut(&[u8]),
) -> store::Result<bool> {
    let mut buffer = vec![0; range.rest_bytes().min(CHUNK_BYTES_MAX)];
    while !range.is_done() {
        if stop.is_cancelled() {
            return Ok(false);
        }
        let count = range.fill(&mut buffer)?;
        take(&buffer[..count]);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::store::{Content, StorePath};

    const ALGORITHMS: [DigestAlgorithm; 5] = [
        DigestAlgorithm::Sha256,
        DigestAlgorithm::Sha512,
        DigestAlgorithm::Sha1,
        DigestAlgorithm::Md5,
        DigestAlgorithm::Crc32,
    ];

    /// A file whose version is told as the test wants.
    struct Told {
        bytes: Vec<u8>,
        before: Version,
        after: Version,
        size: usize,
        settles: bool,
        reads: Arc<AtomicUsize>,
    }

    impl Content for Told {
        fn size(&self) -> u64 {
            self.size as u64
        }
        fn modified_ns(&self) -> i64 {
            0
        }
        fn version(&self) -> Version {
            self.before
        }
        fn version_now(&self) -> store::Result<Version> {
            Ok(self.after)
        }
        fn settle(&mut self) -> bool {
            self.settles
        }
        fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> store::Result<usize> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let rest = &self.bytes[self.bytes.len().min(offset as usize)..];
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    /// The version of a file, by a number for its content and one for the rest.
    fn version(content: u64, rest: u64) -> Version {
        let mut bytes = [0; Version::CONTENT_BYTES];
        bytes[..8].copy_from_slice(&content.to_le_bytes());
        Version::new(bytes, rest.to_le_bytes())
    }

    fn told(bytes: &[u8]) -> Told {
        let (before, size) = (version(0, 0), bytes.len());
        Told { bytes: bytes.to_vec(), before, after: before, size, settles: true, reads: Arc::default() }
    }

    fn job(content: Told, algorithm: DigestAlgorithm) -> Job {
        let (path, end) = (StorePath::new(b"domains/a/f").unwrap(), content.size());
        let range = Range { content: Box::new(content), path, at: 0, end };
        Job { range, algorithm, sum: sum_of(algorithm).unwrap() }
    }

    fn is_known(digests: &Digests, job: &Job) -> bool {
        digests.find(&(job.range.content.version(), job.algorithm)).is_some()
    }

    #[test]
    fn every_algorithm_gives_its_known_value() {
        let expected = [
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            "a9993e364706816aba3e25717850c26c9cd0d89d",
            "900150983cd24fb0d6963f7d28e17f72",
            "352441c2",
        ];
        for (algorithm, expected) in ALGORITHMS.into_iter().zip(expected) {
            let digests = Digests::new();
            let digest = job(told(b"abc"), algorithm).compute(&digests, &CancellationToken::new());
            let shown: String = digest.unwrap().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(shown, expected, "{algorithm:?}");
        }
        assert!(sum_of(DigestAlgorithm::Unspecified).is_none());
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_told_as_busy_and_not_remembered() {
        let bytes = vec![b'x'; CHUNK_BYTES_MAX + 1];
        let stop = CancellationToken::new();
        for after in [version(1, 0), version(0, 1), version(1, 1)] {
            let digests = Digests::new();
            let mut job = job(Told { after, ..told(&bytes) }, DigestAlgorithm::Crc32);
            assert!(matches!(job.compute(&digests, &stop), Err(Error::Changing { .. })), "{after:?}");
            assert!(!is_known(&digests, &job));
        }
        let shrunk = Told { size: bytes.len() + 1, ..told(&bytes) };
        let shrunk = job(shrunk, DigestAlgorithm::Md5).compute(&Digests::new(), &stop);
        assert!(matches!(shrunk, Err(Error::Changing { .. })));
    }

    #[test]
    fn only_whole_files_at_rest_are_remembered() {
        let stop = CancellationToken::new();
        for settles in [true, false] {
            let digests = Digests::new();
            let mut job = job(Told { settles, ..told(b"abc") }, DigestAlgorithm::Sha1);
            job.compute(&digests, &stop).unwrap().unwrap();
            assert_eq!(is_known(&digests, &job), settles);
        }
        for (at, end) in [(1, 3), (0, 2)] {
            let digests = Digests::new();
            let mut job = job(told(b"abc"), DigestAlgorithm::Sha1);
            (job.range.at, job.range.end) = (at, end);
            job.compute(&digests, &stop).unwrap().unwrap();
            assert!(!is_known(&digests, &job));
        }
    }

    #[test]
    fn a_digest_that_nobody_waits_for_reads_no_further() {
        let content = told(b"abc");
        let reads = Arc::clone(&content.reads);
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(job(content, DigestAlgorithm::Sha256).compute(&Digests::new(), &stop).unwrap(), None);
        assert_eq!(reads.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_known_has_a_limit_and_what_is_asked_for_stays() {
        let mut known = Known::default();
        let key = |number| (version(number, 0), DigestAlgorithm::Md5);
        for number in 0..3 * KNOWN_MAX as u64 {
            known.insert(key(number), Bytes::new());
            assert!(known.young.len() + known.old.len() <= KNOWN_MAX);
            assert!(known.find(&key(0)).is_some());
        }
        assert!(known.find(&key(1)).is_none());
    }
}
