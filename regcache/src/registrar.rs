//! [`Registrar`]: what the cache caches for.
//!
//! A registrar makes and destroys registrations for one protection domain: `ibv_mr`s, io_uring
//! fixed buffers, whatever pins pages and hands out a key. The cache knows no more of a device than
//! these two traits.

use std::fmt::Debug;
use std::io;

use crate::VaRange;

/// What a registration allows the device to do.
///
/// Part of the cache's key. A lookup may be served by a registration that allows more than was
/// asked, and [`Access::serves`] decides what "more" means: for verbs, a superset of the permission
/// flags and the same ordering flags.
pub trait Access: Copy + Eq + Debug + Send + Sync + 'static {
    /// True if a registration made with `self` can stand in for one made with `wanted`.
    ///
    /// Must be reflexive and transitive, and must not panic: it is called under the cache's lock.
    fn serves(self, wanted: Self) -> bool;

    /// True if the device may write to the memory. Only to explain a refusal.
    fn writes(self) -> bool {
        true
    }

    /// True if a registration gives out a key with which somebody else reaches the memory. For
    /// [`Builder::revoke_remote_keys`](crate::Builder::revoke_remote_keys).
    fn is_remote(self) -> bool {
        false
    }
}

/// For devices with a single kind of access.
impl Access for () {
    fn serves(self, (): ()) -> bool {
        true
    }
}

/// Makes and destroys registrations.
///
/// Both methods are called without any lock of the cache held, from whichever thread calls into the
/// cache or drops a guard, and from the cache's own thread that
/// [reaps](crate::Builder::background_reaper), in which all signals are blocked. They must not call back
/// into the same cache. A panic in `register` is the caller's of the lookup; one in `deregister` is
/// caught, and the registration counted as leaked.
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
/// These pages are those that `get_user_pages` finds, and monitors announce changes of no others. A
/// registrar may also register addresses behind which a device has memory of its own, as `ibv_reg_mr`
/// does with nvidia-peermem loaded. The sound monitors refuse to watch ranges that are not mapped, that
/// may not be accessed, or that a driver maps without pages, and the cache hands out a registration
/// that it does not keep. An ummunotify driver that is older than its `REGISTER_REGION2` cannot refuse
/// them, so that such a registrar must not be used with one.
pub unsafe trait Registrar: Send + Sync + 'static {
    /// The access asked for when registering.
    type Access: Access;

    /// The handle the device gives out: what a caller needs to post a transfer.
    type Registration: Send + Sync + 'static;

    /// Registers `range` for `access`, pinning its pages.
    ///
    /// # Errors
    ///
    /// The operating system's error. The cache turns `EFAULT`, `ENOMEM`, `EPERM` and `EACCES` into
    /// advice; see [`RegisterError`](crate::RegisterError).
    fn register(&self, range: VaRange, access: Self::Access) -> io::Result<Self::Registration>;

    /// Destroys a registration. Its memory may already be unmapped.
    ///
    /// # Errors
    ///
    /// The operating system's error. The registration is then considered leaked: the cache counts
    /// it and goes on.
    fn deregister(&self, registration: Self::Registration) -> io::Result<()>;
}
