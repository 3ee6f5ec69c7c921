//! [`Workspace`]: a copy of the repository, to which one mutant after the other is applied.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::mutant::Mutant;
use crate::cmd;
use crate::dir::make_empty;
use crate::error::Error;
use crate::project::Project;

/// The copy, and its target directory. All mutants use the same two, so that cargo builds only the
/// crates that a mutant changes.
pub(super) struct Workspace {
    root: PathBuf,
    pub(super) target: PathBuf,
}

impl Workspace {
    /// Copies the files that git knows, as they are now.
    pub(super) fn copy(project: &Project) -> Result<Self, Error> {
        let dir = project.own_dir().join("mutants");
        let (root, target) = (dir.join("workspace"), dir.join("target"));
        make_empty(&root)?;
        let script = format!(
            "git ls-files -z | xargs -0 cp --parents --no-dereference -t {}",
            cmd::shell_quote(&root.to_string_lossy())
        );
        let mut copy = Command::new("sh");
        cmd::run(copy.args(["-c", &script]).current_dir(&project.root))?;
        Ok(Self { root, target })
    }

    /// Calls `job` with the root of the copy while the mutant is applied to it.
    pub(super) fn with<T>(
        &self,
        mutant: &Mutant,
        job: impl FnOnce(&Path) -> Result<T, Error>,
    ) -> Result<T, Error> {
        mutant.apply(&self.root, &["-p1"])?;
        let done = job(&self.root);
        mutant.apply(&self.root, &["-p1", "--reverse"])?;
        done
    }
}
