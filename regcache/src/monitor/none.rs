//! [`NoMonitor`], for machines without a sound monitor. It refuses every watch, so the
//! cache retains no registration. Its [`name`](Monitor::name) is `nothing`; elsewhere this monitor
//! is called none.

use std::io;

use super::contract::{Cookie, Monitor};
use crate::range::VaRange;

/// A monitor that refuses every watch. A cache with this monitor registers at each lookup. Such
/// lookups are slow, but never return a stale registration.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMonitor;

// SAFETY: `watch` always fails. So no range is ever watched, and the rules require no report.
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
