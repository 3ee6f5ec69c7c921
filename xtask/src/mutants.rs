//! Breaks one claim of the driver after the other on purpose, and checks that tests fail. A mutant
//! is a driver with one broken claim.
//!
//! Each `tests/mutants/NAME.patch` changes `kernel/`. The header of a patch has three parts:
//!
//! - one or more sentences that describe the broken claim;
//! - a line `Suite:` with the test target;
//! - a line `Fails:` for each test that must fail.
//!
//! `mutants_here.rs` does the same with libraries, whose tests run on this machine.
//!
//! The mutants are built on this machine. A virtual machine loads one mutant after the other in
//! place of the driver. If a mutant crashes the virtual machine, the mutant counts as noticed.
//! Another virtual machine then tests the remaining mutants.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel;
use crate::mutants_here;
use crate::project::Project;
use crate::setup;
use crate::tee::Tee;
use crate::test;
use crate::vm;

/// The time limit of one mutant's tests, in seconds.
const LIMIT: u64 = 180;

pub(crate) struct Mutant {
    pub(crate) name: String,
    pub(crate) patch: PathBuf,
    /// The package of the suite, if the suite runs on this machine.
    pub(crate) package: Option<String>,
    pub(crate) suite: String,
    pub(crate) fails: Vec<String>,
}

/// The name of a mutant, with the names of the tests that noticed it, or else with an error that
/// names those that passed.
pub(crate) type Verdict = (String, Result<String, String>);

/// Builds and tests the mutants whose names contain one of `wanted`. An empty `wanted` selects all
/// mutants. Returns 1 if a mutant survives, which means that one of its tests passed.
pub(crate) fn run(project: &Project, wanted: &[String]) -> Result<u8, Error> {
    let read = |dir: &str| -> Result<Vec<Mutant>, Error> {
        let mut mutants = read_all(&project.root.join(dir))?;
        mutants.retain(|it| wanted.is_empty() || wanted.iter().any(|w| it.name.contains(w)));
        Ok(mutants)
    };
    setup::packages(project, setup::BUILD)?;
    let mut verdicts = mutants_here::run(project, &read(mutants_here::PATCHES)?)?;
    let of_driver = read("tests/mutants")?;
    if !of_driver.is_empty() {
        verdicts.extend(run_in_vm(project, &of_driver)?);
    }
    Ok(report(&verdicts))
}

/// Builds and tests mutants of the driver, and returns the verdicts.
fn run_in_vm(project: &Project, mutants: &[Mutant]) -> Result<Vec<Verdict>, Error> {
    setup::packages(project, setup::VM)?;
    let dir = project.own_dir().join("mutants");
    fs::create_dir_all(&dir).at(&dir)?;
    let kernel = kernel::newest()?;
    for mutant in mutants {
        eprintln!("xtask: building {}", mutant.name);
        build(project, &kernel, mutant, &dir)?;
    }

    let suites = test::executables(project)?;
    let mut verdicts = Vec::new();
    while let Some(next) = mutants.get(verdicts.len()) {
        let rest = &mutants[verdicts.len()..];
        let text = test_in_vm(project, rest, &dir, &suites)?;
        if !text.contains(&begin(next)) {
            return Err(Error::Vm(format!(
                "{} was never loaded: the output above shows the reason",
                next.name
            )));
        }
        verdicts.extend(rest.iter().map_while(|mutant| judge(mutant, &text)));
        // If the output contains the start of this mutant's tests but not their end, this mutant
        // crashed the kernel.
        if let Some(mutant) = mutants.get(verdicts.len())
            && text.contains(&begin(mutant))
        {
            let noticed = "the kernel, which crashed".to_owned();
            verdicts.push((mutant.name.clone(), Ok(noticed)));
        }
    }
    Ok(verdicts)
}

fn read_all(dir: &Path) -> Result<Vec<Mutant>, Error> {
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
        mutants.push(Mutant {
            name,
            patch,
            package,
            suite,
            fails,
        });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn build(
    project: &Project,
    kernel: &kernel::Kernel,
    mutant: &Mutant,
    dir: &Path,
) -> Result<(), Error> {
    let sources = dir.join(&mutant.name);
    kernel::mirror(&project.root.join("kernel"), &sources)?;
    let mut patch = Command::new("patch");
    patch
        .args(["--quiet", "--force", "--no-backup-if-mismatch", "-p2", "-d"])
        .arg(&sources);
    patch.arg("-i").arg(&mutant.patch);
    cmd::run(&mut patch)?;
    kernel::build_driver_in(&sources, kernel, &dir.join(format!("{}.ko", mutant.name)))
}

pub(crate) fn begin(mutant: &Mutant) -> String {
    format!("===== mutant {}\n", mutant.name)
}

pub(crate) const END: &str = "===== end ";

fn test_in_vm(
    project: &Project,
    mutants: &[Mutant],
    dir: &Path,
    suites: &BTreeMap<String, PathBuf>,
) -> Result<String, Error> {
    let mut script = String::from("rmmod ummunotify || exit 1\n");
    for mutant in mutants {
        let module = dir.join(format!("{}.ko", mutant.name));
        let suite = suites.get(&mutant.suite).ok_or_else(|| {
            Error::SetUp(format!(
                "the mutant {}: there is no suite {}. Correct the line Suite: of this mutant",
                mutant.name, mutant.suite
            ))
        })?;
        let tests: Vec<_> = mutant
            .fails
            .iter()
            .map(|test| cmd::shell_quote(test))
            .collect();
        script += &format!(
            "printf '\\n%s' {begin}\n\
             insmod {module} || exit 1\n\
             (cd {package} && timeout -k 5 {LIMIT} {suite} --exact {tests} 2>&1)\n\
             printf '\\n%s\\n' \"{END}$?\"\n\
             rmmod ummunotify || {{ sleep 2; rmmod ummunotify; }} || exit 1\n",
            begin = cmd::shell_quote(&begin(mutant)),
            module = cmd::shell_quote(&module.to_string_lossy()),
            package = cmd::shell_quote(&project.root.join("tests/vm").to_string_lossy()),
            suite = cmd::shell_quote(&suite.to_string_lossy()),
            tests = tests.join(" "),
        );
    }
    let path = dir.join(format!("mutants.{}.sh", std::process::id()));
    fs::write(&path, script).at(&path)?;
    let (stdout, kept) = Tee::new("");
    let machine = vm::Machine::default();
    let job = vm::Job {
        command: &[OsString::from("sh"), path.clone().into_os_string()],
        stdout: Box::new(stdout),
        stderr: None,
    };
    if let Err(error) = vm::run(project, &machine, job) {
        // A mutant may make the kernel complain or crash, so this error does not end the run. The
        // output shows which mutants were tested before the machine stopped.
        eprintln!("xtask: {error}");
    }
    let _ = fs::remove_file(&path);
    Ok(kept.text())
}

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

fn report(verdicts: &[Verdict]) -> u8 {
    println!("\n| mutant | noticed by |\n|---|---|");
    let mut survivors = 0;
    for (name, verdict) in verdicts {
        match verdict {
            Ok(by) => println!("| {name} | {by} |"),
            Err(why) => {
                println!("| {name} | **{why}** |");
                survivors += 1;
            }
        }
    }
    println!("\n{} mutants, {survivors} survived", verdicts.len());
    u8::from(survivors > 0)
}
