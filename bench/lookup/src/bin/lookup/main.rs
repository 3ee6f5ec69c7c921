//! Measures lookups of regcache and of UCX's registration cache. Prints a table for people, and
//! then one line for each figure, for scripts.
//!
//! The table reports a missed threshold. The exit status does not depend on thresholds.
//!
//! `cargo xtask bench` installs the packages that this program needs, and then builds and runs this
//! program.

mod bytes;
mod c;
mod change;
mod herd;
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
    /// Measure only the figures whose names begin with this text
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
    // Misses allocate memory. So they and the memory itself are measured first, before the other
    // measurements fragment the heap.
    bytes::measure(&mut report)?;
    change::measure(&mut report)?;
    hit::measure(&mut report)?;
    c::measure(&mut report)?;
    herd::measure(&mut report)?;
    instructions::measure(&mut report)?;
    report.print();
    Ok(())
}
