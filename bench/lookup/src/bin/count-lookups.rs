//! Does many lookups and little else, so that callgrind can count the instructions of a lookup.
//!
//! For example, `count-lookups regcache hit 10000 200000` registers 10 000 ranges and does 200 000
//! lookups of random ranges.

use std::sync::Arc;

use clap::{Parser, ValueEnum};
use regcache_bench_harness::Random;
use regcache_bench_lookup::{Addresses, Nothing, Regcache, Subject, Unwatched, loops};

/// Look ranges up, so that callgrind can count instructions
#[derive(Parser)]
struct Cli {
    /// Look ranges up in this cache
    cache: Which,
    /// Do lookups of this kind
    kind: Kind,
    /// Register this many ranges
    entries: usize,
    /// Do this many lookups
    lookups: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// regcache
    Regcache,
    /// UCX's cache
    Ucx,
    /// No cache, only the loop
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Hits
    Hit,
    /// Misses that evict
    Evict,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Cli {
        cache,
        kind,
        entries,
        lookups,
    } = Cli::parse();
    let addresses = Arc::new(Addresses::new(entries, 4096)?);
    let room = match kind {
        Kind::Hit => 1 << 17,
        Kind::Evict => entries,
    };
    let run = Run {
        kind,
        addresses: &addresses,
        lookups,
    };
    match (cache, kind) {
        (Which::Regcache, Kind::Hit) => run.over(&Regcache::new(&addresses, room)?),
        // UCX's cache has no monitor in these programs.
        (Which::Regcache, Kind::Evict) => run.over(&Unwatched::new(room)?),
        (Which::Ucx, _) => {
            let peer = regcache_bench_lookup::peer(room)?;
            run.over(&peer.ok_or("this program was built without UCX: use --features ucx")?);
        }
        (Which::Nothing, _) => run.over(&Nothing),
    }
    Ok(())
}

struct Run<'a> {
    kind: Kind,
    addresses: &'a Addresses,
    lookups: usize,
}

impl Run<'_> {
    fn over(&self, subject: &impl Subject) {
        let &Self {
            kind,
            addresses,
            lookups,
        } = self;
        loops::fill(subject, addresses);
        if kind == Kind::Evict {
            loops::evict(subject, addresses, 0, lookups);
        } else if addresses.count() == 1 {
            loops::same(subject, addresses.entry(0), addresses.len(), lookups);
        } else {
            loops::random(subject, addresses, &mut Random::new(1), lookups);
        }
    }
}
