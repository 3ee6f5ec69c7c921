//! Installs the parts for users below a directory. The parts are the C library, the preload shim,
//! the monitors for libfabric and UCX, and the command-line tool. The C library comes with its
//! header, pkg-config file and manual page.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::project::{Project, cargo};
use crate::setup;

/// The package of the C library.
pub(crate) const LIBRARY: &str = "regcache-capi";

/// The kind of build.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Profile {
    /// A build for use.
    Release,
    /// A build for tests. This build takes less time, and it includes the C programs that the tests
    /// run.
    Dev,
}

/// The files to install in addition to the C library. A file is installed only if the workspace has
/// the package of the file. Each element holds the package, the name of cargo's product, and the
/// place of installation.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("regcache-cli", "regcache", "bin/regcache"),
    ("regcache-repro-rdma", "reuse", "libexec/regcache/reuse"),
    ("regcache-preload", "librcpreload.so", "lib/librcpreload.so"),
    (
        "regcache-fi",
        "libregcache_fi.so",
        "lib/libfabric/libregcache-fi.so",
    ),
    (
        "regcache-ucx",
        "libregcache_ucx.so",
        "lib/libregcache-ucx.so",
    ),
];

/// The manual pages other than regcache(3). The C library's Makefile installs regcache(3). Each
/// element holds the source of the page, and the place below `share/man`.
const MANUALS: &[(&str, &str)] = &[
    ("cli/man/regcache.1", "man1/regcache.1"),
    ("kernel/Documentation/ummunotify.4", "man4/ummunotify.4"),
    (
        "verbs/preload/regcache-preload.7",
        "man7/regcache-preload.7",
    ),
];

/// Builds and installs all parts.
pub(crate) fn run(project: &Project, prefix: &Path, profile: Profile) -> Result<(), Error> {
    setup::packages(project, setup::BUILD)?;
    let prefix = std::path::absolute(prefix).at(prefix)?;
    let there = |(package, _, _): &&(&str, &str, &str)| project.version_of(package).is_some();
    let programs: Vec<_> = PROGRAMS.iter().filter(there).collect();

    let mut build = cargo();
    build.arg("build");
    if profile == Profile::Release {
        build.arg("--release");
    }
    let packages = programs.iter().map(|(package, _, _)| *package);
    for package in packages.chain([LIBRARY]) {
        build.args(["--package", package]);
    }
    cmd::run(&mut build)?;
    let built = project.target.join(match profile {
        Profile::Release => "release",
        Profile::Dev => "debug",
    });

    make_library(project, &built, Some(&prefix), profile)?;

    for (_, product, place) in programs {
        put(&built.join(product), &prefix.join(place), 0o755)?;
    }
    for (page, place) in MANUALS {
        let to = prefix.join("share/man").join(place);
        put(&project.root.join(page), &to, 0o644)?;
    }
    eprintln!("xtask: installed below {}", prefix.display());
    Ok(())
}

/// Links the C library in the directory `capi` of cargo's products. If there is a prefix, also
/// installs the library below it.
pub(crate) fn make_library(
    project: &Project,
    built: &Path,
    prefix: Option<&Path>,
    profile: Profile,
) -> Result<(), Error> {
    let version = project
        .version_of(LIBRARY)
        .ok_or_else(|| Error::Unexpected {
            command: "cargo metadata".to_owned(),
            what: format!("no package {LIBRARY}"),
        })?;
    let mut make = Command::new("make");
    make.arg("-C").arg(project.root.join("verbs/capi"));
    make.arg(match (prefix, profile) {
        (None, _) => "all",
        (_, Profile::Release) => "install",
        // The programs are compiled here, because compiling in the virtual machine is slow.
        (_, Profile::Dev) => "programs",
    });
    let variables = [
        ("STATIC", built.join("libregcache_capi.a")),
        ("VERSION", PathBuf::from(version)),
        ("OUT", built.join("capi")),
    ];
    let prefix = prefix.map(|prefix| ("PREFIX", prefix.to_owned()));
    for (name, value) in variables.into_iter().chain(prefix) {
        make.arg(format!("{name}={}", value.display()));
    }
    // The pkg-config file contains the prefix, and make would keep the file of an earlier prefix.
    // So the file is removed, and make writes it again.
    let _ = fs::remove_file(built.join("capi/regcache.pc"));
    cmd::without_make_settings(&mut make);
    cmd::read(&mut make).map(drop)
}

/// Installs a file with these permissions. Replaces an older file safely, even if a program uses
/// the older file.
fn put(from: &Path, to: &Path, mode: u32) -> Result<(), Error> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).at(dir)?;
    }
    let new = to.with_extension("new");
    fs::copy(from, &new).at(from)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).at(&new)?;
    fs::rename(&new, to).at(to)
}
