//! The driver's source under the eyes of sparse and of the kernel's own checkpatch. What they say is an error, but for
//! `EXCEPTIONS`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::kernel;
use crate::lock;
use crate::project::Project;
use crate::setup;
use crate::source;

/// Beside what the driver is built with.
pub(crate) const PACKAGES: &[&str] = &["perl", "sparse", "xz-utils", source::PACKAGE];

/// What checkpatch is made of; Debian's packages of headers have none of it.
const CHECKPATCH: &[&str] = &[
    "*/scripts/checkpatch.pl",
    "*/scripts/const_structs.checkpatch",
    "*/scripts/spelling.txt",
];

/// A remark of checkpatch that the driver leaves standing.
struct Exception {
    /// The file, below `kernel/`.
    file: &'static str,
    /// As checkpatch calls this kind of remark.
    kind: &'static str,
    /// Why it is not heeded.
    #[expect(dead_code, reason = "for who reads this")]
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[Exception {
    file: "ummunotify.c",
    kind: "UNCOMMENTED_DEFINITION",
    why: "a lock is to be explained where it is defined, and is: in the kernel-doc above its structure, member by \
          member, where checkpatch does not look",
}];

/// Runs both; an error if either has anything to say.
pub(crate) fn run(project: &Project) -> Result<(), Error> {
    setup::packages(project, &[setup::VM, PACKAGES].concat())?;
    sparse(project)?;
    checkpatch(project)
}

fn sparse(project: &Project) -> Result<(), Error> {
    let kernel = kernel::newest()?;
    eprintln!(
        "xtask: sparse, with the headers of Linux {}",
        kernel.version
    );
    let dir = project.own_dir().join("sparse");
    let _lock = lock::take(&project.own_dir().join("sparse.lock"))?;
    kernel::mirror(&project.root.join("kernel"), &dir)?;
    // 2: also of what make need not compile again.
    kernel::make_driver(&dir, &kernel, &["C=2"])?;
    Ok(())
}

fn checkpatch(project: &Project) -> Result<(), Error> {
    let dir = project.own_dir().join("checkpatch");
    let _lock = lock::take(&project.own_dir().join("checkpatch.lock"))?;
    let tree = source::unpack(&dir, CHECKPATCH)?;
    let driver = project.root.join("kernel");
    let mut checkpatch = Command::new("perl");
    checkpatch.arg(tree.join("scripts/checkpatch.pl"));
    checkpatch.args(["--strict", "--no-tree", "--terse", "--show-types"]);
    checkpatch.args(["--no-summary", "--file"]);
    checkpatch.args(sources(&driver)?);
    checkpatch.current_dir(&driver);
    eprintln!("xtask: {}", cmd::line(&checkpatch));
    let output = cmd::output(&mut checkpatch)?;
    let said = [output.stdout, output.stderr].concat();
    let verdict = judge(&String::from_utf8_lossy(&said), EXCEPTIONS);
    verdict.map_err(|why| Error::Driver(format!("{}:\n{why}", cmd::line(&checkpatch))))
}

/// The driver's files in C, as seen from its directory.
fn sources(driver: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut find = Command::new("find");
    find.args(["-name", "*.[ch]", "-not", "-name", "*.mod.c"]);
    let found = cmd::read(find.current_dir(driver))?;
    let mut files: Vec<_> = found
        .lines()
        .map(|path| PathBuf::from(path.trim_start_matches("./")))
        .collect();
    files.sort();
    Ok(files)
}

/// What checkpatch said that is no exception, and the exceptions that it did not come to.
fn judge(said: &str, exceptions: &[Exception]) -> Result<(), String> {
    let is_remark = |exception: &Exception, line: &str| {
        let mut parts = line.splitn(5, ':').map(str::trim);
        parts.next() == Some(exception.file) && parts.nth(2) == Some(exception.kind)
    };
    let remarks = said.lines().filter(|line| {
        let excepted = exceptions.iter().any(|it| is_remark(it, line));
        !line.trim().is_empty() && !excepted
    });
    let idle = exceptions
        .iter()
        .filter(|it| !said.lines().any(|line| is_remark(it, line)));
    let idle = idle.map(|it| {
        format!(
            "{}: {} is an exception that is no longer needed",
            it.file, it.kind
        )
    });
    let all: Vec<_> = remarks.map(str::to_owned).chain(idle).collect();
    if all.is_empty() {
        return Ok(());
    }
    Err(all.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str =
        "x.c:155: CHECK:UNCOMMENTED_DEFINITION: spinlock_t definition without comment\n\n";

    fn exception(file: &'static str) -> Exception {
        Exception {
            file,
            kind: "UNCOMMENTED_DEFINITION",
            why: "",
        }
    }

    #[test]
    fn an_exception_holds_for_its_file_and_kind() {
        assert_eq!(judge(SAID, &[exception("x.c")]), Ok(()));
        let other = "x.c:1: WARNING:LONG_LINE: line length of 101 exceeds 100 columns\n";
        let both = SAID.to_owned() + other;
        assert_eq!(
            judge(&both, &[exception("x.c")]),
            Err(other.trim().to_owned())
        );
    }

    #[test]
    fn an_exception_that_is_not_needed_is_an_error() {
        let idle = "y.c: UNCOMMENTED_DEFINITION is an exception that is no longer needed";
        assert_eq!(
            judge(SAID, &[exception("x.c"), exception("y.c")]),
            Err(idle.to_owned())
        );
    }
}
