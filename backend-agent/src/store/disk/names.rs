//! Sets of names in byte order, in memory while they are few, in an unnamed file of the staging folder beyond.
//!
//! Who calls it: `store::tree::listing`, for folders of any size.
//! What it calls: `recover::staging` for the place of the file; memfd_create(2) where that place fails.
//! What it never does: hold more than its limits in memory, or leave a file behind.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Once};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use tokio_util::sync::CancellationToken;

use super::path::Root;
use super::recover;

/// Names and their index in memory at most; beyond, a sorted run of them goes to the file.
const GATHERED_BYTES_MAX: usize = 512 * 1024;
/// Bytes of names from which on the room for all is taken at once: buffers that grow by doubling leave more
/// memory behind than they use.
const ROOM_TAKEN_FROM_BYTES: usize = 32 * 1024;
/// Runs of one level that are merged into one of the next. So at most 31 runs of each level are open at once:
/// with three levels, 93 for 16 GiB of names.
const RUNS_MERGED: usize = 32;
/// Read at once of each run.
const RUN_BUFFER_BYTES: usize = 8 * 1024;
/// Written at once.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// What ends each name in a run: no name of a file system holds it, and it sorts before all that do.
const END: u8 = 0;

/// Names that are passed between two looks at whether anybody still waits for them.
const STEPS_UNSEEN_MAX: usize = 1_024;

/// Whether the work on a set is still wanted.
#[derive(Debug, Clone, Default)]
struct Wanted {
    stop: CancellationToken,
    steps: usize,
}

impl Wanted {
    /// Counts a step.
    fn step(&mut self) -> io::Result<()> {
        self.steps = (self.steps + 1) % STEPS_UNSEEN_MAX;
        if self.steps == 0 && self.stop.is_cancelled() {
            return Err(io::Error::other("nobody waits for these names any more"));
        }
        Ok(())
    }
}

/// A set of names that is complete. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names {
    held: Held,
    wanted: Wanted,
}

#[derive(Debug, Clone)]
enum Held {
    Memory(Arc<Few>),
    Spilled { file: Arc<File>, run: Range<u64> },
}

/// Names in memory.
#[derive(Debug, Default)]
struct Few {
    bytes: Vec<u8>,
    /// Where each name begins and ends.
    index: Vec<Range<u32>>,
}

impl Few {
    fn push(&mut self, name: &[u8]) {
        let place = |at: usize| u32::try_from(at).expect("GATHERED_BYTES_MAX and one name fit");
        let start = place(self.bytes.len());
        let needed = self.bytes.len() + name.len();
        if needed > self.bytes.capacity() && needed > ROOM_TAKEN_FROM_BYTES {
            self.bytes.reserve_exact(GATHERED_BYTES_MAX);
        }
        self.bytes.extend_from_slice(name);
        self.index.push(start..place(self.bytes.len()));
    }

    fn name(&self, place: &Range<u32>) -> &[u8] {
        &self.bytes[place.start as usize..place.end as usize]
    }

    fn held_bytes(&self) -> usize {
        self.bytes.len() + self.index.len() * size_of::<Range<u32>>()
    }

    /// Puts the names into byte order, each once.
    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |place: &Range<u32>| &bytes[place.start as usize..place.end as usize];
        self.index.sort_unstable_by(|one, other| name(one).cmp(name(other)));
        self.index.dedup_by(|one, other| name(one) == name(other));
    }
}

/// Names being gathered, in any order and any number of times each.
#[derive(Debug)]
pub struct Gathering {
    root: Arc<Root>,
    few: Few,
    spill: Option<Spill>,
    wanted: Wanted,
}

impl Gathering {
    /// `root` is the store whose staging folder takes what does not fit into memory.
    pub fn new(root: &Arc<Root>) -> Self {
        Self { root: Arc::clone(root), few: Few::default(), spill: None, wanted: Wanted::default() }
    }

    /// Has it, and what becomes of it, fail soon after `stop`.
    pub fn until(mut self, stop: &CancellationToken) -> Self {
        self.wanted.stop = stop.clone();
        self
    }

    pub fn is_empty(&self) -> bool {
        self.few.index.is_empty() && self.spill.is_none()
    }

    /// Adds a name of a file system: any bytes but NUL and '/'.
    ///
    /// # Errors
    /// Those of the file, when the name does not fit into memory.
    pub fn push(&mut self, name: &[u8]) -> io::Result<()> {
        debug_assert!(!name.contains(&END), "readdir(3) ends names with it");
        self.wanted.step()?;
        self.few.push(name);
        if self.few.held_bytes() > GATHERED_BYTES_MAX { self.spill() } else { Ok(()) }
    }

    /// Adds all that a walk has left.
    ///
    /// # Errors
    /// Those of the files.
    pub fn push_all(&mut self, mut walk: Walk) -> io::Result<()> {
        while walk.advance()? {
            self.push(walk.name())?;
        }
        Ok(())
    }

    /// The set of the names.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> io::Result<Names> {
        if self.spill.is_some() {
            self.spill()?;
        }
        let Some(mut spill) = self.spill else {
            self.few.sort();
            return Ok(Names { held: Held::Memory(Arc::new(self.few)), wanted: self.wanted });
        };
        drop(self.few);
        let run = spill.merge_from(0)?;
        Ok(Names { held: Held::Spilled { file: spill.file, run }, wanted: self.wanted })
    }

    fn spill(&mut self) -> io::Result<()> {
        let spill = match self.spill.take() {
            Some(spill) => spill,
            None => Spill::open(&self.root, self.wanted.clone())?,
        };
        let spill = self.spill.insert(spill);
        self.few.sort();
        spill.write_run(&self.few)?;
        self.few.bytes.clear();
        self.few.index.clear();
        Ok(())
    }
}

/// The file that runs are written to, one after the other.
#[derive(Debug)]
struct Spill {
    file: Arc<File>,
    /// The file is one of memory.
    in_memory: bool,
    end: u64,
    /// What is not written yet; empty between two runs.
    buffer: Vec<u8>,
    /// Levels never rise from one to the next.
    runs: Vec<Run>,
    wanted: Wanted,
}

#[derive(Debug)]
struct Run {
    bytes: Range<u64>,
    /// How often its names were merged.
    level: u32,
}

impl Spill {
    fn open(root: &Root, wanted: Wanted) -> io::Result<Self> {
        let (file, in_memory) = match unnamed(root) {
            Ok(file) => (file, false),
            Err(error) => {
                warn_of_memory(&error);
                (memory_file()?, true)
            }
        };
        Ok(Self { file: Arc::new(file), in_memory, end: 0, buffer: Vec::new(), runs: Vec::new(), wanted })
    }

    fn write_run(&mut self, few: &Few) -> io::Result<()> {
        let mut out = Out::new(self);
        for place in &few.index {
            out.push(few.name(place))?;
        }
        let bytes = out.finish()?;
        self.runs.push(Run { bytes, level: 0 });
        while let Some(level) = self.runs.last().map(|run| run.level)
            && let Some(first) = self.runs.len().checked_sub(RUNS_MERGED)
            && self.runs[first].level == level
        {
            let bytes = self.merge_from(first)?;
            self.runs.push(Run { bytes, level: level + 1 });
        }
        Ok(())
    }

    /// Merges the runs from number `first` on, takes them off the list and returns what became of them.
    fn merge_from(&mut self, first: usize) -> io::Result<Range<u64>> {
        let runs: Vec<Run> = self.runs.drain(first..).collect();
        if let [only] = &runs[..] {
            return Ok(only.bytes.clone());
        }
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for run in &runs {
            let mut head = RunCursor::new(&self.file, &run.bytes);
            if head.advance()? {
                heads.push(head);
            }
        }
        let mut last = Vec::new();
        let mut wanted = self.wanted.clone();
        let mut out = Out::new(self);
        while let Some(mut head) = heads.peek_mut() {
            wanted.step()?;
            // No name is empty, so the first differs too.
            if head.name != last {
                out.push(&head.name)?;
                last.clone_from(&head.name);
            }
            if !head.advance()? {
                PeekMut::pop(head);
            }
        }
        let merged = out.finish()?;
        // Their room is given back where the file system can; the file goes away soon in any case.
        for Run { bytes, .. } in runs {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, flags, bytes.start, bytes.end - bytes.start).ok();
        }
        Ok(merged)
    }

    /// Appends what was buffered to the file. When its disk is full, or fails in another way, what is there moves to memory.
    fn flush(&mut self) -> io::Result<()> {
        match self.file.write_all_at(&self.buffer, self.end) {
            Err(error) if !self.in_memory => {
                warn_of_memory(&error);
                let file = memory_file()?;
                for run in &self.runs {
                    copy(&self.file, &file, run.bytes.clone())?;
                }
                // What belongs to the run being written, and runs being merged, lie behind those on the list.
                let listed = self.runs.iter().map(|run| run.bytes.end).max().unwrap_or(0);
                copy(&self.file, &file, listed..self.end)?;
                (self.file, self.in_memory) = (Arc::new(file), true);
                self.file.write_all_at(&self.buffer, self.end)?;
            }
            done => done?,
        }
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// A run on its way to the file.
struct Out<'a> {
    spill: &'a mut Spill,
    start: u64,
}

impl<'a> Out<'a> {
    fn new(spill: &'a mut Spill) -> Self {
        let start = spill.end;
        spill.buffer.reserve_exact(WRITE_BUFFER_BYTES);
        Self { spill, start }
    }

    fn push(&mut self, name: &[u8]) -> io::Result<()> {
        if self.spill.buffer.len() + name.len() + 1 > WRITE_BUFFER_BYTES {
            self.spill.flush()?;
        }
        self.spill.buffer.extend_from_slice(name);
        self.spill.buffer.push(END);
        Ok(())
    }

    fn finish(self) -> io::Result<Range<u64>> {
        self.spill.flush()?;
        Ok(self.start..self.spill.end)
    }
}

/// A part of the file as something to read from.
#[derive(Debug)]
struct Part {
    file: Arc<File>,
    rest: Range<u64>,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(rest);
        let count = self.file.read_at(&mut buffer[..wanted], self.rest.start)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest.start += count as u64;
        Ok(count)
    }
}

/// Walks over a run. The one with the smallest name is the greatest, as a heap wants it.
#[derive(Debug)]
struct RunCursor {
    name: Vec<u8>,
    rest: BufReader<Part>,
}

impl RunCursor {
    fn new(file: &Arc<File>, bytes: &Range<u64>) -> Self {
        let part = Part { file: Arc::clone(file), rest: bytes.clone() };
        Self { name: Vec::new(), rest: BufReader::with_capacity(RUN_BUFFER_BYTES, part) }
    }

    /// Steps to the next name; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        self.name.clear();
        self.rest.read_until(END, &mut self.name)?;
        Ok(self.name.pop().is_some())
    }
}

impl Ord for RunCursor {
    fn cmp(&self, other: &Self) -> Ordering {
        other.name.cmp(&self.name)
    }
}

impl PartialOrd for RunCursor {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RunCursor {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for RunCursor {}

impl Names {
    pub fn empty() -> Self {
        Self { held: Held::Memory(Arc::default()), wanted: Wanted::default() }
    }

    /// The names in byte order, without those of `without`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn except(&self, without: &Names) -> io::Result<Walk> {
        let mut without = Cursor::new(without);
        let passed = !without.advance()?;
        Ok(Walk { names: Cursor::new(self), without, passed, wanted: self.wanted.clone() })
    }
}

/// Walks over the names of one set that are not in another.
#[derive(Debug)]
pub struct Walk {
    names: Cursor,
    /// Stands on its first name that is not smaller than that of `names`.
    without: Cursor,
    /// Nothing is left in `without`.
    passed: bool,
    wanted: Wanted,
}

impl Walk {
    /// Steps to the next name; false at the end, and from then on.
    ///
    /// # Errors
    /// Those of the file.
    pub fn advance(&mut self) -> io::Result<bool> {
        while self.names.advance()? {
            self.wanted.step()?;
            while !self.passed && self.without.name() < self.names.name() {
                self.wanted.step()?;
                self.passed = !self.without.advance()?;
            }
            if self.passed || self.without.name() != self.names.name() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The name that the last step led to; empty before the first and at the end.
    pub fn name(&self) -> &[u8] {
        self.names.name()
    }
}

/// Walks over a set.
#[derive(Debug)]
enum Cursor {
    Memory {
        few: Arc<Few>,
        /// Names that were stepped to.
        steps: usize,
    },
    Spilled(RunCursor),
}

impl Cursor {
    fn new(names: &Names) -> Self {
        match &names.held {
            Held::Memory(few) => Self::Memory { few: Arc::clone(few), steps: 0 },
            Held::Spilled { file, run } => Self::Spilled(RunCursor::new(file, run)),
        }
    }

    fn advance(&mut self) -> io::Result<bool> {
        match self {
            Self::Memory { few, steps } => {
                let count = few.index.len();
                *steps = (*steps + 1).min(count + 1);
                Ok(*steps <= count)
            }
            Self::Spilled(run) => run.advance(),
        }
    }

    fn name(&self) -> &[u8] {
        match self {
            Self::Memory { few, steps } => {
                let place = steps.checked_sub(1).and_then(|at| few.index.get(at));
                place.map_or(&[], |place| few.name(place))
            }
            Self::Spilled(run) => &run.name,
        }
    }
}

/// A file in the staging folder that has no name and goes away with its last descriptor.
fn unnamed(root: &Root) -> io::Result<File> {
    let staging = recover::staging(root).map_err(io::Error::other)?;
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(&staging, ".", flags, Mode::from_raw_mode(0o600))?))
}

fn memory_file() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("names", MemfdFlags::CLOEXEC)?))
}

/// Once in a process: a disk that is full stays so for many listings.
fn warn_of_memory(error: &io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(%error, "names of large folders are kept in memory: the staging folder cannot hold them");
    });
}

fn copy(from: &File, to: &File, bytes: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; WRITE_BUFFER_BYTES];
    let mut at = bytes.start;
    while at < bytes.end {
        let rest = usize::try_from(bytes.end - at).unwrap_or(usize::MAX).min(buffer.len());
        from.read_exact_at(&mut buffer[..rest], at)?;
        to.write_all_at(&buffer[..rest], at)?;
        at += rest as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A store with a staging folder.
    fn store() -> (tempfile::TempDir, Arc<Root>, File) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let (lock, _) = recover::recover(&root).unwrap();
        (folder, Arc::new(root), lock)
    }

    fn gather<'a>(root: &Arc<Root>, names: impl IntoIterator<Item = &'a [u8]>) -> Names {
        let mut gathering = Gathering::new(root);
        for name in names {
            gathering.push(name).unwrap();
        }
        gathering.finish().unwrap()
    }

    fn walked(mut walk: Walk) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        while walk.advance().unwrap() {
            names.push(walk.name().to_vec());
        }
        assert!(!walk.advance().unwrap(), "the end stays the end");
        names
    }

    fn all(names: &Names) -> Vec<Vec<u8>> {
        walked(names.except(&Names::empty()).unwrap())
    }

    fn is_spilled(names: &Names) -> bool {
        matches!(&names.held, Held::Spilled { .. })
    }

    /// Names in no order, each several times.
    fn many(count: u64, bytes: usize) -> Vec<Vec<u8>> {
        let name = |number: u64| {
            let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (count / 2);
            let mut name = format!("{scattered:x}").into_bytes();
            name.resize(bytes, b'n');
            name
        };
        (0..count).map(name).collect()
    }

    fn sorted(names: &[Vec<u8>]) -> Vec<Vec<u8>> {
        names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    #[test]
    fn nothing_gathered_is_an_empty_set() {
        let (_folder, root, _lock) = store();
        assert!(Gathering::new(&root).is_empty());
        let names = gather(&root, []);
        assert!(all(&names).is_empty());
        assert!(walked(Names::empty().except(&names).unwrap()).is_empty());
    }

    #[test]
    fn a_few_names_stay_in_memory_in_byte_order_and_once_each() {
        let (_folder, root, _lock) = store();
        let names = gather(&root, [&b"b"[..], b"a", b"ab", b"b", b"B"]);
        assert!(!is_spilled(&names));
        assert_eq!(all(&names), [&b"B"[..], b"a", b"ab", b"b"]);
    }

    #[test]
    fn many_names_are_spilled_and_come_back_in_byte_order_and_once_each() {
        let (folder, root, _lock) = store();
        // More runs than are merged at once, and a rest.
        let given = many(160_000, 250);
        let names = gather(&root, given.iter().map(Vec::as_slice));
        assert!(is_spilled(&names));
        assert!(all(&names) == sorted(&given));
        assert!(std::fs::read_dir(folder.path().join(".portolan/staging")).unwrap().next().is_none());
    }

    #[test]
    fn names_hold_any_byte_but_nul_and_slash() {
        let (_folder, root, _lock) = store();
        let any: Vec<Vec<u8>> = (1..=255_u8)
            .filter(|byte| *byte != b'/')
            .flat_map(|byte| [vec![byte], vec![byte; 255], vec![b'a', byte], vec![byte, 255, 1]])
            .collect();
        let filling = many(20_000, 100);
        let given = [any.clone(), filling].concat();
        assert!(all(&gather(&root, any.iter().map(Vec::as_slice))) == sorted(&any));
        let spilled = gather(&root, given.iter().map(Vec::as_slice));
        assert!(is_spilled(&spilled));
        assert!(all(&spilled) == sorted(&given));
    }

    #[test]
    fn what_is_in_another_set_is_left_out() {
        let (_folder, root, _lock) = store();
        let large = many(40_000, 60);
        let (one, other) = large.split_at(25_000);
        let few = &large[..100];
        for (names, without) in [(one, other), (other, one), (&large[..], few), (few, &large[10..])] {
            let expected: Vec<Vec<u8>> =
                sorted(names).into_iter().filter(|name| !without.contains(name)).take(500).collect();
            let set = |names: &[Vec<u8>]| gather(&root, names.iter().map(Vec::as_slice));
            let found = walked(set(names).except(&set(without)).unwrap());
            assert!(found.iter().take(500).eq(&expected));
        }
    }

    #[test]
    fn without_a_staging_folder_names_go_to_a_file_of_memory() {
        let folder = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let given = many(20_000, 100);
        let names = gather(&root, given.iter().map(Vec::as_slice));
        assert!(is_spilled(&names));
        assert!(all(&names) == sorted(&given));
    }

    #[test]
    fn a_disk_that_fills_up_hands_its_names_over_to_memory() {
        let (_folder, root, _lock) = store();
        let given = many(160_000, 250);
        for full_from in [1, 50_000, 140_000] {
            let mut gathering = Gathering::new(&root);
            for (number, name) in given.iter().enumerate() {
                if number == full_from {
                    let spill =
                        gathering.spill.get_or_insert_with(|| Spill::open(&root, Wanted::default()).unwrap());
                    assert!(!spill.in_memory);
                    spill.file = Arc::new(full(&spill.file, spill.end));
                }
                gathering.push(name).unwrap();
            }
            assert!(gathering.spill.as_ref().unwrap().in_memory);
            assert!(all(&gathering.finish().unwrap()) == sorted(&given));
        }
    }

    /// A copy of the file that takes nothing more.
    fn full(file: &File, end: u64) -> File {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let full = File::from(rustix::fs::memfd_create("full", flags).unwrap());
        copy(file, &full, 0..end).unwrap();
        rustix::fs::fcntl_add_seals(&full, rustix::fs::SealFlags::WRITE).unwrap();
        full
    }

    #[test]
    fn work_on_names_that_nobody_waits_for_ends_at_each_step() {
        let (_folder, root, _lock) = store();
        let stop = CancellationToken::new();
        let gathering = |count: usize| {
            let mut gathering = Gathering::new(&root).until(&stop);
            many(20_000, 100).iter().take(count).try_for_each(|name| gathering.push(name)).map(|()| gathering)
        };
        let (whole, unmerged) = (gathering(20_000).unwrap().finish().unwrap(), gathering(20_000).unwrap());
        assert!(is_spilled(&whole));
        let mut walk = whole.except(&whole).unwrap();
        stop.cancel();
        assert!(walk.advance().is_err(), "a walk that finds nothing for long");
        assert!(unmerged.finish().is_err(), "a merge");
        assert!(gathering(STEPS_UNSEEN_MAX).is_err(), "the gathering itself");
    }
}
