//! Tests changes of memory that the kernel or another process makes. For each change, the tests
//! check whether the driver reports it.
//!
//! These tests change settings of the whole machine, and restore the settings afterwards. Such a
//! setting affects every process. For example, a compaction moves pages of every process, which
//! causes invalidations in other tests. So these tests run one at a time, and in a separate
//! program.
#![expect(clippy::unwrap_used, reason = "a test")]

mod accounting;
mod changes;
mod ends;
mod machine;
mod memory;
mod pinned;

use std::sync::{Mutex, MutexGuard, PoisonError};

use machine::Setting;

/// A guard that each test holds while it runs. The guard excludes other tests and proactive
/// compaction. So only the test itself moves pages.
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
