//! The errors that a lookup returns, and two functions that inspect errors: [`is_exhaustion`] and
//! [`chain`].
//!
//! Each message tells the user how to solve the problem.

use std::error;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::limits::{self, Met};
use crate::range::{RangeError, VaRange};

/// The reason why a lookup was not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The requested bytes are not a valid range: the length is 0, or the range wraps.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// This process was forked from the one that built the cache or made the pool.
    #[error(
        "this cache or pool belongs to the parent process: registrations are not inherited over fork, so build caches and pools of your own in the child"
    )]
    Forked,
    /// The device or the kernel refused to register the range.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The monitor could not report which memory was invalidated. So the cache has dropped all its
    /// entries. Lookups return uncached registrations until the monitor's reports can be read
    /// again. Only [`Cache::reap`](crate::Cache::reap) returns this error.
    #[error(
        "the {monitor} monitor failed: every cached registration was dropped, and none is cached until the monitor answers again"
    )]
    Monitor {
        /// The monitor's name.
        monitor: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The reason why a registration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Part of the range is not mapped.
    #[error("cannot register {range}: nothing is mapped at {hole:#x}")]
    NotMapped {
        /// The range that was to be registered.
        range: VaRange,
        /// The first address that is not mapped.
        hole: usize,
        /// The device's error.
        source: io::Error,
    },
    /// Part of the range does not allow the requested access.
    #[error(
        "cannot register {range}: memory at {at:#x} is mapped {permissions}, which does not allow the access asked for (mprotect it, or ask for less)"
    )]
    Protected {
        /// The range that was to be registered.
        range: VaRange,
        /// The first address that does not allow the access.
        at: usize,
        /// The permissions at that address, as in `/proc/self/maps`, for example `r--p`.
        permissions: String,
        /// The device's error.
        source: io::Error,
    },
    /// The process has pinned as much memory as its limit on locked memory allows.
    #[error(
        "cannot register {range} ({} bytes): RLIMIT_MEMLOCK allows {limit} bytes of pinned memory in all (raise it with `ulimit -l`, in limits.conf or by LimitMEMLOCK=, grant CAP_IPC_LOCK, or lower the cache's max_bytes)",
        range.len()
    )]
    MemlockLimit {
        /// The range that was to be registered.
        range: VaRange,
        /// The soft limit, in bytes.
        limit: u64,
        /// The device's error.
        source: io::Error,
    },
    /// A cgroup of the process has used up its limit on memory or on the device's objects.
    #[error(
        "cannot register {range} ({} bytes): the cgroup's limit in {} is used up (raise it, or lower the cache's max_entries or max_bytes)",
        range.len(),
        file.display()
    )]
    CgroupLimit {
        /// The range that was to be registered.
        range: VaRange,
        /// The file that holds the limit: `memory.max` or `rdma.max` of the cgroup.
        file: PathBuf,
        /// The device's error.
        source: io::Error,
    },
    /// The device has no room for another registration of this size. Neither `RLIMIT_MEMLOCK` nor a
    /// cgroup is the limit.
    #[error(
        "cannot register {range} ({} bytes): the device has no room for it beside the registrations in use (drop guards, or give up registrations of other caches and processes)",
        range.len()
    )]
    DeviceLimit {
        /// The range that was to be registered.
        range: VaRange,
        /// The device's error.
        source: io::Error,
    },
    /// The device refused for another reason, which the field `source` holds.
    #[error("the device refused to register {range}")]
    Device {
        /// The range that was to be registered.
        range: VaRange,
        /// The device's error.
        #[source]
        source: io::Error,
    },
}

/// Returns true if the device or the kernel has run out of a resource that other registrations
/// hold: `ENOMEM`, `EAGAIN` or `ENOSPC`.
///
/// The same request may succeed once some of the other registrations are deregistered.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOMEM | Errno::EAGAIN | Errno::ENOSPC)
    )
}

/// Returns `error` and its causes, outermost first.
///
/// `Display` prints the chain in one line, with a colon before each cause.
///
/// ```
/// use std::io;
///
/// let source = io::Error::from_raw_os_error(12);
/// let error = regcache::Error::Monitor { monitor: "ummunotify", source };
/// let chain = regcache::error::chain(&error);
/// assert!(chain.to_string().ends_with("answers again: Cannot allocate memory (os error 12)"));
///
/// let mut systems = chain.filter_map(|cause| cause.downcast_ref::<io::Error>());
/// assert_eq!(systems.next().and_then(io::Error::raw_os_error), Some(12));
/// ```
#[must_use]
pub fn chain<'e>(error: &'e (dyn error::Error + 'static)) -> Chain<'e> {
    Chain { next: Some(error) }
}

/// An error and its causes; see [`chain`].
#[derive(Debug, Clone, Copy)]
pub struct Chain<'e> {
    next: Option<&'e (dyn error::Error + 'static)>,
}

impl<'e> Iterator for Chain<'e> {
    type Item = &'e (dyn error::Error + 'static);

    fn next(&mut self) -> Option<Self::Item> {
        let error = self.next?;
        self.next = error.source();
        Some(error)
    }
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.enumerate() {
            let colon = if i == 0 { "" } else { ": " };
            write!(f, "{colon}{error}")?;
        }
        Ok(())
    }
}

impl RegisterError {
    /// Returns the error that explains why registering `range` failed with `source`.
    pub(crate) fn diagnose(range: VaRange, writes: bool, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(errno) if is_exhaustion(&source) => match limits::met(errno, range.len()) {
                Met::Memlock(limit) => Self::MemlockLimit {
                    range,
                    limit,
                    source,
                },
                Met::Cgroup(file) => Self::CgroupLimit {
                    range,
                    file,
                    source,
                },
                Met::Device => Self::DeviceLimit { range, source },
            },
            Some(Errno::EFAULT | Errno::EACCES | Errno::EPERM) => {
                match first_obstacle(range, writes) {
                    Some((hole, None)) => Self::NotMapped {
                        range,
                        hole,
                        source,
                    },
                    Some((at, Some(permissions))) => Self::Protected {
                        range,
                        at,
                        permissions,
                        source,
                    },
                    None => Self::Device { range, source },
                }
            }
            _ => Self::Device { range, source },
        }
    }
}

/// Returns the first address in `range` that cannot be accessed, and the permissions there if the
/// address is mapped. Returns `None` if there is no such address, or if `/proc/self/maps` cannot be
/// read.
fn first_obstacle(range: VaRange, writes: bool) -> Option<(usize, Option<String>)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut at = range.start();
    for line in maps.lines() {
        let (bounds, rest) = line.split_once(' ')?;
        let (start, end) = bounds.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        if end <= at {
            continue;
        }
        if start > at {
            break;
        }
        let permissions = rest.get(..4)?;
        if !permissions.starts_with('r') || (writes && !permissions.starts_with("rw")) {
            return Some((at, Some(permissions.to_owned())));
        }
        at = end;
        if at >= range.end() {
            return None;
        }
    }
    Some((at, None))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn efault(range: VaRange, writes: bool) -> RegisterError {
        RegisterError::diagnose(range, writes, Errno::EFAULT.into())
    }

    #[test]
    fn efault_is_explained_by_what_is_mapped() {
        let map = memmap2::MmapMut::map_anon(3 * 4096).unwrap();
        let whole = VaRange::new(map.as_ptr(), map.len()).unwrap();
        assert!(matches!(efault(whole, true), RegisterError::Device { .. }));

        // SAFETY: the pointer stays within the test's own mapping.
        let middle = unsafe { map.as_ptr().add(4096).cast_mut() };
        // SAFETY: the call affects only a page of the test's own mapping.
        let protected = unsafe { libc::mprotect(middle.cast(), 4096, libc::PROT_READ) };
        assert_eq!(protected, 0);
        match efault(whole, true) {
            RegisterError::Protected {
                at, permissions, ..
            } => {
                assert_eq!(at, middle.addr());
                assert_eq!(permissions, "r--p");
            }
            other => panic!("{other}"),
        }
        assert!(matches!(efault(whole, false), RegisterError::Device { .. }));

        // SAFETY: the page is in the test's own mapping. The mapping is forgotten below, so that it
        // is not unmapped twice.
        assert_eq!(unsafe { libc::munmap(middle.cast(), 4096) }, 0);
        match efault(whole, false) {
            RegisterError::NotMapped { hole, .. } => assert_eq!(hole, middle.addr()),
            other => panic!("{other}"),
        }
        std::mem::forget(map);
    }
}
