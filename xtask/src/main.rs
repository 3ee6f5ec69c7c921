//! Runs the developers' commands. Each command installs the packages that the command needs, or
//! prints how to install them.

mod bench;
mod check;
mod cmd;
mod cost;
mod debug;
mod demo;
mod dir;
mod error;
mod install_driver;
mod install_user;
mod intree;
mod kconfig;
mod kernel;
mod lock;
mod matrix;
mod model;
mod mutants;
mod package;
mod project;
mod publish;
mod record;
mod rootfs;
mod sandbox;
mod sanitize;
mod setup;
mod source;
mod stacks;
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
use crate::install_user::Profile;
use crate::kernel::Series;
use crate::project::Project;

/// Build, test and measure regcache.
///
/// Each command first installs missing packages if you are root on Debian. If you are not root, it
/// prints the command that installs them. On another distribution, it prints the packages' names.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Xtask,
}

#[derive(Subcommand)]
enum Xtask {
    /// Show the bug, and that regcache does not have it
    ///
    /// The demo reuses freed memory with a naive cache and with regcache, and counts stale
    /// transfers. It runs on this machine, and in a virtual machine with the driver and an RDMA
    /// device.
    Demo {
        /// Unmap and map memory this many times
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
        /// Run only on this machine, with io_uring and userfaultfd; this needs only a Rust
        /// toolchain
        #[arg(long)]
        host_only: bool,
        /// Only record `regcache repro --watch` on this machine, for the picture in the README
        #[arg(long, conflicts_with_all = ["rounds", "host_only"])]
        record: bool,
    },
    /// Run the checks and every test, and print a table of results
    ///
    /// The order is: `cargo xtask check`, the workspace's tests, the models under loom, the
    /// driver's installation, and the suites that need the driver in a virtual machine. The exit
    /// status is 0 if everything passed.
    Test {
        #[command(flatten)]
        place: test::Where,
    },
    /// Check the sources against every rule that a machine can check
    ///
    /// Use this command before each commit. It runs rustfmt, clippy, rustdoc, cargo-deny, sparse
    /// and checkpatch. It also checks the width of comments, links between documents, and prose. It
    /// reports every violation with its file and line. Sparse and checkpatch need the kernel's
    /// headers and source; `--host-only` skips both checks.
    Check {
        #[command(flatten)]
        scope: check::Scope,
    },
    /// Explore every interleaving of a model of the protocol
    ///
    /// The model has a kernel, the driver, a cache and threads. The command also plants faults in
    /// the model, and checks that the model finds them. Use this command after a change to the
    /// order of steps in the cache or the driver.
    Model,
    /// Run this machine's tests under AddressSanitizer and ThreadSanitizer
    ///
    /// AddressSanitizer also detects leaks. ThreadSanitizer needs a nightly toolchain.
    Sanitize {
        #[command(flatten)]
        choice: sanitize::Choice,
    },
    /// Count the instructions that the driver costs, and print a table
    ///
    /// The program runs in a virtual machine that counts instructions, so the load of this machine
    /// does not change the result. Use this command before and after a change to the driver.
    Cost {
        /// Boot this kernel in the virtual machine
        #[arg(long, value_name = "SERIES", value_enum, default_value_t = kernel::Series::default())]
        kernel: kernel::Series,
    },
    /// Measure lookups against UCX's cache, or transfers with --rxe
    ///
    /// Without --rxe, the command measures lookups on this machine and prints a table. With --rxe,
    /// it measures transfers with each strategy that registers their buffers. It uses io_uring on
    /// this machine and rxe in a virtual machine, and writes a report.
    Bench {
        #[command(flatten)]
        amount: bench::Amount,
    },
    /// Break the driver, the shim and the libraries of the stacks, and check that the tests notice
    ///
    /// Each patch in tests/mutants breaks one claim, and names the tests that must fail. The
    /// command applies one patch after the other and runs these tests in a virtual machine. The
    /// tests of the patches in tests/mutants/stacks run on this machine. The command fails if one
    /// of these tests passes.
    Mutants {
        /// Use only the mutants whose names contain one of these words
        names: Vec<String>,
    },
    /// Build and test the driver as a patch series for the kernel's own tree
    ///
    /// The command generates the series from kernel/ and applies it to Debian's source of Linux
    /// 7.3. It builds the driver as a module and built in, with all warnings and sparse, and for
    /// arm64. It runs checkpatch on the patches, and runs the series' kselftest in virtual
    /// machines. The patches are in target/xtask/intree/series.
    ///
    /// The first run makes a root file system, unpacks the kernel's source and builds a kernel.
    /// These take 3 GB.
    Intree {
        /// Run only the steps whose names contain one of these words; the series is always made
        steps: Vec<String>,
    },
    /// Install the C library and the tool, or test the installation of the driver
    ///
    /// With `--prefix`, the command installs the C library, the preload shim, the monitors for
    /// libfabric and UCX, and the command-line tool.
    ///
    /// Without `--prefix`, it tests the installation of the driver by make and by DKMS. It installs
    /// the driver in a copy of the root file system, loads it in a virtual machine and removes it.
    /// The changes of the copy are lost. docs/guide/install.md describes how to install the driver
    /// permanently.
    Install {
        /// Test the installation of the driver for this kernel
        #[arg(long, value_name = "SERIES", value_enum, default_value_t = Series::default())]
        kernel: Series,
        /// Install below this directory: libregcache, its header, pkg-config file and manual page,
        /// and `regcache`
        #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
        prefix: Option<PathBuf>,
        /// Install a build without optimization, with the programs that the tests run
        #[arg(long, requires = "prefix")]
        dev: bool,
    },
    /// Run libfabric, UCX and Open MPI over memory that changes, and count wrong messages
    ///
    /// The stacks are Debian's own, and their messages cross an RDMA device in a virtual machine.
    /// The command prints a line for each stack, monitor and change. A monitor that begins with
    /// `own:` is the stack's, and one that begins with `door:` is ours. The exit status is 0 if no
    /// message of a door was wrong.
    Stacks {
        #[command(flatten)]
        choice: stacks::Choice,
    },
    /// Build the Debian packages, or build and test them with --test
    ///
    /// The packages are built for Debian 12 and 13, each in a root file system of that release. Two
    /// builds of a package must be equal, and lintian must report no error. The packages are in
    /// target/xtask/package.
    Package {
        #[command(flatten)]
        options: package::Options,
    },
    /// Pack the crates for the registry, and test them outside of the repository
    ///
    /// The command unpacks the archives that `cargo package` makes, and builds and tests them in a
    /// workspace of their own.
    Crates,
    /// Run a command in a virtual machine with the driver and an RDMA device
    ///
    /// The command runs as root in the repository's root, with the driver loaded and a software
    /// RDMA device, rxe0. The guest sees this machine's files. With a `--kernel` of a newer Debian,
    /// it sees the files of that Debian. The guest can write the target directory. All other files
    /// are read-only, or their changes are lost.
    ///
    /// Output and exit status are the command's. Status 124 means that the command ran too long.
    /// Status 125 means that the machine failed or that its kernel complained.
    Vm {
        #[command(flatten)]
        machine: vm::Machine,
        /// Run this command with these arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(command: Xtask) -> Result<u8, Error> {
    let project = Project::find()?;
    match command {
        Xtask::Model => model::run(),
        Xtask::Demo {
            rounds,
            host_only,
            record,
        } => {
            if record {
                record::run(&project)
            } else {
                demo::run(&project, rounds, host_only)
            }
        }
        Xtask::Test { place } => test::run(&project, &place),
        Xtask::Check { scope } => check::run(&project, &scope),
        Xtask::Sanitize { choice } => sanitize::run(&project, &choice),
        Xtask::Cost { kernel } => cost::run(&project, kernel),
        Xtask::Bench { amount } => bench::run(&project, &amount),
        Xtask::Intree { steps } => intree::run(&project, &steps),
        Xtask::Mutants { names } => mutants::run(&project, &names),
        Xtask::Install {
            kernel,
            prefix,
            dev,
        } => {
            let profile = if dev { Profile::Dev } else { Profile::Release };
            match prefix {
                Some(dir) => install_user::run(&project, &dir, profile),
                None => install_driver::run(&project, kernel),
            }
            .map(|()| 0)
        }
        Xtask::Stacks { choice } => stacks::run(&project, &choice),
        Xtask::Package { options } => package::run(&project, &options),
        Xtask::Crates => publish::run(&project).map(|()| 0),
        Xtask::Vm { machine, command } => run_in_vm(&project, &machine, &command),
    }
}

fn run_in_vm(project: &Project, machine: &vm::Machine, command: &[OsString]) -> Result<u8, Error> {
    let stderr: Box<dyn io::Write + Send> = Box::new(io::stderr());
    let job = vm::Job {
        command,
        stdout: Box::new(io::stdout()),
        // If stdout and stderr are the same file, one channel carries both, so that the order of
        // the output is kept.
        stderr: (!stdout_is_stderr()).then_some(stderr),
    };
    vm::run(project, machine, job)
}

/// Returns whether stdout and stderr are the same terminal, pipe or file.
fn stdout_is_stderr() -> bool {
    let identity = |fd| {
        std::fs::metadata(format!("/proc/self/fd/{fd}"))
            .map(|it| (it.dev(), it.ino()))
            .ok()
    };
    identity(1).is_some() && identity(1) == identity(2)
}
