//! Small libraries in C that tests preload.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::said;

/// Compiles a library in the directory of this program. `source` is a path in the repository.
///
/// # Panics
///
/// Panics if the source does not compile.
pub(crate) fn shared_library(name: &str, source: &str) -> PathBuf {
    let directory = env::current_exe().unwrap_or_default().with_file_name("");
    let library = directory.join(format!("lib{name}.so"));
    // Another suite may use its library of this name at the same time.
    let own = directory.join(format!("lib{name}.{}.so", std::process::id()));
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1"]);
    gcc.args(["-shared", "-fPIC", "-o"]).arg(&own);
    said(gcc.arg(root.join(source)));
    let renamed = fs::rename(&own, &library);
    assert!(renamed.is_ok(), "{}: {renamed:?}", library.display());
    library
}
