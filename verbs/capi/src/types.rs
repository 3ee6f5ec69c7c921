//! The constants and structures of `regcache.h`. The comments are the header's.

use std::ffi::{c_int, c_uint, c_void};

/// The major version of this header. regcache_version() returns the version of
/// the library, as "MAJOR.MINOR.PATCH".
pub const REGCACHE_VERSION_MAJOR: c_uint = 0;
/// The minor version of this header.
pub const REGCACHE_VERSION_MINOR: c_uint = 1;
/// The patch level of this header.
pub const REGCACHE_VERSION_PATCH: c_uint = 0;

/// Access flag: work requests of this process may write, as for the destination
/// of a receive or of an RDMA read. Work requests of this process may always
/// read. The access flags have the values of `enum ibv_access_flags`.
pub const REGCACHE_LOCAL_WRITE: c_uint = 1;
/// Access flag: a peer may write. Implies REGCACHE_LOCAL_WRITE.
pub const REGCACHE_REMOTE_WRITE: c_uint = 2;
/// Access flag: a peer may read.
pub const REGCACHE_REMOTE_READ: c_uint = 4;
/// Access flag: a peer may do atomic operations. Implies REGCACHE_LOCAL_WRITE.
pub const REGCACHE_REMOTE_ATOMIC: c_uint = 8;
/// Access flag: the memory consists of huge pages, and the device may rely on
/// it.
pub const REGCACHE_HUGETLB: c_uint = 128;
/// Access flag: the device may write to memory in any order.
pub const REGCACHE_RELAXED_ORDERING: c_uint = 1 << 20;

/// Monitor: the best one that is available. That is ummunotify; or else
/// userfaultfd, on Linux 6.7 and later; or else none.
pub const REGCACHE_MONITOR_AUTO: c_uint = 0;
/// Monitor: the ummunotify driver. Creating the cache fails if it is not
/// available.
pub const REGCACHE_MONITOR_UMMUNOTIFY: c_uint = 1;
/// Monitor: userfaultfd, with a check at each lookup. Creating the cache fails
/// if it is not available.
pub const REGCACHE_MONITOR_USERFAULTFD: c_uint = 2;
/// Monitor: none. Each lookup registers, and nothing is cached.
pub const REGCACHE_MONITOR_NONE: c_uint = 3;

/// Flag of a cache: deregister memory that was registered for remote access when
/// its last guard is put. A key that a peer was given is invalid from then on.
/// Without this flag such registrations are retained like others.
pub const REGCACHE_REVOKE_REMOTE_KEYS: c_uint = 1;
/// Flag of a cache: do not start a reaper, the thread that deregisters memory
/// after it was unmapped. The application polls regcache_fd() and calls
/// regcache_reap().
pub const REGCACHE_NO_REAPER: c_uint = 2;

/// A cache of registrations.
pub struct Cache {
    _opaque: [u8; 0],
}

/// A reference to a registration, from regcache_get() to regcache_put().
pub struct Guard {
    _opaque: [u8; 0],
}

/// A protection domain of libibverbs.
#[allow(non_camel_case_types, reason = "libibverbs's name")]
pub struct ibv_pd {
    _opaque: [u8; 0],
}

/// Attributes of a cache. A field that is 0 selects the default, so set only
/// those that differ:
/// `struct regcache_attr attr = { .size = sizeof attr, .max_entries = 1000 };`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// sizeof(struct regcache_attr).
    pub size: usize,
    /// One of REGCACHE_MONITOR_*.
    pub monitor: c_uint,
    /// REGCACHE_REVOKE_REMOTE_KEYS, REGCACHE_NO_REAPER, both or none.
    pub flags: c_uint,
    /// Another cache, whose monitor this cache shares; `monitor` is ignored
    /// then. Memory that both have registered is watched once. Two caches on
    /// userfaultfd can watch the same memory only if they share.
    pub monitor_of: *mut Cache,
    /// Most registrations that the cache retains. Default 65536, at most
    /// 16777216.
    pub max_entries: u64,
    /// Most bytes that the cache pins. Default RLIMIT_MEMLOCK, and at most
    /// half of the machine's memory.
    pub max_bytes: u64,
    /// Size in bytes, a power of two, of the aligned blocks that are
    /// registered whole. Default 1. A larger block also pins the memory
    /// around the caller's range, and opens it to peers that have the key.
    pub granularity: u64,
    /// Most bytes of one registration into which a miss merges neighbouring
    /// ones. Default 0, which disables merging.
    pub merge_up_to: u64,
}

/// A registration that regcache_get() found.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mr {
    /// The guard, to be given to regcache_put().
    pub guard: *mut Guard,
    /// Key for the work requests of this process.
    pub lkey: u32,
    /// Key for the requests of a peer. Valid only with remote access.
    pub rkey: u32,
    /// The `struct ibv_mr *`, or the pointer that `reg_mr` returned. Do not
    /// deregister it.
    pub registration: *mut c_void,
    /// Start of the registration, at or before the address that was looked
    /// up.
    pub addr: *mut c_void,
    /// Length of the registration in bytes.
    pub length: usize,
}

/// A registration that a `reg_mr` callback has made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// Any pointer. The cache passes it to `dereg_mr`.
    pub registration: *mut c_void,
    /// Local key, for struct regcache_mr.
    pub lkey: u32,
    /// Remote key, for struct regcache_mr.
    pub rkey: u32,
}

/// A device that the application implements by two callbacks.
///
/// The cache calls them from any thread that calls it, and from the reaper, in
/// which all signals are blocked. Several calls may run at once. A callback
/// returns 0 or an errno of either sign. In a callback, functions that take a
/// cache fail with -EDEADLK. A callback must not throw or longjmp.
///
/// `reg_mr` must register the pages that are mapped in the range while it runs.
/// The device must keep those pages until `dereg_mr`. A device that follows the
/// page tables needs no cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// sizeof(struct regcache_device).
    pub size: usize,
    /// First argument of both callbacks.
    pub user: *mut c_void,
    /// Registers a range. Access flags other than the four from
    /// REGCACHE_LOCAL_WRITE to REGCACHE_REMOTE_ATOMIC have the meaning that
    /// the device gives them. A registration serves only lookups with the
    /// same such flags.
    pub reg_mr: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            addr: *mut c_void,
            length: usize,
            access: c_uint,
            registration: *mut Registration,
        ) -> c_int,
    >,
    /// Deregisters. The memory may have been unmapped. If this fails, the
    /// registration counts as leaked.
    pub dereg_mr:
        Option<unsafe extern "C" fn(user: *mut c_void, registration: *mut c_void) -> c_int>,
}

macro_rules! define_stats {
    ($({ $field:ident: $type:ty, $metric:literal, $description:literal })*) => {
        /// `struct regcache_stats`: the statistics of a cache, in the order of
        /// the core's table.
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
