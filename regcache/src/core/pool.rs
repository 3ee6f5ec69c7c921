//! [`Pool`]: one limit on pinned bytes for several caches of a process.
//!
//! Each cache of the pool charges its bytes to the pool as it does to its own budget (`budget.rs`).
//! A miss reserves its bytes in the pool before it publishes its registration. If the pool has no
//! room, the miss evicts idle entries: first those of its own cache, then those of the others.
//!
//! An entry that is leaving (`budget.rs`) leaves its room to others. So the caches can pin more
//! than the limit. In that case the miss deregisters dead entries, in the same order.
//!
//! A thread holds the lock of one cache at most. The pool itself is a counter and a list of caches,
//! and no lock of a cache is held while the list is locked. So the caches cannot deadlock.
//!
//! A forked child has a copy of the pool. The list may have been locked when the process forked,
//! and the bytes are those of the parent's registrations. So a child cannot use its parent's pools.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::Error;
use crate::sys::fork::ForkMark;

/// One limit on the bytes that several caches pin together.
///
/// Each cache also keeps its own limits. A cache that needs room evicts idle entries of its own
/// first, and then those of the other caches. If all entries are in use, the registration is not
/// cached.
///
/// A forked child cannot use its parent's pools.
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
/// use regcache::Pool;
///
/// let pool = Pool::new(1 << 30)?;
/// let first = Cache::builder(Device).pool(&pool).build()?;
/// let second = Cache::builder(Device).pool(&pool).build()?;
/// assert!(pool.bytes() <= pool.max_bytes());
/// # Ok::<_, io::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    fork: ForkMark,
    max_bytes: AtomicUsize,
    /// The bytes of all entries that are not leaving.
    bytes: AtomicUsize,
    /// The bytes of the entries that are leaving.
    leaving: AtomicUsize,
    members: Mutex<Vec<Weak<dyn Member>>>,
}

/// A cache of a pool.
pub(crate) trait Member: Send + Sync {
    /// Evicts one idle entry and deregisters it. Returns false if no entry is idle.
    fn evict_one(&self) -> bool;

    /// Deregisters one dead entry. Returns false if there is none.
    fn deregister_one(&self) -> bool;
}

impl Pool {
    /// Makes a pool whose caches may pin `max_bytes` bytes together, counted in whole pages.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it refuses a page under `MADV_WIPEONFORK`, by which the pool
    /// recognises a forked child.
    pub fn new(max_bytes: usize) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            fork: ForkMark::new(1)?,
            max_bytes: AtomicUsize::new(max_bytes),
            bytes: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            members: Mutex::default(),
        })))
    }

    /// Returns the limit.
    #[must_use]
    pub fn max_bytes(&self) -> usize {
        self.0.max_bytes.load(Ordering::Relaxed)
    }

    /// Changes the limit. If the caches pin more than that, idle entries are evicted. An entry in
    /// use is evicted when its last guard is dropped, if the caches still pin too much.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn set_max_bytes(&self, max_bytes: usize) -> Result<(), Error> {
        self.check_process()?;
        self.0.max_bytes.store(max_bytes, Ordering::Relaxed);
        while !self.is_kept() && self.members().iter().any(|it| it.evict_one()) {}
        Ok(())
    }

    /// Returns true if the entries of all caches are within the limit.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.bytes.load(Ordering::Relaxed) <= self.max_bytes()
    }

    /// Returns the bytes that the entries of all caches pin. Registrations that are being made or
    /// deregistered, and uncached ones, are not counted. Returns 0 in a forked child.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.0.fork.in_child() {
            return 0;
        }
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Returns an error in a forked child, in which the pool cannot be used. The call has no other
    /// effect.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Forked`] in a forked child.
    pub fn check_process(&self) -> Result<(), Error> {
        match self.0.fork.in_child() {
            true => Err(Error::Forked),
            false => Ok(()),
        }
    }

    /// Adds a cache of this process. The caller must have called
    /// [`check_process`](Self::check_process). Loom's reference counts cannot point to a trait
    /// object, so no cache joins a pool under loom.
    #[cfg(not(loom))]
    pub(crate) fn join(&self, member: Weak<dyn Member>) {
        let mut members = self.lock_members();
        members.retain(|it| it.strong_count() > 0);
        members.push(member);
    }

    /// Reserves room for `bytes` bytes, and evicts idle entries for it: those of `own` first.
    /// Returns `None` if the entries in use leave no room.
    pub(crate) fn reserve(&self, bytes: usize, own: &dyn Member) -> Option<Share> {
        if bytes > self.max_bytes() {
            return None;
        }
        loop {
            let fits = |used: usize| {
                let sum = used.checked_add(bytes)?;
                (sum <= self.max_bytes()).then_some(sum)
            };
            let (order, used) = (Ordering::Relaxed, &self.0.bytes);
            if used.fetch_update(order, order, fits).is_ok() {
                self.deregister_excess(own);
                return Some(Share {
                    pool: self.clone(),
                    bytes,
                });
            }
            if !(own.evict_one() || self.members().iter().any(|it| it.evict_one())) {
                return None;
            }
        }
    }

    /// Deregisters dead entries until the caches pin no more than the limit, or have no dead
    /// entries: first those of `own`.
    fn deregister_excess(&self, own: &dyn Member) {
        let exceeds = || {
            let leaving = self.0.leaving.load(Ordering::Relaxed);
            leaving > 0 && self.bytes().saturating_add(leaving) > self.max_bytes()
        };
        while exceeds()
            && (own.deregister_one() || self.members().iter().any(|it| it.deregister_one()))
        {
        }
    }

    /// Notes that an entry is leaving, and leaves its room to others.
    pub(crate) fn leave(&self, bytes: usize) {
        self.0.leaving.fetch_add(bytes, Ordering::Relaxed);
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that an entry that was leaving is deregistered.
    pub(crate) fn left(&self, bytes: usize) {
        self.0.leaving.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Releases the room of an entry that was not leaving.
    pub(crate) fn release(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn lock_members(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Member>>> {
        let members = self.0.members.lock();
        members.unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> Vec<Arc<dyn Member>> {
        self.lock_members()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("max_bytes", &self.max_bytes())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Room in a pool that is reserved for a registration. Dropping it releases the room.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Pool,
    bytes: usize,
}

impl Share {
    /// Leaves the room to the entry of the registration, whose budget releases it.
    pub(crate) fn hand_over(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.release(self.bytes);
    }
}
