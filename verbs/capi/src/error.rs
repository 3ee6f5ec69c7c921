//! What a call can fail with: its message and its errno.

use std::ffi::c_int;
use std::fmt;
use std::io;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} is NULL")]
    Null { what: &'static str },
    #[error("{number:#x} is not a cache: none with this handle was ever made in this process")]
    NoCache { number: u64 },
    #[error("cache {number:#x} was destroyed, or is being destroyed")]
    Destroyed { number: u64 },
    #[error("{number:#x} is not a guard: regcache_get never gave it to this process")]
    NoGuard { number: u64 },
    #[error("guard {number:#x} was put already: each is to be put once")]
    PutAlready { number: u64 },
    #[error(
        "this is called from within reg_mr or dereg_mr of a cache: no cache can be used there, guards can be put"
    )]
    Nested,
    #[error("guards of the cache that are still out: {held}. Put them first, then destroy it")]
    Held { held: usize },
    #[error(
        "{what}: size is {size}, but a struct regcache_{what} has at least {least} bytes: set it to sizeof"
    )]
    Small {
        what: &'static str,
        size: usize,
        least: usize,
    },
    #[error(
        "{what} has something set that this version of the library does not know: it is older than the header"
    )]
    Large { what: &'static str },
    #[error("{what} is {value:#x}, of which {unknown:#x} means nothing here")]
    Unknown {
        what: &'static str,
        value: u64,
        unknown: u64,
    },
    #[error("too many guards are out: 16777216 is what a process can have")]
    TooManyGuards,
    #[error("too many caches: {most} is what a process can have")]
    TooManyCaches { most: usize },
    #[error("the ummunotify monitor cannot be had")]
    Ummunotify(#[source] regcache::monitor::OpenError),
    #[error("the userfaultfd monitor cannot be had")]
    Userfaultfd(#[source] regcache::monitor::UserfaultfdError),
    #[error("the {monitor} monitor has no descriptor to wait for")]
    NoDescriptor { monitor: &'static str },
    #[error("the cache cannot be set up")]
    SetUp(#[source] io::Error),
    #[error(
        "no fence in the other threads: membarrier(2) was allowed when the cache was made, and now is not"
    )]
    Fence(#[source] io::Error),
    #[error(transparent)]
    Cache(#[from] regcache::Error),
    #[error("a bug of libregcache's, please report it: {message}")]
    Panicked { message: String },
}

impl Error {
    /// Positive.
    pub(crate) fn errno(&self) -> c_int {
        match self {
            Self::Null { .. } | Self::Small { .. } | Self::Unknown { .. } => libc::EINVAL,
            Self::NoCache { .. }
            | Self::Destroyed { .. }
            | Self::NoGuard { .. }
            | Self::PutAlready { .. } => libc::EBADF,
            Self::Nested => libc::EDEADLK,
            Self::Held { .. } => libc::EBUSY,
            Self::Large { .. } => libc::E2BIG,
            Self::TooManyGuards | Self::TooManyCaches { .. } => libc::ENOSPC,
            Self::NoDescriptor { .. } => libc::EOPNOTSUPP,
            Self::Ummunotify(error) => errno_within(error, libc::ENODEV),
            Self::Userfaultfd(error) => errno_within(error, libc::ENODEV),
            Self::SetUp(error) | Self::Fence(error) => of(error),
            Self::Cache(error) => match error {
                regcache::Error::Range(_) => libc::EINVAL,
                regcache::Error::Forked => libc::ESTALE,
                other => errno_within(other, libc::EIO),
            },
            Self::Panicked { .. } => libc::ENOTRECOVERABLE,
        }
    }

    /// With all that led to it.
    pub(crate) fn message(&self) -> impl fmt::Display + '_ {
        Whole(self)
    }
}

fn of(error: &io::Error) -> c_int {
    match error.kind() {
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// The errno of the system's error that led to this one.
fn errno_within(error: &(dyn std::error::Error + 'static), otherwise: c_int) -> c_int {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(system) = error.downcast_ref::<io::Error>() {
            return of(system);
        }
        cause = error.source();
    }
    otherwise
}

struct Whole<'e>(&'e Error);

impl fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
