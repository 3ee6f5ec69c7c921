//! The monitor for a machine without one: watches nothing, so that nothing is cached.

use std::io;

use super::{Cookie, Monitor};
use crate::VaRange;

/// Refuses every watch. A cache on it registers for each lookup: slow, never stale.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMonitor;

// SAFETY: nothing is ever watched, so there is nothing to report.
unsafe impl Monitor for NoMonitor {
    #[inline]
    fn generation(&self) -> u64 {
        0
    }

    fn watch(&self, _: VaRange, _: Cookie) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn drain(&self, _: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        Ok(0)
    }

    fn name(&self) -> &'static str {
        "nothing"
    }
}
