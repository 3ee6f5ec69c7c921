//! Tests the installation of the driver by make and by DKMS, as a user installs it.
//!
//! The driver is installed in a copy of a root file system. A virtual machine boots from the copy
//! and loads the driver. Then the driver is removed from the copy. The test fails if a file of the
//! driver remains. The changes of the copy are lost at the end.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel::{self, Kernel, Series};
use crate::lock;
use crate::project::Project;
use crate::rootfs;
use crate::sandbox::{self, Sandbox};
use crate::setup;
use crate::vm;

/// The packages for this test, in addition to the packages that build the driver and boot the
/// virtual machine.
pub(crate) const PACKAGES: &[&str] = &["dkms"];

/// The files that are installed with the driver's module, and the sources of these files.
const REST: &[(&str, &str)] = &[
    (
        "usr/include/linux/ummunotify.h",
        "include/uapi/linux/ummunotify.h",
    ),
    ("usr/lib/modules-load.d/ummunotify.conf", "ummunotify.conf"),
    (
        "usr/lib/udev/rules.d/60-ummunotify.rules",
        "60-ummunotify.rules",
    ),
];

/// The key with which DKMS signs modules. DKMS makes the key at the first build, and keeps it when
/// the driver is removed.
const DKMS_KEEPS: &[&str] = &["var/lib/dkms/mok.key", "var/lib/dkms/mok.pub"];

/// The fields of `modinfo` that are checked, with their expected values.
const FIELDS: &[(&str, &str)] = &[
    (
        "description",
        "Tells user space when the mapping of its memory changes",
    ),
    ("author", "The regcache authors"),
    ("license", "GPL"),
    (
        "parm",
        "max_user_regions:Most ranges that one user may watch (default: 4% of memory) (ulong)",
    ),
];

/// The driver's sources, and the root file system in which the driver is installed.
struct Site<'a> {
    project: &'a Project,
    sandbox: &'a Sandbox,
    kernel: Kernel,
    sources: PathBuf,
    version: String,
}

/// Tests the installation by make and by DKMS, with the kernel of this series and in that kernel's
/// root file system.
pub(crate) fn run(project: &Project, series: Series) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::SetUp(
            "only root can try the driver's installation: run this command as root".to_owned(),
        ));
    }
    setup::packages(project, &[setup::VM, PACKAGES].concat())?;
    let kernel = kernel::find(project, series)?;
    let _lock = lock::take(&project.own_dir().join("install.lock"))?;
    let sources = project.own_dir().join("install");
    kernel::mirror(&project.root.join("kernel"), &sources)?;
    let version = version(&sources.join("dkms.conf"))?;
    sandbox::over(project, &kernel.root, |sandbox| {
        let site = Site {
            project,
            sandbox,
            kernel: kernel.in_copy(&sandbox.root),
            sources,
            version,
        };
        site.package()?;
        site.by_make()?;
        site.by_dkms()
    })
}

impl Site<'_> {
    /// Checks each kind of package. Below `DESTDIR`, make must install exactly the files of the
    /// package, and must then be able to remove all of them.
    fn package(&self) -> Result<(), Error> {
        let rest = REST.iter().map(|(to, _)| PathBuf::from(to));
        let module = format!("lib/modules/{}/updates/ummunotify.ko", self.kernel.version);
        let by_make: BTreeSet<_> = rest.clone().chain([PathBuf::from(module)]).collect();
        let source = PathBuf::from(format!("usr/src/ummunotify-{}", self.version));
        let needed = ["Kbuild", "Makefile", "dkms.conf", "ummunotify.c"];
        let needed = needed.iter().map(|name| source.join(name));
        let by_dkms: BTreeSet<_> = rest.chain(needed).collect();

        let inside = self.sandbox.root.join("tmp/package");
        for (prefix, expected) in [("", by_make), ("dkms-", by_dkms)] {
            self.make(&format!("{prefix}install"), &["DESTDIR=/tmp/package"])?;
            let mut found: BTreeSet<_> = files(&inside)?.into_iter().map(uncompressed).collect();
            if !prefix.is_empty() {
                found.retain(|path| !path.starts_with(&source) || expected.contains(path));
            }
            expect("the list of files of a package", &found, &expected)?;
            self.make(&format!("{prefix}uninstall"), &["DESTDIR=/tmp/package"])?;
            let left = files(&inside)?;
            expect(
                "the list of files left of a package",
                &left,
                &BTreeSet::new(),
            )?;
            fs::remove_dir_all(&inside).at(&inside)?;
        }
        Ok(())
    }

    fn by_make(&self) -> Result<(), Error> {
        self.make("install", &[])?;
        self.check_installed("updates")?;
        self.make("uninstall", &[])?;
        self.check_removed(&[])
    }

    fn by_dkms(&self) -> Result<(), Error> {
        self.make("dkms-install", &[])?;
        let status = cmd::read(self.enter("dkms").arg("status"))?;
        eprint!("{status}");
        let (driver, kernel) = (&self.version, &self.kernel.version);
        let installed = format!("ummunotify/{driver}, {kernel}, x86_64: installed");
        if !status.lines().any(|line| line.starts_with(&installed)) {
            return Err(wrong(
                "dkms status",
                format!("{status:?}, without {installed:?}"),
            ));
        }
        self.check_installed("updates/dkms")?;
        self.boot("updates/dkms")?;
        self.make("dkms-uninstall", &[])?;
        self.check_removed(DKMS_KEEPS)
    }

    fn check_installed(&self, place: &str) -> Result<(), Error> {
        for (to, from) in REST {
            let (to, from) = (self.sandbox.root.join(to), self.sources.join(from));
            if fs::read(&to).at(&to)? != fs::read(&from).at(&from)? {
                return Err(wrong(&to.to_string_lossy(), "different from its source"));
            }
        }
        let modinfo = |field: &str| {
            let mut modinfo = self.enter("modinfo");
            modinfo.args(["-k", &self.kernel.version, "-F", field, "ummunotify"]);
            cmd::read(&mut modinfo).map(|said| said.trim_end().to_owned())
        };
        let path = modinfo("filename")?;
        if !path.contains(&format!("/{}/{place}/ummunotify.ko", self.kernel.version)) {
            return Err(wrong("the module that modprobe finds", path));
        }
        let version = [("version", self.version.as_str())];
        for &(field, expected) in FIELDS.iter().chain(&version) {
            let said = modinfo(field)?;
            eprintln!("xtask: modinfo: {field}: {said}");
            if said != expected {
                return Err(wrong(
                    &format!("modinfo's {field}"),
                    format!("{said:?}, not {expected:?}"),
                ));
            }
        }
        Ok(())
    }

    /// Boots a virtual machine from the root, and runs `installed.sh` in it. This script checks the
    /// driver.
    fn boot(&self, place: &str) -> Result<(), Error> {
        let script = include_str!("installed.sh");
        let command = ["sh", "-c", script, "installed.sh", &self.version, place];
        let command = command.map(OsString::from);
        let machine = vm::Machine {
            timeout: 300,
            no_driver: true,
            ..vm::Machine::default()
        };
        let job = vm::Job {
            command: &command,
            stdout: Box::new(io::stderr()),
            stderr: None,
        };
        match vm::run_on(self.project, &self.kernel, &machine, job)? {
            0 => Ok(()),
            status => Err(wrong(
                "the installed driver",
                format!("not as installed.sh expects (exit status {status})"),
            )),
        }
    }

    fn check_removed(&self, kept: &[&str]) -> Result<(), Error> {
        let mut left = self.sandbox.changes()?;
        left.retain(|path| !kept.iter().any(|it| path == Path::new(it)));
        // A directory that other packages also use may remain if the directory is empty.
        for (to, _) in REST {
            for dir in Path::new(to).ancestors().skip(1) {
                if left.contains(dir) && files(&self.sandbox.root.join(dir))?.is_empty() {
                    left.remove(dir);
                }
            }
        }
        expect("the list of files left", &left, &BTreeSet::new())
    }

    /// Runs the driver's own make in the sandbox.
    fn make(&self, target: &str, settings: &[&str]) -> Result<(), Error> {
        eprintln!("xtask: make -C kernel {target} {}", settings.join(" "));
        let mut make = self.enter("make");
        make.args(["-C", "/mnt", target]).args(settings);
        make.arg(format!("KDIR={}", self.kernel.headers.display()));
        cmd::without_make_settings(&mut make);
        cmd::read(&mut make).map(drop)
    }

    /// Returns a command that runs a program in the sandbox, with the driver's sources at /mnt.
    fn enter(&self, program: &str) -> Command {
        rootfs::enter(&self.sandbox.root, &self.sources, program)
    }
}

/// Reads the driver's version from `dkms.conf`. No other file defines the version.
fn version(conf: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(conf).at(conf)?;
    let version = text.lines().find_map(|line| {
        line.strip_prefix("PACKAGE_VERSION=\"")
            .and_then(|rest| rest.strip_suffix('"'))
    });
    version
        .map(str::to_owned)
        .ok_or_else(|| wrong(&conf.to_string_lossy(), "without PACKAGE_VERSION=\"...\""))
}

/// Removes the suffix of a compression, such as `.xz`, from the name of a module.
fn uncompressed(path: PathBuf) -> PathBuf {
    let extension = path.extension().unwrap_or_default();
    if ["gz", "xz", "zst"].iter().any(|it| extension == *it) {
        return path.with_extension("");
    }
    path
}

/// Returns the paths of all entries below `dir` that are not directories, relative to `dir`.
fn files(dir: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let mut found = BTreeSet::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(inside) = todo.pop() {
        let at = dir.join(&inside);
        for entry in fs::read_dir(&at).at(&at)? {
            let entry = entry.at(&at)?;
            let path = inside.join(entry.file_name());
            if entry.file_type().at(&at)?.is_dir() {
                todo.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

fn expect(
    what: &str,
    found: &BTreeSet<PathBuf>,
    expected: &BTreeSet<PathBuf>,
) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(wrong(what, format!("{found:?}, not {expected:?}")))
}

fn wrong(what: &str, is: impl Into<String>) -> Error {
    Error::Driver(format!("installing the driver: {what} is {}", is.into()))
}
