//! The bug and its end: the same program where this machine has the driver and a device, and in the virtual machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};
use crate::setup;
use crate::tee::{self, Tee};
use crate::vm;

const PACKAGE: &str = "regcache-tests";
const PROGRAM: &str = "reuse";

/// How the program's line of results begins.
const RESULT: &str = "reuse:";

/// Runs the program everywhere it can run and ends with its lines of results.
pub(crate) fn run(project: &Project, rounds: u32) -> Result<u8, Error> {
    setup::packages(project, &[setup::VM, setup::BUILD].concat())?;
    let program = build(project, PROGRAM)?;
    let arguments = ["--rounds".to_owned(), rounds.to_string()];

    let mut results = String::new();
    let mut failed = false;
    let mut judge = |place: &str, text: &str, status: Result<(), String>| {
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with(RESULT))
            .collect();
        for line in &lines {
            results += line;
            results.push('\n');
        }
        let status = match status {
            Ok(()) if lines.is_empty() => {
                Err(format!("it printed no line that begins with {RESULT}"))
            }
            other => other,
        };
        if let Err(why) = status {
            eprintln!("xtask: {PROGRAM} failed {place}: {why}");
            failed = true;
        }
    };

    if has_driver_and_device() {
        eprintln!("xtask: running {PROGRAM} on this machine");
        let (status, text) = tee::run(Command::new(&program).args(&arguments), RESULT)?;
        let status = if status.success() {
            Ok(())
        } else {
            Err(status.to_string())
        };
        judge("on this machine", &text, status);
    }

    let mut command = vec![program.into_os_string()];
    command.extend(arguments.map(OsString::from));
    let (stdout, kept) = Tee::new(RESULT);
    let job = vm::Job {
        command: &command,
        stdout: Box::new(stdout),
        stderr: None,
    };
    let status = match vm::run(project, &vm::Machine::default(), job) {
        Ok(0) => Ok(()),
        Ok(status) => Err(format!("exit status {status}")),
        Err(error) => Err(error.to_string()),
    };
    judge("in the virtual machine", &kept.text(), status);

    print!("{results}");
    Ok(u8::from(failed))
}

/// Builds a program of the tests' package and returns where it is.
pub(crate) fn build(project: &Project, program: &str) -> Result<PathBuf, Error> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", PACKAGE, "--bin", program]);
    cmd::run(&mut build)?;
    Ok(project.target.join("release").join(program))
}

fn has_driver_and_device() -> bool {
    let devices = fs::read_dir("/sys/class/infiniband")
        .map(Iterator::count)
        .unwrap_or(0);
    devices > 0 && Path::new("/dev/ummunotify").exists()
}
