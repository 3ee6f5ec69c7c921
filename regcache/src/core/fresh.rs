//! [`Fresh`]: populates memory whose registration would invalidate itself.
//!
//! To pin a page, the kernel may first have to replace it. A private page that is shared with a
//! forked child is copied. The same holds for the zero page, and for a file's page in a private
//! mapping. A private page that was never touched is mapped as the zero page first, if the
//! registration only reads (Linux 6.12). Monitors report each of these replacements. So the watch
//! of the range is invalidated by the registration itself. The cache cannot tell such a report from
//! that of another thread's change, and registers again. The second registration finds all pages in
//! place.
//!
//! The pages can be replaced before the range is watched, by `MADV_POPULATE_WRITE`. That call is
//! not free for pages that need no replacement. So it is made *on evidence*:
//!
//! 1. After a registration was made again, the following [`VIGILANCE`] misses examine their pages
//!    first. `/proc/self/pagemap` shows whether a page is present, and whether only this mapping
//!    maps it.
//! 2. Only pages that the registration would have to replace are populated. If there are any, the
//!    count starts again.
//!
//! Populating changes nothing that the registration would not change. It writes to no shared
//! mapping, and to no mapping that the process may not write to. Memory that a registration for
//! writing has to bring in is left to the registration, which does so without a report.
//!
//! This file has no part in the argument of `design.rs`. The range is watched afterwards, and the
//! watch reports any change since.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::range::VaRange;
use crate::sys::cancel::Uncancelled;
use crate::sys::descriptor::Private;
use crate::sys::memory::{self, Pages};

/// The number of misses that examine their pages after a registration was made again.
const VIGILANCE: u32 = 256;

/// The bits of an entry of `/proc/self/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file or to shared memory.
const OF_FILE: u64 = 1 << 61;
/// Only this mapping maps the page.
const EXCLUSIVE: u64 = 1 << 56;

/// The number of entries that are read in one call.
const BATCH: usize = 512;

/// The evidence that registrations invalidate themselves; see the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// The number of misses that are still to examine their pages.
    vigilance: AtomicU32,
    /// `None` if the files cannot be opened.
    files: OnceLock<Option<Files>>,
}

#[derive(Debug)]
struct Files {
    pagemap: Private<File>,
    maps: Private<File>,
}

impl Fresh {
    /// Notes that a registration was made again.
    pub(crate) fn was_retried(&self) {
        self.vigilance.store(VIGILANCE, Ordering::Relaxed);
    }

    /// Populates those of the pages of `range` that a registration would have to replace, if there
    /// is evidence for that. `writes` is true if the device may write to the memory.
    #[inline]
    pub(crate) fn populate(&self, range: VaRange, page_size: usize, writes: bool) {
        let vigilance = self.vigilance.load(Ordering::Relaxed);
        if vigilance > 0
            && let Some(pages) = range.aligned(page_size)
        {
            self.examine((pages.start(), pages.end()), page_size, writes, vigilance);
        }
    }

    #[cold]
    fn examine(&self, pages: Pages, page_size: usize, writes: bool, vigilance: u32) {
        let _uncancelled = Uncancelled::begin();
        let files = self.files.get_or_init(Files::open);
        let populated = files
            .as_ref()
            .is_some_and(|files| files.populate(pages, page_size, writes));
        // Other threads may do the same at once. An update that is lost does no harm.
        let next = if populated { VIGILANCE } else { vigilance - 1 };
        self.vigilance.store(next, Ordering::Relaxed);
    }
}

impl Files {
    fn open() -> Option<Self> {
        Some(Self {
            pagemap: Private::new(File::open("/proc/self/pagemap").ok()?).ok()?,
            maps: Private::new(File::open("/proc/self/maps").ok()?).ok()?,
        })
    }

    /// Populates the pages that need it. Returns true if there were any, and no error occurred.
    fn populate(&self, (start, end): Pages, page_size: usize, writes: bool) -> bool {
        let (Ok(pagemap), Ok(maps)) = (self.pagemap.get(), self.maps.get()) else {
            return false;
        };
        let mut search = Search {
            maps,
            writes,
            mapping: (0, false),
        };
        let mut buffer = [0; BATCH * size_of::<u64>()];
        // The run of pages to populate that ends before the current page.
        let mut run: Pages = (start, start);
        let mut populated = false;
        let mut at = start;
        while at < end {
            let entries = ((end - at) / page_size).min(BATCH);
            let bytes = &mut buffer[..entries * size_of::<u64>()];
            let offset = (at / page_size * size_of::<u64>()) as u64;
            if pagemap.read_exact_at(bytes, offset).is_err() {
                break;
            }
            for entry in bytes.chunks_exact(size_of::<u64>()) {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                if search.is_replaced(at, entry) {
                    if run.1 != at {
                        populated |= run.0 < run.1 && memory::populate(run);
                        run.0 = at;
                    }
                    run.1 = at + page_size;
                }
                at += page_size;
            }
        }
        populated | (run.0 < run.1 && memory::populate(run))
    }
}

/// A search for pages that a registration would have to replace.
struct Search<'f> {
    maps: &'f File,
    writes: bool,
    /// The end of the mapping that was queried last, and true if that mapping is private and may be
    /// written.
    mapping: (usize, bool),
}

impl Search<'_> {
    /// Returns true if a registration would have to replace the page.
    fn is_replaced(&mut self, address: usize, entry: u64) -> bool {
        if entry & PRESENT == 0 {
            return !self.writes && entry & SWAPPED == 0 && self.is_private(address);
        }
        if entry & OF_FILE != 0 {
            return self.is_private(address);
        }
        entry & EXCLUSIVE == 0
    }

    /// Returns true if the mapping at the address is private and may be written.
    fn is_private(&mut self, address: usize) -> bool {
        if address >= self.mapping.0 {
            self.mapping = match memory::mapping_at(self.maps, address) {
                Ok(mapping) => {
                    let flags = mapping.vma_flags & (memory::SHARED | memory::WRITABLE);
                    (mapping.vma_end as usize, flags == memory::WRITABLE)
                }
                // A range with a hole cannot be registered. So its other pages need no query.
                Err(Errno::ENOTTY) => by_text(address).unwrap_or((usize::MAX, false)),
                Err(_) => (usize::MAX, false),
            };
        }
        self.mapping.1
    }
}

/// Returns the end of the mapping at an address, and true if the mapping is private and may be
/// written. Reads the text of `/proc/self/maps`, for Linux before 6.11.
fn by_text(address: usize) -> Option<(usize, bool)> {
    let text = fs::read_to_string("/proc/self/maps").ok()?;
    text.lines().find_map(|line| {
        // For example: `7f00-7f01 rw-p 00000000 00:00 0 [name]`.
        let (bounds, rest) = line.split_once(' ')?;
        let (start, end) = bounds.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let is_private = matches!(rest.as_bytes(), [_, b'w', _, b'p', ..]);
        (start..end).contains(&address).then_some((end, is_private))
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use std::io::Write;
    use std::ptr;

    use memmap2::{Advice, MmapMut, MmapOptions};

    use super::*;

    const PAGE: usize = 4096;
    const PAGES: usize = 8;

    /// Returns the pagemap's entries of the memory.
    fn entries(memory: &MmapMut) -> Vec<u64> {
        let mut bytes = vec![0; memory.len() / PAGE * 8];
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let offset = (memory.as_ptr().addr() / PAGE * 8) as u64;
        pagemap.read_exact_at(&mut bytes, offset).unwrap();
        let entries = bytes.chunks_exact(8);
        entries
            .map(|it| u64::from_ne_bytes(it.try_into().unwrap()))
            .collect()
    }

    /// Hides memory from the children of other tests. Otherwise its pages would be shared.
    fn hidden(memory: MmapMut) -> MmapMut {
        memory.advise(Advice::DontFork).unwrap();
        memory
    }

    fn anonymous() -> MmapMut {
        let memory = MmapMut::map_anon(PAGES * PAGE).unwrap();
        memory.advise(Advice::NoHugePage).unwrap();
        hidden(memory)
    }

    fn read_all(memory: &MmapMut) {
        let bytes = (0..memory.len()).step_by(PAGE).map(|i| memory[i]);
        std::hint::black_box(bytes.map(u32::from).sum::<u32>());
    }

    /// Returns a file that has no name any more.
    fn file(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("regcache-{name}-{}", std::process::id()));
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        fs::remove_file(path).unwrap();
        file.write_all(&[5; PAGES * PAGE]).unwrap();
        file
    }

    /// Returns true if a miss for this access populates any of the memory.
    fn populates(memory: &MmapMut, writes: bool) -> bool {
        let start = memory.as_ptr().addr();
        let files = Files::open().unwrap();
        files.populate((start, start + memory.len()), PAGE, writes)
    }

    #[test]
    fn pages_that_a_registration_would_replace_are_replaced_before() {
        let is_own = |entry: &u64| entry & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE;
        for writes in [true, false] {
            let zeros = anonymous();
            read_all(&zeros);
            assert!(populates(&zeros, writes), "the zero page");
            assert!(entries(&zeros).iter().all(is_own));
            assert!(!populates(&zeros, writes), "once is enough");

            let mut one = anonymous();
            one.fill(1);
            let untouched = anonymous();
            assert!(!populates(&one, writes), "written memory is in place");
            assert_eq!(populates(&untouched, writes), !writes, "never touched");
            assert_eq!(entries(&untouched).iter().all(is_own), !writes);

            let file = file("fresh");
            // SAFETY: no other process has this file.
            let private = hidden(unsafe { MmapOptions::new().map_copy(&file) }.unwrap());
            read_all(&private);
            assert!(populates(&private, writes), "a file's pages");
            assert!(!populates(&private, writes));
        }
    }

    #[test]
    fn pages_that_a_child_shares_are_copied_before() {
        let mut memory = anonymous();
        memory.advise(Advice::DoFork).unwrap();
        memory.fill(7);
        // SAFETY: the child calls nothing but async-signal-safe functions.
        let child = match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: the call only suspends the child.
                unsafe { libc::pause() };
            },
            child => child,
        };
        let first = populates(&memory, false);
        let again = populates(&memory, false);
        // SAFETY: these calls only end and reap the child made above.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        assert_eq!((first, again), (true, false));
        assert!(memory.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn shared_memory_and_holes_are_left_alone() {
        let file = file("shared");
        // SAFETY: no other process has this file.
        let shared = unsafe { MmapOptions::new().map_mut(&file) }.unwrap();
        for writes in [true, false] {
            assert!(!populates(&shared, writes));
            assert!(
                entries(&shared).iter().all(|it| it & PRESENT == 0),
                "touched"
            );
        }
        read_all(&shared);
        assert!(!populates(&shared, false));
        let files = Files::open().unwrap();
        assert!(!files.populate((PAGE, 3 * PAGE), PAGE, false));
        assert!(!files.populate(
            (usize::MAX - 2 * PAGE + 1, usize::MAX - PAGE + 1),
            PAGE,
            false
        ));
    }

    #[test]
    fn the_text_says_what_the_query_says() {
        let file = file("text");
        // SAFETY: no other process has this file.
        let shared = unsafe { MmapOptions::new().map_mut(&file) }.unwrap();
        let own = anonymous();
        for (memory, expected) in [(&shared, false), (&own, true)] {
            let start = memory.as_ptr().addr();
            let (end, is_private) = by_text(start + PAGE).unwrap();
            assert!(end >= start + memory.len());
            assert_eq!(is_private, expected);
        }
        assert_eq!(by_text(PAGE), None);
    }

    #[test]
    fn nothing_is_examined_without_evidence() {
        let fresh = Fresh::default();
        let zeros = anonymous();
        read_all(&zeros);
        let start = zeros.as_ptr().addr();
        let miss = |i: usize| {
            let page = ptr::without_provenance(start + i * PAGE);
            fresh.populate(VaRange::new(page, PAGE).unwrap(), PAGE, true);
        };
        let own = || {
            entries(&zeros)
                .iter()
                .filter(|&it| it & EXCLUSIVE != 0)
                .count()
        };
        miss(0);
        assert_eq!(own(), 0);
        fresh.was_retried();
        miss(0);
        assert_eq!(own(), 1);
        for _ in 0..VIGILANCE {
            miss(0);
        }
        miss(1);
        assert_eq!(own(), 1, "the evidence is too old");
    }
}
