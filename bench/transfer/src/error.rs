//! What can go wrong while measuring.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device's.
    #[error(transparent)]
    Verbs(#[from] regcache_verbs::Error),
    /// The cache refused.
    #[error(transparent)]
    Lookup(#[from] regcache::Error),
    /// The kernel's.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file's.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A transfer ended badly.
    #[error("a transfer failed: {0}")]
    Transfer(String),
    /// A transfer did not end.
    #[error("nothing completed for {after:?}: is the peer still there?")]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// What was asked for cannot be measured.
    #[error("{0}")]
    Cannot(String),
    /// Bytes arrived that nobody had sent.
    #[error(
        "{bytes} stale bytes by {strategy} in {workload} of {size} bytes: the registration was not of the memory that is \
         mapped"
    )]
    Stale {
        /// By which strategy.
        strategy: String,
        /// In which workload.
        workload: String,
        /// Of which size.
        size: usize,
        /// How many.
        bytes: u64,
    },
    /// A plot could not be drawn.
    #[error("cannot draw {name}: {why}")]
    Plot {
        /// Which.
        name: String,
        /// Why not.
        why: String,
    },
    /// Results that are not ours.
    #[error("{}: not results of this program, or of another version", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Says what was tried.
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
