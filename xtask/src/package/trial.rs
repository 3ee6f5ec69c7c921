//! Uses the packages as their user would.
//!
//! The parts `install` and `upgrade` run in a sandbox over a root file system that has no other
//! packages than each Debian system. The part `driver` runs in a sandbox over the root of a virtual
//! machine. It installs the packages there, so DKMS builds the driver for the machine's kernel, and
//! boots the machine from the sandbox.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Release, build, source, step};
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel;
use crate::lock;
use crate::project::Project;
use crate::rootfs;
use crate::sandbox::{self, Sandbox};
use crate::vm;

/// The functions that all scripts of this module use.
const APT: &str = include_str!("apt.sh");

/// The version of the packages that an upgrade installs.
const NEXT: &str = "0.2.0";

/// Runs the parts whose names contain one of these words, or all parts if there are no words. If
/// `built` is set, the upgrade uses packages that were built before.
pub(crate) fn run(
    project: &Project,
    release: Release,
    words: &[String],
    built: bool,
) -> Result<(), Error> {
    type Part = fn(&Project, Release) -> Result<(), Error>;
    let parts: [(&str, Part); 3] = [
        ("install", install),
        ("upgrade", upgrade),
        ("driver", driver),
    ];
    let runs = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(&**word));
    if runs("upgrade") && !(built && next_dir(project, release).exists()) {
        let source = source::export(project, Some(NEXT))?;
        build::packages_into(project, &source, release, true, &next_dir(project, release))?;
    }
    for (name, part) in parts {
        if runs(name) {
            step(&format!("{name}, Debian {}", release.number()), || {
                part(project, release)
            })?;
        }
    }
    Ok(())
}

/// Installs the packages in the release's bare root, uses them, and removes them.
pub(crate) fn install(project: &Project, release: Release) -> Result<(), Error> {
    let packages = build::dir(project, release);
    in_bare_root(project, release, |sandbox| {
        let tests = project.root.join("packaging/debian/tests");
        let mounts = [(packages.as_path(), "/mnt"), (tests.as_path(), "/opt")];
        run_script(&sandbox.root, &mounts, include_str!("install.sh"))
    })
}

/// Returns the directory of the packages to which the others are upgraded.
fn next_dir(project: &Project, release: Release) -> PathBuf {
    build::dir(project, release).with_extension("next")
}

/// Upgrades the packages while programs use them, and downgrades them again.
fn upgrade(project: &Project, release: Release) -> Result<(), Error> {
    let packages = build::dir(project, release);
    let next = next_dir(project, release);
    in_bare_root(project, release, |sandbox| {
        let mounts = [(packages.as_path(), "/mnt"), (next.as_path(), "/opt")];
        run_script(&sandbox.root, &mounts, include_str!("upgrade.sh"))
    })
}

/// Installs the driver's package for the kernel of a virtual machine, and boots the machine.
fn driver(project: &Project, release: Release) -> Result<(), Error> {
    let packages = build::dir(project, release);
    let kernel = kernel::find(project, release.series())?;
    let _lock = lock::take(&project.own_dir().join("install.lock"))?;
    sandbox::over(project, &kernel.root, |sandbox| {
        let script = format!("KERNEL={}\n{}", kernel.version, include_str!("driver.sh"));
        let programs = project.root.join("stacks/tests/c");
        let mounts = [(packages.as_path(), "/mnt"), (programs.as_path(), "/opt")];
        run_script(&sandbox.root, &mounts, &script)?;
        boot(project, &kernel.in_copy(&sandbox.root))
    })
}

fn boot(project: &Project, kernel: &kernel::Kernel) -> Result<(), Error> {
    let command = ["sh", "-c", include_str!("booted.sh"), "booted.sh"].map(OsString::from);
    let machine = vm::Machine {
        timeout: 600,
        boot_timeout: 400,
        no_driver: true,
        ..vm::Machine::default()
    };
    let job = vm::Job {
        command: &command,
        stdout: Box::new(io::stderr()),
        stderr: None,
    };
    match vm::run_on(project, kernel, &machine, job)? {
        0 => Ok(()),
        status => Err(Error::Check(format!(
            "the packages do not work in the virtual machine (exit status {status})"
        ))),
    }
}

fn in_bare_root(
    project: &Project,
    release: Release,
    job: impl FnOnce(&Sandbox) -> Result<(), Error> + Send,
) -> Result<(), Error> {
    let root = release.bare_root(project)?;
    let _lock = lock::take(&project.own_dir().join("install.lock"))?;
    sandbox::over(project, &root, |sandbox| {
        // The root has the names of this machine's servers from the time when it was made.
        let servers = Path::new("/etc/resolv.conf");
        let to = sandbox.root.join("etc/resolv.conf");
        fs::copy(servers, &to).at(servers)?;
        job(sandbox)
    })
}

/// Runs a script in a root, with these directories of packages mounted.
fn run_script(root: &Path, mounts: &[(&Path, &str)], script: &str) -> Result<(), Error> {
    let mut shell: Command = rootfs::enter_with(root, mounts, "sh");
    shell.args(["-c", &format!("{APT}\n{script}"), "trial"]);
    shell.envs([
        ("LC_ALL", "C.UTF-8"),
        ("HOME", "/tmp"),
        ("DEBIAN_FRONTEND", "noninteractive"),
    ]);
    cmd::run(&mut shell)
}
