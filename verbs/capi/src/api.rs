//! The functions of `regcache.h`. Their comments are the header's.
#![expect(
    clippy::missing_safety_doc,
    reason = "pointers must be valid by the usual rules of C; the structures state exceptions"
)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::time::Duration;

use regcache::Completion;
use regcache::monitor::{Auto, NoMonitor, Shared, Ummunotify, Userfaultfd, auto};
use regcache_verbs::{Access, MrRegistrar, Pd};

use crate::boundary::{call, hot_call};
use crate::caches::{self, AnyCache, Instance};
use crate::device::{AnyDevice, Callbacks};
use crate::error::Error;
use crate::fast::{self, Given, NotYet};
use crate::guards;
use crate::pools;
use crate::thread_record::ThreadRecord;
use crate::types::{self, Attr, Cache, Device, Guard, Mr, Pool, Stats, ibv_pd};

/// Creates a cache for a protection domain.
///
/// @param pd     The domain. It must stay allocated until the cache is destroyed.
/// @param attr   The attributes; NULL selects all defaults.
/// @param cache  Receives the cache.
/// @return       0, or a negative errno:
///               -EINVAL: `pd` or `cache` is NULL, or an attribute has a bad value.
///               -E2BIG: an attribute is set that this library does not know.
///               -EBADF: `monitor_of` is not the handle of a live cache, or `pool` is
///               not the handle of a live pool.
///               -ESTALE: `monitor_of` or `pool` belongs to the parent process.
///               -ENODEV, -ENOENT, -EACCES, -EPERM: the monitor is not available.
///               -ENOSPC: the process has 1024 caches.
///               -EDEADLK: called with `monitor_of` or `pool` from within a callback.
///               Another errno, such as -ENOMEM or -EMFILE, is from the system.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_create(
    pd: *mut ibv_pd,
    attr: *const Attr,
    cache: *mut *mut Cache,
) -> c_int {
    call(|thread| {
        not_null(cache, "cache")?;
        let pd = NonNull::new(pd).ok_or(Error::Null { what: "pd" })?;
        // SAFETY: the pointer is not null. So, as the header demands, it is a domain that outlives
        // the cache. Only the cache uses this `Pd`.
        let pd = unsafe { Pd::borrowed(pd.cast()) };
        let device = AnyDevice::Verbs(MrRegistrar::new(&pd));
        // SAFETY: `cache` is not null. The caller guarantees the rest of the contract.
        unsafe { create(thread, device, attr, cache) }
    })
}

/// Creates a cache for a device that the application implements.
///
/// @param device  The callbacks, which are copied. `user` must stay valid until the
///                cache is destroyed.
/// @param attr    The attributes; NULL selects all defaults.
/// @param cache   Receives the cache.
/// @return        0, or a negative errno as from regcache_create(). In addition:
///                -EINVAL: `device` or one of its callbacks is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_create_for(
    device: *const Device,
    attr: *const Attr,
    cache: *mut *mut Cache,
) -> c_int {
    call(|thread| {
        not_null(cache, "cache")?;
        // SAFETY: by the header, `device` is null or has as many bytes as its `size` field states.
        let device: Device = unsafe { sized(device, "device") }?;
        let null = |what| Error::Null { what };
        let device = AnyDevice::Callbacks(Callbacks {
            user: device.user,
            reg_mr: device.reg_mr.ok_or(null("reg_mr"))?,
            dereg_mr: device.dereg_mr.ok_or(null("dereg_mr"))?,
        });
        // SAFETY: `cache` is not null. The caller guarantees the rest of the contract.
        unsafe { create(thread, device, attr, cache) }
    })
}

/// Returns a registration that covers a range and allows an access. Makes a
/// registration if none is cached.
///
/// The registration is never stale: it covers the pages that are mapped in the
/// range now. It stays valid for these pages until the guard is put, even if
/// the program unmaps the range.
///
/// @param cache   The cache.
/// @param addr    Start of the range.
/// @param length  Length of the range in bytes, not 0.
/// @param access  An OR of access flags such as REGCACHE_LOCAL_WRITE; 0 allows only
///                local reads.
/// @param mr      Receives the registration, or zeros on an error.
/// @return        0, or a negative errno:
///                -EINVAL: a pointer is NULL, `length` is 0, the range runs past the
///                end of the address space, or the device does not know a flag.
///                -EBADF: `cache` is not a cache, or was destroyed.
///                -ESTALE: `cache` belongs to the parent process.
///                -EDEADLK: called from within a callback.
///                -EFAULT: part of the range is not mapped, or not writable.
///                -ENOMEM: RLIMIT_MEMLOCK is reached, or the device is exhausted.
///                -ENOSPC: the process holds 16777216 guards.
///                Another errno is from the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_get(
    cache: *mut Cache,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
) -> c_int {
    // SAFETY: the caller keeps the contract of this function.
    match unsafe { fast::get(cache.addr() as u64, addr.cast(), length, access, mr) } {
        Ok(()) => 0,
        // SAFETY: as above.
        Err(NotYet::Unknown(Given { cache, access })) => unsafe {
            get(cache, addr, length, access, mr)
        },
        // SAFETY: as above.
        Err(NotYet::Declines(Given { cache, access }, other)) => unsafe {
            decline_and_get(cache, addr, length, access, mr, other)
        },
        // SAFETY: as above.
        Err(NotYet::Contended(Given { cache, access }, entry)) => unsafe {
            share_or_get(cache, addr, length, access, mr, entry)
        },
    }
}

/// Returns a registration as regcache_get() does, if the cache has one. Otherwise
/// fails with -ENOENT, and registers nothing. With this function a program can
/// choose between two ways of sending data: without a copy from memory that is
/// registered already, or with a copy to a registered buffer of its own.
///
/// @param cache   The cache.
/// @param addr    Start of the range.
/// @param length  Length of the range in bytes, not 0.
/// @param access  An OR of access flags; see regcache_get().
/// @param mr      Receives the registration, or zeros on an error.
/// @return        0, or a negative errno:
///                -ENOENT: the cache has no registration that serves the lookup. No
///                other error of this function is -ENOENT.
///                -EINVAL, -EBADF, -ESTALE, -EDEADLK, -ENOSPC: see regcache_get().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_get_if_cached(
    cache: *mut Cache,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
) -> c_int {
    let get = |cache: &AnyCache, addr, length, access| {
        let found = cache.get_if_cached(addr, length, access)?;
        found.ok_or(Error::NotCached)
    };
    // SAFETY: the caller keeps the contract of this function.
    unsafe { look_up(cache, addr, length, access, mr, get) }
}

/// Returns a registration as regcache_get() does, but does not retain a new one: a
/// registration that this function makes is deregistered when its guard is put.
/// It evicts another registration only if the device is full. A program can use
/// this function for memory that it will not use again.
///
/// @param cache   The cache.
/// @param addr    Start of the range.
/// @param length  Length of the range in bytes, not 0.
/// @param access  An OR of access flags; see regcache_get().
/// @param mr      Receives the registration, or zeros on an error.
/// @return        0, or a negative errno as from regcache_get().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_get_unretained(
    cache: *mut Cache,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
) -> c_int {
    let get = AnyCache::get_unretained;
    // SAFETY: the caller keeps the contract of this function.
    unsafe { look_up(cache, addr, length, access, mr, get) }
}

/// Returns a guard to the cache. Call this function once for each guard, from
/// any thread. First poll the completions of all work that uses the
/// registration's keys, because the device accepts the keys even after this
/// call. The following teardown is wrong: a peer's send can overwrite memory
/// that has another owner by then.
///
///     regcache_put(guard);    // A receive with the guard's lkey is still posted.
///     free(buffer);
///     ibv_destroy_qp(qp);     // Call this first, because it ends all work.
///
/// @param guard  The guard.
/// @return       0, or a negative errno:
///               -EINVAL: `guard` is NULL.
///               -EBADF: `guard` was never returned, or was put already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_put(guard: *mut Guard) -> c_int {
    match fast::take(guard.addr() as u64).map(guards::Guard::drop_at_once) {
        Some(Ok(())) => 0,
        Some(Err(guard)) => drop_guard(guard),
        None => put(guard),
    }
}

/// Unlinks all registrations that overlap a range, so that later lookups
/// register the memory again. There is no need to call this function before
/// memory is unmapped.
///
/// A registration that guards hold is deregistered when its last guard is put.
/// This function waits until all unlinked registrations are deregistered.
///
/// @param cache       The cache.
/// @param addr        Start of the range.
/// @param length      Length of the range in bytes, not 0.
/// @param timeout_ms  Longest time to wait, in milliseconds; negative is unlimited.
/// @param held        Receives the number of registrations that are still held. May
///                    be NULL.
/// @return            0, also if some are still held, or a negative errno:
///                    -EINVAL: `cache` or `addr` is NULL, `length` is 0, or the range
///                    runs past the end of the address space.
///                    -EBADF: `cache` is not a cache, or was destroyed.
///                    -ESTALE: `cache` belongs to the parent process.
///                    -EDEADLK: called from within a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_invalidate(
    cache: *mut Cache,
    addr: *const c_void,
    length: usize,
    timeout_ms: c_int,
    held: *mut usize,
) -> c_int {
    call(|thread| {
        not_null(addr.cast_mut(), "addr")?;
        let left = caches::with(thread, cache.addr() as u64, |instance| {
            let unlinked = instance.cache.invalidate(addr.cast(), length)?;
            Ok(wait(unlinked, timeout_ms))
        })?;
        // SAFETY: by the header, the pointer is null or writable.
        unsafe { store(held, left) };
        Ok(0)
    })
}

/// Unlinks all registrations. Apart from the range, this function works as
/// regcache_invalidate() does.
///
/// @param cache       The cache.
/// @param timeout_ms  Longest time to wait, in milliseconds; negative is unlimited.
/// @param held        Receives the number of registrations that are still held. May
///                    be NULL.
/// @return            0, also if some are still held, or a negative errno:
///                    -EINVAL: `cache` is NULL.
///                    -EBADF: `cache` is not a cache, or was destroyed.
///                    -ESTALE: `cache` belongs to the parent process.
///                    -EDEADLK: called from within a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_flush(
    cache: *mut Cache,
    timeout_ms: c_int,
    held: *mut usize,
) -> c_int {
    call(|thread| {
        let left = caches::with(thread, cache.addr() as u64, |instance| {
            Ok(wait(instance.cache.flush()?, timeout_ms))
        })?;
        // SAFETY: by the header, the pointer is null or writable.
        unsafe { store(held, left) };
        Ok(0)
    })
}

/// Changes the limit on the bytes that a cache pins. If the cache pins more, this
/// function evicts idle registrations. A registration in use is evicted when its
/// last guard is put, if the cache still pins too much. A registration that is
/// larger than the limit is not retained.
///
/// @param cache      The cache.
/// @param max_bytes  The limit in bytes. With 0, the cache retains nothing: here, 0
///                   does not select the default.
/// @return           0, or a negative errno:
///                   -EINVAL: `cache` is NULL.
///                   -EBADF: `cache` is not a cache, or was destroyed.
///                   -ESTALE: `cache` belongs to the parent process.
///                   -EDEADLK: called from within a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_set_max_bytes(cache: *mut Cache, max_bytes: u64) -> c_int {
    call(|thread| {
        caches::with(thread, cache.addr() as u64, |instance| {
            instance.cache.set_max_bytes(max_bytes as usize)?;
            Ok(0)
        })
    })
}

/// Changes the limit on the number of registrations that a cache retains, as
/// regcache_set_max_bytes() changes the limit on bytes.
///
/// @param cache        The cache.
/// @param max_entries  The limit. A limit above the one with which the cache was created
///                     is lowered to that one. With 0, the cache retains nothing.
/// @return             0, or a negative errno as from regcache_set_max_bytes().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_set_max_entries(cache: *mut Cache, max_entries: u64) -> c_int {
    call(|thread| {
        caches::with(thread, cache.addr() as u64, |instance| {
            instance.cache.set_max_entries(entries(max_entries))?;
            Ok(0)
        })
    })
}

/// Reads the statistics of a cache. In a child by fork(2), the statistics of a
/// parent's cache are all 0.
///
/// @param cache  The cache.
/// @param stats  Receives the statistics. Fields that this library does not know
///               become 0.
/// @param size   sizeof(struct regcache_stats).
/// @return       0, or a negative errno:
///               -EINVAL: a pointer is NULL, or `size` is less than 8.
///               -EBADF: `cache` is not a cache, or was destroyed.
///               -EDEADLK: called from within a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_query_stats(
    cache: *mut Cache,
    stats: *mut Stats,
    size: usize,
) -> c_int {
    call(|thread| {
        not_null(stats, "stats")?;
        let least = size_of::<u64>();
        if size < least {
            let what = "stats";
            return Err(Error::Small { what, size, least });
        }
        let read = caches::with(thread, cache.addr() as u64, |instance| {
            Ok(Stats::from(instance.cache.stats()))
        })?;
        let known = size.min(size_of::<Stats>());
        let (from, to) = ((&raw const read).cast::<u8>(), stats.cast::<u8>());
        // SAFETY: by the header, `size` bytes at `stats` are writable. The first `known` of them
        // are the fields of this version. The rest belong to a later version of the structure.
        unsafe {
            to.copy_from_nonoverlapping(from, known);
            to.add(known).write_bytes(0, size - known);
        }
        Ok(0)
    })
}

/// Writes a table of the registrations of a cache, for diagnosis. The table has one
/// line for each registration, with its address, size, state and access. A
/// registration that comes or goes during the call may be missing. The format can
/// change, so read it with the eye only.
///
/// @param cache  The cache.
/// @param fd     A file descriptor that is open for writing. The function does not
///               close it.
/// @return       0, or a negative errno:
///               -EINVAL: `cache` is NULL.
///               -EBADF: `cache` is not a cache, or was destroyed; or `fd` is not
///               open for writing.
///               -ESTALE: `cache` belongs to the parent process.
///               -EDEADLK: called from within a callback.
///               Another errno is from write(2). A part of the table may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_dump(cache: *mut Cache, fd: c_int) -> c_int {
    call(|thread| {
        let table = caches::with(thread, cache.addr() as u64, |instance| {
            Ok(instance.cache.snapshot()?.to_string())
        })?;
        let mut rest = table.as_bytes();
        while !rest.is_empty() {
            // SAFETY: the bytes may be read.
            let written = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(written) {
                Ok(written) => rest = &rest[written..],
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(Error::Write(error)),
                },
            }
        }
        Ok(0)
    })
}

/// Returns a file descriptor that polls readable when regcache_reap() has work.
/// Add the descriptor to an event loop, and do not read from it.
/// regcache_destroy() closes the descriptor. In a child by fork(2), this
/// function also returns the descriptor of a parent's cache. The descriptor is
/// of no use there, because regcache_reap() fails with -ESTALE.
///
/// @param cache  The cache.
/// @return       The descriptor, or a negative errno:
///               -EINVAL: `cache` is NULL.
///               -EBADF: `cache` is not a cache, or was destroyed.
///               -EDEADLK: called from within a callback.
///               -EOPNOTSUPP: the monitor has no descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_fd(cache: *mut Cache) -> c_int {
    use std::os::fd::AsRawFd;
    call(|thread| {
        caches::with(thread, cache.addr() as u64, |instance| {
            let monitor = instance.cache.monitor_name();
            let descriptor = instance.cache.descriptor();
            Ok(descriptor
                .ok_or(Error::NoDescriptor { monitor })?
                .as_raw_fd())
        })
    })
}

/// Deregisters memory that was unmapped. Without this call, a cache with
/// REGCACHE_NO_REAPER deregisters such memory only in a later lookup. Call this
/// function when regcache_fd() polls readable.
///
/// @param cache  The cache.
/// @return       0, or a negative errno:
///               -EINVAL: `cache` is NULL.
///               -EBADF: `cache` is not a cache, or was destroyed.
///               -ESTALE: `cache` belongs to the parent process.
///               -EDEADLK: called from within a callback.
///               Another errno is from the monitor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_reap(cache: *mut Cache) -> c_int {
    call(|thread| {
        caches::with(thread, cache.addr() as u64, |instance| {
            instance.cache.reap()?;
            Ok(0)
        })
    })
}

/// Destroys a cache and deregisters its memory. Waits until no other thread is
/// in a call with the cache.
///
/// After success no callback is called any more, and the protection domain may
/// be deallocated. After -EBUSY the cache is unchanged.
///
/// @param cache  The cache.
/// @return       0, or a negative errno:
///               -EBUSY: guards are still held; regcache_error() names their number.
///               -EINVAL: `cache` is NULL.
///               -EBADF: `cache` is not a cache, or was destroyed.
///               -ESTALE: `cache` belongs to the parent process.
///               -EDEADLK: called from within a callback.
///               Another errno is from the monitor or from membarrier(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_destroy(cache: *mut Cache) -> c_int {
    call(|thread| {
        caches::destroy(thread, cache.addr() as u64)?;
        Ok(0)
    })
}

/// Creates a pool: one limit on the bytes that several caches pin together. A cache
/// joins a pool by the attribute `pool`. Each cache also keeps its own limits. A
/// cache that needs room evicts idle registrations: first its own, and then those
/// of the other caches of the pool.
///
/// @param max_bytes  The limit in bytes. With 0, the caches retain nothing.
/// @param pool       Receives the pool.
/// @return           0, or a negative errno:
///                   -EINVAL: `pool` is NULL.
///                   -ENOSPC: the process has 1024 pools.
///                   Another errno, such as -ENOMEM, is from the system.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_pool_create(max_bytes: u64, pool: *mut *mut Pool) -> c_int {
    call(|_| {
        not_null(pool, "pool")?;
        let made = regcache::Pool::new(max_bytes as usize).map_err(Error::SetUpPool)?;
        let handle = pools::enter(made)?;
        // SAFETY: the pointer is not null, so by the header it is writable.
        unsafe { pool.write(ptr::without_provenance_mut(handle as usize)) };
        Ok(0)
    })
}

/// Changes the limit of a pool. If its caches pin more, this function evicts idle
/// registrations. A registration in use is evicted when its last guard is put, if
/// the caches still pin too much.
///
/// @param pool       The pool.
/// @param max_bytes  The limit in bytes. With 0, the caches retain nothing.
/// @return           0, or a negative errno:
///                   -EINVAL: `pool` is NULL.
///                   -EBADF: `pool` is not a pool, or was destroyed.
///                   -ESTALE: `pool` belongs to the parent process.
///                   -EDEADLK: called from within a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_pool_set_max_bytes(pool: *mut Pool, max_bytes: u64) -> c_int {
    call(|thread| {
        pools::with(thread, pool.addr() as u64, |pool| {
            pool.set_max_bytes(max_bytes as usize)?;
            Ok(0)
        })
    })
}

/// Reads the number of bytes that the registrations of all caches of a pool pin.
/// Not counted are registrations that are being made or deregistered, and those
/// that no cache retains.
///
/// @param pool   The pool.
/// @param bytes  Receives the number of bytes, in whole pages.
/// @return       0, or a negative errno as from regcache_pool_set_max_bytes(), and
///               -EINVAL if `bytes` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_pool_bytes(pool: *mut Pool, bytes: *mut u64) -> c_int {
    call(|thread| {
        not_null(bytes, "bytes")?;
        let read = pools::with(thread, pool.addr() as u64, |pool| Ok(pool.bytes()))?;
        // SAFETY: the pointer is not null, so by the header it is writable.
        unsafe { bytes.write(read as u64) };
        Ok(0)
    })
}

/// Destroys a pool. Waits until no other thread is in a call with the pool. The
/// caches that have joined the pool keep its limit, which cannot be changed any
/// more. So a program may destroy the pool before or after its caches.
///
/// @param pool  The pool.
/// @return      0, or a negative errno as from regcache_pool_set_max_bytes(), or from
///              membarrier(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_pool_destroy(pool: *mut Pool) -> c_int {
    call(|thread| {
        pools::destroy(thread, pool.addr() as u64)?;
        Ok(0)
    })
}

/// Returns the name of the monitor that a cache uses. A child by fork(2) may also
/// pass a cache of its parent.
///
/// @param cache  The cache.
/// @return       "ummunotify"; "userfaultfd"; "nothing" for REGCACHE_MONITOR_NONE, with
///               which no registration is cached; or NULL on an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_monitor_name(cache: *mut Cache) -> *const c_char {
    let mut name = ptr::null();
    call(|thread| {
        caches::with(thread, cache.addr() as u64, |instance| {
            name = match instance.cache.monitor_name() {
                "ummunotify" => c"ummunotify",
                "userfaultfd" => c"userfaultfd",
                _ => c"nothing",
            }
            .as_ptr();
            Ok(0)
        })
    });
    name
}

/// Returns the message of the last call that failed in this thread. The message
/// is in English. It describes the error and, if possible, the remedy.
///
/// @return  The message, never NULL. It is valid until the next call that fails in
///          this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_error() -> *const c_char {
    ThreadRecord::mine().map_or(c"out of memory".as_ptr(), ThreadRecord::message)
}

/// Returns the version of the library.
///
/// @return  A string such as "0.1.0".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

fn not_null<T>(pointer: *mut T, what: &'static str) -> Result<(), Error> {
    if pointer.is_null() {
        return Err(Error::Null { what });
    }
    Ok(())
}

fn unknown(what: &'static str, value: c_uint, known: c_uint) -> Error {
    let unknown = u64::from(value & !known);
    let value = u64::from(value);
    Error::Unknown {
        what,
        value,
        unknown,
    }
}

/// Looks a range up by `get`, and stores the registration at `mr`, or zeros on an error.
///
/// # Safety
///
/// `mr` is null or writable.
#[inline(always)]
unsafe fn look_up<E>(
    cache: *mut Cache,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
    get: impl FnOnce(&AnyCache, *const u8, usize, Access) -> Result<guards::Guard, E>,
) -> c_int
where
    Error: From<E>,
{
    let status = hot_call(|thread| {
        not_null(mr, "mr")?;
        not_null(addr.cast_mut(), "addr")?;
        let cache = cache.addr() as u64;
        caches::with(thread, cache, |instance| {
            if access & instance.unknown_access != 0 {
                return Err(unknown("access", access, !instance.unknown_access));
            }
            let access = Access::from_bits_retain(access);
            let guard = get(&instance.cache, addr.cast(), length, access)?;
            let enter = |guard| guards::enter(thread, cache, guard);
            // SAFETY: the pointer is not null, so by the contract it is writable.
            unsafe { fast::hand_over(mr, guard, enter) }?;
            Ok(0)
        })
    });
    if status < 0 && !mr.is_null() {
        // SAFETY: the pointer is not null, so by the contract it is writable.
        unsafe { mr.write_bytes(0, 1) };
    }
    status
}

/// Serves a lookup the long way.
///
/// # Safety
///
/// `mr` is null or writable.
#[cold]
#[inline(never)]
unsafe extern "C" fn get(
    cache: u64,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
) -> c_int {
    // SAFETY: the caller keeps the contract of this function.
    unsafe { look_up(handle(cache), addr, length, access, mr, AnyCache::get) }
}

/// Returns a handle as C programs hold it.
fn handle<T>(number: u64) -> *mut T {
    ptr::without_provenance_mut(number as usize)
}

/// Does the same as [`get`], after the short way has met a guard that does not serve the lookup.
///
/// # Safety
///
/// `mr` is null or writable.
#[cold]
#[inline(never)]
#[expect(improper_ctypes_definitions, reason = "only Rust calls the function")]
unsafe extern "C" fn decline_and_get(
    cache: u64,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
    other: guards::Guard,
) -> c_int {
    fast::decline(other);
    // SAFETY: the caller keeps the contract of this function.
    unsafe { get(cache, addr, length, access, mr) }
}

/// Does the same as [`get`], after the short way has met an entry that several threads use.
///
/// # Safety
///
/// The arguments are those of the short way, and what it has returned.
#[cold]
#[inline(never)]
#[expect(improper_ctypes_definitions, reason = "only Rust calls the function")]
unsafe extern "C" fn share_or_get(
    cache: u64,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
    entry: fast::Contended,
) -> c_int {
    // SAFETY: the caller keeps the contract of this function.
    if unsafe { fast::share(Given { cache, access }, addr.cast(), length, mr, entry) } {
        return 0;
    }
    // SAFETY: as above.
    unsafe { get(cache, addr, length, access, mr) }
}

/// Drops a guard that was taken out of the table. The drop may deregister the registration. It
/// catches the panics of the device.
#[cold]
#[inline(never)]
#[expect(improper_ctypes_definitions, reason = "only Rust calls the function")]
extern "C" fn drop_guard(guard: guards::Guard) -> c_int {
    drop(guard);
    0
}

#[cold]
#[inline(never)]
extern "C" fn put(guard: *mut Guard) -> c_int {
    call(|thread| {
        not_null(guard, "guard")?;
        drop(guards::take(thread, guard.addr() as u64)?);
        Ok(0)
    })
}

/// Converts a limit on entries. The library lowers a limit that is too large.
fn entries(limit: u64) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

/// Waits until the unlinked registrations are deregistered, or until the
/// timeout. Returns the number of registrations that guards still hold.
fn wait(mut unlinked: Completion<AnyDevice, Shared<Auto>>, timeout_ms: c_int) -> usize {
    match u64::try_from(timeout_ms) {
        Ok(0) => {}
        Ok(ms) => drop(unlinked.wait(Duration::from_millis(ms))),
        Err(_) => while !unlinked.wait(Duration::from_secs(3600)) {},
    }
    unlinked.in_use()
}

/// Stores `value`, unless `to` is null.
///
/// # Safety
///
/// `to` is null or writable.
unsafe fn store(to: *mut usize, value: usize) {
    if !to.is_null() {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { to.write(value) };
    }
}

/// Reads a structure whose first field is its size. The structure may be of
/// another version than this library's `T`. It must have at least the fields of
/// the first version. Fields that this library does not know must be 0.
///
/// # Safety
///
/// `from` is null, or points to a `size_t` that is the number of readable bytes
/// from `from` on. Any bytes that C may have written to a `T` are a valid `T`.
unsafe fn sized<T>(from: *const T, what: &'static str) -> Result<T, Error> {
    not_null(from.cast_mut(), what)?;
    // SAFETY: the contract says that `from` points to a `size_t`.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    // All fields of `T` are from the first version, so the size of `T` is the minimum.
    let least = size_of::<T>();
    if size < least {
        return Err(Error::Small { what, size, least });
    }
    // SAFETY: the contract says that `size` bytes are readable.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) };
    if bytes[least..].iter().any(|&byte| byte != 0) {
        return Err(Error::Large { what });
    }
    // SAFETY: at least as many bytes as a `T` has are readable, and C has written a `T`.
    Ok(unsafe { from.read_unaligned() })
}

/// Creates a cache and stores its handle.
///
/// # Safety
///
/// `attr` is null, or has as many bytes as its `size` field states. `cache` is writable.
unsafe fn create(
    thread: &ThreadRecord,
    device: AnyDevice,
    attr: *const Attr,
    cache: *mut *mut Cache,
) -> Result<c_int, Error> {
    let attr = if attr.is_null() {
        // SAFETY: `Attr` consists of integers and pointers, so zeros are a valid value.
        unsafe { std::mem::zeroed() }
    } else {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { sized(attr, "attr") }?
    };
    let unknown_access = device.unknown_access();
    let monitor = monitor(thread, &attr)?;
    let shared = monitor.subscribe().map_err(Error::SetUp)?;
    let known = types::REGCACHE_REVOKE_REMOTE_KEYS | types::REGCACHE_NO_REAPER;
    if attr.flags & !known != 0 {
        return Err(unknown("attr.flags", attr.flags, known));
    }
    let given = |value: u64| (value != 0).then_some(value);
    let mut builder = regcache::Cache::builder(device)
        .revoke_remote_keys(attr.flags & types::REGCACHE_REVOKE_REMOTE_KEYS != 0)
        .background_reaper(attr.flags & types::REGCACHE_NO_REAPER == 0)
        .merge_up_to(attr.merge_up_to as usize);
    if let Some(limit) = given(attr.max_entries) {
        builder = builder.max_entries(entries(limit));
    }
    if let Some(bytes) = given(attr.max_bytes) {
        builder = builder.max_bytes(bytes as usize);
    }
    if let Some(bytes) = given(attr.granularity) {
        builder = builder.granularity(bytes as usize);
    }
    if !attr.pool.is_null() {
        let pool = pools::with(thread, attr.pool.addr() as u64, |pool| Ok(pool.clone()))?;
        builder = builder.pool(&pool);
    }
    let built = builder.monitor(shared).build().map_err(Error::SetUp)?;
    let handle = caches::enter(Instance {
        cache: built,
        monitor,
        unknown_access,
    })?;
    // SAFETY: the caller keeps the contract of this function.
    unsafe { cache.write(ptr::without_provenance_mut(handle as usize)) };
    Ok(0)
}

/// Opens the monitor that `attr` selects, or subscribes to the monitor of
/// another cache.
fn monitor(thread: &ThreadRecord, attr: &Attr) -> Result<Shared<Auto>, Error> {
    if !attr.monitor_of.is_null() {
        return caches::with(thread, attr.monitor_of.addr() as u64, |other| {
            // In a forked child this call fails, so the child does not share its parent's monitor.
            other.cache.reap()?;
            other.monitor.subscribe().map_err(Error::SetUp)
        });
    }
    let monitor = match attr.monitor {
        types::REGCACHE_MONITOR_AUTO => auto(),
        types::REGCACHE_MONITOR_UMMUNOTIFY => {
            Auto::Ummunotify(Ummunotify::open().map_err(Error::Ummunotify)?)
        }
        types::REGCACHE_MONITOR_USERFAULTFD => {
            let monitor = Userfaultfd::open().map_err(Error::Userfaultfd)?;
            Auto::Userfaultfd(Box::new(monitor))
        }
        types::REGCACHE_MONITOR_NONE => Auto::None(NoMonitor),
        other => return Err(unknown("attr.monitor", other, 3)),
    };
    Shared::new(monitor).map_err(Error::SetUp)
}
