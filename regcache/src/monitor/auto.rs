//! The best sound monitor that this machine has.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Cookie, Monitor, Nothing, Ummunotify};
use crate::VaRange;

/// What [`auto`] has chosen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Auto {
    /// The ummunotify driver.
    Ummunotify(Ummunotify),
    /// None: nothing is cached.
    Nothing(Nothing),
}

/// ummunotify if `/dev/ummunotify` opens, else [`Nothing`], with a warning that says why.
///
/// Open [`Ummunotify`] yourself where running without a cache should be an error.
#[must_use]
pub fn auto() -> Auto {
    match Ummunotify::open() {
        Ok(monitor) => Auto::Ummunotify(monitor),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "no sound monitor: registrations are not cached"
            );
            Auto::Nothing(Nothing)
        }
    }
}

macro_rules! either {
    ($auto:expr, $monitor:ident => $result:expr) => {
        match $auto {
            Auto::Ummunotify($monitor) => $result,
            Auto::Nothing($monitor) => $result,
        }
    };
}

// SAFETY: each of the choices is a sound monitor.
unsafe impl Monitor for Auto {
    #[inline]
    fn generation(&self) -> u64 {
        either!(self, m => m.generation())
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        either!(self, m => m.watch(range, cookie))
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        either!(self, m => m.unwatch(cookie))
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        either!(self, m => m.drain(invalidated))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        either!(self, m => m.descriptor())
    }

    fn name(&self) -> &'static str {
        either!(self, m => m.name())
    }
}
