//! What the kernel does to memory by itself, and what others do to it: which of that the driver reports.
//!
//! These tests change settings of the whole machine, and put them back. They run one at a time, and
//! in a program of their own: a compaction, say, moves every process's pages, and would make
//! invalidations where another test counts them.
#![expect(clippy::unwrap_used, reason = "a test")]

mod accounting;
mod changes;
mod ends;
mod machine;
mod memory;
mod pinned;

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use regcache_tests_vm::DriverFile;

use machine::Setting;

/// Held by each test for as long as it runs. Nothing is moved then but what the test wants moved.
struct Alone {
    _still: Setting,
    _lock: MutexGuard<'static, ()>,
}

fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    Alone {
        _lock: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
        _still: Setting::set("/proc/sys/vm/compaction_proactiveness", "0"),
    }
}

/// The cookies of the ranges that were hit since the last time.
fn hits(device: &DriverFile) -> Vec<u64> {
    match device.drain() {
        Ok((cookies, _)) => cookies,
        Err(errno) => {
            assert_eq!(errno, Errno::EAGAIN);
            Vec::new()
        }
    }
}
