//! `transfer scaling`: prints the resources that many ranks on one node need.

use std::process::ExitCode;

use regcache_bench_transfer::Error;
use regcache_bench_transfer::scaling::{Rank, measure, table};
use regcache_bench_transfer::table::markdown;

pub(crate) fn run(rank: Rank) -> Result<ExitCode, Error> {
    let footprint = measure(rank)?;
    println!(
        "a cache: {:.0} KiB, and {:.0} bytes for each registration\n",
        footprint.empty / 1024.0,
        footprint.entry
    );
    print!("{}", markdown(&table(rank, footprint)));
    Ok(ExitCode::SUCCESS)
}
