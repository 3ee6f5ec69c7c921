//! Provides [`FakeMonitor`], a monitor of memory that never changes.

use std::io;

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// A monitor of memory that never changes. It reaches no cancellation point.
pub(crate) struct FakeMonitor;

// SAFETY: no registration can become stale, because the devices of these tests reach no memory.
unsafe impl Monitor for FakeMonitor {
    const CANCELLATION_POINT: bool = false;

    fn generation(&self) -> u64 {
        1
    }

    fn watch(&self, _: VaRange, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self, _: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        Ok(1)
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}
