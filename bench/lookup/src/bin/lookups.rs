//! Lookups and nothing else, for callgrind to count: `lookups regcache 10000 200000` registers
//! 10 000 ranges and looks 200 000 times for a random one.

use std::sync::Arc;

use clap::{Parser, ValueEnum};
use regcache_bench::{Addresses, Nothing, Random, Regcache, Subject, loops};

/// Looks ranges up, for a count of instructions
#[derive(Parser)]
struct Cli {
    /// In which cache
    cache: Which,
    /// How many ranges are registered
    entries: usize,
    /// How many lookups
    lookups: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// This one
    Regcache,
    /// UCX's
    Ucx,
    /// None: the loop itself
    Nothing,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Cli {
        cache,
        entries,
        lookups,
    } = Cli::parse();
    let addresses = Arc::new(Addresses::new(entries, 4096)?);
    match cache {
        Which::Regcache => run(&Regcache::new(&addresses, 1 << 17)?, &addresses, lookups),
        Which::Ucx => {
            let rival = regcache_bench::rival(1 << 17)?;
            run(&rival.ok_or("built without UCX")?, &addresses, lookups);
        }
        Which::Nothing => run(&Nothing, &addresses, lookups),
    }
    Ok(())
}

fn run(subject: &impl Subject, addresses: &Addresses, lookups: usize) {
    loops::fill(subject, addresses);
    if addresses.count() == 1 {
        loops::same(subject, addresses.entry(0), addresses.len(), lookups);
    } else {
        loops::random(subject, addresses, &mut Random::new(1), lookups);
    }
}
