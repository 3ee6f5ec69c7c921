//! Libraries that are built with a sanitizer, and preloaded into programs that are not.
//!
//! Such a library needs the runtime of the sanitizer. The runtime must be loaded first, because it
//! replaces functions of libc.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::command::said;
use crate::shared_library::shared_library;

/// The name of the sanitizer with which the libraries under test are built, if there is one.
/// `cargo xtask sanitize` sets this variable.
const VARIABLE: &str = "REGCACHE_TEST_SANITIZER";

/// The directory with the libraries under test. Without this variable, the libraries are next to
/// the tests.
const LIBRARIES: &str = "REGCACHE_TEST_LIBRARIES";

/// Returns the path of a library that cargo builds before the tests. The library is in the
/// directory of this program, or in `deps` below it.
///
/// # Errors
///
/// Returns an error if the library is missing.
pub fn built_library(file: &str) -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let directory = match env::var_os(LIBRARIES) {
        Some(directory) => PathBuf::from(directory),
        None => program.with_file_name(""),
    };
    let places = [directory.join(file), directory.join("deps").join(file)];
    let found = places.iter().find(|place| place.exists());
    found.cloned().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{file} is not in {}: build the workspace",
                directory.display()
            ),
        )
    })
}

/// Returns the value of `LD_PRELOAD` that loads these libraries into a program. If the libraries
/// are built with a sanitizer, its runtime is loaded first.
///
/// # Panics
///
/// Panics if the C compiler does not have the sanitizer's runtime.
pub fn ld_preload(libraries: &[PathBuf]) -> OsString {
    let runtime = env::var(VARIABLE).map_or_else(|_| Vec::new(), |name| runtime(&name));
    let mut list = OsString::new();
    for library in runtime.iter().chain(libraries) {
        if !list.is_empty() {
            list.push(":");
        }
        list.push(library);
    }
    list
}

/// Returns the libraries with the runtime of the sanitizer `address` or `thread`.
///
/// # Panics
///
/// Panics if the C compiler does not have the runtime.
pub fn runtime(sanitizer: &str) -> Vec<PathBuf> {
    let file = match sanitizer {
        "address" => "libasan.so",
        _ => "libtsan.so",
    };
    let path = said(Command::new("gcc").arg(format!("-print-file-name={file}")));
    // GCC prints the bare name of a file that it does not have.
    assert!(path.contains('/'), "GCC has no {file}");
    let mut libraries = vec![PathBuf::from(path)];
    if sanitizer == "thread" {
        libraries.push(missing_functions());
    }
    libraries
}

/// Returns a library with functions that GCC's runtime of ThreadSanitizer does not have.
fn missing_functions() -> PathBuf {
    static LIBRARY: LazyLock<PathBuf> =
        LazyLock::new(|| shared_library("thread", "verbs/capi/tests/sanitized/thread.c"));
    LIBRARY.clone()
}
