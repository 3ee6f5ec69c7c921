//! [`Cache`]: the hit path, and the methods that are called less often. `design.rs` argues that
//! lookups never return a stale registration.

use std::fmt;
use std::mem;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::time::Duration;

use crate::core::at_once::AtOnce;
use crate::core::completion::Completion;
use crate::core::entry::{Attempt, Entry};
use crate::core::guard::Guard;
use crate::core::lookup::{Keep, find_cached, lookup};
use crate::core::reaper::Reaper;
use crate::core::slot::Slot;
use crate::core::spread::{Spread, has_lane};
use crate::core::{Content, Core};
use crate::error::Error;
use crate::monitor::{Auto, Monitor};
use crate::range::VaRange;
use crate::registrar::Registrar;
#[cfg(feature = "snapshot")]
use crate::snapshot::Snapshot;
use crate::stats::Stats;
use crate::sys::cancel::Uncancelled;
use crate::sys::sync::Arc;

/// A registration cache for one registrar.
///
/// [`get_slice`](Self::get_slice) returns a registration that covers a slice. An earlier lookup may
/// have made that registration. Even so, a returned registration is never stale. The [crate]
/// documentation states this promise exactly.
///
/// Threads share a cache by reference (it is `Sync`). Guards may outlive the cache.
///
/// The cache allocates and frees memory while it holds its lock. So a hook of the process's
/// allocator must not call a cache, neither in the thread that allocates nor by waiting for another
/// thread that does. A hook that wants to register new memory has to leave that to a later time. In
/// a build with debug assertions, such a call panics if the thread is inside a cache. Otherwise the
/// thread may wait for ever.
pub struct Cache<R: Registrar, M: Monitor = Auto> {
    core: Arc<Core<R, M>>,
    reaper: Option<Reaper>,
}

impl<R: Registrar, M: Monitor> Cache<R, M> {
    pub(crate) fn new(core: Arc<Core<R, M>>, reaper: Option<Reaper>) -> Self {
        Self { core, reaper }
    }

    /// Returns a registration that covers `bytes` and allows `access`.
    ///
    /// This is [`get`](Self::get) for the bytes of a slice.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`get`](Self::get). An empty slice causes [`Error::Range`].
    #[inline]
    pub fn get_slice(&self, bytes: &[u8], access: R::Access) -> Result<Guard<R, M>, Error> {
        self.get(bytes.as_ptr(), bytes.len(), access)
    }

    /// Returns a registration that covers the `len` bytes at `start` and allows `access`.
    ///
    /// The registration may cover more bytes and allow more access. The registration covers the
    /// memory that is mapped at the address at the time of the call. While the guard lives, the
    /// registration covers that same memory and no other.
    ///
    /// The pointer is not dereferenced, so any value is allowed. A hit takes no lock. A hit makes
    /// no system call, unless the monitor has to be called at each lookup ([`Monitor::CHECKED`]). A
    /// miss registers memory, which pins the pages of the range.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the range is not valid, the device refuses to register it, or this
    /// process is a forked child. If the monitor failed, the registration is not cached.
    ///
    /// ```
    /// # use std::io;
    /// # use regcache::{Cache, Registrar, VaRange};
    /// # struct Device;
    /// # // SAFETY: there is no device that reaches memory.
    /// # unsafe impl Registrar for Device {
    /// #     type Access = ();
    /// #     type Registration = VaRange;
    /// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
    /// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
    /// # }
    /// let cache = Cache::builder(Device).build()?;
    /// let buffer = vec![0_u8; 10_000];
    ///
    /// // C code and allocators describe memory by an address and a length.
    /// let guard = cache.get(buffer.as_ptr(), buffer.len(), ())?;
    /// assert!(guard.range().contains(&VaRange::try_from(&buffer[..])?));
    /// // Post the transfer with guard.registration(). Drop the guard when the transfer completes.
    /// drop(guard);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn get(
        &self,
        start: *const u8,
        len: usize,
        access: R::Access,
    ) -> Result<Guard<R, M>, Error> {
        let range = VaRange::new(start, len)?;
        let core = &self.core;
        if M::CHECKED && !core.monitor.is_intact(range) {
            return self.reregister(range, access, Keep::Retained);
        }
        // Each rare case directly returns the result of a call, which the compiler can turn into a
        // jump. So a hit need not save CPU registers.
        let Some(slot) = core.hints.first(range.start()) else {
            return self.get_unhinted(range, access);
        };
        // SAFETY: the hint was noted for an entry, so the slab has its slot.
        let entry = unsafe { core.slab.get_unchecked(slot) };
        if !core.is_current() {
            return self.get_slow(range, access, None);
        }
        if !entry.try_acquire() {
            return self.get_shared(range, access, entry);
        }
        let guard = Guard::owning(NonNull::from(entry));
        if !guard.content().serves(range, access) {
            return self.get_slow(range, access, Some(guard));
        }
        entry.touch();
        Ok(guard)
    }

    /// Returns the part of the cache that serves simple hits. It stays where it is while the cache
    /// lives, even if the cache is moved.
    #[doc(hidden)]
    pub fn at_once(&self) -> &AtOnce<R, M> {
        AtOnce::of(&self.core)
    }

    /// Serves a lookup whose entry is spread. The caller has found the cache to be current.
    #[cold]
    #[inline(never)]
    fn get_shared(
        &self,
        range: VaRange,
        access: R::Access,
        entry: &Entry<Content<R, M>>,
    ) -> Result<Guard<R, M>, Error> {
        // As in `get`, each rare case is a jump.
        if !has_lane() {
            return self.get_contended(range, access, entry);
        }
        match entry.try_acquire_spread() {
            Attempt::Acquired => {}
            Attempt::NotSpread => return self.get_contended(range, access, entry),
            Attempt::Undo(spread) => return self.get_undone(range, access, spread),
        }
        let guard = Guard::owning(NonNull::from(entry));
        if !guard.content().serves(range, access) {
            return self.get_slow(range, access, Some(guard));
        }
        entry.touch_shared();
        Ok(guard)
    }

    /// Serves a lookup whose attempt to acquire the entry failed, most likely because another
    /// thread did the same at that moment.
    #[cold]
    #[inline(never)]
    fn get_contended(
        &self,
        range: VaRange,
        access: R::Access,
        entry: &Entry<Content<R, M>>,
    ) -> Result<Guard<R, M>, Error> {
        let guard = Guard::contended(entry, range, access);
        guard.map_or_else(|| self.get_slow(range, access, None), Ok)
    }

    #[cold]
    #[inline(never)]
    fn get_undone(
        &self,
        range: VaRange,
        access: R::Access,
        spread: Spread,
    ) -> Result<Guard<R, M>, Error> {
        spread.undo();
        self.get_slow(range, access, None)
    }

    /// Unlinks the entries that cover the range, and then serves the lookup on the slow path. The
    /// monitor could not confirm that these entries are still valid.
    #[cold]
    #[inline(never)]
    fn reregister(
        &self,
        range: VaRange,
        access: R::Access,
        keep: Keep,
    ) -> Result<Guard<R, M>, Error> {
        self.unlink_covering(range)?;
        lookup(&self.core, range, access, keep)
    }

    fn unlink_covering(&self, range: VaRange) -> Result<(), Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        let _uncancelled = Uncancelled::begin();
        let mut table = core.lock();
        table.invalidate_covering(&core.slab, range);
        core.unlock(table);
        Ok(())
    }

    /// Serves a lookup for which there is no first hint.
    #[cold]
    #[inline(never)]
    fn get_unhinted(&self, range: VaRange, access: R::Access) -> Result<Guard<R, M>, Error> {
        let core = &self.core;
        if core.hints.has_other_sizes() {
            return self.get_slow(range, access, None);
        }
        if core.in_child() {
            return Err(Error::Forked);
        }
        // The lookup is most likely a miss, which notes a hint.
        core.hints.prefetch(range);
        lookup(core, range, access, Keep::Retained)
    }

    /// Serves a lookup that the first hint did not serve. If the first hint led to a live entry
    /// that does not serve the request, `other` is a guard of that entry.
    #[cold]
    #[inline(never)]
    fn get_slow(
        &self,
        range: VaRange,
        access: R::Access,
        other: Option<Guard<R, M>>,
    ) -> Result<Guard<R, M>, Error> {
        if let Some(guard) = other {
            guard.decline();
        }
        match self.find_by_hints(range, access)? {
            Some(guard) => Ok(guard),
            None => lookup(&self.core, range, access, Keep::Retained),
        }
    }

    fn find_by_hints(
        &self,
        range: VaRange,
        access: R::Access,
    ) -> Result<Option<Guard<R, M>>, Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        // Entries of other memory may still have to be unlinked. `marks.rs` argues that an entry
        // without a mark can serve the lookup.
        let marks = &core.slab.marks;
        if core.monitor.generation() != marks.generation() {
            return Ok(None);
        }
        // The mark must be checked before a reference is taken.
        let hit = |slot| match marks.contains(slot) {
            false => core.hit(slot, range, access),
            true => None,
        };
        Ok(core.hints.any(range.start(), hit))
    }

    /// Returns a registration as [`get`](Self::get) does, if the cache has one. Otherwise returns
    /// `None`, and registers nothing.
    ///
    /// A program can use this method to choose between two ways of sending data: without a copy
    /// from registered memory, or with a copy to a registered buffer of its own.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Range`] for a bad range, and [`Error::Forked`] in a forked child.
    ///
    /// ```
    /// # use std::io;
    /// # use regcache::{Cache, Registrar, VaRange};
    /// # struct Device;
    /// # // SAFETY: there is no device that reaches memory.
    /// # unsafe impl Registrar for Device {
    /// #     type Access = ();
    /// #     type Registration = VaRange;
    /// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
    /// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
    /// # }
    /// # let cache = Cache::builder(Device).build()?;
    /// let buffer = vec![0_u8; 10_000];
    /// assert!(cache.get_if_cached(buffer.as_ptr(), buffer.len(), ())?.is_none());
    ///
    /// if cache.get_slice(&buffer, ())?.is_cached() {
    ///     assert!(cache.get_if_cached(buffer.as_ptr(), buffer.len(), ())?.is_some());
    /// }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_if_cached(
        &self,
        start: *const u8,
        len: usize,
        access: R::Access,
    ) -> Result<Option<Guard<R, M>>, Error> {
        let range = VaRange::new(start, len)?;
        if M::CHECKED && !self.core.monitor.is_intact(range) {
            self.unlink_covering(range)?;
            return Ok(None);
        }
        let found = self.find_by_hints(range, access)?;
        Ok(found.or_else(|| find_cached(&self.core, range, access)))
    }

    /// Returns a registration as [`get`](Self::get) does, but does not retain a new one. If the
    /// cache has no registration that serves the lookup, the new registration ends with its guard.
    /// It evicts another registration only if the device is full.
    ///
    /// A program can use this method for memory that it will not use again.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`get`](Self::get).
    pub fn get_unretained(
        &self,
        start: *const u8,
        len: usize,
        access: R::Access,
    ) -> Result<Guard<R, M>, Error> {
        let range = VaRange::new(start, len)?;
        if M::CHECKED && !self.core.monitor.is_intact(range) {
            return self.reregister(range, access, Keep::Uncached);
        }
        match self.find_by_hints(range, access)? {
            Some(guard) => Ok(guard),
            None => lookup(&self.core, range, access, Keep::Uncached),
        }
    }

    /// Registers a range, so that the next [`get`](Self::get) of the range is a hit. If the
    /// registration cannot be cached, the next lookup is a miss again. The next lookup is also a
    /// miss if `access` is remote and the cache [revokes remote
    /// keys](crate::Builder::revoke_remote_keys).
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`get`](Self::get).
    pub fn prefetch(&self, start: *const u8, len: usize, access: R::Access) -> Result<(), Error> {
        self.get(start, len, access).map(drop)
    }

    /// Invalidates every registration that covers any of the `len` bytes at `start`. Later lookups
    /// register again. A registration in use is deregistered after its last guard is dropped. The
    /// returned [`Completion`] can wait until the registrations are deregistered.
    ///
    /// An application can use this method if it knows of a change that the monitor does not report,
    /// or to unpin memory at once. An application need not call this method before it unmaps
    /// memory.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Range`] for a bad range, and [`Error::Forked`] in a forked child.
    ///
    /// ```
    /// # use std::io;
    /// # use std::time::Duration;
    /// # use regcache::{Cache, Registrar, VaRange};
    /// # struct Device;
    /// # // SAFETY: there is no device that reaches memory.
    /// # unsafe impl Registrar for Device {
    /// #     type Access = ();
    /// #     type Registration = VaRange;
    /// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
    /// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
    /// # }
    /// # let cache = Cache::builder(Device).build()?;
    /// # let buffer = vec![0_u8; 10_000];
    /// let guard = cache.get_slice(&buffer, ())?;
    ///
    /// let mut unpinned = cache.invalidate(buffer.as_ptr(), buffer.len())?;
    /// assert_eq!(unpinned.in_use(), 1, "the guard holds the registration");
    ///
    /// drop(guard);
    /// assert!(unpinned.wait(Duration::from_secs(1)));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn invalidate(&self, start: *const u8, len: usize) -> Result<Completion<R, M>, Error> {
        let range = VaRange::new(start, len)?;
        self.unlink(
            |core| core.unlink_overlapping(range),
            |its| its.overlaps(&range),
        )
    }

    /// Invalidates every registration in the cache. The effects are those of
    /// [`invalidate`](Self::invalidate).
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn flush(&self) -> Result<Completion<R, M>, Error> {
        self.unlink(Core::unlink_all, |_| true)
    }

    /// Unlinks entries by `unlink`, and deregisters those that are idle. The completion waits for
    /// the registrations for whose ranges `meant` returns true.
    fn unlink(
        &self,
        unlink: impl FnOnce(&Core<R, M>),
        meant: impl Fn(&VaRange) -> bool,
    ) -> Result<Completion<R, M>, Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        let _uncancelled = Uncancelled::begin();
        unlink(core);
        core.unlink_and_deregister();
        core.give_back_if_sparse();
        let outstanding = core.lock().outstanding(meant);
        Ok(Completion::of(core, outstanding))
    }

    /// Changes the limit that [`Builder::max_bytes`](crate::Builder::max_bytes) has set. If the
    /// cache holds more, idle entries are evicted. An entry in use is evicted when its last guard
    /// is dropped, if the cache still holds too much.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn set_max_bytes(&self, bytes: usize) -> Result<(), Error> {
        self.set_limits(None, Some(bytes))
    }

    /// Changes the limit that [`Builder::max_entries`](crate::Builder::max_entries) has set, as
    /// [`set_max_bytes`](Self::set_max_bytes) does. A limit above the one with which the cache was
    /// built is lowered to that one.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn set_max_entries(&self, entries: u32) -> Result<(), Error> {
        self.set_limits(Some(entries as usize), None)
    }

    fn set_limits(
        &self,
        max_entries: Option<usize>,
        max_bytes: Option<usize>,
    ) -> Result<(), Error> {
        if self.core.in_child() {
            return Err(Error::Forked);
        }
        self.core.set_limits(max_entries, max_bytes);
        Ok(())
    }

    /// Closes the cache: stops the reaper and invalidates every registration. The returned
    /// [`Completion`] can wait until the registrations that guards still hold are deregistered.
    /// Dropping the cache does the same, but returns no [`Completion`].
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn close(mut self) -> Result<Completion<R, M>, Error> {
        self.reaper.take();
        self.flush()
    }

    /// Deregisters the memory that the monitor reports as invalidated, so that it does not stay
    /// pinned until the next lookup.
    ///
    /// If the cache has no [background reaper](crate::Builder::background_reaper), call this when
    /// [`descriptor`](Self::descriptor) is readable. Hits deregister nothing, and each miss at most
    /// eight registrations.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Monitor`] if the monitor failed, and [`Error::Forked`] in a forked child.
    pub fn reap(&self) -> Result<(), Error> {
        if self.core.in_child() {
            return Err(Error::Forked);
        }
        self.core.reap()
    }

    /// Returns a file descriptor that polls readable while there is something to
    /// [`reap`](Self::reap), if the monitor has one. Only poll the file descriptor: reading from it
    /// returns no reports.
    ///
    /// The file descriptor may be readable a moment before `reap` finds something. So poll it
    /// level-triggered, as `poll` does.
    ///
    /// ```
    /// # use std::io;
    /// # use regcache::{Cache, Registrar, VaRange};
    /// # struct Device;
    /// # // SAFETY: there is no device that reaches memory.
    /// # unsafe impl Registrar for Device {
    /// #     type Access = ();
    /// #     type Registration = VaRange;
    /// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
    /// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
    /// # }
    /// use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    ///
    /// let cache = Cache::builder(Device).background_reaper(false).build()?;
    /// if let Some(descriptor) = cache.descriptor() {
    ///     // An event loop polls this descriptor together with its other descriptors.
    ///     let mut fds = [PollFd::new(descriptor, PollFlags::POLLIN)];
    ///     if poll(&mut fds, PollTimeout::ZERO)? > 0 {
    ///         cache.reap()?;
    ///     }
    /// }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.core.monitor.descriptor()
    }

    /// Returns the cache's statistics. The call takes the lock, and reads the hit count of every
    /// slot that was ever used. The call does not slow down hits, because it writes to no cache
    /// line that a hit reads. In a forked child all statistics are 0.
    pub fn stats(&self) -> Stats {
        let core = &self.core;
        if core.in_child() {
            return Stats::default();
        }
        loop {
            let (slots, mut stats, returns) = {
                let table = core.lock();
                (table.slots(), table.stats(), table.returns())
            };
            let entries = (0..slots).filter_map(|i| core.slab.get(Slot(i)));
            stats.hits += entries.map(|entry| entry.hits()).sum::<u64>();
            // Otherwise hits have moved from the entries to the table meanwhile.
            if core.lock().returns() == returns {
                return stats;
            }
        }
    }

    /// Returns a picture of the registrations: of those that are cached or invalidated, that are
    /// being made, and that are on their way out.
    ///
    /// The picture is taken in pieces, so that lookups of other threads do not wait for long. So a
    /// registration that comes or goes during the call may be missing. Needs the feature
    /// `snapshot`.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    #[cfg(feature = "snapshot")]
    pub fn snapshot(&self) -> Result<Snapshot<R::Access>, Error> {
        self.check_process()?;
        Ok(self.core.snapshot())
    }

    /// Returns an error in a forked child, in which the cache cannot be used. The call has no other
    /// effect.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn check_process(&self) -> Result<(), Error> {
        match self.core.in_child() {
            true => Err(Error::Forked),
            false => Ok(()),
        }
    }

    /// Returns the name of the monitor.
    ///
    /// The monitor itself is not accessible, because draining it elsewhere would take reports away
    /// from the cache.
    pub fn monitor_name(&self) -> &'static str {
        self.core.monitor.name()
    }

    /// Flushes the cache, and waits until the registrations are deregistered that no guard holds,
    /// for `timeout` at most. Does nothing in a forked child.
    #[doc(hidden)]
    pub fn flush_idle(&self, timeout: Duration) {
        if let Ok(leaving) = self.flush() {
            leaving.wait_for_idle(timeout);
        }
    }

    /// Returns true if `guard`, from [`Guard::into_raw`], is a guard of this cache, and its
    /// registration [is cached](Guard::is_cached).
    #[doc(hidden)]
    pub fn has_cached(&self, guard: *const ()) -> bool {
        self.core.slab.slot_at(guard.addr()).is_some()
    }

    /// Returns the registrar.
    pub fn registrar(&self) -> &R {
        &self.core.registrar
    }
}

impl<R: Registrar, M: Monitor> Drop for Cache<R, M> {
    fn drop(&mut self) {
        if self.core.in_child() {
            // The registrar, the monitor and the reaper belong to the parent process. Dropping them
            // here would close file descriptors that the parent still uses. So the child leaks
            // them.
            mem::forget(Arc::clone(&self.core));
            mem::forget(self.reaper.take());
            return;
        }
        self.reaper.take();
        self.core.unlink_all();
        self.core.unlink_and_deregister();
        // Guards keep the core alive, and one guard needs little of its memory.
        if Arc::strong_count(&self.core) > 1 {
            self.core.give_back_if_sparse();
        }
    }
}

impl<R: Registrar, M: Monitor> fmt::Debug for Cache<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("monitor", &self.core.monitor.name())
            .field("stats", &self.stats())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io;

    use super::*;
    use crate::monitor::NoMonitor;
    use crate::range::RangeError;

    struct NoDevice;

    // SAFETY: there is no device that reaches memory.
    unsafe impl Registrar for NoDevice {
        type Access = ();
        type Registration = VaRange;

        fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> {
            Ok(range)
        }

        fn deregister(&self, _: VaRange) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slice_is_looked_up_by_its_bytes_and_an_empty_one_is_an_error() {
        let cache = Cache::builder(NoDevice).monitor(NoMonitor).build().unwrap();
        let bytes = [0_u8; 24];
        let guard = cache.get_slice(&bytes, ()).unwrap();
        assert_eq!(guard.range(), VaRange::try_from(&bytes[..]).unwrap());
        let empty = cache.get_slice(&bytes[..0], ()).unwrap_err();
        assert!(matches!(empty, Error::Range(RangeError::ZeroLength { .. })));
    }
}
