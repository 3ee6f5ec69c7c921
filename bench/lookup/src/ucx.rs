//! [`Ucx`]: UCX's registration cache as a [`Subject`], through its thread-safe functions.
//!
//! This module declares the functions of `ucs/memory/rcache.h` that the loops call. UCX's types are
//! opaque here. The code that depends on their layout is in `ucx/shim.c`. That file compiles only
//! if the header declares these functions with the same signatures.

use std::ffi::{c_int, c_ulong, c_void};
use std::hint::black_box;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Subject;

/// The opaque type `ucs_rcache_t`.
#[repr(C)]
struct Rcache {
    _opaque: [u8; 0],
}

/// The opaque type `ucs_rcache_region_t`.
#[repr(C)]
struct Region {
    _opaque: [u8; 0],
}

/// The number of registrations that were made, and the number that were destroyed. `struct
/// dummy_device` in `ucx/shim.c` has the same layout.
#[repr(C)]
#[derive(Debug, Default)]
struct Device {
    made: AtomicU64,
    destroyed: AtomicU64,
}

/// The type `ucs_status_t`. The value is 0 for success, or a negative number for an error.
type Status = i8;

/// The protection that each lookup requests: `PROT_READ | PROT_WRITE`.
const PROT: c_int = 3;

unsafe extern "C" {
    /// Makes a cache of at most `max_regions` regions. The cache counts its registrations in
    /// `device`. The function is in `ucx/shim.c`.
    fn regcache_bench_ucx_create(
        max_regions: c_ulong,
        device: *const Device,
        rcache: *mut *mut Rcache,
    ) -> c_int;

    /// Destroys a cache. No region of the cache may be in use.
    fn ucs_rcache_destroy(rcache: *mut Rcache);

    /// Finds or registers a region that covers the range, and takes a reference to the region.
    fn ucs_rcache_get(
        rcache: *mut Rcache,
        address: *mut c_void,
        length: usize,
        prot: c_int,
        arg: *mut c_void,
        region: *mut *mut Region,
    ) -> Status;

    /// Drops a reference to a region.
    fn ucs_rcache_region_put(rcache: *mut Rcache, region: *mut Region);

    /// Takes a region out of the cache. Calls `done` after the last reference to the region is
    /// dropped.
    fn ucs_rcache_region_invalidate(
        rcache: *mut Rcache,
        region: *mut Region,
        done: extern "C" fn(*mut c_void),
        arg: *mut c_void,
    );
}

/// A UCX registration cache whose registrations are dummies.
#[derive(Debug)]
pub struct Ucx {
    rcache: NonNull<Rcache>,
    device: Box<Device>,
}

// SAFETY: UCX's header documents the cache as thread-safe. The counters of the device are atomics.
unsafe impl Sync for Ucx {}

impl Ucx {
    /// Makes an empty cache of at most `max_entries` entries.
    ///
    /// # Errors
    ///
    /// Returns UCX's status if UCX cannot create the cache.
    pub fn new(max_entries: usize) -> Result<Self, i32> {
        let device = Box::<Device>::default();
        let mut rcache = ptr::null_mut();
        // SAFETY: the device is in a box that outlives the cache. `rcache` is valid for the write
        // of a pointer.
        let status = unsafe {
            regcache_bench_ucx_create(max_entries as c_ulong, &raw const *device, &raw mut rcache)
        };
        match NonNull::new(rcache) {
            Some(rcache) if status == 0 => Ok(Self { rcache, device }),
            _ => Err(status),
        }
    }

    #[inline(always)]
    fn get(&self, start: usize, len: usize) -> *mut Region {
        let mut region = ptr::null_mut();
        // SAFETY: the cache exists until `drop`. The dummy device does not access the memory that
        // it registers.
        let status = unsafe {
            ucs_rcache_get(
                self.rcache.as_ptr(),
                ptr::without_provenance_mut(start),
                len,
                PROT,
                ptr::null_mut(),
                &raw mut region,
            )
        };
        assert_eq!(status, 0, "no call of the dummies fails");
        region
    }

    #[inline(always)]
    fn put(&self, region: *mut Region) {
        // SAFETY: the caller got this reference from `get`, and does not use the region after this
        // call.
        unsafe { ucs_rcache_region_put(self.rcache.as_ptr(), region) }
    }
}

impl Subject for Ucx {
    const NAME: &'static str = "UCX";

    #[inline(always)]
    fn get_put(&self, start: usize, len: usize) {
        self.put(black_box(self.get(start, len)));
    }

    #[inline(always)]
    fn invalidate(&self, start: usize, len: usize) {
        extern "C" fn done(_: *mut c_void) {}
        let region = self.get(start, len);
        // SAFETY: the reference from `get` keeps the region alive until `put`. `done` does nothing,
        // so UCX may call it at any time.
        unsafe {
            ucs_rcache_region_invalidate(self.rcache.as_ptr(), region, done, ptr::null_mut());
        }
        self.put(region);
    }

    fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.device.made), count(&self.device.destroyed))
    }
}

impl Drop for Ucx {
    fn drop(&mut self) {
        // SAFETY: `get_put` and `invalidate` drop each reference that they take, so no region is in
        // use.
        unsafe { ucs_rcache_destroy(self.rcache.as_ptr()) }
    }
}
