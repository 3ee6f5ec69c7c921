//! [`fake_driver`]: a library that takes the place of the driver.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::shared_library::shared_library;

/// Returns the path of a library that replaces the driver of a program which preloads it. The
/// replacement accepts every watch and reports nothing.
///
/// # Panics
///
/// Panics if the library does not compile.
pub fn fake_driver() -> PathBuf {
    static LIBRARY: LazyLock<PathBuf> =
        LazyLock::new(|| shared_library("fake-driver", "tests/support/c/fake-driver.c"));
    LIBRARY.clone()
}
