//! Demonstrates that a naive cache moves stale bytes and that regcache does not.
//!
//! The demo runs two programs. The first uses io_uring and userfaultfd, and runs on this machine.
//! The second needs the driver and an RDMA device, and runs in the virtual machine. If this machine
//! has the driver and a device, the second program also runs here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};
use crate::setup;
use crate::tee::{self, Tee};
use crate::vm;

const PACKAGE: &str = "regcache-repro-rdma";
const PROGRAM: &str = "reuse";

/// The package of the first program. No system package is needed to build this program.
const HOST_PACKAGE: &str = "regcache-repro";
const HOST_PROGRAM: &str = "reuse-host";

/// The exit status with which the first program reports that the machine has no io_uring.
const NOT_HERE: i32 = 77;

/// The first word of each line of results.
const RESULT: &str = "reuse:";

/// Runs each program on the machines where the program can run. Prints the lines of results at the
/// end.
pub(crate) fn run(project: &Project, rounds: u32, host_only: bool) -> Result<u8, Error> {
    let arguments = ["--rounds".to_owned(), rounds.to_string()];

    let mut results = String::new();
    let mut failed = false;
    let mut judge = |program: &str, place: &str, text: &str, status: Result<(), String>| {
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with(RESULT))
            .collect();
        for line in &lines {
            results += line;
            results.push('\n');
        }
        let status = match status {
            Ok(()) if lines.is_empty() => Err(format!(
                "the program printed no line that begins with {RESULT}"
            )),
            other => other,
        };
        if let Err(why) = status {
            eprintln!("xtask: {program} failed {place}: {why}");
            failed = true;
        }
    };

    let bare = build(project, HOST_PACKAGE, HOST_PROGRAM)?;
    let (status, text) = tee::run(Command::new(&bare).args(&arguments), RESULT)?;
    if status.code() != Some(NOT_HERE) || host_only {
        judge(HOST_PROGRAM, "on this machine", &text, as_result(status));
    }
    if host_only {
        print!("{results}");
        return Ok(u8::from(failed));
    }

    setup::packages(project, &[setup::VM, setup::BUILD].concat())?;
    let program = build(project, PACKAGE, PROGRAM)?;
    if has_driver_and_device() {
        eprintln!("xtask: running {PROGRAM} on this machine");
        let (status, text) = tee::run(Command::new(&program).args(&arguments), RESULT)?;
        judge(PROGRAM, "on this machine", &text, as_result(status));
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
    judge(PROGRAM, "in the virtual machine", &kept.text(), status);

    print!("{results}");
    Ok(u8::from(failed))
}

fn as_result(status: ExitStatus) -> Result<(), String> {
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// Builds a program of this package and returns the program's path.
pub(crate) fn build(project: &Project, package: &str, program: &str) -> Result<PathBuf, Error> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", package, "--bin", program]);
    cmd::run(&mut build)?;
    Ok(project.target.join("release").join(program))
}

fn has_driver_and_device() -> bool {
    let devices = fs::read_dir("/sys/class/infiniband")
        .map(Iterator::count)
        .unwrap_or(0);
    devices > 0 && Path::new("/dev/ummunotify").exists()
}
