//! Unpacks the source of a kernel from Debian's package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::dir::make_empty;
use crate::error::{AtPath, Error};

/// The Debian package that contains the source of Linux 6.1.
pub(crate) const PACKAGE: &str = "linux-source-6.1";

/// An installed package that contains the source of a kernel.
pub(crate) struct Package<'a> {
    /// The name of the package.
    pub(crate) name: &'static str,
    /// The root file system in which the package is installed.
    pub(crate) root: &'a Path,
}

impl Package<'static> {
    /// Returns the package of Linux 6.1, which is installed on this machine.
    pub(crate) fn at_home() -> Self {
        Self {
            name: PACKAGE,
            root: Path::new("/"),
        }
    }
}

impl Package<'_> {
    /// Returns the version of the package.
    pub(crate) fn version(&self) -> Result<String, Error> {
        let mut query = Command::new("dpkg-query");
        query.arg("--admindir").arg(self.root.join("var/lib/dpkg"));
        cmd::read(query.args(["-W", "-f", "${Version}", self.name]))
    }

    /// Returns whether `dir` holds the source of this version.
    pub(crate) fn is_unpacked(&self, dir: &Path) -> Result<bool, Error> {
        let version = self.version()?;
        Ok(fs::read_to_string(mark(dir)).is_ok_and(|it| it == version))
    }

    /// Unpacks the files that match one of the patterns into `dir`, and returns the path of the
    /// source tree. Does not unpack if `dir` already holds this version. The caller must hold a
    /// lock on `dir`.
    pub(crate) fn unpack(&self, dir: &Path, patterns: &[&str]) -> Result<PathBuf, Error> {
        let tree = dir.join("linux");
        if self.is_unpacked(dir)? {
            return Ok(tree);
        }
        let version = self.version()?;
        eprintln!(
            "xtask: unpacking {} {version} into {}",
            self.name,
            tree.display()
        );
        make_empty(&tree)?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"]);
        tar.arg(self.root.join(format!("usr/src/{}.tar.xz", self.name)));
        tar.arg("--directory").arg(&tree);
        tar.arg("--wildcards").args(patterns);
        cmd::run(&mut tar)?;
        let mark = mark(dir);
        fs::write(&mark, version).at(&mark)?;
        Ok(tree)
    }
}

/// Returns the file that contains the version of the unpacked source.
fn mark(dir: &Path) -> PathBuf {
    dir.join("extracted")
}
