//! What `regcache.h` declares beside the functions. The comments are the header's.

use std::ffi::{c_int, c_uint, c_void};

/// This process's work requests may write: the destination of a receive or an RDMA read. Reading by them is
/// always allowed. The access flags have the values of `enum ibv_access_flags`.
pub const REGCACHE_LOCAL_WRITE: c_uint = 1;
/// A peer may write. Implies REGCACHE_LOCAL_WRITE.
pub const REGCACHE_REMOTE_WRITE: c_uint = 2;
/// A peer may read.
pub const REGCACHE_REMOTE_READ: c_uint = 4;
/// A peer may do atomic operations. Implies REGCACHE_LOCAL_WRITE.
pub const REGCACHE_REMOTE_ATOMIC: c_uint = 8;
/// The memory is made of huge pages, and the device may count on it.
pub const REGCACHE_HUGETLB: c_uint = 128;
/// The device's writes may reach memory in another order than it made them.
pub const REGCACHE_RELAXED_ORDERING: c_uint = 1 << 20;

/// The best sound monitor that there is: ummunotify; else userfaultfd, from Linux 6.7 on; else none.
pub const REGCACHE_MONITOR_AUTO: c_uint = 0;
/// The ummunotify driver, or an error.
pub const REGCACHE_MONITOR_UMMUNOTIFY: c_uint = 1;
/// userfaultfd with a check at each lookup, or an error.
pub const REGCACHE_MONITOR_USERFAULTFD: c_uint = 2;
/// None: nothing is cached, each lookup registers.
pub const REGCACHE_MONITOR_NONE: c_uint = 3;

/// Deregister memory that was registered for remote access when its last guard is put, so that a key which a
/// peer was given ends there. Without it such registrations are kept like others.
pub const REGCACHE_REVOKE_REMOTE_KEYS: c_uint = 1;
/// No thread that releases freed memory: the application polls regcache_fd() and calls regcache_reap().
pub const REGCACHE_NO_REAPER: c_uint = 2;

/// A cache.
pub struct Cache {
    _opaque: [u8; 0],
}

/// A registration in use, from regcache_get() to regcache_put().
pub struct Guard {
    _opaque: [u8; 0],
}

/// A protection domain of libibverbs's.
#[allow(non_camel_case_types, reason = "libibverbs's name")]
pub struct ibv_pd {
    _opaque: [u8; 0],
}

/// What a cache is to be like. Everything that is 0 is the default, so that it is enough to set what should not be,
/// as in `struct regcache_attr attr = { .size = sizeof attr, .max_entries = 1000 };`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// sizeof(struct regcache_attr).
    pub size: usize,
    /// One of REGCACHE_MONITOR_*.
    pub monitor: c_uint,
    /// Any of REGCACHE_REVOKE_REMOTE_KEYS and REGCACHE_NO_REAPER.
    pub flags: c_uint,
    /// A cache whose monitor this one is to use as well, instead of one of its own: what both have registered is
    /// watched once. Needed where two caches on userfaultfd are to keep the same memory.
    pub monitor_of: *mut Cache,
    /// Registrations that are kept, at most; 65536, and no more than 16777216.
    pub max_entries: u64,
    /// Bytes that they may pin; as many as RLIMIT_MEMLOCK allows, and at most half of the memory.
    pub max_bytes: u64,
    /// Whole blocks of so many bytes are registered, a power of two; 1. They pin, and open to whoever has the key, what
    /// the caller did not name.
    pub granularity: u64,
    /// On a miss, neighbours are registered in one piece of at most so many bytes; 0: they are not.
    pub merge_up_to: u64,
}

/// What regcache_get() finds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mr {
    /// To be given to regcache_put().
    pub guard: *mut Guard,
    /// What this process's work requests name the memory by.
    pub lkey: u32,
    /// What a peer's requests name it by; of use only with remote access.
    pub rkey: u32,
    /// The `struct ibv_mr *`, or what `reg_mr` gave. Not to be deregistered.
    pub registration: *mut c_void,
    /// Where the registration starts: at the address asked for or before.
    pub addr: *mut c_void,
    /// Bytes in it.
    pub length: usize,
}

/// What a `reg_mr` gives.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// What `dereg_mr` will be given.
    pub registration: *mut c_void,
    /// For struct regcache_mr.
    pub lkey: u32,
    /// For struct regcache_mr.
    pub rkey: u32,
}

/// A device other than libibverbs's.
///
/// Both functions are called from whichever thread calls into the cache, and from the thread that releases freed
/// memory, in which all signals are blocked; several at once. They return 0 or an errno, negative or not. Calls with a
/// cache are refused in them (-EDEADLK), and they must not throw or longjmp.
///
/// What `reg_mr` registers are the pages that are mapped in the range while it runs, all of them, and they must be kept
/// from being used otherwise until `dereg_mr`: a device that follows the page tables has nothing to cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// sizeof(struct regcache_device).
    pub size: usize,
    /// What both functions get.
    pub user: *mut c_void,
    /// Registers. Access flags beside the four permissions, from REGCACHE_LOCAL_WRITE to REGCACHE_REMOTE_ATOMIC, are
    /// the device's own: a registration serves lookups that have the same.
    pub reg_mr: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            addr: *mut c_void,
            length: usize,
            access: c_uint,
            registration: *mut Registration,
        ) -> c_int,
    >,
    /// Destroys a registration; its memory may be unmapped. If it fails the registration is counted as leaked.
    pub dereg_mr:
        Option<unsafe extern "C" fn(user: *mut c_void, registration: *mut c_void) -> c_int>,
}

/// What a cache has done and holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Lookups served by a cached registration.
    pub hits: u64,
    /// Lookups for which a registration was made.
    pub misses: u64,
    /// Misses whose registration could not be kept: it ends with its guard.
    pub uncached: u64,
    /// Cached registrations given up because memory under them changed.
    pub invalidations: u64,
    /// Times that the monitor reported something and no registration was given up for it.
    pub spurious: u64,
    /// Cached registrations given up to make room.
    pub evictions: u64,
    /// Cached registrations given up because a wider one came.
    pub merges: u64,
    /// Registrations made again because their memory changed while they were being made.
    pub retries: u64,
    /// Registrations that the device refused to destroy.
    pub leaked: u64,
    /// Registrations held now: cached, being made, or waiting for their last guard.
    pub entries: u64,
    /// Bytes that they pin, whole pages counted.
    pub bytes: u64,
    /// Of the entries, those that were given up and wait for their last guard.
    pub unreleased: u64,
    /// Of the bytes, those pinned by them.
    pub unreleased_bytes: u64,
}
