//! `regcache`: what this machine has for a registration cache, the bug on it, and the shim for programs that cannot be
//! changed.
//!
//! It starts where there is nothing: neither the driver nor libibverbs nor a device.

mod doctor;
mod elf;
mod place;
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
    /// Tell what this machine has, what is missing, and the command that mends it
    ///
    /// Looks at the monitors, the devices, and the limits, as the user who asks. Exits with 0 if registrations are cached here,
    /// for some device, and with 1 if not.
    Doctor {
        /// Only the commands that mend things, one a line
        #[arg(long)]
        commands: bool,
    },
    /// Show the bug on this machine: a naive cache moves old bytes, regcache does not
    ///
    /// With io_uring for a device, and with an RDMA device if there is one; on the best monitor there is. Exits with 0 if the naive cache
    /// was wrong each time and regcache never, with 1 if not, and with 77 if there is no device.
    Repro {
        /// How often with each cache
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
    },
    /// Run a program under the preload shim, which caches its registrations
    ///
    /// What the shim is to do it is told by environment variables, which begin with REGCACHE_, set with -e or before.
    Run {
        /// The shim, if not the one that is installed with this tool
        #[arg(long, value_name = "FILE")]
        shim: Option<PathBuf>,
        /// An environment variable for the shim
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

/// Why a command could not do what it is for.
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
