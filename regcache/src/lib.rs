//! A memory-registration cache that never returns a stale registration.

mod error;
mod range;
mod registrar;

pub use error::{Error, RegisterError};
pub use range::VaRange;
pub use registrar::{Access, Registrar};
