//! Tests mutants of the driver and of the shim in a virtual machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::mutant::{END, Mutant, Part, Verdict, begin, judge};
use super::workspace::Workspace;
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel;
use crate::project::{Project, cargo};
use crate::setup;
use crate::tee::Tee;
use crate::test;
use crate::vm;

/// The time limit of one mutant's tests, in seconds.
const LIMIT: u64 = 180;

/// Builds and tests mutants of the driver and of the shim, and returns the verdicts.
pub(crate) fn run(
    project: &Project,
    workspace: &Workspace,
    mutants: &[Mutant],
) -> Result<Vec<Verdict>, Error> {
    setup::packages(project, setup::VM)?;
    let dir = project.own_dir().join("mutants");
    fs::create_dir_all(&dir).at(&dir)?;
    let kernel = kernel::newest()?;
    for mutant in mutants {
        eprintln!("xtask: building {}", mutant.name);
        match mutant.part {
            Part::Shim => build_shim(workspace, mutant, &dir)?,
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

fn build_driver(
    project: &Project,
    kernel: &kernel::Kernel,
    mutant: &Mutant,
    dir: &Path,
) -> Result<(), Error> {
    let sources = dir.join(&mutant.name);
    kernel::mirror(&project.root.join("kernel"), &sources)?;
    mutant.apply(&sources, &["-p2"])?;
    kernel::build_driver_in(&sources, kernel, &dir.join(mutant.part.file(&mutant.name)))
}

/// Builds a mutant of the shim.
fn build_shim(workspace: &Workspace, mutant: &Mutant, dir: &Path) -> Result<(), Error> {
    workspace.with(mutant, |root| {
        let mut build = cargo();
        build.args(["build", "--package", "regcache-preload", "--target-dir"]);
        cmd::run(build.arg(&workspace.target).current_dir(root))?;
        let to = dir.join(mutant.part.file(&mutant.name));
        fs::copy(workspace.target.join("debug/librcpreload.so"), &to).at(&to)?;
        Ok(())
    })
}

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
