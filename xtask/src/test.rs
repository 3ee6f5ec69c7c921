//! Runs every check and every test.
//!
//! The order is:
//!
//! - the checks;
//! - the workspace's tests on this machine;
//! - the models under loom;
//! - the installation of the driver;
//! - the Debian packages;
//! - the suites that need the driver and an RDMA device, in one virtual machine.
//!
//! A suite for the virtual machine is a `[[test]]` whose `required-features` are all in
//! `VM_FEATURES`. So a plain `cargo test` excludes such a suite. This command finds new suites by
//! their features, so no list of suites is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use crate::check;
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::install_driver;
use crate::install_user;
use crate::kernel::Series;
use crate::matrix;
use crate::package;
use crate::project::{GatedTarget, Project, cargo};
use crate::setup;
use crate::stacks;
use crate::tee::{self, Tee};
use crate::vm;

/// The features of the tests that need the virtual machine.
const VM_FEATURES: &[&str] = &["vm", "rdma-device"];

/// The time limit of one suite in the virtual machine, in seconds.
const SUITE_LIMIT: u64 = 900;

/// The time limit of all suites in the virtual machine together, in seconds.
const SUITES_LIMIT: u64 = 2400;

/// The maximum number of preemptions in each execution under loom. With a larger number, loom finds
/// rarer interleavings, but takes longer.
const LOOM_MAX_PREEMPTIONS: &str = "3";

/// The name of the directory in which the C library is installed for the suites. The directory is
/// in xtask's own directory.
const PREFIX: &str = "prefix";

/// The tests to run, and the place where they run.
#[derive(clap::Args)]
pub(crate) struct Where {
    /// Exclude everything that needs the virtual machine or the kernel's headers
    #[arg(long, conflicts_with = "vm_only")]
    host_only: bool,
    /// Run only the suites that need the virtual machine, without the checks
    #[arg(long)]
    vm_only: bool,
    /// Boot this kernel in the virtual machine
    #[arg(long, value_name = "SERIES", value_enum, default_value_t = Series::default(), conflicts_with = "host_only")]
    kernel: Series,
    /// Run only the matrix of scenarios and monitors, and write it into docs/design/why-a-driver.md
    ///
    /// The matrix runs on this machine and in two virtual machines.
    #[arg(long, conflicts_with_all = ["host_only", "vm_only", "kernel"])]
    matrix: bool,
    /// Run only the virtual machine's suites whose names contain one of these words
    #[arg(value_name = "SUITE", requires = "vm_only")]
    suites: Vec<String>,
}

/// The result of one suite.
#[derive(Debug, PartialEq)]
struct Outcome {
    suite: String,
    passed: u64,
    failed: u64,
    seconds: u64,
    remark: String,
}

impl Outcome {
    /// Runs a step that is not a test suite, and returns its result. The step counts as one test.
    fn of(suite: &str, attempt: impl FnOnce() -> Result<(), Error>) -> Self {
        let started = Instant::now();
        let done = attempt();
        let mut outcome = match done {
            Ok(()) => Self {
                suite: suite.to_owned(),
                passed: 1,
                failed: 0,
                seconds: 0,
                remark: String::new(),
            },
            Err(error) => {
                eprintln!("xtask: {error}");
                Self::failure(suite, &error.to_string())
            }
        };
        outcome.seconds = started.elapsed().as_secs();
        outcome
    }

    /// Runs a step as [`Outcome::of`] does, if the user is root. Otherwise the result says that
    /// only root can do this, and is no failure.
    fn of_root(suite: &str, can: &str, attempt: impl FnOnce() -> Result<(), Error>) -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self::of(suite, attempt);
        }
        Self {
            failed: 0,
            ..Self::failure(suite, &format!("not run: only root can {can}"))
        }
    }

    /// Makes the result of a suite that failed before any test ran. The remark is the first line of
    /// `why`.
    fn failure(suite: &str, why: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            passed: 0,
            failed: 1,
            seconds: 0,
            remark: why.lines().next().unwrap_or_default().to_owned(),
        }
    }
}

/// Runs the tests, prints a table and the totals, and returns 1 if any test failed.
pub(crate) fn run(project: &Project, place: &Where) -> Result<u8, Error> {
    if place.matrix {
        return matrix::run(project);
    }
    let scope = check::Scope {
        host_only: place.host_only,
    };
    let mut needed = scope.packages();
    if !place.host_only {
        needed.extend(
            [
                setup::PROGRAMS,
                install_driver::PACKAGES,
                package::PACKAGES,
                stacks::PACKAGES,
            ]
            .concat(),
        );
    }
    setup::packages(project, &needed)?;

    let mut outcomes = Vec::new();
    if !place.vm_only {
        for step in scope.steps() {
            outcomes.push(Outcome::of(step.name, || step.run(project)));
        }
        let mut workspace = cargo();
        workspace.args(["test", "--workspace", "--no-fail-fast"]);
        outcomes.push(on_host("host: cargo test --workspace", &mut workspace)?);
        if project.root.join("regcache/tests/loom.rs").exists() {
            // The last argument selects the tests with "loom" in their names. The other tests of
            // the library are not models.
            let all = ["--lib", "--test", "loom", "loom"];
            outcomes.push(under_loom(project, "regcache", &all)?);
            for package in ["regcache-preload", "regcache-fi", "regcache-ucx"] {
                outcomes.push(under_loom(project, package, &["--test", "loom"])?);
            }
        }
    }
    // No root file system contains the debug kernel, so the driver cannot be installed for this
    // kernel.
    if !place.host_only && place.kernel != Series::Debug && place.suites.is_empty() {
        let suite = "driver: make install, DKMS";
        outcomes.push(Outcome::of_root(suite, "install the driver", || {
            install_driver::run(project, place.kernel)
        }));
    }
    if !place.host_only && !place.vm_only {
        let suite = "Debian packages: built, installed and removed";
        outcomes.push(Outcome::of_root(
            suite,
            "make the root file systems",
            || package::gate(project),
        ));
    }
    if !place.host_only {
        let how = How {
            kernel: place.kernel,
            arguments: "",
            variables: &[],
        };
        outcomes.extend(in_vm(project, &named(project, place)?, &how));
    }
    Ok(report(&outcomes))
}

/// Runs the stacks' suites with these names in the virtual machine, with these arguments and
/// environment variables. Prints a table and the totals, and returns 1 if any test failed.
pub(crate) fn run_of_stacks(
    project: &Project,
    suites: &[&str],
    arguments: &str,
    variables: &[(&str, &OsStr)],
) -> Result<u8, Error> {
    let mut all = project.gated_tests();
    all.retain(|suite| {
        stacks::SUITES.contains(&suite.package.as_str()) && suites.contains(&suite.name.as_str())
    });
    let how = How {
        kernel: Series::Installed,
        arguments,
        variables,
    };
    Ok(report(&in_vm(project, &all, &how)))
}

/// Returns the suites of the virtual machine that the user has named, or all suites.
fn named(project: &Project, place: &Where) -> Result<Vec<GatedTarget>, Error> {
    let is_ours = |feature: &String| VM_FEATURES.contains(&feature.as_str());
    let only = &place.suites;
    let is_meant = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part));
    let mut suites = project.gated_tests();
    suites.retain(|suite| suite.features.iter().all(is_ours) && is_meant(&suite.name));
    // The roots of newer kernels do not contain the stacks. `cargo xtask stacks` has its own root.
    let needs_stack = |suite: &GatedTarget| stacks::SUITES.contains(&suite.package.as_str());
    suites.retain(|suite| place.kernel.uses_this_machine() || !needs_stack(suite));
    if suites.is_empty() {
        return Err(Error::SetUp(if only.is_empty() {
            format!("no [[test]] has required-features among {VM_FEATURES:?}")
        } else {
            format!(
                "no suite of the virtual machine has {} in its name",
                only.join(", ")
            )
        }));
    }
    Ok(suites)
}

fn on_host(suite: &str, command: &mut std::process::Command) -> Result<Outcome, Error> {
    eprintln!("xtask: {}", cmd::line(command));
    let started = Instant::now();
    let (status, text) = tee::run(command, "")?;
    Ok(judge(
        suite,
        &text,
        status.code(),
        started.elapsed().as_secs(),
    ))
}

/// Runs the models of the package under loom. The models are compiled with `--cfg loom`. They use a
/// separate target directory, because builds with and without this option would overwrite each
/// other.
fn under_loom(project: &Project, package: &str, which: &[&str]) -> Result<Outcome, Error> {
    let mut command = cargo();
    command.args(["test", "--release", "--package", package, "--target-dir"]);
    command.arg(project.target.join("loom"));
    command.args(which);
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(" --cfg loom");
    command.env("RUSTFLAGS", flags);
    command.env("LOOM_MAX_PREEMPTIONS", LOOM_MAX_PREEMPTIONS);
    on_host(&format!("loom: {package}"), &mut command)
}

/// How suites run in a virtual machine.
struct How<'a> {
    kernel: Series,
    /// The arguments of each suite, in the syntax of the shell.
    arguments: &'a str,
    /// Environment variables of the suites.
    variables: &'a [(&'a str, &'a OsStr)],
}

/// Runs the suites in a virtual machine. An error that prevents some suites is one more result.
fn in_vm(project: &Project, suites: &[GatedTarget], how: &How) -> Vec<Outcome> {
    let (mut outcomes, ended) = ran_in_vm(project, suites, how);
    if let Err(error) = ended {
        eprintln!("xtask: {error}");
        outcomes.push(Outcome::failure("vm", &error.to_string()));
    }
    outcomes
}

/// Runs the suites as [`in_vm`] does. Returns the results of the suites that ran, and the error
/// that prevented the remaining suites.
fn ran_in_vm(
    project: &Project,
    suites: &[GatedTarget],
    how: &How,
) -> (Vec<Outcome>, Result<(), Error>) {
    let kernel = how.kernel;
    let script = match write_script(project, suites, how) {
        Ok(script) => script,
        Err(error) => return (Vec::new(), Err(error)),
    };
    // The suites in C are built against an installed library.
    let prefix = project.own_dir().join(PREFIX);
    if let Err(error) = install_user::run(project, &prefix, install_user::Profile::Dev) {
        return (Vec::new(), Err(error));
    }
    let machine = vm::Machine {
        kernel,
        timeout: SUITES_LIMIT * kernel.patience(),
        boot_timeout: vm::Machine::default().boot_timeout * kernel.patience(),
        ..vm::Machine::default()
    };
    let (stdout, kept) = Tee::new("");
    let job = vm::Job {
        command: &[OsString::from("sh"), script.clone().into_os_string()],
        stdout: Box::new(stdout),
        stderr: None,
    };
    let ended = vm::run(project, &machine, job);
    // Each process of xtask writes a separate script. So a script that cannot be removed does no
    // harm.
    let _ = fs::remove_file(&script);
    (read_outcomes(suites, &kept.text()), ended.map(|_| ()))
}

/// Builds the suites, and writes the script that runs them. Returns the path of the script, which
/// is in a directory that the guest can read.
fn write_script(project: &Project, suites: &[GatedTarget], how: &How) -> Result<PathBuf, Error> {
    let prefix = project.own_dir().join(PREFIX);
    let mut script = String::new();
    for (name, value) in [&[("REGCACHE_PREFIX", prefix.as_os_str())], how.variables].concat() {
        let value = cmd::shell_quote(&value.to_string_lossy());
        script += &format!("export {name}={value}\n");
    }
    let limit = SUITE_LIMIT * how.kernel.patience();
    script += &suites_script(suites, &build(suites)?, how.arguments, limit);
    fs::create_dir_all(project.own_dir()).at(project.own_dir())?;
    let path = project
        .own_dir()
        .join(format!("suites.{}.sh", std::process::id()));
    fs::write(&path, script).at(&path)?;
    Ok(path)
}

/// Builds the suites of the virtual machine, and returns their executables by target name.
pub(crate) fn executables(project: &Project) -> Result<BTreeMap<String, PathBuf>, Error> {
    let suites = project.gated_tests();
    let executables = build(&suites)?;
    let names = suites.into_iter().map(|suite| suite.name);
    Ok(names.zip(executables).collect())
}

/// Builds the suites and returns their executables, in the order of the suites.
fn build(suites: &[GatedTarget]) -> Result<Vec<PathBuf>, Error> {
    // The whole workspace is selected, as in the tests on this machine. So dependencies get the
    // same features, and cargo does not build them twice. The options `--test` select the suites.
    let mut command = cargo();
    command.args([
        "test",
        "--no-run",
        "--workspace",
        "--message-format=json-render-diagnostics",
    ]);
    let names: BTreeSet<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
    for name in names {
        command.args(["--test", name]);
    }
    let in_package = |suite: &GatedTarget| {
        let features = suite
            .features
            .iter()
            .map(|feature| format!("{}/{feature}", suite.package));
        features.collect::<Vec<_>>()
    };
    let features: BTreeSet<_> = suites.iter().flat_map(in_package).collect();
    let features: Vec<_> = features.into_iter().collect();
    command.arg("--features").arg(features.join(","));
    eprintln!("xtask: {}", cmd::line(&command));
    let printed = cmd::read_showing_stderr(&mut command)?;

    let mut built = BTreeMap::new();
    for message in printed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let executable = message["executable"].as_str();
        let source = message["target"]["src_path"].as_str();
        if let (Some(source), Some(executable)) = (source, executable) {
            built.insert(PathBuf::from(source), PathBuf::from(executable));
        }
    }
    let executable = |suite: &GatedTarget| {
        built
            .get(&suite.source)
            .cloned()
            .ok_or_else(|| Error::Unexpected {
                command: cmd::line(&command),
                what: format!("no executable for {}", suite.source.display()),
            })
    };
    suites.iter().map(executable).collect()
}

/// Returns the script that runs each suite as cargo would, for at most `limit` seconds. The script
/// prints a line before and a line after each suite, by which `read_outcomes` finds the output of
/// the suite.
fn suites_script(
    suites: &[GatedTarget],
    executables: &[PathBuf],
    arguments: &str,
    limit: u64,
) -> String {
    let mut script = String::from("#!/bin/sh\n");
    for (number, (suite, executable)) in suites.iter().zip(executables).enumerate() {
        let root = cmd::shell_quote(&suite.package_root.to_string_lossy());
        let package = cmd::shell_quote(&suite.package);
        let executable = cmd::shell_quote(&executable.to_string_lossy());
        script += &format!(
            "printf '\\n%s\\n' {begin}\n\
             started=$(date +%s)\n\
             cd {root} && CARGO_MANIFEST_DIR={root} CARGO_PKG_NAME={package} timeout -k 10 {limit} {executable} {arguments}\n\
             printf '\\n%s%s %s\\n' {end} $? $(($(date +%s) - started))\n",
            begin = cmd::shell_quote(&format!("{}{}", begin_mark(number), title(suite))),
            end = cmd::shell_quote(&end_mark(number)),
        );
    }
    script
}

fn title(suite: &GatedTarget) -> String {
    format!("vm: {} {}", suite.package, suite.name)
}

fn begin_mark(number: usize) -> String {
    format!("===== suite {number}: ")
}

fn end_mark(number: usize) -> String {
    format!("===== suite {number} ended (status, seconds): ")
}

/// Reads the results from the output of `suites_script`, which may be incomplete.
fn read_outcomes(suites: &[GatedTarget], text: &str) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (number, suite) in suites.iter().enumerate() {
        let title = title(suite);
        let begin = format!("{}{title}\n", begin_mark(number));
        let Some((_, after)) = text.split_once(&begin) else {
            outcomes.push(judge(&title, "", None, 0));
            continue;
        };
        let Some((output, after)) = after.split_once(&end_mark(number)) else {
            outcomes.push(judge(&title, after, None, 0));
            continue;
        };
        let mut ended = after
            .split_whitespace()
            .map_while(|number| number.parse().ok());
        let status = ended.next().and_then(|status| i32::try_from(status).ok());
        outcomes.push(judge(&title, output, status, ended.next().unwrap_or(0)));
    }
    outcomes
}

/// Returns the result of a suite, with the sums of the counts that the test harness printed. A
/// suite also fails if it ran no test, or if its exit status contradicts its counts.
fn judge(suite: &str, output: &str, status: Option<i32>, seconds: u64) -> Outcome {
    let results: Vec<_> = output
        .lines()
        .filter_map(|line| line.trim().strip_prefix("test result:"))
        .collect();
    let sum = |word: &str| {
        results
            .iter()
            .map(|result| count(result, word))
            .sum::<u64>()
    };
    let (passed, mut failed) = (sum("passed"), sum("failed"));
    let remark = match status {
        None => "did not end".to_owned(),
        Some(124) => format!("stopped at its limit after {seconds} s"),
        Some(status) if status != 0 && failed == 0 => format!("exit status {status}"),
        Some(_) if passed + failed == 0 => "ran no test".to_owned(),
        Some(_) => String::new(),
    };
    if !remark.is_empty() {
        failed = failed.max(1);
    }
    Outcome {
        suite: suite.to_owned(),
        passed,
        failed,
        seconds,
        remark,
    }
}

/// Returns the number before `word` in a text such as `ok. 5 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> u64 {
    let parts = result.split(['.', ';']).map(str::trim);
    let mut numbers = parts.filter_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    numbers.next().unwrap_or(0)
}

fn report(outcomes: &[Outcome]) -> u8 {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.suite.len())
        .max()
        .unwrap_or(0);
    println!("\n{:width$}  passed  failed  seconds", "suite");
    for Outcome {
        suite,
        passed,
        failed,
        seconds,
        remark,
    } in outcomes
    {
        let line = format!("{suite:width$}  {passed:6}  {failed:6}  {seconds:7}  {remark}");
        println!("{}", line.trim_end());
    }
    let passed: u64 = outcomes.iter().map(|outcome| outcome.passed).sum();
    let failed: u64 = outcomes.iter().map(|outcome| outcome.failed).sum();
    println!("\n{passed} passed, {failed} failed");
    u8::from(failed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSES: &str = "test a ... ok\n\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";

    fn suite(name: &str) -> GatedTarget {
        GatedTarget {
            package: "p".to_owned(),
            name: name.to_owned(),
            source: PathBuf::new(),
            package_root: PathBuf::from("/"),
            features: Vec::new(),
        }
    }

    #[test]
    fn counts_are_summed_over_the_binaries_of_a_run() {
        let outcome = judge("s", &PASSES.repeat(3), Some(0), 7);
        assert_eq!((outcome.passed, outcome.failed, outcome.seconds), (6, 0, 7));
        assert_eq!(outcome.remark, "");
    }

    #[test]
    fn a_check_with_violations_has_failed_and_says_how_many() {
        let outcome = Outcome::of("c", || Err(Error::Check("2 violations".to_owned())));
        assert_eq!((outcome.passed, outcome.failed), (0, 1));
        assert_eq!(outcome.remark, "2 violations");
        assert_eq!(Outcome::of("c", || Ok(())).passed, 1);
    }

    #[test]
    fn a_suite_that_ran_nothing_or_died_has_failed() {
        assert_eq!(judge("s", "", Some(0), 0).failed, 1);
        assert_eq!(judge("s", PASSES, Some(139), 0).failed, 1);
        assert_eq!(judge("s", PASSES, None, 0).failed, 1);
        assert_eq!(judge("s", PASSES, Some(124), 0).failed, 1);
    }

    #[test]
    fn the_script_prints_what_its_reader_reads() {
        let suites = ["first", "second", "third"].map(suite);
        let executables = ["/bin/true", "/bin/false", "/bin/true"].map(PathBuf::from);
        let script = suites_script(&suites, &executables, "", SUITE_LIMIT);
        let printed = cmd::read(std::process::Command::new("sh").args(["-c", &script])).unwrap();
        let outcomes = read_outcomes(&suites, &printed);
        let remarks: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.remark.as_str())
            .collect();
        assert_eq!(remarks, ["ran no test", "exit status 1", "ran no test"]);

        let cut = printed.find("===== suite 1 ended").unwrap();
        let outcomes = read_outcomes(&suites, &printed[..cut]);
        let remarks: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.remark.as_str())
            .collect();
        assert_eq!(remarks, ["ran no test", "did not end", "did not end"]);
    }
}
