//! Lists and reads the files of the repository: the files that git tracks, and new files that git
//! does not ignore.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::project::Project;

/// A file and its text.
pub(crate) struct Source {
    /// The path, relative to the repository's root.
    pub(crate) path: PathBuf,
    /// The content.
    pub(crate) text: String,
}

/// Returns the paths of all files, relative to the repository's root.
pub(crate) fn paths(project: &Project) -> Result<BTreeSet<PathBuf>, Error> {
    let mut git = Command::new("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let listed = cmd::read(git.current_dir(&project.root)).map_err(|error| {
        Error::SetUp(format!(
            "{error}\nthe check reads the files that git lists: run it in a clone of the repository"
        ))
    })?;
    let names = listed.split('\0').filter(|name| !name.is_empty());
    // git also lists a file that was deleted but is still in the index, so missing files are
    // skipped.
    let paths = names.map(PathBuf::from);
    Ok(paths.filter(|it| project.root.join(it).exists()).collect())
}

/// Reads the files of the repository that have one of these extensions.
pub(crate) fn read(project: &Project, extensions: &[&str]) -> Result<Vec<Source>, Error> {
    let has_one = |path: &PathBuf| extensions.iter().any(|it| has_extension(path, it));
    let paths = paths(project)?.into_iter().filter(has_one);
    let read = |path: PathBuf| {
        let full = project.root.join(&path);
        let text = fs::read_to_string(&full).at(&full)?;
        Ok(Source { path, text })
    };
    paths.map(read).collect()
}

/// Returns whether the path has this extension.
pub(crate) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|it| it == extension)
}
