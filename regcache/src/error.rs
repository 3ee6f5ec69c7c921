//! What can go wrong, and what its reader can do about it.

use std::io;

/// Why a lookup could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The range is empty.
    #[error("cannot register 0 bytes at {start:#x}: ask for at least one")]
    ZeroLength {
        /// Address asked for.
        start: usize,
    },
    /// The range runs past the end of the address space.
    #[error("{len} bytes at {start:#x} run past the end of the address space: check the length")]
    AddressWraps {
        /// Address asked for.
        start: usize,
        /// Bytes asked for.
        len: usize,
    },
    /// The device or the kernel refused to register the range.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Any other refusal.
    #[error("the device refused")]
    Device {
        /// The device's own error.
        #[source]
        source: io::Error,
    },
}
