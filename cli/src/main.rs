//! `regcache`: the command-line tool. It diagnoses a machine, shows the reuse bug on it, and runs
//! unmodified programs under the preload shim.
//!
//! It needs neither the driver nor libibverbs nor a device to start.

mod doctor;
mod elf;
mod installed;
mod repro;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "regcache", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Tool,
}

#[derive(Subcommand)]
enum Tool {
    /// Check this machine for monitors, devices and limits, and print commands that fix what is
    /// missing
    ///
    /// The checks run as the current user. Exits with 0 if registrations are cached here for some
    /// device, and with 1 if not.
    Doctor {
        /// Print only the commands, one on each line
        #[arg(long)]
        commands: bool,
    },
    /// Show the reuse bug on this machine: a naive cache moves stale bytes, regcache does not
    ///
    /// The device is io_uring, and an RDMA device as well if there is one. The monitor is the best
    /// one of this machine. Exits with 0 if the naive cache was stale in every round and regcache
    /// in none, with 1 if not, and with 77 if there is no device.
    Repro {
        /// Play this many rounds with each cache
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
    },
    /// Run a program under the preload shim, which caches its registrations
    ///
    /// REGCACHE_* variables configure the shim, from the environment or from -e.
    Run {
        /// Use this shim instead of the one that is installed with this tool
        #[arg(long, value_name = "FILE")]
        shim: Option<PathBuf>,
        /// Set this variable for the shim; may be repeated
        #[arg(short = 'e', long = "env", value_name = "REGCACHE_NAME=VALUE", value_parser = run::setting)]
        settings: Vec<(String, String)>,
        /// The program and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Tool::Doctor { commands } => Ok(doctor::run(commands)),
        Tool::Repro { rounds } => repro::run(rounds),
        Tool::Run {
            shim,
            settings,
            command,
        } => run::run(shim.as_deref(), &settings, &command),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("regcache: {error}");
            ExitCode::from(error.status)
        }
    }
}

/// The error of a command, and its exit status.
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
