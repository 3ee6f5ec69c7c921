//! Installs the packages that a command needs.
//!
//! `dpkg-query` reports the missing packages, so no network is needed if no package is missing. If
//! the user is root, the missing packages are installed. For any other user, the error contains the
//! command that installs the missing packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::lock;
use crate::project::Project;

/// The packages for a virtual machine with an RDMA device, and for building modules for the kernel
/// of that machine.
pub(crate) const VM: &[&str] = &[
    "busybox-static",
    "file",
    "gcc",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "kmod",
    "linux-headers-amd64",
    "linux-image-amd64",
    "make",
    "python3-venv",
    "qemu-system-x86",
    "rdma-core",
    "udev",
];

/// The packages that are needed to build the crates on libibverbs, the tests in C, and jemalloc.
pub(crate) const BUILD: &[&str] = &[
    "g++",
    "gcc",
    "gcc-multilib",
    "groff-base",
    "libc6-dev",
    "libclang-dev",
    "libibverbs-dev",
    "librdmacm-dev",
    "make",
    "patch",
    "pkg-config",
    "valgrind",
];

/// The packages of programs that the tests run in the virtual machine: Debian's verbs programs,
/// those of libfabric and UCX, and memcheck. memcheck also needs the symbols of libc.
pub(crate) const PROGRAMS: &[&str] = &[
    "libc6-dbg",
    "libfabric-bin",
    "perftest",
    "python3-pyverbs",
    "rdmacm-utils",
    "ucx-utils",
    "valgrind",
];

/// The release of virtme-ng with which `guest.sh` was tested.
const VIRTME_NG: &str = "1.42";

/// Installs the packages that are missing, or returns an error with the command that installs them.
pub(crate) fn packages(project: &Project, wanted: &[&str]) -> Result<(), Error> {
    if !on_debian() {
        // Other distributions have other names for the packages, so xtask cannot install them. If a
        // program is missing, the command that needs the program reports an error.
        eprintln!(
            "xtask: this is not Debian, so nothing is installed. Install the equivalents of these packages: {}",
            wanted.join(" ")
        );
        return Ok(());
    }
    if missing(wanted)?.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::SetUp(format!(
            "packages are missing and you are not root. Run this, then try again:\n  \
             sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
            missing(wanted)?.join(" ")
        )));
    }
    let _lock = lock::take(&project.own_dir().join("apt.lock"))?;
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing with apt-get: {}", missing.join(" "));
    cmd::run(apt_get().arg("update"))?;
    cmd::run(
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing),
    )
}

/// Returns the path of the Python in a virtual environment that contains virtme-ng. The environment
/// is in the target directory, because Debian forbids system-wide installation by pip.
pub(crate) fn virtme_python(project: &Project) -> Result<PathBuf, Error> {
    let venv = project.own_dir().join("venv");
    let python = venv.join("bin/python3");
    if has_virtme(&python) {
        return Ok(python);
    }
    let _lock = lock::take(&project.own_dir().join("venv.lock"))?;
    if has_virtme(&python) {
        return Ok(python);
    }
    eprintln!(
        "xtask: installing virtme-ng {VIRTME_NG} from PyPI into {}",
        venv.display()
    );
    cmd::read(
        without_python_settings("/usr/bin/python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv),
    )?;
    let release = format!("virtme-ng=={VIRTME_NG}");
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        &release,
    ];
    cmd::read(without_python_settings(&python).args(pip))?;
    Ok(python)
}

/// Returns a command without the variables that configure Python for other projects.
pub(crate) fn without_python_settings(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for name in [
        "PYTHONHOME",
        "PYTHONPATH",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_USER",
        "VIRTUAL_ENV",
    ] {
        command.env_remove(name);
    }
    command
}

fn has_virtme(python: &Path) -> bool {
    let version = "import importlib.metadata as m; print(m.version('virtme-ng'))";
    let asked = cmd::output(without_python_settings(python).args(["-c", version]));
    asked.is_ok_and(|said| {
        said.status.success() && String::from_utf8_lossy(&said.stdout).trim() == VIRTME_NG
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=600"]);
    command
}

/// Returns the packages among `wanted` that are not installed, in the order of `wanted`.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>, Error> {
    // If a package's name is unknown, dpkg-query fails, but still prints the other packages. So the
    // exit status is ignored.
    let asked = ["-W", "-f", "${db:Status-Status} ${Package}\n"];
    let output = cmd::output(Command::new("dpkg-query").args(asked).args(wanted))?;
    Ok(not_installed(
        &String::from_utf8_lossy(&output.stdout),
        wanted,
    ))
}

fn not_installed<'a>(listed: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let installed: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    wanted
        .iter()
        .copied()
        .filter(|name| !installed.contains(name))
        .collect()
}

fn on_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .any(|line| matches!(line, "ID=debian" | "ID=\"debian\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_that_left_its_configuration_is_missing() {
        let listed = "installed gcc\nconfig-files udev\nnot-installed kmod\n";
        assert_eq!(
            not_installed(listed, &["gcc", "udev", "kmod", "file"]),
            ["udev", "kmod", "file"]
        );
    }
}
