//! Finds the kernel to boot, and builds the driver for this kernel. The build runs on this machine,
//! or in the root file system of the kernel's Debian release (see `rootfs.rs`).
//!
//! The driver is built in copies of its source, one copy for each kernel. So the source directory
//! stays clean, and the builds for different kernels do not disturb each other. The copies are in
//! the target directory.
//!
//! Before a build, a file is copied only if its content differs. So make compiles only the files
//! that have changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::debug;
use crate::error::{AtPath, Error};
use crate::lock;
use crate::project::Project;
use crate::rootfs::{self, Recipe};
use crate::setup;

/// The kernels on which the driver is tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Use the newest kernel that is installed here: 6.1 on Debian 12
    #[default]
    #[value(name = "6.1")]
    Installed,
    /// Use Debian 13's kernel, in a root file system of its own
    #[value(name = "6.12")]
    Trixie,
    /// Use Debian 13's backported kernel, in a root file system of its own
    #[value(name = "7.3")]
    TrixieBackports,
    /// Use Linux 6.1 with KASAN, lockdep, kmemleak and fault injection, built from source
    Debug,
}

impl Series {
    /// Returns the factor by which time limits are multiplied. The debug kernel is slower than
    /// Debian's kernels, so its factor is larger than 1.
    pub(crate) fn patience(self) -> u64 {
        match self {
            Self::Debug => 5,
            _ => 1,
        }
    }

    /// Returns whether a guest with this kernel uses the root file system of this machine.
    pub(crate) fn uses_this_machine(self) -> bool {
        matches!(self, Self::Installed | Self::Debug)
    }
}

/// The programs in the roots of guests with an RDMA device.
const WITH_RDMA: &[&[&str]] = &[rootfs::GUEST, setup::PROGRAMS];

const TRIXIE: Recipe = Recipe {
    name: "6.12",
    suites: &["trixie"],
    kernel: &["linux-headers-amd64", "linux-image-amd64"],
    programs: WITH_RDMA,
};

/// The recipe for the backported kernel. The pattern of the package contains the kernel's version.
/// Otherwise the pattern would select a newer backport as soon as one exists.
///
/// The pattern does not match the package linux-image, because that package depends on a generator
/// of initramfs images.
pub(crate) const BACKPORT: &[&str] =
    &["^linux-(binary|headers|modules)-7[.]3[.][0-9]+[+]deb13-amd64$"];

const TRIXIE_BACKPORTS: Recipe = Recipe {
    name: "7.3",
    suites: &["trixie", "trixie-backports"],
    kernel: BACKPORT,
    programs: WITH_RDMA,
};

/// An installed kernel whose headers and software RDMA device are also installed.
pub(crate) struct Kernel {
    /// The version, as `uname -r` prints it in the guest.
    pub(crate) version: String,
    /// The path of the kernel image to boot.
    pub(crate) image: PathBuf,
    /// The root file system that contains the image and that the guest uses. It is `/`, or a root
    /// that `rootfs.rs` made.
    pub(crate) root: PathBuf,
    /// The path of the kernel's headers in the root. The driver's make gets this path as `KDIR`.
    pub(crate) headers: PathBuf,
}

impl Kernel {
    /// Returns whether the guest uses the root file system of this machine.
    pub(crate) fn is_at_home(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Returns the same kernel in a copy of its root.
    pub(crate) fn in_copy(&self, root: &Path) -> Self {
        let image = self.image.strip_prefix(&self.root).unwrap_or(&self.image);
        Self {
            version: self.version.clone(),
            image: root.join(image),
            root: root.to_path_buf(),
            headers: self.headers.clone(),
        }
    }
}

/// Returns the kernel of this series. If the kernel needs a root file system and that root is
/// missing, makes the root.
pub(crate) fn find(project: &Project, series: Series) -> Result<Kernel, Error> {
    let recipe = match series {
        Series::Installed => return newest(),
        Series::Debug => return debug(project),
        Series::Trixie => &TRIXIE,
        Series::TrixieBackports => &TRIXIE_BACKPORTS,
    };
    find_in_root(project, recipe)
}

/// Returns the newest kernel in the root of this recipe. If the root is missing, makes the root.
pub(crate) fn find_in_root(project: &Project, recipe: &Recipe) -> Result<Kernel, Error> {
    let root = rootfs::of(project, recipe)?;
    newest_in(&root).ok_or_else(|| {
        Error::SetUp(format!(
            "{} has no kernel with its headers and rdma_rxe; remove that directory and try again",
            root.display()
        ))
    })
}

/// Returns the newest installed kernel that the guest can use.
pub(crate) fn newest() -> Result<Kernel, Error> {
    newest_in(Path::new("/")).ok_or_else(|| {
        Error::SetUp(
            "no kernel in /boot has both its headers (/lib/modules/VERSION/build) and rdma_rxe. On Debian:\n  \
             sudo apt-get install --reinstall --no-install-recommends linux-image-amd64 linux-headers-amd64"
                .to_owned(),
        )
    })
}

/// Returns the debug kernel. The image and the modules are in the source tree in which the kernel
/// was built.
fn debug(project: &Project) -> Result<Kernel, Error> {
    let tree = debug::tree(project)?;
    let release = tree.join("include/config/kernel.release");
    let version = fs::read_to_string(&release).at(&release)?;
    Ok(Kernel {
        version: version.trim_end().to_owned(),
        image: tree.join("arch/x86/boot/bzImage"),
        root: PathBuf::from("/"),
        headers: tree,
    })
}

fn newest_in(root: &Path) -> Option<Kernel> {
    let all_modules = root.join("lib/modules");
    let mut found = Vec::new();
    for version in names(&all_modules).unwrap_or_default() {
        let modules = all_modules.join(&version);
        let images = [
            root.join(format!("boot/vmlinuz-{version}")),
            modules.join("vmlinuz"),
        ];
        let rxe = modules.join("kernel/drivers/infiniband/sw/rxe");
        // If the headers are not installed, `build` is a symlink to a missing target.
        if !modules.join("build/Makefile").exists() || !rxe.exists() {
            continue;
        }
        if let Some(image) = images.into_iter().find(|image| image.exists()) {
            found.push(Kernel {
                headers: Path::new("/lib/modules").join(&version).join("build"),
                root: root.to_path_buf(),
                version,
                image,
            });
        }
    }
    found.sort_by_key(|kernel| version_key(&kernel.version));
    found.pop()
}

/// Builds the driver for the kernel and copies the module to `into`. Returns an error if the build
/// prints a warning.
pub(crate) fn build_driver(project: &Project, kernel: &Kernel, into: &Path) -> Result<(), Error> {
    let build = project.target.join("kernel").join(&kernel.version);
    let lock = project
        .target
        .join("kernel")
        .join(format!("{}.lock", kernel.version));
    let _lock = lock::take(&lock)?;
    mirror(&project.root.join("kernel"), &build)?;
    build_driver_in(&build, kernel, into)
}

/// Builds the driver from the sources in `build`, without updating them, and copies the module to
/// `into`.
pub(crate) fn build_driver_in(build: &Path, kernel: &Kernel, into: &Path) -> Result<(), Error> {
    let module = make_driver(build, kernel, &[])?;
    fs::copy(&module, into).at(&module)?;
    Ok(())
}

/// Runs make on the driver's sources in `build`, with all warnings on and with these settings.
/// Returns the path of the module. Returns an error if any tool prints a warning.
pub(crate) fn make_driver(
    build: &Path,
    kernel: &Kernel,
    settings: &[&str],
) -> Result<PathBuf, Error> {
    let mut make = if kernel.is_at_home() {
        let mut make = Command::new("make");
        make.arg("-C").arg(build);
        make
    } else {
        let mut make = rootfs::enter(&kernel.root, build, "make");
        make.args(["-C", "/mnt"]);
        make
    };
    make.arg(format!("KDIR={}", kernel.headers.display()));
    make.args(["W=1", "KCFLAGS=-Werror", "modules"])
        .args(settings);
    cmd::without_make_settings(&mut make);
    let output = cmd::output(&mut make)?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let module = build.join("ummunotify.ko");
    let why = if !output.status.success() {
        output.status.to_string()
    } else if has_warning(&said) {
        // The next make would not compile the file again, and would not repeat the warning. So the
        // build directory is removed.
        fs::remove_dir_all(build).at(build)?;
        "there are warnings".to_owned()
    } else if !module.exists() {
        format!("{} was not made", module.display())
    } else {
        return Ok(module);
    };
    Err(Error::Driver(format!(
        "{}: {why}\n{}\nthe driver does not build for Linux {}: correct kernel/",
        cmd::line(&make),
        said.trim_end(),
        kernel.version
    )))
}

/// Returns whether make's output contains a warning about the driver. An error that did not stop
/// make also counts, such as an error that sparse reports. The remark of Debian's headers about the
/// compiler does not count.
pub(crate) fn has_warning(said: &str) -> bool {
    said.lines().any(|line| {
        let line = line.to_ascii_lowercase();
        (line.contains("warning") || line.contains(": error: "))
            && !line.contains("the compiler differs from the one used to build the kernel")
    })
}

/// Makes the sources in `to` equal to the sources in `from`. The products of a build are neither
/// copied nor removed.
pub(crate) fn mirror(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).at(to)?;
    let mut there = BTreeSet::new();
    for name in names(from)? {
        if is_build_product(&name) {
            continue;
        }
        let (source, copy) = (from.join(&name), to.join(&name));
        if source.is_dir() {
            mirror(&source, &copy)?;
        } else {
            let content = fs::read(&source).at(&source)?;
            if fs::read(&copy).ok().as_ref() != Some(&content) {
                fs::write(&copy, &content).at(&copy)?;
            }
        }
        there.insert(name);
    }
    for name in names(to)? {
        let copy = to.join(&name);
        if there.contains(&name) || is_build_product(&name) {
            continue;
        }
        if copy.is_dir() {
            fs::remove_dir_all(&copy).at(&copy)?;
        } else {
            fs::remove_file(&copy).at(&copy)?;
        }
    }
    Ok(())
}

fn is_build_product(name: &str) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    name.starts_with('.')
        || name == "Module.symvers"
        || name == "modules.order"
        || name.ends_with(".mod.c")
        || ["o", "ko", "mod", "a", "s", "i"]
            .iter()
            .any(|product| extension == *product)
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        names.push(entry.at(dir)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Returns the key by which versions are sorted. The key consists of the numbers in the version, so
/// 6.1.0-9 is before 6.1.0-10.
fn version_key(version: &str) -> Vec<u64> {
    let numbers = version.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(version_key("6.1.0-9-amd64") < version_key("6.1.0-10-amd64"));
        assert!(version_key("6.1.0-56-amd64") < version_key("6.12.1-1-amd64"));
    }

    #[test]
    fn a_warning_is_seen_but_not_the_one_about_the_compiler() {
        assert!(has_warning("x.c:3:5: warning: unused variable"));
        assert!(has_warning(
            "WARNING: modpost: missing MODULE_DESCRIPTION()"
        ));
        assert!(!has_warning(
            "warning: the compiler differs from the one used to build the kernel"
        ));
        assert!(has_warning("x.c:3:5: error: incompatible types"));
        assert!(!has_warning("  CC [M]  ummunotify.o"));
    }

    #[test]
    fn a_mirror_follows_its_source_and_keeps_what_was_built() {
        let dir = std::env::temp_dir().join(format!("xtask-mirror-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("include/old")).unwrap();
        fs::write(from.join("a.c"), "1").unwrap();
        fs::write(from.join("a.o"), "not ours").unwrap();
        fs::write(from.join("include/old/x.h"), "x").unwrap();
        mirror(&from, &to).unwrap();
        assert!(!to.join("a.o").exists());

        fs::write(to.join("a.ko"), "built").unwrap();
        let untouched = fs::metadata(to.join("a.c")).unwrap().modified().unwrap();
        fs::remove_dir_all(from.join("include/old")).unwrap();
        mirror(&from, &to).unwrap();
        assert!(!to.join("include/old").exists());
        assert!(to.join("a.ko").exists());
        assert_eq!(
            fs::metadata(to.join("a.c")).unwrap().modified().unwrap(),
            untouched
        );
        fs::remove_dir_all(dir).unwrap();
    }
}
