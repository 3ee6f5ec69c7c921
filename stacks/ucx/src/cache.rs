//! [`Cache`]: one cache of UCX that this library serves.
//!
//! UCX passes a cache's *context* to the operations that register and deregister memory. This
//! library puts its own operations and its own context in place of the cache's. So an operation
//! finds the description of its cache without a search, even while UCX destroys the cache.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::OnceLock;

use regcache::VaRange;

use crate::abi::{
    Callback, Event, OK, OpsBefore18, OpsSince18, Params, ParamsBefore17, ParamsSince17, Region,
    Shape, Status, VM_UNMAPPED,
};
use crate::counts::{COUNTS, add_one};
use crate::driver::Driver;
use crate::gate::Gate;
use crate::notice::notice_once;

pub(crate) struct Cache {
    pub(crate) gate: Gate<Driver>,
    theirs: Operations,
    /// This library's operations, to which the parameters of the cache point.
    ours: Operations,
    /// The context that UCX's operations expect.
    context: *mut c_void,
    /// UCX's callback for unmapped memory, and its argument. It is set before a lookup uses the
    /// cache.
    callback: OnceLock<Handler>,
}

/// The operations of the cache that this library replaces.
#[derive(Clone, Copy)]
enum Operations {
    Before18(OpsBefore18),
    Since18(OpsSince18),
}

/// A handler of memory events.
#[derive(Clone, Copy)]
pub(crate) struct Handler {
    pub(crate) callback: Callback,
    pub(crate) arg: *mut c_void,
}

// SAFETY: UCX calls the callback from any thread itself. The argument is only passed to it.
unsafe impl Send for Handler {}
// SAFETY: as above.
unsafe impl Sync for Handler {}

/// The parameters of a cache.
pub(crate) enum AnyParams {
    Before17(ParamsBefore17),
    Since17(ParamsSince17),
}

/// Returns the events that a cache asks UCX for.
///
/// # Safety
///
/// `params` points to the `ucs_rcache_params_t` of a UCX of this shape.
pub(crate) unsafe fn events(shape: Shape, params: *const c_void) -> c_int {
    // SAFETY: the caller keeps the contract of this function.
    unsafe { AnyParams::read(shape, params) }
        .common()
        .ucm_events
}

impl AnyParams {
    /// # Safety
    ///
    /// As for [`events`].
    unsafe fn read(shape: Shape, params: *const c_void) -> Self {
        if shape.has_alignments {
            // SAFETY: the caller keeps the contract of this function.
            Self::Before17(unsafe { *params.cast() })
        } else {
            // SAFETY: the caller keeps the contract of this function.
            Self::Since17(unsafe { *params.cast() })
        }
    }

    /// Returns the pointer to pass to `ucs_rcache_create`.
    pub(crate) fn as_ptr(&self) -> *const c_void {
        match self {
            Self::Before17(params) => ptr::from_ref(params).cast(),
            Self::Since17(params) => ptr::from_ref(params).cast(),
        }
    }

    fn common(&self) -> &Params {
        match self {
            Self::Before17(params) => &params.rest,
            Self::Since17(params) => &params.rest,
        }
    }

    fn common_mut(&mut self) -> &mut Params {
        match self {
            Self::Before17(params) => &mut params.rest,
            Self::Since17(params) => &mut params.rest,
        }
    }
}

impl Cache {
    /// Returns the description of a cache that is about to be created with these parameters, and
    /// the parameters to create it with.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it refuses a page for the gate.
    ///
    /// # Safety
    ///
    /// As for [`events`].
    pub(crate) unsafe fn prepare(
        shape: Shape,
        params: *const c_void,
        monitor: Driver,
    ) -> io::Result<(Box<Self>, AnyParams)> {
        // SAFETY: the caller keeps the contract of this function.
        let mut params = unsafe { AnyParams::read(shape, params) };
        let common = params.common_mut();
        let theirs = if shape.has_merge {
            // SAFETY: the contract says that the parameters have this shape.
            Operations::Since18(unsafe { *common.ops.cast() })
        } else {
            // SAFETY: as above.
            Operations::Before18(unsafe { *common.ops.cast() })
        };
        let cache = Box::new(Self {
            gate: Gate::new(monitor)?,
            theirs,
            ours: ours(theirs),
            context: common.context,
            callback: OnceLock::new(),
        });
        common.context = ptr::from_ref(&*cache).cast_mut().cast();
        common.ops = match &cache.ours {
            Operations::Before18(ops) => ptr::from_ref(ops).cast(),
            Operations::Since18(ops) => ptr::from_ref(ops).cast(),
        };
        Ok((cache, params))
    }

    /// Sets UCX's callback, which UCX has tried to install while it created the cache.
    pub(crate) fn set_callback(&self, handler: Handler) {
        // The callback is set once, by the thread that creates the cache.
        let _ = self.callback.set(handler);
    }

    /// Makes a lookup that found the gate closed. `real` is UCX's own `ucs_rcache_get`.
    pub(crate) fn closed_get(&self, real: impl FnOnce() -> Status) -> Status {
        if self.gate.in_child() {
            return real();
        }
        add_one(&COUNTS.closed);
        let failed = |error: &io::Error| {
            notice_once!("the monitor failed ({error}): UCX registers memory at each transfer");
        };
        self.gate.get(|range| self.unmapped(range), failed, real)
    }

    /// Calls UCX's callback for a range.
    fn unmapped(&self, range: VaRange) {
        add_one(&COUNTS.reported);
        let Some(handler) = self.callback.get() else {
            return;
        };
        let mut event = Event {
            address: range.start() as *mut c_void,
            size: range.len(),
            rest: [0; 6],
        };
        // SAFETY: UCX passed this callback to libucm for these events, with this argument, and has
        // not destroyed the cache. The callback only reads the event.
        unsafe { (handler.callback)(VM_UNMAPPED, &raw mut event, handler.arg) };
    }
}

/// Returns this library's operations, for a cache with these operations.
fn ours(theirs: Operations) -> Operations {
    match theirs {
        Operations::Before18(_) => Operations::Before18(OpsBefore18 {
            mem_reg,
            mem_dereg,
            dump_region,
        }),
        Operations::Since18(ops) => Operations::Since18(OpsSince18 {
            mem_reg,
            mem_dereg,
            merge: ops.merge.map(|_| merge as _),
            dump_region,
        }),
    }
}

/// Returns the cache to which a context belongs.
///
/// # Safety
///
/// UCX has passed the context to one of the operations below, and the call has not ended.
unsafe fn of_context<'a>(context: *mut c_void) -> &'a Cache {
    // SAFETY: the context of the operations is the address of a `Cache`. The `Cache` is freed only
    // after UCX has destroyed its cache.
    unsafe { &*context.cast() }
}

unsafe extern "C" fn mem_reg(
    context: *mut c_void,
    rcache: *mut c_void,
    arg: *mut c_void,
    region: *mut Region,
    flags: u16,
) -> Status {
    // SAFETY: UCX calls this function with the context of the cache.
    let cache = unsafe { of_context(context) };
    let real = match cache.theirs {
        Operations::Before18(ops) => ops.mem_reg,
        Operations::Since18(ops) => ops.mem_reg,
    };
    // SAFETY: UCX has passed these arguments for its own function.
    let register = || unsafe { real(cache.context, rcache, arg, region, flags) };
    // SAFETY: UCX passes a region whose range it has set.
    let Region { start, end } = unsafe { region.read() };
    let cookie = region.addr() as u64;
    match VaRange::new(start as *const u8, end.wrapping_sub(start)) {
        Ok(range) if !cache.gate.in_child() => {
            let (is_watched, status) = cache.gate.register(range, cookie, register);
            add_one(&COUNTS.registered);
            if !is_watched {
                add_one(&COUNTS.refused);
            }
            if status != OK {
                // UCX does not deregister a region whose registration has failed.
                cache.gate.unwatch(cookie);
            }
            status
        }
        _ => register(),
    }
}

unsafe extern "C" fn mem_dereg(context: *mut c_void, rcache: *mut c_void, region: *mut Region) {
    // SAFETY: UCX calls this function with the context of the cache.
    let cache = unsafe { of_context(context) };
    let real = match cache.theirs {
        Operations::Before18(ops) => ops.mem_dereg,
        Operations::Since18(ops) => ops.mem_dereg,
    };
    // SAFETY: UCX has passed these arguments for its own function.
    unsafe { real(cache.context, rcache, region) };
    if !cache.gate.in_child() {
        cache.gate.unwatch(region.addr() as u64);
    }
}

unsafe extern "C" fn merge(
    context: *mut c_void,
    rcache: *mut c_void,
    arg: *mut c_void,
    region: *mut Region,
) {
    // SAFETY: UCX calls this function with the context of the cache.
    let cache = unsafe { of_context(context) };
    if let Operations::Since18(OpsSince18 {
        merge: Some(real), ..
    }) = cache.theirs
    {
        // SAFETY: UCX has passed these arguments for its own function.
        unsafe { real(cache.context, rcache, arg, region) };
    }
}

unsafe extern "C" fn dump_region(
    context: *mut c_void,
    rcache: *mut c_void,
    region: *mut Region,
    buffer: *mut u8,
    max: usize,
) {
    // SAFETY: UCX calls this function with the context of the cache.
    let cache = unsafe { of_context(context) };
    let real = match cache.theirs {
        Operations::Before18(ops) => ops.dump_region,
        Operations::Since18(ops) => ops.dump_region,
    };
    // SAFETY: UCX has passed these arguments for its own function.
    unsafe { real(cache.context, rcache, region, buffer, max) };
}
