//! The files that are transferred: one large, many small as mail is. The same in every run.
//!
//! Who calls it: `main` makes them once, `servers` links them into each server's store.
//! What it calls: the file system.
//! What it never does: depend on the clock or on the machine's random numbers.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{Result, interrupt};

const SEED: u64 = 20_000;
/// Users whose folders the small files lie in, and each one's folders.
const USERS: u32 = 10;
const FOLDERS: [&str; 4] = ["INBOX", "Sent", "Archive", "Lists"];
/// The user's folder that holds the large file and takes the upload.
const HOME: &str = "domains/bench.example/users/user-0";

/// Sizes of mails: log-normal with this median and this 90th percentile.
const SIZE_MEDIAN: f64 = 8.0 * 1024.0;
const SIZE_P90: f64 = 43.0 * 1024.0;
/// Standard deviations from the median to the 90th percentile of a normal distribution.
const Z_P90: f64 = 1.281_551_6;
/// No mail is smaller than its header or larger than what servers accept.
const SIZE_MIN: f64 = 300.0;
const SIZE_MAX: f64 = 32.0 * 1024.0 * 1024.0;

/// Bytes made at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A file of the sample.
#[derive(Debug)]
pub(crate) struct SampleFile {
    /// Below the root of a store, components joined by '/'.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// CRC-32C of the content.
    pub(crate) checksum: u32,
}

/// All files, on disk in a folder of their own.
#[derive(Debug)]
pub(crate) struct Sample {
    folder: PathBuf,
    pub(crate) large: SampleFile,
    pub(crate) small: Vec<SampleFile>,
}

impl Sample {
    /// The domain that the files lie in.
    pub(crate) const DOMAIN: &'static str = "bench.example";
    /// Where uploads go, below the root of a store.
    pub(crate) const UPLOAD: &'static str = "domains/bench.example/users/user-0/upload.bin";

    pub(crate) fn make(folder: &Path, bytes: u64, files: u32) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let large = make_file(&mut random, folder, format!("{HOME}/large.bin"), bytes)?;
        let mut small = Vec::new();
        for index in 0..files {
            interrupt::check()?;
            let (user, mail_folder) = (index % USERS, FOLDERS[random.random_range(0..FOLDERS.len())]);
            let bytes = mail_bytes(&mut random);
            let name = format!("{}.M{index}P1.mail,S={bytes}:2,S", 1_600_000_000 + index);
            let path = format!("domains/{}/users/user-{user}/folders/{mail_folder}/cur/{name}", Self::DOMAIN);
            small.push(make_file(&mut random, folder, path, bytes)?);
        }
        Ok(Self { folder: folder.to_owned(), large, small })
    }

    /// The large file, to send it.
    pub(crate) fn open_large(&self) -> Result<File> {
        Ok(File::open(self.folder.join(&self.large.path))?)
    }

    /// Touches as much free memory as an upload will take. Without it, uploads to one server were seen to
    /// differ by a factor of four: a virtual machine may have to get free pages back from its host first.
    pub(crate) fn warm_memory(&self) -> Result<()> {
        let path = self.folder.join("warm.bin");
        let mut file = File::create(&path)?;
        let chunk = vec![0; CHUNK_BYTES];
        for _ in 0..self.large.bytes.div_ceil(CHUNK_BYTES as u64) {
            file.write_all(&chunk)?;
        }
        Ok(std::fs::remove_file(path)?)
    }

    /// Puts all files into a store by hard links, so that they take their memory once.
    pub(crate) fn link_into(&self, store: &Path) -> Result<()> {
        for file in self.small.iter().chain([&self.large]) {
            let target = store.join(&file.path);
            make_parent(&target)?;
            std::fs::hard_link(self.folder.join(&file.path), target)?;
        }
        // Servers that drop their privileges write here too.
        std::fs::set_permissions(store.join(HOME), Permissions::from_mode(0o777))?;
        Ok(())
    }
}

fn mail_bytes(random: &mut ChaCha8Rng) -> u64 {
    let sigma = (SIZE_P90 / SIZE_MEDIAN).ln() / Z_P90;
    // Box and Muller's transform; 1 - x keeps the logarithm away from 0.
    let (a, b): (f64, f64) = (random.random(), random.random());
    let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    (SIZE_MEDIAN * (sigma * normal).exp()).clamp(SIZE_MIN, SIZE_MAX) as u64
}

fn make_file(random: &mut ChaCha8Rng, folder: &Path, path: String, bytes: u64) -> Result<SampleFile> {
    let target = folder.join(&path);
    make_parent(&target)?;
    let mut file = BufWriter::new(File::create(&target)?);
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(bytes)?)];
    let (mut left, mut checksum) = (bytes, 0);
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        random.fill_bytes(&mut chunk[..step]);
        checksum = crc32c::crc32c_append(checksum, &chunk[..step]);
        file.write_all(&chunk[..step])?;
        left -= step as u64;
    }
    file.flush()?;
    Ok(SampleFile { path, bytes, checksum })
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().ok_or("a file of the sample lies in a folder")?;
    Ok(std::fs::create_dir_all(parent)?)
}

/// CRC-32C of a file on disk.
pub(crate) fn checksum_of(path: &Path) -> Result<u32> {
    use std::io::Read as _;
    let mut file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut checksum = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(checksum),
            count => checksum = crc32c::crc32c_append(checksum, &chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_mail() {
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let mut sizes: Vec<u64> = (0..20_000).map(|_| mail_bytes(&mut random)).collect();
        sizes.sort_unstable();
        assert!((7_800..8_600).contains(&sizes[10_000]), "median {}", sizes[10_000]);
        assert!((41_000..47_000).contains(&sizes[18_000]), "p90 {}", sizes[18_000]);
    }
}
