//! The constants and structures of `regcache.h`. The header contains these comments.

use std::ffi::{c_int, c_uint, c_void};

/// The major version of this header. regcache_version() returns the version of
/// the library, as "MAJOR.MINOR.PATCH".
pub const REGCACHE_VERSION_MAJOR: c_uint = 0;
/// The minor version of this header.
pub const REGCACHE_VERSION_MINOR: c_uint = 1;
/// The patch level of this header.
pub const REGCACHE_VERSION_PATCH: c_uint = 0;

/// Access flag: work requests of this process may write to the memory. The
/// destination of a receive or of an RDMA read needs this flag. Work requests
/// of this process may read without any flag. The access flags have the
/// values of `enum ibv_access_flags`.
pub const REGCACHE_LOCAL_WRITE: c_uint = 1;
/// Access flag: a peer may write. Implies REGCACHE_LOCAL_WRITE.
pub const REGCACHE_REMOTE_WRITE: c_uint = 2;
/// Access flag: a peer may read.
pub const REGCACHE_REMOTE_READ: c_uint = 4;
/// Access flag: a peer may do atomic operations. Implies REGCACHE_LOCAL_WRITE.
pub const REGCACHE_REMOTE_ATOMIC: c_uint = 8;
/// Access flag: the memory consists of huge pages. The device may use larger
/// translation entries for such memory.
pub const REGCACHE_HUGETLB: c_uint = 128;
/// Access flag: the device may write to memory in any order.
pub const REGCACHE_RELAXED_ORDERING: c_uint = 1 << 20;

/// Monitor: the best available one. The order is ummunotify, then userfaultfd
/// on Linux 6.7 and later, then none.
pub const REGCACHE_MONITOR_AUTO: c_uint = 0;
/// Monitor: the ummunotify driver. Creating the cache fails if the driver is
/// not available.
pub const REGCACHE_MONITOR_UMMUNOTIFY: c_uint = 1;
/// Monitor: userfaultfd, with a check at each lookup. Creating the cache
/// fails if userfaultfd is not available.
pub const REGCACHE_MONITOR_USERFAULTFD: c_uint = 2;
/// Monitor: none. Each lookup registers, and no registration is cached.
pub const REGCACHE_MONITOR_NONE: c_uint = 3;

/// Flag of a cache: end a registration for remote access when the last guard
/// of the registration is put. From then on, a peer cannot use the remote key.
/// Without this flag the cache retains such registrations like all others.
pub const REGCACHE_REVOKE_REMOTE_KEYS: c_uint = 1;
/// Flag of a cache: do not start a reaper, the thread that deregisters memory
/// after it was unmapped. The application polls regcache_fd() and calls
/// regcache_reap().
pub const REGCACHE_NO_REAPER: c_uint = 2;

/// A cache of registrations.
pub struct Cache {
    _opaque: [u8; 0],
}

/// A reference to a registration, from regcache_get() or a similar function to
/// regcache_put().
pub struct Guard {
    _opaque: [u8; 0],
}

/// One limit on the bytes that several caches pin together, from
/// regcache_pool_create() to regcache_pool_destroy().
pub struct Pool {
    _opaque: [u8; 0],
}

/// A protection domain of libibverbs.
#[allow(non_camel_case_types, reason = "libibverbs's name")]
pub struct ibv_pd {
    _opaque: [u8; 0],
}

/// Attributes of a cache. A field that is 0 selects the default, so set only
/// the fields that differ from the default: `struct regcache_attr attr = {
/// .size = sizeof attr, .max_entries = 1000 };`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// sizeof(struct regcache_attr).
    pub size: usize,
    /// One of REGCACHE_MONITOR_*.
    pub monitor: c_uint,
    /// An OR of REGCACHE_REVOKE_REMOTE_KEYS and REGCACHE_NO_REAPER, or 0.
    pub flags: c_uint,
    /// Another cache, whose monitor this cache shares, or NULL. If this field
    /// is set, `monitor` is ignored. Memory that both caches have registered
    /// is watched once. Two caches on userfaultfd can watch the same memory
    /// only if they share a monitor.
    pub monitor_of: *mut Cache,
    /// The maximum number of registrations that the cache retains. The
    /// default is 65536, and the largest value is 16776960.
    pub max_entries: u64,
    /// The maximum number of bytes that the cache pins. The default is
    /// RLIMIT_MEMLOCK, but at most half of the machine's memory and half
    /// of the memory that the cgroups of the process allow.
    pub max_bytes: u64,
    /// The block size in bytes, a power of two. The cache registers whole
    /// aligned blocks. The default is the page size for local access, and 1
    /// for remote access. A block also makes the memory around the caller's
    /// range accessible with the key, to peers as well if the access is
    /// remote. A block larger than a page also pins that memory.
    pub granularity: u64,
    /// The maximum size in bytes of a merged registration. A miss merges
    /// neighbouring registrations up to this size. The default is 0, which
    /// disables merging.
    pub merge_up_to: u64,
    /// A pool, which the cache joins, or NULL. The limit of the pool holds for
    /// the bytes of all its caches together, in addition to `max_bytes`.
    pub pool: *mut Pool,
}

/// A registration that regcache_get() returned.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mr {
    /// The guard. Pass it to regcache_put().
    pub guard: *mut Guard,
    /// The key for the work requests of this process.
    pub lkey: u32,
    /// The key for the requests of a peer. It is valid only with remote
    /// access.
    pub rkey: u32,
    /// The `struct ibv_mr *`, or the pointer that `reg_mr` returned. Do not
    /// deregister it.
    pub registration: *mut c_void,
    /// The start of the registration, at or before the address that was
    /// looked up.
    pub addr: *mut c_void,
    /// The length of the registration in bytes.
    pub length: usize,
}

/// A registration that a `reg_mr` callback has made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// Any pointer. The cache passes it to `dereg_mr`.
    pub registration: *mut c_void,
    /// The local key, for struct regcache_mr.
    pub lkey: u32,
    /// The remote key, for struct regcache_mr.
    pub rkey: u32,
}

/// A device that the application implements by two callbacks.
///
/// The cache calls the callbacks from any thread that calls a function of the
/// library, and from the reaper. The reaper blocks all signals. Several
/// callbacks may run at once. A callback returns 0, an errno, or a negative
/// errno. In a callback, functions that take a cache or a pool fail with
/// -EDEADLK. A callback must not throw or longjmp.
///
/// `reg_mr` must register the pages that are mapped in the range while the
/// callback runs. The device must use these pages until `dereg_mr`. A device
/// that follows the page tables needs no cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// sizeof(struct regcache_device).
    pub size: usize,
    /// The first argument of both callbacks.
    pub user: *mut c_void,
    /// Registers a range. The cache knows the four access flags from
    /// REGCACHE_LOCAL_WRITE to REGCACHE_REMOTE_ATOMIC. The device defines the
    /// meaning of all other flags. A registration serves only lookups whose
    /// other flags are the same.
    pub reg_mr: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            addr: *mut c_void,
            length: usize,
            access: c_uint,
            registration: *mut Registration,
        ) -> c_int,
    >,
    /// Ends a registration. Its memory may have been unmapped. If the
    /// callback fails, the registration counts as leaked.
    pub dereg_mr:
        Option<unsafe extern "C" fn(user: *mut c_void, registration: *mut c_void) -> c_int>,
}

macro_rules! define_stats {
    ($({ $field:ident: $type:ty, $metric:literal, $description:literal })*) => {
        /// `struct regcache_stats`: the statistics of a cache, in the order of
        /// the table in regcache/src/stats.rs.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Stats {
            $(
                #[doc = $description]
                pub $field: u64,
            )*
        }

        impl From<regcache::Stats> for Stats {
            fn from(stats: regcache::Stats) -> Self {
                Self { $($field: stats.$field as u64,)* }
            }
        }
    };
}

regcache::for_each_statistic!(define_stats);
