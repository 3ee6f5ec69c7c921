//! Defines the errors of the developers' commands. Each message describes the remedy.

use std::io;
use std::path::{Path, PathBuf};

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file could not be read, written or removed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },

    /// A program could not be started, or ended with a failure.
    #[error("{command}: {why}")]
    Command {
        /// The command line, in the form that a user types.
        command: String,
        /// The exit status, and the output if it was not shown before.
        why: String,
    },

    /// The output of a command does not have the expected form.
    #[error("{command} printed something unexpected: {what}")]
    Unexpected {
        /// The command line.
        command: String,
        /// The part that is missing or wrong.
        what: String,
    },

    /// A requirement is missing, and only the user can install it.
    #[error("{0}")]
    SetUp(String),

    /// The driver does not build without warnings.
    #[error("{0}")]
    Driver(String),

    /// The sources break a rule of `cargo xtask check`. The violations were already printed.
    #[error("{0}")]
    Check(String),

    /// The virtual machine did not start, the machine died, or its kernel complained.
    #[error("{0}")]
    Vm(String),

    /// The command in the virtual machine was stopped at its time limit.
    #[error("{0}")]
    TimedOut(String),
}

impl Error {
    /// Returns the exit status for this error, as `timeout(1)` defines it. The status is 124 if the
    /// command was stopped at its time limit, and 125 if the virtual machine or xtask failed.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::TimedOut(_) => 124,
            _ => 125,
        }
    }
}

/// Adds a path to an I/O error.
pub(crate) trait AtPath<T> {
    /// Adds the path of the file that caused the error.
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
