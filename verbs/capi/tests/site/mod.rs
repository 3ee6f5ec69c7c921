//! An installation of the C library, with C programs that use the library.
#![allow(dead_code, reason = "each suite uses a part")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An installation below a prefix.
pub(crate) struct Site {
    prefix: PathBuf,
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Site {
    /// Returns an installation that already exists.
    pub(crate) fn at(prefix: PathBuf) -> Self {
        Self { prefix }
    }

    /// Installs the library that cargo has built for this test, in a directory of this name.
    pub(crate) fn install(name: &str) -> Self {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let prefix = out.join("prefix");
        let mut make = Command::new("make");
        make.arg("-C").arg(here()).arg("programs");
        for (variable, value) in [("STATIC", newest_library()), ("OUT", out.clone())] {
            make.arg(format!("{variable}={}", value.display()));
        }
        make.arg(concat!("VERSION=", env!("CARGO_PKG_VERSION")));
        make.arg(format!("PREFIX={}", prefix.display()));
        let _ = fs::remove_dir_all(&out);
        succeeds(&mut make);
        Self { prefix }
    }

    /// Returns the path of a program that uses the library.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.file("programs").join(name)
    }

    /// Returns the path of a file of the installation.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.prefix.join(name)
    }
}

/// Finds the static library that cargo built along with this test. There may be libraries of other
/// profiles too. The newest library is from the current source, because cargo has just built it.
pub(crate) fn newest_library() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let files = fs::read_dir(this.parent().unwrap()).unwrap().flatten();
    let ours = files.map(|file| file.path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libregcache_capi") && name.ends_with(".a")
    });
    let built = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    ours.max_by_key(built)
        .expect("cargo builds the library with this test")
}

/// Runs a command that must succeed, and returns its output.
pub(crate) fn succeeds(command: &mut Command) -> String {
    said(command).0
}

/// Runs a program under valgrind, which must find no error and no leak, and returns its output.
pub(crate) fn clean_under_valgrind(program: &Path, arguments: &[&str]) -> String {
    // valgrind runs only one thread at a time. So with userfaultfd a munmap would wait without end
    // for the thread that has to read its event. valgrind does not support the system call
    // userfaultfd. But root could still open the device `/dev/userfaultfd`, so hide the device.
    const WITHOUT_USERFAULTFD: &str = "
        if [ -e /dev/userfaultfd ]; then
            mount --bind /dev/userfaultfd /dev/userfaultfd
            mount -o remount,bind,nodev /dev/userfaultfd
        fi
        exec valgrind \"$@\"";
    let is_root = fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0);
    let mut command = Command::new(if is_root { "unshare" } else { "valgrind" });
    if is_root {
        command.args(["--mount", "sh", "-c", WITHOUT_USERFAULTFD, "sh"]);
    }
    command.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
    command.args([
        "--show-leak-kinds=definite,indirect,possible",
        "--fair-sched=yes",
    ]);
    let suppressions = here().join("tests/c/libibverbs.supp");
    command.arg(format!("--suppressions={}", suppressions.display()));
    let (stdout, stderr) = said(command.arg(program).args(arguments));
    // valgrind does not know the driver's ioctl 4, whose number has no size, and says so once.
    const REMARK: [&str; 3] = [
        "noted but unhandled ioctl 0x5504 ",
        "This could cause spurious value errors to appear.",
        "See README_MISSING_SYSCALL_OR_IOCTL ",
    ];
    let is_remark = |line: &str| REMARK.iter().any(|remark| line.contains(remark));
    // Lines of valgrind that begin with dashes are remarks and no errors.
    let found = stderr
        .lines()
        .find(|line| line.starts_with("==") && !is_remark(line));
    assert!(found.is_none(), "{stderr}");
    stdout
}

/// Runs a command that must succeed, and returns its stdout and its stderr.
fn said(command: &mut Command) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    (stdout, stderr)
}
