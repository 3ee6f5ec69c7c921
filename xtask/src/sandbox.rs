//! Provides a sandbox: a view of a root file system whose changes are lost.
//!
//! The view is an overlay over the root, and its changes are kept in memory. The mounts are in a
//! mount namespace that belongs to one thread. So no other process sees the mounts, and the kernel
//! removes the mounts even if this process is killed.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::error::{AtPath, Error};
use crate::project::Project;

/// The overlay, which exists while the thread of its mount namespace runs.
pub(crate) struct Sandbox {
    /// The root without the changes.
    lower: PathBuf,
    /// The root with the changes.
    pub(crate) root: PathBuf,
    /// The directory in which the overlay records the changes.
    upper: PathBuf,
}

/// Mounts the sandbox over `root`, and runs the job in the sandbox. The programs that the job
/// starts also run in the sandbox. Only the user root can mount the sandbox.
pub(crate) fn over<T: Send>(
    project: &Project,
    root: &Path,
    job: impl FnOnce(&Sandbox) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let dir = project.own_dir().join("sandbox");
    fs::create_dir_all(&dir).at(&dir)?;
    thread::scope(|scope| {
        let done = scope.spawn(|| job(&Sandbox::mount(&dir, root)?)).join();
        done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

impl Sandbox {
    fn mount(dir: &Path, root: &Path) -> Result<Self, Error> {
        let own = |path: &Path| (path.join("root"), path.join("upper"), path.join("work"));
        let (merged, upper, work) = own(dir);
        let none = None::<&str>;
        let nothing = MsFlags::empty();
        unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(Some("tmpfs"), dir, Some("tmpfs"), nothing, none))
            .map_err(io::Error::from)
            .at(dir)?;
        for made in [&merged, &upper, &work] {
            fs::create_dir(made).at(made)?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            root.display(),
            upper.display(),
            work.display()
        );
        let devices = merged.join("dev");
        mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            nothing,
            Some(options.as_str()),
        )
        .and_then(|()| mount(Some("/dev"), &devices, none, MsFlags::MS_BIND, none))
        .map_err(io::Error::from)
        .at(&merged)?;
        Ok(Self {
            lower: root.to_path_buf(),
            root: merged,
            upper,
        })
    }

    /// Returns the paths that were added, removed or changed, relative to the root. A path counts
    /// as changed if its name, content, mode or owner differs. A different time alone does not
    /// count as a change. For an added directory, returns only the path of the directory itself.
    pub(crate) fn changes(&self) -> Result<BTreeSet<PathBuf>, Error> {
        let mut found = BTreeSet::new();
        self.compare(Path::new(""), &mut found)?;
        Ok(found)
    }

    /// Compares a directory that exists in both roots and in `upper`. A directory that is not in
    /// `upper` has not changed.
    fn compare(&self, dir: &Path, found: &mut BTreeSet<PathBuf>) -> Result<(), Error> {
        let before = names(&self.lower.join(dir))?;
        let after = names(&self.root.join(dir))?;
        found.extend(before.symmetric_difference(&after).map(|it| dir.join(it)));
        for name in before.intersection(&after) {
            let path = dir.join(name);
            let (old, new) = (self.lower.join(&path), self.root.join(&path));
            // A path that is not in `upper` has not changed, even if something is mounted on it.
            if fs::symlink_metadata(self.upper.join(&path)).is_err() {
                continue;
            }
            let was = fs::symlink_metadata(&old).at(&old)?;
            let is = fs::symlink_metadata(&new).at(&new)?;
            let same_content = if was.is_file() && is.is_file() {
                fs::read(&old).at(&old)? == fs::read(&new).at(&new)?
            } else if was.is_symlink() && is.is_symlink() {
                fs::read_link(&old).at(&old)? == fs::read_link(&new).at(&new)?
            } else {
                true
            };
            let outside = |it: &Metadata| (it.mode(), it.uid(), it.gid(), it.rdev());
            if !same_content || outside(&was) != outside(&is) {
                found.insert(path);
            } else if was.is_dir() {
                self.compare(&path, found)?;
            }
        }
        Ok(())
    }
}

fn names(dir: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let entries = fs::read_dir(dir).at(dir)?;
    entries
        .map(|entry| Ok(PathBuf::from(entry.at(dir)?.file_name())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_seen_there_and_lost() {
        let project = Project::find().unwrap();
        let root = std::env::temp_dir().join(format!("xtask-sandbox-{}", std::process::id()));
        for dir in ["dev", "a/b", "c"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in ["a/changed", "a/kept", "a/removed", "c/mode"] {
            fs::write(root.join(file), file).unwrap();
        }
        let changes = over(&project, &root, |sandbox| {
            let at = |path: &str| sandbox.root.join(path);
            fs::write(at("a/kept"), "a/kept").unwrap();
            assert_eq!(sandbox.changes()?, BTreeSet::new());
            fs::write(at("a/changed"), "a/CHANGED").unwrap();
            fs::remove_file(at("a/removed")).unwrap();
            fs::create_dir_all(at("a/b/new/dir")).unwrap();
            let readonly = std::os::unix::fs::PermissionsExt::from_mode(0o400);
            fs::set_permissions(at("c/mode"), readonly).unwrap();
            sandbox.changes()
        });
        let kept = fs::read(root.join("a/changed")).unwrap() == b"a/changed"
            && root.join("a/removed").exists()
            && !root.join("a/b/new").exists();
        fs::remove_dir_all(root).unwrap();
        assert!(kept);
        match changes {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("this test is not allowed to mount anything here");
            }
            changes => {
                let expected = ["a/b/new", "a/changed", "a/removed", "c/mode"];
                let expected = expected.iter().map(PathBuf::from).collect();
                assert_eq!(changes.unwrap(), expected);
            }
        }
    }
}
