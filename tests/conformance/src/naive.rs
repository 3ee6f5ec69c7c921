//! The monitor of a naive cache.

use std::io;

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// Says that it watches, and never reports. A cache on it is what everybody writes first: the same
/// code path as regcache's, with the reuse bug.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeverReports;

// SAFETY: it is not sound, which is what it is for. The tests that use it move no mapping elsewhere, so that
// what the device reaches by a stale registration is mapped nowhere.
unsafe impl Monitor for NeverReports {
    fn generation(&self) -> u64 {
        0
    }

    fn watch(&self, _: VaRange, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self, _: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        Ok(0)
    }

    fn name(&self) -> &'static str {
        "naive"
    }
}
