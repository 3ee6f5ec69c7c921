//! Changes of memory by the kernel itself and by others, and which of them the driver reports.
//!
//! These tests change settings of the whole machine, and restore them. They run one at a time and
//! in a program of their own. A compaction, for example, moves pages of every process, and would
//! cause invalidations that another test counts.
#![expect(clippy::unwrap_used, reason = "a test")]

mod accounting;
mod changes;
mod ends;
mod machine;
mod memory;
mod pinned;

use std::sync::{Mutex, MutexGuard, PoisonError};

use machine::Setting;

/// Each test holds it while it runs. Then only the test itself moves pages.
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
