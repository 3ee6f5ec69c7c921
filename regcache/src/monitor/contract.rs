//! [`Monitor`]: the contract between the cache and a source of reports, with its rules M1 to M6.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::range::VaRange;
use crate::sys::worker::Worker;

/// The name of a watch. A cache never uses the same cookie twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Returns the cookie of a watch whose record has this place. The serial number tells apart the
    /// watches whose records have the place one after another.
    pub(crate) fn of(place: u32, serial: u32) -> Self {
        Self(u64::from(serial) << 32 | u64::from(place))
    }

    pub(crate) fn place(self) -> u32 {
        self.0 as u32
    }

    pub(crate) fn serial(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({:#x})", self.0)
    }
}

/// A source that reports when the pages behind a watched range change.
///
/// An *invalidation* is any change of the pages that back a range. Examples are munmap, mremap,
/// brk, `MADV_DONTNEED`, a mapping placed over the range, a hole punched in its file, and a
/// copy-on-write break.
///
/// # Safety
///
/// A device reads and writes memory through the registrations that a cache returns. The pages of a
/// stale registration may be in use elsewhere, for example after `mremap` or `realloc` has moved
/// them. Rust code with references to those pages does not expect a device to access them. So a
/// monitor must keep these rules:
///
/// - **M1, nothing lost**: an invalidation that starts after [`watch`](Self::watch) has returned is
///   reported by [`drain`](Self::drain).
/// - **M2, nothing in flight missed**: consider an invalidation that is in flight while `watch`
///   runs. It is over before `watch` returns, or it is reported after it ends. A report made while
///   the invalidation is in flight (an early report) is repeated after the invalidation ends. So an
///   older watch can serve a registration that is made while the invalidation is in flight.
/// - **M3, in time**: [`generation`](Self::generation) changes before the invalidating call
///   returns. It also changes before the kernel can hand out the addresses of the invalidated range
///   to any thread again. If the monitor is [`CHECKED`](Self::CHECKED), the result of
///   [`is_intact`](Self::is_intact) may report the change in place of the generation.
/// - **M4, bounded**: the monitor's memory is proportional to the number of watches, whatever
///   happens to the watched memory.
/// - **M5, not hijackable**: no other code in the process can switch the monitor off.
/// - **M6, backed**: `watch` refuses a range if the kernel does not report the changes of the
///   memory there. A monitor that breaks this rule may be used only with registrars that refuse
///   such memory themselves; see [`Registrar`](crate::Registrar).
///
/// Memory safety depends on M1, M2, M3 and M6.
///
/// The cache calls `generation` and `drain` while it holds its lock. So these two methods must not
/// call into the cache, drop a guard or panic.
pub unsafe trait Monitor: Send + Sync + 'static {
    /// True if each lookup must first call [`is_intact`](Self::is_intact), because `generation`
    /// alone does not keep rule M3.
    const CHECKED: bool = false;

    /// True if a method of the monitor may reach a cancellation point of `pthread_cancel`. See
    /// [`Registrar::CANCELLATION_POINT`](crate::Registrar::CANCELLATION_POINT).
    const CANCELLATION_POINT: bool = true;

    /// Returns a number that changes whenever a watched range is invalidated. The number is never
    /// `u64::MAX`.
    ///
    /// Each lookup calls this method. The call has acquire ordering, so the caller sees everything
    /// that was released before the number changed.
    fn generation(&self) -> u64;

    /// Returns true if [`generation`](Self::generation) has risen for every change of `range` that
    /// the caller could know about. Changes that were over before the range was first watched do
    /// not count.
    ///
    /// Returns false if the generation will never rise for some change, or if the monitor cannot
    /// decide. After that the cache must not use a registration that covers the range and was made
    /// before this call.
    ///
    /// The cache calls this method only if the monitor is [`CHECKED`](Self::CHECKED). The cache
    /// does not hold its lock during the call. `range` is the range of the lookup. A larger
    /// registration may serve the lookup. The cache checks the rest of that registration when a
    /// lookup requests the rest.
    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        let _ = range;
        true
    }

    /// Watches `range` under `cookie`.
    ///
    /// # Errors
    ///
    /// Returns the reason why the range cannot be watched. After an error, the cache returns an
    /// uncached registration of the range.
    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()>;

    /// Ends the watch named `cookie`. After this method has returned, no report names that watch.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such watch.
    fn unwatch(&self, cookie: Cookie) -> io::Result<()>;

    /// Calls `invalidated` for every watch that was invalidated since its last report, until no
    /// such watch is left. Returns the generation of the moment at which no such watch was left. A
    /// watch stays in place after it was reported.
    ///
    /// The cache calls this method from one thread at a time. `invalidated` does not allocate
    /// memory, but it may free memory.
    ///
    /// # Errors
    ///
    /// Returns an error if reports cannot be read, or may have been lost. After an error, the cache
    /// unlinks all entries. Until a drain succeeds, lookups return uncached registrations.
    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64>;

    /// Returns a file descriptor that polls readable while there is something to drain, if the
    /// monitor has one. The cache's reaper or an application's event loop waits on the file
    /// descriptor.
    ///
    /// A change makes the file descriptor readable before it raises the
    /// [`generation`](Self::generation). So the file descriptor is not readable after a drain that
    /// returned the latest generation. Otherwise a thread that waits on it would never sleep,
    /// because the cache does not drain a monitor whose generation it has already drained.
    ///
    /// Safe code can get this file descriptor. So reading from it must not consume reports. For
    /// example, the file descriptor may be of an epoll instance, which cannot be read.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Returns the address of the [`generation`](Self::generation), if the generation alone keeps
    /// rule M3, and if [`generation`](Self::generation) is a relaxed load from that address and an
    /// acquire fence. The word exists as long as the monitor, even if the monitor is moved. The C
    /// library loads the word at each lookup.
    #[doc(hidden)]
    fn counter(&self) -> Option<NonNull<AtomicU64>> {
        None
    }

    /// Returns the thread that reaps for all caches that share this monitor. If the result is
    /// `None`, the cache starts a thread of its own.
    #[doc(hidden)]
    fn worker(&self) -> Option<Arc<Worker>> {
        None
    }

    /// Returns the monitor's name in one word, for messages.
    fn name(&self) -> &'static str;
}
