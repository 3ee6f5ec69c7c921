//! The functions of UCX that this library interposes.
//!
//! `ucs_rcache_get` and `ucs_pgtable_lookup` are on the hit path of UCX. Each jumps through a
//! pointer. The pointer leads to UCX's function until a cache needs the gate.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::mem;
use std::sync::atomic::{AtomicPtr, Ordering};

use regcache::error::chain;

use crate::abi::{self, Callback, EVENT_FLAGS, OK, Shape, Status, UNSUPPORTED, VM_UNMAPPED};
use crate::cache::{self, AnyParams, Cache, Handler};
use crate::counts::{COUNTS, add_one};
use crate::driver::Driver;
use crate::notice::notice_once;
use crate::real::{self, Get, GetBefore17, TableLookup};
use crate::registry;

/// A function of UCX on the hit path.
struct Jump {
    /// The function to which the interposed function jumps.
    target: AtomicPtr<c_void>,
    /// UCX's function. It is set before `target` changes for the first time.
    real: AtomicPtr<c_void>,
}

static GET: Jump = Jump::new(first_get as *mut c_void);
static TABLE_LOOKUP: Jump = Jump::new(first_table_lookup as *mut c_void);

impl Jump {
    const fn new(first: *mut c_void) -> Self {
        Self {
            target: AtomicPtr::new(first),
            real: AtomicPtr::new(first),
        }
    }

    /// Makes the function jump to `target`.
    fn lead(&self, real: *mut c_void, target: *mut c_void) {
        self.real.store(real, Ordering::Relaxed);
        self.target.store(target, Ordering::Release);
    }

    /// Makes the function jump to UCX's function, unless the target is no longer `first`.
    fn lead_to_real(&self, real: *mut c_void, first: *mut c_void) {
        self.real.store(real, Ordering::Relaxed);
        let (release, relaxed) = (Ordering::Release, Ordering::Relaxed);
        // A failed exchange means that another thread has changed the target.
        let _ = self.target.compare_exchange(first, real, release, relaxed);
    }
}

/// Returns the function that a pointer of a [`Jump`] leads to. The acquire load of `target` makes
/// `real` visible. It needs no instruction on x86-64.
macro_rules! function {
    ($jump:ident.$which:ident as $type:ty) => {
        // SAFETY: the pointers of this jump are always those of functions of this type.
        unsafe { mem::transmute::<*mut c_void, $type>($jump.$which.load(Ordering::Acquire)) }
    };
}

/// The calls that UCX has made while this thread creates a cache.
#[derive(Clone, Copy, Default)]
struct Seen {
    table: Option<usize>,
    handler: Option<Handler>,
}

thread_local! {
    /// `Some` while this thread creates a cache that this library will serve.
    static CREATING: Cell<Option<Seen>> = const { Cell::new(None) };
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ucs_rcache_create(
    params: *const c_void,
    name: *const c_char,
    stats: *mut c_void,
    rcache_p: *mut *mut c_void,
) -> Status {
    let (Some(create), Some(destroy), Some(get), Some(table_lookup)) = (
        real::create(),
        real::destroy(),
        real::get(),
        real::table_lookup(),
    ) else {
        notice_once!("libucs.so.0 is not found, so UCX has no registration cache");
        return UNSUPPORTED;
    };
    // SAFETY: UCX has passed these arguments for its own function.
    let theirs = || unsafe { create(params, name, stats, rcache_p) };
    // SAFETY: UCX passes the parameters of its own version.
    let Some((shape, cache, changed)) = (unsafe { prepare(params) }) else {
        return theirs();
    };
    CREATING.set(Some(Seen::default()));
    // SAFETY: as above. The changed parameters point to the operations and the context, which are
    // in `cache`.
    let status = unsafe { create(changed.as_ptr(), name, stats, rcache_p) };
    let seen = CREATING.take().unwrap_or_default();
    if status != OK {
        return status;
    }
    // SAFETY: the function has returned a cache.
    let rcache = unsafe { *rcache_p };
    match (seen.table, seen.handler) {
        (Some(table), Some(handler)) if handler.arg == rcache => {
            let table = shape.has_quick_lookups.then_some(table);
            cache.set_callback(handler);
            let checked = if shape.has_alignments {
                checked_get_before_17 as *mut c_void
            } else {
                checked_get as *mut c_void
            };
            GET.lead(get as *mut c_void, checked);
            if table.is_some() {
                let checked = checked_table_lookup as *mut c_void;
                TABLE_LOOKUP.lead(table_lookup as *mut c_void, checked);
            }
            add_one(&COUNTS.caches);
            if registry::insert(rcache.addr(), table, cache).is_ok() {
                return OK;
            }
            notice_once!("UCX has too many caches: the later ones keep UCX's own monitor");
        }
        _ => notice_once!(
            "this build of UCX does not let its functions be interposed, so it keeps its own \
             monitor. {}",
            INSTEAD
        ),
    }
    // SAFETY: the cache has just been created, and no other code has it.
    unsafe { destroy(rcache) };
    theirs()
}

/// The way that serves every version of UCX.
const INSTEAD: &str = "Use `regcache run --stack ucx` instead of this library, or preload \
                       librcpreload.so with UCX_RCACHE_ENABLE=n, UCX_IB_REG_METHODS=direct and \
                       REGCACHE_REMOTE=keep";

/// Prepares to create a cache. Returns `None` if the cache keeps UCX's own monitor.
///
/// # Safety
///
/// `params` points to the `ucs_rcache_params_t` of the UCX that is loaded.
unsafe fn prepare(params: *const c_void) -> Option<(Shape, Box<Cache>, AnyParams)> {
    let Some(version) = real::version() else {
        notice_once!(
            "libucp is not loaded, so UCX keeps its own monitor. {}",
            INSTEAD
        );
        return None;
    };
    let Some(shape) = abi::shape(version) else {
        let (major, minor, release) = version;
        notice_once!(
            "UCX {major}.{minor}.{release} is unknown, so it keeps its own monitor. {}",
            INSTEAD
        );
        return None;
    };
    // SAFETY: the caller keeps the contract of this function.
    if unsafe { cache::events(shape, params) } & VM_UNMAPPED == 0 {
        // The cache does not hold memory of this process.
        return None;
    }
    let monitor = match Driver::open() {
        Ok(monitor) => monitor,
        Err(error) => {
            notice_once!(
                "UCX keeps its own monitor, which does not detect every change: {}",
                chain(&error)
            );
            return None;
        }
    };
    // SAFETY: the caller keeps the contract of this function.
    match unsafe { Cache::prepare(shape, params, monitor) } {
        Ok((cache, changed)) => Some((shape, cache, changed)),
        Err(error) => {
            notice_once!("UCX keeps its own monitor, which does not detect every change: {error}");
            None
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ucs_rcache_destroy(rcache: *mut c_void) {
    let cache = registry::remove(rcache.addr());
    if let Some(destroy) = real::destroy() {
        // SAFETY: UCX has passed this argument for its own function.
        unsafe { destroy(rcache) };
    }
    // The monitor of a child's copy belongs to the parent, which still uses it.
    if let Some(cache) = cache
        && cache.gate.in_child()
    {
        mem::forget(cache);
    }
}

/// Before UCX 1.17, callers pass six arguments. The seventh is then the word above the six in the
/// caller's frame. That word can be read, and UCX's function ignores it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ucs_rcache_get(
    rcache: *mut c_void,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
    g: usize,
) -> Status {
    let target = function!(GET.target as Get);
    // SAFETY: UCX has passed these arguments for its own function.
    unsafe { target(rcache, b, c, d, e, f, g) }
}

unsafe extern "C" fn first_get(
    rcache: *mut c_void,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
    g: usize,
) -> Status {
    let Some(real) = real::get() else {
        return UNSUPPORTED;
    };
    GET.lead_to_real(real as *mut c_void, first_get as *mut c_void);
    // SAFETY: UCX has passed these arguments for its own function.
    unsafe { real(rcache, b, c, d, e, f, g) }
}

/// Defines a checked `ucs_rcache_get`. The two versions differ in the number of arguments, so that
/// each compiles to a jump to UCX's function.
macro_rules! checked_get {
    ($checked:ident $searched:ident as $type:ident ($($argument:ident)*)) => {
        unsafe extern "C" fn $checked(rcache: *mut c_void, $($argument: usize),*) -> Status {
            if registry::first_is_open_by_rcache(rcache.addr()) {
                let real = function!(GET.real as $type);
                // SAFETY: UCX has passed these arguments for its own function.
                unsafe { real(rcache, $($argument),*) }
            } else {
                // SAFETY: as above.
                unsafe { $searched(rcache, $($argument),*) }
            }
        }

        #[inline(never)]
        unsafe extern "C" fn $searched(rcache: *mut c_void, $($argument: usize),*) -> Status {
            let real = function!(GET.real as $type);
            // SAFETY: UCX has passed these arguments for its own function.
            let real = || unsafe { real(rcache, $($argument),*) };
            match registry::by_rcache(rcache.addr()) {
                Some(cache) if !cache.gate.is_open() => cache.closed_get(real),
                _ => real(),
            }
        }
    };
}

checked_get! { checked_get_before_17 searched_get_before_17 as GetBefore17 (b c d e f) }
checked_get! { checked_get searched_get as Get (b c d e f g) }

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ucs_pgtable_init(
    table: *mut c_void,
    alloc: *mut c_void,
    release: *mut c_void,
) -> Status {
    if let Some(seen @ Seen { table: None, .. }) = CREATING.get() {
        CREATING.set(Some(Seen {
            table: Some(table.addr()),
            ..seen
        }));
    }
    match real::table_init() {
        // SAFETY: UCX has passed these arguments for its own function.
        Some(real) => unsafe { real(table, alloc, release) },
        None => UNSUPPORTED,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ucs_pgtable_lookup(
    table: *const c_void,
    address: usize,
) -> *mut c_void {
    let target = function!(TABLE_LOOKUP.target as TableLookup);
    // SAFETY: UCX has passed these arguments for its own function.
    unsafe { target(table, address) }
}

unsafe extern "C" fn first_table_lookup(table: *const c_void, address: usize) -> *mut c_void {
    let Some(real) = real::table_lookup() else {
        return std::ptr::null_mut();
    };
    TABLE_LOOKUP.lead_to_real(real as *mut c_void, first_table_lookup as *mut c_void);
    // SAFETY: UCX has passed these arguments for its own function.
    unsafe { real(table, address) }
}

unsafe extern "C" fn checked_table_lookup(table: *const c_void, address: usize) -> *mut c_void {
    if registry::first_is_open_by_table(table.addr()) {
        let real = function!(TABLE_LOOKUP.real as TableLookup);
        // SAFETY: UCX has passed these arguments for its own function.
        unsafe { real(table, address) }
    } else {
        // SAFETY: as above.
        unsafe { searched_table_lookup(table, address) }
    }
}

#[inline(never)]
unsafe extern "C" fn searched_table_lookup(table: *const c_void, address: usize) -> *mut c_void {
    match registry::by_table(table.addr()) {
        Some(cache) if !cache.gate.is_open() => std::ptr::null_mut(),
        _ => {
            let real = function!(TABLE_LOOKUP.real as TableLookup);
            // SAFETY: UCX has passed these arguments for its own function.
            unsafe { real(table, address) }
        }
    }
}

/// Keeps UCX's callback for unmapped memory from libucm while this thread creates a cache. libucm
/// would otherwise patch libc's functions for it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ucm_set_event_handler(
    events: c_int,
    priority: c_int,
    callback: Callback,
    arg: *mut c_void,
) -> Status {
    let mut wanted = events;
    if events & VM_UNMAPPED != 0
        && let Some(seen @ Seen { handler: None, .. }) = CREATING.get()
    {
        CREATING.set(Some(Seen {
            handler: Some(Handler { callback, arg }),
            ..seen
        }));
        wanted &= !VM_UNMAPPED;
        if wanted & !EVENT_FLAGS == 0 {
            return OK;
        }
    }
    match real::set_handler() {
        // SAFETY: UCX has passed these arguments for its own function.
        Some(real) => unsafe { real(wanted, priority, callback, arg) },
        None => UNSUPPORTED,
    }
}
