//! Measures lookups of regcache and of UCX's registration cache, and prints a table and a line for
//! each figure. A missed threshold is reported in the table and does not change the exit status.
//!
//! `cargo xtask bench` installs the packages that this program needs, builds it and runs it.

mod change;
mod hit;
mod instructions;
mod pair;
mod report;

use std::time::Duration;

use clap::Parser;
use regcache_bench_harness::Effort;

use crate::report::Report;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Compare lookups of regcache with those of UCX's registration cache
#[derive(Parser)]
struct Cli {
    /// Measure a tenth of the rounds
    #[arg(long)]
    quick: bool,
    /// Measure only the figures whose names begin with this
    #[arg(default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let Cli { quick, only } = Cli::parse();
    let effort = Effort {
        rounds: if quick { 201 } else { 2001 },
        sample: Duration::from_micros(500),
    };
    let mut report = Report::new(only, effort);
    // Misses allocate, so they come first, in a heap that no other figure has fragmented.
    change::measure(&mut report)?;
    hit::measure(&mut report)?;
    instructions::measure(&mut report)?;
    report.print();
    Ok(())
}
