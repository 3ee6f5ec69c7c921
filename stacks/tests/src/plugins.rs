//! The paths of our libraries, under the names that the stacks expect.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A directory that contains our libraries.
pub struct Plugins {
    directory: PathBuf,
}

impl Plugins {
    /// Makes the directory. Each of its files is a link to a library next to this program, where
    /// cargo puts it.
    ///
    /// # Errors
    ///
    /// Returns the error of the file system, for example if cargo has not built a library.
    pub fn link() -> io::Result<Self> {
        let program = env::current_exe()?;
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
            let built = built_next_to(&program, built)?;
            match symlink(built, link) {
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

/// Returns the path of a library that cargo has built for this program. The library is in the
/// directory of the program, or in `deps` below it.
fn built_next_to(program: &Path, library: &str) -> io::Result<PathBuf> {
    let places = [
        program.with_file_name(library),
        program.with_file_name("deps").join(library),
    ];
    let found = places.iter().find(|place| place.exists());
    found.cloned().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{library} is not next to {}: build the workspace",
                program.display()
            ),
        )
    })
}
