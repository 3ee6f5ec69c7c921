//! [`Registrar`]: the interface between the cache and a device.
//!
//! A registrar makes and destroys registrations for one protection domain: `ibv_mr`s, io_uring
//! fixed buffers, or anything else that pins pages and has a key. The cache knows no more of a
//! device than the two traits in this file.

use std::fmt::Debug;
use std::io;

use crate::range::VaRange;

/// The operations that a registration allows.
///
/// The access is part of the cache's key. A registration that allows more than was asked for may
/// serve a lookup. [`Access::serves`] decides what "more" means: for verbs, a superset of the
/// permission flags and the same ordering flags.
pub trait Access: Copy + Eq + Debug + Send + Sync + 'static {
    /// Returns true if a registration made with `self` can replace one made with `wanted`.
    ///
    /// The relation must be reflexive and transitive. The method is called under the cache's lock,
    /// so it must not panic.
    fn serves(self, wanted: Self) -> bool;

    /// Returns true if the device may write to the memory. The cache uses the answer to explain a
    /// refusal.
    fn writes(self) -> bool {
        true
    }

    /// Returns true if a registration has a key by which a peer reaches the memory.
    /// [`Builder::revoke_remote_keys`](crate::Builder::revoke_remote_keys) concerns such access.
    fn is_remote(self) -> bool {
        false
    }
}

/// The access of devices that have a single kind.
impl Access for () {
    fn serves(self, (): ()) -> bool {
        true
    }
}

/// Makes and destroys registrations.
///
/// The cache calls both methods without holding a lock. The calling thread is one that calls into
/// the cache or drops a guard, or the cache's own [reaper](crate::Builder::background_reaper), in
/// which all signals are blocked. The methods must not call back into the same cache.
///
/// A panic in `register` propagates to the caller of the lookup. A panic in `deregister` is caught,
/// and the registration is counted as leaked.
///
/// # Safety
///
/// The cache hands a registration to callers as access to the memory at `range`. The implementer
/// promises that
///
/// - a registration covers all of `range` with at least `access`, through the pages that were
///   mapped there at some moment between call and return of [`register`](Self::register), and
///   keeps those pages from being reused until it is deregistered;
/// - once [`deregister`](Self::deregister) has returned `Ok`, the device no longer reaches memory
///   through that registration.
///
/// These are the pages that `get_user_pages` finds, and monitors report the changes of no others. A
/// registrar may also register addresses at which a device has its own memory, as `ibv_reg_mr` does
/// with nvidia-peermem. The sound monitors refuse to watch such a range: it is not mapped, may not
/// be accessed, or is mapped by a driver without pages. The cache then returns a registration that
/// it does not retain. An ummunotify driver that lacks `REGISTER_REGION2` cannot refuse such a
/// range, so that registrar must not be used with it.
pub unsafe trait Registrar: Send + Sync + 'static {
    /// The access to register memory for.
    type Access: Access;

    /// The device's registration, which has what a caller needs to post a transfer.
    type Registration: Send + Sync + 'static;

    /// Registers `range` for `access`, pinning its pages.
    ///
    /// # Errors
    ///
    /// The operating system's error. The cache turns `EFAULT`, `ENOMEM`, `EPERM` and `EACCES` into
    /// advice, as [`RegisterError`](crate::RegisterError) describes.
    fn register(&self, range: VaRange, access: Self::Access) -> io::Result<Self::Registration>;

    /// Destroys a registration. Its memory may be unmapped already.
    ///
    /// # Errors
    ///
    /// The operating system's error. The cache then counts the registration as leaked, and goes on.
    fn deregister(&self, registration: Self::Registration) -> io::Result<()>;
}
