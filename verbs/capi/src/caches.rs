//! The caches of a process.
//!
//! A cache's callbacks may run in any thread, until the cache is destroyed. Three kinds of threads
//! deregister without a mark that they use the cache: one that puts a last guard, the reaper, and
//! one that makes room in a pool through another cache. [`destroy`] takes the cache out of the
//! table, and then waits until the cache has no registration left. A registration that another
//! thread deregisters is left until its callback has returned. No thread can add a registration,
//! because no thread finds the cache. So no callback runs after [`destroy`].

use std::time::Duration;

use regcache::internal;
use regcache::monitor::{Auto, Shared};
use regcache::{Cache, Uncancelled};

use crate::device::AnyDevice;
use crate::error::Error;
use crate::guards;
use crate::table::{Object, Table, Using};
use crate::thread_record::ThreadRecord;

/// The maximum number of caches in a process.
pub(crate) const MOST: usize = 1024;

/// The maximum time that a fork waits until other threads have deregistered idle registrations.
const BEFORE_FORK: Duration = Duration::from_millis(100);

pub(crate) type AnyCache = Cache<AnyDevice, Shared<Auto>>;

/// A cache, with the additional state that the C functions need.
pub(crate) struct Instance {
    pub(crate) cache: AnyCache,
    /// A subscriber of the cache's monitor that watches nothing. Other caches subscribe through it.
    pub(crate) monitor: Shared<Auto>,
    /// Access flags that the device does not know.
    pub(crate) unknown_access: u32,
}

impl Object for Instance {
    const KIND: &'static str = "cache";

    type AtOnce = AtOnce;

    fn at_once(&self) -> &Self::AtOnce {
        self.cache.at_once()
    }
}

static CACHES: Table<Instance, 0, MOST> = Table::new();

/// Prepares the table before a thread gets its record.
pub(crate) fn prepare() {
    CACHES.prepare();
}

/// Enters a cache into the table, and returns the cache's handle.
pub(crate) fn enter(instance: Instance) -> Result<u64, Error> {
    // The library is never unloaded.
    internal::before_each(before_fork);
    CACHES.enter(instance)
}

/// Deregisters the memory that no guard holds, before the process forks. Otherwise the kernel would
/// copy the memory for the child during the fork. With fork support, libibverbs would even hide it
/// from the child.
///
/// A signal handler may fork while its thread is in a call of the library, and a callback may fork.
/// Then nothing is done, because the thread may hold a lock. If another thread holds one, that
/// thread is running and will release it.
extern "C" fn before_fork() {
    if Uncancelled::is_begun() {
        return;
    }
    let _uncancelled = Uncancelled::begin();
    let Some(thread) = ThreadRecord::mine() else {
        return;
    };
    CACHES.each(thread, |instance| instance.cache.flush_idle(BEFORE_FORK));
}

/// Calls `action` with a cache. The cache is not destroyed before `action` returns.
#[inline]
pub(crate) fn with<T>(
    thread: &ThreadRecord,
    handle: u64,
    action: impl FnOnce(&Instance) -> Result<T, Error>,
) -> Result<T, Error> {
    CACHES.with(thread, handle, action)
}

/// The part of a cache that serves simple hits.
pub(crate) type AtOnce = internal::AtOnce<AnyDevice, Shared<Auto>>;

/// Returns the part of a cache that [`use_at_once`] has returned.
///
/// # Safety
///
/// This thread still uses the cache.
pub(crate) unsafe fn used_at_once(handle: u64) -> &'static AtOnce {
    // SAFETY: the caller keeps the contract.
    unsafe { CACHES.used_at_once(handle) }
}

/// Returns a part of a cache, and a mark that the thread uses the cache. The cache is not destroyed
/// before the mark is dropped. Returns `None` if the long way has to find the cache, or to find out
/// why not.
#[inline(always)]
pub(crate) fn use_at_once(
    thread: &ThreadRecord,
    handle: u64,
) -> Option<(Using<'_>, &'static AtOnce)> {
    CACHES.use_at_once(thread, handle)
}

/// Takes a cache out of the table and drops it. Fails if guards of the cache are still held.
pub(crate) fn destroy(thread: &ThreadRecord, handle: u64) -> Result<(), Error> {
    // These checks come before anything changes. So a destroy that fails here unlinks no entry, and
    // makes no concurrent lookup fail. A forked child may not touch its parent's cache.
    with(thread, handle, |instance| {
        instance.cache.check_process()?;
        none_out(handle, instance)
    })?;
    let instance = CACHES.remove(handle, |instance| none_out(handle, instance))?;
    wait_for_deregistrations(&instance)
}

/// Fails if guards of the cache are still held.
fn none_out(handle: u64, instance: &Instance) -> Result<(), Error> {
    match guards::of(handle, &instance.cache) {
        0 => Ok(()),
        held => Err(Error::Held { held }),
    }
}

/// Flushes the cache, and waits until the other threads that deregister for the cache are done.
fn wait_for_deregistrations(instance: &Instance) -> Result<(), Error> {
    let mut flushed = instance.cache.flush()?;
    while !flushed.wait(Duration::from_secs(3600)) {}
    Ok(())
}
