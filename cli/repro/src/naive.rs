//! Defines [`NeverReports`], the monitor of a naive cache.

use std::io;

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// A monitor that accepts every watch and never reports an invalidation. A cache on this monitor
/// has the reuse bug, although the code of the cache is the same as with any other monitor.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeverReports;

// SAFETY: this monitor is deliberately unsound. But no program that uses this monitor leaves pages
// mapped at another address after it has moved them. So a stale registration reaches only pages
// that are mapped nowhere.
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
