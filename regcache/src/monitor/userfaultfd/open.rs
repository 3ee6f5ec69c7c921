//! Which userfaultfd this process can have.
//!
//! One for faults of user mode only is to be had by everybody, and does where every change of pages sends an
//! event. Linux 6.13 brought one that sends none: `MADV_GUARD_INSTALL` takes pages away, and after
//! `MADV_GUARD_REMOVE` the next touch brings others. What remains is to be asked for each page that is
//! missing, which stops whoever touches it, the kernel included: `read(2)` into such a page would fail if
//! nobody could serve the kernel's faults. That takes a userfaultfd for all faults, and so a privilege.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use super::raw;

/// Why userfaultfd could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultfdError {
    /// The kernel, or a sandbox, does not allow the system call.
    #[error(
        "userfaultfd(2) is refused: it takes Linux 5.11 or later with CONFIG_USERFAULTFD, and no sandbox that forbids it"
    )]
    Refused {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel cannot tell in time what was unmapped.
    #[error(
        "this kernel cannot check whether memory is what it was (that takes Linux 6.7: WP_ASYNC and PAGEMAP_SCAN), and userfaultfd's events alone come too late: another thread can be given an address before the event of its being unmapped can be read"
    )]
    NoCheck {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel can put guard pages where memory was without telling anybody (Linux 6.13).
    #[error(
        "this kernel has guard pages (MADV_GUARD_INSTALL), which take memory away unseen by a process that may not serve the kernel's page faults: allow it to open /dev/userfaultfd, give it CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1; a program that makes no guard pages of registered memory can open it by open_unprivileged"
    )]
    GuardPages {
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else that it needs is not to be had.
    #[error("cannot set userfaultfd up")]
    SetUp {
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a monitor is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Events, and no more.
    Events,
    /// What the check finds, without a privilege.
    Mappings,
    /// All of it.
    Pages,
}

/// A userfaultfd that sends events.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) uffd: OwnedFd,
    /// Whether it is to be told of missing pages as well.
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

fn call(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes flags, gives a descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS | flags) })?;
    // SAFETY: just made, and nobody else's. Descriptors fit.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn for_user_mode() -> Result<OwnedFd, UserfaultfdError> {
    call(raw::USER_MODE_ONLY).map_err(|errno| UserfaultfdError::Refused {
        source: errno.into(),
    })
}

/// By the capability or the sysctl; else by the device, which an administrator gives out.
fn for_all_faults() -> Result<OwnedFd, UserfaultfdError> {
    let refusal = match call(0) {
        Ok(uffd) => return Ok(uffd),
        Err(errno) => errno,
    };
    match by_device() {
        Ok(uffd) => Ok(uffd),
        // Only if the rest is to be had.
        Err(source) if refusal == Errno::EPERM => {
            for_user_mode().and(Err(UserfaultfdError::GuardPages { source }))
        }
        Err(_) => Err(UserfaultfdError::Refused {
            source: refusal.into(),
        }),
    }
}

fn by_device() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let device = options.read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: takes flags, gives a descriptor.
    let fd = unsafe { raw::new(device.as_raw_fd(), FLAGS) }?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the kernel knows `MADV_GUARD_INSTALL`; for no bytes at all it does nothing else.
fn has_guard_pages() -> bool {
    // SAFETY: no memory is affected.
    unsafe { libc::madvise(ptr::null_mut(), 0, raw::MADV_GUARD_INSTALL) == 0 }
}
