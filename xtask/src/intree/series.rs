//! Makes the patch series from `kernel/`.
//!
//! git makes the patches in a small repository, which has only those files of the kernel that the
//! series changes. A second branch gets the patches with `git am`. The result is copied into the
//! tree, so that the tree is built from the patches and not from `kernel/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::transform::{self, Edit};
use crate::cmd;
use crate::dir::make_empty;
use crate::error::{AtPath, Error};
use crate::project::Project;

/// A patch of the series.
struct Patch {
    /// The file of the commit message, in `kernel/intree`.
    message: &'static str,
    /// The new files: their paths in the tree, and the functions that make their texts.
    new: &'static [(&'static str, Make)],
    /// The changes of the tree's own files.
    changed: &'static [(&'static str, Change)],
}

/// Makes the text of a new file from `kernel/`.
#[derive(Clone, Copy)]
enum Make {
    Copy(&'static str),
    Edited(&'static str, &'static [Edit]),
    Document(&'static str),
}

/// A change of a file of the tree.
enum Change {
    Edit(&'static [Edit]),
    /// Inserts the entry of Kconfig before this line.
    Kconfig(&'static str),
}

const SERIES: &[Patch] = &[
    Patch {
        message: "1-interface.txt",
        new: &[(
            "include/uapi/linux/ummunotify.h",
            Make::Edited("include/uapi/linux/ummunotify.h", transform::HEADER),
        )],
        changed: &[(
            "Documentation/userspace-api/ioctl/ioctl-number.rst",
            Change::Edit(&[Edit {
                from: "'U'   00-CF  linux/uinput.h                                            conflict!\n",
                to: "'U'   00-CF  linux/uinput.h                                            conflict!\n\
                     'U'   01-04  linux/ummunotify.h                                        conflict!\n",
            }]),
        )],
    },
    Patch {
        message: "2-driver.txt",
        new: &[(
            "drivers/char/ummunotify.c",
            Make::Edited("ummunotify.c", transform::DRIVER),
        )],
        changed: &[
            (
                "drivers/char/Kconfig",
                Change::Kconfig("config UV_MMTIMER\n"),
            ),
            (
                "drivers/char/Makefile",
                Change::Edit(&[Edit {
                    from: "obj-$(CONFIG_UV_MMTIMER)\t+= uv_mmtimer.o\n",
                    to: "obj-$(CONFIG_UMMUNOTIFY)\t+= ummunotify.o\n\
                         obj-$(CONFIG_UV_MMTIMER)\t+= uv_mmtimer.o\n",
                }]),
            ),
        ],
    },
    Patch {
        message: "3-documentation.txt",
        new: &[(DOCUMENT, Make::Document("Documentation/ummunotify.rst"))],
        changed: &[(
            "Documentation/userspace-api/index.rst",
            Change::Edit(&[Edit {
                from: "   vduse\n   isapnp\n",
                to: "   ummunotify\n   vduse\n   isapnp\n",
            }]),
        )],
    },
    Patch {
        message: "4-selftests.txt",
        new: &[
            (
                "tools/testing/selftests/ummunotify/.gitignore",
                Make::Copy("intree/selftests/gitignore"),
            ),
            (
                "tools/testing/selftests/ummunotify/Makefile",
                Make::Copy("intree/selftests/Makefile"),
            ),
            (
                "tools/testing/selftests/ummunotify/config",
                Make::Copy("intree/selftests/config"),
            ),
            (
                "tools/testing/selftests/ummunotify/ummunotify_test.c",
                Make::Copy("intree/selftests/ummunotify_test.c"),
            ),
        ],
        changed: &[(
            "tools/testing/selftests/Makefile",
            Change::Edit(&[Edit {
                from: "TARGETS += user_events\n",
                to: "TARGETS += ummunotify\nTARGETS += user_events\n",
            }]),
        )],
    },
];

/// The path of the documentation in the tree.
pub(super) const DOCUMENT: &str = "Documentation/userspace-api/ummunotify.rst";

/// Makes the series from `kernel/`, writes the patches into `dir/series`, and applies them to the
/// tree. Returns the number of patches.
pub(super) fn apply(project: &Project, dir: &Path, tree: &Path) -> Result<usize, Error> {
    let sources = project.root.join("kernel");
    let git = Git::create(project, &dir.join("git"))?;
    let files = || SERIES.iter().flat_map(|patch| patch.changed);
    for (path, _) in files() {
        // The series changes the file in the tree, so its original is kept.
        let original = dir.join("original").join(path);
        if !original.exists() {
            copy(&tree.join(path), &original)?;
        }
        copy(&original, &git.dir.join(path))?;
    }
    git.commit("Linux")?;
    git.run(&["branch", "base"])?;
    for patch in SERIES {
        for (path, make) in patch.new {
            write(&git.dir.join(path), &text(&sources, *make)?)?;
        }
        for (path, change) in patch.changed {
            let file = git.dir.join(path);
            let before = fs::read_to_string(&file).at(&file)?;
            write(&file, &changed(path, &before, change, &sources)?)?;
        }
        git.commit(&read(&sources.join("intree").join(patch.message))?)?;
    }
    let patches = format_patches(&git, dir, &read(&sources.join("intree/0-cover.txt"))?)?;

    // Apply the mails with `git am`, as a recipient does, and copy the files from the result.
    git.run(&["checkout", "--quiet", "-b", "received", "base"])?;
    let mut am = git.command(&["am", "--quiet"]);
    cmd::read(am.args(&patches))?;
    for patch in SERIES {
        let new = patch.new.iter().map(|(path, _)| path);
        for path in new.chain(patch.changed.iter().map(|(path, _)| path)) {
            copy(&git.dir.join(path), &tree.join(path))?;
        }
    }
    Ok(patches.len())
}

/// Writes the patches and the cover letter into `dir/series`. Returns the paths of the patches
/// without the cover letter.
fn format_patches(git: &Git, dir: &Path, cover: &str) -> Result<Vec<PathBuf>, Error> {
    let series = dir.join("series");
    if series.exists() {
        fs::remove_dir_all(&series).at(&series)?;
    }
    let mut format = git.command(&["format-patch", "--quiet", "--cover-letter"]);
    format.arg("--output-directory").arg(&series).arg("base");
    cmd::read(&mut format)?;
    let letter = series.join("0000-cover-letter.patch");
    let (subject, body) = cover.split_once("\n\n").unwrap_or((cover, ""));
    let text = read(&letter)?
        .replace("*** SUBJECT HERE ***", subject)
        .replace("*** BLURB HERE ***", body.trim_end());
    fs::write(&letter, text).at(&letter)?;
    patches(dir)
}

/// Returns the paths of the patches in `dir/series`, in their order.
pub(super) fn patches(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let series = dir.join("series");
    let mut paths = Vec::new();
    for entry in fs::read_dir(&series).at(&series)? {
        let path = entry.at(&series)?.path();
        if !path.ends_with("0000-cover-letter.patch") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn text(sources: &Path, make: Make) -> Result<String, Error> {
    match make {
        Make::Copy(file) => read(&sources.join(file)),
        Make::Edited(file, edits) => transform::edit(file, &read(&sources.join(file))?, edits),
        Make::Document(file) => {
            let text = transform::edit(file, &read(&sources.join(file))?, transform::DOCUMENT)?;
            transform::document(file, &text, transform::SECTIONS_LEFT_OUT)
        }
    }
}

fn changed(path: &str, before: &str, change: &Change, sources: &Path) -> Result<String, Error> {
    match change {
        Change::Edit(edits) => transform::edit(path, before, edits),
        Change::Kconfig(next) => {
            let entry = read(&sources.join("intree/Kconfig"))?;
            if before.matches(next).count() != 1 {
                return Err(Error::Driver(format!(
                    "{path} does not contain {next:?} once: choose another place in xtask/src/intree/series.rs"
                )));
            }
            Ok(before.replace(next, &format!("{entry}\n{next}")))
        }
    }
}

/// A repository that is made again for each series.
struct Git {
    dir: PathBuf,
    author: [(&'static str, String); 2],
}

impl Git {
    fn create(project: &Project, dir: &Path) -> Result<Self, Error> {
        make_empty(dir)?;
        let configured = |key: &str, otherwise: &str| {
            let mut git = Command::new("git");
            git.args(["config", key]).current_dir(&project.root);
            let value = cmd::read(&mut git).unwrap_or_default();
            match value.trim() {
                "" => otherwise.to_owned(),
                value => value.to_owned(),
            }
        };
        let git = Self {
            dir: dir.to_path_buf(),
            author: [
                ("user.name", configured("user.name", "The regcache authors")),
                ("user.email", configured("user.email", "regcache@localhost")),
            ],
        };
        git.run(&["init", "--quiet", "--initial-branch=series"])?;
        Ok(git)
    }

    /// Returns a command of git that reads no configuration of this machine.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut git = Command::new("git");
        for (key, value) in &self.author {
            git.arg("-c").arg(format!("{key}={value}"));
        }
        git.args(["-c", "core.autocrlf=false", "-c", "commit.gpgSign=false"]);
        git.args(arguments).current_dir(&self.dir);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null");
        git.env("GIT_CONFIG_SYSTEM", "/dev/null");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            git.env_remove(name);
        }
        git
    }

    fn run(&self, arguments: &[&str]) -> Result<(), Error> {
        cmd::read(&mut self.command(arguments)).map(drop)
    }

    fn commit(&self, message: &str) -> Result<(), Error> {
        self.run(&["add", "--all", "--force"])?;
        self.run(&["commit", "--quiet", "--message", message])
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).at(path)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at(parent)?;
    }
    fs::write(path, text).at(path)
}

/// Copies a file, unless the copy has the same content. So make does not compile it again.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let text = read(from)?;
    if fs::read_to_string(to).is_ok_and(|it| it == text) {
        return Ok(());
    }
    write(to, &text)
}
