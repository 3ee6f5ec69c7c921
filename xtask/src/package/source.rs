//! Exports the source of the packages from the repository.
//!
//! The export has the files of the last commit, with the changes of tracked files since then. So a
//! new file must be added to git before it gets into the packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{crates, step};
use crate::cmd;
use crate::dir::make_empty;
use crate::error::{AtPath, Error};
use crate::project::Project;

/// The source of the packages.
pub(crate) struct Source {
    /// The version of the packages, without Debian's revision.
    pub(crate) version: String,
    /// The unpacked source, with the crates in `vendor` and the packaging files in `debian`.
    pub(crate) tree: PathBuf,
    /// The two archives of the upstream source: the repository's files, and the crates.
    pub(crate) archives: [PathBuf; 2],
}

/// Exports the source. If `version` is given, changes the version of all parts, for a test of an
/// upgrade.
pub(crate) fn export(project: &Project, version: Option<&str>) -> Result<Source, Error> {
    let dir = match version {
        None => project.own_dir().join("package/source"),
        Some(version) => project.own_dir().join(format!("package/source-{version}")),
    };
    step("export the source", || export_to(project, &dir, version))
}

fn export_to(project: &Project, dir: &Path, version: Option<&str>) -> Result<Source, Error> {
    make_empty(dir)?;
    let own = project
        .version_of("regcache")
        .ok_or_else(|| Error::SetUp("the workspace has no package regcache".to_owned()))?;
    let version = version.unwrap_or(own);
    let name = format!("regcache-{version}");
    let tree = dir.join(&name);
    unpack(project, dir, &tree)?;
    if version != own {
        set_version(&tree, own, version)?;
    }
    check_version(&tree, version)?;
    let date = changelog_date(&tree)?;
    let archive = dir.join(format!("regcache_{version}.orig.tar.gz"));
    pack(dir, &name, &archive, &date)?;

    let copyright = crates::vendor(&tree)?;
    let vendored = dir.join(format!("regcache_{version}.orig-vendor.tar.gz"));
    pack(&tree, "vendor", &vendored, &date)?;

    let debian = tree.join("debian");
    copy_dir(&tree.join("packaging/debian"), &debian)?;
    let file = debian.join("copyright");
    let text = fs::read_to_string(&file).at(&file)?;
    fs::write(&file, format!("{text}\n{copyright}")).at(&file)?;
    Ok(Source {
        version: version.to_owned(),
        tree,
        archives: [archive, vendored],
    })
}

/// Unpacks the repository's files into `tree`.
fn unpack(project: &Project, dir: &Path, tree: &Path) -> Result<(), Error> {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(&project.root).args(arguments);
        cmd::read(&mut git)
    };
    // git makes a commit of the changes, but no branch contains this commit. If there is no change,
    // git prints nothing.
    let changed = git(&["stash", "create"])?;
    let commit = match changed.trim() {
        "" => "HEAD",
        commit => commit,
    };
    let tar = dir.join("export.tar");
    git(&["archive", "--output", &tar.to_string_lossy(), commit])?;
    fs::create_dir_all(tree).at(tree)?;
    let mut untar = Command::new("tar");
    untar.arg("-xf").arg(&tar).arg("-C").arg(tree);
    cmd::read(&mut untar)?;
    fs::remove_file(&tar).at(&tar)
}

/// Packs the directory `name` in `dir`. The archive depends only on the files' names and contents
/// and on the date.
fn pack(dir: &Path, name: &str, archive: &Path, date: &str) -> Result<(), Error> {
    let mut tar = Command::new("tar");
    tar.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--format=gnu",
        "--mode=u=rwX,go=rX",
    ]);
    tar.arg(format!("--mtime={date}"));
    tar.args(["--use-compress-program=gzip -n -6", "-cf"]);
    tar.arg(archive).arg("-C").arg(dir).arg(name);
    cmd::read(&mut tar).map(drop)
}

/// Copies a directory with its subdirectories. The permissions of files are kept.
pub(crate) fn copy_dir(from: &Path, to: &Path) -> Result<(), Error> {
    let mut copy = Command::new("cp");
    cmd::read(copy.arg("-a").arg(from).arg(to)).map(drop)
}

/// Checks that the changelog and `dkms.conf` have the version of the workspace.
fn check_version(tree: &Path, version: &str) -> Result<(), Error> {
    let expected = [
        (
            "packaging/debian/changelog",
            format!("regcache ({version}-"),
        ),
        ("kernel/dkms.conf", format!("PACKAGE_VERSION=\"{version}\"")),
    ];
    for (file, line) in expected {
        let path = tree.join(file);
        let text = fs::read_to_string(&path).at(&path)?;
        if !text.lines().any(|it| it.starts_with(&line)) {
            return Err(Error::SetUp(format!(
                "{file} has no line {line:?}, but the workspace has version {version}: give both the same version"
            )));
        }
    }
    Ok(())
}

/// Returns the date of the newest entry of the changelog.
fn changelog_date(tree: &Path) -> Result<String, Error> {
    let path = tree.join("packaging/debian/changelog");
    let text = fs::read_to_string(&path).at(&path)?;
    date_of(&text).map(str::to_owned).ok_or_else(|| {
        Error::SetUp("packaging/debian/changelog has no line with a date: add one".to_owned())
    })
}

/// Returns the date in the newest entry of a changelog.
fn date_of(changelog: &str) -> Option<&str> {
    let signed = changelog.lines().find(|line| line.starts_with(" -- "))?;
    Some(signed.split_once(">  ")?.1)
}

/// Adds an entry of a release's own packages to the changelog. The packages of different releases
/// are different files, so their versions differ. The entry is some seconds younger than the entry
/// before it. Returns `None` if the newest entry has no date with the seconds 00.
pub(crate) fn add_entry(
    changelog: &str,
    version: &str,
    number: &str,
    codename: &str,
) -> Option<String> {
    let signed = changelog.lines().find(|line| line.starts_with(" -- "))?;
    let (author, date) = signed.rsplit_once(":00 ")?;
    let signed = format!("{author}:{number} {date}");
    let entry = format!(
        "regcache ({version}-1~deb{number}u1) {codename}; urgency=medium\n\n  * Build for Debian {number}.\n\n{signed}\n\n"
    );
    Some(entry + changelog)
}

/// Replaces the version of all parts.
fn set_version(tree: &Path, from: &str, to: &str) -> Result<(), Error> {
    let quoted = |version: &str| format!("version = \"{version}\"");
    let replaced = [
        ("Cargo.toml", quoted(from), quoted(to)),
        (
            "kernel/dkms.conf",
            format!("PACKAGE_VERSION=\"{from}\""),
            format!("PACKAGE_VERSION=\"{to}\""),
        ),
        (
            "packaging/debian/changelog",
            format!("({from}-"),
            format!("({to}-"),
        ),
    ];
    for (file, old, new) in replaced {
        edit(&tree.join(file), |text| text.replace(&old, &new))?;
    }
    // In Cargo.lock, only the workspace's own packages have no source.
    edit(&tree.join("Cargo.lock"), |text| {
        let packages = text.split("\n[[package]]\n").map(|package| {
            if package.contains("\nsource = ") {
                package.to_owned()
            } else {
                package.replacen(&quoted(from), &quoted(to), 1)
            }
        });
        packages.collect::<Vec<_>>().join("\n[[package]]\n")
    })
}

fn edit(path: &Path, change: impl FnOnce(&str) -> String) -> Result<(), Error> {
    let text = fs::read_to_string(path).at(path)?;
    fs::write(path, change(&text)).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "regcache (0.1.0-1) unstable; urgency=medium\n\n  * First.\n\n -- A <a@example.org>  Sun, 29 Nov 2026 12:00:00 +0000\n";

    #[test]
    fn the_entry_of_a_release_has_an_older_version_and_a_later_date() {
        let text = add_entry(CHANGELOG, "0.1.0", "12", "bookworm").unwrap();
        assert!(text.starts_with("regcache (0.1.0-1~deb12u1) bookworm; urgency=medium\n"));
        assert!(text.ends_with(CHANGELOG));
        assert_eq!(date_of(&text), Some("Sun, 29 Nov 2026 12:00:12 +0000"));
        assert_eq!(date_of(CHANGELOG), Some("Sun, 29 Nov 2026 12:00:00 +0000"));
    }
}
