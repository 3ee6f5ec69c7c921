//! Boots a kernel in QEMU from an initramfs that has only busybox and the kselftest, and reads the
//! kselftest's output. The guest has one CPU, no disk and no network.
//!
//! The kselftest runs as root and as another user. Its outputs and the kernel's messages use three
//! serial ports. So a message cannot split a line of the output.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Place, tap};
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::vm;

/// The first program of the guest.
const INIT: &str = include_str!("init.sh");

/// The test that another user than root may not run, because it writes a module parameter.
const FOR_ROOT: &str = "ummunotify.the_ranges_of_a_user_are_bounded";

/// The guest is killed after this number of seconds.
const TIME_LIMIT: &str = "900";

/// The programs to run, and the kernel.
pub(super) struct Guest {
    /// The name of the directory that has the initramfs and the logs.
    pub(super) name: &'static str,
    /// The kernel's image.
    pub(super) image: PathBuf,
    /// The module, if the driver is not built in.
    pub(super) module: Option<PathBuf>,
    /// The kselftest.
    pub(super) selftest: PathBuf,
}

/// Boots the guest. Returns the numbers of tests that passed, as root and as another user. Returns
/// an error if a test failed or if the kernel complained.
pub(super) fn run(place: &Place<'_>, guest: &Guest) -> Result<[usize; 2], Error> {
    let dir = place.dir.join("guests").join(guest.name);
    if dir.exists() {
        fs::remove_dir_all(&dir).at(&dir)?;
    }
    let initramfs = initramfs(place, guest, &dir)?;
    let taps = [dir.join("root.tap"), dir.join("user.tap")];
    let console = dir.join("console.log");

    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig=TERM", "timeout", "--signal=KILL", TIME_LIMIT]);
    qemu.args(["qemu-system-x86_64", "-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-m", "512M", "-smp", "1"]);
    let machine: &[&str] = if vm::has_kvm() {
        &["-accel", "kvm", "-cpu", "host"]
    } else {
        &["-accel", "tcg", "-cpu", "max"]
    };
    qemu.args(machine);
    qemu.arg("-kernel").arg(&guest.image);
    qemu.arg("-initrd").arg(&initramfs);
    qemu.args([
        "-append",
        "console=ttyS0 rdinit=/init loglevel=6 oops=panic panic=-1",
    ]);
    for log in [&console, &taps[0], &taps[1]] {
        qemu.arg("-serial").arg(format!("file:{}", log.display()));
    }
    let output = cmd::output(&mut qemu)?;

    let messages = text(&console);
    let logs = format!("the logs are in {}", dir.display());
    let complaints = vm::complaints(&messages);
    if !complaints.is_empty() {
        return Err(Error::Vm(format!(
            "the kernel complained:\n{complaints}\n{logs}"
        )));
    }
    if !output.status.success() || !messages.contains("init: done") {
        return Err(Error::Vm(format!(
            "the guest did not reach its end ({}). {}\nIts console ended with:\n{}\n{logs}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end(),
            vm::tail(&messages, 25)
        )));
    }
    let judge = |tap: &PathBuf, skipped: &[&str]| {
        let said = text(tap);
        tap::judge(&said, skipped).map_err(|why| {
            let said = tap::without_successes(&said);
            Error::Check(format!(
                "the kselftest failed:\n{why}\n{said}\n{}\n{logs}",
                tap.display()
            ))
        })
    };
    Ok([judge(&taps[0], &[])?, judge(&taps[1], &[FOR_ROOT])?])
}

/// Makes the initramfs, and returns its path.
fn initramfs(place: &Place<'_>, guest: &Guest, dir: &Path) -> Result<PathBuf, Error> {
    let files = dir.join("root");
    fs::create_dir_all(&files).at(&files)?;
    fs::write(files.join("init"), INIT).at(&files)?;
    let mut copies = vec![
        (place.root.join("usr/bin/busybox"), "busybox"),
        (guest.selftest.clone(), "selftest"),
    ];
    if let Some(module) = &guest.module {
        copies.push((module.clone(), "ummunotify.ko"));
    }
    for (from, to) in copies {
        fs::copy(&from, files.join(to)).at(&from)?;
    }
    let mut pack = place.enter("sh");
    let script = r#"chmod +x /mnt/guests/$1/root/init && cd /mnt/guests/$1/root && find . | cpio --quiet -o -H newc >../initramfs.cpio"#;
    pack.args(["-c", script, "sh", guest.name]);
    cmd::read(&mut pack)?;
    Ok(dir.join("initramfs.cpio"))
}

/// Returns the text of a log, or an empty text if the log is missing.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
