//! `regcache`: the command-line tool. It checks a machine for registration caching, reproduces the
//! bug that the cache prevents, and runs programs under the preload shim.
//!
//! The tool runs on any machine, even without the driver, libibverbs or a device.

#[cfg(test)]
mod completions;
mod doctor;
mod elf;
mod installed;
#[cfg(test)]
mod man;
mod repro;
mod run;
mod stack;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::stack::Stack;

#[derive(Parser)]
#[command(name = "regcache", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Tool,
}

#[derive(Subcommand)]
enum Tool {
    /// Check whether this machine can cache registrations, and print commands that fix problems
    ///
    /// Run this command first, and whenever a program reports that nothing is cached. It checks the
    /// monitors, the devices and the limits, with the rights of the user who runs it. Below each
    /// problem it prints the commands that fix the problem. Run these commands as root. Those that
    /// start with make or cargo work only in the root of the repository of regcache.
    ///
    /// The exit status is 0 if registrations are cached for some device. It is 1 if there is a
    /// device but no monitor, and 3 if there is no device.
    Doctor {
        /// Print only the commands that fix problems, one per line; run them in the root of the
        /// repository
        #[arg(long)]
        commands: bool,
        /// Print the report as JSON, for scripts
        #[arg(long, conflicts_with = "commands")]
        json: bool,
    },
    /// Reproduce the bug: a naive cache moves stale bytes, and regcache does not
    ///
    /// Run this command to see the effect of a stale registration on this machine. It transfers
    /// data with io_uring, and with an RDMA device if there is one. The cache uses the best
    /// available monitor.
    ///
    /// The exit status is 0 if the naive cache moved stale bytes in each transfer and regcache in
    /// none. With --watch, some stale transfers of the naive cache are enough. The status is 77 if
    /// there is no device, and 1 otherwise.
    Repro {
        /// Set the number of transfers with each cache
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Show the counts of both caches while they work, for this many seconds
        ///
        /// The device is io_uring. Each page is mapped, transferred four times and unmapped.
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "10",
            conflicts_with = "rounds",
            value_parser = clap::value_parser!(u64).range(1..)
        )]
        watch: Option<u64>,
    },
    /// Run a program under the preload shim, which caches its registrations
    ///
    /// Use this command for programs that register memory around each transfer and cannot be
    /// changed. Configure the shim by REGCACHE_* variables, in the environment or with -e.
    /// regcache-preload(7) lists the variables.
    ///
    /// With --stack, the program may also use UCX or libfabric, directly or by MPI. The command
    /// then switches off the stack's own cache, which does not notice every change of memory, and
    /// sets REGCACHE_REMOTE=keep. The processes of the job must trust each other with their memory.
    ///
    /// The exit status is the program's. It is 126 if the program cannot run under the shim, and
    /// 127 if the program is not found.
    Run {
        /// Put the shim below this stack, in place of the stack's own cache
        #[arg(long, value_enum)]
        stack: Option<Stack>,
        /// Use this shim instead of the one that is installed with this tool
        #[arg(long, value_name = "FILE")]
        shim: Option<PathBuf>,
        /// Set an environment variable for the shim; repeat the option to set several
        #[arg(
            short = 'e',
            long = "env",
            value_name = "REGCACHE_NAME=VALUE",
            value_parser = run::setting
        )]
        settings: Vec<(String, String)>,
        /// Run this program with these arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    regcache_repro::end_if_output_fails();
    let done = match Cli::parse().command {
        Tool::Doctor { commands, json } => doctor::run(match (commands, json) {
            (true, _) => doctor::Form::Commands,
            (_, true) => doctor::Form::Json,
            _ => doctor::Form::Text,
        }),
        Tool::Repro { watch, rounds } => match watch {
            Some(seconds) => watch::run(seconds),
            None => repro::run(rounds),
        },
        Tool::Run {
            stack,
            shim,
            settings,
            command,
        } => run::run(stack, shim.as_deref(), &settings, &command),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("regcache: {error}");
            ExitCode::from(error.status)
        }
    }
}

/// The reason why a command of the tool failed, and the exit status of the tool.
#[derive(Debug)]
struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    fn new(status: u8, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            status,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
