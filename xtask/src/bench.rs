//! Runs the two benchmarks.
//!
//! The first benchmark measures lookups of regcache and of UCX's registration cache, and the shim's
//! registrations of known memory, on this machine. The second benchmark measures transfers with
//! each strategy of registering the transfers' buffers. It uses io_uring on this machine, and rxe
//! in a virtual machine.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::install_user::{self, Profile};
use crate::kernel::Series;
use crate::project::{Project, cargo};
use crate::setup;
use crate::vm;

/// The packages that are needed to link UCX's cache and to count instructions.
pub(crate) const PACKAGES: &[&str] = &["gcc", "libc6-dev", "libucx-dev", "pkg-config", "valgrind"];

/// The packages of the other libraries whose transfers the second benchmark measures.
pub(crate) const PEERS: &[&str] = &["libfabric-dev"];

/// The amount of measuring, and the place of the report.
#[derive(clap::Args)]
pub(crate) struct Amount {
    /// Make fewer measurements: a tenth of those of lookups, in a minute or two
    #[arg(long)]
    quick: bool,
    /// Measure transfers instead of lookups, and write a report
    #[arg(long)]
    rxe: bool,
    /// Write the report into this directory instead of target/report
    #[arg(long, value_name = "DIR", requires = "rxe")]
    into: Option<PathBuf>,
    /// Boot this kernel in the virtual machine
    #[arg(long, value_name = "SERIES", value_enum, default_value_t = Series::default(), requires = "rxe")]
    kernel: Series,
    /// Measure only the figures whose names begin with this text, such as hit/2threads
    #[arg(value_name = "FIGURE", conflicts_with = "rxe")]
    only: Option<String>,
}

/// Runs the benchmark that the options select. The programs print the tables.
pub(crate) fn run(project: &Project, amount: &Amount) -> Result<u8, Error> {
    if amount.rxe {
        return transfers(project, amount);
    }
    setup::packages(project, &[PACKAGES, setup::BUILD].concat())?;
    let mut library = cargo();
    library.args(["build", "--release", "--package", install_user::LIBRARY]);
    cmd::run(&mut library)?;
    let built = project.target.join("release");
    install_user::make_library(project, &built, None, Profile::Release)?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "regcache-bench-lookup"]);
    build.args(["--features", "ucx", "--bins"]);
    cmd::run(&mut build)?;
    let mut lookup = Command::new(built.join("lookup"));
    if amount.quick {
        lookup.arg("--quick");
    }
    lookup.args(&amount.only);
    cmd::run(&mut lookup)?;
    let is_wanted = |name: &str| {
        let only = amount.only.as_deref().unwrap_or_default();
        name.starts_with(only)
    };
    if SHIM.iter().any(|&name| is_wanted(name)) {
        shim(is_wanted)?;
    }
    Ok(0)
}

/// The figures that the shim's own test program measures (`verbs/preload/tests/cost.rs`).
const SHIM: &[&str] = &[
    "instructions/shim/pair",
    "shim/pair",
    "shim/pair/2threads/different",
];

/// Measures the shim, and prints the figures that are wanted.
fn shim(is_wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut test = cargo();
    test.args(["test", "--quiet", "--release", "--package"]);
    test.args(["regcache-preload", "--test", "cost", "--"]);
    test.args(["--include-ignored", "--nocapture", "--test-threads=1"]);
    test.arg("registering");
    // The harness writes its progress before a figure, on the same line.
    for line in cmd::read_showing_stderr(&mut test)?.lines() {
        let figure = line.find("bench ").map(|at| &line[at..]);
        if let Some(figure) = figure
            && figure.split(' ').nth(1).is_some_and(&is_wanted)
        {
            println!("{figure}");
        }
    }
    Ok(())
}

/// Measures transfers and writes the report.
fn transfers(project: &Project, amount: &Amount) -> Result<u8, Error> {
    setup::packages(project, &[setup::VM, setup::BUILD, PEERS].concat())?;
    let program = transfer_program(project, amount.kernel)?;
    let dir = project.own_dir().join("bench");
    let [uring, rxe] = ["uring.json", "rxe.json"].map(|name| dir.join(name));

    let mut here = Command::new(&program);
    here.args(["measure", "--uring"]).args(amount.flags());
    cmd::run(here.arg("--json").arg(&uring))?;

    let script = project.root.join("bench/transfer/interface.sh");
    let mut command: Vec<OsString> = vec!["sh".into(), script.into(), program.clone().into()];
    command.extend(["measure", "--device", "rxe_if"].map(OsString::from));
    // The root file systems of other kernels do not contain libfabric. So the program is built with
    // libfabric only for this machine's kernel.
    if amount.kernel == Series::default() {
        command.extend(["--peers", "10.78.0.1"].map(OsString::from));
    }
    command.extend(amount.flags().map(OsString::from));
    command.extend(["--json".into(), rxe.clone().into()]);
    // The times of an emulated CPU depend on the load of this machine, but the number of
    // instructions does not. So if the virtual machine is emulated, the benchmark counts
    // instructions.
    let icount = !vm::has_kvm();
    if icount {
        command.extend(["--clock", "instructions"].map(OsString::from));
    }
    let machine = vm::Machine {
        kernel: amount.kernel,
        timeout: 7200,
        boot_timeout: 900,
        icount,
        ..vm::Machine::default()
    };
    let job = vm::Job {
        command: &command,
        stdout: Box::new(io::stdout()),
        stderr: Some(Box::new(io::stderr())),
    };
    let status = vm::run(project, &machine, job)?;
    if status != 0 {
        return Ok(status);
    }
    report(project, amount, &program, &[&rxe, &uring]).map(|()| 0)
}

fn report(project: &Project, amount: &Amount, program: &Path, runs: &[&Path]) -> Result<(), Error> {
    let into = amount.into.clone();
    let into = into.unwrap_or_else(|| project.target.join("report"));
    let mut report = Command::new(program);
    report.arg("report").args(runs).arg("--into").arg(into);
    report.args([
        "--command",
        &format!("cargo xtask bench --rxe{}", amount.words()),
    ]);
    cmd::run(&mut report)
}

/// Builds the program `transfer` and returns the path of the program.
fn transfer_program(project: &Project, kernel: Series) -> Result<PathBuf, Error> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "regcache-bench-transfer"]);
    if kernel == Series::default() {
        build.args(["--features", "libfabric"]);
    }
    cmd::run(&mut build)?;
    Ok(project.target.join("release/transfer"))
}

impl Amount {
    /// Returns the options to pass to the program.
    fn flags(&self) -> impl Iterator<Item = &'static str> {
        self.quick.then_some("--quick").into_iter()
    }

    /// Returns the options as a text that a user can type.
    fn words(&self) -> String {
        self.flags().map(|flag| format!(" {flag}")).collect()
    }
}
