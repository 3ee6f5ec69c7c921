//! Breaks one claim of the driver or of the shim after the other on purpose, and checks that tests
//! fail. A mutant is a driver or a shim with one broken claim.
//!
//! Each `tests/mutants/NAME.patch` changes either `kernel/` or the sources of the shim. The header
//! of a patch has three parts:
//!
//! - one or more sentences that describe the broken claim;
//! - a line `Suite:` with the test target;
//! - a line `Fails:` for each test that must fail.
//!
//! `mutants_here.rs` does the same with libraries whose tests run on this machine.
//!
//! The mutants are built on this machine. A virtual machine uses one mutant after the other in
//! place of the driver or the shim. If a mutant crashes the virtual machine, the mutant counts as
//! noticed. Another virtual machine then tests the remaining mutants.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel;
use crate::mutants_here;
use crate::project::{Project, cargo};
use crate::setup;
use crate::tee::Tee;
use crate::test;
use crate::vm;

/// The time limit of one mutant's tests, in seconds.
const LIMIT: u64 = 180;

/// The part of the project that a mutant replaces. Mutants of the shim need the driver, so they are
/// tested before mutants of the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Shim,
    Driver,
}

impl Part {
    /// Returns the file name of a mutant of this part.
    fn file(self, name: &str) -> String {
        match self {
            Self::Shim => format!("{name}.so"),
            Self::Driver => format!("{name}.ko"),
        }
    }
}

pub(crate) struct Mutant {
    /// The part that the tests in the virtual machine replace.
    part: Part,
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
        match mutant.part {
            Part::Shim => build_shim(project, mutant, &dir)?,
            Part::Driver => build_driver(project, &kernel, mutant, &dir)?,
        }
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

fn build_driver(
    project: &Project,
    kernel: &kernel::Kernel,
    mutant: &Mutant,
    dir: &Path,
) -> Result<(), Error> {
    let sources = dir.join(&mutant.name);
    kernel::mirror(&project.root.join("kernel"), &sources)?;
    patch(mutant, &sources, "-p2")?;
    kernel::build_driver_in(&sources, kernel, &dir.join(mutant.part.file(&mutant.name)))
}

/// Builds a mutant of the shim from a copy of the workspace. All of these mutants use one copy and
/// one target directory, so that only changed crates are built again.
fn build_shim(project: &Project, mutant: &Mutant, dir: &Path) -> Result<(), Error> {
    let sources = dir.join("workspace");
    let target = dir.join("target");
    fs::create_dir_all(&sources).at(&sources)?;
    for entry in fs::read_dir(&project.root).at(&project.root)? {
        let entry = entry.at(&project.root)?;
        let (from, name) = (entry.path(), entry.file_name());
        if from.is_dir() && from != project.target && !name.to_string_lossy().starts_with('.') {
            kernel::mirror(&from, &sources.join(name))?;
        } else if name == "Cargo.toml" || name == "Cargo.lock" {
            let to = sources.join(name);
            fs::copy(&from, &to).at(&to)?;
        }
    }
    patch(mutant, &sources, "-p1")?;
    let mut build = cargo();
    build
        .args(["build", "--package", "regcache-preload", "--manifest-path"])
        .arg(sources.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    cmd::run(&mut build)?;
    let to = dir.join(mutant.part.file(&mutant.name));
    fs::copy(target.join("debug/librcpreload.so"), &to).at(&to)?;
    Ok(())
}

fn patch(mutant: &Mutant, sources: &Path, strip: &str) -> Result<(), Error> {
    let mut patch = Command::new("patch");
    patch
        .args(["--quiet", "--force", "--no-backup-if-mismatch", strip, "-d"])
        .arg(sources);
    patch.arg("-i").arg(&mutant.patch);
    cmd::run(&mut patch)
}

pub(crate) fn begin(mutant: &Mutant) -> String {
    format!("===== mutant {}\n", mutant.name)
}

pub(crate) const END: &str = "===== end ";

/// The variable by which the shim's tests take another shim.
const SHIM_VARIABLE: &str = "REGCACHE_TEST_SHIM";

/// A shell command that unloads the driver, or the mutant in its place. Nothing else is done if no
/// module is loaded.
const UNLOAD: &str = "if grep -q '^ummunotify ' /proc/modules; then \
                      rmmod ummunotify || { sleep 2; rmmod ummunotify; } || exit 1; fi";

fn test_in_vm(
    project: &Project,
    mutants: &[Mutant],
    dir: &Path,
    suites: &BTreeMap<String, PathBuf>,
) -> Result<String, Error> {
    let mut script = String::new();
    for mutant in mutants {
        let file = dir.join(mutant.part.file(&mutant.name));
        let file = cmd::shell_quote(&file.to_string_lossy());
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
        let (before, environment, after) = match mutant.part {
            Part::Shim => (
                String::new(),
                format!("{SHIM_VARIABLE}={file}"),
                String::new(),
            ),
            Part::Driver => (
                format!("{UNLOAD}; insmod {file} || exit 1"),
                String::new(),
                UNLOAD.to_owned(),
            ),
        };
        script += &format!(
            "printf '\\n%s' {begin}\n\
             {before}\n\
             (cd {package} && {environment} timeout -k 5 {LIMIT} {suite} --exact {tests} 2>&1)\n\
             printf '\\n%s\\n' \"{END}$?\"\n\
             {after}\n",
            begin = cmd::shell_quote(&begin(mutant)),
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
