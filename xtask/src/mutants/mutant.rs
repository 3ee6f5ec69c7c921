//! [`Mutant`]: a patch that breaks one claim, with the tests that must fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};

/// The part of the project that a mutant replaces. Mutants of the shim need the driver, so they are
/// tested before mutants of the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Shim,
    Driver,
}

impl Part {
    /// Returns the file name of a mutant of this part.
    pub(crate) fn file(self, name: &str) -> String {
        match self {
            Self::Shim => format!("{name}.so"),
            Self::Driver => format!("{name}.ko"),
        }
    }
}

pub(crate) struct Mutant {
    /// The part that the tests in the virtual machine replace.
    pub(crate) part: Part,
    pub(crate) name: String,
    pub(crate) patch: PathBuf,
    /// The package of the suite, if the suite runs on this machine.
    pub(crate) package: Option<String>,
    pub(crate) suite: String,
    pub(crate) fails: Vec<String>,
}

impl Mutant {
    /// Applies the patch to the sources, with these options of `patch`.
    pub(crate) fn apply(&self, sources: &Path, options: &[&str]) -> Result<(), Error> {
        let mut patch = Command::new("patch");
        patch.args(["--quiet", "--force", "--no-backup-if-mismatch"]);
        patch.args(options).arg("-d").arg(sources);
        cmd::run(patch.arg("-i").arg(&self.patch))
    }
}

/// The name of a mutant, with the names of the tests that noticed it, or else with an error that
/// names those that passed.
pub(crate) type Verdict = (String, Result<String, String>);

/// Reads the mutants of a directory, in the order in which they are tested.
pub(crate) fn read_all(dir: &Path) -> Result<Vec<Mutant>, Error> {
    let mut mutants = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let patch = entry.at(dir)?.path();
        if patch.extension().is_none_or(|it| it != "patch") {
            continue;
        }
        let text = fs::read_to_string(&patch).at(&patch)?;
        let field = |name: &str| {
            let values = text.lines().filter_map(|line| line.strip_prefix(name));
            values
                .map(|value| value.trim().to_owned())
                .collect::<Vec<_>>()
        };
        let (suite, fails) = (field("Suite:"), field("Fails:"));
        let package = field("Package:").into_iter().next();
        let (Some(suite), false) = (suite.into_iter().next(), fails.is_empty()) else {
            return Err(Error::Driver(format!(
                "{} has no line Suite: or no line Fails:. Add them, as CONTRIBUTING.md describes",
                patch.display()
            )));
        };
        let name = patch
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let part = if text.contains("\n+++ b/kernel/") {
            Part::Driver
        } else {
            Part::Shim
        };
        mutants.push(Mutant {
            part,
            name,
            patch,
            package,
            suite,
            fails,
        });
    }
    mutants.sort_by(|a, b| (a.part, &a.name).cmp(&(b.part, &b.name)));
    Ok(mutants)
}

/// Returns the line that stands before the output of the mutant's tests.
pub(crate) fn begin(mutant: &Mutant) -> String {
    format!("===== mutant {}\n", mutant.name)
}

/// The start of the line after the output. The exit status of the suite follows.
pub(crate) const END: &str = "===== end ";

/// Returns the mutant's name and its verdict. Returns `None` if the output ends before the mutant's
/// tests do. If all tests of the patch's `Fails:` lines failed, the verdict is `Ok` with their
/// names. Otherwise the verdict is an error that names the tests that passed.
pub(crate) fn judge(mutant: &Mutant, text: &str) -> Option<Verdict> {
    let (_, output) = text.split_once(&begin(mutant))?;
    let (output, after) = output.split_once(END)?;
    let status = after
        .lines()
        .next()
        .and_then(|status| status.parse::<u32>().ok());
    // A status of 124 or more means that `timeout` stopped the suite or that a signal killed it.
    // All tests of the suite then count as failed.
    let cut_short = status.is_none_or(|status| status >= 124);
    let has_failed = |test: &&String| {
        let failed = output.lines().any(|line| {
            let mut words = line.split_whitespace();
            line.starts_with("test ")
                && words.nth(1) == Some(test)
                && words.next_back() == Some("FAILED")
        });
        failed || cut_short
    };
    let (failed, passed): (Vec<_>, Vec<_>) = mutant.fails.iter().partition(has_failed);
    let verdict = if passed.is_empty() {
        let by: Vec<_> = failed.into_iter().map(String::as_str).collect();
        Ok(by.join(", ") + if cut_short { " (did not end)" } else { "" })
    } else {
        Err(format!("not noticed by {passed:?}"))
    };
    Some((mutant.name.clone(), verdict))
}
