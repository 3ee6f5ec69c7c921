//! Checks the driver's source with sparse and with the kernel's own checkpatch.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Violation;
use super::tree;
use crate::cmd;
use crate::error::Error;
use crate::kernel;
use crate::lock;
use crate::project::Project;
use crate::setup;
use crate::source;

/// The packages that sparse and checkpatch need, in addition to the packages that build the driver.
pub(crate) const PACKAGES: &[&str] = &["perl", "sparse", "xz-utils", source::PACKAGE];

/// The files of the kernel's source that checkpatch needs. Debian's packages of kernel headers do
/// not contain these files.
const CHECKPATCH: &[&str] = &[
    "*/scripts/checkpatch.pl",
    "*/scripts/const_structs.checkpatch",
    "*/scripts/spelling.txt",
];

/// A remark of checkpatch that the driver deliberately does not follow.
struct Exception {
    /// The file to which the exception applies, relative to `kernel/`.
    file: &'static str,
    /// The name of this kind of remark in checkpatch's output.
    kind: &'static str,
    /// The reason for the exception.
    #[expect(dead_code, reason = "for the reader")]
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[Exception {
    file: "ummunotify.c",
    kind: "UNCOMMENTED_DEFINITION",
    why: "the kernel-doc comment of the structure explains the lock, but checkpatch does not read it",
}];

/// Builds the driver and runs sparse on its source files. Returns a violation for each place that
/// sparse reports.
pub(crate) fn sparse(project: &Project) -> Result<Vec<Violation>, Error> {
    setup::packages(project, &[setup::VM, PACKAGES].concat())?;
    let kernel = kernel::newest()?;
    let dir = project.own_dir().join("sparse");
    let _lock = lock::take(&project.own_dir().join("sparse.lock"))?;
    kernel::mirror(&project.root.join("kernel"), &dir)?;
    // `C=2` makes sparse also check the files that make does not compile again.
    let made = kernel::make_driver(&dir, &kernel, &["C=2"]);
    match made {
        Ok(_) => Ok(Vec::new()),
        Err(Error::Driver(said)) => Ok(remarks_of_make(&said)),
        Err(error) => Err(error),
    }
}

/// Returns a violation for each line of make's output that reports a place in the driver. If no
/// line reports a place, returns the whole output as one violation.
fn remarks_of_make(said: &str) -> Vec<Violation> {
    let is_remark = |line: &&str| line.contains("warning: ") || line.contains("error: ");
    let found = said.lines().filter(is_remark).filter_map(remark);
    let found: Vec<_> = found.collect();
    if !found.is_empty() {
        return found;
    }
    vec![Violation {
        file: PathBuf::from("kernel/Kbuild"),
        line: 1,
        message: said.to_owned(),
    }]
}

/// Returns the violation that a line `FILE:LINE:…: TEXT` reports for a file of the driver.
fn remark(line: &str) -> Option<Violation> {
    let mut parts = line.splitn(3, ':');
    let file = Path::new(parts.next()?);
    let number = parts.next()?.parse().ok()?;
    let name = file.file_name()?;
    let text = parts
        .next()?
        .trim_start_matches(|c: char| c.is_ascii_digit() || ": ".contains(c));
    let file = if file.is_absolute() {
        Path::new("kernel").join(name)
    } else {
        Path::new("kernel").join(file)
    };
    Some(Violation {
        file,
        line: number,
        message: text.to_owned(),
    })
}

/// Runs checkpatch on all C files of the driver. Returns a violation for each remark that has no
/// exception.
pub(crate) fn checkpatch(project: &Project) -> Result<Vec<Violation>, Error> {
    setup::packages(project, &[setup::VM, PACKAGES].concat())?;
    let dir = project.own_dir().join("checkpatch");
    let _lock = lock::take(&project.own_dir().join("checkpatch.lock"))?;
    let tree = source::Package::at_home().unpack(&dir, CHECKPATCH)?;
    let driver = project.root.join("kernel");
    let mut checkpatch = Command::new("perl");
    checkpatch.arg(tree.join("scripts/checkpatch.pl"));
    checkpatch.args(["--strict", "--no-tree", "--terse", "--show-types"]);
    checkpatch.args(["--no-summary", "--file"]);
    checkpatch.args(sources(project)?);
    checkpatch.current_dir(&driver);
    let output = cmd::output(&mut checkpatch)?;
    let said = [output.stdout, output.stderr].concat();
    let found = judge(&String::from_utf8_lossy(&said), EXCEPTIONS);
    if found.is_empty() && !output.status.success() && said.is_empty() {
        return Err(Error::Command {
            command: cmd::line(&checkpatch),
            why: output.status.to_string(),
        });
    }
    Ok(found)
}

/// Returns the driver's C files, relative to the driver's directory.
fn sources(project: &Project) -> Result<Vec<PathBuf>, Error> {
    let paths = tree::paths(project)?.into_iter();
    let paths = paths.filter(|it| ["c", "h"].iter().any(|c| tree::has_extension(it, c)));
    let driver = paths.filter_map(|it| it.strip_prefix("kernel").map(Path::to_path_buf).ok());
    Ok(driver.collect())
}

/// Returns two kinds of violations: the remarks of checkpatch that have no exception, and the
/// exceptions to which no remark belongs.
fn judge(said: &str, exceptions: &[Exception]) -> Vec<Violation> {
    let is_remark = |exception: &Exception, line: &str| {
        let mut parts = line.splitn(5, ':').map(str::trim);
        parts.next() == Some(exception.file) && parts.nth(2) == Some(exception.kind)
    };
    let remarks = said.lines().filter(|line| {
        let excepted = exceptions.iter().any(|it| is_remark(it, line));
        !line.trim().is_empty() && !excepted
    });
    let remarks = remarks.map(|line| {
        remark(line).unwrap_or_else(|| Violation {
            file: PathBuf::from("kernel"),
            line: 1,
            message: line.to_owned(),
        })
    });
    let idle = exceptions
        .iter()
        .filter(|it| !said.lines().any(|line| is_remark(it, line)));
    let idle = idle.map(|it| Violation {
        file: Path::new("kernel").join(it.file),
        line: 1,
        message: format!(
            "the exception for {} is no longer needed: remove it from xtask/src/check/driver.rs",
            it.kind
        ),
    });
    remarks.chain(idle).collect()
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

    fn lines(found: &[Violation]) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_exception_holds_for_its_file_and_kind() {
        assert_eq!(judge(SAID, &[exception("x.c")]), []);
        let other = "x.c:1: WARNING:LONG_LINE: line length of 101 exceeds 100 columns\n";
        let both = SAID.to_owned() + other;
        assert_eq!(
            lines(&judge(&both, &[exception("x.c")])),
            [concat!(
                "kernel",
                "/x.c:1: WARNING:LONG_LINE: line length of 101 exceeds 100 columns"
            )]
        );
    }

    #[test]
    fn an_exception_that_is_not_needed_is_a_violation() {
        let idle = concat!(
            "kernel",
            "/y.c:1: the exception for UNCOMMENTED_DEFINITION is no longer needed: remove it from \
             xtask/src/check/driver.rs"
        );
        assert_eq!(
            lines(&judge(SAID, &[exception("x.c"), exception("y.c")])),
            [idle]
        );
    }

    #[test]
    fn the_places_that_sparse_names_are_read() {
        let said = "make: there are warnings\n/a/b/x.c:3:5: warning: symbol 'y' was not declared\n";
        assert_eq!(
            lines(&remarks_of_make(said)),
            [concat!(
                "kernel",
                "/x.c:3: warning: symbol 'y' was not declared"
            )]
        );
        assert_eq!(remarks_of_make("make: no rule").len(), 1);
    }
}
