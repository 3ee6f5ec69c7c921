//! The limits that a process meets when it pins memory, and the limit that has refused a
//! registration.
//!
//! A registration is refused with `ENOMEM` or `EAGAIN` by the device, by `RLIMIT_MEMLOCK` or by a
//! cgroup. The error alone does not show which of them it was. So this file compares each limit
//! with its use.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// The number of the capability that allows a process to lock any amount of memory.
const CAP_IPC_LOCK: u32 = 14;

/// The limit that has refused a registration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// `RLIMIT_MEMLOCK`, in bytes.
    Memlock(u64),
    /// The limit of a cgroup, which the file holds.
    Cgroup(PathBuf),
    /// The room of the device, because no other limit is met.
    Device,
}

/// Returns the limit that has refused a registration of `bytes` bytes just now. `ENOMEM` is the
/// error of limits on memory, and `EAGAIN` that of a cgroup's limit on a device's objects.
pub(crate) fn met(refusal: Errno, bytes: usize) -> Met {
    let bytes = bytes as u64;
    let cgroups = Cgroups::of_this_process();
    let file = match (refusal, memlock()) {
        (Errno::ENOMEM, Some(limit)) if is_locked_out(limit, bytes) => return Met::Memlock(limit),
        (Errno::ENOMEM, _) => cgroups.full_of(bytes),
        (Errno::EAGAIN, _) => cgroups.full_of_rdma(),
        _ => None,
    };
    file.map_or(Met::Device, Met::Cgroup)
}

fn is_locked_out(limit: u64, bytes: u64) -> bool {
    let (status, uid_map) = (read("/proc/self/status"), read("/proc/self/uid_map"));
    exceeds_memlock(&status, &uid_map, limit, bytes)
}

/// Returns the soft limit on locked memory in bytes, if there is one.
pub(crate) fn memlock() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// Returns the number of bytes that the cgroups of this process allow it, if they limit its memory.
pub(crate) fn cgroup_memory() -> Option<u64> {
    Cgroups::of_this_process().memory_max()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns true if `bytes` more bytes exceed the limit on locked memory, and the process may not
/// exceed it. A capability counts only in the initial user namespace.
fn exceeds_memlock(status: &str, uid_map: &str, limit: u64, bytes: u64) -> bool {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let pinned = field("VmPin").and_then(|it| it.strip_suffix("kB")?.trim().parse::<u64>().ok());
    let capabilities = field("CapEff").and_then(|it| u64::from_str_radix(it, 16).ok());
    let capable = capabilities.is_some_and(|it| it >> CAP_IPC_LOCK & 1 == 1);
    let initial = uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
    let sum = pinned
        .unwrap_or(0)
        .saturating_mul(1024)
        .saturating_add(bytes);
    sum > limit && !(capable && initial)
}

/// The directories of the cgroup of a process and of its ancestors, innermost first.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn of_this_process() -> Self {
        Self::of(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
    }

    /// Returns the cgroups that the content of `/proc/self/cgroup` names, below `root`. Only the
    /// unified hierarchy (cgroup v2) counts.
    fn of(said: &str, root: &Path) -> Self {
        let path = said.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.unwrap_or_default();
        let ancestors = Path::new(path).ancestors();
        Self(ancestors.map(|it| root.join(it)).collect())
    }

    /// Returns the lowest limit on memory, in bytes.
    fn memory_max(&self) -> Option<u64> {
        let limits = self.0.iter().map(|it| it.join("memory.max"));
        limits
            .filter_map(|file| read(file).trim().parse().ok())
            .min()
    }

    /// Returns the file of a limit on memory that has no room for `bytes` bytes.
    fn full_of(&self, bytes: u64) -> Option<PathBuf> {
        let number = |file: &Path| read(file).trim().parse::<u64>().ok();
        let mut files = self.0.iter().map(|it| it.join("memory.max"));
        files.find(|file| {
            let used = number(&file.with_file_name("memory.current"));
            let limit = number(file);
            limit.is_some_and(|limit| used.unwrap_or(0).saturating_add(bytes) > limit)
        })
    }

    /// Returns the file of a limit on a device's objects that is used up. Both files have a line
    /// for each device, for example `mlx5_0 hca_handle=2 hca_object=2000`.
    fn full_of_rdma(&self) -> Option<PathBuf> {
        let mut files = self.0.iter().map(|it| it.join("rdma.max"));
        files.find(|file| {
            let used = read(file.with_file_name("rdma.current"));
            read(file).lines().any(|limits| {
                let device = limits.split_whitespace().next();
                let mut lines = used.lines();
                let used = lines.find(|line| line.split_whitespace().next() == device);
                limits.split_whitespace().skip(1).any(|limit| {
                    let number = |it: &str| it.split_once('=')?.1.parse::<u64>().ok();
                    let name = limit.split_once('=').map(|it| it.0);
                    let mut words = used.into_iter().flat_map(str::split_whitespace);
                    let used = words.find(|it| it.split_once('=').map(|it| it.0) == name);
                    let full = |limit| used.and_then(number).is_some_and(|used| used >= limit);
                    name.is_some() && number(limit).is_some_and(full)
                })
            })
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_the_limit_only_if_it_is_used_up_and_binds_the_process() {
        let status = |pinned, capabilities: u64| {
            format!("VmPin:\t{pinned:8} kB\nVmRSS:\t 1 kB\nCapEff:\t{capabilities:016x}\n")
        };
        let initial = "         0          0 4294967295\n";
        let exceeds = |status: &str, map| exceeds_memlock(status, map, 65536, 4096);
        assert!(exceeds(&status(64, 0), initial));
        assert!(!exceeds(&status(60, 0), initial), "exactly fits");
        assert!(!exceeds(&status(64, 1 << CAP_IPC_LOCK), initial));
        assert!(exceeds(&status(64, 1 << CAP_IPC_LOCK), "0 1000 1\n"));
        assert!(exceeds_memlock("", "", 65536, 65537), "no status");
    }

    #[test]
    fn a_cgroup_is_the_limit_if_it_or_an_ancestor_has_no_room() {
        let root = std::env::temp_dir().join(format!("regcache-cgroup-{}", std::process::id()));
        let inner = root.join("job/step");
        fs::create_dir_all(&inner).unwrap();
        let write = |path: &str, text: &str| fs::write(root.join(path), text).unwrap();
        write("job/step/memory.max", "max\n");
        write("job/memory.max", "1000000\n");
        write("job/memory.current", "900000\n");
        write(
            "job/step/rdma.max",
            "rxe0 hca_handle=max hca_object=20\nrxe1 hca_object=5\n",
        );
        write(
            "job/step/rdma.current",
            "rxe0 hca_handle=9 hca_object=19\nrxe1 hca_object=0\n",
        );

        let cgroups = Cgroups::of("1:name=systemd:/\n0::/job/step\n", &root);
        assert_eq!(cgroups.memory_max(), Some(1_000_000));
        assert_eq!(cgroups.full_of(100_000), None);
        assert_eq!(cgroups.full_of(100_001), Some(root.join("job/memory.max")));
        assert_eq!(cgroups.full_of_rdma(), None);
        write("job/step/rdma.current", "rxe0 hca_handle=9 hca_object=20\n");
        assert_eq!(cgroups.full_of_rdma(), Some(inner.join("rdma.max")));

        let none = Cgroups::of("", &root);
        assert_eq!(
            (none.memory_max(), none.full_of(1), none.full_of_rdma()),
            (None, None, None)
        );
        fs::remove_dir_all(root).unwrap();
    }
}
