//! A kernel that looks for faults in itself, made from Debian's source of Linux 6.1 with as little else as will run the
//! tests (`debug.config`): KASAN, lockdep, kmemleak and fault injection, each switched on in its debugfs way.
//!
//! It is built once, in the target directory, and again when the configuration changes, then only what that touches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::lock;
use crate::project::Project;
use crate::setup;
use crate::source;

const CONFIG: &str = include_str!("debug.config");

/// Parts of the source that KASAN leaves alone, by their Makefiles. The first report of anything there would have
/// lockdep stop for good.
///
/// rxe 6.1 loads a pointer from past the end of a registration's map, and does not use it, when it has copied to the end
/// (`rxe_mr_copy`; gone since Linux 6.3).
const WITHOUT_KASAN: &[&str] = &["drivers/infiniband/sw/rxe/Makefile"];

/// What a kernel is built with, beside the source.
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

/// The tree it is built in, built now if it is not, or was from something else.
pub(crate) fn tree(project: &Project) -> Result<PathBuf, Error> {
    let dir = project.own_dir().join("debug");
    let tree = dir.join("linux");
    setup::packages(project, PACKAGES)?;
    let version = source::version()?;
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
    source::unpack(&dir, &["*"])?;
    for makefile in WITHOUT_KASAN {
        leave_alone(&tree.join(makefile))?;
    }
    configure(&dir, &tree)?;
    let log = dir.join("build.log");
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    eprintln!(
        "xtask: building the debug kernel, which takes 2 GB and, on two cores, up to an hour; progress: {}",
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

/// Configures nothing but what `debug.config` asks for and that depends on, and makes sure to have got it.
fn configure(dir: &Path, tree: &Path) -> Result<(), Error> {
    let wanted = dir.join("debug.config");
    fs::write(&wanted, CONFIG).at(&wanted)?;
    let mut make = make(tree);
    make.arg(format!("KCONFIG_ALLCONFIG={}", wanted.display()))
        .arg("allnoconfig");
    cmd::read(&mut make)?;
    let config = tree.join(".config");
    let got = fs::read_to_string(&config).at(&config)?;
    let refused = not_taken(CONFIG, &got);
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::Unexpected {
        command: cmd::line(&make),
        what: format!(
            "debug.config's {} did not come into effect: something it depends on is missing there",
            refused.join(", ")
        ),
    })
}

/// The settings wanted that are not among those got.
fn not_taken<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let got: Vec<_> = got.lines().collect();
    let settings = wanted.lines().filter(|line| line.starts_with("CONFIG_"));
    settings.filter(|line| !got.contains(line)).collect()
}

fn make(tree: &Path) -> Command {
    let mut make = Command::new("nice");
    make.args(["make", "-C"]).arg(tree);
    cmd::without_make_settings(&mut make);
    make
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_kconfig_dropped_is_noticed() {
        let wanted = "# for faults\nCONFIG_A=y\nCONFIG_B=m\n\nCONFIG_C=4\n";
        let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=40\n";
        assert_eq!(not_taken(wanted, got), ["CONFIG_B=m", "CONFIG_C=4"]);
    }
}
