//! Where what belongs to this tool is.

use std::env;
use std::path::PathBuf;

/// The file, beside this tool or, as it is installed, in this directory beside its directory.
pub(crate) fn find(installed_in: &str, name: &str) -> Result<PathBuf, Vec<PathBuf>> {
    let tool = env::current_exe().unwrap_or_default();
    let dir = tool.parent().unwrap_or(&tool);
    let places = [dir.join(name), dir.join("..").join(installed_in).join(name)];
    match places.iter().find(|place| place.exists()) {
        Some(place) => Ok(place.canonicalize().unwrap_or_else(|_| place.clone())),
        None => Err(places.to_vec()),
    }
}
