//! Does many lookups and little else, so that callgrind can count the instructions of a lookup.
//!
//! For example, `count-lookups regcache 10000 200000` registers 10 000 ranges and does 200 000
//! lookups of random ranges.

use std::sync::Arc;

use clap::{Parser, ValueEnum};
use regcache_bench_harness::Random;
use regcache_bench_lookup::{Addresses, CLibrary, Nothing, Regcache, Subject, loops};

/// Look ranges up, so that callgrind can count instructions
#[derive(Parser)]
struct Cli {
    /// Look ranges up in this cache
    cache: Which,
    /// Register this many ranges
    entries: usize,
    /// Do this many lookups
    lookups: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// regcache
    Regcache,
    /// regcache, through the C library that `cargo xtask bench` has built
    C,
    /// UCX's cache
    Ucx,
    /// No cache, only the loop
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
        Which::C => {
            let cache = CLibrary::new(1 << 17)?.ok_or("the C library was not built")?;
            run(&cache, &addresses, lookups);
        }
        Which::Ucx => {
            let peer = regcache_bench_lookup::peer(1 << 17)?;
            run(
                &peer.ok_or("this program was built without UCX: use --features ucx")?,
                &addresses,
                lookups,
            );
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
