//! The functions of `regcache.h`. The comments are the header's.
#![expect(
    clippy::missing_safety_doc,
    reason = "what a pointer has to be is what it has to be anywhere in C, or said of the structure"
)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::time::Duration;

use regcache::Completion;
use regcache::monitor::{Auto, NoMonitor, Shared, Ummunotify, Userfaultfd, auto};
use regcache_verbs::{Access, MrRegistrar, Pd};

use crate::boundary::call;
use crate::caches::{self, Instance};
use crate::device::{AnyDevice, Callbacks};
use crate::error::Error;
use crate::guards;
use crate::thread_record::ThreadRecord;
use crate::types::{self, Attr, Cache, Device, Guard, Mr, Stats, ibv_pd};

/// Makes a cache of registrations in a protection domain. The domain must stay until the cache is destroyed. `attr` may be
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_create(
    pd: *mut ibv_pd,
    attr: *const Attr,
    cache: *mut *mut Cache,
) -> c_int {
    call(|thread| {
        not_null(cache, "cache")?;
        let pd = NonNull::new(pd).ok_or(Error::Null { what: "pd" })?;
        // SAFETY: not null, and so by the header a domain that outlives the cache, which is what uses this `Pd`.
        let pd = unsafe { Pd::borrowed(pd.cast()) };
        let device = AnyDevice::Verbs(MrRegistrar::new(&pd));
        // SAFETY: the caller's.
        unsafe { create(thread, device, attr, cache) }
    })
}

/// Makes a cache of the registrations of another device. What `device` points to is copied; `user` must stay until the
/// cache is destroyed. `attr` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_create_for(
    device: *const Device,
    attr: *const Attr,
    cache: *mut *mut Cache,
) -> c_int {
    call(|thread| {
        not_null(cache, "cache")?;
        // SAFETY: the caller's, null or as long as its size says.
        let device: Device = unsafe { sized(device, "device") }?;
        let null = |what| Error::Null { what };
        let device = AnyDevice::Callbacks(Callbacks {
            user: device.user,
            reg_mr: device.reg_mr.ok_or(null("reg_mr"))?,
            dereg_mr: device.dereg_mr.ok_or(null("dereg_mr"))?,
        });
        // SAFETY: the caller's.
        unsafe { create(thread, device, attr, cache) }
    })
}

/// Finds a registration that covers the `length` bytes at `addr` and allows `access`, or makes one: never a stale one. It
/// covers the memory that is mapped there now, and no other, until the guard is put. Fills `*mr` in; on an
/// error with zeros.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_get(
    cache: *mut Cache,
    addr: *const c_void,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
) -> c_int {
    let status = call(|thread| {
        not_null(mr, "mr")?;
        not_null(addr.cast_mut(), "addr")?;
        let cache = cache.addr() as u64;
        caches::with(thread, cache, |instance| {
            if access & instance.unknown_access != 0 {
                return Err(unknown("access", access, !instance.unknown_access));
            }
            let access = Access::from_bits_retain(access);
            let guard = instance.cache.get(addr.cast(), length, access)?;
            let (range, registered) = (guard.range(), guard.registration());
            let found = Mr {
                guard: ptr::null_mut(),
                lkey: registered.lkey,
                rkey: registered.rkey,
                registration: registered.registration,
                addr: ptr::without_provenance_mut(range.start()),
                length: range.len(),
            };
            let handle = guards::enter(thread, cache, guard)?;
            let guard = ptr::without_provenance_mut(handle as usize);
            // SAFETY: not null, and so the caller's to be written.
            unsafe { mr.write(Mr { guard, ..found }) };
            Ok(0)
        })
    });
    if status < 0 && !mr.is_null() {
        // SAFETY: as above.
        unsafe { mr.write_bytes(0, 1) };
    }
    status
}

/// Ends the use of a registration, once the transfers that were posted with it are complete. In any thread. Each guard is to
/// be put once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_put(guard: *mut Guard) -> c_int {
    call(|thread| {
        not_null(guard, "guard")?;
        drop(guards::take(thread, guard.addr() as u64)?);
        Ok(0)
    })
}

/// Gives up all registrations that cover any of the `length` bytes at `addr`: what is looked up from now on is registered
/// anew. There is no need to call this before memory is unmapped. Those that guards hold go with their last guard, for
/// which this waits `timeout_ms` milliseconds, or for ever if that is negative. How many are held even then is
/// in `*held`, which may be NULL.
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
            let given_up = instance.cache.invalidate(addr.cast(), length)?;
            Ok(wait(given_up, timeout_ms))
        })?;
        // SAFETY: the caller's.
        unsafe { say(held, left) };
        Ok(0)
    })
}

/// Gives up all registrations, as regcache_invalidate() does those of a range.
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
        // SAFETY: the caller's.
        unsafe { say(held, left) };
        Ok(0)
    })
}

/// Reads the counters. `size` is sizeof(struct regcache_stats).
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
            Ok(instance.cache.stats())
        })?;
        let read = Stats {
            hits: read.hits,
            misses: read.misses,
            uncached: read.uncached,
            invalidations: read.invalidations,
            spurious: read.spurious,
            evictions: read.evictions,
            merges: read.merges,
            retries: read.retries,
            leaked: read.leaked,
            entries: read.entries as u64,
            bytes: read.bytes as u64,
            unreleased: read.unreleased as u64,
            unreleased_bytes: read.unreleased_bytes as u64,
        };
        let known = size.min(size_of::<Stats>());
        let (from, to) = ((&raw const read).cast::<u8>(), stats.cast::<u8>());
        // SAFETY: the caller has given `size` bytes to be written, `known` of which are ours, and what
        // is beyond is of a later version.
        unsafe {
            to.copy_from_nonoverlapping(from, known);
            to.add(known).write_bytes(0, size - known);
        }
        Ok(0)
    })
}

/// A descriptor that polls readable when regcache_reap() has something to do, for an event loop. There is nothing to be read
/// from it; it is the cache's, and goes with it. -EOPNOTSUPP if the monitor has none.
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

/// Releases what the monitor reports to have been unmapped, without waiting for a lookup to do it. Of use with
/// REGCACHE_NO_REAPER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_reap(cache: *mut Cache) -> c_int {
    call(|thread| {
        caches::with(thread, cache.addr() as u64, |instance| {
            instance.cache.reap()?;
            Ok(0)
        })
    })
}

/// Destroys the cache and all its registrations; from then on no callback is called, and the protection domain can be
/// deallocated. -EBUSY if guards are still out: the cache then stays, and regcache_error() says how many. Waits for other threads
/// that are in a call with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_destroy(cache: *mut Cache) -> c_int {
    call(|thread| {
        caches::destroy(thread, cache.addr() as u64)?;
        Ok(0)
    })
}

/// The monitor that the cache uses: "ummunotify", "userfaultfd" or "nothing", which is that nothing is cached. NULL if this is
/// no cache.
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

/// What the last call that failed in this thread failed for, in English and with advice. Never NULL. Stays as it is until the
/// next call that fails in this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regcache_error() -> *const c_char {
    ThreadRecord::mine().map_or(c"out of memory".as_ptr(), ThreadRecord::message)
}

/// The library's version, such as "0.1.0".
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

/// Waits, and says how many are left.
fn wait(mut given_up: Completion<AnyDevice, Shared<Auto>>, timeout_ms: c_int) -> usize {
    match u64::try_from(timeout_ms) {
        Ok(0) => {}
        Ok(ms) => drop(given_up.wait(Duration::from_millis(ms))),
        Err(_) => while !given_up.wait(Duration::from_secs(3600)) {},
    }
    given_up.in_use()
}

/// # Safety
///
/// `to` is null or can be written.
unsafe fn say(to: *mut usize, value: usize) {
    if !to.is_null() {
        // SAFETY: the caller's promise.
        unsafe { to.write(value) };
    }
}

/// A structure that begins with its size, in a version of the caller's: what it does not have is 0, and what we do not know has to
/// be.
///
/// # Safety
///
/// `from` is null, or points to a `size_t` that says how many bytes can be read there; and a `T` of zeros is a value.
unsafe fn sized<T>(from: *const T, what: &'static str) -> Result<T, Error> {
    not_null(from.cast_mut(), what)?;
    // SAFETY: a `size_t` by the caller's promise.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    // All that the first version has.
    let least = size_of::<T>();
    if size < least {
        return Err(Error::Small { what, size, least });
    }
    // SAFETY: so many bytes can be read, by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) };
    if bytes[least..].iter().any(|&byte| byte != 0) {
        return Err(Error::Large { what });
    }
    // SAFETY: at least a `T`'s bytes, as C wrote them.
    Ok(unsafe { from.read_unaligned() })
}

/// # Safety
///
/// `attr` is null or as its size says, `cache` can be written.
unsafe fn create(
    thread: &ThreadRecord,
    device: AnyDevice,
    attr: *const Attr,
    cache: *mut *mut Cache,
) -> Result<c_int, Error> {
    let attr = if attr.is_null() {
        // SAFETY: integers and a pointer.
        unsafe { std::mem::zeroed() }
    } else {
        // SAFETY: the caller's promise.
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
    if let Some(entries) = given(attr.max_entries) {
        builder = builder.max_entries(u32::try_from(entries).unwrap_or(u32::MAX));
    }
    if let Some(bytes) = given(attr.max_bytes) {
        builder = builder.max_bytes(bytes as usize);
    }
    if let Some(bytes) = given(attr.granularity) {
        builder = builder.granularity(bytes as usize);
    }
    let built = builder.monitor(shared).build().map_err(Error::SetUp)?;
    let handle = caches::enter(Instance {
        cache: built,
        monitor,
        unknown_access,
    })?;
    // SAFETY: the caller's promise.
    unsafe { cache.write(ptr::without_provenance_mut(handle as usize)) };
    Ok(0)
}

/// A share in the monitor that is asked for.
fn monitor(thread: &ThreadRecord, attr: &Attr) -> Result<Shared<Auto>, Error> {
    if !attr.monitor_of.is_null() {
        return caches::with(thread, attr.monitor_of.addr() as u64, |other| {
            // Refused in a forked child.
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
