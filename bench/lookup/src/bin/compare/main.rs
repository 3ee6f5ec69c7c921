//! Measures regcache, and UCX's registration cache beside it, and prints a table and a line for each
//! figure that a script can read. Takes no notice of limits that are missed: it only says so.
//!
//! `cargo xtask bench` installs what this needs, builds and runs it.

mod change;
mod hit;
mod instructions;
mod report;

use std::time::Duration;

use clap::Parser;
use regcache_bench::block::Effort;

use crate::report::Report;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Compares regcache with UCX's registration cache
#[derive(Parser)]
struct Cli {
    /// A tenth of the measurements
    #[arg(long)]
    quick: bool,
    /// Only figures whose names begin so
    #[arg(default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let Cli { quick, only } = Cli::parse();
    let effort = Effort {
        turns: if quick { 201 } else { 2001 },
        block: Duration::from_micros(500),
    };
    let mut report = Report::new(only, effort);
    // First, in a heap that no other figure has left in pieces: what is missed is allocated.
    change::measure(&mut report)?;
    hit::measure(&mut report)?;
    instructions::measure(&mut report)?;
    report.print();
    Ok(())
}
