//! The monitor on userfaultfd, for machines without the driver: slower, and as strict.
//!
//! Watched mappings are registered with a userfaultfd in write-protect mode, and no page is ever
//! protected. So no fault of a page that is there ever comes, but the events do: unmapped, moved, about
//! to be removed. A thread (`reader.rs`) reads them. For kernels that can take pages away without an event
//! they are registered for missing pages as well (`open.rs`).
//!
//! Events alone are not sound. The kernel queues them after it has dropped the lock of the address
//! space: by the time one can be read, another thread may have been given the address by `mmap`, and
//! looked it up. And there are changes without an event. Hence the check, which the cache asks for at
//! the beginning of each lookup ([`is_intact`](Monitor::is_intact)).
//!
//! # The check
//!
//! 1. *Nothing is under way.* Before an unmapping thread drops the kernel's lock, the kernel has
//!    counted its change as under way, and it does so until the event has been read. While the count is
//!    not 0, it answers any attempt to protect pages with `EAGAIN`, so that an attempt that it must
//!    refuse (0 bytes) tells. The reader says that it reads before it does, and that it has entered
//!    what it read after it has. So if there is nothing under way, and *then* the reader is not
//!    reading, every change whose address could have been handed out by now has been entered and has
//!    raised the generation. Otherwise this waits, and if that takes too long gives up: the range is
//!    then treated as changed.
//! 2. *The mapping is the one that was watched.* Pages are armed when the first watch of them comes and
//!    never again until the last one has gone (`coverage.rs`); a mapping that was put there without an
//!    event, by `shmat(SHM_REMAP)`, is not armed. `ioctl(PAGEMAP_SCAN)` finds mappings that are not, and
//!    `msync` holes, which the scan skips. A mapping that is armed and was moved there has sent an event
//!    that names where it went.
//! 3. *No page is missing*, where the kernel can take pages away without an event; a registered page is
//!    present. And if it was touched since, whoever did was made to wait until the reader had entered
//!    that, and only then was given a page (`faults.rs`).
//! 4. *No removal is under way* of these pages (`dontneed.rs`).
//!
//! # What holds
//!
//! - **M1**: every change of mappings sends an event, but for `shmat(SHM_REMAP)`, which the check finds. Of
//!   changes of the pages of a mapping: those of files send none, so only private anonymous memory is
//!   watched (`mapping.rs`). Pages that a device has pinned are not swapped out, migrated, merged or
//!   moved. `MADV_GUARD_INSTALL` (Linux 6.13) sends none either: point 3.
//! - **M2**: arming takes the kernel's lock for writing. A change that has not come to look at the mapping
//!   by then will find it armed, and one that has is over, as the kernel has the lock until it is;
//!   except a removal, which drops it to wait for its event. From that event on until every thread
//!   has been seen elsewhere, the pages are neither watched nor intact, and then they are reported once
//!   more.
//! - **M3**: by point 1, for a lookup that has asked `is_intact`. The generation alone is *not* in time.
//! - **M4**: the log is of a fixed size, and what does not fit becomes a report of everything. Runs of pages
//!   are fewer than twice the watches; removals under suspicion are bounded by becoming one.
//! - **M5**: nobody else has the descriptor. Code that closes descriptors which it does not own ends the
//!   events, and the check as well, which then fails; unless the number has become another userfaultfd's.
//!
//! # What it costs
//!
//! Three system calls at each lookup, 0.5 to 1 us in all, and since Linux 6.13 another 3 ns for each page of 4 KiB;
//! some microseconds for a watch; and for each munmap of watched memory a switch to the reader and back. Watching splits mappings, of which a process
//! may have `vm.max_map_count` (65 530): beyond that nothing more is cached. Memory under an
//! application's own userfaultfd is not cached, nor is what another of these monitors watches: several
//! caches are to have one [`Shared`](super::Shared).
//!
//! A forked child has the descriptor and no armed memory; if it lives on after the monitor was dropped, the
//! kernel keeps what was armed so. All that was watched is disarmed before.

mod coverage;
mod dontneed;
mod event_log;
mod faults;
mod mapping;
mod open;
mod raw;
mod reader;

use std::collections::HashMap;
use std::hint;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};

use super::{Cookie, Monitor};
use crate::VaRange;
use crate::sys::fork::ForkMark;
use coverage::{Coverage, Pages};
use dontneed::{Removal, this_thread};
use mapping::Mappings;
use open::{Opened, Sight};
use reader::{Reader, Source};

pub use open::UserfaultfdError;

/// How long a lookup waits for changes under way, before it is answered with a registration that is made for it.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often it asks before it lets other threads run in between.
const SPINS: u32 = 16;

/// Removals under suspicion that are told apart.
const MAX_REMOVALS: usize = 64;

/// Watches private anonymous memory by userfaultfd. See the
/// [source](https://docs.rs/regcache) of this module for what it promises and how.
///
/// Anything else is not cached: files, shared memory, huge pages of hugetlbfs.
#[derive(Debug)]
pub struct Userfaultfd {
    source: Arc<Source>,
    reader: Reader,
    table: Mutex<Table>,
    mappings: Mappings,
    /// The log's count of removals up to which all are over.
    removals_over: AtomicU64,
    strict: bool,
    fork: ForkMark,
}

#[derive(Debug, Default)]
struct Table {
    watches: HashMap<u64, Watch>,
    coverage: Coverage,
    removals: Vec<Removal>,
    /// Hit and not reported. May have some that are not watched any more.
    hit: Vec<Cookie>,
}

#[derive(Debug)]
struct Watch {
    pages: Pages,
    hit: bool,
}

impl Userfaultfd {
    /// Opens a userfaultfd for the memory of this process, and starts the thread that reads it.
    ///
    /// # Errors
    ///
    /// [`UserfaultfdError`]; on a kernel before 6.7 [`UserfaultfdError::NoCheck`], on one since 6.13
    /// [`UserfaultfdError::GuardPages`] without the privilege that it takes there.
    pub fn open() -> Result<Self, UserfaultfdError> {
        Self::checked(Sight::Pages)
    }

    /// As [`open`](Self::open), but without a privilege on any kernel.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), but for `GuardPages`.
    ///
    /// # Safety
    ///
    /// Nobody puts guard pages, by `MADV_GUARD_INSTALL`, where memory was looked up, unless the cache's
    /// [`invalidate`](crate::Cache::invalidate) is called for it before.
    pub unsafe fn open_unprivileged() -> Result<Self, UserfaultfdError> {
        Self::checked(Sight::Mappings)
    }

    /// Without the check: what others do. A lookup in one thread may be answered with a stale registration
    /// after another thread has unmapped the memory, and always after changes that send no event.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), but any kernel since 5.11 will do.
    ///
    /// # Safety
    ///
    /// No thread looks up memory that another one unmaps, moves or discards, or has, unless something
    /// other than the address's being handed out again orders the two, by more than the time that the
    /// reading thread takes.
    pub unsafe fn open_racy() -> Result<Self, UserfaultfdError> {
        let mut monitor = Self::with(Sight::Events)?;
        monitor.strict = false;
        Ok(monitor)
    }

    fn checked(sight: Sight) -> Result<Self, UserfaultfdError> {
        let monitor = Self::with(sight)?;
        // Any page will do, to see whether the kernel knows the question.
        let here = (&raw const monitor).addr() & !(monitor.source.page - 1);
        match monitor
            .mappings
            .are_armed((here, here + monitor.source.page))
        {
            Ok(_) => Ok(monitor),
            Err(source) => Err(UserfaultfdError::NoCheck { source }),
        }
    }

    fn with(sight: Sight) -> Result<Self, UserfaultfdError> {
        let opened = Opened::with(sight)?;
        Self::around(opened, Reader::start).map_err(|source| UserfaultfdError::SetUp { source })
    }

    fn around(
        opened: Opened,
        start: impl FnOnce(&Arc<Source>) -> io::Result<Reader>,
    ) -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|it| usize::try_from(it).ok());
        let source = Arc::new(Source::new(
            opened,
            page.ok_or(io::ErrorKind::Unsupported)?,
        )?);
        Ok(Self {
            reader: start(&source)?,
            source,
            table: Mutex::default(),
            mappings: Mappings::open()?,
            removals_over: AtomicU64::new(0),
            strict: true,
            fork: ForkMark::new(1)?,
        })
    }

    /// Never taken by the reader, so that whoever has it may allocate and call the kernel.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self, range: VaRange) -> io::Result<Pages> {
        let pages = range
            .aligned(self.source.page)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok((pages.start(), pages.end()))
    }

    /// True when every change that was under way when this was called has been entered in the log.
    /// False if that takes too long, or the kernel does not say any more.
    fn settle(&self) -> bool {
        let mut until = None;
        for round in 0_u32.. {
            match self.is_under_way() {
                Some(false) if !self.source.log.is_reading() => return true,
                Some(_) => {}
                None => return false,
            }
            if round < SPINS {
                hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            if now > *until.get_or_insert(now + PATIENCE) {
                return false;
            }
            thread::yield_now();
        }
        false
    }

    /// Whether there is a change whose event has not been read. `None` if the kernel does not say.
    fn is_under_way(&self) -> Option<bool> {
        let mut nothing = raw::WriteProtect::default();
        // SAFETY: the structure may be read. Nothing is protected: the range is empty, which is refused.
        let refused = unsafe { raw::write_protect(self.source.uffd.as_raw_fd(), &raw mut nothing) };
        // What is loaded after this is loaded after the kernel's count.
        fence(Ordering::SeqCst);
        match refused {
            Err(Errno::EINVAL) => Some(false),
            Err(Errno::EAGAIN) => Some(true),
            _ => None,
        }
    }

    /// True if a removal of some of the pages may not be over.
    fn is_suspect(&self, pages: Pages) -> bool {
        if self.source.log.removals() == self.removals_over.load(Ordering::Acquire) {
            return false;
        }
        let table = &mut *self.table();
        self.absorb(table);
        self.is_suspect_in(table, pages)
    }

    /// As `is_suspect`, the log having been absorbed.
    fn is_suspect_in(&self, table: &mut Table, pages: Pages) -> bool {
        if table.removals.iter().any(|removal| removal.overlaps(pages)) {
            self.clear(table, pages);
        }
        table.removals.iter().any(|removal| removal.overlaps(pages))
    }

    /// Takes over what the reader has entered.
    fn absorb(&self, table: &mut Table) {
        let log = &self.source.log;
        let removals = log.removals();
        while let Some(change) = log.take() {
            table.mark(change.pages);
            if change.is_removal && self.strict {
                table.suspect(change.pages);
            }
        }
        if table.removals.is_empty() {
            self.removals_over.store(removals, Ordering::Release);
        }
    }

    /// Drops suspicions of these pages that have proved to be over, and reports them once more.
    fn clear(&self, table: &mut Table, pages: Pages) {
        let innocent = [this_thread(), self.reader.id()];
        let mut over = Vec::new();
        table.removals.retain_mut(|removal| {
            let is_over = removal.overlaps(pages) && removal.is_over(&innocent);
            if is_over {
                over.push(removal.pages);
            }
            !is_over
        });
        for &pages in &over {
            table.mark(pages);
        }
        if !over.is_empty() {
            self.source.log.raise();
            self.absorb(table);
        }
    }

    /// Ends a watch, and disarms what nobody else watches.
    fn end(&self, table: &mut Table, cookie: Cookie) -> io::Result<()> {
        let watch = table
            .watches
            .remove(&cookie.0)
            .ok_or(io::ErrorKind::NotFound)?;
        if watch.hit {
            table.hit.retain(|&other| other != cookie);
        }
        for (start, end) in table.coverage.remove(watch.pages, cookie) {
            self.source.disarm(start, end);
        }
        Ok(())
    }

    /// Arms `fresh`, and sees to it that all of `pages` is memory that can be watched.
    fn arm(&self, table: &mut Table, fresh: &[Pages], pages: Pages) -> io::Result<()> {
        if !self.strict {
            // Without the check nothing tells whether what was armed still is.
            self.source.arm(pages.0, pages.1)?;
            return self.mappings.check_kind(pages);
        }
        for &(start, end) in fresh {
            self.source.arm(start, end)?;
        }
        self.mappings.check_kind(pages)?;
        if !self.mappings.are_armed(pages)? {
            let why =
                "part of it is not mapped, or was replaced under a watch that has not ended yet";
            return Err(io::Error::other(why));
        }
        if !self.settle() {
            return Err(Errno::EAGAIN.into());
        }
        self.absorb(table);
        if self.is_suspect_in(table, pages) {
            let why = "some of its pages may be about to be removed by another thread";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        Ok(())
    }
}

impl Table {
    /// Marks the watches of any of the pages.
    fn mark(&mut self, pages: Pages) {
        for cookie in self.coverage.over(pages) {
            if let Some(watch) = self.watches.get_mut(&cookie.0)
                && !watch.hit
            {
                watch.hit = true;
                self.hit.push(cookie);
            }
        }
    }

    fn suspect(&mut self, pages: Pages) {
        self.removals.push(Removal::new(pages));
        if self.removals.len() > MAX_REMOVALS {
            let all = self.removals.drain(..).map(|removal| removal.pages);
            let hull = all.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            self.removals.extend(hull.map(Removal::new));
        }
    }
}

// SAFETY: see the file's head, and there M1 for what is not seen. What `open_racy` gives is what its own
// safety section says.
unsafe impl Monitor for Userfaultfd {
    const CHECKED: bool = true;

    #[inline]
    fn generation(&self) -> u64 {
        self.source.log.generation()
    }

    fn is_intact(&self, range: VaRange) -> bool {
        if !self.strict {
            return true;
        }
        // What was opened is the parent's: the answers would be about its memory.
        if self.fork.in_child() {
            return false;
        }
        let Ok(pages) = self.pages(range) else {
            return false;
        };
        let in_place = if self.source.asks_for_pages() {
            self.mappings.are_armed_and_present(pages)
        } else {
            self.mappings.are_armed(pages)
        };
        matches!(in_place, Ok(true)) && self.settle() && !self.is_suspect(pages)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let pages = self.pages(range)?;
        let table = &mut *self.table();
        let fresh = table.coverage.add(pages, cookie);
        table.watches.insert(cookie.0, Watch { pages, hit: false });
        let armed = self.arm(table, &fresh, pages);
        if armed.is_err() {
            self.end(table, cookie)?;
        }
        armed
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        self.end(&mut self.table(), cookie)
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let generation = self.generation();
        match self.source.ready.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        let table = &mut *self.table();
        self.absorb(table);
        while let Some(cookie) = table.hit.pop() {
            if let Some(watch) = table.watches.get_mut(&cookie.0) {
                watch.hit = false;
                invalidated(cookie);
            }
        }
        Ok(generation)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.source.ready.as_fd())
    }

    fn name(&self) -> &'static str {
        if self.strict {
            "userfaultfd"
        } else {
            "userfaultfd-racy"
        }
    }
}

impl Drop for Userfaultfd {
    fn drop(&mut self) {
        if self.fork.in_child() {
            self.reader.forget();
            return;
        }
        // While there is still somebody to read what that may bring about.
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (start, end) in table.coverage.all() {
            self.source.disarm(start, end);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn a_change_is_under_way_until_its_event_has_been_read_and_entered() {
        let Ok(opened) = Opened::with(Sight::Pages) else {
            eprintln!("not tested here");
            return;
        };
        let (memory, other) = (
            MmapMut::map_anon(4096).unwrap(),
            MmapMut::map_anon(4096).unwrap(),
        );
        // Nobody reads yet. Dropped before the memory is: then nobody waits.
        let monitor = Userfaultfd::around(opened, |source| Ok(Reader::absent(source))).unwrap();
        let whole = VaRange::new(memory.as_ptr(), memory.len()).unwrap();
        let beside = VaRange::new(other.as_ptr(), other.len()).unwrap();
        monitor.watch(whole, Cookie(1)).unwrap();
        monitor.watch(beside, Cookie(2)).unwrap();
        assert!(monitor.is_intact(beside));

        let unmapping = thread::spawn(move || drop(memory));
        while monitor.is_under_way() != Some(true) {
            thread::yield_now();
        }
        let before = monitor.generation();
        assert!(!monitor.is_intact(beside), "something is under way");
        assert!(!unmapping.is_finished(), "munmap waits");
        assert!(monitor.watch(beside, Cookie(3)).is_err());

        let reader = Reader::start(&monitor.source).unwrap();
        unmapping.join().unwrap();
        while !monitor.is_intact(beside) {
            thread::yield_now();
        }
        assert!(monitor.generation() > before);
        let mut hit = Vec::new();
        monitor.drain(&mut |cookie| hit.push(cookie)).unwrap();
        assert_eq!(hit, [Cookie(1)]);

        drop(reader);
        monitor.source.log.set_reading(true);
        assert!(!monitor.is_intact(beside), "what was read is not entered");
        monitor.source.log.set_reading(false);
        assert!(monitor.is_intact(beside));
    }
}
