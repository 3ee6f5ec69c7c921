//! Monitors: how the cache learns that memory is not what it was.
//!
//! A monitor watches ranges of the process's own memory and raises its generation when the pages
//! behind one of them change. What it has to promise for the cache never to return a stale
//! registration are the rules M1 to M5 at [`Monitor`].

pub mod abi;
mod auto;
mod nothing;
mod ready;
mod shared;
mod ummunotify;
mod userfaultfd;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::VaRange;

pub use auto::{Auto, auto};
pub use nothing::Nothing;
pub use shared::Shared;
pub use ummunotify::{OpenError, Ummunotify};
pub use userfaultfd::{Userfaultfd, UserfaultfdError};

/// Names a watch. Never used twice in the life of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({:#x})", self.0)
    }
}

/// Tells when the mapping of a watched range stops being what it was.
///
/// An *invalidation* is any change of the pages that back a range: munmap, mremap, brk, a mapping
/// placed over it, `MADV_DONTNEED`, a hole punched in its file, a copy-on-write break.
///
/// # Safety
///
/// A cache hands registrations out as registrations of the memory that is mapped, and a device
/// reads and writes by them. If one is stale, the pages it reaches may by now be mapped elsewhere,
/// moved there by `mremap` or `realloc`, under references that know nothing of it. So a monitor must
/// keep the rules
///
/// - **M1, nothing lost**: an invalidation that starts after [`watch`](Self::watch) has returned is
///   reported by [`drain`](Self::drain);
/// - **M2, nothing in flight missed**: an invalidation under way while `watch` runs is over before
///   it returns, or is reported after it ends. And what was reported while it was under way is
///   reported once more after it ends, so that a watch which is there already can serve a
///   registration that is made now;
/// - **M3, in time**: [`generation`](Self::generation) has changed before any thread can be given
///   the addresses of an invalidated range for something new, and before the invalidating call
///   returns; or [`is_intact`](Self::is_intact) tells, if lookups have to ask it;
/// - **Backed**: where no memory is whose changes are announced, `watch` refuses the range, or the
///   registrar must be one that does so; see [`Registrar`](crate::Registrar);
/// - **M4, bounded**: its memory is proportional to the number of watches, whatever happens to
///   them;
/// - **M5, not hijackable**: no other code in the process can switch it off.
///
/// of which the first three are what safety rests on. `generation` and `drain` are called under the
/// cache's lock: they must not call into the cache, nor drop a guard, nor panic.
pub unsafe trait Monitor: Send + Sync + 'static {
    /// Whether each lookup has to ask [`is_intact`](Self::is_intact), before anything else. Without it
    /// `generation` alone is in time.
    const CHECKED: bool = false;

    /// A number that differs whenever something watched was invalidated. Any but `u64::MAX`.
    ///
    /// Asked on every lookup. Acquires what was released before the number changed.
    fn generation(&self) -> u64;

    /// True if every change of `range` that could have been noticed by now, and was not over before
    /// those who watch it did, is in [`generation`](Self::generation) when this returns. False if there
    /// was a change that never will be, or it cannot be told: then nothing that was registered before this
    /// was called and covers the range may be used.
    ///
    /// Asked only of a monitor that is [`CHECKED`](Self::CHECKED). The range is that of the lookup,
    /// not of what may serve it: a registration that covers more answers for the rest when the rest
    /// is looked up. Called without the cache's lock.
    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        let _ = range;
        true
    }

    /// Watches `range` under `cookie`.
    ///
    /// # Errors
    ///
    /// If the range cannot be watched. The cache then hands out a registration of the range that it
    /// does not keep.
    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()>;

    /// Stops watching. No report for `cookie` comes after this returns.
    ///
    /// # Errors
    ///
    /// If there is no such watch.
    fn unwatch(&self, cookie: Cookie) -> io::Result<()>;

    /// Calls `invalidated` for every watch that was hit since it was last reported, until there is
    /// none, and returns the generation of that moment. A watch remains after it was reported.
    ///
    /// The cache calls this from one thread at a time. `invalidated` does not allocate; it may free.
    ///
    /// # Errors
    ///
    /// If reports cannot be had, or may have been lost. The cache then gives up all that it has and
    /// refuses lookups until a drain succeeds.
    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64>;

    /// What polls readable while there is something to drain, if there is such a thing: for the cache's
    /// reaper, or an application's event loop. It is given to safe code: reading from it must take
    /// nothing away, as reading from an epoll instance does not.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What to call it in a report, in one word.
    fn name(&self) -> &'static str;
}
