//! [`Auto`]: the best sound monitor of this machine.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::contract::{Cookie, Monitor};
use super::none::NoMonitor;
use super::ummunotify::{OpenError, Ummunotify};
#[cfg(feature = "userfaultfd")]
use super::userfaultfd::Userfaultfd;
use crate::range::VaRange;

/// The monitor that [`auto`] has chosen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Auto {
    /// The ummunotify driver.
    Ummunotify(Ummunotify),
    /// userfaultfd, with a check at each lookup.
    #[cfg(feature = "userfaultfd")]
    Userfaultfd(Box<Userfaultfd>),
    /// The absence of a monitor. The cache retains no registration.
    None(NoMonitor),
}

/// Returns the first of these monitors that works on this machine:
///
/// 1. [`Ummunotify`], if `/dev/ummunotify` opens;
/// 2. `Userfaultfd` with a check at each lookup, if the crate is built with the feature
///    `userfaultfd`. This monitor needs Linux 6.7. Since Linux 6.13 the process also needs a
///    privilege (`UserfaultfdError::GuardPages`);
/// 3. [`NoMonitor`], with a warning in the log that states the reasons.
///
/// If an application must not run without the driver, it should call [`Ummunotify::open`] itself.
#[must_use]
pub fn auto() -> Auto {
    match Ummunotify::open() {
        Ok(monitor) => Auto::Ummunotify(monitor),
        Err(error) => without_driver(&error),
    }
}

#[cfg(feature = "userfaultfd")]
fn without_driver(no_driver: &OpenError) -> Auto {
    match Userfaultfd::open() {
        Ok(monitor) => {
            tracing::debug!(
                why = no_driver as &dyn std::error::Error,
                "userfaultfd is used in place of ummunotify: each lookup makes some system calls"
            );
            Auto::Userfaultfd(Box::new(monitor))
        }
        Err(error) => {
            tracing::warn!(
                ummunotify = no_driver as &dyn std::error::Error,
                userfaultfd = &error as &dyn std::error::Error,
                "no sound monitor: registrations are not cached"
            );
            Auto::None(NoMonitor)
        }
    }
}

#[cfg(not(feature = "userfaultfd"))]
fn without_driver(no_driver: &OpenError) -> Auto {
    tracing::warn!(
        ummunotify = no_driver as &dyn std::error::Error,
        "no sound monitor: registrations are not cached"
    );
    Auto::None(NoMonitor)
}

/// Evaluates an expression with the chosen monitor.
macro_rules! chosen {
    ($auto:expr, $monitor:ident => $result:expr) => {
        match $auto {
            Auto::Ummunotify($monitor) => $result,
            #[cfg(feature = "userfaultfd")]
            Auto::Userfaultfd($monitor) => $result,
            Auto::None($monitor) => $result,
        }
    };
}

// SAFETY: each of the monitors keeps the rules of the trait.
unsafe impl Monitor for Auto {
    const CHECKED: bool = true;

    #[inline]
    fn generation(&self) -> u64 {
        chosen!(self, m => m.generation())
    }

    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        chosen!(self, m => m.is_intact(range))
    }

    fn counter(&self) -> Option<NonNull<AtomicU64>> {
        chosen!(self, m => m.counter())
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        chosen!(self, m => m.watch(range, cookie))
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        chosen!(self, m => m.unwatch(cookie))
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        chosen!(self, m => m.drain(invalidated))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        chosen!(self, m => m.descriptor())
    }

    fn name(&self) -> &'static str {
        chosen!(self, m => m.name())
    }
}
