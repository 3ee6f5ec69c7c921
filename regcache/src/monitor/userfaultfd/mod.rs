//! The monitor on userfaultfd, for machines without the driver. This monitor is slower than the
//! driver and equally strict.
//!
//! Watched mappings are *armed*: they are registered with a userfaultfd in write-protect mode, but
//! no page is ever protected. So pages that are present never cause a fault. The kernel sends an
//! event when an armed mapping was unmapped or moved, or when its pages are about to be removed.
//! The monitor has a thread that reads the events (`reader.rs`). Some kernels can remove pages
//! without an event. On such a kernel the mappings are also registered for faults on missing pages
//! (`open.rs`).
//!
//! Events alone are not sound. The kernel queues an event after it has dropped the lock of the
//! address space. Before the event can be read, another thread may get the address from `mmap` and
//! look it up. Some changes send no event at all. So each lookup begins with a check,
//! [`is_intact`](Monitor::is_intact).
//!
//! # The check
//!
//! 1. *No change is in flight.* The kernel counts the changes whose events were not read yet. It
//!    counts a change before the unmapping thread drops the lock of the address space. While the
//!    count is not 0, any attempt to protect pages fails with `EAGAIN`. So the check tries to
//!    protect 0 bytes. This attempt always fails, and the error shows whether the count is 0.
//!
//!    A count of 0 is not enough, because an event may be read and not yet entered in the log. So
//!    the reader sets a flag before it reads events. The reader clears the flag after it has
//!    entered the events in the log and raised the generation. The check loads the count, and
//!    *after that* the flag. The check repeats both loads until the count is 0 and the flag is
//!    clear. At that point the log has every change whose address the kernel could have handed out
//!    before the check. Each of these changes has raised the generation. If the check waits too
//!    long, it gives up, and the cache treats the range as changed.
//! 2. *The mapping is the one that was watched.* The monitor arms a page when the first watch of
//!    the page is placed. The monitor does not arm the page again until the last watch of the page
//!    has ended (`coverage.rs`). `shmat(SHM_REMAP)` can replace a mapping without an event, but the
//!    new mapping is not armed. `ioctl(PAGEMAP_SCAN)` finds mappings that are not armed. The scan
//!    skips holes, so `msync` looks for holes. `mremap` can move another armed mapping into the
//!    range. But `mremap` sends an event that names the new addresses, so the reader reports the
//!    range's watches.
//! 3. *No page is missing.* The check includes this point only if the kernel can remove pages
//!    without an event. A registered page is present until it is removed. If a thread touches a
//!    removed page, it gets another page only after the reader has entered the fault in the log
//!    (`faults.rs`). So each removed page is either still missing or in the log.
//! 4. *No removal of these pages is in flight.* `dontneed.rs` describes how the monitor determines
//!    this.
//!
//! # The rules
//!
//! - **M1**: every change of mappings sends an event, except `shmat(SHM_REMAP)`. Point 2 of the
//!   check finds the change that `shmat(SHM_REMAP)` makes. Changes of a file's pages send no event,
//!   so only private anonymous memory is watched (`mapping.rs`). The kernel does not swap out,
//!   migrate, merge or move pages that a device has pinned. `MADV_GUARD_INSTALL` (Linux 6.13)
//!   removes pages without an event. Point 3 of the check finds the missing pages.
//! - **M2**: arming takes the kernel's lock of the address space for writing. A change that looks
//!   at the mapping afterwards finds it armed. A change that looked at the mapping before is over,
//!   because the kernel holds the lock until the change is over. A removal is the exception,
//!   because the removing thread drops the lock to wait until its event is read. After that event
//!   the pages are under suspicion. Meanwhile new watches of the pages are refused, and `is_intact`
//!   returns false for them. The suspicion ends when no thread can still be removing the pages
//!   (`dontneed.rs`). At its end, the watches of the pages are reported again.
//! - **M3**: by point 1 of the check, the generation has risen for each change before `is_intact`
//!   returns true. Without that call the generation may rise too late.
//! - **M4**: the log has a fixed size. Events that do not fit become one report of all memory.
//!   There are fewer than twice as many runs of pages as watches (`coverage.rs`). The number of
//!   suspected removals is bounded, because too many of them are merged into one.
//! - **M5**: no other code has the file descriptor. Code that closes file descriptors of other
//!   owners may close this one, which ends the events. After that the check fails, unless the
//!   number of the file descriptor has come to name another userfaultfd.
//! - **M6**: a range is refused unless each page is mapped, private and anonymous, and may be
//!   accessed (`mapping.rs`).
//!
//! # The cost
//!
//! - A lookup makes three system calls, which take 0.5 to 1 us together. Since Linux 6.13 each page
//!   of 4 KiB in the lookup's range adds 3 ns.
//! - Placing a watch takes some microseconds. A `munmap` of watched memory waits for a switch to
//!   the reader's thread and back.
//! - A watch may split a mapping in three. A process may have `vm.max_map_count` mappings (65 530
//!   by default). The monitor adds at most half of that number, and leaves the other half to the
//!   program. Once it has added so many, it refuses a watch with `ENOMEM`. The cache then evicts
//!   idle entries, which ends their watches.
//! - Memory that another userfaultfd has registered is not cached. The other userfaultfd may be the
//!   application's own, or that of another monitor of this kind. So several caches should share one
//!   monitor ([`Shared`](super::Shared)).
//!
//! A forked child inherits the file descriptor, but its memory is not armed. While a child keeps
//! the file descriptor open, the kernel keeps the parent's mappings armed. So the monitor disarms
//! all mappings when it is dropped.

mod coverage;
mod dontneed;
mod event_log;
mod faults;
mod mapping;
mod open;
mod raw;
mod reader;
mod source;
mod watches;

use std::hint;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::contract::{Cookie, Monitor};
use crate::range::VaRange;
use crate::sys::cancel::Uncancelled;
use crate::sys::descriptor::Private;
use crate::sys::fork::ForkMark;
use crate::sys::memory;
use coverage::Pages;
use dontneed::this_thread;
use mapping::Mappings;
use open::{Opened, Sight};
use reader::Reader;
use source::Source;
use watches::{Watch, Watches};

pub use open::UserfaultfdError;

/// The maximum time that a lookup waits until the changes in flight are entered in the log. After
/// that time the lookup registers its range again.
const PATIENCE: Duration = Duration::from_millis(20);

/// The number of times that a waiting lookup polls without yielding the CPU. After so many polls,
/// it yields between polls.
const SPINS: u32 = 16;

/// The monitor on userfaultfd, for private anonymous memory. The documentation of the
/// [module](self) argues why the monitor keeps its rules.
///
/// Registrations of other memory are not cached. Examples are files, shared memory and huge pages
/// of hugetlbfs.
#[derive(Debug)]
pub struct Userfaultfd {
    source: Arc<Source>,
    reader: Reader,
    watches: Mutex<Watches>,
    mappings: Mappings,
    /// An epoll instance for callers, which polls readable when the source's signal is raised.
    ready: Private<OwnedFd>,
    /// The maximum number of islands of armed pages (`coverage.rs`).
    max_islands: usize,
    /// A number n. The first n removals that were entered in the log are known to be over.
    removals_over: AtomicU64,
    strict: bool,
    fork: ForkMark,
}

impl Userfaultfd {
    /// Opens a userfaultfd for the memory of this process, and starts the thread that reads it.
    ///
    /// # Errors
    ///
    /// Returns [`UserfaultfdError`]. Before Linux 6.7 the error is [`UserfaultfdError::NoCheck`].
    /// Since Linux 6.13 the error is [`UserfaultfdError::GuardPages`], if the process lacks the
    /// privilege.
    pub fn open() -> Result<Self, UserfaultfdError> {
        Self::checked(Sight::Pages)
    }

    /// Opens a userfaultfd as [`open`](Self::open) does, but needs no privilege on any kernel.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`open`](Self::open), except `GuardPages`.
    ///
    /// # Safety
    ///
    /// No code installs guard pages (`MADV_GUARD_INSTALL`) in memory that was looked up, unless
    /// that code first calls the cache's [`invalidate`](crate::Cache::invalidate) for the memory.
    pub unsafe fn open_unprivileged() -> Result<Self, UserfaultfdError> {
        Self::checked(Sight::Mappings)
    }

    /// Opens a userfaultfd without the check, as other libraries use it.
    ///
    /// A lookup in one thread may return a stale registration after another thread has unmapped the
    /// memory. After a change that sends no event, every lookup of the memory may return a stale
    /// registration.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`open`](Self::open), but any kernel since Linux 5.11 suffices.
    ///
    /// # Safety
    ///
    /// The caller must synchronise lookups with other threads that unmap, move or discard the same
    /// memory. The caller must also allow time for the event to be read. Receiving the address from
    /// `mmap` does not count as synchronisation.
    pub unsafe fn open_racy() -> Result<Self, UserfaultfdError> {
        let mut monitor = Self::with(Sight::Events)?;
        monitor.strict = false;
        Ok(monitor)
    }

    fn checked(sight: Sight) -> Result<Self, UserfaultfdError> {
        let monitor = Self::with(sight)?;
        // This call only tests whether the kernel supports the check. So any page of this process
        // serves as its argument.
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
        let source = Arc::new(Source::new(opened, memory::page_size())?);
        Ok(Self {
            reader: start(&source)?,
            ready: source.when_ready()?,
            max_islands: max_map_count() / 4,
            source,
            watches: Mutex::default(),
            mappings: Mappings::open()?,
            removals_over: AtomicU64::new(0),
            strict: true,
            fork: ForkMark::new(1)?,
        })
    }

    /// Takes the lock of the watches. The reader never takes this lock. So a thread that holds it
    /// may allocate memory and make system calls.
    fn lock(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self, range: VaRange) -> io::Result<Pages> {
        let pages = range
            .aligned(self.source.page)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok((pages.start(), pages.end()))
    }

    /// Waits until every change that was in flight at the time of the call is entered in the log.
    /// Returns false if the wait takes too long, or if the kernel returns an unexpected error.
    fn settle(&self) -> bool {
        let mut until = None;
        for round in 0_u32.. {
            match self.is_in_flight() {
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

    /// Returns true if there is a change whose event was not read yet. Returns `None` if the kernel
    /// returns an unexpected error.
    fn is_in_flight(&self) -> Option<bool> {
        let mut nothing = raw::WriteProtect::default();
        // SAFETY: the structure may be read. The range is empty, so the kernel refuses to protect
        // it.
        let refused = unsafe {
            raw::write_protect(self.source.uffd.unchecked().as_raw_fd(), &raw mut nothing)
        };
        // The fence orders later loads after the kernel's load of its count.
        fence(Ordering::SeqCst);
        match refused {
            Err(Errno::EINVAL) => Some(false),
            Err(Errno::EAGAIN) => Some(true),
            _ => None,
        }
    }

    /// Returns true if some of the pages are under suspicion: a removal of them may still be in
    /// flight.
    fn is_suspect(&self, pages: Pages) -> bool {
        if self.source.log.removals() == self.removals_over.load(Ordering::Acquire) {
            return false;
        }
        let watches = &mut *self.lock();
        self.absorb(watches);
        self.is_suspect_in(watches, pages)
    }

    /// Does the same as `is_suspect`, for a caller that has moved the log's entries to the watches
    /// (`absorb`).
    fn is_suspect_in(&self, watches: &mut Watches, pages: Pages) -> bool {
        if watches
            .removals
            .iter()
            .any(|removal| removal.overlaps(pages))
        {
            self.clear(watches, pages);
        }
        watches
            .removals
            .iter()
            .any(|removal| removal.overlaps(pages))
    }

    /// Applies the entries of the log to the watches: marks the watches of changed pages, and puts
    /// removed pages under suspicion.
    fn absorb(&self, watches: &mut Watches) {
        let log = &self.source.log;
        let removals = log.removals();
        while let Some(change) = log.take() {
            watches.mark(change.pages);
            if change.is_removal && self.strict {
                watches.suspect(change.pages);
            }
        }
        if watches.removals.is_empty() {
            self.removals_over.store(removals, Ordering::Release);
        }
    }

    /// Ends the suspicion of those removals of `pages` that are over, and marks the watches of the
    /// removed pages again.
    fn clear(&self, watches: &mut Watches, pages: Pages) {
        let innocent = [this_thread(), self.reader.id()];
        let mut over = Vec::new();
        watches.removals.retain_mut(|removal| {
            let is_over = removal.overlaps(pages) && removal.is_over(&innocent);
            if is_over {
                over.push(removal.pages);
            }
            !is_over
        });
        for &pages in &over {
            watches.mark(pages);
        }
        if !over.is_empty() {
            self.source.announce();
            self.absorb(watches);
        }
    }

    /// Ends a watch, and disarms the pages that have no watch any more.
    fn end(&self, watches: &mut Watches, cookie: Cookie) -> io::Result<()> {
        let watch = watches
            .by_cookie
            .remove(&cookie.0)
            .ok_or(io::ErrorKind::NotFound)?;
        if watch.invalidated {
            watches.invalidated.retain(|&other| other != cookie);
        }
        for (start, end) in watches.coverage.remove(watch.pages, cookie) {
            self.source.disarm(start, end);
        }
        Ok(())
    }

    /// Arms the `fresh` pages: those of `pages` that had no watch before. Returns an error if some
    /// of `pages` cannot be watched.
    fn arm(&self, watches: &mut Watches, fresh: &[Pages], pages: Pages) -> io::Result<()> {
        if !self.strict {
            // A monitor of `open_racy` makes no check (see the head of this file). So it may not
            // have noticed that an unarmed mapping replaced an armed one. So all pages are armed
            // again.
            self.source.arm(pages.0, pages.1)?;
            return self.mappings.check_kind(pages);
        }
        for &(start, end) in fresh {
            self.source.arm(start, end)?;
        }
        self.mappings.check_kind(pages)?;
        if !self.mappings.are_armed(pages)? {
            let why =
                "part of the range is not mapped, or was replaced under a watch that has not ended";
            return Err(io::Error::other(why));
        }
        if !self.settle() {
            return Err(Errno::EAGAIN.into());
        }
        self.absorb(watches);
        if self.is_suspect_in(watches, pages) {
            let why = "another thread may be about to remove some of the range's pages";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        Ok(())
    }
}

/// Returns the number of mappings that a process may have.
fn max_map_count() -> usize {
    let said = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let count = said.ok().and_then(|it| it.trim().parse().ok());
    count.unwrap_or(65_530)
}

// SAFETY: the head of this file argues for each rule. The argument for M1 lists the changes that
// events do not report. A monitor of `open_racy` keeps the rules under the conditions in the safety
// section of that function.
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
        // In a forked child, the open files still refer to the parent's memory. So the check would
        // test the wrong memory.
        if self.fork.in_child() {
            return false;
        }
        let Ok(pages) = self.pages(range) else {
            return false;
        };
        let _uncancelled = Uncancelled::begin();
        let in_place = if self.source.asks_for_pages() {
            self.mappings.are_armed_and_present(pages)
        } else {
            self.mappings.are_armed(pages)
        };
        matches!(in_place, Ok(true)) && self.settle() && !self.is_suspect(pages)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let pages = self.pages(range)?;
        // This call may take long, so it comes before the lock. A page that is missing again when
        // it is armed only causes a fault.
        self.source.populate(pages);
        let watches = &mut *self.lock();
        let fresh = watches.coverage.add(pages, cookie);
        watches.by_cookie.insert(
            cookie.0,
            Watch {
                pages,
                invalidated: false,
            },
        );
        let armed = if watches.coverage.islands() > self.max_islands {
            Err(Errno::ENOMEM.into())
        } else {
            self.arm(watches, &fresh, pages)
        };
        if armed.is_err() {
            self.end(watches, cookie)?;
        }
        armed
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        self.end(&mut self.lock(), cookie)
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let generation = self.generation();
        self.source.clear_ready()?;
        let watches = &mut *self.lock();
        self.absorb(watches);
        while let Some(cookie) = watches.invalidated.pop() {
            if let Some(watch) = watches.by_cookie.get_mut(&cookie.0) {
                watch.invalidated = false;
                invalidated(cookie);
            }
        }
        Ok(generation)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.unchecked())
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
        // Threads may still change the mappings while the monitor disarms them. The reader still
        // runs, so no such thread waits for its event in vain.
        let watches = self
            .watches
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for (start, end) in watches.coverage.all() {
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
    fn a_change_is_in_flight_until_its_event_has_been_read_and_entered() {
        let Ok(opened) = Opened::with(Sight::Pages) else {
            eprintln!("not tested here");
            return;
        };
        let (memory, other) = (
            MmapMut::map_anon(4096).unwrap(),
            MmapMut::map_anon(4096).unwrap(),
        );
        // This monitor has no reader. If the test fails, the monitor is dropped before the memory,
        // so that no unmapping waits for a reader.
        let monitor = Userfaultfd::around(opened, |source| Ok(Reader::absent(source))).unwrap();
        let whole = VaRange::new(memory.as_ptr(), memory.len()).unwrap();
        let beside = VaRange::new(other.as_ptr(), other.len()).unwrap();
        monitor.watch(whole, Cookie(1)).unwrap();
        monitor.watch(beside, Cookie(2)).unwrap();
        assert!(monitor.is_intact(beside));

        let unmapping = thread::spawn(move || drop(memory));
        while monitor.is_in_flight() != Some(true) {
            thread::yield_now();
        }
        let before = monitor.generation();
        assert!(!monitor.is_intact(beside), "something is in flight");
        assert!(!unmapping.is_finished(), "munmap waits");
        assert!(monitor.watch(beside, Cookie(3)).is_err());

        let reader = Reader::start(&monitor.source).unwrap();
        unmapping.join().unwrap();
        while !monitor.is_intact(beside) {
            thread::yield_now();
        }
        assert!(monitor.generation() > before);
        let mut reported = Vec::new();
        monitor.drain(&mut |cookie| reported.push(cookie)).unwrap();
        assert_eq!(reported, [Cookie(1)]);

        drop(reader);
        monitor.source.log.set_reading(true);
        assert!(
            !monitor.is_intact(beside),
            "an event was read and is not entered"
        );
        monitor.source.log.set_reading(false);
        assert!(monitor.is_intact(beside));
    }
    #[test]
    fn a_watch_populates_its_pages_before_it_takes_the_lock() {
        let Ok(monitor) = Userfaultfd::open() else {
            eprintln!("not tested here");
            return;
        };
        if !monitor.source.asks_for_pages() {
            eprintln!("not tested here");
            return;
        }
        // The length makes the memory span several pieces, the last one incomplete.
        let memory = MmapMut::map_anon((5 << 20) + 4096).unwrap();
        let whole = VaRange::new(memory.as_ptr(), memory.len()).unwrap();
        let resident = || {
            let mut pages = vec![0_u8; memory.len() / 4096];
            let (start, len) = (memory.as_ptr().cast_mut().cast(), memory.len());
            // SAFETY: the vector has a byte for each page of the test's own mapping.
            assert_eq!(unsafe { libc::mincore(start, len, pages.as_mut_ptr()) }, 0);
            pages.iter().all(|page| page & 1 == 1)
        };
        assert!(!resident());
        thread::scope(|s| {
            let locked = monitor.lock();
            let watching = s.spawn(|| monitor.watch(whole, Cookie(1)));
            let deadline = Instant::now() + Duration::from_secs(20);
            while !resident() && Instant::now() < deadline {
                thread::yield_now();
            }
            let populated = resident();
            drop(locked);
            watching.join().unwrap().unwrap();
            assert!(populated, "the pages became present only with the lock");
        });
        assert!(monitor.is_intact(whole));
        assert_eq!(monitor.generation(), 0, "the reader had to supply a page");
    }
}
