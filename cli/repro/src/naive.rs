//! [`NeverReports`]: the monitor of a naive cache.

use std::io;

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// A monitor that accepts every watch and never reports. A cache on it runs the same code as every
/// other, and has the reuse bug.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeverReports;

// SAFETY: it is deliberately unsound. The tests that use it move no mapping to another address, so
// that a stale registration reaches only pages that are mapped nowhere.
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
