//! What can go wrong in a developer's command. Each message ends with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file could not be read, written or removed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A program could not be started, or ended with a failure.
    #[error("{command}: {why}")]
    Command {
        /// The command line, as one would type it.
        command: String,
        /// Its status, and its output where that was not shown already.
        why: String,
    },

    /// A command printed something other than what it is known to print.
    #[error("{command} printed something unexpected: {what}")]
    Unexpected {
        /// The command line.
        command: String,
        /// What was looked for.
        what: String,
    },

    /// Something must be installed, and we may not or cannot do it.
    #[error("{0}")]
    SetUp(String),

    /// The driver does not build without warnings.
    #[error("{0}")]
    Driver(String),

    /// The sources break a rule of `cargo xtask check`. The violations are printed already.
    #[error("{0}")]
    Check(String),

    /// The virtual machine did not come up, died, or its kernel complained.
    #[error("{0}")]
    Vm(String),

    /// The command in the virtual machine was stopped at its time limit.
    #[error("{0}")]
    TimedOut(String),
}

impl Error {
    /// The exit status for this error: as `timeout(1)` has it, 124 for a command that ran too long and 125 for a
    /// fault that is not the command's.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::TimedOut(_) => 124,
            _ => 125,
        }
    }
}

/// Adds the path to an I/O error.
pub(crate) trait AtPath<T> {
    /// Says which file the error is about.
    fn at(self, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::File {
            path: path.as_ref().to_path_buf(),
            source,
        })
    }
}
