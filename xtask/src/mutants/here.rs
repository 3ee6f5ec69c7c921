//! Breaks one claim of a library after the other on purpose, and checks that tests on this machine
//! fail.
//!
//! Each `tests/mutants/stacks/NAME.patch` has the header of a driver's mutant (see `mod.rs`),
//! and a line `Package:` with the package of the suite. The mutants are built in a copy of the
//! repository, one after the other.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::mutant::{END, Mutant, Verdict, begin, judge};
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::project::{Project, cargo};

/// The directory of the patches.
pub(crate) const PATCHES: &str = "tests/mutants/stacks";

/// The time limit of one mutant's tests, in seconds, with the time to build them.
const LIMIT: &str = "600";

/// Tests the mutants, and returns the verdicts.
pub(crate) fn run(project: &Project, mutants: &[Mutant]) -> Result<Vec<Verdict>, Error> {
    if mutants.is_empty() {
        return Ok(Vec::new());
    }
    let dir = project.own_dir().join("mutants");
    let copy = dir.join("here");
    copy_repository(project, &copy)?;
    let mut verdicts = Vec::new();
    for mutant in mutants {
        eprintln!("xtask: testing {}", mutant.name);
        patch(&copy, mutant, &[])?;
        let tested = test(&copy, &dir.join("target"), mutant);
        patch(&copy, mutant, &["--reverse"])?;
        let text = format!("{}{}", begin(mutant), tested?);
        verdicts.extend(judge(mutant, &text));
    }
    Ok(verdicts)
}

/// Makes a copy of the files that git knows, as they are now.
fn copy_repository(project: &Project, copy: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(copy) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at(copy),
        _ => {}
    }
    fs::create_dir_all(copy).at(copy)?;
    let script = format!(
        "git ls-files -z | xargs -0 cp --parents --no-dereference -t {}",
        cmd::shell_quote(&copy.to_string_lossy())
    );
    cmd::run(
        Command::new("sh")
            .args(["-c", &script])
            .current_dir(&project.root),
    )
}

fn patch(copy: &Path, mutant: &Mutant, options: &[&str]) -> Result<(), Error> {
    let mut patch = Command::new("patch");
    patch.args(["--quiet", "--force", "--no-backup-if-mismatch", "-p1", "-d"]);
    patch.arg(copy).args(options).arg("-i").arg(&mutant.patch);
    cmd::run(&mut patch)
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
