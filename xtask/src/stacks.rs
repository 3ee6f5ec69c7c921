//! Runs libfabric, UCX and Open MPI over memory that changes.
//!
//! The stacks are the packages of a Debian release: of this machine's release, or of the release of
//! a newer kernel, in a root file system of its own. That root is not the one of the other
//! commands, because the packages of the stacks are large.
//!
//! The package `regcache-stacks` contains the program `stacks`. The program runs the cells in the
//! guest, and prints a line for each. This command builds the program, our libraries and the
//! stacks' programs on this machine. The programs also run with newer releases of the stacks.

use std::ffi::OsString;

use crate::cmd;
use crate::error::Error;
use crate::kernel::{self, Series};
use crate::project::{Project, cargo};
use crate::rootfs::{self, Recipe};
use crate::setup;
use crate::tee::Tee;
use crate::vm;

/// The package of the program, and of the suites that run a short part.
const PACKAGE: &str = "regcache-stacks";

/// The packages whose suites need a stack in the virtual machine.
pub(crate) const SUITES: &[&str] = &[PACKAGE, "regcache-ucx"];

/// The packages of the stacks, and the packages that their programs are built with.
pub(crate) const PACKAGES: &[&str] = &[
    "libfabric-dev",
    "libibverbs-dev",
    "libopenmpi-dev",
    "libucx-dev",
    "openmpi-bin",
];

/// The packages of the stacks in the root of a newer release.
const IN_ROOT: &[&str] = &["libfabric1", "libucx0", "openmpi-bin"];

/// The recipe of Debian 13 with its backported kernel and the stacks.
const TRIXIE: Recipe = Recipe {
    name: "7.3-stacks",
    suites: &["trixie", "trixie-backports"],
    kernel: kernel::BACKPORT,
    programs: &[rootfs::GUEST, IN_ROOT],
};

/// The recipe of Debian unstable, whose stacks are the newest that Debian has.
const SID: Recipe = Recipe {
    name: "sid-stacks",
    suites: &["sid"],
    kernel: &["linux-headers-amd64", "linux-image-amd64"],
    programs: &[rootfs::GUEST, IN_ROOT],
};

/// The first characters of each line of results.
const RESULTS: [&str; 2] = ["stack:", "cost:"];

/// The time limit of all cells together, in seconds.
const LIMIT: u64 = 6 * 3600;

/// The stacks and changes to run.
#[derive(clap::Args)]
pub(crate) struct Choice {
    /// Boot this kernel: 6.1 with the stacks of this machine, or 7.3 with those of Debian 13
    #[arg(long, value_name = "SERIES", value_enum, default_value_t = Series::default())]
    kernel: Series,
    /// Use the stacks and the kernel of Debian unstable instead, which change from day to day
    #[arg(long, conflicts_with = "kernel")]
    sid: bool,
    /// Send this many messages for each line
    #[arg(long, default_value_t = 1000)]
    messages: u64,
    /// Use only these changes, such as raw,threads
    #[arg(long, value_name = "CHANGES")]
    change: Option<String>,
    /// Use only the monitors whose names contain this text, such as door:
    #[arg(long, value_name = "TEXT")]
    monitor: Option<String>,
    /// Measure hits and changes of watched memory instead, in guest instructions
    #[arg(long, conflicts_with = "messages")]
    cost: bool,
    /// Use only the stacks with one of these names, or whose names contain one of these words
    stacks: Vec<String>,
}

/// Builds everything, runs the cells in a virtual machine, and prints the lines of results at the
/// end.
pub(crate) fn run(project: &Project, choice: &Choice) -> Result<u8, Error> {
    setup::packages(project, &[setup::VM, setup::BUILD, PACKAGES].concat())?;
    let kernel = match choice.kernel {
        _ if choice.sid => kernel::find_in_root(project, &SID)?,
        Series::TrixieBackports => kernel::find_in_root(project, &TRIXIE)?,
        Series::Installed => kernel::find(project, choice.kernel)?,
        Series::Trixie | Series::Debug => {
            return Err(Error::SetUp(
                "the stacks run only with --kernel 6.1 (Debian 12) or --kernel 7.3 (Debian 13)"
                    .to_owned(),
            ));
        }
    };
    let mut build = cargo();
    build.args(["build", "--release", "--package", PACKAGE]);
    build.args(["--features", "vm", "--bin", "stacks"]);
    cmd::run(&mut build)?;

    let program = project.target.join("release/stacks");
    let mut command = vec![program.into_os_string()];
    command.extend(["--messages".to_owned(), choice.messages.to_string()].map(OsString::from));
    for (option, value) in [("--change", &choice.change), ("--monitor", &choice.monitor)] {
        if let Some(value) = value {
            command.extend([option, value].map(OsString::from));
        }
    }
    if choice.cost {
        command.push(OsString::from("--cost"));
    }
    command.extend(choice.stacks.iter().map(OsString::from));
    let machine = vm::Machine {
        kernel: choice.kernel,
        timeout: LIMIT,
        icount: choice.cost,
        ..vm::Machine::default()
    };
    let (stdout, kept) = Tee::new("");
    let job = vm::Job {
        command: &command,
        stdout: Box::new(stdout),
        stderr: None,
    };
    let status = vm::run_on(project, &kernel, &machine, job)?;
    println!();
    let text = kept.text();
    let is_result = |line: &&str| RESULTS.iter().any(|start| line.starts_with(start));
    for line in text.lines().filter(is_result) {
        println!("{line}");
    }
    Ok(status)
}
