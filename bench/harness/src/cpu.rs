//! Pins threads to CPUs.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A value that keeps a thread pinned to one CPU. Dropping the value in that thread restores the
/// thread's earlier set of CPUs.
#[derive(Debug)]
pub struct Pinned(Option<CpuSet>);

impl Pinned {
    /// Pins the calling thread to one CPU. `which` is the index of this CPU among the CPUs that the
    /// thread may use. If `which` is too large, the thread stays unpinned.
    #[must_use]
    pub fn to(which: usize) -> Self {
        let pin = || -> io::Result<CpuSet> {
            let allowed = sched_getaffinity(Pid::from_raw(0))?;
            if let Some(cpu) = cpus(&allowed).nth(which) {
                let mut one = CpuSet::new();
                one.set(cpu)?;
                sched_setaffinity(Pid::from_raw(0), &one)?;
            }
            Ok(allowed)
        };
        Self(pin().ok())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(allowed) = &self.0 {
            // The thread used this set of CPUs before it was pinned, so the kernel accepts the set
            // again.
            let _ = sched_setaffinity(Pid::from_raw(0), allowed);
        }
    }
}

/// Returns the number of CPUs that the calling thread may use.
#[must_use]
pub fn cpu_count() -> usize {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |allowed| cpus(&allowed).count())
}

fn cpus(allowed: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
}
