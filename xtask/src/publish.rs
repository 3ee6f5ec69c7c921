//! Packs the crates that are meant for the registry, and tests them as their users get them.
//!
//! `cargo package` packs the crates. The archives are unpacked into a directory with a workspace of
//! its own, so no file of the repository can take the place of a file that an archive lacks. The
//! dependencies have the versions of the repository's Cargo.lock.
//!
//! The programs in `verbs/interop`, which use other crates beside ours, are built too.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cmd;
use crate::dir::make_empty;
use crate::error::{AtPath, Error};
use crate::project::{Project, cargo};
use crate::setup;

/// The crates, in the order in which they are published: each crate comes after its dependencies.
pub(crate) const CRATES: &[&str] = &[
    "ummunotify-sys",
    "regcache",
    "regcache-verbs-types",
    "regcache-verbs",
    "regcache-uring",
];

/// The directories in `verbs/interop`. Each has a workspace of its own.
const INTEROP: &[&str] = &["ibverbs-sys", "sideway"];

/// Packs and tests the crates, and builds the programs that use other crates beside them.
pub(crate) fn run(project: &Project) -> Result<(), Error> {
    // The crates ibverbs-sys and rdma-mummy-sys are built with cmake.
    setup::packages(project, &[setup::BUILD, &["cmake"]].concat())?;
    let mut package = cargo();
    package.current_dir(&project.root);
    package.args(["package", "--no-verify", "--allow-dirty", "--quiet"]);
    for name in CRATES {
        package.args(["--package", name]);
    }
    cmd::run(&mut package)?;

    let dir = project.own_dir().join("crates");
    make_empty(&dir)?;
    let names = CRATES.iter().map(|name| {
        let version = project.version_of(name).unwrap_or_default();
        format!("{name}-{version}")
    });
    let names: Vec<_> = names.collect();
    for name in &names {
        unpack(&project.target.join(format!("package/{name}.crate")), &dir)?;
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            let path = dir.join(name).join(licence);
            fs::metadata(&path).at(&path)?;
        }
    }
    let manifest = dir.join("Cargo.toml");
    fs::write(&manifest, workspace(&names)).at(&manifest)?;
    let lock = project.root.join("Cargo.lock");
    fs::copy(&lock, dir.join("Cargo.lock")).at(&lock)?;

    let test = |arguments: &[&str]| {
        let mut test = cargo();
        test.current_dir(&dir).args(arguments).arg("--workspace");
        test.arg("--target-dir");
        test.arg(project.own_dir().join("crates-target"));
        cmd::run(&mut test)
    };
    test(&["test"])?;
    test(&["check", "--all-features", "--all-targets"])?;
    for program in INTEROP {
        let mut build = cargo();
        build.current_dir(project.root.join("verbs/interop").join(program));
        build.args(["build", "--locked", "--target-dir"]);
        build.arg(project.own_dir().join("interop-target"));
        cmd::run(&mut build)?;
    }
    eprintln!("xtask: tested {}", names.join(", "));
    Ok(())
}

fn unpack(archive: &Path, dir: &Path) -> Result<(), Error> {
    let mut tar = Command::new("tar");
    cmd::read(tar.arg("-xzf").arg(archive).arg("-C").arg(dir)).map(drop)
}

/// Returns the manifest of a workspace of the unpacked crates. The crates depend on one another by
/// name and version, so the manifest replaces the registry's crates by the unpacked ones. The
/// models in the tests take very long without optimization.
fn workspace(names: &[String]) -> String {
    let members: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    let patches = CRATES.iter().zip(names);
    let patches: String = patches
        .map(|(name, dir)| format!("{name} = {{ path = {dir:?} }}\n"))
        .collect();
    format!(
        "[workspace]\nresolver = \"3\"\nmembers = [{}]\n\n[profile.test]\nopt-level = 1\n\n[patch.crates-io]\n{patches}",
        members.join(", ")
    )
}
