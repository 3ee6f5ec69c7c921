//! The errors of a call: their messages and their errnos.

use std::ffi::c_int;
use std::fmt;
use std::io;

use regcache::error::chain;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} is NULL")]
    Null { what: &'static str },
    #[error("{handle:#x} is not a {kind}: no {kind} of this process has ever had this handle")]
    Foreign { kind: &'static str, handle: u64 },
    #[error("{kind} {handle:#x} was destroyed, or is being destroyed: create another one")]
    Destroyed { kind: &'static str, handle: u64 },
    #[error("{handle:#x} is not a guard: no lookup of this process has ever returned it")]
    NoGuard { handle: u64 },
    #[error("guard {handle:#x} was put already: put each guard once")]
    PutAlready { handle: u64 },
    #[error(
        "this call comes from within reg_mr or dereg_mr of a cache: in these callbacks, call no \
         function with a cache or a pool"
    )]
    Nested,
    #[error("guards of the cache are still out: {held}. Put them first, then destroy the cache")]
    Held { held: usize },
    #[error(
        "{what}: size is {size}, but a struct regcache_{what} has at least {least} bytes: set it \
         to sizeof"
    )]
    Small {
        what: &'static str,
        size: usize,
        least: usize,
    },
    #[error(
        "{what} sets a field that this version of the library does not know: the library is older \
         than the header. Install a newer library, or leave the field 0"
    )]
    Large { what: &'static str },
    #[error("{what} is {value:#x}, of which {unknown:#x} is not defined: see regcache.h")]
    Unknown {
        what: &'static str,
        value: u64,
        unknown: u64,
    },
    #[error("too many guards are out: put some. A process can hold 16777216")]
    TooManyGuards,
    #[error("too many {kind}s: destroy some. A process can have {most}")]
    TooMany { kind: &'static str, most: usize },
    #[error(
        "no registration that serves this lookup is cached: use a copy, or call regcache_get() to \
         register the memory"
    )]
    NotCached,
    #[error("the ummunotify monitor is not available")]
    Ummunotify(#[source] regcache::monitor::OpenError),
    #[error("the userfaultfd monitor is not available")]
    Userfaultfd(#[source] regcache::monitor::UserfaultfdError),
    #[error("the {monitor} monitor has no file descriptor to poll")]
    NoDescriptor { monitor: &'static str },
    #[error("the pool cannot be set up")]
    SetUpPool(#[source] io::Error),
    #[error("the table cannot be written")]
    Write(#[source] io::Error),
    #[error("the cache cannot be set up")]
    SetUp(#[source] io::Error),
    #[error(
        "the {kind} cannot be destroyed: membarrier(2) was allowed when the {kind} was created, and \
         is forbidden now. Allow it in the sandbox"
    )]
    Fence {
        kind: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Cache(#[from] regcache::Error),
    #[error("a bug in libregcache, please report it: {message}")]
    Panicked { message: String },
}

impl Error {
    /// Returns the errno, which is positive.
    pub(crate) fn errno(&self) -> c_int {
        match self {
            Self::Null { .. } | Self::Small { .. } | Self::Unknown { .. } => libc::EINVAL,
            Self::Foreign { .. }
            | Self::Destroyed { .. }
            | Self::NoGuard { .. }
            | Self::PutAlready { .. } => libc::EBADF,
            Self::Nested => libc::EDEADLK,
            Self::Held { .. } => libc::EBUSY,
            Self::Large { .. } => libc::E2BIG,
            Self::TooManyGuards | Self::TooMany { .. } => libc::ENOSPC,
            Self::NotCached => libc::ENOENT,
            Self::NoDescriptor { .. } => libc::EOPNOTSUPP,
            Self::Ummunotify(error) => errno_within(error, libc::ENODEV),
            Self::Userfaultfd(error) => errno_within(error, libc::ENODEV),
            Self::Write(source)
            | Self::SetUp(source)
            | Self::SetUpPool(source)
            | Self::Fence { source, .. } => of(source),
            Self::Cache(error) => match error {
                regcache::Error::Range(_) => libc::EINVAL,
                regcache::Error::Forked => libc::ESTALE,
                other => errno_within(other, libc::EIO),
            },
            Self::Panicked { .. } => libc::ENOTRECOVERABLE,
        }
    }

    /// Returns the message, with the causes of the error.
    pub(crate) fn message(&self) -> impl fmt::Display + '_ {
        chain(self)
    }
}

fn of(error: &io::Error) -> c_int {
    match error.kind() {
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Returns the errno of the first system error among the causes of `error`, or `otherwise`.
fn errno_within(error: &(dyn std::error::Error + 'static), otherwise: c_int) -> c_int {
    let mut systems = chain(error).filter_map(|cause| cause.downcast_ref());
    systems.next().map_or(otherwise, of)
}
