//! [`Error`]: the reasons why a measurement fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failed measurement, with its reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device failed.
    #[error(transparent)]
    Verbs(#[from] regcache_verbs::Error),
    /// A lookup failed.
    #[error(transparent)]
    Lookup(#[from] regcache::Error),
    /// A call of the kernel failed.
    #[error("cannot {what}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot use the file {}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A transfer failed.
    #[error("a transfer failed: {0}")]
    Transfer(String),
    /// A transfer did not end in time.
    #[error("no transfer completed for {after:?}: check that the other end is still running")]
    TimedOut {
        /// The time for which the thread waited.
        after: Duration,
    },
    /// The measurement is not possible, for the reason in the text.
    #[error("{0}")]
    Cannot(String),
    /// Stale bytes arrived.
    #[error(
        "{strategy} moved {bytes} stale bytes in {workload} of {size} bytes: its registration was stale"
    )]
    Stale {
        /// The strategy.
        strategy: String,
        /// The workload.
        workload: String,
        /// The number of bytes in a transfer.
        size: usize,
        /// The number of stale bytes.
        bytes: u64,
    },
    /// A plot could not be drawn.
    #[error("cannot draw {name}: {why}")]
    Plot {
        /// The title of the plot.
        name: String,
        /// The cause.
        why: String,
    },
    /// A file does not contain results of this version of the program.
    #[error("{} does not contain results of this version of the program: measure again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// Turns the result of an action into an [`Error`] that names the action.
pub(crate) trait Trying<T> {
    fn trying(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Trying<T> for io::Result<T> {
    fn trying(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what, source })
    }
}

impl<T> Trying<T> for nix::Result<T> {
    fn trying(self, what: &'static str) -> Result<T, Error> {
        self.map_err(io::Error::from).trying(what)
    }
}

impl From<regcache::RangeError> for Error {
    fn from(error: regcache::RangeError) -> Self {
        Self::Lookup(error.into())
    }
}
