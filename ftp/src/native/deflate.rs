//! MODE Z: content as a zlib stream (draft-preston-ftpext-deflate). Its end is marked, so a cut is always seen.
//!
//! Packing takes time, so it is done where it may block. What a client is to have whole, lines of a listing and the
//! end of the stream, is flushed: lftp 4.9.2 drops content that it can unpack only together with that end.

use std::io;

use bytes::{Buf as _, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use portolan_proto::CHUNK_BYTES_MAX;

/// Packs what is sent.
#[derive(Debug)]
pub(super) struct Deflate {
    /// Away while a piece is being packed.
    compress: Option<Compress>,
}

impl Deflate {
    pub(super) fn new(level: u32) -> Self {
        Self { compress: Some(Compress::new(Compression::new(level), true)) }
    }

    pub(super) async fn pack(&mut self, content: Bytes) -> Vec<u8> {
        self.run(content, &[FlushCompress::None]).await
    }

    /// Packs content that the client can then unpack to its last byte.
    pub(super) async fn pack_whole(&mut self, content: Bytes) -> Vec<u8> {
        self.run(content, &[FlushCompress::Sync]).await
    }

    pub(super) async fn finish(&mut self) -> Vec<u8> {
        self.run(Bytes::new(), &[FlushCompress::Sync, FlushCompress::Finish]).await
    }

    /// Packs with the first kind of flush; the others follow, without content.
    async fn run(&mut self, mut content: Bytes, flushes: &'static [FlushCompress]) -> Vec<u8> {
        let mut compress = self.compress.take().expect("a piece is packed after the one before");
        let packing = tokio::task::spawn_blocking(move || {
            let mut packed = Vec::new();
            for flush in flushes {
                packed.extend(pack(&mut compress, &std::mem::take(&mut content), *flush));
            }
            (compress, packed)
        });
        let (compress, packed) = packing.await.expect("packing does not panic");
        self.compress = Some(compress);
        packed
    }
}

fn pack(compress: &mut Compress, mut content: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut packed = Vec::with_capacity(content.len() / 2 + 1024);
    loop {
        let before = compress.total_in();
        let status = compress
            .compress_vec(content, &mut packed, flush)
            .expect("a compressor that is fed in order does not fail");
        let eaten = usize::try_from(compress.total_in() - before).expect("no more than the content");
        content = &content[eaten..];
        let ended = matches!(status, Status::StreamEnd);
        let eaten_up = content.is_empty() && packed.len() < packed.capacity();
        if ended || (eaten_up && !matches!(flush, FlushCompress::Finish)) {
            return packed;
        }
        packed.reserve(packed.capacity().max(1024));
    }
}

/// Unpacks what is received, a chunk at a time, however much a few bytes blow up to.
#[derive(Debug)]
pub(super) struct Inflate {
    /// Away while a piece is being unpacked.
    decompress: Option<Decompress>,
    packed: Bytes,
    /// There may be more content in what was fed.
    hungry: bool,
    ended: bool,
}

impl Default for Inflate {
    fn default() -> Self {
        Self { decompress: Some(Decompress::new(true)), packed: Bytes::new(), hungry: true, ended: false }
    }
}

impl Inflate {
    pub(super) fn feed(&mut self, packed: Bytes) {
        self.packed = packed;
        self.hungry = false;
    }

    /// The next content; `None` when more must be fed first.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.hungry {
            return Ok(None);
        }
        if self.ended {
            return if self.packed.is_empty() {
                self.hungry = true;
                Ok(None)
            } else {
                Err(io::Error::new(io::ErrorKind::InvalidData, "bytes follow the end of the zlib stream"))
            };
        }
        let mut decompress = self.decompress.take().expect("a piece is unpacked after the one before");
        let packed = self.packed.clone();
        let unpacking = tokio::task::spawn_blocking(move || {
            let before = decompress.total_in();
            let mut content = Vec::with_capacity(CHUNK_BYTES_MAX);
            let status = decompress.decompress_vec(&packed, &mut content, FlushDecompress::None);
            let eaten = usize::try_from(decompress.total_in() - before).expect("no more than was fed");
            (decompress, status, content, eaten)
        });
        let (decompress, status, content, eaten) = unpacking.await.expect("unpacking does not panic");
        self.decompress = Some(decompress);
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        self.ended = matches!(status.map_err(invalid)?, Status::StreamEnd);
        self.packed.advance(eaten);
        if content.is_empty() {
            // Nothing came out: either the end, or more must go in.
            self.hungry = self.packed.is_empty() || !self.ended;
            return if self.ended && !self.packed.is_empty() {
                Box::pin(self.next()).await
            } else {
                Ok(None)
            };
        }
        Ok(Some(content.into()))
    }

    /// The end of the connection: in order only after the end of the stream.
    pub(super) fn finish(&mut self) -> io::Result<Bytes> {
        if self.ended { Ok(Bytes::new()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn packed(content: &[u8]) -> Vec<u8> {
        let mut deflate = Deflate::new(6);
        let mut packed = Vec::new();
        for piece in content.chunks(100_000) {
            packed.extend(deflate.pack(Bytes::copy_from_slice(piece)).await);
        }
        packed.extend(deflate.finish().await);
        packed
    }

    async fn unpacked(packed: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut inflate = Inflate::default();
        let mut content = Vec::new();
        for piece in packed.chunks(piece) {
            inflate.feed(Bytes::copy_from_slice(piece));
            while let Some(next) = inflate.next().await? {
                assert!(next.len() <= CHUNK_BYTES_MAX);
                content.extend(next);
            }
        }
        inflate.finish()?;
        Ok(content)
    }

    #[tokio::test]
    async fn what_is_packed_comes_back() {
        let mut noise = 1_u32;
        let mixed: Vec<u8> = (0..1_000_000)
            .map(|at| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at % 3 == 0 { noise.to_be_bytes()[0] } else { b'x' }
            })
            .collect();
        for content in [&b""[..], b"a", &mixed, &vec![0; 5_000_000]] {
            let packed = packed(content).await;
            for piece in [1_000, 300_000, packed.len().max(1)] {
                assert!(unpacked(&packed, piece).await.unwrap() == content, "{piece}");
            }
        }
    }

    #[tokio::test]
    async fn lines_and_all_before_the_end_can_be_unpacked_at_once() {
        let mut deflate = Deflate::new(6);
        let mut inflate = Inflate::default();
        let mut taken = async |packed: Vec<u8>| {
            inflate.feed(packed.into());
            let mut content = Vec::new();
            while let Some(next) = inflate.next().await.unwrap() {
                content.extend(next);
            }
            content
        };
        for lines in [&b"a\r\n"[..], &vec![b'b'; 100_000], b""] {
            assert!(taken(deflate.pack_whole(Bytes::copy_from_slice(lines)).await).await == lines);
        }
        let content = Bytes::from_static(b"the last of it");
        let last = [deflate.pack(content.clone()).await, deflate.finish().await].concat();
        // The flush ends with an empty stored block; behind it stand the last block and the checksum.
        let marker = last.windows(4).rposition(|bytes| bytes == [0, 0, 0xff, 0xff]).unwrap();
        assert!(taken(last[..marker + 4].to_vec()).await == content);
        assert!(taken(last[marker + 4..].to_vec()).await.is_empty() && inflate.finish().is_ok());
    }

    #[tokio::test]
    async fn a_cut_or_damaged_stream_is_seen() {
        let whole = packed(&vec![7; 300_000]).await;
        let cut = unpacked(&whole[..whole.len() - 1], 1_000).await;
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let longer = [&whole[..], b"x"].concat();
        assert_eq!(unpacked(&longer, 10_000_000).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(unpacked(b"not zlib", 8).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
