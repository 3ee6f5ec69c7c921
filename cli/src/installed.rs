//! Finds the files that are installed with this tool.

use std::env;
use std::path::PathBuf;

/// Returns the path of the installed file `name`. Searches for the file in the directory of this
/// executable, into which cargo builds it, and then in each directory `../<installed_in>`. If the
/// file is in none of these places, the error has all places.
pub(crate) fn find(installed_in: &[&str], name: &str) -> Result<PathBuf, Vec<PathBuf>> {
    let tool = env::current_exe().unwrap_or_default();
    let dir = tool.parent().unwrap_or(&tool);
    let installed = installed_in.iter().map(|it| dir.join("..").join(it));
    let dirs = [dir.to_owned()].into_iter().chain(installed);
    let places: Vec<_> = dirs.map(|dir| dir.join(name)).collect();
    match places.iter().find(|place| place.exists()) {
        Some(place) => Ok(place.canonicalize().unwrap_or_else(|_| place.clone())),
        None => Err(places),
    }
}
