//! Unpacks the source of Linux 6.1 from Debian's package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};

/// The Debian package that contains the source.
pub(crate) const PACKAGE: &str = "linux-source-6.1";

/// Returns the version of the installed package.
pub(crate) fn version() -> Result<String, Error> {
    cmd::read(Command::new("dpkg-query").args(["-W", "-f", "${Version}", PACKAGE]))
}

/// Unpacks the files that match one of the patterns into `dir`, and returns the path of the source
/// tree. Does not unpack if `dir` already holds this version. The caller must hold a lock on `dir`.
pub(crate) fn unpack(dir: &Path, patterns: &[&str]) -> Result<PathBuf, Error> {
    let tree = dir.join("linux");
    let extracted = dir.join("extracted");
    let version = version()?;
    if fs::read_to_string(&extracted).is_ok_and(|it| it == version) {
        return Ok(tree);
    }
    eprintln!(
        "xtask: unpacking {PACKAGE} {version} into {}",
        tree.display()
    );
    if tree.exists() {
        fs::remove_dir_all(&tree).at(&tree)?;
    }
    fs::create_dir_all(&tree).at(&tree)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"]);
    tar.arg(format!("/usr/src/{PACKAGE}.tar.xz"));
    tar.arg("--directory").arg(&tree);
    tar.arg("--wildcards").args(patterns);
    cmd::run(&mut tar)?;
    fs::write(&extracted, version).at(&extracted)?;
    Ok(tree)
}
