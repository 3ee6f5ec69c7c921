//! The monitor on userfaultfd, for machines without the driver: slower, and as strict.
//!
//! Watched mappings are registered with a userfaultfd in write-protect mode, and no page is ever
//! protected. So pages that are present never fault, but the events come: a mapping was unmapped or
//! moved, or its pages are about to be removed. A thread (`reader.rs`) reads them. On kernels that
//! can remove pages without an event, the mappings are registered for missing pages as well
//! (`open.rs`).
//!
//! Events alone are not sound. The kernel queues them after it has dropped the lock of the address
//! space. By the time that an event can be read, another thread may have been given the address by
//! `mmap`, and may have looked it up. Some changes send no event at all. Hence the check, which the
//! cache makes at the beginning of each lookup ([`is_intact`](Monitor::is_intact)).
//!
//! # The check
//!
//! 1. *No change is in flight.* Before an unmapping thread drops the kernel's lock, the kernel
//!    counts its change as in flight, until the event was read. While the count is not 0, the
//!    kernel answers any attempt to protect pages with `EAGAIN`. So an attempt that it must refuse
//!    (0 bytes) shows the count. The reader sets a flag before it reads, and clears it after it has
//!    entered its events. Assume that nothing is in flight, and *then* the reader is not reading.
//!    Then every change whose address could have been handed out by now is entered, and has raised
//!    the generation. Otherwise the check waits. If that takes too long it gives up, and the range
//!    is treated as changed.
//! 2. *The mapping is the one that was watched.* Pages are armed when their first watch comes, and
//!    never again until the last one is gone (`coverage.rs`). A mapping that was put there without
//!    an event, by `shmat(SHM_REMAP)`, is not armed. `ioctl(PAGEMAP_SCAN)` finds mappings that are
//!    not armed, and `msync` finds holes, which the scan skips. An armed mapping that was moved
//!    there has sent an event that names its new place.
//! 3. *No page is missing*, if the kernel can remove pages without an event. A registered page is
//!    present. A thread that touched such a page since got another one only after the reader had
//!    entered the fault (`faults.rs`).
//! 4. *No removal of these pages is in flight* (`dontneed.rs`).
//!
//! # The rules
//!
//! - **M1**: every change of mappings sends an event, except `shmat(SHM_REMAP)`, which the check
//!   finds. Changes of a file's pages send none, so only private anonymous memory is watched
//!   (`mapping.rs`). Pages that a device has pinned are not swapped out, migrated, merged or moved.
//!   `MADV_GUARD_INSTALL` (Linux 6.13) sends no event either: point 3 is for it.
//! - **M2**: arming takes the kernel's lock for writing. A change that has not looked at the
//!   mapping by then will find it armed. A change that has is over, because the kernel holds the
//!   lock until it is. The exception is a removal, which drops the lock to wait for its event. From
//!   that event on, its pages are neither watched nor intact until every thread was seen elsewhere.
//!   Then they are reported again.
//! - **M3**: point 1 shows it for a lookup that has asked `is_intact`. The generation alone is
//!   *not* in time.
//! - **M4**: the log has a fixed size, and events that do not fit become a report of everything.
//!   There are fewer than twice as many runs of pages as watches. Removals under suspicion are
//!   bounded, because too many become one.
//! - **M5**: no other code has the file descriptor. Code that closes file descriptors which it does
//!   not own ends the events. The check then fails, unless the number has become another
//!   userfaultfd's.
//! - **M6**: a range is refused unless each page is mapped, private and anonymous, and may be
//!   accessed (`mapping.rs`).
//!
//! # The cost
//!
//! - A lookup takes three system calls, 0.5 to 1 us in all. Since Linux 6.13 each page of 4 KiB
//!   adds 3 ns.
//! - A watch takes some microseconds. A munmap of watched memory takes a switch to the reader and
//!   back.
//! - Watching splits mappings, of which a process may have `vm.max_map_count` (65 530). Beyond that
//!   number, registrations are not cached.
//! - Memory under an application's own userfaultfd is not cached, nor is memory that another
//!   monitor of this kind watches. Several caches should share one by [`Shared`](super::Shared).
//!
//! A forked child has the file descriptor and no armed memory. If the child outlives the monitor,
//! the kernel keeps mappings armed; so the monitor disarms all of them when it is dropped.

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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};

use super::contract::{Cookie, Monitor};
use crate::range::VaRange;
use crate::sys::fork::ForkMark;
use coverage::Pages;
use dontneed::this_thread;
use mapping::Mappings;
use open::{Opened, Sight};
use reader::Reader;
use source::Source;
use watches::{Watch, Watches};

pub use open::UserfaultfdError;

/// The time that a lookup waits for changes in flight, at most. After that it registers again.
const PATIENCE: Duration = Duration::from_millis(20);

/// The number of times that it asks before it yields in between.
const SPINS: u32 = 16;

/// The monitor on userfaultfd, for private anonymous memory. The [module](self) has the promises
/// and the argument.
///
/// Registrations of other memory are not cached: files, shared memory, huge pages of hugetlbfs.
#[derive(Debug)]
pub struct Userfaultfd {
    source: Arc<Source>,
    reader: Reader,
    watches: Mutex<Watches>,
    mappings: Mappings,
    /// The number of removals in the log up to which all are over.
    removals_over: AtomicU64,
    strict: bool,
    fork: ForkMark,
}

impl Userfaultfd {
    /// Opens a userfaultfd for the memory of this process, and starts the thread that reads it.
    ///
    /// # Errors
    ///
    /// [`UserfaultfdError`]. On a kernel before 6.7 that is [`UserfaultfdError::NoCheck`]. On a
    /// kernel since 6.13 it is [`UserfaultfdError::GuardPages`], if the process lacks the
    /// privilege.
    pub fn open() -> Result<Self, UserfaultfdError> {
        Self::checked(Sight::Pages)
    }

    /// Opens it as [`open`](Self::open) does, but needs no privilege on any kernel.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), except `GuardPages`.
    ///
    /// # Safety
    ///
    /// No code installs guard pages (`MADV_GUARD_INSTALL`) in memory that was looked up, unless it
    /// calls the cache's [`invalidate`](crate::Cache::invalidate) for that memory before.
    pub unsafe fn open_unprivileged() -> Result<Self, UserfaultfdError> {
        Self::checked(Sight::Mappings)
    }

    /// Opens it without the check, as other libraries do.
    ///
    /// A lookup in one thread may return a stale registration after another thread has unmapped the
    /// memory. After changes that send no event, it always does.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), but any kernel since 5.11 suffices.
    ///
    /// # Safety
    ///
    /// The caller must synchronise lookups with other threads' unmapping, moving or discarding of
    /// the same memory, and allow time for the event to be read. Receiving the address from `mmap`
    /// does not count as synchronisation.
    pub unsafe fn open_racy() -> Result<Self, UserfaultfdError> {
        let mut monitor = Self::with(Sight::Events)?;
        monitor.strict = false;
        Ok(monitor)
    }

    fn checked(sight: Sight) -> Result<Self, UserfaultfdError> {
        let monitor = Self::with(sight)?;
        // Any page serves to find out whether the kernel supports the check.
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
            watches: Mutex::default(),
            mappings: Mappings::open()?,
            removals_over: AtomicU64::new(0),
            strict: true,
            fork: ForkMark::new(1)?,
        })
    }

    /// Takes the lock of the watches. The reader never does, so its holder may allocate and call
    /// the kernel.
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
    /// Returns false if that takes too long, or if the kernel does not answer any more.
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
    /// does not answer.
    fn is_in_flight(&self) -> Option<bool> {
        let mut nothing = raw::WriteProtect::default();
        // SAFETY: the structure may be read. The range is empty, so the kernel refuses to protect
        // it.
        let refused = unsafe { raw::write_protect(self.source.uffd.as_raw_fd(), &raw mut nothing) };
        // Later loads come after the kernel's load of its count.
        fence(Ordering::SeqCst);
        match refused {
            Err(Errno::EINVAL) => Some(false),
            Err(Errno::EAGAIN) => Some(true),
            _ => None,
        }
    }

    /// Returns true if a removal of some of the pages may not be over.
    fn is_suspect(&self, pages: Pages) -> bool {
        if self.source.log.removals() == self.removals_over.load(Ordering::Acquire) {
            return false;
        }
        let watches = &mut *self.lock();
        self.absorb(watches);
        self.is_suspect_in(watches, pages)
    }

    /// Does as `is_suspect`, after the log was absorbed.
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

    /// Moves the reader's entries from the log to the watches.
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

    /// Drops the removals of these pages that are over, and reports their pages again.
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
            self.source.log.raise();
            self.absorb(watches);
        }
    }

    /// Ends a watch, and disarms the pages that have no other one.
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

    /// Arms the `fresh` pages, and refuses `pages` that cannot be watched.
    fn arm(&self, watches: &mut Watches, fresh: &[Pages], pages: Pages) -> io::Result<()> {
        if !self.strict {
            // Without the check, pages that were armed before may not be armed any more.
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
        self.absorb(watches);
        if self.is_suspect_in(watches, pages) {
            let why = "some of its pages may be about to be removed by another thread";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        Ok(())
    }
}

// SAFETY: see the head of this file, and M1 there for changes that are not seen. A monitor of
// `open_racy` keeps what the safety section of that function leaves.
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
        // The files are the parent's: the answers would be about its memory.
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
        let watches = &mut *self.lock();
        let fresh = watches.coverage.add(pages, cookie);
        watches.by_cookie.insert(
            cookie.0,
            Watch {
                pages,
                invalidated: false,
            },
        );
        let armed = self.arm(watches, &fresh, pages);
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
        match self.source.ready.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
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
        // The reader still runs, and reads the events that this may cause.
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
        // There is no reader yet. The monitor is dropped before the memory, so that nobody waits.
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
}
