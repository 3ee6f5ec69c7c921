//! [`Registrar`]: the interface between the cache and a device.
//!
//! A registrar makes and destroys registrations for one protection domain: `ibv_mr`s, io_uring
//! fixed buffers, or anything else that pins pages and has a key. The cache uses a device only
//! through the two traits in this file.

use std::fmt::Debug;
use std::io;

use crate::range::VaRange;

/// The operations that a registration allows.
///
/// The cache finds a registration by its range and its access. A registration that allows more than
/// a lookup asked for may serve that lookup. [`Access::serves`] returns true if it may. For verbs,
/// the registration needs a superset of the permission flags and the same ordering flags.
pub trait Access: Copy + Eq + Debug + Send + Sync + 'static {
    /// Returns true if a registration made with `self` can replace one made with `wanted`.
    ///
    /// The relation must be reflexive and transitive. The method is called under the cache's lock,
    /// so it must not panic.
    fn serves(self, wanted: Self) -> bool;

    /// Returns true only if [`serves`](Self::serves) does, but may also return false. The C library
    /// calls this method before `serves`, so it should take few instructions.
    #[doc(hidden)]
    #[inline(always)]
    fn serves_at_once(self, wanted: Self) -> bool {
        self.serves(wanted)
    }

    /// Returns true if the device may write to the memory. The cache uses the result only to
    /// explain why a registration was refused.
    fn writes(self) -> bool {
        true
    }

    /// Returns true if a registration has a key by which a peer reaches the memory.
    /// [`Builder::revoke_remote_keys`](crate::Builder::revoke_remote_keys) applies to registrations
    /// with such access.
    fn is_remote(self) -> bool {
        false
    }
}

/// The access of a device whose registrations all allow the same operations.
impl Access for () {
    fn serves(self, (): ()) -> bool {
        true
    }
}

/// Makes and destroys registrations.
///
/// The cache calls the methods without holding a lock. The calling thread is one that calls into
/// the cache, one that drops a guard, or the cache's own
/// [reaper](crate::Builder::background_reaper). The reaper has all signals blocked. The methods
/// must not call back into the same cache.
///
/// A panic in `register` propagates to the caller of the lookup. A panic in `deregister` is caught,
/// and the registration is counted as leaked.
///
/// # Safety
///
/// Callers of the cache use a registration to access the memory at `range`. So the implementer
/// makes two promises:
///
/// - A registration covers all pages of `range` with at least `access`. These are the pages that
///   were mapped there at some moment between call and return of [`register`](Self::register).
///   Until its deregistration, the registration keeps those pages from being reused.
/// - Once [`deregister`](Self::deregister) has returned `Ok`, the device no longer reaches memory
///   through that registration.
///
/// The promises concern only pages that the kernel's `get_user_pages` finds, because monitors
/// report no changes of other memory. A registrar may also register addresses at which a device has
/// its own memory, as `ibv_reg_mr` does with nvidia-peermem. Such a range is not mapped, may not be
/// accessed, or is mapped by a driver without pages. So the sound monitors refuse to watch it, and
/// the cache does not retain the registration.
///
/// An ummunotify driver that is too old for `REGISTER_REGION2` cannot refuse such a range. So a
/// registrar that registers device memory must not be used with such a driver.
pub unsafe trait Registrar: Send + Sync + 'static {
    /// The type of access that registrations of this device have.
    type Access: Access;

    /// The type of the device's registrations. A registration contains everything that a caller
    /// needs to post a transfer.
    type Registration: Send + Sync + 'static;

    /// True if a method of the registrar may reach a cancellation point of `pthread_cancel`, such
    /// as `write` or `nanosleep`, or may panic, because a panic hook writes a message. The cache
    /// then disables cancellation in each miss, which takes 6 ns.
    ///
    /// Set the constant to false only if no method can do so, and if no logger takes messages by
    /// the feature `log` of the crate `tracing`. If the constant of the monitor is false too, a
    /// miss leaves cancellation enabled. A cancelled thread that then reached a cancellation point
    /// would abort the process, because glibc cannot unwind functions of Rust.
    const CANCELLATION_POINT: bool = true;

    /// Registers `range` for `access`, and pins the pages of the range.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error. The cache turns `EFAULT`, `ENOMEM`, `EPERM` and
    /// `EACCES` into advice, as [`RegisterError`](crate::RegisterError) describes.
    fn register(&self, range: VaRange, access: Self::Access) -> io::Result<Self::Registration>;

    /// Makes the changes of mappings that [`register`](Self::register) would make for `range`. The
    /// cache calls this method before it watches the range. Otherwise the watch would report these
    /// changes, and the cache would register again.
    ///
    /// With fork support, for example, libibverbs marks registered memory `MADV_DONTFORK`. The mark
    /// splits the mapping, which is reported for whole huge pages.
    ///
    /// Returns true if the cache must call [`finish`](Self::finish) after the range was registered,
    /// or could not be. The method must not panic. By default it does nothing.
    fn prepare(&self, range: VaRange) -> bool {
        let _ = range;
        false
    }

    /// Gives up the hold that [`prepare`](Self::prepare) has on `range`. A registration that was
    /// made in between needs the changes of mappings until its own end. The method must not panic.
    fn finish(&self, range: VaRange) {
        let _ = range;
    }

    /// Destroys a registration. The memory of the registration may be unmapped already.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error. After an error, the cache counts the registration as
    /// leaked, and goes on.
    fn deregister(&self, registration: Self::Registration) -> io::Result<()>;
}
