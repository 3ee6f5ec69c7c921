//! [`Opened`]: opens the kind of userfaultfd that the monitor needs.
//!
//! Every process may open a userfaultfd that handles only faults of user mode. Such a userfaultfd
//! suffices if every change of pages sends an event. Linux 6.13 added a change without an event.
//! `MADV_GUARD_INSTALL` removes pages, and the first touch after `MADV_GUARD_REMOVE` brings new
//! ones. To see that change, the monitor has to handle the fault on each missing page.
//!
//! The kernel itself may cause a fault on a missing page, for example when `read(2)` writes into
//! the page. With a userfaultfd that handles only faults of user mode, that `read` would fail. So
//! the monitor needs a userfaultfd that handles all faults, which requires a privilege.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use super::raw;

/// The reason why userfaultfd could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultfdError {
    /// The kernel or a sandbox refuses the system call.
    #[error(
        "userfaultfd(2) is refused: it needs Linux 5.11 or later with CONFIG_USERFAULTFD, and a sandbox must not forbid it"
    )]
    Refused {
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel cannot report changes in time.
    #[error(
        "this kernel cannot check whether memory has changed: use Linux 6.7 or later (WP_ASYNC and PAGEMAP_SCAN), or the ummunotify driver; userfaultfd's events alone come too late, because another thread can get an address before the event of its unmapping can be read"
    )]
    NoCheck {
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel can replace memory by guard pages without an event (since Linux 6.13).
    #[error(
        "this kernel has guard pages (MADV_GUARD_INSTALL), which a process cannot detect unless it may handle the kernel's page faults: allow it to open /dev/userfaultfd, give it CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1; a program that installs no guard pages in registered memory can call open_unprivileged"
    )]
    GuardPages {
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refused something else that the monitor needs.
    #[error("cannot set userfaultfd up")]
    SetUp {
        /// The kernel's error.
        source: io::Error,
    },
}

/// The kinds of changes that a monitor must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// The monitor sees only changes that events report.
    Events,
    /// In addition, the monitor sees changes that the check finds without a privilege.
    Mappings,
    /// In addition, the monitor sees removals of single pages without an event.
    Pages,
}

/// A userfaultfd that sends events.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) uffd: OwnedFd,
    /// True if the userfaultfd also reports faults on missing pages, so that the reader has to
    /// serve them.
    pub(super) asks_for_pages: bool,
}

impl Opened {
    pub(super) fn with(sight: Sight) -> Result<Self, UserfaultfdError> {
        let asks_for_pages = sight == Sight::Pages && has_guard_pages();
        let uffd = if asks_for_pages {
            for_all_faults()?
        } else {
            for_user_mode()?
        };
        let events =
            raw::FEATURE_EVENT_UNMAP | raw::FEATURE_EVENT_REMAP | raw::FEATURE_EVENT_REMOVE;
        let checks = match sight {
            Sight::Events => 0,
            Sight::Mappings | Sight::Pages => raw::FEATURE_WP_UNPOPULATED | raw::FEATURE_WP_ASYNC,
        };
        let mut api = raw::Api {
            api: raw::API,
            features: events | checks,
            ioctls: 0,
        };
        // SAFETY: the structure may be read and written.
        unsafe { raw::api(uffd.as_raw_fd(), &raw mut api) }.map_err(|errno| {
            let source = errno.into();
            if sight == Sight::Events {
                UserfaultfdError::SetUp { source }
            } else {
                UserfaultfdError::NoCheck { source }
            }
        })?;
        Ok(Self {
            uffd,
            asks_for_pages,
        })
    }
}

const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// Calls `userfaultfd(2)`.
fn call(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes flags and returns a file descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS | flags) })?;
    // SAFETY: the file descriptor was just made, and has no other owner. A file descriptor fits in
    // an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens a userfaultfd for faults of user mode, which needs no privilege.
fn for_user_mode() -> Result<OwnedFd, UserfaultfdError> {
    call(raw::USER_MODE_ONLY).map_err(|errno| UserfaultfdError::Refused {
        source: errno.into(),
    })
}

/// Opens a userfaultfd for all faults. The system call succeeds if a capability or a sysctl allows
/// it. Otherwise the function opens `/dev/userfaultfd`, to which an administrator may have granted
/// access.
fn for_all_faults() -> Result<OwnedFd, UserfaultfdError> {
    let refusal = match call(0) {
        Ok(uffd) => return Ok(uffd),
        Err(errno) => errno,
    };
    match by_device() {
        Ok(uffd) => Ok(uffd),
        // `GuardPages` advises the user to grant a privilege. The function returns it only if a
        // userfaultfd for user mode opens, so that the privilege is all that is missing.
        Err(source) if refusal == Errno::EPERM => {
            for_user_mode().and(Err(UserfaultfdError::GuardPages { source }))
        }
        Err(_) => Err(UserfaultfdError::Refused {
            source: refusal.into(),
        }),
    }
}

/// Opens a userfaultfd through `/dev/userfaultfd`.
fn by_device() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let device = options.read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the call takes flags and returns a file descriptor.
    let fd = unsafe { raw::new(device.as_raw_fd(), FLAGS) }?;
    // SAFETY: the file descriptor was just made, and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns true if the kernel supports `MADV_GUARD_INSTALL`. The test call is for 0 bytes, so it
/// changes no memory.
fn has_guard_pages() -> bool {
    // SAFETY: the call affects no memory.
    unsafe { libc::madvise(ptr::null_mut(), 0, raw::MADV_GUARD_INSTALL) == 0 }
}
