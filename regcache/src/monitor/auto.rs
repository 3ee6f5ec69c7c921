//! The best sound monitor that this machine has.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Cookie, Monitor, NoMonitor, Ummunotify, Userfaultfd};
use crate::VaRange;

/// What [`auto`] has chosen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Auto {
    /// The ummunotify driver.
    Ummunotify(Ummunotify),
    /// userfaultfd, with strict checking.
    Userfaultfd(Box<Userfaultfd>),
    /// None: nothing is cached.
    None(NoMonitor),
}

/// ummunotify if `/dev/ummunotify` opens; else userfaultfd with strict checking, where the kernel can
/// (6.7) and lets this process (since 6.13: [`UserfaultfdError::GuardPages`](super::UserfaultfdError)); else [`NoMonitor`], with a warning that says why.
///
/// Open [`Ummunotify`] yourself where anything else should be an error.
#[must_use]
pub fn auto() -> Auto {
    let no_driver = match Ummunotify::open() {
        Ok(monitor) => return Auto::Ummunotify(monitor),
        Err(error) => error,
    };
    match Userfaultfd::open() {
        Ok(monitor) => {
            tracing::debug!(
                why = &no_driver as &dyn std::error::Error,
                "userfaultfd in place of ummunotify: a hit takes some system calls"
            );
            Auto::Userfaultfd(Box::new(monitor))
        }
        Err(error) => {
            tracing::warn!(
                ummunotify = &no_driver as &dyn std::error::Error,
                userfaultfd = &error as &dyn std::error::Error,
                "no sound monitor: registrations are not cached"
            );
            Auto::None(NoMonitor)
        }
    }
}

macro_rules! either {
    ($auto:expr, $monitor:ident => $result:expr) => {
        match $auto {
            Auto::Ummunotify($monitor) => $result,
            Auto::Userfaultfd($monitor) => $result,
            Auto::None($monitor) => $result,
        }
    };
}

// SAFETY: each of the choices is a sound monitor.
unsafe impl Monitor for Auto {
    const CHECKED: bool = true;

    #[inline]
    fn generation(&self) -> u64 {
        either!(self, m => m.generation())
    }

    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        match self {
            Auto::Userfaultfd(monitor) => monitor.is_intact(range),
            Auto::Ummunotify(_) | Auto::None(_) => true,
        }
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
