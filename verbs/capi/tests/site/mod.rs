//! The C library as it is installed, and programs in C that use it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A prefix that it is installed in.
pub(crate) struct Site {
    prefix: PathBuf,
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Site {
    /// Where it is installed already.
    #[allow(dead_code, reason = "some suites install it")]
    pub(crate) fn at(prefix: PathBuf) -> Self {
        Self { prefix }
    }

    /// Installs what cargo has built for this test, under a name of the caller's.
    #[allow(dead_code, reason = "some suites find it installed")]
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

    /// A program that uses it.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.prefix.join("programs").join(name)
    }

    #[allow(dead_code, reason = "not every suite looks")]
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.prefix.join(name)
    }
}

/// The static library that cargo built along with this test. Of several, for other profiles, the last one that was built is
/// of the same source: else cargo would have built this one's after it.
fn newest_library() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let files = fs::read_dir(this.parent().unwrap()).unwrap().flatten();
    let ours = files.map(|file| file.path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libregcache_capi") && name.ends_with(".a")
    });
    let built = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    ours.max_by_key(built).expect("cargo builds it with this")
}

/// Runs the command and returns what it printed, or fails with it.
pub(crate) fn succeeds(command: &mut Command) -> String {
    said(command).0
}

/// The same for a program under valgrind, which finds no error and no leak, in its children neither.
pub(crate) fn clean_under_valgrind(program: &Path, arguments: &[&str]) -> String {
    // valgrind lets one thread run at a time, and so waits for ever in a munmap that another has to read the event of. The
    // system call for userfaultfd it does not know; the device, which root may open, it does not get.
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
    // What it only remarks begins with dashes.
    let found = stderr.lines().find(|line| line.starts_with("=="));
    assert!(found.is_none(), "{stderr}");
    stdout
}

/// What a command that succeeds prints, on both channels.
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
