//! Builds the packages in a root file system of a Debian release.
//!
//! Both releases have a Rust compiler that is too old. So the toolchain that runs this program is
//! mounted in the root, below /opt.
//!
//! A second build uses another directory, another time zone and other settings. Its packages must
//! be equal to the first ones, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::source::{self, Source};
use super::{Release, step};
use crate::cmd;
use crate::dir::make_empty;
use crate::error::{AtPath, Error};
use crate::project::Project;
use crate::rootfs;

/// The packages in the root. They are the build dependencies of the source package, without the
/// Rust toolchain, and the program that checks the packages.
pub(crate) const PACKAGES: &[&str] = &[
    "bash-completion",
    "build-essential",
    "debhelper",
    "dh-dkms",
    "libclang-dev",
    "libibverbs-dev",
    "librdmacm-dev",
    "lintian",
    "pkg-config",
];

/// The directories of the two builds, and the settings of their environments.
const FIRST: (&str, &[(&str, &str)]) = ("first", &[("TZ", "UTC"), ("LC_ALL", "C.UTF-8")]);
const SECOND: (&str, &[(&str, &str)]) = (
    "second/in/a/longer/directory",
    &[("TZ", "Asia/Kolkata"), ("LC_ALL", "C"), ("USER", "second")],
);

/// Returns the directory of the packages for this release.
pub(crate) fn dir(project: &Project, release: Release) -> PathBuf {
    project.own_dir().join("package").join(release.number())
}

/// Builds the packages of this source, checks them with lintian, and puts them into the release's
/// directory. Unless `once` is set, builds them twice and compares the results.
pub(crate) fn packages(
    project: &Project,
    source: &Source,
    release: Release,
    once: bool,
) -> Result<(), Error> {
    let to = dir(project, release);
    packages_into(project, source, release, once, &to)
}

/// Does the same as [`packages`], but puts the packages into `to`.
pub(crate) fn packages_into(
    project: &Project,
    source: &Source,
    release: Release,
    once: bool,
    to: &Path,
) -> Result<(), Error> {
    let root = release.build_root(project)?;
    let toolchain = toolchain()?;
    let place = project
        .own_dir()
        .join(format!("package/build-{}", release.number()));
    make_empty(&place)?;
    let build = |(dir, settings): (&str, &[(&str, &str)])| {
        let name = format!("build for Debian {} in {dir}", release.number());
        step(&name, || {
            let inside = Path::new("/mnt").join(dir);
            let dir = place.join(dir);
            unpack(source, release, &dir)?;
            let mounts = [(place.as_path(), "/mnt"), (toolchain.as_path(), "/opt")];
            let mut shell = rootfs::enter_with(&root, &mounts, "sh");
            shell.args(["-c", include_str!("build.sh"), "build.sh"]);
            shell.arg(inside.join(format!("regcache-{}", source.version)));
            // It takes a minute to pack the source and to check it.
            shell.arg(if once { "binary" } else { "full" });
            shell.envs(settings.iter().copied());
            logged(&mut shell, &place.join("log"))?;
            Ok(dir)
        })
    };
    let first = build(FIRST)?;
    if !once {
        let second = build(SECOND)?;
        step("compare the two builds", || {
            same(&packages_in(&first)?, &packages_in(&second)?)
        })?;
    }
    make_empty(to)?;
    for entry in fs::read_dir(&first).at(&first)? {
        let path = entry.at(&first)?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default();
            fs::copy(&path, to.join(name)).at(&path)?;
        }
    }
    fs::remove_dir_all(&place).at(&place)?;
    eprintln!("xtask: the packages are in {}", to.display());
    Ok(())
}

/// Returns the directory of the toolchain that runs this program.
fn toolchain() -> Result<PathBuf, Error> {
    let mut rustc = Command::new("rustc");
    let printed = cmd::read(rustc.args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(printed.trim_end()))
}

/// Copies the source into `dir`, with a changelog for the release.
fn unpack(source: &Source, release: Release, dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).at(dir)?;
    source::copy_dir(&source.tree, dir)?;
    for archive in &source.archives {
        let name = archive.file_name().unwrap_or_default();
        fs::copy(archive, dir.join(name)).at(archive)?;
    }
    let changelog = dir
        .join(format!("regcache-{}", source.version))
        .join("debian/changelog");
    let text = fs::read_to_string(&changelog).at(&changelog)?;
    let (number, codename) = (release.number(), release.codename());
    let text = source::add_entry(&text, &source.version, number, codename).ok_or_else(|| {
        Error::SetUp("the newest entry of packaging/debian/changelog has no date with the seconds 00: add one".to_owned())
    })?;
    fs::write(&changelog, text).at(&changelog)
}

/// Runs the command, and writes its output into a file. If the command fails, the error has the end
/// of the output.
fn logged(command: &mut Command, log: &Path) -> Result<(), Error> {
    let output = cmd::output(command)?;
    let said = [output.stdout, output.stderr].concat();
    fs::write(log, &said).at(log)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    Err(Error::Command {
        command: "the build of the packages".to_owned(),
        why: format!(
            "{}\n{}\nall output is in {}",
            output.status,
            lines[lines.len().saturating_sub(40)..].join("\n"),
            log.display()
        ),
    })
}

/// Returns the contents of the packages in a directory, by file name.
fn packages_in(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        if path.extension().is_some_and(|it| it == "deb") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.insert(name.into_owned(), fs::read(&path).at(&path)?);
        }
    }
    Ok(found)
}

fn same(
    first: &BTreeMap<String, Vec<u8>>,
    second: &BTreeMap<String, Vec<u8>>,
) -> Result<(), Error> {
    let names = first.keys().chain(second.keys());
    let mut different: Vec<_> = names
        .filter(|it| first.get(*it) != second.get(*it))
        .collect();
    different.dedup();
    if different.is_empty() && !first.is_empty() {
        return Ok(());
    }
    Err(Error::Check(format!(
        "two builds of the packages differ: {different:?}. Compare the directories first and second"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_are_the_same_only_if_each_byte_is() {
        let packages = |names: &[(&str, u8)]| {
            let list = names
                .iter()
                .map(|(name, byte)| ((*name).to_owned(), vec![*byte]));
            list.collect::<BTreeMap<_, _>>()
        };
        let one = packages(&[("a.deb", 1), ("b.deb", 2)]);
        assert!(same(&one, &one).is_ok());
        assert!(same(&one, &packages(&[("a.deb", 1), ("b.deb", 3)])).is_err());
        assert!(same(&one, &packages(&[("a.deb", 1)])).is_err());
        assert!(same(&packages(&[]), &packages(&[])).is_err());
    }
}
