//! The paths of our libraries, under the names that the stacks expect.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use regcache_test_support::built_library;

/// A directory that contains our libraries.
pub struct Plugins {
    directory: PathBuf,
}

impl Plugins {
    /// Makes the directory. Each of its files is a link to a library that cargo has built.
    ///
    /// # Errors
    ///
    /// Returns the error of the file system, for example if cargo has not built a library.
    pub fn link() -> io::Result<Self> {
        let directory = env::temp_dir().join(format!("regcache-stacks.{}", std::process::id()));
        fs::create_dir_all(directory.join("libfabric"))?;
        let plugins = Self { directory };
        let fi = plugins.fi();
        let ucx = plugins.ucx();
        let shim = plugins.shim();
        for (built, link) in [
            ("libregcache_fi.so", fi),
            ("libregcache_ucx.so", ucx),
            ("librcpreload.so", shim),
        ] {
            match symlink(built_library(built)?, link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(plugins)
    }

    /// Returns the directory that libfabric searches for providers.
    pub fn providers(&self) -> PathBuf {
        self.directory.join("libfabric")
    }

    /// Returns the path of the monitor for libfabric.
    pub fn fi(&self) -> PathBuf {
        self.providers().join("libregcache-fi.so")
    }

    /// Returns the path of the monitor for UCX.
    pub fn ucx(&self) -> PathBuf {
        self.directory.join("libregcache-ucx.so")
    }

    /// Returns the path of the shim.
    pub fn shim(&self) -> PathBuf {
        self.directory.join("librcpreload.so")
    }
}
