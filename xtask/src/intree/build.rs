//! Builds the series: the driver with all warnings and with sparse, the small kernel, the
//! kselftest, the module for Debian's kernel, and the driver for arm64.
//!
//! All programs run in the root. A build is outside the source tree (`O=`), in a directory for each
//! configuration. If nothing has changed, make compiles nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use super::Place;
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kconfig;
use crate::kernel;

/// The settings of the small kernel.
const SMALL: &str = include_str!("small.config");

/// sparse 0.6.4 does not know `__typeof_unqual__`, and the kernel then skips the check. With this
/// definition a qualifier stays where the compiler drops it, which only makes sparse stricter.
///
/// sparse does not evaluate `__builtin_strlen` either, which the kernel uses in a static assertion
/// on each `MODULE_*` macro. With this definition the assertion holds always. The compiler still
/// checks it.
const SPARSE: &str =
    "CHECK=sparse -D__typeof_unqual__=__typeof__ -D'__builtin_strlen(s)=(sizeof(s)-1)'";

/// Says how the kernel's configuration contains the driver.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Driver {
    BuiltIn,
    Module,
}

impl Driver {
    fn setting(self) -> &'static str {
        match self {
            Self::BuiltIn => "CONFIG_UMMUNOTIFY=y\n",
            Self::Module => "CONFIG_UMMUNOTIFY=m\n",
        }
    }
}

/// The page sizes of arm64 for which the driver is compiled.
#[derive(Clone, Copy)]
pub(super) enum Pages {
    Of4Kib,
    Of64Kib,
}

/// Compiles the driver for the small kernel with all warnings, and runs sparse on it.
pub(super) fn strictly(place: &Place<'_>, driver: Driver) -> Result<(), Error> {
    let config = format!("{SMALL}{}", driver.setting());
    configure(place, "x86", &config, &[])?;
    compile(place, "x86", &["C=1", SPARSE])
}

/// Compiles the driver for arm64.
pub(super) fn for_arm64(place: &Place<'_>, pages: Pages) -> Result<(), Error> {
    let (dir, setting) = match pages {
        Pages::Of4Kib => ("arm64-4k", "CONFIG_ARM64_4K_PAGES=y\n"),
        Pages::Of64Kib => ("arm64-64k", "CONFIG_ARM64_64K_PAGES=y\n"),
    };
    let config = format!("CONFIG_PROC_FS=y\n{setting}{}", Driver::BuiltIn.setting());
    let arm64 = ["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"];
    configure(place, dir, &config, &arm64)?;
    compile(place, dir, &arm64)
}

/// Builds the small kernel. Returns the path of its image, and of the module if the driver is a
/// module.
pub(super) fn small_kernel(
    place: &Place<'_>,
    driver: Driver,
) -> Result<(PathBuf, Option<PathBuf>), Error> {
    let config = format!("{SMALL}{}", driver.setting());
    configure(place, "x86", &config, &[])?;
    let mut make = make_kernel(place, "x86");
    make.args(["bzImage", "modules"]);
    run(&mut make)?;
    let built = place.dir.join("x86");
    let module = built.join("drivers/char/ummunotify.ko");
    let module = (driver == Driver::Module).then_some(module);
    Ok((built.join("arch/x86/boot/bzImage"), module))
}

/// Builds the module for Debian's kernel from the driver of the tree. Returns the path of the
/// module.
pub(super) fn for_debian(place: &Place<'_>) -> Result<PathBuf, Error> {
    let dir = place.dir.join("debian");
    let header = "include/uapi/linux/ummunotify.h";
    let source = "drivers/char/ummunotify.c";
    let copies = [(header, header), (source, "ummunotify.c")];
    for (from, to) in copies {
        let (from, to) = (place.tree().join(from), dir.join(to));
        fs::create_dir_all(to.parent().unwrap_or(&dir)).at(&dir)?;
        fs::copy(&from, &to).at(&from)?;
    }
    let kbuild = "obj-m := ummunotify.o\nccflags-y := -I$(src)/include/uapi\n";
    fs::write(dir.join("Kbuild"), kbuild).at(&dir)?;
    let mut make = place.make();
    make.arg("-C").arg(&place.debian.headers);
    make.args(["M=/mnt/debian", "W=1", "KCFLAGS=-Werror", "modules"]);
    run(&mut make)?;
    Ok(dir.join("ummunotify.ko"))
}

/// Builds the kselftest with the headers of the small kernel. Returns the path of the program,
/// which needs no libraries.
pub(super) fn selftest(place: &Place<'_>) -> Result<PathBuf, Error> {
    let mut headers = make_kernel(place, "x86");
    run(headers.arg("headers"))?;
    let mut make = place.make();
    make.args(["-C", "/mnt/linux/tools/testing/selftests"]);
    make.args([
        "O=/mnt/x86",
        "KHDR_INCLUDES=-isystem /mnt/x86/usr/include",
        "TARGETS=ummunotify",
        "USERCFLAGS=-Werror -Wextra -Wno-unused-parameter -Wno-sign-compare",
        "USERLDFLAGS=-static",
        "FORCE_TARGETS=1",
    ]);
    run(&mut make)?;
    Ok(place.dir.join("x86/kselftest/ummunotify/ummunotify_test"))
}

/// Configures a kernel with these settings and their dependencies only. Returns an error if a
/// setting does not take effect.
fn configure(place: &Place<'_>, dir: &str, config: &str, arch: &[&str]) -> Result<(), Error> {
    let built = place.dir.join(dir);
    fs::create_dir_all(&built).at(&built)?;
    let wanted = built.join("wanted.config");
    let got = built.join(".config");
    if got.exists() && fs::read_to_string(&wanted).is_ok_and(|it| it == config) {
        return Ok(());
    }
    fs::write(&wanted, config).at(&wanted)?;
    let mut make = make_kernel(place, dir);
    make.args(arch);
    let seen = Path::new("/mnt").join(dir).join("wanted.config");
    let configured = kconfig::configure(make, &wanted, &seen, &got);
    // A configuration that lacks a setting must not serve the next run.
    if configured.is_err() && got.exists() {
        fs::remove_file(&got).at(&got)?;
    }
    configured
}

/// Compiles the driver alone with all warnings. Removes its object first, so that the compiler
/// repeats each warning.
fn compile(place: &Place<'_>, dir: &str, settings: &[&str]) -> Result<(), Error> {
    let object = place.dir.join(dir).join("drivers/char/ummunotify.o");
    if object.exists() {
        fs::remove_file(&object).at(&object)?;
    }
    let mut make = make_kernel(place, dir);
    make.args(["W=1", "KCFLAGS=-Werror"]).args(settings);
    let said = run(make.arg("drivers/char/ummunotify.o"))?;
    let asked_for_sparse = settings.contains(&SPARSE);
    let checked = said
        .lines()
        .any(|line| line.trim_start().starts_with("CHECK "));
    if asked_for_sparse && !checked {
        return Err(Error::Unexpected {
            command: cmd::line(&make),
            what: format!("sparse did not run\n{}", said.trim_end()),
        });
    }
    Ok(())
}

fn make_kernel(place: &Place<'_>, dir: &str) -> Command {
    let mut make = place.make();
    make.args(["-C", "/mnt/linux"]).arg(format!("O=/mnt/{dir}"));
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    make.arg(format!("-j{jobs}"));
    make
}

/// Runs make and returns its output. Returns an error if make fails or prints a warning.
fn run(make: &mut Command) -> Result<String, Error> {
    let output = cmd::output(make)?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let why = if !output.status.success() {
        output.status.to_string()
    } else if kernel::has_warning(&said) {
        "there are warnings".to_owned()
    } else {
        return Ok(said);
    };
    Err(Error::Driver(format!(
        "{}: {why}\n{}",
        cmd::line(make),
        said.trim_end()
    )))
}
