//! Checks the limits of this user: pinned memory, mappings, and file descriptors.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Files, Finding};

/// The number of registrations that a cache retains by default.
const ENTRIES: u64 = 65_536;

/// The largest number of file descriptors that the monitor and the reaper of a cache use.
const DESCRIPTORS: u64 = 8;

/// The bit number of `CAP_IPC_LOCK` in a set of capabilities. A process with this capability may
/// pin any amount of memory.
const CAP_IPC_LOCK: u32 = 14;

pub(crate) fn look(files: &Files, monitor: Option<&str>) -> Vec<Finding> {
    let soft = |resource| getrlimit(resource).map_or(0, |(soft, _)| soft);
    vec![
        locked(files, soft(Resource::RLIMIT_MEMLOCK)),
        mappings(files, monitor),
        descriptors(soft(Resource::RLIMIT_NOFILE)),
    ]
}

fn locked(files: &Files, limit: u64) -> Finding {
    let subject = "pinned memory";
    if may_pin_any_amount(files) {
        return Finding::good(subject, "unlimited (CAP_IPC_LOCK)");
    }
    if limit == RLIM_INFINITY {
        return Finding::good(subject, "unlimited (RLIMIT_MEMLOCK)");
    }
    let says = format!(
        "{} MiB (RLIMIT_MEMLOCK), the most that a cache pins. To raise it from the next login on:",
        limit >> 20
    );
    Finding::note(subject, says)
        .fixed_by("echo '* - memlock unlimited' >/etc/security/limits.d/rdma.conf")
}

fn may_pin_any_amount(files: &Files) -> bool {
    let status = files.read("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
    effective.is_some_and(|it| it >> CAP_IPC_LOCK & 1 == 1)
}

/// Checks the limit on mappings. The limit matters only if the monitor is userfaultfd. Each watch
/// of this monitor splits a mapping at both ends of the watched range.
fn mappings(files: &Files, monitor: Option<&str>) -> Finding {
    let subject = "mappings";
    let limit = files.read("/proc/sys/vm/max_map_count");
    let limit = limit.and_then(|text| text.parse().ok()).unwrap_or(0_u64);
    let says = format!("{limit} per process (vm.max_map_count)");
    if monitor != Some("userfaultfd") || limit >= 4 * ENTRIES {
        return Finding::good(subject, says);
    }
    let says = format!(
        "{says}. Watched ranges take at most half of them, and each range can take two. So a cache \
         retains at most {} registrations. To retain the default of {ENTRIES}:",
        limit / 4
    );
    Finding::note(subject, says).fixed_by(format!("sysctl vm.max_map_count={}", 4 * ENTRIES))
}

fn descriptors(limit: u64) -> Finding {
    let subject = "file descriptors";
    let says =
        format!("{limit} per process (RLIMIT_NOFILE), of which a cache takes up to {DESCRIPTORS}");
    if limit >= 8 * DESCRIPTORS {
        return Finding::good(subject, says);
    }
    Finding::note(subject, says).fixed_by("ulimit -n 1024")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Level;
    use super::super::files::tests::machine;
    use super::*;

    #[test]
    fn locked_memory_is_bounded_by_the_limit_unless_one_may_exceed_it() {
        let (root, files) = machine(
            "user",
            &[("/proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n")],
        );
        assert_eq!(locked(&files, 8 << 20).level, Level::Note);
        assert!(locked(&files, 8 << 20).says.starts_with("8 MiB"));
        assert_eq!(locked(&files, RLIM_INFINITY).level, Level::Good);
        fs::remove_dir_all(root).unwrap();
        let (root, files) = machine(
            "root",
            &[("/proc/self/status", "CapEff:\t0000000000004000\n")],
        );
        assert_eq!(locked(&files, 8 << 20).level, Level::Good);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn mappings_matter_to_userfaultfd_alone() {
        let (root, files) = machine("maps", &[("/proc/sys/vm/max_map_count", "65530\n")]);
        assert_eq!(mappings(&files, Some("ummunotify")).level, Level::Good);
        let found = mappings(&files, Some("userfaultfd"));
        assert_eq!(found.fix, ["sysctl vm.max_map_count=262144"]);
        fs::remove_dir_all(root).unwrap();
    }
}
