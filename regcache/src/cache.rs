//! [`Cache`]: the hit path, and the methods that are called less often. `design.rs` argues that
//! lookups never return a stale registration.

use std::fmt;
use std::mem;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use crate::core::completion::Completion;
use crate::core::guard::Guard;
use crate::core::lookup::lookup;
use crate::core::reaper::Reaper;
use crate::core::slab::{EntryId, Slab, Slot};
use crate::core::table::Table;
use crate::core::{Content, Core};
use crate::error::Error;
use crate::monitor::{Auto, Monitor};
use crate::range::VaRange;
use crate::registrar::Registrar;
use crate::stats::Stats;
use crate::sys::sync::{Arc, lock};

/// A registration cache for one registrar.
///
/// [`get_slice`](Self::get_slice) returns a registration that covers a slice. An earlier lookup may
/// have made that registration. Even so, a returned registration is never stale. The [crate]
/// documentation states this promise exactly.
///
/// Threads share a cache by reference (it is `Sync`). Guards may outlive the cache.
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
    /// Returns [`Error`] if the range is not valid, the device refuses to register it, this process
    /// is a forked child, or the monitor failed.
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
            return self.reregister(range, access);
        }
        // Each rare case directly returns the result of a call, which the compiler can turn into a
        // jump. So a hit need not save CPU registers.
        let Some(slot) = core.hints.first(range.start()) else {
            return self.get_slow(range, access, None);
        };
        let Some(entry) = core.slab.get(slot) else {
            return self.get_slow(range, access, None);
        };
        if !(core.is_current() && entry.try_acquire()) {
            return self.get_slow(range, access, None);
        }
        let guard = Guard::owning(NonNull::from(entry));
        if !guard.content().serves(range, access) {
            return self.get_slow(range, access, Some(guard));
        }
        entry.touch();
        Ok(guard)
    }

    /// Unlinks the entries that cover the range, and then serves the lookup on the slow path. The
    /// monitor could not confirm that these entries are still valid.
    #[cold]
    #[inline(never)]
    fn reregister(&self, range: VaRange, access: R::Access) -> Result<Guard<R, M>, Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        let mut table = lock(&core.table);
        table.invalidate_covering(&core.slab, range);
        core.unlock(table);
        lookup(core, range, access)
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
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        if core.is_current() {
            let hit = |slot| core.hit(slot, range, access);
            if let Some(guard) = core.hints.any(range.start(), hit) {
                return Ok(guard);
            }
        }
        lookup(core, range, access)
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
        self.unlink(|table, slab| table.invalidate_overlapping(slab, range))
    }

    /// Invalidates every registration in the cache. The effects are those of
    /// [`invalidate`](Self::invalidate).
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn flush(&self) -> Result<Completion<R, M>, Error> {
        self.unlink(|table, slab| {
            table.unlink_all(slab);
            table.outstanding(|_| true)
        })
    }

    fn unlink(
        &self,
        from: impl FnOnce(&mut Table<R::Access>, &Slab<Content<R, M>>) -> Vec<EntryId>,
    ) -> Result<Completion<R, M>, Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        let outstanding = from(&mut lock(&core.table), &core.slab);
        core.deregister_dead();
        Ok(Completion::of(core, outstanding))
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
    /// [`descriptor`](Self::descriptor) is readable.
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
        let (slots, stats) = {
            let table = lock(&core.table);
            (table.slots(), table.stats())
        };
        let entries = (0..slots).filter_map(|i| core.slab.get(Slot(i)));
        Stats {
            hits: entries.map(|entry| entry.hits()).sum(),
            ..stats
        }
    }

    /// Returns the name of the monitor.
    ///
    /// The monitor itself is not accessible, because draining it elsewhere would take reports away
    /// from the cache.
    pub fn monitor_name(&self) -> &'static str {
        self.core.monitor.name()
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
        lock(&self.core.table).unlink_all(&self.core.slab);
        self.core.deregister_dead();
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
