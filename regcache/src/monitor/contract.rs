//! [`Monitor`]: the contract between the cache and a source of reports, with its rules M1 to M6.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::range::VaRange;

/// The name of a watch. A cache never uses one twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({:#x})", self.0)
    }
}

/// A source that reports when the pages behind a watched range change.
///
/// An *invalidation* is any change of the pages that back a range: munmap, mremap, brk, a mapping
/// placed over it, `MADV_DONTNEED`, a hole punched in its file, a copy-on-write break.
///
/// # Safety
///
/// A cache returns registrations of the memory that is mapped, and a device reads and writes by
/// them. If one is stale, its pages may be mapped elsewhere by now, moved there by `mremap` or
/// `realloc`. The references to that memory do not expect a device. So a monitor must keep these
/// rules:
///
/// - **M1, nothing lost**: an invalidation that starts after [`watch`](Self::watch) has returned is
///   reported by [`drain`](Self::drain).
/// - **M2, nothing in flight missed**: an invalidation that is in flight while `watch` runs is over
///   before `watch` returns, or is reported after the invalidation ends. An early report, made
///   while the invalidation was in flight, is repeated after the end. So a watch that exists
///   already can serve a registration that is made now.
/// - **M3, in time**: [`generation`](Self::generation) has changed before any thread can be given
///   the addresses of an invalidated range for something new, and before the invalidating call
///   returns. If lookups have to ask [`is_intact`](Self::is_intact), that answer may come in its
///   place.
/// - **M4, bounded**: the monitor's memory is proportional to the number of watches, whatever
///   happens to them.
/// - **M5, not hijackable**: no other code in the process can switch the monitor off.
/// - **M6, backed**: `watch` refuses a range if the kernel does not report the changes of its
///   memory. A monitor without this rule is only for registrars that refuse such memory
///   themselves; see [`Registrar`](crate::Registrar).
///
/// Safety rests on M1 to M3 and M6. The cache calls `generation` and `drain` under its lock. So
/// they must not call into the cache, drop a guard or panic.
pub unsafe trait Monitor: Send + Sync + 'static {
    /// True if each lookup has to ask [`is_intact`](Self::is_intact) before anything else. False if
    /// `generation` alone is in time.
    const CHECKED: bool = false;

    /// Returns a number that changes whenever a watched range is invalidated. It is never
    /// `u64::MAX`.
    ///
    /// Each lookup calls this. The call acquires what was released before the number changed.
    fn generation(&self) -> u64;

    /// Returns true if [`generation`](Self::generation) now includes every change of `range` that
    /// the caller could know about. Changes that were over before the range was first watched do
    /// not count.
    ///
    /// Returns false if a change will never be included, or if the monitor cannot tell. Then no
    /// registration may be used that covers the range and was made before this call.
    ///
    /// The cache asks only a monitor that is [`CHECKED`](Self::CHECKED), without its lock. The
    /// range is that of the lookup. If a larger registration serves it, the rest of that
    /// registration is checked when the rest is looked up.
    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        let _ = range;
        true
    }

    /// Watches `range` under `cookie`.
    ///
    /// # Errors
    ///
    /// The reason why the range cannot be watched. The cache then returns an uncached registration
    /// of it.
    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()>;

    /// Stops watching. After this returns there is no report for `cookie`.
    ///
    /// # Errors
    ///
    /// An error if there is no such watch.
    fn unwatch(&self, cookie: Cookie) -> io::Result<()>;

    /// Calls `invalidated` for every watch that was invalidated since its last report, until there
    /// is none. Returns the generation of that moment. A watch goes on after it was reported.
    ///
    /// The cache calls this from one thread at a time. `invalidated` does not allocate, but it may
    /// free.
    ///
    /// # Errors
    ///
    /// An error if reports cannot be read, or may have been lost. The cache then drops all its
    /// entries, and refuses lookups until a drain succeeds.
    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64>;

    /// Returns a file descriptor that polls readable while there is something to drain, if the
    /// monitor has one. The cache's reaper or an application's event loop waits on it.
    ///
    /// Safe code can have it. So reading from it must take nothing away, as with an epoll instance.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Returns the monitor's name for reports, in one word.
    fn name(&self) -> &'static str;
}
