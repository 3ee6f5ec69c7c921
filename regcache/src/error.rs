//! What can go wrong, and what its reader can do about it.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::VaRange;

/// Why a lookup could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The range is empty.
    #[error("cannot register 0 bytes at {start:#x}: ask for at least one")]
    ZeroLength {
        /// Address asked for.
        start: usize,
    },
    /// The range runs past the end of the address space.
    #[error("{len} bytes at {start:#x} run past the end of the address space: check the length")]
    AddressWraps {
        /// Address asked for.
        start: usize,
        /// Bytes asked for.
        len: usize,
    },
    /// This process is a child, by fork, of the one that built the cache.
    #[error(
        "this cache belongs to the parent process: registrations are not inherited over fork, build a cache of your own after it"
    )]
    Forked,
    /// The device or the kernel refused to register the range.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The monitor did not say what was invalidated, so that the cache has given up all it had. The next
    /// lookup asks it again.
    #[error(
        "the {monitor} monitor failed: all that was cached has been given up, and nothing is until it answers again"
    )]
    Monitor {
        /// Which monitor.
        monitor: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Part of the range is not mapped.
    #[error("cannot register {range:?}: nothing is mapped at {hole:#x}")]
    NotMapped {
        /// What was to be registered.
        range: VaRange,
        /// The first address that is not mapped.
        hole: usize,
        /// What the device said.
        source: io::Error,
    },
    /// Part of the range does not allow the access asked for.
    #[error(
        "cannot register {range:?}: memory at {at:#x} is mapped {permissions}, which the access asked for exceeds (mprotect it, or ask for less)"
    )]
    Protected {
        /// What was to be registered.
        range: VaRange,
        /// The first address of the mapping that is in the way.
        at: usize,
        /// Its permissions as in `/proc/self/maps`, such as `r--p`.
        permissions: String,
        /// What the device said.
        source: io::Error,
    },
    /// The memory may not be pinned: the limit on locked memory is reached.
    #[error(
        "cannot register {range:?} ({} bytes): RLIMIT_MEMLOCK allows {limit} bytes of pinned memory in all (raise it with `ulimit -l`, in limits.conf or by LimitMEMLOCK=, grant CAP_IPC_LOCK, or lower the cache's max_bytes)",
        range.len()
    )]
    MemlockLimit {
        /// What was to be registered.
        range: VaRange,
        /// The soft limit, in bytes.
        limit: u64,
        /// What the device said.
        source: io::Error,
    },
    /// Another refusal; the source says which.
    #[error("the device refused to register {range:?}")]
    Device {
        /// What was to be registered.
        range: VaRange,
        /// What the device said.
        #[source]
        source: io::Error,
    },
}

impl RegisterError {
    /// Finds out why registering `range` failed with `source`.
    pub(crate) fn diagnose(range: VaRange, writes: bool, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
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
            Some(Errno::ENOMEM) => match getrlimit(Resource::RLIMIT_MEMLOCK) {
                Ok((limit, _)) if limit != RLIM_INFINITY => Self::MemlockLimit {
                    range,
                    limit,
                    source,
                },
                _ => Self::Device { range, source },
            },
            _ => Self::Device { range, source },
        }
    }
}

/// True if the refusal may go away when the cache gives up other registrations.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOMEM | Errno::EAGAIN | Errno::ENOSPC)
    )
}

/// The first address in `range` that cannot be accessed: without permissions, one that is not
/// mapped. `None` if there is no such address, or it cannot be found out.
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

        // SAFETY: pages of this test's own mapping.
        let middle = unsafe { map.as_ptr().add(4096).cast_mut() };
        // SAFETY: as above.
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

        // SAFETY: as above; the mapping is forgotten below, so that it is not unmapped twice.
        assert_eq!(unsafe { libc::munmap(middle.cast(), 4096) }, 0);
        match efault(whole, false) {
            RegisterError::NotMapped { hole, .. } => assert_eq!(hole, middle.addr()),
            other => panic!("{other}"),
        }
        std::mem::forget(map);
    }
}
