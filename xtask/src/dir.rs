//! [`make_empty`]: makes a directory for the products of one run.

use std::fs;
use std::path::Path;

use crate::error::{AtPath, Error};

/// Makes the directory empty. Creates the directory if it is missing.
pub(crate) fn make_empty(dir: &Path) -> Result<(), Error> {
    if dir.exists() {
        fs::remove_dir_all(dir).at(dir)?;
    }
    fs::create_dir_all(dir).at(dir)
}
