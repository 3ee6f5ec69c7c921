//! The developers' commands. Each installs what it needs, or says what to install.

mod bench;
mod cmd;
mod cost;
mod debug;
mod demo;
mod error;
mod install;
mod kernel;
mod lint;
mod lock;
mod matrix;
mod model;
mod mutants;
mod prefix;
mod project;
mod rootfs;
mod sandbox;
mod sanitize;
mod setup;
mod source;
mod tee;
mod test;
mod vm;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::kernel::Series;
use crate::prefix::Profile;
use crate::project::Project;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Xtask,
}

#[derive(Subcommand)]
enum Xtask {
    /// Show the bug and its end on this machine as it is, with the driver and a device if it has them, and in a virtual machine
    Demo {
        /// How often memory is unmapped and mapped again
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
        /// Only on this machine, by io_uring and userfaultfd: needs nothing but a Rust toolchain
        #[arg(long)]
        host_only: bool,
    },
    /// Run every test: on this machine, under loom, and in a virtual machine those that need the driver
    Test {
        #[command(flatten)]
        place: test::Where,
    },
    /// Explore every interleaving of a model of kernel, driver, cache and threads, and find the faults put into it
    Model,
    /// Run this machine's tests under AddressSanitizer, with leak detection, and ThreadSanitizer
    Sanitize {
        /// Only this one
        #[arg(value_enum)]
        sanitizer: Option<sanitize::Sanitizer>,
    },
    /// Count the instructions that the driver costs, in a virtual machine, and print them as a table
    Cost {
        /// The kernel of the virtual machine
        #[arg(long, value_name = "SERIES", value_enum, default_value_t = kernel::Series::default())]
        kernel: kernel::Series,
    },
    /// Measure what a lookup costs, by turns with UCX's registration cache, or with --rxe what a transfer costs by each way of
    /// registering its buffer, and print a table and a line a figure
    Bench {
        #[command(flatten)]
        amount: bench::Amount,
    },
    /// Break the driver on purpose, in the ways of tests/mutants, and check that the tests notice
    Mutants {
        /// Only those whose names contain one of these
        names: Vec<String>,
    },
    /// Look over the driver with sparse and the kernel's checkpatch
    Lint,
    /// Install the C library and the command-line tool with `--prefix`; without, try installing the driver
    ///
    /// Without `--prefix` the driver is installed by make and by DKMS, loaded in a virtual machine and removed, in a copy of
    /// the root file system whose changes are lost. To install it for good see docs/guide/install.md.
    Install {
        /// The kernel to try the driver's installation for
        #[arg(long, value_name = "SERIES", value_enum, default_value_t = Series::default())]
        kernel: Series,
        /// Put libregcache with its header, pkg-config file and manual page, and `regcache`, below this directory
        #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
        prefix: Option<PathBuf>,
        /// Not optimized, and with the programs that the tests run
        #[arg(long, requires = "prefix")]
        dev: bool,
    },
    /// Run a command in a virtual machine that has the driver loaded and an RDMA device, rxe0
    ///
    /// The command runs as root in the repository's root. The guest sees this machine's files, or with `--kernel` those of
    /// a Debian made for it and the repository, read-only or with changes that are lost, but for the target directory,
    /// which it can write. Output and exit status are the command's;
    /// 124 means that it ran too long, 125 that the machine failed or its kernel complained.
    Vm {
        #[command(flatten)]
        machine: vm::Machine,
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Xtask::Demo { rounds, host_only } => {
            Project::find().and_then(|project| demo::run(&project, rounds, host_only))
        }
        Xtask::Test { place } => Project::find().and_then(|project| test::run(&project, &place)),
        Xtask::Model => model::run(),
        Xtask::Sanitize { sanitizer } => {
            Project::find().and_then(|project| sanitize::run(&project, sanitizer))
        }
        Xtask::Cost { kernel } => Project::find().and_then(|project| cost::run(&project, kernel)),
        Xtask::Bench { amount } => {
            Project::find().and_then(|project| bench::run(&project, &amount))
        }
        Xtask::Mutants { names } => {
            Project::find().and_then(|project| mutants::run(&project, &names))
        }
        Xtask::Lint => Project::find().and_then(|project| lint::run(&project).map(|()| 0)),
        Xtask::Install {
            kernel,
            prefix,
            dev,
        } => Project::find().and_then(|project| {
            let profile = if dev { Profile::Dev } else { Profile::Release };
            match prefix {
                Some(dir) => prefix::install(&project, &dir, profile),
                None => install::run(&project, kernel),
            }
            .map(|()| 0)
        }),
        Xtask::Vm { machine, command } => run_in_vm(&machine, &command),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn run_in_vm(machine: &vm::Machine, command: &[OsString]) -> Result<u8, Error> {
    let project = Project::find()?;
    let stderr: Box<dyn io::Write + Send> = Box::new(io::stderr());
    let job = vm::Job {
        command,
        stdout: Box::new(io::stdout()),
        // One channel for both keeps them in order, which matters only where they end up in one place.
        stderr: (!stdout_is_stderr()).then_some(stderr),
    };
    vm::run(&project, machine, job)
}

/// Whether what we print on either ends up in the same terminal, pipe or file.
fn stdout_is_stderr() -> bool {
    let place = |fd| {
        std::fs::metadata(format!("/proc/self/fd/{fd}"))
            .map(|it| (it.dev(), it.ino()))
            .ok()
    };
    place(1).is_some() && place(1) == place(2)
}
