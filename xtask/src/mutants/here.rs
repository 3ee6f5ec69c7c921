//! Breaks one claim of a library after the other on purpose, and checks that tests on this machine
//! fail.
//!
//! Each `tests/mutants/stacks/NAME.patch` has the header of a driver's mutant (see `mod.rs`),
//! and a line `Package:` with the package of the suite. The mutants are built in a copy of the
//! repository (`workspace.rs`), one after the other.

use std::path::Path;
use std::process::Command;

use super::mutant::{END, Mutant, Verdict, begin, judge};
use super::workspace::Workspace;
use crate::cmd;
use crate::error::Error;
use crate::project::cargo;

/// The directory of the patches.
pub(crate) const PATCHES: &str = "tests/mutants/stacks";

/// The time limit of one mutant's tests, in seconds, with the time to build them.
const LIMIT: &str = "600";

/// Tests the mutants, and returns the verdicts.
pub(crate) fn run(workspace: &Workspace, mutants: &[Mutant]) -> Result<Vec<Verdict>, Error> {
    let mut verdicts = Vec::new();
    for mutant in mutants {
        eprintln!("xtask: testing {}", mutant.name);
        let tested = workspace.with(mutant, |root| test(root, &workspace.target, mutant))?;
        verdicts.extend(judge(mutant, &format!("{}{tested}", begin(mutant))));
    }
    Ok(verdicts)
}

/// Runs the tests of the mutant. Returns their output, with the line that `judge` expects after it.
fn test(copy: &Path, target: &Path, mutant: &Mutant) -> Result<String, Error> {
    let package = mutant
        .package
        .as_deref()
        .ok_or_else(|| Error::SetUp(format!("{} has no line Package:", mutant.patch.display())))?;
    let cargo = cargo();
    let mut command = Command::new("timeout");
    command.args(["-k", "5", LIMIT]).arg(cargo.get_program());
    command.args(["test", "--package", package, "--test", &mutant.suite]);
    command
        .arg("--target-dir")
        .arg(target)
        .args(["--", "--exact"]);
    command.args(&mutant.fails).current_dir(copy);
    let output = cmd::output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !text.contains("running ") {
        return Err(Error::Unexpected {
            command: cmd::line(&command),
            what: format!(
                "the mutant {} does not build:\n{}",
                mutant.name,
                String::from_utf8_lossy(&output.stderr)
            ),
        });
    }
    let status = output.status.code().unwrap_or(137);
    Ok(format!("{text}\n{END}{status}\n"))
}
