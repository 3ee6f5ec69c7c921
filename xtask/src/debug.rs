//! Builds a kernel that detects its own faults, from Debian's source of Linux 6.1.
//!
//! `debug.config` switches on KASAN, lockdep, kmemleak and fault injection. Most of its other
//! settings are features that the tests need.
//!
//! The kernel is built once, in the target directory. If the configuration changes, only the
//! affected parts are built again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kconfig;
use crate::lock;
use crate::project::Project;
use crate::setup;
use crate::source;

const CONFIG: &str = include_str!("debug.config");

/// The Makefiles of the parts that KASAN does not check.
///
/// The rxe of Linux 6.1 has a fault that KASAN would report. When `rxe_mr_copy` has copied to the
/// end of a registration, it loads a pointer from beyond the end of the map. `rxe_mr_copy` does not
/// use this pointer, and Linux 6.3 no longer loads it. KASAN must not report the fault, because
/// lockdep stops permanently after KASAN's first report.
const WITHOUT_KASAN: &[&str] = &["drivers/infiniband/sw/rxe/Makefile"];

/// The packages that are needed to build a kernel, in addition to the package of the kernel's
/// source.
const PACKAGES: &[&str] = &[
    "bc",
    "bison",
    "flex",
    "gcc",
    "libelf-dev",
    "make",
    "xz-utils",
    source::PACKAGE,
];

/// Returns the path of the source tree that contains the built kernel. Builds the kernel if it is
/// missing, or if it was built from other sources.
pub(crate) fn tree(project: &Project) -> Result<PathBuf, Error> {
    let dir = project.own_dir().join("debug");
    let tree = dir.join("linux");
    setup::packages(project, PACKAGES)?;
    let version = source::Package::at_home().version()?;
    let built = dir.join("built");
    let built_from = format!("{version}\n{WITHOUT_KASAN:?}\n{CONFIG}");
    let is_built = || fs::read_to_string(&built).is_ok_and(|it| it == built_from);
    if is_built() {
        return Ok(tree);
    }
    let _lock = lock::take(&dir.join("lock"))?;
    if is_built() {
        return Ok(tree);
    }
    source::Package::at_home().unpack(&dir, &["*"])?;
    for makefile in WITHOUT_KASAN {
        leave_alone(&tree.join(makefile))?;
    }
    let wanted = dir.join("debug.config");
    fs::write(&wanted, CONFIG).at(&wanted)?;
    kconfig::configure(make(&tree), &wanted, &wanted, &tree.join(".config"))?;
    let log = dir.join("build.log");
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    eprintln!(
        "xtask: building the debug kernel. It needs 2 GB and, on two cores, up to an hour. Progress: {}",
        log.display()
    );
    let output = fs::File::create(&log).at(&log)?;
    let mut make = make(&tree);
    make.arg(format!("-j{jobs}")).args(["bzImage", "modules"]);
    make.stdout(output.try_clone().at(&log)?).stderr(output);
    cmd::run(&mut make)?;
    fs::write(&built, built_from).at(&built)?;
    Ok(tree)
}

fn leave_alone(makefile: &Path) -> Result<(), Error> {
    const LINE: &str = "KASAN_SANITIZE := n\n";
    let before = fs::read_to_string(makefile).at(makefile)?;
    if before.contains(LINE) {
        return Ok(());
    }
    fs::write(makefile, format!("{before}\n{LINE}")).at(makefile)
}

fn make(tree: &Path) -> Command {
    let mut make = Command::new("nice");
    make.args(["make", "-C"]).arg(tree);
    cmd::without_make_settings(&mut make);
    make
}
